# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the table-lookup tensor core.

Quantisation of tables, done where they are made: all tables of a row of activations share a scale
``s_t = max|T| / 127``, and an entry becomes ``clamp(round(T / s_t), -127, 127)``, ties to even.  A
scale of its own for each table would have to be multiplied before tiles are added up.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._runs import bounds, marks, one, so_far, sums, wrapped
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.lut.lut_tensor_core import LutTensorCoreConfig

Ints = NDArray[np.int64]
NAN = 0x7E00
INFINITY = 0x7C00


def reinterpreted(codes: NDArray, bits: int, zero: Any = 0) -> tuple[NDArray, Any]:
    """Odd numbers ``q'`` and their zero point ``z'`` with ``s (q - z) == s / 2 (q' - z')``."""
    top = (1 << bits) - 1
    return 2 * codes - top, 2 * zero - top


def tables(config: "LutTensorCoreConfig", acts: NDArray) -> NDArray:
    """Entries (..., entries) of tables of activations (..., k).

    Of floats, in float64: the sum is rounded by whoever stores it.
    """
    index = np.arange(1 << config.k)
    if config.half_table:
        rest = np.arange(1 << config.k - 1)
        index = rest | 1 << config.k - 1 if config.sign_bit == "msb" else 2 * rest | 1
    signs = 2 * (index[:, None] >> np.arange(config.k) & 1) - 1
    return acts @ signs.T


def quantised(values: NDArray) -> tuple[Ints, NDArray]:
    """Tables (rows, ...) as int8 and the scale of each row; a row of zeros has scale 1."""
    most = np.abs(values).reshape(len(values), -1).max(axis=1)
    scale = np.where(most == 0, 1, most / 127)
    spread = scale.reshape(-1, *[1] * (values.ndim - 1))
    return np.clip(np.rint(values / spread), -127, 127).astype(np.int64), scale


def packed(config: "LutTensorCoreConfig", planes: NDArray) -> NDArray:
    """Planes ``p``, ``k`` bits in a number, as the unit wants them."""
    if not config.half_table or config.remap == "inline":
        return planes
    sign = 1 << config.k - 1 if config.sign_bit == "msb" else 1
    return np.where(planes & sign, planes ^ sign, ~planes & (1 << config.k) - 1)


def product(
    config: "LutTensorCoreConfig",
    acts: NDArray,
    codes: NDArray,
    bits: int,
    entries: NDArray | None = None,
    equal: bool = False,
) -> Streams:
    """Transfers of ``acts`` (m, K) times the ``codes`` (n, K) of weights of ``bits`` bits.

    K is a multiple of a tile's depth.  ``entries``, if given, are the tables instead of the exact
    ones: (m, tiles, groups, entries).  With ``equal`` all planes count 1.
    """
    m, n, k = config.m, config.n, config.k
    count = acts.shape[1] // config.depth
    by_table = acts.reshape(m, count, config.groups, k)
    planes = codes[:, :, None] >> np.arange(bits) & 1
    planes = planes.reshape(n, count, config.groups, k, bits) << np.arange(k)[:, None]
    shaped = packed(config, planes.sum(axis=3)).transpose(1, 3, 0, 2)
    first, last, ends = np.zeros((3, count, bits), np.int64)
    first[0, 0] = last[-1, -1] = 1
    ends[:, -1] = 1
    i: Transfers = {
        "weights": shaped.reshape(count * bits, n, config.groups),
        "equal": np.full(count * bits, int(equal)),
        "tile_last": ends.reshape(-1),
        "first": first.reshape(-1),
        "last": last.reshape(-1),
    }
    if config.operand:
        i["c"] = np.zeros((count * bits, m, n), np.int64)
    if config.precompute:
        return {"table_i": {"acts": by_table.swapaxes(0, 1)}, "i": i}
    if entries is None:
        entries = tables(config, by_table)
    return {"table_i": {"tables": _beats(config, np.asarray(entries).swapaxes(0, 1))}, "i": i}


def stimulus(config: "LutTensorCoreConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs and tiles of random lengths, with extremes and restarts, also inside of tiles.

    The largest sums come first: ``max_k`` activations of extremes, as far as ``transfers`` go.
    """
    n, groups, top = config.n, config.groups, config.max_bits
    weights = rng.integers(0, 1 << config.k, (transfers, n, groups))
    equal = (rng.integers(0, 3, transfers) == 0).astype(np.int64)
    ends = rng.integers(0, 2, transfers)
    framing = marks(rng, transfers)
    framing["last"][:-1] &= rng.integers(0, 3, transfers - 1) == 0

    tiles, at = -(-config.max_k // config.depth), 0
    every, negative = (1 << config.k) - 1, 1 << config.k - 1
    negative = negative if config.sign_bit == "msb" else 1
    if not config.half_table or config.remap == "inline":
        plus, minus = every, 0
    else:
        plus, minus = every ^ negative, every  # all ones, not negated; and negated
    extremes: list[tuple[slice, int]] = []
    for number, (weight, high) in enumerate(((plus, 1), (plus, 0), (minus, 1), (minus, 0))):
        count = min(tiles, max(1, transfers // 8 // top))
        run = one(framing, at, count * top, first=number % 2)
        weights[run], equal[run] = weight, 0
        ends[run] = np.arange(run.stop - run.start) % top == top - 1
        extremes.append((run, high))
        at = run.stop
    # No tile has more planes than there are bits.
    since = 0
    for t in range(at, transfers):
        since = since + 1 if t > at and not ends[t - 1] else 1
        ends[t] |= since == top
    ends[-1:] = 1

    tile = np.cumsum(ends) - ends
    size = int(ends.sum())
    made = _random(config, rng, size)
    for run, high in extremes:
        made[tile[run]] = _extreme(config, bool(high))
    i: Transfers = {"weights": weights, "equal": equal, "tile_last": ends, **framing}
    if config.operand:
        i["c"] = _operands(config, rng, (transfers, config.m, n), tile)
    if config.precompute:
        return {"table_i": {"acts": made}, "i": i}
    return {"table_i": {"tables": _beats(config, made)}, "i": i}


def golden(config: "LutTensorCoreConfig", inputs: Streams) -> Streams:
    """Every output of every run, from the definition of a tile."""
    i = inputs["i"]
    tile = np.cumsum(i["tile_last"]) - i["tile_last"]
    begins = np.append(True, i["tile_last"][:-1] == 1)
    framing = {"first": begins.astype(np.int64), "last": i["tile_last"]}
    earlier = np.append(0, 1 - i["equal"][:-1])
    power = so_far(earlier, framing)
    given = _given(config, inputs)[tile]  # (transfers, m, groups, entries)
    address, negated = _addresses(config, i["weights"].astype(np.int64))
    if config.floats:
        return _float_golden(config, i, given[:, :, 0], address[..., 0], negated[..., 0], power)
    terms = np.zeros((len(tile), config.m, config.n), np.int64)
    for group in range(config.groups):
        value = np.take_along_axis(given[:, :, group], address[:, None, :, group], axis=2)
        terms += np.where(negated[:, None, :, group], -value, value)
    terms <<= power[:, None, None]
    total = sums(terms, i)
    if config.operand:
        total = total + i["c"][bounds(i)[0]].astype(np.int64)
    out: Transfers = {"sums": wrapped(total, config.acc_width)}
    if config.zero_point:
        ones = given[..., -1].sum(axis=2) * begins[:, None]
        out["activations"] = wrapped(sums(ones, i), config.activation_width)
    return {"o": out}


def cycles(config: "LutTensorCoreConfig", inputs: Streams) -> int:
    """A tile takes as many cycles as it has planes, or beats where these are more."""
    i, beats = inputs["i"], config.table_beats
    final = int(np.flatnonzero(i["last"])[-1])
    ends = np.flatnonzero(i["tile_last"])
    before = ends[ends < final]
    planes = np.diff(before, prepend=-1)
    loaded = beats - 1 + config.precompute + int(np.maximum(planes, beats).sum())
    start = before[-1] + 1 if len(before) else 0
    return loaded + 1 + int(final - start) + 1 + config.latency


def _addresses(config: "LutTensorCoreConfig", planes: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Which entries, and whether these are negated."""
    if not config.half_table:
        return planes, np.zeros(planes.shape, bool)
    if config.sign_bit == "msb":
        sign, rest = planes >> config.k - 1, planes & (1 << config.k - 1) - 1
    else:
        sign, rest = planes & 1, planes >> 1
    if config.remap == "offline":
        return rest, sign == 1
    return np.where(sign == 1, rest, rest ^ (1 << config.k - 1) - 1), sign == 0


def _given(config: "LutTensorCoreConfig", inputs: Streams) -> Ints:
    """Tables of all tiles: (tiles, m, groups, entries)."""
    given = inputs["table_i"]
    if config.precompute:
        return tables(config, given["acts"].astype(np.int64))
    beats = given["tables"].astype(np.int64)
    tiles = len(beats) // config.table_beats
    whole = beats.reshape(tiles, config.table_beats, config.m, -1).swapaxes(1, 2)
    return whole.reshape(tiles, config.m, config.groups, config.entries)


def _beats(config: "LutTensorCoreConfig", whole: NDArray) -> NDArray:
    """Transfers of tables (tiles, m, groups, entries)."""
    rows = whole.reshape(len(whole), config.m, config.table_beats, -1).swapaxes(1, 2)
    return rows.reshape(len(whole) * config.table_beats, config.m, -1)


def _float_golden(
    config: "LutTensorCoreConfig", i: Transfers, given: Ints, address: Ints, negated, power: Ints
) -> Streams:
    """All runs side by side, one plane after the other, each addition rounded."""
    starts, ends = bounds(i)
    with np.errstate(over="ignore", invalid="ignore"):
        values = _halves(np.take_along_axis(given, address[:, None], axis=2)).astype(np.float64)
        terms = np.ldexp(np.where(negated[:, None], -values, values), power[:, None, None])
        terms = terms.astype(np.float16)
        fresh = np.append(True, i["tile_last"][:-1] == 1)[:, None]
        ones = np.where(fresh, _halves(given[..., -1]), np.float16(0))
        acc = np.zeros((len(ends), config.m, config.n), np.float16)
        if config.operand:
            acc = _halves(i["c"][starts])
        total = np.zeros((len(ends), config.m), np.float16)
        for step in range(int((ends - starts).max(initial=-1)) + 1):
            going = np.flatnonzero(starts + step <= ends)
            at = starts[going] + step
            acc[going] = _sum(acc[going], terms[at])
            total[going] = _sum(total[going], ones[at])
    out = {"sums": _codes(acc)}
    return {"o": {**out, "activations": _codes(total)} if config.zero_point else out}


def _sum(a: NDArray[np.float16], b: NDArray[np.float16]) -> NDArray[np.float16]:
    """float64 holds the exact sum of two halves."""
    return (a.astype(np.float64) + b.astype(np.float64)).astype(np.float16)


def _halves(codes: NDArray) -> NDArray[np.float16]:
    return codes.astype(np.uint16).view(np.float16)


def _codes(values: NDArray[np.float16]) -> Ints:
    found = np.ascontiguousarray(values).view(np.uint16).astype(np.int64)
    return np.where(np.isnan(values), NAN, found)


def _random(config: "LutTensorCoreConfig", rng: np.random.Generator, tiles: int) -> NDArray:
    if config.precompute:
        return rng.integers(-128, 128, (tiles, config.m, config.groups, config.k))
    shape = (tiles, config.m, config.groups, config.entries)
    if not config.floats:
        half = 1 << config.table_width - 1
        return rng.integers(-half, half, shape)
    return _operands(config, rng, shape, np.arange(tiles))


def _extreme(config: "LutTensorCoreConfig", high: bool) -> int:
    """The largest and the smallest entry, or activation."""
    if config.floats:
        return INFINITY - 1 | (not high) << 15
    half = 1 << (8 if config.precompute else config.table_width) - 1
    return half - 1 if high else -half


def _operands(
    config: "LutTensorCoreConfig", rng: np.random.Generator, shape: Any, tile: Ints
) -> NDArray:
    """Accumulators at random; those in half precision are of the sizes that their tiles have.

    Sixteen tiles at a time are ordinary numbers, subnormal ones with zeros, numbers near the
    largest, or ordinary ones with an infinity or a NaN here and there.  Any codes at random would
    nearly always add nothing to each other.
    """
    if not config.floats:
        half = 1 << config.acc_width - 1
        return rng.integers(-half, half, shape)
    spread = rng.integers(-3, 4, shape)
    near = (rng.normal(0, 1, shape) * 2.0**spread).astype(np.float16).view(np.uint16)
    near = near.astype(np.int64) & 0x7FFF
    tiny = rng.integers(0, 1 << 9, shape) * rng.integers(0, 2, shape)
    large = rng.integers(27 << 10, 31 << 10, shape)
    special = np.where(rng.integers(0, 64, shape) == 0, INFINITY + rng.integers(0, 2, shape), near)
    size = (tile // 16 % 4).reshape(-1, *[1] * (len(shape) - 1))
    codes = np.select([size == 0, size == 1, size == 2], [near, tiny, large], special)
    return codes | rng.integers(0, 2, shape) << 15
