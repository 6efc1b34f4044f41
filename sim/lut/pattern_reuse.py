# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the pattern reuse table."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.lut.pattern_reuse import PatternReuseConfig


def hits(entries: int, patterns: NDArray, flush: NDArray) -> NDArray[np.bool_]:
    """Which patterns are there when they come; the last ``entries`` that were not are there.

    A pattern that is there does not move: entries give way in the order in which they came.
    """
    found = np.zeros(len(patterns), bool)
    kept: dict[int, None] = {}  # in the order in which they came
    for at, (pattern, new) in enumerate(zip(patterns.tolist(), flush.tolist(), strict=True)):
        if new:
            kept.clear()
        if pattern in kept:
            found[at] = True
        else:
            if len(kept) == entries:
                del kept[next(iter(kept))]
            kept[pattern] = None
    return found


def stimulus(config: "PatternReuseConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Stretches of any patterns, of few, of each in turn, and of one; tables of any length.

    Values differ from one to the next, as far as there are different ones.
    """
    every = 1 << config.pattern
    stretches = []
    total = 0
    while total < transfers:
        length = int(rng.integers(1, 4 * every))
        kind = rng.integers(0, 4)
        few = rng.integers(0, every, config.entries + int(rng.integers(-1, 2)) or 1)
        stretches.append(
            (
                rng.integers(0, every, length),
                rng.choice(few, length),
                np.arange(length) % every,
                np.full(length, rng.integers(0, every)),
            )[kind]
        )
        total += length
    patterns = np.concatenate(stretches)[:transfers]
    flush = (rng.random(transfers) < 1 / (2 * every)).astype(np.int64)
    flush[: transfers // 10] = rng.random(transfers // 10) < 0.5
    misses = int((~hits(config.entries, patterns, flush)).sum())
    half = 1 << config.width - 1
    values = rng.integers(-half, half, (misses, config.cols))
    values[:, 0] = (np.arange(misses) + half) % (2 * half) - half
    return {"i": {"pattern": patterns, "flush": flush}, "fill_i": {"values": values}}


def golden(config: "PatternReuseConfig", inputs: Streams) -> Streams:
    """Of each pattern the values that came when it was asked for last."""
    patterns = inputs["i"]["pattern"]
    found = hits(config.entries, patterns, inputs["i"]["flush"])
    asked, which, last = 0, [], {}
    for pattern, hit in zip(patterns.tolist(), found.tolist(), strict=True):
        if not hit:
            last[pattern] = asked
            asked += 1
        which.append(last[pattern])
    return {
        "miss_o": {"pattern": patterns[~found]},
        "o": {"values": inputs["fill_i"]["values"][which], "hit": found.astype(np.int64)},
    }


def cycles(config: "PatternReuseConfig", inputs: Streams) -> int:
    """A cycle for what is there, two for what is not; then one."""
    found = hits(config.entries, inputs["i"]["pattern"], inputs["i"]["flush"])
    return len(found) + int((~found).sum()) + 1
