# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the matrix co-processor on AXI."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...rtl.array.xr_npe_array import (
    EDGE,
    FLIGHT,
    ID,
    IDENTITY,
    JOBS,
    MODE,
    READ,
    SHAPE,
    START,
    SUM,
    VERSION,
)
from ...rtl.bus._axi import OKAY, SLVERR
from .._runs import bounds, sums
from ..mac.xr_npe import codes, joined, limbs_of, values
from ..mac.xr_npe import stimulus as words_of_engine
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.array.xr_npe_array import XrNpeArrayConfig

Ints = NDArray[np.int64]
NAMES = ("fp4", "posit4_1", "posit8_0", "posit16_1")
"""Formats by mode."""


def operands(config: "XrNpeArrayConfig", a: Ints, b: Ints) -> Transfers:
    """Transfers of one job: words ``a`` (rows, K) times ``b`` (K, columns); missing ones are 0."""
    size = a.shape[1]
    data = np.zeros((size, config.words), np.int64)
    data[:, : len(a)] = a.T
    data[:, config.rows : config.rows + b.shape[1]] = b
    last = np.zeros(size, np.int64)
    last[-1] = 1
    return {"data": data, "keep": np.full(size, (1 << 2 * config.words) - 1), "last": last}


def stimulus(config: "XrNpeArrayConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Jobs of all lengths and modes, one longer than it may be; writes and reads, good and bad.

    Reads are of registers that do not change.
    """
    parts: list[Transfers] = []
    writes: list[tuple[int, int, int]] = []
    total = 0
    while total < transfers:
        number = len(parts)
        mode = number % 4 if number < 12 else int(rng.integers(0, 4))
        length = int(rng.choice([1, 1, 2, 3, 7, config.engines, 2 * config.engines + 1, 60]))
        too_long = number == 5 and config.max_k < transfers
        if too_long:
            length = config.max_k + 1
        engine = config.engine
        given = words_of_engine(engine, rng, 64 * 16)["i"]
        pool = [given[side][given["mode"] == mode] for side in "ab"]
        a = rng.choice(pool[0], (config.rows, length))
        b = rng.choice(pool[1], (length, config.columns))
        if too_long:
            a[:, 1:] = 0
        made = operands(config, a, b)
        dropped = rng.random((length, 2 * config.words)) < 0.01
        kept = ((1 - dropped) << np.arange(2 * config.words)).sum(axis=1)
        parts.append(made | {"keep": kept})
        total += length
        tag = int(rng.integers(0, 1 << 32))
        upper = int(rng.integers(0, 8)) << 1
        writes += [
            *_odd_writes(rng, int(rng.integers(0, 3))),
            (MODE, mode | int(rng.integers(0, 1 << 24)) << 8, upper | 1),
            *_odd_writes(rng, int(rng.integers(0, 2))),
            (START | int(rng.integers(0, 4)), tag, upper | 1),
        ]
    addresses = [ID, SHAPE, START, ID + 1, SHAPE | 2, 0x18, 0xFC, ID, SHAPE]
    reads = rng.choice(addresses, max(20, transfers // 20))
    address, data, strobe = (np.array(column) for column in zip(*writes, strict=True))
    return {
        "s_axil_aw": {"addr": address},
        "s_axil_w": {"data": data, "strb": strobe},
        "s_axil_ar": {"addr": reads},
        "s_axis_t": {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    }


def _odd_writes(rng: np.random.Generator, count: int) -> list[tuple[int, int, int]]:
    """Writes that are answered with SLVERR, or do nothing for want of a byte."""
    every = [
        *((address, 3, 15) for address in (ID, SHAPE, 0x10, 0x14, 0x18, 0x80, MODE | 1)),
        *((MODE, value, 15) for value in (4, 0x80, 0xFF)),
        *((MODE, value, 14) for value in (2, 0xFF)),
        (START, 7, 14),
    ]
    return [every[n] for n in rng.integers(0, len(every), count)]


def _written(inputs: Streams) -> tuple[Ints, list[tuple[int, int]], list[bool]]:
    """Answers to the writes, the jobs (mode, tag), and which writes begin one."""
    answers, jobs, starts, mode = [], [], [], 0
    given = (inputs["s_axil_aw"]["addr"], *inputs["s_axil_w"].values())
    for address, data, strobe in zip(*(column.tolist() for column in given), strict=True):
        address, low = address & ~3, bool(strobe & 1)
        bad = address not in (MODE, START) or (address == MODE and low and data >> 2 & 63 != 0)
        answers.append(SLVERR if bad else OKAY)
        starts.append(address == START and low)
        if starts[-1]:
            jobs.append((mode, data & 255))
        elif address == MODE and low and not bad:
            mode = data & 3
    return np.array(answers), jobs, starts


def golden(config: "XrNpeArrayConfig", inputs: Streams) -> Streams:
    """Exact sums of every job, from the values of the codes, and what registers answer."""
    answers, jobs, _ = _written(inputs)
    given = inputs["s_axis_t"]
    framing = {"first": np.zeros_like(given["last"]), "last": given["last"]}
    begins, ends = bounds(framing)
    count = len(ends)
    modes = np.array([mode for mode, _ in jobs])[:count]
    bytes_ = given["keep"][:, None] >> np.arange(2 * config.words) & 1
    kept = bytes_.reshape(-1, config.words, 2).all(axis=2)
    words = np.where(kept, given["data"], 0)
    of_job = np.searchsorted(ends, np.arange(len(words)))
    mode = np.append(modes, 0)[np.minimum(of_job, count)]

    made = np.zeros((count, config.engines, SUM // 32), np.int64)
    nar = np.zeros((count, config.engines), bool)
    for engine in range(config.engines):
        row, column = divmod(engine, config.columns)
        pair = words[:, row], words[:, config.rows + column]
        for number, name in enumerate(NAMES):
            here = (mode == number)[:, None]
            x, y = (values(name, codes(name, side)) for side in pair)
            bad = (np.isnan(x) | np.isnan(y)) & here
            x, y = (np.where(bad | ~here, 0, side) for side in (x, y))
            total = sums(limbs_of(name, x, y).sum(axis=1), framing)
            mine = modes == number
            made[mine, engine] = joined(total, SUM, 32)[mine]
            nar[mine, engine] = (sums(bad.any(axis=1).astype(np.int64), framing) > 0)[mine]

    last = np.zeros((count, config.engines), np.int64)
    last[:, -1] = 1
    long = (ends - begins + 1 > config.max_k)[:, None]
    tags = np.array([tag for _, tag in jobs])[:count, None]
    whole = np.full(last.size, (1 << SUM // 8) - 1)
    shape = config.rows | config.columns << 8 | VERSION << 16
    known = {ID: IDENTITY, SHAPE: shape}
    reads = (inputs["s_axil_ar"]["addr"] & ~3).tolist()
    return {
        "s_axil_b": {"resp": answers},
        "s_axil_r": {
            "data": np.array([known.get(address, 0) for address in reads]),
            "resp": np.array([OKAY if address in known else SLVERR for address in reads]),
        },
        "m_axis_t": {
            "data": made.reshape(-1, SUM // 32),
            "keep": whole,
            "last": last.reshape(-1),
            "id": np.broadcast_to(tags, last.shape).reshape(-1),
            "user": (nar | long << 1).reshape(-1),
        },
    }


class _Fifo:
    """What is known of a :class:`.Queue`: how many there are, and whether it takes or offers."""

    def __init__(self, depth: int):
        self.depth, self.fill, self.some, self.room = depth, 0, False, True

    def move(self, put: bool, take: bool) -> None:
        self.some = put or self.fill > 1 or (self.some and not take)
        self.room = take or self.fill < self.depth - 1 or (self.room and not put)
        self.fill += put - take


def cycles(config: "XrNpeArrayConfig", inputs: Streams) -> int:
    """The control of the array, cycle by cycle; every job has its operands."""
    _, _, starts = _written(inputs)
    last = inputs["s_axis_t"]["last"].astype(bool).tolist()
    jobs, flights = _Fifo(JOBS), _Fifo(FLIGHT)
    engines, read = [False] * (EDGE + config.engine.latency), [False] * READ
    assert sum(starts) == sum(last)
    left, write, data, ended = int(sum(last)) * config.engines, 0, 0, 0
    index, held, time, answered = 0, False, 0, 0
    while left or write < len(starts):
        leaves = held
        final = index == config.engines - 1
        takes = (not held or final) and engines[-1] and flights.some
        ready = not engines[-1] or takes
        moves = data < len(last) and jobs.some and flights.room and ready
        ends = moves and last[data]
        begins = write < len(starts) and starts[write] and jobs.room
        if write < len(starts) and (begins or not starts[write]):
            write, answered = write + 1, time + 2
        left -= read[-1]
        ended = time + 1 if read[-1] else ended
        read = [held, *read[:-1]]
        if leaves:
            index = 0 if final else index + 1
            held = not final
        held = held or takes
        if ready:
            engines = [ends, *engines[:-1]]
        data += moves
        jobs.move(begins, ends)
        flights.move(ends, takes)
        time += 1
    return max(ended, answered, len(inputs["s_axil_ar"]["addr"]) + 1)
