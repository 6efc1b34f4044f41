# SPDX-License-Identifier: Apache-2.0
"""Channels in another order, so that those of one magnitude share a block; nothing at run time.

A permutation of the rows of the projections of K and of Q alike changes no product of theirs.
Source: K-sort of arXiv 2403.20137.  Rotary pairs stay together, and keep their frequency through
the table's rows: that is ours, the paper does not say.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...rtl.formats._formats import FormatError


def channel_order(sizes: ArrayLike, *, rotary: bool = False) -> NDArray[np.int64]:
    """Channels of a head from the smallest of ``sizes`` (channels) on, equals as they were.

    With ``rotary`` channel ``i`` of the first half takes ``i + channels / 2`` along: the result
    orders halves alike, by the larger of both.
    """
    given = np.asarray(sizes, np.float64)
    if given.ndim != 1 or not given.size or not np.isfinite(given).all():
        raise FormatError("the order of channels needs a list of finite sizes")
    if not rotary:
        return np.argsort(given, kind="stable")
    if given.size % 2:
        raise FormatError(f"rotary pairs need an even number of channels, not {given.size}")
    pairs = np.argsort(given.reshape(2, -1).max(axis=0), kind="stable")
    return np.concatenate((pairs, pairs + given.size // 2))


def row_norms(weights: ArrayLike, head_dim: int) -> NDArray[np.float64]:
    """Norms (heads, channels) of the rows of a projection (heads * channels, inputs)."""
    given = np.asarray(weights, np.float64)
    return np.linalg.norm(given, axis=1).reshape(-1, head_dim)
