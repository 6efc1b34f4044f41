# SPDX-License-Identifier: Apache-2.0
"""Codes to values and values to codes, exactly.

Values are float64, which holds every value of every format here.  Rounding is to the nearest value,
ties to the even code; where ties of posits are says :func:`encode`'s rule for them.
"""

import functools
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...rtl.formats._formats import (
    BipolarFormat,
    FloatFormat,
    Format,
    FormatError,
    IntegerFormat,
    PositFormat,
    ScaleFormat,
    TernaryFormat,
)

Codes = NDArray[np.int64]
Values = NDArray[np.float64]


def decode(format_: Format, codes: ArrayLike) -> Values:
    """Values of codes.  NaN stands for NaN and NaR; infinities and -0 are what they are.

    Raises :class:`.FormatError` for a code that is too wide or stands for nothing, with its index.
    """
    given = np.asarray(codes, np.int64)
    _refuse(format_, given, (given < 0) | (given >> format_.width != 0), "code")
    return _decode(format_, given)


def encode(format_: Format, values: ArrayLike, *, saturate: bool = True) -> Codes:
    """The nearest codes, ties to the even one.

    What is too large becomes the largest finite value, or with ``saturate=False`` infinity, or NaN
    where there is none; integers, trits, bipolar numbers and posits always saturate.  A posit is
    never rounded to 0 or to NaR.  Raises :class:`.FormatError`, with the index, for a NaN where the
    format has none, and for an infinity in integers.
    """
    return _encode(format_, np.asarray(values, np.float64), saturate)


def step_of(format_: Format) -> int:
    """The power of two that every finite value of the format is a multiple of."""
    if isinstance(format_, FloatFormat):
        return 1 - format_.bias - format_.mantissa
    if isinstance(format_, PositFormat):
        return -(format_.bits - 2 << format_.es)
    return -127 if isinstance(format_, ScaleFormat) else 0


@functools.cache
def largest(format_: Format) -> float:
    """The largest finite value."""
    real = decode(format_, np.setdiff1d(np.arange(1 << format_.width), _no_codes(format_)))
    return float(real[np.isfinite(real)].max())


def _no_codes(format_: Format) -> list[int]:
    return [2] if isinstance(format_, TernaryFormat) else []


def grouped(values: Values, size: int, mode: Literal["constant", "edge"] = "constant") -> Values:
    """Values (..., length) as (..., groups, size), filled up with zeros or with the last one."""
    short = -values.shape[-1] % size
    filled = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)], mode=mode)
    return filled.reshape(*values.shape[:-1], -1, size)


def _refuse(format_: Format, given: NDArray[Any], bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise FormatError(f"{format_.name} has no {what} {given.flat[at]}, which is at index {at}")


@functools.singledispatch
def _decode(format_: Format, codes: Codes) -> Values:
    raise NotImplementedError


@functools.singledispatch
def _encode(format_: Format, values: Values, saturate: bool) -> Codes:
    raise NotImplementedError


@_decode.register
def _(format_: IntegerFormat, codes: Codes) -> Values:
    return (codes - (codes >> format_.bits - 1 << format_.bits)).astype(np.float64)


@_encode.register
def _(format_: IntegerFormat, values: Values, saturate: bool) -> Codes:
    _refuse(format_, values, ~np.isfinite(values), "code for")
    whole = np.clip(np.rint(values), format_.bottom, format_.top).astype(np.int64)
    return whole & (1 << format_.bits) - 1


@_decode.register
def _(format_: TernaryFormat, codes: Codes) -> Values:
    _refuse(format_, codes, codes == 2, "code")
    return (codes - (codes >> 1 << 2)).astype(np.float64)


@_encode.register
def _(format_: TernaryFormat, values: Values, saturate: bool) -> Codes:
    _refuse(format_, values, ~np.isfinite(values), "code for")
    return np.clip(np.rint(values), -1, 1).astype(np.int64) & 3


@_decode.register
def _(format_: BipolarFormat, codes: Codes) -> Values:
    return (2 * codes - ((1 << format_.bits) - 1)).astype(np.float64)


@_encode.register
def _(format_: BipolarFormat, values: Values, saturate: bool) -> Codes:
    """Values are odd, so that a tie is an even number; it goes to the even code."""
    _refuse(format_, values, ~np.isfinite(values), "code for")
    top = (1 << format_.bits) - 1
    even = 2 * np.floor(np.clip(values, -top - 1, top + 1) / 2)
    code = (even.astype(np.int64) + 1 + top) // 2
    return np.clip(code - ((values == even) & (code & 1 == 1)), 0, top)


@_decode.register
def _(format_: ScaleFormat, codes: Codes) -> Values:
    return np.where(codes == 255, np.nan, np.exp2((codes - 127).astype(np.float64)))


@_encode.register
def _(format_: ScaleFormat, values: Values, saturate: bool) -> Codes:
    """Nearest as a real number, ties to the even code; below all it is the smallest one.

    Which power of two a block takes is the block's rule; this is the conversion alone.
    """
    _refuse(format_, values, values <= 0, "code for")
    fraction, exponent = np.frexp(np.where(np.isfinite(values), values, 1.0))
    low = exponent.astype(np.int64) - 1 + 127  # of the power of two at or below
    up = (fraction > 0.75) | ((fraction == 0.75) & (low & 1 == 1))
    found = np.clip(low + up, 0, 254 if saturate else 255)
    found = np.where(np.isinf(values), 254 if saturate else 255, found)
    return np.where(np.isnan(values), 255, found)


@_decode.register
def _(format_: FloatFormat, codes: Codes) -> Values:
    bits = format_.exponent + format_.mantissa
    sign = np.where(codes >> bits, -1.0, 1.0)
    code = codes & (1 << bits) - 1
    exponent, mantissa = code >> format_.mantissa, code & (1 << format_.mantissa) - 1
    normal = exponent != 0
    whole = (mantissa + (normal.astype(np.int64) << format_.mantissa)).astype(np.float64)
    shift = np.maximum(exponent, 1) - format_.bias - format_.mantissa
    value = np.ldexp(whole, shift)
    if format_.infinity is not None:
        value = np.where(code == format_.infinity, np.inf, value)
    return sign * np.where(code > _last(format_), np.nan, value)


def _last(format_: FloatFormat) -> int:
    """The largest code, less its sign, that is not NaN."""
    return format_.largest if format_.infinity is None else format_.infinity


@_encode.register
def _(format_: FloatFormat, values: Values, saturate: bool) -> Codes:
    nan = np.isnan(values)
    if format_.nan is None:
        _refuse(format_, values, nan, "code for")
    size = np.where(nan, 0.0, np.abs(values))
    top = float(_decode(format_, np.array(format_.largest)))
    over = np.isinf(size)
    size = np.where(over, top, size)
    exponent = np.frexp(size)[1].astype(np.int64) - 1
    exponent = np.maximum(np.where(size == 0, 1 - format_.bias, exponent), 1 - format_.bias)
    # In units of the last place; one that rounds up to the next power of two carries over.
    whole = np.rint(np.ldexp(size, format_.mantissa - exponent)).astype(np.int64)
    code = (exponent + format_.bias - 1 << format_.mantissa) + whole
    beyond = format_.largest
    if not saturate:
        other = format_.nan if format_.infinity is None else format_.infinity
        beyond = format_.largest if other is None else other
    code = np.where(over | (code > format_.largest), beyond, code)
    if format_.nan is not None:
        code = np.where(nan, format_.nan, code)
    return code | np.signbit(values).astype(np.int64) << format_.width - 1


@_decode.register
def _(format_: PositFormat, codes: Codes) -> Values:
    return _posits(format_.bits, format_.es)[codes]


@functools.cache
def _posits(bits: int, es: int) -> Values:
    """Values of all posits by their codes."""
    codes = np.arange(1 << bits - 1, dtype=np.int64)
    first = codes >> bits - 2 & 1
    runs = np.zeros(len(codes), np.int64)
    going = np.ones(len(codes), bool)
    for at in range(bits - 2, -1, -1):
        going &= (codes >> at & 1) == first
        runs += going
    regime = np.where(first == 1, runs - 1, -runs)
    left = np.maximum(bits - 1 - runs - 1, 0)  # bits behind the regime and its end
    rest = codes & (np.int64(1) << left) - 1
    taken = np.minimum(left, es)
    exponent = rest >> left - taken << es - taken
    length = left - taken
    fraction = rest & (np.int64(1) << length) - 1
    whole = (fraction + (np.int64(1) << length)).astype(np.float64)
    size = np.ldexp(whole, regime * (1 << es) + exponent - length)
    size[0] = 0
    return np.concatenate((size, [np.nan], -size[:0:-1]))


@_encode.register
def _(format_: PositFormat, values: Values, saturate: bool) -> Codes:
    """A tie point is the posit with one bit more between two neighbours."""
    bits = format_.bits
    nan = ~np.isfinite(values)
    size = np.where(nan, 0.0, np.abs(values))
    finer = _posits(bits + 1, format_.es)[: 1 << bits]
    exact, ties = finer[::2], finer[1::2]
    below = np.searchsorted(exact, size, side="right") - 1
    tie = ties[below]
    code = below + ((size > tie) | ((size == tie) & (below & 1 == 1)))
    code = np.minimum(code, len(exact) - 1)
    code = np.where((code == 0) & (size > 0), 1, code)
    code = np.where(values < 0, -code & (1 << bits) - 1, code)
    return np.where(nan, 1 << bits - 1, code)
