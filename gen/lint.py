# SPDX-License-Identifier: Apache-2.0
"""Verilator's lint of emitted Verilog: all warnings, but those that ``lint.vlt`` waives."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..rtl.errors import ToolFailed
from ..sim import run
from .verilog import Design

WAIVERS = Path(__file__).with_name("lint.vlt")


def lint(design: Design) -> list[str]:
    """Warnings and errors, one line each; an empty list is a clean design."""
    run.version("verilator")  # puts the packaged one into the path, where it is used
    with tempfile.TemporaryDirectory() as folder:
        name = f"{design.top}.v"
        Path(folder, name).write_text(design.text)
        shutil.copy(WAIVERS, folder)
        said = subprocess.run(
            ["verilator", "--lint-only", "-Wall", "--top-module", design.top, WAIVERS.name, name],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    lines = re.findall(r"^%((?:Warning|Error)\S* .*)", said.stderr, re.MULTILINE)
    found = [line for line in lines if not line.startswith("Error: Exiting due to")]
    if said.returncode and not found:
        raise ToolFailed(f"verilator failed: {said.stderr.strip() or said.returncode}")
    return found
