# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of products of bipolar integers."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import bounds, marks, one, sums, to_come, wrapped
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.mac.bipolar_gemm import BipolarGemmConfig

Ints = NDArray[np.integer]
TERNARY = np.zeros(2, np.int64)
"""What the planes of ternary weights count, as powers of two: both 1."""


def planes(values: Ints, bits: int) -> Ints:
    """Planes of odd integers, the lowest first: ``value = 2 * u - (2**bits - 1)``."""
    codes = values + (1 << bits) - 1 >> 1
    return np.stack([codes >> n & 1 for n in range(bits)])


def ternary_planes(trits: Ints) -> Ints:
    """Two planes that count the same: -1 is 00, 0 is 01, +1 is 11."""
    return np.stack([trits >= 0, trits > 0]).astype(np.int64)


def product(
    config: "BipolarGemmConfig",
    w: Ints,
    x: Ints,
    w_powers: Ints | None = None,
    x_powers: Ints | None = None,
    halve: int = 0,
) -> Streams:
    """Transfers of planes ``w`` (planes, M, K) times ``x`` (planes, N, K), a run for each block.

    Plane ``n`` counts ``2**powers[n]``, by default ``2**n``.  Rows and columns are filled up to
    whole blocks with any values, and K with padding.
    """
    w_powers = np.arange(len(w)) if w_powers is None else w_powers
    x_powers = np.arange(len(x)) if x_powers is None else x_powers
    pairs = [(i, j) for i in range(len(w)) for j in range(len(x))]
    pairs.sort(key=lambda pair: -(w_powers[pair[0]] + x_powers[pair[1]]))
    weights = [w_powers[i] + x_powers[j] for i, j in pairs]
    size, tiles = w.shape[-1], -(-w.shape[-1] // config.lanes)

    def blocks(bits: Ints, height: int) -> Ints:
        """(planes, blocks, tiles, height, lanes)"""
        pad = (-bits.shape[1] % height, tiles * config.lanes - size)
        wide = np.pad(bits, ((0, 0), (0, pad[0]), (0, pad[1])))
        shape = (len(bits), wide.shape[1] // height, height, tiles, config.lanes)
        return wide.reshape(shape).swapaxes(2, 3)

    ws, xs = blocks(w, config.rows), blocks(x, config.columns)
    shape = (ws.shape[1], xs.shape[1], len(pairs), tiles)
    rows = np.stack([ws[i] for i, _ in pairs], axis=1)[:, None]
    columns = np.stack([xs[j] for _, j in pairs], axis=1)[None]
    count, double, half, first, last = np.zeros((5, *shape), np.int64)
    count[:] = np.minimum(config.lanes, size - config.lanes * np.arange(tiles))
    double[:, :, :, 0] = -np.diff(weights, prepend=weights[0])
    half[:], first[:, :, 0, 0], last[:, :, -1, -1] = halve, 1, 1
    halves: Transfers = {"halve": half.reshape(-1)} if config.ternary else {}
    return {
        "i": {
            "w": np.broadcast_to(rows, (*shape, *rows.shape[-2:])).reshape(-1, *rows.shape[-2:]),
            "x": np.broadcast_to(columns, (*shape, *columns.shape[-2:])).reshape(
                -1, *columns.shape[-2:]
            ),
            "count": count.reshape(-1),
            "double": double.reshape(-1),
            **halves,
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        }
    }


def stimulus(config: "BipolarGemmConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths, with restarts, padding and doublings anywhere.

    The largest sums come first: ``max_k`` products of the largest values, as far as ``transfers``
    go, of both signs.
    """
    w = rng.integers(0, 2, (transfers, config.rows, config.lanes))
    x = rng.integers(0, 2, (transfers, config.columns, config.lanes))
    count = rng.integers(0, config.lanes + 1, transfers)
    count[rng.integers(0, 2, transfers) == 0] = config.lanes
    double, halve = rng.integers(0, 2, (2, transfers))
    framing = marks(rng, transfers)

    diagonals = config.w_bits + config.x_bits - 1
    pairs = np.minimum(np.arange(diagonals) + 1, min(config.w_bits, config.x_bits))
    pairs = np.minimum(pairs, pairs[::-1])  # pairs of planes that count the same
    at = 0
    each = int(pairs.sum())
    for number, (bits, other, most) in enumerate([(0, 0, 4), (1, 0, 4), (0, 1, 40), (1, 1, 40)]):
        tiles = max(1, min(config.max_k // config.lanes, transfers // most // each))
        run = one(framing, at, tiles * each, first=number % 2)
        w[run], x[run], count[run] = bits, other, config.lanes
        ends = np.cumsum(pairs[:-1]) * tiles
        double[run] = np.isin(np.arange(run.stop - run.start), ends)
        halve[run] = number // 2
        at = run.stop
    padding = np.arange(config.lanes) >= count[:, None, None]
    level = rng.integers(0, 2, (transfers, 1, 1))
    w, x = np.where(padding, level, w), np.where(padding, level, x)
    halves: Transfers = {"halve": halve} if config.ternary else {}
    return {"i": {"w": w, "x": x, "count": count, "double": double, **halves, **framing}}


def golden(config: "BipolarGemmConfig", inputs: Streams) -> Streams:
    """Exact: products of signs in the lanes that count, times two for every doubling to come."""
    i = inputs["i"]
    valid = np.arange(config.lanes) < i["count"][:, None, None]
    w, x = ((2 * i[name].astype(np.int64) - 1) * valid for name in ("w", "x"))
    power = to_come(i["double"], i)
    factor = np.where(power < config.sum_width, 1 << np.minimum(power, config.sum_width), 0)
    terms = np.einsum("tmk,tnk->tmn", w, x) * factor[:, None, None]
    total = wrapped(sums(terms, i), config.sum_width)
    if config.ternary:
        total = total >> i["halve"][bounds(i)[1], None, None]
    return {"o": {"sums": total}}


def cycles(config: "BipolarGemmConfig", inputs: Streams) -> int:
    """A transfer a cycle; then the latency of the last run."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency
