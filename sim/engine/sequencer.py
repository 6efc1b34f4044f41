# SPDX-License-Identifier: Apache-2.0
"""Golden model of the sequencer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...rtl.engine._program import MODE, Kind, When
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.engine.sequencer import SequencerConfig

WIDTHS = {
    "kind": 3,
    "when": 2,
    "waits": 3,
    "unit": 3,
    "flag": 1,
    "fresh": 1,
    "slot": 12,
    "rows": 20,
    "words": 28,
    "address": 32,
    "value": 32,
}
UNITS = (Kind.NORM, Kind.LINEAR, Kind.ATTEND)


def stimulus(config: SequencerConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """A random program written in random order, some of it twice, and tokens of several texts.

    Where there is room, each kind has an operation whose fields are all ones.
    """
    length = int(rng.integers(min(6, config.depth), config.depth + 1))
    ops = {name: rng.integers(0, 1 << width, length) for name, width in WIDTHS.items()}
    ops["kind"] = rng.integers(0, Kind.END, length)
    ops["when"] = rng.choice([When.ALWAYS, When.ALWAYS, When.SAMPLE, When.PREFILL], length)
    ops["waits"] = np.where(rng.random(length) < 0.5, ops["waits"], 0)
    if length > len(Kind):
        for name, width in WIDTHS.items():
            ops[name][: Kind.END] = (1 << width) - 1
        ops["kind"][: Kind.END] = rng.permutation(Kind.END)
        ops["when"][: Kind.END] = When.ALWAYS
    ops["kind"][-1], ops["when"][-1] = Kind.END, When.ALWAYS
    order = np.append(rng.integers(0, length, 3), rng.permutation(length))
    program = {"at": order, **{name: values[order] for name, values in ops.items()}}
    for name, width in WIDTHS.items():
        program[name][:3] = rng.integers(0, 1 << width, 3)  # written over later
    program["last"] = np.arange(len(order)) == len(order) - 1

    # Three of four operations are handed out, or fewer where texts do not fit.
    count = max(2 * transfers // max(int(np.isin(ops["kind"], UNITS).sum()), 1), 8)
    tokens = {
        "token": rng.integers(0, config.vocab, count),
        "restart": rng.random(count) < 2 / config.context,
        "sample": rng.random(count) < 0.5 / config.rows,
    }
    tokens["sample"][-1] = config.rows > 1 or tokens["sample"][-1]  # nothing waits for its group
    tokens["restart"][count // 2] = True
    given = {"program_i": program, "token_i": tokens}
    done = [1 << UNITS.index(step.kind) for step in _steps(config, given) if step.kind in UNITS]
    return {**given, "done_i": {"units": np.array(done, np.int64)}}


def golden(config: SequencerConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    program = _program(inputs["program_i"])
    rows: dict[Kind, list[list[int]]] = {kind: [] for kind in Kind}
    grouped = config.rows > 1
    for step in _steps(config, inputs):
        kind, position = step.kind, step.position
        if kind is None or kind is Kind.END:
            continue
        op = {name: int(values[step.at]) for name, values in program.items()}
        value = op["value"]
        match kind:
            case Kind.EMBED:
                row = [step.token, op["rows"], value & 31]
                row += [position % config.rows] * grouped
            case Kind.NORM:
                row = [op["unit"] & 3, op["flag"], op["rows"], op["address"], value]
                row += [step.row != 0, step.row == step.count - 1] * grouped
            case Kind.LINEAR:
                row = [op["unit"], op["fresh"], op["flag"], op["slot"], position, op["rows"]]
                row += [op["words"], op["address"], value & 0xFFFF, value >> 16 & 63]
                row += [value >> 24 & (1 << MODE) - 1] + [step.count] * grouped
            case _:
                row = [op["unit"] & 1, op["slot"], position, op["rows"], op["words"] & 0xFFFFF]
        rows[kind].append(row)

    def stream(kind: Kind, *names: str) -> Transfers:
        table = np.array(rows[kind], np.int64).reshape(-1, len(names))
        return dict(zip(names, table.T, strict=True))

    return {
        "embed_o": stream(Kind.EMBED, "token", "rows", "shift", *["row"] * grouped),
        "norm_o": stream(
            Kind.NORM,
            *("source", "plain", "rows", "address", "eps"),
            *(("again", "final") if grouped else ()),
        ),
        "linear_o": stream(
            Kind.LINEAR,
            *("target", "fresh", "ends", "slot", "position", "rows", "words", "address"),
            *("mantissa", "shift", "mode"),
            *["count"] * grouped,
        ),
        "attend_o": stream(Kind.ATTEND, "newest", "slot", "position", "heads", "group"),
    }


def cycles(config: SequencerConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    program = _program(inputs["program_i"])
    time = len(inputs["program_i"]["at"])  # the edge that completes the program
    last = 0
    finished: dict[Kind, int] = dict.fromkeys(UNITS, 0)  # when a unit's last operation is done
    done = 0  # edge of the last transfer on done_i
    for step in _steps(config, inputs):
        time += step.after
        if step.kind is None:
            continue
        if step.kind is Kind.END:
            time = max(time, *(edge + 1 for edge in finished.values()))
            continue
        waits = int(program["waits"][step.at])
        for bit, unit in enumerate(UNITS):
            if waits >> bit & 1:
                time = max(time, finished[unit] + 1)
        last = time
        if step.kind in UNITS:
            done = max(done + 1, time + 1)
            finished[step.kind] = done
    return last


def _program(writes: Transfers) -> Transfers:
    """The program as it lies in memory."""
    depth = int(writes["at"].max()) + 1
    last_write = np.zeros(depth, np.int64)
    last_write[writes["at"]] = np.arange(len(writes["at"]))
    return {name: writes[name][last_write] for name in WIDTHS}


@dataclass
class Group:
    """Tokens that share a walk: their numbers, the position of the first, and cycles until then.

    ``cycles`` are those from the end of the walk before to the first operation of this one.
    """

    position: int = 0
    cycles: int = 3
    numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """An operation handed out ``after`` cycles of the one before; ``kind`` None: left out."""

    kind: Kind | None
    at: int
    after: int
    token: int = 0
    position: int = 0
    row: int = 0
    count: int = 0


def groups(config: SequencerConfig, inputs: Streams) -> Iterator[Group]:
    """Groups that are complete; what is dropped takes its cycle."""
    samples, restarts = inputs["token_i"]["sample"], inputs["token_i"]["restart"]
    position, group = -1, Group()
    for number, restart in enumerate(restarts):
        if group.numbers and restart:
            group.cycles += 1
            yield group
            group = Group()
        group.cycles += 1
        if restart or position < 0:
            position = 0
        elif position == config.context - 1:
            continue
        else:
            position += 1
        if not group.numbers:
            group.position = position
        group.numbers.append(number)
        full = len(group.numbers) == config.rows or position == config.context - 1
        if full or samples[number]:
            yield group
            group = Group()


def _steps(config: SequencerConfig, inputs: Streams) -> Iterator[_Step]:
    """Every operation of every group that is looked at."""
    program, tokens = _program(inputs["program_i"]), inputs["token_i"]["token"]
    kinds = [Kind(min(int(kind), Kind.END)) for kind in program["kind"]]
    for group in groups(config, inputs):
        sample, after = bool(inputs["token_i"]["sample"][group.numbers[-1]]), group.cycles
        for at, kind in enumerate(kinds):
            rows = list(enumerate(group.numbers))
            if program["when"][at] == When.SAMPLE:
                rows = rows[-1:] if sample else []
            elif program["when"][at] == When.PREFILL and sample:
                rows = rows[:-1]
            count = len(rows)
            if kind is Kind.LINEAR or kind is Kind.END:
                rows = rows[:1]
            if not rows:
                yield _Step(None, at, after)
                after = 1
            for row, (place, number) in enumerate(rows):
                yield _Step(
                    kind, at, after, int(tokens[number]), group.position + place, row, count
                )
                after = 1
            if rows and kind is Kind.END:
                break
