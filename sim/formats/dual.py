# SPDX-License-Identifier: Apache-2.0
"""Flexible dual binarisation: a weight is ``alpha1 * b1 + alpha2 * b2`` of two bits.

``alpha1`` and ``alpha2`` are those of a group along the last axis, so that a group has the levels
``alpha2, 0, alpha1 + alpha2, alpha1``.  Source: DB-LLM, arXiv 2402.11960; the groups' factors here
are found by least squares, as nothing is trained.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...rtl.formats._formats import FormatError
from .codec import grouped

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DualBits:
    """``planes`` (2, ..., groups, size) of 0 and 1, and ``alphas`` (2, ..., groups)."""

    planes: NDArray[np.uint8]
    alphas: Floats

    def values(self) -> Floats:
        """The values (..., groups, size)."""
        return (self.planes * self.alphas[..., None]).sum(axis=0)


def binarise(values: ArrayLike, alphas: ArrayLike) -> NDArray[np.uint8]:
    """Planes of values (..., size) with given ``alphas`` (2, ...), by the published rule.

    ``b1 = H(w - (alpha1 + alpha2) / 2)``, ``b2 = H(alpha1 * b1 + alpha2 / 2 - w)``, H(0) being 1;
    that is the nearest level where ``alpha1 > -alpha2 > 0``.
    """
    given = np.asarray(values, np.float64)
    first, second = (np.asarray(alpha, np.float64)[..., None] for alpha in np.asarray(alphas))
    one = given >= (first + second) / 2
    two = given <= first * one + second / 2
    return np.stack((one, two)).astype(np.uint8)


def fit(values: ArrayLike, group: int, rounds: int = 8) -> DualBits:
    """Groups of ``group`` along the last axis (filled up with zeros), factors by least squares.

    Begins with ``alpha1 = 2 s``, ``alpha2 = -s``, ``s`` half of the group's largest magnitude; then
    planes and factors take turns, and a step that does not lessen the error is not taken.  Raises
    :class:`.FormatError` for values that are not finite, and without any.
    """
    given = np.asarray(values, np.float64)
    if not given.size or not np.isfinite(given).all():
        raise FormatError("dual binarisation needs values, all of them finite")
    if group < 1:
        raise FormatError(f"a group has at least 1 element, not {group}")
    given = grouped(given, group)
    half = np.abs(given).max(axis=-1) / 2
    best = DualBits(np.zeros((2, *given.shape), np.uint8), np.stack((2 * half, -half)))
    best = DualBits(binarise(given, best.alphas), best.alphas)
    least = np.square(given - best.values()).sum(axis=-1)
    for _ in range(rounds):
        alphas = _solved(given, best.planes, best.alphas)
        tried = DualBits(binarise(given, alphas), alphas)
        error = np.square(given - tried.values()).sum(axis=-1)
        better = error < least
        if not better.any():
            break
        least = np.where(better, error, least)
        best = DualBits(
            np.where(better[..., None], tried.planes, best.planes),
            np.where(better, tried.alphas, best.alphas),
        )
    return best


def _solved(values: Floats, planes: NDArray[np.uint8], before: Floats) -> Floats:
    """Factors of least squared error; ``before`` where planes do not determine them."""
    one, two = planes.astype(np.float64)
    a, b, c = (one * one).sum(-1), (one * two).sum(-1), (two * two).sum(-1)
    x, y = (one * values).sum(-1), (two * values).sum(-1)
    det = a * c - b * b
    known = det > 0
    safe = np.where(known, det, 1.0)
    return np.stack((
        np.where(known, (c * x - b * y) / safe, before[0]),
        np.where(known, (a * y - b * x) / safe, before[1]),
    ))
