# SPDX-License-Identifier: Apache-2.0
"""Blocks of elements with a common scale, to and from values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...rtl.formats._blocks import BlockFormat, Rule
from ...rtl.formats._formats import FloatFormat, FormatError, ScaleFormat
from .codec import Codes, Values, decode, encode, grouped, largest


@dataclass(frozen=True, eq=False)
class Blocks:
    """``codes`` (..., blocks, elements), ``scales`` (..., blocks), and the tensor's own scale."""

    codes: Codes
    scales: Codes
    tensor: float = 1.0


def quantise(format_: BlockFormat, values: ArrayLike) -> Blocks:
    """Values (..., length) in blocks along the last axis, which is filled up with zeros.

    Elements are rounded to nearest, ties to even, and saturate.  A block of zeros has scale code 0
    and elements 0; one with a NaN has a scale of NaN and elements 0; an infinity counts as larger
    than all.  Raises :class:`.FormatError` without values.
    """
    given = np.asarray(values, np.float64)
    if not given.size or not given.ndim:
        raise FormatError(f"{format_.name}: there are no values to make blocks of")
    given = grouped(given, format_.block)
    bad = np.asarray(np.isnan(given).any(axis=-1))
    given = np.where(bad[..., None], 0.0, given)
    most = np.abs(given).max(axis=-1)
    if isinstance(format_.scale, ScaleFormat):
        scales, tensor = _powers(format_, most), 1.0
        zero = most == 0
    else:
        scales, tensor = _fractions(format_, most)
        zero = (most == 0) | (scales == 0)
    steps = decode(format_.scale, scales) * tensor * 2.0**format_.unit
    codes = _elements(format_, np.where(zero[..., None], 0.0, given), np.where(zero, 1.0, steps))
    scales = np.where(zero, 0, scales)
    return Blocks(codes, np.where(bad, _nan(format_), scales), tensor)


def elements(format_: BlockFormat, values: Values, powers: NDArray[np.int64]) -> Codes:
    """Codes of finite values (..., blocks, elements) where blocks have these powers of two."""
    return _elements(format_, values, 2.0 ** (powers + format_.unit).astype(np.float64))


def _elements(format_: BlockFormat, values: Values, steps: Values) -> Codes:
    with np.errstate(over="ignore"):
        parts = values / steps[..., None]
    top = top_of(format_)
    return encode(format_.element, np.clip(parts, -2 * top, 2 * top))


def dequantise(format_: BlockFormat, blocks: Blocks, length: int | None = None) -> Values:
    """Values (..., length); ``length`` drops what was filled up.  A scale of NaN makes NaNs.

    Raises :class:`.FormatError` where codes and scales do not go together.
    """
    scales = decode(format_.scale, blocks.scales) * blocks.tensor * 2.0**format_.unit
    if blocks.codes.shape != (*blocks.scales.shape, format_.block):
        raise FormatError(
            f"{format_.name}: codes of shape {blocks.codes.shape} do not go with scales of shape "
            f"{blocks.scales.shape} and blocks of {format_.block}"
        )
    values = decode(format_.element, blocks.codes) * scales[..., None]
    values = values.reshape(*values.shape[:-2], -1)
    return values if length is None else values[..., :length]


def top_of(format_: BlockFormat) -> float:
    """The largest element, before its unit."""
    return largest(format_.element)


def _powers(format_: BlockFormat, most: Values) -> Codes:
    """Codes of E8M0 for blocks of these largest magnitudes."""
    top = top_of(format_) * 2.0**format_.unit
    finite = np.isfinite(most)
    fraction, exponent = np.frexp(np.where(finite, most, 1.0))
    own_fraction, own_exponent = np.frexp(top)
    power = exponent.astype(np.int64) - int(own_exponent)
    if format_.rule is Rule.CEIL:
        power = power + (fraction > own_fraction)
    if format_.rule is Rule.ROUND:
        tie, even = _tie(format_)
        power = power + ((fraction > tie) | ((fraction == tie) & (not even)))
    return np.where(finite, np.clip(power, -127, 127), 127) + 127


def _tie(format_: BlockFormat) -> tuple[float, bool]:
    """Where rounding passes the largest element, as a fraction of the next power of two, and
    whether that element's code is even, so that it keeps a tie."""
    top = top_of(format_)
    code = int(encode(format_.element, top))
    step = top - float(decode(format_.element, code - 1))
    return float(np.frexp(top)[0]) * (1 + step / top / 2), code % 2 == 0


def _fractions(format_: BlockFormat, most: Values) -> tuple[Codes, float]:
    """Codes of a floating-point scale for blocks of these largest magnitudes, the tensor's own."""
    assert isinstance(format_.scale, FloatFormat)
    top = largest(format_.scale)
    finite = np.where(np.isfinite(most), most, 0.0)
    tensor = float(finite.max()) / (top_of(format_) * top) or 1.0
    wanted = np.where(np.isfinite(most), finite / top_of(format_) / tensor, top)
    return encode(format_.scale, wanted), tensor


def _nan(format_: BlockFormat) -> int:
    if isinstance(format_.scale, FloatFormat):
        assert format_.scale.nan is not None
        return format_.scale.nan
    return 255


def qsnr(values: NDArray[np.floating], made: NDArray[np.floating]) -> float:
    """Power of the values over that of their errors, in dB."""
    return float(10 * np.log10(np.square(values).sum() / np.square(values - made).sum()))
