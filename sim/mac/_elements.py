# SPDX-License-Identifier: Apache-2.0
"""Codes of elements for stimuli: random ones, the largest, negated ones."""

import numpy as np
from numpy.typing import NDArray

from ...rtl.formats._formats import FloatFormat, IntegerFormat, format_named

Ints = NDArray[np.int64]
WORD, LOW = 64, 48


def sum_fields(sums: NDArray, width: int) -> dict[str, NDArray]:
    """A sum of more than 64 bits as two fields."""
    if width <= WORD:
        return {"sum": sums}
    whole = sums.astype(object)
    low = whole & (1 << LOW) - 1
    return {"low": low.astype(np.int64), "sum": (whole >> LOW).astype(np.int64)}


def random_codes(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    """Codes of which few are NaN or infinite: of one row in twenty along the first axis."""
    format_ = format_named(name)
    codes = rng.integers(0, 1 << format_.width, shape)
    if name == "ternary":
        return np.where(codes == 2, 3, codes)
    if isinstance(format_, FloatFormat) and format_.nan is not None:
        special = codes & (1 << format_.width - 1) - 1 > format_.largest
        kept = rng.random((shape[0], *[1] * (len(shape) - 1))) < 0.05
        codes = np.where(special & ~kept, codes - (1 << format_.mantissa), codes)
    return codes


def infinity_times_zero(a: str, b: str) -> tuple[int, int] | None:
    """Codes of an infinity and a zero, in the order of the operands' formats; None without."""
    for name, turn in ((a, 1), (b, -1)):
        format_ = format_named(name)
        if isinstance(format_, FloatFormat) and format_.infinity is not None:
            return (format_.infinity, 0) if turn == 1 else (0, format_.infinity)
    return None


def top_code(name: str, negative: int) -> int:
    """The code of the largest magnitude of that sign."""
    format_ = format_named(name)
    if isinstance(format_, FloatFormat):
        return format_.largest | negative << format_.width - 1
    if isinstance(format_, IntegerFormat):
        return 1 << format_.width - 1 if negative else (1 << format_.width - 1) - 1
    return 3 if negative else 1


def negated(name: str, codes: Ints) -> Ints:
    """Codes of the numbers' opposites; the lowest integer is its own."""
    format_ = format_named(name)
    if isinstance(format_, FloatFormat):
        return codes ^ 1 << format_.width - 1
    return -codes & (1 << format_.width) - 1
