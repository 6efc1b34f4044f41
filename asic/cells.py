# SPDX-License-Identifier: Apache-2.0
"""Functional models of cells, made by yosys from the Liberty file itself, so any library works."""

import re
from pathlib import Path

from ..gen import cache, tools


def models(text: str) -> Path:
    """Verilog models of the cells in ``text``, a Liberty file without tables; kept by content."""
    yosys = tools.find("yosys")

    def fill(folder: Path) -> None:
        (folder / "cells.lib").write_text(text)
        script = (
            "read_liberty -ignore_miss_func -ignore_miss_dir -ignore_miss_data_latch "
            "-ignore_buses cells.lib\nproc\nopt_clean\nwrite_verilog -noattr -noexpr cells.v\n"
        )
        (folder / "cells.ys").write_text(script)
        tools.run(yosys, ["-q", "cells.ys"], cwd=folder, log=folder / "cells.log")
        (folder / "cells.v").write_text(_clean((folder / "cells.v").read_text()))

    return cache.folder("asic-cells", [text, yosys.version, _clean.__doc__ or ""], fill) / "cells.v"


def _clean(text: str) -> str:
    """Version 1: drop the dated header, so that one library gives one text."""
    return re.sub(r"\A/\*.*?\*/\s*", "", text, flags=re.DOTALL)
