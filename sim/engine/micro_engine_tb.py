# SPDX-License-Identifier: Apache-2.0
"""What the generic bench cannot say of the micro engine: a reset in mid-token."""

import json
import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles

from ...rtl.engine.micro_engine import MicroEngine, MicroEngineConfig
from ...rtl.interface import streams_of
from ..bench import PERIOD_NS, Sink, Source, compare, run_mode
from . import micro_engine as golden

SEED = 2


@cocotb.test()
async def a_reset_ends_the_token_at_work_and_the_next_text_is_right(dut: Any) -> None:
    plan = json.loads(Path(os.environ["ATRIPLEX_PLAN"]).read_text())
    config = MicroEngineConfig.of(plan["config"])
    inputs = golden.texts(config, np.random.default_rng(SEED), 0, SEED)
    inputs["token_i"] = {name: values[:1] for name, values in inputs["token_i"].items()}
    inputs["token_i"]["sample"][:] = True
    expected = golden.golden(config, inputs)
    loaded, whole = len(inputs["image_i"]["word"]), golden.cycles(config, inputs)
    streams = streams_of(MicroEngine, config)

    def run() -> tuple[Any, list[Sink]]:
        sources = [Source(dut, s, inputs[s.name]) for s in streams if s.direction == "in"]
        counts = {name: len(next(iter(fields.values()))) for name, fields in expected.items()}
        sinks = [Sink(dut, s, counts[s.name]) for s in streams if s.direction == "out"]
        return run_mode(dut, sources, sinks, None, golden.PATIENCE), sinks

    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    for cycles in (loaded // 2, loaded + 3, loaded + 1000, (loaded + whole) // 2):
        task = cocotb.start_soon(run()[0])
        await ClockCycles(dut.clk, cycles)
        task.cancel()
    work, sinks = run()
    await work
    assert [compare(sink, expected[sink.stream.name])[1] for sink in sinks] == [None, None]
