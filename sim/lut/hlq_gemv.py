# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of matrix times vector with hierarchical weights."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.lut.hlq_gemv import HlqGemvConfig

Ints = NDArray[np.int64]
HALF = 1 << 15  # the sign of a float16


def product(config: "HlqGemvConfig", acts: Ints, codes: Ints, scales: Ints) -> Streams:
    """Transfers that multiply rows of weights by ``acts`` (K).

    ``codes`` (N, K): bit ``b`` is that of plane ``b``.  ``scales`` (N, groups, planes + 1): as the
    hardware takes them, the offset first.  K is filled up with zeros to whole transfers, N to
    ``rows``.
    """
    wide, rows = -len(acts) % config.acts, -len(codes) % config.rows
    acts = np.pad(acts, (0, wide)).reshape(-1, config.acts)
    codes = np.pad(codes, ((0, rows), (0, wide)))
    scales = np.pad(scales, ((0, rows), (0, 0), (0, 0)))
    tiles = len(acts)
    blocks = codes.reshape(-1, config.rows, tiles, config.acts).transpose(0, 2, 1, 3)
    planes = np.arange(config.planes)[:, None, None, None]
    size = config.group_transfers
    bits = [
        (block[None, start : start + size] >> planes & 1).reshape(-1, config.rows, config.acts)
        for block in blocks
        for start in range(0, tiles, size)
    ]
    each = (-1, config.multipliers, config.sharing, *scales.shape[1:])
    order = scales.reshape(each).transpose(0, 3, 4, 2, 1)
    count = len(blocks) * tiles * config.planes
    return {
        "acts_i": {"acts": acts, "first": _only(tiles, 0), "last": _only(tiles, -1)},
        "weights_i": {"bits": np.concatenate(bits), "last": _only(count, -1)},
        "scales_i": {"scales": order.reshape(-1, config.multipliers)},
    }


def _only(count: int, index: int) -> Ints:
    flags = np.zeros(count, np.int64)
    flags[index] = 1
    return flags


def stimulus(config: "HlqGemvConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Vectors of random lengths, most of them with a short last group; broken-off vectors.

    First come the largest sums of either sign: the longest vector, as far as ``transfers`` go, with
    the activations and scales that make them.
    """
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    some = max(1, transfers // (4 * config.planes))
    every = (1 << config.planes) - 1
    runs: list[Streams] = []
    count = 0
    while count < transfers:
        corner, blocks = len(runs), int(rng.integers(1, 4))
        tiles = int(rng.integers(1, min(config.max_tiles, 1 + some // 3), endpoint=True))
        if corner < 4:
            tiles, blocks = min(config.max_tiles, some), 1
        elif corner == 4:
            tiles = 1
        elif corner == 5:
            tiles = min(config.max_tiles, config.group_transfers)
        groups = -(-tiles // config.group_transfers)
        acts = rng.integers(low, high, tiles * config.acts, endpoint=True)
        codes = rng.integers(0, every, (blocks * config.rows, len(acts)), endpoint=True)
        scales = _scales(config, rng, (len(codes), groups, config.planes + 1))
        if corner % 3 == 2:  # sums so large that products of a float16 are rounded
            acts = high - (np.abs(acts) & high // 4)
            codes |= rng.integers(0, every, codes.shape, endpoint=True)
            codes |= rng.integers(0, every, codes.shape, endpoint=True)
            if config.scale == "fp16":
                scales = scales & 0x83FF | 15 << 10
        if corner < 4:
            acts[:] = (low, low, high, low)[corner]
            codes[:] = (every, every, every, 0)[corner]
            scales[:] = _extreme(config, corner % 2 == 0)
        run = product(config, acts, codes, scales)
        if corner % 4 == 3:
            run["acts_i"] = _restarted(run["acts_i"], rng, config.max_tiles)
        runs.append(run)
        count += len(run["weights_i"]["last"])
    return {
        name: {field: np.concatenate([run[name][field] for run in runs]) for field in fields}
        for name, fields in runs[0].items()
    }


def _scales(config: "HlqGemvConfig", rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    """All codes; of float16 half of them near 1, where sums round."""
    if config.scale == "fixed":
        top = 1 << config.scale_width - 1
        return rng.integers(-top, top, shape)
    codes = rng.integers(0, 1 << config.scale_bits, shape)
    if config.scale == "pow2":
        return codes
    near = codes & 0x83FF | rng.integers(10, 19, shape) << 10
    return np.where(rng.integers(0, 2, shape) == 0, codes, near)


def _extreme(config: "HlqGemvConfig", negative: bool) -> int:
    """The scale of largest magnitude."""
    if config.scale == "fixed":
        return -(1 << config.scale_width - 1) if negative else (1 << config.scale_width - 1) - 1
    signs = {"fp16": HALF - 1, "pow2": (1 << config.shift_width) - 1}[config.scale]
    some = 0 if config.scale == "fp16" else 1 << config.shift_width + 1
    minus = HALF if config.scale == "fp16" else 1 << config.shift_width
    return signs | some | minus * negative


def _restarted(run: Transfers, rng: np.random.Generator, most: int) -> Transfers:
    """A vector after some transfers of one that is broken off."""
    drop = int(rng.integers(1, most, endpoint=True))
    chosen = rng.integers(0, len(run["last"]), drop)
    broken = {name: values[chosen] for name, values in run.items()}
    broken["first"], broken["last"] = _only(drop, 0), np.zeros(drop, np.int64)
    return {name: np.concatenate([broken[name], values]) for name, values in run.items()}


class _Vector(NamedTuple):
    """``transfers`` that it took, broken-off ones among them; its activations (tiles, acts); the
    bits of its pass (rows at a time, transfers, rows, acts); where its scales begin."""

    transfers: int
    acts: Ints
    bits: Ints
    scales: int


def _vectors(config: "HlqGemvConfig", inputs: Streams) -> Iterator[_Vector]:
    acts, weights = inputs["acts_i"], inputs["weights_i"]
    passes = np.flatnonzero(weights["last"]) + 1
    start = at = scale = 0
    for number, end in enumerate(np.flatnonzero(acts["last"]) + 1):
        begin = start + int(np.flatnonzero(acts["first"][start:end])[-1])
        tiles = end - begin
        bits = weights["bits"][at : passes[number]]
        blocks = bits.reshape(-1, tiles * config.planes, config.rows, config.acts)
        yield _Vector(int(end) - start, acts["acts"][begin:end], blocks, int(scale))
        groups = -(-tiles // config.group_transfers)
        start, at = int(end), int(passes[number])
        scale += len(blocks) * groups * (config.planes + 1) * config.sharing


def sums_of_groups(config: "HlqGemvConfig", acts: Ints, bits: Ints) -> tuple[Ints, Ints]:
    """``SA`` (groups) and ``D`` (rows at a time, groups, planes, rows), exact."""
    size, planes = config.group_transfers, config.planes
    worth = 2 * bits - 1 if config.convention == "folded" else bits
    totals, chosen = [], []
    for start in range(0, len(acts), size):
        part = acts[start : start + size].astype(np.float64)  # exact: far below 2**53
        own = worth[:, start * planes : (start + len(part)) * planes]
        own = own.reshape(len(own), planes, len(part), config.rows, config.acts)
        totals.append(part.sum())
        chosen.append(np.einsum("nptrk,tk->npr", own.astype(np.float64), part, optimize=True))
    return np.array(totals).astype(np.int64), np.stack(chosen, axis=1).astype(np.int64)


def golden(config: "HlqGemvConfig", inputs: Streams) -> Streams:
    """From the definition: groups in order, of each the offset's product and then the planes'."""
    made, ends = [], []
    for vector in _vectors(config, inputs):
        totals, chosen = sums_of_groups(config, vector.acts, vector.bits)
        blocks, groups = len(chosen), len(totals)
        shape = (blocks, groups, config.planes + 1, config.sharing, config.multipliers)
        count = blocks * groups * (config.planes + 1) * config.sharing
        codes = inputs["scales_i"]["scales"][vector.scales : vector.scales + count].reshape(shape)
        by_row = (blocks, groups, config.planes, config.multipliers, config.sharing)
        values = np.concatenate(
            (
                np.broadcast_to(totals[:, None, None, None], (*shape[:2], 1, *shape[3:])),
                chosen.reshape(by_row).swapaxes(3, 4),
            ),
            axis=2,
        )
        if config.scale == "fp16":
            made.append(_singles(values, codes))
        else:
            scales = codes if config.scale == "fixed" else powers(config, codes)
            made.append((values * scales).sum(axis=(1, 2)))
        ends.append(_only(blocks * config.sharing, -1))
    sums = np.concatenate(made)
    return {"o": {"sums": sums.reshape(-1, config.multipliers), "last": np.concatenate(ends)}}


def powers(config: "HlqGemvConfig", codes: Ints) -> Ints:
    """The integers that scales of ``pow2`` are."""
    size = 1 << (codes & (1 << config.shift_width) - 1)
    signed = np.where(codes >> config.shift_width & 1, -size, size)
    return np.where(codes >> config.shift_width + 1, signed, 0)


def halves(codes: Ints) -> NDArray[np.float64]:
    """Values of float16 codes, an exponent of 31 counting like others."""
    exponent = codes >> 10 & 31
    size = np.where(exponent > 0, 1024, 0) + (codes & 1023)
    return np.ldexp(np.where(codes & HALF, -size, size), np.maximum(exponent, 1) - 25)


def _singles(values: Ints, codes: Ints) -> Ints:
    """Codes of float32 sums over the second and third axis, in order; a product is exact."""
    products = (values * halves(codes)).astype(np.float32)
    total = np.zeros((len(products), *products.shape[3:]), np.float32)
    for group in range(products.shape[1]):
        for term in range(products.shape[2]):
            total = total + products[:, group, term]
    return total.view(np.uint32).astype(np.int64)


def cycles(config: "HlqGemvConfig", inputs: Streams) -> int:
    """A transfer of bits a cycle; lookups stand still while their sums find no place to wait."""
    walk = _Walk(config)
    loaded, released = 1, [0, 0]  # a register before the bank
    for vector in _vectors(config, inputs):
        loaded = max(loaded, released[-2]) + vector.transfers
        walk.begin(loaded + 1)
        for _ in range(len(vector.bits)):
            for start in range(0, len(vector.acts), config.group_transfers):
                walk.group(min(config.group_transfers, len(vector.acts) - start))
        released.append(walk.last())
    return walk.end()


class _Walk:
    """Of the lookups ``step`` counts the cycles in which they move, and ``still`` the others."""

    def __init__(self, config: "HlqGemvConfig"):
        self.config = config
        self.step = self.still = 0
        self.to_come: deque[tuple[int, bool, bool]] = deque()
        """Steps in which sums are there, and which: of a group's activations, of a plane."""
        self.total_free = self.planes_free = self.done = 0

    def begin(self, ready: int) -> None:
        """The next step is not before the cycle ``ready``."""
        while self.to_come and self.to_come[0][0] <= max(self.step, ready - self.still):
            self.step = max(self.step, self.to_come[0][0])
            self._leave()
        self.step = max(self.step, ready - self.still)

    def group(self, transfers: int) -> None:
        """All planes of a group."""
        for plane in range(self.config.planes):
            first = self.step + self.config.lookup_latency
            last = first + transfers - 1
            if plane == 0 and transfers > 1:
                self.to_come.append((first, True, False))
            self.to_come.append((last, plane == 0 and transfers == 1, True))
            self.step += transfers

    def last(self) -> int:
        """The cycle of the last step."""
        while self.to_come and self.to_come[0][0] < self.step:
            self._leave()
        return self.step - 1 + self.still

    def end(self) -> int:
        """The cycle of the last result."""
        while self.to_come:
            self._leave()
        return self.done - 1 + self.config.scaled.latency

    def _leave(self) -> None:
        """The next sums leave, once there is room for them, and are multiplied, in turn."""
        step, total, plane = self.to_come.popleft()
        there = step + self.still
        leave = max(there, self.total_free if total else 0, self.planes_free if plane else 0)
        self.still += leave - there
        if total:
            self.done = max(self.done, leave + 1) + self.config.sharing
            self.total_free = self.done
        if plane:
            self.done = max(self.done, leave + 1) + self.config.sharing
            self.planes_free = self.done
