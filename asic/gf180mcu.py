# SPDX-License-Identifier: Apache-2.0
"""GlobalFoundries 180 nm MCU, 7-track 5 V cells, typical corner (25 C, 5 V)."""

from .library import Library

CELLS = "libs.ref/gf180mcu_fd_sc_mcu7t5v0/lib/gf180mcu_fd_sc_mcu7t5v0__tt_025C_5v00.lib"

LIBRARY = Library(
    name="gf180mcu",
    title="GlobalFoundries 180 nm MCU, 7 tracks, 5 V",
    aliases=("gf180mcu_fd_sc_mcu7t5v0", "gf180"),
    get="install the open PDK gf180mcuD with the program ciel and set PDK_ROOT to its folder, "
    "or name the file under libraries in the user's config.yaml",
    places=(
        f"$PDK_ROOT/gf180mcuD/{CELLS}",
        f"$PDK_ROOT/gf180mcuC/{CELLS}",
        f"~/.ciel/gf180mcuD/{CELLS}",
        f"~/.volare/gf180mcuD/{CELLS}",
    ),
    nand2="gf180mcu_fd_sc_mcu7t5v0__nand2_1",
    driver="gf180mcu_fd_sc_mcu7t5v0__inv_2",
    load_ff=72.9,
    avoid=("*__icgt*", "*__lat*", "*__dly*", "*__hold", "*__antenna"),
)
