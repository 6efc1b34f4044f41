# SPDX-License-Identifier: Apache-2.0
"""Golden model of the absmax quantiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._fixed import round_half_even_div
from ..types import Streams
from . import _runs

if TYPE_CHECKING:
    from ...rtl.vector.absmax_quantise import AbsmaxQuantiseConfig


def stimulus(config: AbsmaxQuantiseConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Vectors of all lengths and magnitudes; zeros, extremes, ties; restarts in mid-run."""
    rows = config.max_len // config.lanes
    sizes = _runs.lengths(rng, rows, transfers)
    first, last = _runs.framing(rng, sizes, rows)
    x = values(rng, sizes, config.lanes, config.x_width, config.code_width)
    return {"i": {"x": x, "first": first, "last": last}}


def values(
    rng: np.random.Generator, sizes: NDArray[np.int64], lanes: int, width: int, code_width: int
) -> NDArray[np.int64]:
    """Signed elements of ``width`` bits for vectors of ``sizes`` transfers, kinds taking turns."""
    top = (1 << code_width - 1) - 1
    low, high = -(1 << width - 1), (1 << width - 1) - 1
    bits = rng.integers(1, width, len(sizes))
    kind = np.arange(len(sizes)) % 8
    count = int(sizes.sum())
    limit = np.repeat(1 << bits, sizes)[:, None]
    x = rng.integers(-limit, limit, (count, lanes))
    kind = np.repeat(kind, sizes)[:, None]
    # Peak 2 * top: every odd element is a tie.  Only where the elements can hold it.
    ties = rng.integers(-2 * top, 2 * top + 1, (count, lanes))
    ties[:, 0] = 2 * top
    x = np.where((kind == 1) & (2 * top <= high), ties, x)
    x = np.where(kind == 3, rng.choice([low, high, 0, 1, -1], (count, lanes)), x)
    x = np.where(kind == 5, 0, x)
    return np.where(kind == 7, rng.integers(low, high + 1, (count, lanes)), x)


def golden(config: AbsmaxQuantiseConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    given = inputs["i"]
    runs = _runs.Runs.of(given, config.max_len // config.lanes)
    x = given["x"][runs.kept]
    amax = np.maximum.reduceat(np.abs(x).max(axis=1), runs.starts)
    top = (1 << config.code_width - 1) - 1
    codes = round_half_even_div(top * x, runs.per_row(np.maximum(amax, 1))[:, None])
    return {"o": {"codes": codes, **runs.marks()}, "scale_o": {"amax": amax}}


def cycles(config: AbsmaxQuantiseConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    core = config.quantiser
    return _runs.cycles(
        _runs.Runs.of(inputs["i"], core.rows),
        buffer=1 << core.address_width,
        commit=core.commit,
        early=core.early,
        codes=core.code_latency,
    )
