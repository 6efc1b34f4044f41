# SPDX-License-Identifier: Apache-2.0
"""The generic bench: any block with streams, a golden model, stimulus and a cycle model.

Runs inside the simulator.  A plan (JSON, path in ``ATRIPLEX_PLAN``) says which block with which
config, seed and modes; the outcome goes to the plan's ``result``.  Every mode resets the block,
offers all input transfers and takes all output transfers:

free
    nobody stalls: bits must equal the golden model's and cycles the cycle model's
stalled
    every stream pauses at random on both sides: bits must equal the golden model's

``free@3`` is ``free`` with the top module's input ``variant`` at 3.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from ..rtl import interface
from . import payload

PERIOD_NS = 10
PATIENCE = 2000  # cycles without any transfer before the bench gives up; a block may say another


class Source:
    """Offers packed transfers on an input stream; an offered one stays until taken."""

    def __init__(self, dut: Any, stream: interface.Stream, transfers: dict[str, Any]):
        self.valid, self.ready = (getattr(dut, stream.port(end)) for end in ("valid", "ready"))
        self.ports = [getattr(dut, stream.port(field.name)) for field in stream.fields]
        columns = [payload.pack(transfers[field.name], field.width) for field in stream.fields]
        self.rows = list(zip(*columns, strict=True))
        self.at, self.offering = 0, False
        for port in (self.valid, *self.ports):
            port.value = 0  # gates may keep what is undefined at the first edge

    @property
    def done(self) -> bool:
        return self.at == len(self.rows)

    def taken(self) -> bool:
        """At a clock edge: whether the offered transfer was taken."""
        if self.offering and int(self.ready.value):
            self.at += 1
            self.offering = False
            return True
        return False

    def offer(self, pause: bool) -> None:
        """After a clock edge: offer the next transfer unless one is offered or this is a pause."""
        if self.offering:
            return
        self.offering = not (pause or self.done)
        self.valid.value = self.offering
        if self.offering:
            for port, value in zip(self.ports, self.rows[self.at], strict=True):
                port.value = value


class Sink:
    """Takes transfers from an output stream and notes the cycle of each."""

    def __init__(self, dut: Any, stream: interface.Stream, count: int):
        self.stream, self.count = stream, count
        self.valid, self.ready = (getattr(dut, stream.port(end)) for end in ("valid", "ready"))
        self.ports = [getattr(dut, stream.port(field.name)) for field in stream.fields]
        self.rows: list[tuple[int, ...]] = []
        self.cycles: list[int] = []
        self.undefined: set[int] = set()
        self.accepting = False
        self.ready.value = 0

    @property
    def done(self) -> bool:
        return len(self.rows) >= self.count

    def take(self, cycle: int) -> bool:
        """At a clock edge: take what is offered, if anything was accepted."""
        if not (self.accepting and int(self.valid.value)):
            return False
        self.rows.append(tuple(self._word(port.value) for port in self.ports))
        self.cycles.append(cycle)
        return True

    def _word(self, value: Any) -> int:
        try:
            return int(value)
        except ValueError:  # X or Z bits, taken as 0 and counted as wrong
            self.undefined.add(len(self.rows))
            return int("".join(bit if bit == "1" else "0" for bit in str(value)), 2)

    def accept(self, pause: bool) -> None:
        if self.accepting == pause:
            self.accepting = not pause
            self.ready.value = self.accepting

    def decoded(self) -> dict[str, Any]:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.stream.fields)
        return {
            field.name: payload.unpack(column, field.width, field.signed, field.dims)
            for field, column in zip(self.stream.fields, columns, strict=True)
        }


async def run_mode(
    dut: Any,
    sources: list[Source],
    sinks: list[Sink],
    rng: np.random.Generator | None,
    patience: int,
) -> int:
    """Run until every stream is done, or nothing moves for too long; returns cycles until then."""
    edge = RisingEdge(dut.clk)
    pauses = _Pauses(rng, len(sources) + len(sinks))

    def next_offers() -> None:
        pause = pauses.next()
        for index, end in enumerate([*sources, *sinks]):
            (end.offer if isinstance(end, Source) else end.accept)(pause[index])

    dut.rst.value = 1
    for _ in range(4):
        await edge
    dut.rst.value = 0
    next_offers()
    cycle = idle = 0
    while idle < patience and not all(end.done for end in [*sources, *sinks]):
        await edge
        cycle += 1
        moved = [source.taken() for source in sources] + [sink.take(cycle) for sink in sinks]
        idle = 0 if any(moved) else idle + 1
        next_offers()
    for _ in range(8):  # a block must not say more than it was asked
        await edge
        cycle += 1
        for sink in sinks:
            sink.take(cycle)
    return cycle


class _Pauses:
    """Which streams pause in the next cycle: never, or at random with changing density."""

    def __init__(self, rng: np.random.Generator | None, streams: int):
        self.rng, self.streams, self.left = rng, streams, 0
        self.never = [False] * streams

    def next(self) -> list[bool]:
        if self.rng is None:
            return self.never
        if self.left == 0:
            self.left = 512
            density = self.rng.choice([0.1, 0.5, 0.9], (self.streams, 1))
            self.block = (self.rng.random((self.streams, self.left)) < density).T.tolist()
        self.left -= 1
        return self.block[self.left]


def compare(sink: Sink, expected: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
    """Count of wrong transfers and a description of the first one."""
    got = sink.decoded()
    common = min(len(sink.rows), sink.count)
    wrong = np.zeros(common, bool)
    for name, values in expected.items():
        differs = got[name][:common] != values[:common]
        wrong |= differs.any(axis=tuple(range(1, differs.ndim)))
    wrong[[index for index in sink.undefined if index < common]] = True
    count = int(wrong.sum()) + abs(len(sink.rows) - sink.count)
    if count == 0:
        return 0, None
    index = int(wrong.argmax()) if wrong.any() else common

    def row(values: dict[str, Any]) -> dict[str, Any] | None:
        return (
            {name: v[index].tolist() for name, v in values.items()}
            if index < len(next(iter(values.values())))
            else None
        )

    return count, {
        "stream": sink.stream.name,
        "index": index,
        "cycle": sink.cycles[index] if index < len(sink.cycles) else None,
        "expected": row(expected),
        "got": row(got),
        "undefined": index in sink.undefined,
    }


def _inputs(plan: dict[str, Any], golden: Any, config: Any) -> dict[str, dict[str, Any]]:
    """The transfers that the plan brings along, else the block's stimulus."""
    if plan["inputs"] is None:
        return golden.stimulus(config, np.random.default_rng(plan["seed"]), plan["transfers"])
    inputs: dict[str, dict[str, Any]] = {}
    with np.load(plan["inputs"]) as arrays:
        for name, values in arrays.items():
            stream, _, part = name.partition("/")
            inputs.setdefault(stream, {})[part] = values
    return inputs


@cocotb.test()
async def generic(dut: Any) -> None:
    plan = json.loads(Path(os.environ["ATRIPLEX_PLAN"]).read_text())
    component_class, config_class = interface.load(plan["module"])
    config = config_class.of(plan["config"])
    golden = importlib.import_module(plan["golden"])
    inputs = _inputs(plan, golden, config)
    expected = golden.golden(config, inputs)
    cycles = golden.cycles(config, inputs)
    streams = interface.streams_of(component_class, config)

    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    outcomes = []
    for mode in plan["modes"]:
        kind, _, variant = mode.partition("@")
        if variant:
            dut.variant.value = int(variant)
        rng = np.random.default_rng([plan["seed"], 1]) if kind == "stalled" else None
        sources = [Source(dut, s, inputs[s.name]) for s in streams if s.direction == "in"]
        sinks = [
            Sink(dut, s, len(next(iter(expected[s.name].values()))))
            for s in streams
            if s.direction == "out"
        ]
        patience = getattr(golden, "PATIENCE", PATIENCE)
        await run_mode(dut, sources, sinks, rng, patience)
        checks = [compare(sink, expected[sink.stream.name]) for sink in sinks]
        outcomes.append({
            "mode": mode,
            "transfers": sum(len(source.rows) for source in sources),
            "untaken": sum(len(source.rows) - source.at for source in sources),
            "outputs": sum(len(sink.rows) for sink in sinks),
            "cycles": max((sink.cycles[-1] for sink in sinks if sink.cycles), default=0),
            "expected_cycles": cycles if kind == "free" else None,
            "tolerance": getattr(golden, "CYCLE_TOLERANCE", 0.0),
            "mismatches": sum(count for count, _ in checks),
            "first": next((first for _, first in checks if first), None),
        })
        Path(plan["result"]).write_text(json.dumps(outcomes))
