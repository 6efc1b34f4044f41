# SPDX-License-Identifier: Apache-2.0
"""Golden model of the sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .._fixed import Ints, round_shift
from ..types import Streams, Transfers
from . import _runs
from .softmax import CHANCE_BITS, exp2_table

if TYPE_CHECKING:
    from ...rtl.vector.sampler import SamplerConfig

TAPS = 0xEDB88320


@dataclass
class Sampler:
    """Chooses tokens; ``state`` holds the random bits, which one draw hands on to the next."""

    fraction: int = 8
    state: int = 1

    def seed(self, seed: int) -> None:
        """Start anew from a number of 32 bits; 0 counts as 1."""
        self.state = seed or 1
        self.word()

    def word(self) -> int:
        """32 random bits, the first one lowest."""
        word = 0
        for bit in range(32):
            out = self.state & 1
            word |= out << bit
            self.state = (self.state >> 1) ^ (TAPS if out else 0)
        return word

    def draw(self, logits: Ints, keep: int) -> int:
        """A token by ``2**logit``, logits with ``fraction`` bits, of the ``keep`` largest."""
        order = np.argsort(-logits, kind="stable")[:keep]
        below = logits[order[0]] - logits[order]
        table = exp2_table(self.fraction, CHANCE_BITS, 1 << CHANCE_BITS)
        weights = round_shift(table[below & (1 << self.fraction) - 1], below >> self.fraction)
        sums = np.cumsum(weights)
        place = self.word() * int(sums[-1]) >> 32
        return int(order[np.searchsorted(sums, place, side="right")])


def stimulus(config: SamplerConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of all lengths, some broken off; close logits and far ones, equal ones, extremes."""
    sizes = _sizes(config, rng, transfers)
    ends = np.cumsum(sizes) - 1
    first, last = np.zeros((2, int(sizes.sum())), np.int64)
    first[np.append(0, ends[:-1] + 1)] = 1
    finished = rng.random(len(sizes)) > 0.15
    finished[-1] = True
    last[ends[finished]] = 1
    bare = np.flatnonzero((rng.random(len(sizes)) < 0.3) & np.append(False, finished[:-1]))
    first[ends[bare - 1] + 1] = 0
    columns = {
        name: _values(rng, sizes, width)
        for name, width in (("sum", config.sum_width), ("logit", config.logit_width))
    }
    runs = int(finished.sum())
    seed = rng.integers(0, 1 << 32, runs)
    seed[rng.random(runs) < 0.2] = 0
    op = {
        "mode": rng.random(runs) < 0.7,
        "keep": rng.integers(0, 1 << config.top_k.bit_length(), runs),
        "seed_load": rng.random(runs) < 0.3,
        "seed": seed,
    }
    return {"op_i": op, "i": {**columns, "first": first, "last": last}}


def _sizes(config: SamplerConfig, rng: np.random.Generator, transfers: int) -> Ints:
    most = min(config.vocab, max(transfers // 4, 2))
    some = rng.integers(1, most + 1, transfers)
    short = rng.random(transfers) < 0.8
    some[short] = rng.integers(1, min(3 * config.top_k, most) + 1, int(short.sum()))
    every = np.minimum(np.append([1, 2, most, 1, config.top_k, config.top_k + 1], some), most)
    return every[: np.searchsorted(np.cumsum(every), transfers) + 1]


def _values(rng: np.random.Generator, sizes: Ints, width: int) -> Ints:
    """Signed values for runs of ``sizes``, of spreads from none to all there are."""
    low, high = -(1 << width - 1), (1 << width - 1) - 1
    spread = np.repeat(1 << rng.integers(1, width, len(sizes)), sizes)
    centre = np.repeat(rng.integers(low, high + 1, len(sizes)), sizes)
    values = np.clip(centre + rng.integers(-spread, spread), low, high)
    extreme = np.repeat(rng.random(len(sizes)) < 0.1, sizes)
    return np.where(extreme, rng.choice([low, high, 0], len(values)), values)


def golden(config: SamplerConfig, inputs: Streams) -> Streams:
    """A token for each run."""
    given, op = inputs["i"], inputs["op_i"]
    runs = _finished(given)
    sampler, tokens = Sampler(config.fraction), []
    for index, (start, length) in enumerate(zip(runs.starts, runs.lengths, strict=True)):
        part = runs.kept[start : start + length]
        if op["seed_load"][index]:
            sampler.seed(int(op["seed"][index]))
        if op["mode"][index]:
            keep = int(op["keep"][index])
            keep = keep if 0 < keep < config.top_k else config.top_k
            tokens.append(sampler.draw(given["logit"][part], keep))
        else:
            tokens.append(int(given["sum"][part].argmax()))
    return {"o": {"token": np.array(tokens)}}


def cycles(config: SamplerConfig, inputs: Streams) -> int:
    """One run after the other: operation, seed, entries, draw, token."""
    op, given = inputs["op_i"], inputs["i"]
    draws, seeds = (int(np.count_nonzero(op[name])) for name in ("mode", "seed_load"))
    return len(given["last"]) + 3 * len(op["mode"]) + 32 * seeds + config.draw_latency * draws


def _finished(given: Transfers) -> _runs.Runs:
    """Runs as the framing has them; none is too long."""
    return _runs.Runs.of(given, len(given["last"]) + 1)
