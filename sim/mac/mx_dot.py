# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of dot products of blocks with a common scale."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.formats._formats import format_named
from .. import _float32
from .._runs import marks
from ..formats.codec import decode
from ..types import Streams, Transfers
from ._elements import infinity_times_zero, negated, random_codes, sum_fields, top_code

if TYPE_CHECKING:
    from ...rtl.mac.mx_dot import MxDotConfig

Ints = NDArray[np.int64]
Bools = NDArray[Any]


def blocks(
    config: "MxDotConfig", a: Any, b: Any, a_scale: Any, b_scale: Any, length: int
) -> Streams:
    """Transfers of blocks of codes (blocks, block) and scales (blocks), ``length`` blocks a run."""
    count = len(a_scale)
    codes = {
        name: np.asarray(x, np.int64).reshape(count * config.groups, config.lanes)
        for name, x in (("a", a), ("b", b))
    }
    scales = {
        name: np.repeat(np.asarray(x, np.int64), config.groups)
        for name, x in (("a_scale", a_scale), ("b_scale", b_scale))
    }
    at = np.arange(count * config.groups)
    first = (at % (length * config.groups) == 0).astype(np.int64)
    return {"i": {**codes, **scales, "first": first, "last": np.roll(first, -1)}}


def stimulus(config: "MxDotConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths and restarts, with extremes, specials, and scales of all kinds.

    The largest sums come first; then blocks whose sums meet again and again, far apart, close
    together, and just of opposite size, so that the float accumulator cancels.
    """
    groups = config.groups
    i = {
        "a": random_codes(config.format, rng, (transfers, config.lanes)),
        "b": random_codes(config.b, rng, (transfers, config.lanes)),
        "a_scale": rng.integers(0, 256, transfers),
        "b_scale": rng.integers(0, 256, transfers),
        **marks(rng, transfers),
    }
    # Runs mostly end with a block, and scales of one run are mostly close to each other.
    block = np.arange(transfers) // groups
    ends = np.arange(transfers) % groups == groups - 1
    i["first"] = np.where(rng.random(transfers) < 0.9, 0, i["first"])
    i["last"] = np.where(ends & (rng.random(transfers) < 0.3), 1, i["last"])
    part = block // 6
    middle = rng.integers(0, 230, (2, part[-1] + 1))
    middle[:, rng.random(part[-1] + 1) < 0.3] = 54  # units of subnormals
    middle[:, rng.random(part[-1] + 1) < 0.1] = 190  # overflow
    if config.scale == "e8m0":
        spread = rng.integers(0, 24, (2, block[-1] + 1))
        near = rng.random(transfers) < 0.95
        for row, name in enumerate(("a_scale", "b_scale")):
            scale = (middle[row][part] + spread[row][block]) % 256
            i[name] = np.where(near, scale, i[name])
    else:
        regular = rng.random(transfers) < 0.9
        for name in ("a_scale", "b_scale"):
            i[name] = np.where(regular & (i[name] & 127 == 127), i[name] - 60, i[name])

    # A block that is the one before it negated, but for one lane.
    for at in range(6 * groups, transfers - 2 * groups, 11 * groups):
        one, two = (slice(at + n * groups, at + (n + 1) * groups) for n in (0, 1))
        i["a"][two] = negated(config.format, i["a"][one])
        i["a"][two.start, 0] = i["a"][one.start, 0]
        for name in ("b", "a_scale", "b_scale"):
            i[name][two] = i[name][one]
        i["first"][at : at + 2 * groups], i["last"][at : at + 2 * groups] = 0, 0

    if both := infinity_times_zero(config.format, config.b):
        i["a"][8 * groups + 1 :: 29, 0], i["b"][8 * groups + 1 :: 29, 0] = both

    # The largest products of every sign, in whole blocks.
    at = 0
    for a_sign in (0, 1):
        for b_sign in (0, 1):
            for length in (1, 2):
                run = slice(at, min(at + length * groups, transfers))
                i["a"][run], i["b"][run] = (
                    top_code(config.format, a_sign),
                    top_code(config.b, b_sign),
                )
                one = 127 if config.scale == "e8m0" else 0x7E - 8 * length
                i["a_scale"][run] = i["b_scale"][run] = one
                i["first"][run], i["last"][run] = 0, 0
                i["first"][at : at + 1] = length - 1
                i["last"][run.stop - 1 : run.stop] = run.stop > at
                at = run.stop

    done = (transfers - 1) // groups  # the last whole block, counted from the last restart
    if done:
        i["first"][-2 * groups :] = 0
        i["first"][(done - 1) * groups] = 1
        i["last"][done * groups - 1] = 1
    else:
        i["last"][-1:] = 1
    return {"i": i}


def golden(config: "MxDotConfig", inputs: Streams) -> Streams:
    """From the definition: values of codes, products, sums, all in exact integers."""
    i = inputs["i"]
    ends, opens, closes = _framing(config, i)
    terms, flags = _terms(config, i)
    upto = np.concatenate([np.zeros_like(terms[:1]), np.cumsum(terms)])
    sums = upto[ends + 1] - upto[ends + 1 - config.groups]
    within = ends[:, None] - np.arange(config.groups)
    nan, plus, minus = (flag[within].any(axis=1) for flag in flags)
    scale, exponent, scale_nan = _scales(config, i)
    nan = nan | scale_nan[ends] | (plus & minus)
    plus, minus = plus & ~nan, minus & ~nan
    sums = np.where(nan | plus | minus, 0, sums * scale[ends])
    exponent = exponent[ends]

    if config.accumulate == "fp32":
        return {"o": {"sum": _single(sums, exponent, nan, plus, minus, opens, closes)}}
    infinities = {"plus": plus, "minus": minus} if config.special else {}
    fields = {"nan": nan, **infinities, "last": closes}
    return {
        "o": {
            **sum_fields(sums, config.scaled_width),
            "exponent": exponent,
            **{name: flag.astype(np.int64) for name, flag in fields.items()},
        }
    }


def cycles(config: "MxDotConfig", inputs: Streams) -> int:
    """``beats`` cycles for each transfer up to the last that has a result, then the latency."""
    ends, _, closes = _framing(config, inputs["i"])
    results = ends[closes] if config.accumulate == "fp32" else ends
    return int(results[-1] + 1) * config.beats + config.latency


def _framing(config: "MxDotConfig", i: Transfers) -> tuple[Ints, Bools, Bools]:
    """The last transfers of all blocks; whether the block opens a run; whether it closes one."""
    at = np.arange(len(i["last"]))
    first = i["first"].astype(bool)
    restart = np.maximum.accumulate(np.where(first, at, 0))
    ends = np.flatnonzero((at - restart) % config.groups == config.groups - 1)
    closes = i["last"][ends].astype(bool)
    opens = np.append(True, closes[:-1])
    opens |= restart[ends] > np.append(-1, ends[:-1])
    return ends, opens, closes


def _terms(config: "MxDotConfig", i: Transfers) -> tuple[NDArray, list[Bools]]:
    """Each transfer's sum, in units of the product's; is it NaN, and has it infinities."""
    a, b = (
        decode(format_named(name), i[field])
        for name, field in ((config.format, "a"), (config.b, "b"))
    )
    with np.errstate(invalid="ignore"):
        product = a * b  # exact: no more than 22 significant bits
    finite = np.isfinite(product)
    kinds = (np.isnan(product), product == np.inf, product == -np.inf)
    flags: list[Bools] = [np.asarray(kind.any(axis=1)) for kind in kinds]
    whole = np.ldexp(np.where(finite, product, 0), -config.dot.unit)
    if config.sum_width <= 54:
        # Not more than 2**53 in sum; over all transfers that could overflow, so int64 is too small
        # only for sums that are not asked for, and their differences are right all the same.
        return whole.astype(np.int64).sum(axis=1), flags
    low = np.mod(whole, 2.0**32)
    parts = [
        part.astype(np.int64).sum(axis=1).astype(object) for part in (low, (whole - low) / 2**32)
    ]
    return parts[0] + parts[1] * (1 << 32), flags


def _scales(config: "MxDotConfig", i: Transfers) -> tuple[Ints, Ints, Bools]:
    """Of the product of both scales: an integer, the exponent of the block, whether it is NaN."""
    codes = (i["a_scale"], i["b_scale"])
    if config.scale == "e8m0":
        nan = (codes[0] == 255) | (codes[1] == 255)
        return np.ones_like(codes[0]), codes[0] + codes[1] + config.unit, nan
    whole, exponent = np.ones_like(codes[0]), np.zeros_like(codes[0])
    nan: Bools = np.zeros(len(codes[0]), bool)
    for code in codes:
        field, mantissa = code >> 3 & 15, code & 7
        size = np.where(field > 0, 8 + mantissa, mantissa)
        whole = whole * np.where(code >> 7, -size, size)
        exponent = exponent + np.maximum(field, 1)
        nan |= (code & 127) == 127
    return whole, exponent + config.unit, nan


def _single(
    sums: NDArray,
    exponent: Ints,
    nan: Bools,
    plus: Bools,
    minus: Bools,
    opens: Bools,
    closes: Bools,
) -> Ints:
    """float32 codes of all runs, which are added up side by side, a block of each at a time."""
    high, low = _float32.halves(sums, exponent)
    high = np.where(plus, np.inf, np.where(minus, -np.inf, np.where(nan, np.nan, high)))
    low = np.where(np.isfinite(high), low, 0.0)
    starts = np.maximum.accumulate(np.where(opens, np.arange(len(opens)), 0))
    ends = np.flatnonzero(closes)
    begins = starts[ends]
    acc = np.zeros(len(ends), np.float32)
    for step in range(int((ends - begins).max(initial=-1)) + 1):
        going = np.flatnonzero(begins + step <= ends)
        at = begins[going] + step
        acc[going] = _float32.add(acc[going], high[at], low[at])
    return _float32.codes(acc)
