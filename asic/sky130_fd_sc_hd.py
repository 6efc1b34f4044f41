# SPDX-License-Identifier: Apache-2.0
"""SkyWater 130 nm, high-density cells, typical corner (25 C, 1.8 V)."""

from .library import Library

LIBRARY = Library(
    name="sky130_fd_sc_hd",
    title="SkyWater 130 nm, high density",
    aliases=("sky130", "sky130hd"),
    get="install the open PDK sky130A with the program ciel and set PDK_ROOT to its folder, "
    "or name the file under libraries in the user's config.yaml",
    places=(
        "$PDK_ROOT/sky130A/libs.ref/sky130_fd_sc_hd/lib/sky130_fd_sc_hd__tt_025C_1v80.lib",
        "~/.ciel/sky130A/libs.ref/sky130_fd_sc_hd/lib/sky130_fd_sc_hd__tt_025C_1v80.lib",
        "~/.volare/sky130A/libs.ref/sky130_fd_sc_hd/lib/sky130_fd_sc_hd__tt_025C_1v80.lib",
        "$FLOW_HOME/platforms/sky130hd/lib/sky130_fd_sc_hd__tt_025C_1v80.lib*",
    ),
    nand2="sky130_fd_sc_hd__nand2_1",
    driver="sky130_fd_sc_hd__inv_2",
    load_ff=33.4,
    avoid=("*__probe*", "*__lpflow_*", "*__macro_sparecell", "*__dlymetal*", "*__dlygate*"),
)
