# SPDX-License-Identifier: Apache-2.0
"""The main job on real input, start to end: ``python -m atriplex.gen.demo [PROMPT]``.

The shipped model reads a prompt.  Every projection of its first layer, with the packed weights and
the activations of every token of that prompt, runs through generated hardware in Verilator and must
equal numpy bit for bit.  The same hardware becomes a bitstream, whose clock says how many tokens
per second these projections allow.  Then the whole engine continues the text from its Verilog, each
token checked, and a table says where its cycles went.
"""

import argparse
import atexit
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from ..rtl.errors import AtriplexError
from . import blocks
from .verilog import emit

if TYPE_CHECKING:
    from .engine.story import Story

PROMPT = "Once upon a time there was a king"
BLOCK, PRESET, BOARD, TARGET_MHZ = "ternary_gemv", "storybook", "ulx3s", 60.0
TOKENS = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/demo"))
    args = parser.parse_args()
    try:
        return demo(args.prompt, args.out)
    except AtriplexError as error:
        print(f"atriplex: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("atriplex: interrupted", file=sys.stderr)
        return 130


def demo(prompt: str, out: Path) -> int:
    """Run everything; 0 only if all bits are equal and the clock is met."""
    from ..fpga.boards import board
    from ..fpga.flow import build
    from ..sim.mac import ternary_gemv as golden
    from ..sim.run import simulate
    from .engine import report as engine_report
    from .model.generate import first_layer

    stage = _Stages()
    _warm_up()
    block = blocks.find(BLOCK)
    config = block.config.preset(PRESET)
    design = emit(block, config)

    runs = first_layer(prompt)
    tokens = len(next(iter(runs.values())).codes)
    weights = sum(run.trits.size for run in runs.values())
    stage(f"{len(runs)} projections of layer 0, {weights:,} ternary weights, {tokens} tokens")
    pairs = [(run, token) for run in runs.values() for token in range(tokens)]
    inputs = golden.joined([golden.product(config, run.codes[t], run.trits) for run, t in pairs])
    model_sums = np.concatenate([run.sums[t] for run, t in pairs])
    if not np.array_equal(golden.golden(config, inputs)["o"]["sums"].reshape(-1), model_sums):
        raise AtriplexError("the golden model of the block disagrees with the model's own sums")

    stage(f"{BLOCK} in Verilator")
    outcome = simulate(design, inputs=inputs, modes=["free"], progress=stage)
    for complaint in outcome.complaints():
        print(complaint, file=sys.stderr)

    stage(f"bitstream for {BOARD}")
    report = build(design, board(BOARD), out, target_mhz=TARGET_MHZ, progress=stage)
    stage.done()

    busy = len(inputs["weights_i"]["last"])
    sums, model_weights = len(model_sums), _ternary_weights()
    clock = 1e6 * (report.fmax_mhz or 0)
    rows = {
        "sums equal to numpy, bit for bit": f"{sums - outcome.mismatches:,} of {sums:,}",
        "cycles (cycle model)": f"{outcome.cycles:,} ({outcome.expected_cycles:,})",
        "MAC per cycle": f"{weights * tokens / outcome.cycles:.2f} of {config.lanes}",
        "utilisation: weights / lanes / cycles": f"{100 * busy / outcome.cycles:.2f} %",
        f"clock on {report.board}, MHz": (
            f"{report.fmax_mhz}, target {TARGET_MHZ:g}: {'met' if report.met else 'missed'}"
        ),
        "core": f"{report.lut} LUT4, {report.ff} FF, {report.ram} RAM, {report.dsp} DSP",
        "LUT4 per lane, memory and control included": f"{report.lut / config.lanes:.1f}",
        "tokens/s through layer 0": f"{clock / (outcome.cycles / tokens):,.0f}",
        "tokens/s through all ternary weights": f"{clock * config.lanes / model_weights:,.0f}",
        "bitstream": report.bitstream or "-",
    }
    console = Console()
    table = Table(title=f"{BLOCK}, {config.lanes} lanes, on the shipped model", show_header=False)
    for row in rows.items():
        table.add_row(*row)
    console.print(table)

    stage("the transformer engine in Verilator")
    story = tale(prompt, TOKENS, stage)
    stage.done()
    print(f"\n{prompt}", end="", flush=True)
    for piece in story:
        print(piece, end="", flush=True)
    measured = engine_report.values(story)
    print("\n")
    lanes = measured["lanes"]
    table = Table(title=f"engine, {lanes} lanes, told this text", show_header=False)
    for row in engine_report.rows(measured):
        table.add_row(*row)
    console.print(table)
    for wrong in measured["wrong"]:
        print(wrong, file=sys.stderr)
    return 0 if outcome.passed and report.met and not measured["wrong"] else 1


def tale(prompt: str, tokens: int, progress: Callable[[str], None] = lambda stage: None) -> "Story":
    """The text that the demo's engine tells."""
    from .engine.story import Story

    return Story(prompt, tokens=tokens, temperature=0.5, seed=3, progress=progress)


def _warm_up() -> None:
    """Start the tools that come as WebAssembly: at their first start they compile for a minute.

    One after another, beside the simulator's build, and ended with this process.
    """
    from .tools import find

    starts = [
        " ".join(map(shlex.quote, [*find(name).command, "--version"]))
        for name in ("yosys", "nextpnr-ecp5", "ecppack")
        if find(name).origin == "wheel"
    ]
    child = subprocess.Popen(
        ["/bin/sh", "-c", "; ".join(starts)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(_end, child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _ternary_weights() -> int:
    from .model import packed
    from .model.generate import shipped

    return packed.load(shipped()).model.config.ternary_weights


class _Stages:
    """What is going on, and how long each stage took, on stderr."""

    def __init__(self) -> None:
        self.started, self.title = time.monotonic(), ""

    def __call__(self, title: str) -> None:
        self.done()
        self.started, self.title = time.monotonic(), title
        print(f"... {title}", file=sys.stderr, flush=True)

    def done(self) -> None:
        if self.title:
            print(f"    {time.monotonic() - self.started:.1f} s", file=sys.stderr, flush=True)
        self.title = ""


if __name__ == "__main__":
    sys.exit(main())
