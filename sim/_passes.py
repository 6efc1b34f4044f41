# SPDX-License-Identifier: Apache-2.0
"""Vectors and passes of a matrix-vector core: transfers up to ``last``, begun anew by ``first``."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import Streams, Transfers


def joined(runs: list[Streams]) -> Streams:
    """The transfers of several runs, one after another."""
    return {
        name: {field: np.concatenate([run[name][field] for run in runs]) for field in fields}
        for name, fields in runs[0].items()
    }


def bounds(count: int) -> Transfers:
    first, last = np.zeros(count, np.int64), np.zeros(count, np.int64)
    first[:1] = last[-1:] = 1
    return {"first": first, "last": last}


def runs(transfers: Transfers) -> Iterator[Transfers]:
    """Transfers up to and including each ``last``; what follows the final one is no run."""
    start = 0
    for end in np.flatnonzero(transfers["last"]) + 1:
        yield {name: values[start:end] for name, values in transfers.items()}
        start = end


def restarts(run: Transfers) -> list[Any]:
    """Where the pieces of a run begin: at its start and at every ``first``."""
    return sorted({0, *np.flatnonzero(run["first"]).tolist()})


def restarted(run: Transfers, rng: np.random.Generator, most: int) -> Transfers:
    """``run`` after up to ``most`` transfers of a run that is broken off."""
    drop = rng.integers(1, most, endpoint=True)
    broken = {name: values[rng.integers(0, len(values), drop)] for name, values in run.items()}
    broken["last"] = np.zeros(drop, np.int64)
    return {name: np.concatenate([broken[name], values]) for name, values in run.items()}


def row_groups(segments: list[NDArray[Any]], tiles: int) -> Iterator[tuple[NDArray[Any], Any]]:
    """The words of a pass by row group (groups, tiles, ...), piece by piece, and ``last`` of each.

    What a piece leaves unfinished is dropped.
    """
    for number, segment in enumerate(segments):
        groups = len(segment) // tiles
        last = np.zeros(groups, np.int64)
        if groups and number == len(segments) - 1 and len(segment) % tiles == 0:
            last[-1] = 1
        yield segment[: groups * tiles].reshape(groups, tiles, *segment.shape[1:]), last
