# SPDX-License-Identifier: Apache-2.0
"""Functional models of cells, made by yosys from the Liberty file itself, so any library works."""

import re
from pathlib import Path

from ..gen import tools
from ..rtl import cache

SCRIPT = """\
read_liberty -ignore_miss_func -ignore_miss_dir -ignore_miss_data_latch -ignore_buses cells.lib
proc
opt_clean
write_verilog -noattr cells.v
"""


# A chip starts with some value in every register, not with an unknown one.
POWER_UP = r"\g<0>`ifndef SYNTHESIS\n  initial \1 = $random;\n`endif\n"


def models(text: str) -> Path:
    """Verilog models of the cells in ``text``, a Liberty file without tables; kept by content.

    Registers start with a random value in simulators, as on a chip, so that a missing reset shows.
    """
    yosys = tools.find("yosys")
    key = [text, yosys.version, SCRIPT, POWER_UP]

    def fill(folder: Path) -> None:
        (folder / "cells.lib").write_text(text)
        (folder / "cells.ys").write_text(SCRIPT)
        log = cache.log("asic-cells", key, "cells")
        tools.run(yosys, ["-q", "cells.ys"], cwd=folder, log=log)
        made = (folder / "cells.v").read_text()
        made = re.sub(r"\A/\*.*?\*/\s*", "", made, flags=re.DOTALL)
        made = re.sub(r"^  reg (\w+);\n", POWER_UP, made, flags=re.MULTILINE)
        (folder / "cells.v").write_text(made)

    return cache.folder("asic-cells", key, fill) / "cells.v"
