# SPDX-License-Identifier: Apache-2.0
"""Golden model of the sequencer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...rtl.engine._program import Kind, When
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
        "sample": rng.random(count) < 0.5,
    }
    tokens["restart"][count // 2] = True
    given = {"program_i": program, "token_i": tokens}
    done = [1 << UNITS.index(kind) for kind, *_ in _walk(config, given) if kind in UNITS]
    return {**given, "done_i": {"units": np.array(done, np.int64)}}


def golden(config: SequencerConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    program = _program(inputs["program_i"])
    rows: dict[Kind, list[list[int]]] = {kind: [] for kind in Kind}
    for kind, at, token, position in _walk(config, inputs):
        op = {name: int(values[at]) for name, values in program.items()}
        value = op["value"]
        match kind:
            case Kind.EMBED:
                row = [token, op["rows"], value & 31]
            case Kind.NORM:
                row = [op["unit"] & 3, op["flag"], op["rows"], op["address"], value]
            case Kind.LINEAR:
                row = [op["unit"], op["fresh"], op["flag"], op["slot"], position, op["rows"]]
                row += [op["words"], op["address"], value & 0xFFFF, value >> 16 & 63]
                row += [value >> 24 & 3]
            case _:
                row = [op["unit"] & 1, op["slot"], position, op["rows"], op["words"] & 0xFFFFF]
        rows[kind].append(row)

    def stream(kind: Kind, *names: str) -> Transfers:
        table = np.array(rows[kind], np.int64).reshape(-1, len(names))
        return dict(zip(names, table.T, strict=True))

    return {
        "embed_o": stream(Kind.EMBED, "token", "rows", "shift"),
        "norm_o": stream(Kind.NORM, "source", "plain", "rows", "address", "eps"),
        "linear_o": stream(
            Kind.LINEAR,
            *("target", "fresh", "ends", "slot", "position", "rows", "words", "address"),
            *("mantissa", "shift", "mode"),
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
    token = -1
    for kind, at, number in _steps(config, inputs):
        if number != token:
            time, token = time + (4 if kind is not None else 1), number
        else:
            time += 1
        if kind is None:
            continue
        if kind is Kind.END:
            time = max(time, *(edge + 1 for edge in finished.values()))
            continue
        waits = int(program["waits"][at])
        if not _skipped(program, at, inputs, number):
            for bit, unit in enumerate(UNITS):
                if waits >> bit & 1:
                    time = max(time, finished[unit] + 1)
            last = time
            if kind in UNITS:
                done = max(done + 1, time + 1)
                finished[kind] = done
    return last


def _program(writes: Transfers) -> Transfers:
    """The program as it lies in memory."""
    depth = int(writes["at"].max()) + 1
    last_write = np.zeros(depth, np.int64)
    last_write[writes["at"]] = np.arange(len(writes["at"]))
    return {name: writes[name][last_write] for name in WIDTHS}


def _skipped(program: Transfers, at: int, inputs: Streams, number: int) -> bool:
    sample = bool(inputs["token_i"]["sample"][number])
    return bool(program["when"][at] == (When.PREFILL if sample else When.SAMPLE))


def _steps(config: SequencerConfig, inputs: Streams) -> Iterator[tuple[Kind | None, int, int]]:
    """Every operation that is looked at, with its token's number; None for a token dropped."""
    program = _program(inputs["program_i"])
    position = -1
    for number, restart in enumerate(inputs["token_i"]["restart"]):
        if restart or position < 0:
            position = 0
        elif position == config.context - 1:
            yield None, 0, number
            continue
        else:
            position += 1
        for at, kind in enumerate(program["kind"]):
            kind = Kind(min(int(kind), Kind.END))
            ends = kind is Kind.END and not _skipped(program, at, inputs, number)
            yield kind, at, number
            if ends:
                break


def _walk(config: SequencerConfig, inputs: Streams) -> Iterator[tuple[Kind, int, int, int]]:
    """Operations handed out: kind, address, token, position."""
    program = _program(inputs["program_i"])
    tokens, restarts = inputs["token_i"]["token"], inputs["token_i"]["restart"]
    position, before = -1, -1
    for kind, at, number in _steps(config, inputs):
        if kind is None:
            continue
        if number != before:
            position = 0 if restarts[number] or position < 0 else position + 1
            before = number
        if kind is not Kind.END and not _skipped(program, at, inputs, number):
            yield kind, at, int(tokens[number]), position
