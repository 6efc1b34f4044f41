# SPDX-License-Identifier: Apache-2.0
"""Vectors in a stream of transfers, and when the two-pass quantiser handles them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..types import Transfers

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Runs:
    """How transfers form vectors of at most ``rows``.

    ``opens`` and ``ends`` mark every transfer, dropped vectors included; ``kept`` are the indices
    of the transfers of finished vectors; vector ``j`` is ``lengths[j]`` of them from ``starts[j]``.
    """

    opens: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    kept: Ints
    starts: Ints
    lengths: Ints

    @classmethod
    def of(cls, given: Transfers, rows: int) -> "Runs":
        """A vector starts at ``first`` and after an end; it ends at ``last`` or at ``rows``."""
        index = np.arange(len(given["first"]))
        last = given["last"].astype(bool)
        anchor = given["first"].astype(bool) | np.append(True, last[:-1])
        position = (index - np.maximum.accumulate(np.where(anchor, index, 0))) % rows
        opens, ends = position == 0, last | (position == rows - 1)
        finish = np.flatnonzero(ends)
        lengths = position[finish] + 1
        starts = np.cumsum(lengths) - lengths
        kept = np.repeat(finish + 1 - lengths - starts, lengths) + np.arange(lengths.sum())
        return cls(opens, ends, kept, starts, lengths)

    def per_row(self, values: Ints) -> Ints:
        """One value per vector, repeated for each of its transfers."""
        return np.repeat(values, self.lengths)

    def marks(self) -> Transfers:
        """``first`` and ``last`` of the finished vectors."""
        first, last = np.zeros((2, len(self.kept)), np.int64)
        first[self.starts] = 1
        last[self.starts + self.lengths - 1] = 1
        return {"first": first, "last": last}


def cycles(
    runs: Runs,
    *,
    buffer: int,
    commit: int,
    early: int,
    codes: int,
    gate: Sequence[int] | None = None,
    scale: tuple[int, int] = (0, 0),
) -> int:
    """Cycles until the last code and the last scale have left, nobody stalling.

    ``buffer`` rows, of which one is never used; ``commit`` edges from a vector's last transfer
    until its peak is known, ``early`` until the second pass may turn to it; ``codes`` edges from a
    row's read to its codes' transfer; ``gate`` edges that each transfer waits for something else
    first; ``scale`` edges from handing over a peak to the scale's transfer and to the next peak's
    hand-over.  Edges are counted from 1.
    """
    opens, ends = runs.opens.tolist(), runs.ends.tolist()
    waits = gate or [0] * len(ends)
    read: list[int] = []  # edge at which each row of a finished vector is read
    free = [0, 0]  # edge at which each of the two slots was left
    at = row = slot = loaded = unfinished = 0
    sent = out = -scale[1]
    for index, end in enumerate(ends):
        row = 0 if opens[index] else row + 1
        at = at + 1 + waits[index]
        before = len(read) + unfinished - (buffer - 1)
        if before >= 0:
            at = max(at, read[before] + 2)
        unfinished = 0 if end else row + 1
        if not end:
            continue
        at = max(at, free[slot] + 1)
        loaded = max(at + early + 1, read[-1] if read else 0)
        sent = max(at + commit + 1, sent + scale[1])
        out = sent + scale[0]
        read += range(loaded + 1, loaded + 2 + row)
        free[slot], slot = max(loaded + 2, sent), 1 - slot
    return max(read[-1] + codes, out)


def lengths(rng: np.random.Generator, rows: int, transfers: int) -> Ints:
    """Vector lengths that add up to at least ``transfers``: corners, the longest, and random."""
    corners = [1, 1, 1, 2, 3, rows, rows, rows, rows, 1, 1]
    some = rng.integers(1, rows + 1, transfers)
    some[rng.random(transfers) < 0.3] = rows
    every = np.minimum(np.append(corners, some), rows)
    return every[: np.searchsorted(np.cumsum(every), transfers) + 1]


def framing(rng: np.random.Generator, sizes: Ints, rows: int) -> tuple[NDArray[np.bool_], ...]:
    """``first`` and ``last`` for vectors of ``sizes``; some are left unfinished by the next.

    Half of those of full length go without ``last``, some after a finished one without ``first``.
    The last vector is finished.
    """
    ends = np.cumsum(sizes) - 1
    first, last = np.zeros((2, int(sizes.sum())), bool)
    first[np.append(0, ends[:-1] + 1)] = True
    full = sizes == rows
    open_end = rng.random(len(sizes)) < np.where(full, 0.5, 0.15)
    open_end[-1] = False
    last[ends] = ~open_end
    finished = full | ~open_end
    bare = np.flatnonzero((rng.random(len(sizes)) < 0.2) & np.append(False, finished[:-1]))
    first[ends[bare - 1] + 1] = False
    return first, last
