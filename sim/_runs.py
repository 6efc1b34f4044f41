# SPDX-License-Identifier: Apache-2.0
"""Runs of transfers that make one result each, from ``first`` (or after a ``last``) to ``last``."""

import numpy as np
from numpy.typing import NDArray

from .types import Transfers

Ints = NDArray[np.int64]


def bounds(given: Transfers) -> tuple[Ints, Ints]:
    """First and last transfer of every finished run; what an unexpected ``first`` drops is none."""
    last = given["last"].astype(bool)
    opens = given["first"].astype(bool) | np.append(True, last[:-1])
    starts = np.maximum.accumulate(np.where(opens, np.arange(len(last)), 0))
    ends = np.flatnonzero(last)
    return starts[ends], ends


def sums(terms: NDArray, given: Transfers) -> NDArray:
    """Sum of the ``terms``, one for each transfer, of every finished run.

    As exact as the terms' dtype: ``object`` has no bounds.
    """
    starts, ends = bounds(given)
    upto = np.concatenate([np.zeros_like(terms[:1]), np.cumsum(terms, axis=0)])
    return upto[ends + 1] - upto[starts]


def so_far(flags: NDArray, given: Transfers) -> Ints:
    """How many of the ``flags`` are set from a run's second transfer to each one of it."""
    last = given["last"].astype(bool)
    opens = given["first"].astype(bool) | np.append(True, last[:-1])
    upto = np.cumsum(np.where(opens, 0, flags))
    return upto - np.maximum.accumulate(np.where(opens, upto, 0))


def to_come(flags: NDArray, given: Transfers) -> Ints:
    """How many of the ``flags`` are set behind each transfer of a finished run; others get any."""
    number, (_, ends) = so_far(flags, given), bounds(given)
    run = np.searchsorted(ends, np.arange(len(number)))
    return np.maximum(np.append(number[ends], 0)[run] - number, 0)


def wrapped(values: NDArray, bits: int | Ints) -> NDArray:
    """The low ``bits`` of ``values`` as two's complement numbers."""
    half = np.left_shift(np.ones((), values.dtype), np.asarray(bits) - 1)
    return (values + half & 2 * half - 1) - half


def marks(rng: np.random.Generator, transfers: int) -> Transfers:
    """``first`` and ``last`` of runs of random lengths, some dropped, some without ``first``."""
    first = (rng.integers(0, 8, transfers) == 0).astype(np.int64)
    last = (rng.integers(0, 3, transfers) == 0).astype(np.int64)
    last[-1:] = 1
    return {"first": first, "last": last}


def one(given: Transfers, start: int, length: int, first: int) -> slice:
    """Makes one run of the transfers from ``start`` on, as far as there are some."""
    stop = min(start + length, len(given["last"]))
    run = slice(start, stop)
    given["first"][run], given["last"][run] = 0, 0
    given["first"][start : start + 1] = first
    given["last"][stop - 1 : stop] = stop > start
    return run
