# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of dot products with dual-binary weights."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import bounds, marks, one, sums, wrapped
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.mac.fdb_dot import FdbDotConfig

Ints = NDArray[np.integer]


def planes(weights: NDArray, alpha1: NDArray, alpha2: NDArray) -> tuple[Ints, Ints]:
    """Bits ``b1`` and ``b2`` of real weights, from the definition of FDB.

    ``w_hat = alpha1 * b1 + alpha2 * b2``; scales that are broadcast against the weights.
    """
    b1 = weights - (alpha1 + alpha2) / 2 >= 0
    b2 = -(weights - alpha1 * b1 - alpha2 / 2) >= 0
    return b1.astype(np.int64), b2.astype(np.int64)


def product(
    config: "FdbDotConfig", acts: Ints, b1: Ints, b2: Ints, alpha1: Ints, alpha2: Ints
) -> Streams:
    """Transfers of matrix rows: ``b1``, ``b2`` (rows, groups, weights), scales (rows, groups).

    ``acts`` (groups, weights).  A group is filled up with zeros to whole transfers.
    """
    rows, groups, size = b1.shape
    count = -(-size // config.lanes)
    shape = (rows * groups * count, config.lanes)

    def tiled(values: Ints) -> Ints:
        return np.pad(values, ((0, 0), (0, 0), (0, count * config.lanes - size))).reshape(shape)

    ends, first, last = np.zeros((3, rows, groups, count), np.int64)
    ends[:, :, -1] = first[:, 0, 0] = last[:, -1, -1] = 1
    return {
        "i": {
            "acts": tiled(np.broadcast_to(acts, b1.shape)),
            "b1": tiled(b1),
            "b2": tiled(b2),
            "alpha1": np.repeat(alpha1, count),
            "alpha2": np.repeat(alpha2, count),
            "ends": ends.reshape(-1),
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        }
    }


def stimulus(config: "FdbDotConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs and groups of random lengths, with restarts, also inside of groups.

    The largest sums come first: ``max_k`` weights of extremes, as far as ``transfers`` go.
    """
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    least, most = -(1 << config.scale_width - 1), (1 << config.scale_width - 1) - 1
    acts = rng.integers(low, high + 1, (transfers, config.lanes))
    b1, b2 = rng.integers(0, 2, (2, transfers, config.lanes))
    alpha1, alpha2 = rng.integers(least, most + 1, (2, transfers))
    ends = rng.integers(0, 2, transfers)
    framing = marks(rng, transfers)

    group, at = config.max_group // config.lanes, 0
    length = min(config.max_k // config.lanes, 1 + transfers // 8)
    corners = [(low, least, least), (low, most, most), (high, least, least), (high, most, most)]
    corners += [(low, least, most), (high, most, least)]
    for number, (act, one_scale, other) in enumerate(corners):
        run = one(framing, at, length, first=number % 2)
        acts[run], b1[run], b2[run] = act, 1, 1
        alpha1[run], alpha2[run] = one_scale, other
        ends[run] = np.arange(run.start, run.stop) % group == (at + group - 1) % group
        at = run.stop
    return {
        "i": {
            "acts": acts,
            "b1": b1,
            "b2": b2,
            "alpha1": alpha1,
            "alpha2": alpha2,
            "ends": ends,
            **framing,
        }
    }


def golden(config: "FdbDotConfig", inputs: Streams) -> Streams:
    """Exact: the sum of each plane of a group, times its scale, summed over the groups."""
    i = inputs["i"]
    groups = {"first": i["first"], "last": i["ends"] | i["last"]}
    _, at = bounds(groups)
    scaled = np.zeros(len(i["last"]), np.int64)
    for bits, scale in (("b1", "alpha1"), ("b2", "alpha2")):
        chosen = np.einsum("nk,nk->n", i["acts"].astype(np.int64), i[bits].astype(np.int64))
        scaled[at] += i[scale][at] * wrapped(sums(chosen, groups), config.group_width)
    return {"o": {"sum": wrapped(sums(scaled, i), config.sum_width)}}


def cycles(config: "FdbDotConfig", inputs: Streams) -> int:
    """A transfer a cycle; then the latency of the last run."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency
