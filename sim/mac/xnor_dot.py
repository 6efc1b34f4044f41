# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of dot products of signs."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import bounds, marks, one, sums, wrapped
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.mac.xnor_dot import XnorDotConfig

Ints = NDArray[np.integer]


def signs(values: NDArray) -> Ints:
    """Bits of real values: 1 for those of at least zero."""
    return (values >= 0).astype(np.int64)


def product(config: "XnorDotConfig", acts: Ints, weights: Ints) -> Streams:
    """Transfers of rows of ``weights`` bits (rows, K) with the bits ``acts`` (K).

    K is a multiple of lanes, or there is ``mask``.
    """
    rows, size = weights.shape
    count = -(-size // config.lanes)

    def tiled(bits: Ints) -> Ints:
        wide = np.pad(
            np.broadcast_to(bits, weights.shape), ((0, 0), (0, count * config.lanes - size))
        )
        return wide.reshape(-1, config.lanes)

    first, last = np.zeros((2, rows, count), np.int64)
    first[:, 0] = last[:, -1] = 1
    mask: Transfers = {"mask": tiled(np.ones(size, np.int64))} if config.mask else {}
    return {
        "i": {
            "a": tiled(acts),
            "w": tiled(weights),
            **mask,
            **_thresholds(config, np.zeros((2, rows * count), np.int64)),
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        }
    }


def stimulus(config: "XnorDotConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths, with restarts, and thresholds near the sums.

    The largest sums come first: ``max_k`` lanes that are all equal or all different.
    """
    a, w, mask = rng.integers(0, 2, (3, transfers, config.lanes))
    framing = marks(rng, transfers)
    at = 0
    length = max(1, min(config.max_k // config.lanes, transfers // 8))
    for number, (bits, weights, valid) in enumerate([(1, 1, 1), (0, 0, 1), (1, 0, 1), (0, 1, 0)]):
        run = one(framing, at, length, first=number % 2)
        a[run], w[run], mask[run] = bits, weights, valid
        at = run.stop
    inputs: Transfers = {"a": a, "w": w, **({"mask": mask} if config.mask else {})}
    top = 1 << config.sum_width - 1
    near = np.zeros((2, transfers), np.int64)
    near[0] = rng.integers(-top, top, transfers)
    near[1] = rng.integers(0, 2, transfers)
    _, ends = bounds(framing)
    around = rng.integers(-2, 3, len(ends))  # a sum and what is beside it
    near[0, ends] = np.clip(_sums(config, {**inputs, **framing}) + around, -top, top - 1)
    return {"i": {**inputs, **_thresholds(config, near), **framing}}


def golden(config: "XnorDotConfig", inputs: Streams) -> Streams:
    """Exact sums of the products of signs, over the lanes that count."""
    i = inputs["i"]
    total = _sums(config, i)
    if not config.threshold:
        return {"o": {"sum": total}}
    _, ends = bounds(i)
    return {"o": {"sum": total, "bit": (total >= i["threshold"][ends]) ^ (i["flip"][ends] == 1)}}


def cycles(config: "XnorDotConfig", inputs: Streams) -> int:
    """A transfer a cycle; then the latency of the last run."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency


def _sums(config: "XnorDotConfig", i: Transfers) -> Ints:
    products = (2 * i["a"].astype(np.int64) - 1) * (2 * i["w"].astype(np.int64) - 1)
    if config.mask:
        products = products * i["mask"]
    return wrapped(sums(products.sum(axis=1), i), config.sum_width)


def _thresholds(config: "XnorDotConfig", values: Ints) -> Transfers:
    return {"threshold": values[0], "flip": values[1]} if config.threshold else {}
