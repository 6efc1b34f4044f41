# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the tiles that table lookup is compared with."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...rtl.formats._formats import FloatFormat, format_named
from .._runs import bounds, marks, one, sums, wrapped
from ..formats.add import add
from ..formats.codec import decode, encode
from ..formats.multiply import multiply
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.lut.mac_tile import MacTileConfig

Ints = NDArray[np.int64]
FP16 = cast("FloatFormat", format_named("fp16"))
SIGN = 1 << 15


def product(
    config: "MacTileConfig", acts: NDArray[Any], weights: NDArray[Any], zero: Any = 0
) -> Streams:
    """Transfers of one run: ``acts`` (m, K) by ``weights`` (n, K), K a multiple of ``k``.

    Activations, and the weights of style mac, are numbers of int8 or codes of fp16; of dequant
    weights are codes, less ``zero``; of add they are codes of ``bits`` planes.
    """
    count = acts.shape[1] // config.k
    tiles = {
        "acts_i": {"acts": acts.reshape(config.m, count, config.k).swapaxes(0, 1)},
        "i": weights.reshape(config.n, count, config.k).swapaxes(0, 1),
    }
    i: Transfers = {"weights": tiles["i"]}
    if config.style == "dequant":
        i["zero"] = np.broadcast_to(np.asarray(zero), (count, config.n))
        i["coded"] = np.ones(count, np.int64)
    if config.style == "add":
        planes = tiles["i"][:, None] >> np.arange(config.bits)[:, None, None] & 1
        planes = (planes << np.arange(config.k)).sum(axis=-1)
        i["weights"] = planes.reshape(-1, config.n)
        i["tile_last"] = np.tile(np.arange(config.bits) == config.bits - 1, count).astype(np.int64)
    first, last = np.zeros((2, len(i["weights"])), np.int64)
    first[0] = last[-1] = 1
    return {"acts_i": tiles["acts_i"], "i": {**i, "first": first, "last": last}}


def stimulus(config: "MacTileConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths, with specials and restarts; the largest sums come first."""
    i: Transfers = marks(rng, transfers)
    ends = np.ones(transfers, np.int64)
    if config.style == "add":  # tiles of random widths
        planes = rng.integers(1, config.bits + 1, transfers)
        ends = np.zeros(transfers, np.int64)
        at = np.cumsum(planes) - 1
        ends[at[at < transfers]] = 1
        i["tile_last"] = ends
        i["weights"] = rng.integers(0, 1 << config.k, (transfers, config.n))
    else:
        shape = (transfers, config.n, config.k)
        if config.floats:
            i["weights"] = _halves(rng, shape)
        else:
            half = 1 << config.weight_width - 1
            i["weights"] = rng.integers(-half, half, shape)
    if config.style == "dequant":
        i["coded"] = rng.integers(0, 2, transfers)
        i["zero"] = rng.integers(0, 1 << config.bits, (transfers, config.n))
    shape = (transfers, config.m, config.k)
    acts = _halves(rng, shape) if config.floats else rng.integers(-128, 128, shape)
    if not config.floats:
        _largest(config, i, acts)
    tiles = _tiles(config, i)
    return {"acts_i": {"acts": acts[: int(tiles[-1]) + 1]}, "i": i}


def golden(config: "MacTileConfig", inputs: Streams) -> Streams:
    """Sums of all finished runs."""
    i = inputs["i"]
    acts = inputs["acts_i"]["acts"].astype(np.int64)[_tiles(config, i)]  # (transfers, m, k)
    if config.style == "add":
        bits = i["weights"].astype(np.int64)[:, :, None] >> np.arange(config.k) & 1
        shift = _plane(i["tile_last"])
        if config.floats:
            with np.errstate(over="ignore"):
                scaled = np.ldexp(decode(FP16, acts), shift[:, None, None])
            scaled = np.where(np.isnan(decode(FP16, acts)), 0, scaled)
            codes = np.where(
                np.isnan(decode(FP16, acts)), acts, encode(FP16, scaled, saturate=False)
            )
            terms = codes[:, :, None, :] ^ SIGN * (1 - bits[:, None, :, :])
            return {"o": {"sums": _halves_sum(terms, i)}}
        terms = (acts[:, :, None, :] * (2 * bits - 1)[:, None, :, :]).sum(axis=-1)
        terms = terms << shift[:, None, None]
    else:
        weights = _weights(config, i)
        if config.floats:
            pairs = np.broadcast_arrays(acts[:, :, None, :], weights[:, None, :, :])
            return {"o": {"sums": _halves_sum(multiply(FP16, *pairs), i)}}
        terms = (acts[:, :, None, :] * weights[:, None, :, :]).sum(axis=-1)
    return {"o": {"sums": wrapped(sums(terms, i), config.acc_width)}}


def cycles(config: "MacTileConfig", inputs: Streams) -> int:
    """A cycle for each transfer to the end of the last run, and the latency."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency


def _tiles(config: "MacTileConfig", i: Transfers) -> Ints:
    """The number of each transfer's tile."""
    if config.style != "add":
        return np.arange(len(i["last"]))
    ends = i["tile_last"].astype(np.int64)
    return np.cumsum(ends) - ends


def _plane(ends: NDArray[Any]) -> Ints:
    """The number of each transfer's plane in its tile."""
    starts = np.append(True, ends[:-1] != 0)
    at = np.arange(len(ends))
    return at - np.maximum.accumulate(np.where(starts, at, 0))


def _weights(config: "MacTileConfig", i: Transfers) -> Ints:
    """What is multiplied: integers, or codes of fp16."""
    given = i["weights"].astype(np.int64)
    if config.style != "dequant":
        return given
    number = (given & (1 << config.bits) - 1) - i["zero"].astype(np.int64)[:, :, None]
    if config.floats:
        number = encode(FP16, number.astype(np.float64))
    return np.where(i["coded"].astype(bool)[:, None, None], number, given)


def _halves_sum(terms: Ints, i: Transfers) -> Ints:
    """Terms (transfers, m, n, k) of fp16, in pairs, then in the order of transfers."""
    while terms.shape[-1] > 1:
        even = terms.shape[-1] // 2 * 2
        pairs = add(FP16, terms[..., :even:2], terms[..., 1:even:2])
        terms = np.concatenate((pairs, terms[..., even:]), axis=-1)
    total = terms[..., 0]
    starts, ends = bounds(i)
    acc = np.zeros((len(ends), *total.shape[1:]), np.int64)
    for step in range(int((ends - starts).max(initial=-1)) + 1):
        going = np.flatnonzero(starts + step <= ends)
        acc[going] = add(FP16, acc[going], total[starts[going] + step])
    return acc


def _halves(rng: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    """Codes of fp16, most of middling size, few of any."""
    codes = rng.integers(0, 1 << 16, shape)
    middling = rng.integers(8, 21, shape) << 10 | (codes & 0x83FF)
    some = rng.random((shape[0], *[1] * (len(shape) - 1))) < 0.1
    return np.where(some & (rng.random(shape) < 0.3), codes, middling)


def _largest(config: "MacTileConfig", i: Transfers, acts: Ints) -> None:
    """Runs of extremes, up to the bound of a sum where there are transfers enough."""
    transfers, at = len(i["last"]), 0
    serial = config.bits if config.style == "add" else 1
    for number, (act, high) in enumerate(((-128, 0), (127, 1), (-128, 1), (127, 0))):
        tiles = min(config.max_k // config.k, max(1, transfers // 12 // serial))
        if at + tiles * serial > transfers:
            return
        run = one(i, at, tiles * serial, first=number % 2)
        if config.style == "add":
            i["weights"][run] = ((1 << config.k) - 1) * high
            i["tile_last"][run] = np.tile(np.arange(serial) == serial - 1, tiles)
            if at == 0:
                first_tile = 0
            else:
                i["tile_last"][at - 1] = 1
                first_tile = int(i["tile_last"][:at].sum())
            acts[first_tile : first_tile + tiles] = act
        else:
            end = 1 << config.weight_width - 1
            i["weights"][run] = end - 1 if high else -end
            acts[run] = act
            if config.style == "dequant":
                i["coded"][run] = 0
        at = run.stop
    if config.style == "add":
        _no_longer(i["tile_last"], config.bits)


def _no_longer(ends: Ints, most: int) -> None:
    """Ends tiles that have more planes than there may be."""
    while len(long := np.flatnonzero((_plane(ends) >= most - 1) & (ends == 0))):
        ends[long[:1]] = 1
