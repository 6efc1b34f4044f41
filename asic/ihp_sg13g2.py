# SPDX-License-Identifier: Apache-2.0
"""IHP SG13G2 130 nm, typical corner (25 C, 1.2 V)."""

from .library import Library

CELLS = "libs.ref/sg13g2_stdcell/lib/sg13g2_stdcell_typ_1p20V_25C.lib"

LIBRARY = Library(
    name="ihp_sg13g2",
    title="IHP SG13G2, 130 nm",
    aliases=("ihp-sg13g2", "sg13g2", "sg13g2_stdcell"),
    get="clone IHP-Open-PDK and set PDK_ROOT to that folder, "
    "or name the file under libraries in the user's config.yaml",
    places=(
        f"$PDK_ROOT/ihp-sg13g2/{CELLS}",
        f"~/.ciel/ihp-sg13g2/{CELLS}",
        "$FLOW_HOME/platforms/ihp-sg13g2/lib/sg13g2_stdcell_typ_1p20V_25C.lib*",
    ),
    nand2="sg13g2_nand2_1",
    driver="sg13g2_inv_2",
    load_ff=6.0,
)
