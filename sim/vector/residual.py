# SPDX-License-Identifier: Apache-2.0
"""Golden model of the residual stream."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._fixed import saturate
from ..types import Streams, Transfers
from . import _runs

if TYPE_CHECKING:
    from ...rtl.vector.residual import ResidualConfig

Ints = NDArray[np.int64]


def added(x: Ints, more: Ints, bits: int) -> Ints:
    """Their sum, saturated to ``bits``."""
    return saturate(x + more, bits)


def stimulus(config: ResidualConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Vectors of all lengths, the first one sets every row; sums near the rails and beyond."""
    sizes = np.append(config.rows, _runs.lengths(rng, config.rows, transfers))
    first, last = _runs.framing(rng, sizes, config.rows)
    first[0], last[config.rows - 1] = True, True
    count = len(first)
    low, high = -(1 << config.x_width - 1), (1 << config.x_width - 1) - 1
    limit = 1 << np.repeat(rng.integers(0, config.x_width, len(sizes)), sizes)[:, None]
    shape = (count, config.lanes)
    x = rng.integers(-limit, limit, shape).clip(low, high)
    extreme = np.repeat(rng.random(len(sizes)) < 0.2, sizes)[:, None]
    x = np.where(extreme, rng.choice([low, high, low + 1, 0, 1, -1], shape), x)
    sets = np.repeat(rng.random(len(sizes)) < 0.2, sizes) ^ (rng.random(count) < 0.1)
    sets[: config.rows] = True
    given = {"x": x, "set": sets, "first": first, "last": last}
    if config.vectors > 1:
        given["vector"] = np.repeat(rng.integers(0, config.vectors, len(sizes)), sizes)
        # Every row of every vector is set before anything is added.
        given = {
            name: np.concatenate([*[values[: config.rows]] * (config.vectors - 1), values])
            for name, values in given.items()
        }
        given["vector"][: config.vectors * config.rows] = np.repeat(
            np.arange(config.vectors), config.rows
        )
    return {"i": given}


def golden(config: ResidualConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    given = inputs["i"]
    row, ends = _rows(config, given)
    vector = _vectors(given)
    held = np.zeros((config.vectors, config.rows, config.lanes), np.int64)
    out = np.zeros((len(row), config.lanes), np.int64)
    # No row occurs twice between two starts.
    starts = np.append(np.flatnonzero(row == 0), len(row)).tolist()
    for start, stop in pairwise(starts):
        span = slice(start, stop)
        places = vector[span], row[span]
        old = np.where(given["set"][span, None], 0, held[places])
        out[span] = added(old, given["x"][span], config.x_width)
        held[places] = out[span]
    return {"o": {"x": out, "first": (row == 0).astype(np.int64), "last": ends.astype(np.int64)}}


def cycles(config: ResidualConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    row, _ = _rows(config, inputs["i"])
    row = row + config.rows * _vectors(inputs["i"])
    at, before = 0, [(-1, 0), (-1, 0)]  # the last two rows and when they were taken
    for number in row.tolist():
        at = max([at + 1, *(edge + 3 for other, edge in before if other == number)])
        before = [before[1], (number, at)]
    return at + config.latency


def _vectors(given: Transfers) -> Ints:
    """The vector of every transfer."""
    return given.get("vector", np.zeros(len(given["first"]), np.int64))


def _rows(config: ResidualConfig, given: Transfers) -> tuple[Ints, NDArray[np.bool_]]:
    """The row of every transfer, and whether a vector ends with it."""
    runs = _runs.Runs.of(given, config.rows)
    index = np.arange(len(runs.opens))
    return index - np.maximum.accumulate(np.where(runs.opens, index, 0)), runs.ends
