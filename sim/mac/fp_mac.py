# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the multiply-accumulate of small floats."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.formats._formats import Special, format_named
from .._float32 import add, codes
from .._runs import bounds, marks, one, sums
from ..formats.codec import decode
from ..types import Streams
from ._elements import infinity_times_zero, negated, random_codes, sum_fields, top_code

if TYPE_CHECKING:
    from ...rtl.mac.fp_mac import FpMacConfig

LIMB = 30
"""Bits of the pieces that long integers are summed in."""


def stimulus(config: "FpMacConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths, with specials, restarts, and products that cancel.

    The largest sums come first: ``max_k`` products of extremes, as far as ``transfers`` go.
    """
    i = {name: random_codes(config.format, rng, (transfers,)) for name in ("a", "b")}
    i |= marks(rng, transfers)
    # A product, and the same one negated, with a small one between.
    for at in range(transfers // 2, transfers - 3, 17):
        run = one(i, at, 3, first=1)
        i["a"][run.stop - 1] = i["a"][at]
        i["b"][run.stop - 1] = negated(config.format, i["b"][at])
        i["a"][at + 1] = 1
    if both := infinity_times_zero(config.format, config.format):
        for at in range(transfers // 2 + 5, transfers - 3, 34):
            run = one(i, at, 1 + at % 2, first=1)
            i["a"][run.start], i["b"][run.start] = both if at % 3 else both[::-1]
    at = 0
    for number, (a_sign, b_sign) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        run = one(i, at, min(config.max_k, 1 + transfers // 16), first=number % 2)
        i["a"][run], i["b"][run] = top_code(config.format, a_sign), top_code(config.format, b_sign)
        at = run.stop
    return {"i": i}


def golden(config: "FpMacConfig", inputs: Streams) -> Streams:
    """Sums of the products of the codes' values, in exact integers, or rounded once for each."""
    i = inputs["i"]
    a, b = (_whole(config, i[name]) for name in ("a", "b"))
    kinds = _kinds(config, i)
    if config.accumulate == "fp32":
        return {"o": {"sum": _single(config, inputs, kinds)}}
    nan, plus, minus = (sums(kind.astype(np.int64), i) > 0 for kind in kinds)
    nan |= plus & minus
    plus, minus = plus & ~nan, minus & ~nan
    terms = a * b
    if config.sum_width > 60:
        # In three pieces, so that sums of them are int64's.
        pieces = [terms >> LIMB * n & (1 << LIMB) - 1 for n in range(2)] + [terms >> 2 * LIMB]
        parts = [
            sums(piece.astype(np.int64), i).astype(object) << LIMB * n
            for n, piece in enumerate(pieces)
        ]
        total = sum(parts[1:], parts[0])
    else:
        total = sums(terms, i)
    total = np.where(nan | plus | minus, 0, total)
    flags: dict[str, Any] = {}
    if config.special is not Special.NONE:
        flags["nan"] = nan.astype(np.int64)
    if config.special is Special.IEEE:
        flags |= {"plus": plus.astype(np.int64), "minus": minus.astype(np.int64)}
    return {"o": {**sum_fields(total, config.sum_width), **flags}}


def cycles(config: "FpMacConfig", inputs: Streams) -> int:
    """``beats`` cycles for each transfer, then the latency of the last run."""
    end = np.flatnonzero(inputs["i"]["last"])[-1] + 1
    return int(end) * config.beats + config.latency


def _whole(config: "FpMacConfig", given: NDArray[np.int64]) -> NDArray:
    """Values in units of the smallest; 0 where they are no numbers."""
    values = decode(format_named(config.format), given)
    values = np.where(np.isfinite(values), values, 0.0)
    if config.accumulate == "fp32":
        return values
    whole = np.ldexp(values, -config.unit // 2).astype(np.int64)
    return whole.astype(object) if config.sum_width > 60 else whole


def _kinds(config: "FpMacConfig", i: Any) -> list[NDArray[Any]]:
    """Which products are NaN, plus infinity and minus infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = (decode(format_named(config.format), i[name]) for name in ("a", "b"))
        product = a * b
    return [np.isnan(product), product == np.inf, product == -np.inf]


def _single(config: "FpMacConfig", inputs: Streams, kinds: list[NDArray[Any]]) -> NDArray[np.int64]:
    """float32 codes of all runs, which are added up side by side."""
    i = inputs["i"]
    nan, plus, minus = kinds
    # float64 holds products of significands of up to 26 bits, of exponents far beyond these.
    product = _whole(config, i["a"]) * _whole(config, i["b"])
    low = np.zeros_like(product)
    high = np.where(plus, np.inf, np.where(minus, -np.inf, np.where(nan, np.nan, product + 0.0)))
    starts, ends = bounds(i)
    acc = np.zeros(len(ends), np.float32)
    for step in range(int((ends - starts).max(initial=-1)) + 1):
        going = np.flatnonzero(starts + step <= ends)
        at = starts[going] + step
        acc[going] = add(acc[going], high[at], low[at])
    return codes(acc)
