# SPDX-License-Identifier: Apache-2.0
"""What the engine with the shipped model reaches on a board, kept with the package.

``python -m atriplex.gen.engine.place`` runs synthesis, place and route (half an hour) and writes
``placed.json``, from which reports take the clock.
"""

import json
import sys
from pathlib import Path
from typing import Any

BOARD, TARGET_MHZ = "ulx3s-85f", 60.0
PLACED = Path(__file__).with_name("placed.json")
FIELDS = ("board", "lut", "ff", "ram", "dsp", "fmax_mhz", "target_mhz", "met", "config")
SAME = ("lanes", "norm_lanes", "head_lanes", "matvec", "select", "rows")
"""Parameters that the clock depends on."""


def main() -> None:
    from ...fpga import boards, flow
    from . import appliance

    board = boards.board(BOARD)
    design, _, _ = appliance.for_board(board, TARGET_MHZ)
    report = flow.build(
        design,
        board,
        Path("out", f"engine-{BOARD}"),
        target_mhz=TARGET_MHZ,
        progress=lambda stage: print(f"... {stage}", file=sys.stderr, flush=True),
    )
    values = report.values()
    PLACED.write_text(json.dumps({name: values[name] for name in FIELDS}, indent=2) + "\n")


def clock_mhz(config: dict[str, Any]) -> float | None:
    """The clock for which such an engine's timing was met, or None for one that was not placed."""
    if not PLACED.exists():
        return None
    placed = json.loads(PLACED.read_text())
    same = all(placed["config"][name] == config[name] for name in SAME)
    return min(placed["target_mhz"], placed["fmax_mhz"]) if same else None


if __name__ == "__main__":
    main()
