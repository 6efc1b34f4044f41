# SPDX-License-Identifier: Apache-2.0
"""Hierarchical linear quantisation: a weight is ``z + s_0 c_0 + s_1 c_1 + ...`` of ``bits`` bits.

Offset and scales, one a bit, are those of a group along the last axis, rounded to float16.  Uniform
quantisation is ``s_b = s * 2**b``.  Source: ELUTQ, arXiv 2510.19482, its alternating fit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...rtl.formats._formats import FormatError
from .codec import grouped

Floats = NDArray[np.float64]
MOST = 4
"""Bits that groups may have."""


@dataclass(frozen=True, eq=False)
class Hierarchical:
    """``codes`` (..., groups, size), bit ``b`` for ``scales[b]``.

    ``scales`` (bits, ..., groups) and ``offsets`` (..., groups) are values of float16.
    """

    codes: NDArray[np.uint8]
    scales: Floats
    offsets: Floats

    @property
    def bits_per_weight(self) -> float:
        """A bit a plane, and a group's scales and offset of 16 bits."""
        bits = len(self.scales)
        return bits + 16 * (bits + 1) / self.codes.shape[-1]

    def values(self) -> Floats:
        """The values (..., groups, size)."""
        levels = _levels(self.scales, self.offsets)
        return np.take_along_axis(levels, self.codes.astype(np.int64), axis=-1)


def fit(values: ArrayLike, bits: int, group: int = 128, rounds: int = 10) -> Hierarchical:
    """Groups of ``group`` along the last axis, filled up with their last value.

    From the uniform grid of the group's range on, nearest levels (the lowest code among equals) and
    least squares take turns ``rounds`` times; then scales are rounded and codes made once more.
    Raises :class:`.FormatError`.
    """
    given = np.asarray(values, np.float64)
    if not given.size or not np.isfinite(given).all():
        raise FormatError("hierarchical quantisation needs values, all of them finite")
    if not 1 <= bits <= MOST or group < 1:
        raise FormatError(f"groups have 1 to {MOST} bits and 1 element at least")
    given = grouped(given, group, "edge")
    low, high = given.min(axis=-1), given.max(axis=-1)
    step = (high - low) / ((1 << bits) - 1)
    scales, offsets = np.stack([step * 2**b for b in range(bits)]), low
    for _ in range(rounds):
        scales, offsets = _solved(given, nearest(given, scales, offsets), scales, offsets)
    scales, offsets = (x.astype(np.float16).astype(np.float64) for x in (scales, offsets))
    return Hierarchical(nearest(given, scales, offsets), scales, offsets)


def _levels(scales: Floats, offsets: Floats) -> Floats:
    """All levels (..., groups, 2**bits) in the order of their codes."""
    levels = offsets[..., None]
    for scale in scales:
        levels = np.concatenate((levels, levels + scale[..., None]), axis=-1)
    return levels


def nearest(values: Floats, scales: Floats, offsets: Floats) -> NDArray[np.uint8]:
    """The codes of the levels nearest to ``values`` (..., groups, size)."""
    levels = _levels(scales, offsets)
    far = np.abs(values[..., None] - levels[..., None, :])
    return far.argmin(axis=-1).astype(np.uint8)


def _solved(
    values: Floats, codes: NDArray[np.uint8], scales: Floats, offsets: Floats
) -> tuple[Floats, Floats]:
    """Scales and offset of least squared error; of least size where codes leave a choice."""
    bits = len(scales)
    planes = [(codes >> b & 1).astype(np.float64) for b in range(bits)]
    design = np.stack([*planes, np.ones_like(values)], axis=-1)
    found = (np.linalg.pinv(design) @ values[..., None])[..., 0]
    return np.moveaxis(found[..., :bits], -1, 0), found[..., bits]
