# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the FP4 and posit multiply-accumulate."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.formats._formats import Format, format_named
from .._runs import bounds, marks, one, sums
from ..formats.codec import decode, encode
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.mac.xr_npe import XrNpeConfig

Ints = NDArray[np.int64]

BITS = {"fp4": 4, "posit4_1": 4, "posit8_0": 8, "posit16_1": 16}
"""Bits of a code by format; a word of 16 bits has as many as fit, the first one lowest."""
FRACTION = {"fp4": 1, "posit4_1": 4, "posit8_0": 6, "posit16_1": 28}
"""Every value is a whole number of ``2**-FRACTION``."""
LIMB = 26


def codes(name: str, words: Ints) -> Ints:
    """The codes of words, lane 0 first: a last axis of lanes."""
    bits = BITS[name]
    return words[..., None] >> bits * np.arange(16 // bits) & (1 << bits) - 1


def words(name: str, given: Ints) -> Ints:
    """The inverse of :func:`codes`."""
    return (given << BITS[name] * np.arange(16 // BITS[name])).sum(axis=-1)


def format_of(name: str) -> Format:
    """The format that a name of the block means."""
    return format_named("fp4_e2m1" if name == "fp4" else name)


def values(name: str, given: Ints) -> NDArray[np.float64]:
    """Values of codes; NaN for NaR."""
    return decode(format_of(name), given)


def stimulus(config: "XrNpeConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of one mode each, of random lengths, with extremes, NaR, zeros and restarts.

    The largest sums come first: of either sign, in every mode, with carries through all of the
    accumulator where they change their sign; ``max_k`` products, as far as ``transfers`` go.
    """
    count = len(config.names)
    framing = marks(rng, transfers)
    a, b = rng.integers(0, 1 << 16, (2, transfers))
    same = rng.integers(0, 8, transfers) == 0
    b = np.where(same, a ^ rng.integers(0, 2, transfers), b)  # squares: sums far from 0
    mode = np.zeros(transfers, np.int64)

    corners = [(number, name, way) for number, name in enumerate(config.names) for way in range(4)]
    at = 0
    for number, name, way in corners:
        length = min(config.max_k, 1 + transfers // (3 * len(corners)))
        run = one(framing, at, length, first=way % 2)
        mode[run] = number
        a[run], b[run] = _extreme(name, way, run.stop - run.start)
        at = run.stop

    # Of the rest, runs have one mode; what an unexpected first drops may have had another.
    opens = framing["first"].astype(bool) | np.append(True, framing["last"][:-1].astype(bool))
    of_run = np.cumsum(opens) - 1
    drawn = rng.integers(0, count, of_run[-1] + 1 if transfers else 0)[of_run]
    mode[at:] = drawn[at:]
    special = rng.integers(0, 40, (2, transfers))
    for number, name in enumerate(config.names):
        here = (mode == number) & (np.arange(transfers) >= at)
        for side, which in ((a, special[0]), (b, special[1])):
            given = codes(name, side)
            if name != "fp4":  # NaR is rare and in one lane, so that most runs are without
                nar = given == 1 << BITS[name] - 1
                given = np.where(nar, 1, given)
            lanes = given.shape[-1]
            some = rng.integers(0, lanes, len(side))[:, None] == np.arange(lanes)
            if name != "fp4":
                given = np.where(some & (which == 6)[:, None], 1 << BITS[name] - 1, given)
            given = np.where(some & (which == 5)[:, None], 0, given)
            ends = np.array([1, (1 << BITS[name] - 1) - 1, (1 << BITS[name] - 1) + 1, -1])
            chosen = ends[which % 4, None] & (1 << BITS[name]) - 1
            given = np.where(some & (which > 34)[:, None], chosen, given)
            side[here] = words(name, given)[here]
    if count > 1:
        framing["mode"] = mode
    return {"i": {"a": a, "b": b, **framing}}


def _extreme(name: str, way: int, length: int) -> Any:
    """Words of one corner: all largest products, of one sign or of the other; or the smallest
    with now and then a large one of the other sign, in all lanes or with signs that differ."""
    bits = BITS[name]
    top = (1 << bits - 1) - 1  # maxpos, or 6
    minus = top | 1 << bits - 1 if name == "fp4" else (1 << bits) - top
    small = 1
    minus_small = small | 1 << bits - 1 if name == "fp4" else (1 << bits) - small
    lanes = 16 // bits
    if way < 2:
        sides = [np.full((length, lanes), top), np.full((length, lanes), (top, minus)[way])]
    else:
        turn = (np.arange(length)[:, None] + np.arange(lanes) * (way == 3)) % 2
        sides = [np.where(turn, small, small), np.where(turn, small, minus_small)]
        big = np.arange(length) % 5 == 4
        sides[0] = np.where(big[:, None], top, sides[0])
        sides[1] = np.where(big[:, None], np.where(turn, top, minus), sides[1])
    return [words(name, side.astype(np.int64)) for side in sides]


def golden(config: "XrNpeConfig", inputs: Streams) -> Streams:
    """Exact sums of the runs, from the values of the codes: as quarters of the accumulator, or
    rounded to codes."""
    i = inputs["i"]
    _, ends = bounds(i)
    mode = i["mode"] if len(config.names) > 1 else np.zeros(len(i["last"]), np.int64)
    acc = np.zeros((len(ends), 4), np.int64)
    nar = np.zeros((len(ends), 4), bool)
    code = np.zeros(len(ends), np.int64)
    for number, name in enumerate(config.names):
        here = mode == number
        lanes = 16 // BITS[name]
        x, y = (values(name, codes(name, i[side])) for side in "ab")
        bad = (np.isnan(x) | np.isnan(y)) & here[:, None]
        x, y = (np.where(bad | ~here[:, None], 0, side) for side in (x, y))
        total = sums(limbs_of(name, x, y), i)
        mine = here[ends]
        quarters = joined(total, 4 * config.quarter // lanes, config.quarter)
        acc[mine] = quarters.reshape(len(ends), 4)[mine]
        nar[mine, :lanes] = (sums(bad.astype(np.int64), i) > 0)[mine]
        if config.out == "codes":
            value = np.ldexp(_near(total), -2 * FRACTION[name])
            value = np.where(nar[:, :lanes], 0 if name == "fp4" else np.nan, value)
            code[mine] = words(name, encode(format_of(name), value))[mine]
    if config.out == "codes":
        return {"o": {"code": code}}
    flags = (nar << np.arange(4)).sum(axis=1)
    return {"o": {"acc": acc, **({"nar": flags} if config.nar_lanes else {})}}


def limbs_of(name: str, x: Any, y: Any) -> Ints:
    """Products in units of the smallest one, as a last axis of signed limbs of ``LIMB`` bits."""
    # Significands of 13 bits are whole numbers of 2**-13; the product of two is one of 2**-26.
    (p, e), (q, f) = np.frexp(x), np.frexp(y)
    whole = np.ldexp(p, 13).astype(np.int64) * np.ldexp(q, 13).astype(np.int64)
    at = e + f - 26 + 2 * FRACTION[name]
    size = np.abs(whole) >> np.maximum(-at, 0)
    limb, shift = np.divmod(np.maximum(at, 0), LIMB)
    spread = size << shift  # at most 52 bits
    count = 6
    limbs = np.zeros((*whole.shape, count), np.int64)
    for above, part in enumerate((spread & (1 << LIMB) - 1, spread >> LIMB)):
        where = np.minimum(limb + above, count - 1)[..., None]
        value = np.where(limb + above < count, part, 0) * np.sign(whole)
        np.put_along_axis(limbs, where, value[..., None], axis=-1)
    return limbs


def carried(total: Ints, count: int) -> tuple[Ints, Ints]:
    """``count`` limbs of 0 to ``2**LIMB - 1``, and what is left above them."""
    carry = np.zeros(total.shape[:-1], np.int64)
    limbs = []
    for at in range(count):
        whole = carry + (total[..., at] if at < total.shape[-1] else 0)
        carry = whole >> LIMB
        limbs.append(whole & (1 << LIMB) - 1)
    return np.stack(limbs, axis=-1), carry


def joined(total: Ints, width: int, quarter: int) -> Ints:
    """Sums as quarters of lanes of ``width`` bits."""
    limbs, _ = carried(total, -(-width // LIMB))
    bits = limbs[..., None] >> np.arange(LIMB) & 1
    flat = bits.reshape(*bits.shape[:-2], -1)[..., :width]
    parts = flat.reshape(*flat.shape[:-1], width // quarter, quarter)
    return (parts << np.arange(quarter)).sum(axis=-1)


def _near(total: Ints) -> NDArray[np.float64]:
    """Sums cut to 27 bits or more, with the lowest one set if any was set below: as near to every
    code and to every tie as the sums themselves, and on the same side."""
    count = total.shape[-1] + 1
    negative = carried(total, count)[1] < 0
    limbs, _ = carried(np.where(negative[..., None], -total, total), count)
    top = np.maximum(count - 1 - np.argmax(limbs[..., ::-1] != 0, axis=-1), 1)
    at = top[..., None]
    high, low = (np.take_along_axis(limbs, at - n, axis=-1)[..., 0] for n in (0, 1))
    below = (limbs != 0) & (np.arange(count) < at - 1)
    whole = (high << LIMB | low) | below.any(axis=-1)
    return np.ldexp(np.where(negative, -whole, whole).astype(np.float64), LIMB * (top - 1))


def cycles(config: "XrNpeConfig", inputs: Streams) -> int:
    """A cycle per transfer up to the last one that ends a run, then the latency."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency
