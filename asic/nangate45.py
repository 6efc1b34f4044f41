# SPDX-License-Identifier: Apache-2.0
"""Nangate open cells for FreePDK45, typical corner."""

from .library import Library

FILE = "NangateOpenCellLibrary_typical.lib"

LIBRARY = Library(
    name="nangate45",
    title="Nangate open cells, 45 nm",
    get="clone OpenROAD-flow-scripts and set FLOW_HOME to its folder flow, "
    "or name the file under libraries in the user's config.yaml",
    places=(
        f"$FLOW_HOME/platforms/nangate45/lib/{FILE}",
        f"$PDK_ROOT/nangate45/lib/{FILE}",
        f"$PDK_ROOT/nangate45/{FILE}",
    ),
    nand2="NAND2_X1",
    driver="INV_X2",
    load_ff=3.9,
    avoid=("ANTENNA*", "FILLCELL*", "LOGIC*_X0"),
)
