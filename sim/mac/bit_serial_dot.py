# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of dot products with bit-serial weights."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import marks, one, so_far, sums, to_come, wrapped
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.mac.bit_serial_dot import BitSerialDotConfig

Ints = NDArray[np.integer]


def product(
    config: "BitSerialDotConfig", acts: Ints, weights: Ints, bits: int, signed: bool = True
) -> Streams:
    """Transfers of the rows of ``weights`` (rows, K), integers of ``bits`` bits, times ``acts``."""
    rows, size = weights.shape
    count = -(-size // config.lanes)
    filled = np.pad(weights, ((0, 0), (0, count * config.lanes - size)))
    numbers = np.arange(bits) if config.order == "lsb" else np.arange(bits)[::-1]
    shape = (rows, bits, count)
    planes = (filled[:, None, :] >> numbers[:, None] & 1).reshape(-1, config.lanes)
    tiles = np.pad(acts, (0, count * config.lanes - size)).reshape(count, config.lanes)
    plane, sign, first, last = np.zeros((4, *shape), np.int64)
    plane[:, :, 0] = 1
    sign[:, numbers == bits - 1] = signed
    first[:, 0, 0] = last[:, -1, -1] = 1
    return {
        "i": {
            "acts": np.broadcast_to(tiles, (rows, bits, *tiles.shape)).reshape(planes.shape),
            "bits": planes,
            "plane": plane.reshape(-1),
            "sign": sign.reshape(-1),
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        }
    }


def stimulus(config: "BitSerialDotConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths and widths, with restarts, also inside of planes.

    The largest sums come first: ``max_k`` weights of extremes, as far as ``transfers`` go.
    """
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    acts = rng.integers(low, high + 1, (transfers, config.lanes))
    bits = rng.integers(0, 2, (transfers, config.lanes))
    plane, sign = rng.integers(0, 2, (2, transfers))
    framing = marks(rng, transfers)
    framing["last"][:-1] &= rng.integers(0, 4, transfers - 1) == 0  # runs of many planes

    tiles, at = config.max_k // config.lanes, 0
    top = 0 if config.order == "msb" else config.max_bits - 1
    # Bits of all weights, and whether the top plane is subtracted: the most unsigned, the least
    # and the most in two's complement, and all planes subtracted.
    every = np.ones(config.max_bits, np.int64)
    only = (np.arange(config.max_bits) == top).astype(np.int64)
    corners = [(low, every, 0 * every), (high, every, 0 * every), (low, only, only)]
    corners += [(high, only, only), (high, 1 - only, only), (low, every, every)]
    for number, (act, planes, signs) in enumerate(corners):
        count = max(1, min(tiles, (1 + transfers // 8) // config.max_bits))
        run = one(framing, at, count * config.max_bits, first=number % 2)
        index = (np.arange(run.start, run.stop) - run.start) // count
        acts[run], bits[run] = act, planes[index, None]
        plane[run] = np.arange(run.stop - run.start) % count == 0
        sign[run] = signs[index]
        at = run.stop
    number = so_far(plane, framing)
    framing["last"] |= number >= config.max_bits - 1 + (np.arange(transfers) < at)
    return {"i": {"acts": acts, "bits": bits, "plane": plane, "sign": sign, **framing}}


def golden(config: "BitSerialDotConfig", inputs: Streams) -> Streams:
    """Exact: every transfer times the power of two of its plane."""
    i = inputs["i"]
    terms = np.einsum("nk,nk->n", i["acts"].astype(np.int64), i["bits"].astype(np.int64))
    number = so_far(i["plane"], i) if config.order == "lsb" else to_come(i["plane"], i)
    terms = np.where(i["sign"] == 1, -terms, terms) << number
    return {"o": {"sum": wrapped(sums(terms, i), config.sum_width)}}


def cycles(config: "BitSerialDotConfig", inputs: Streams) -> int:
    """A transfer a cycle; then the latency of the last run."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency
