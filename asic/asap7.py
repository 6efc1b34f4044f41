# SPDX-License-Identifier: Apache-2.0
"""ASAP7, a predictive 7 nm kit: regular-threshold cells, typical corner, in five files."""

from .library import Library

LIBRARY = Library(
    name="asap7",
    title="ASAP7 predictive 7 nm, RVT",
    get="clone OpenROAD-flow-scripts and set FLOW_HOME to its folder flow, "
    "or name the five files as a list under libraries in the user's config.yaml",
    places=(
        "$FLOW_HOME/platforms/asap7/lib/NLDM/asap7sc7p5t_*_RVT_TT_nldm_*.lib*",
        "$PDK_ROOT/asap7/lib/NLDM/asap7sc7p5t_*_RVT_TT_nldm_*.lib*",
        "$PDK_ROOT/asap7/asap7sc7p5t_*_RVT_TT_nldm_*.lib*",
    ),
    nand2="NAND2xp33_ASAP7_75t_R",
    driver="BUFx2_ASAP7_75t_R",
    load_ff=3.9,
    avoid=("*x1p*_ASAP7*", "*xp*_ASAP7*", "SDF*", "ICG*", "DLL*", "DHL*"),
)
