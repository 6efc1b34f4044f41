# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of dot products with sliced weights."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import marks, one, sums, wrapped
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.mac.bit_slice_dot import BitSliceDotConfig

Ints = NDArray[np.integer]
LOWER, UPPER, CENTRE = 0, 1, 2


def slices(config: "BitSliceDotConfig", weights: Ints) -> tuple[Ints, Ints]:
    """Upper and lower slices of signed weights, as they are stored: codes without sign."""
    return weights >> config.low & (1 << config.split) - 1, weights & (1 << config.low) - 1


def values(config: "BitSliceDotConfig", codes: Ints, part: Ints) -> Ints:
    """What each slice stands for, by its part."""
    upper = wrapped(codes, config.split)
    centre = (2 * upper + 1) << config.low - 1
    return np.where(part == LOWER, codes, np.where(part == UPPER, upper << config.low, centre))


def product(config: "BitSliceDotConfig", acts: Ints, weights: Ints, parts: list[int]) -> Streams:
    """Transfers of rows of ``weights`` (rows, K) times ``acts``: each tile once for each part.

    ``[UPPER, LOWER]`` is the exact product, ``[UPPER]`` and ``[CENTRE]`` are drafts.
    """
    rows, size = weights.shape
    count = -(-size // config.lanes)
    pad = count * config.lanes - size
    tiles = np.pad(acts, (0, pad)).reshape(1, count, 1, config.lanes)
    words = np.pad(weights, ((0, 0), (0, pad))).reshape(rows, count, 1, config.lanes)
    upper, lower = slices(config, words)
    codes = np.concatenate([lower if part == LOWER else upper for part in parts], axis=2)
    first, last = np.zeros((2, rows, count, len(parts)), np.int64)
    first[:, 0, 0] = last[:, -1, -1] = 1
    return {
        "i": {
            "acts": np.broadcast_to(tiles, codes.shape).reshape(-1, config.lanes),
            "slices": codes.reshape(-1, config.lanes),
            "part": np.broadcast_to(np.array(parts), codes.shape[:3]).reshape(-1).copy(),
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        }
    }


def stimulus(config: "BitSliceDotConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths and parts, with restarts.

    The largest sums come first: ``max_k`` weights of extremes, as far as ``transfers`` go.
    """
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    least, most = 1 << config.split - 1, (1 << config.split - 1) - 1
    acts = rng.integers(low, high + 1, (transfers, config.lanes))
    codes = rng.integers(0, 1 << config.split, (transfers, config.lanes))
    part = rng.integers(0, 3 if config.augment else 2, transfers)
    framing = marks(rng, transfers)

    tiles, at = config.max_k // config.lanes, 0
    # Activation with the upper and with the lower slice; codes; whether it is a draft.  The first
    # two are as far as sums go: activations that change with the slice.
    every = (1 << config.split) - 1
    corners = [((low, high), (least, every), False), ((high, low), (least, every), False)]
    corners += [((low, low), (least, every), False), ((low, low), (most, every), False)]
    corners += [((low,), (least,), True), ((low,), (most,), True), ((high,), (least,), True)]
    for number, (values, words, draft) in enumerate(corners[: 4 + 3 * config.augment]):
        each = len(values)
        length = each * max(1, min(tiles, (1 + transfers // 12) // each))
        run = one(framing, at, length, first=number % 2)
        which = np.arange(run.stop - run.start) % each
        acts[run] = np.array(values)[which, None]
        codes[run] = np.array(words)[which, None]
        part[run] = CENTRE if draft else np.array([UPPER, LOWER])[which]
        at = run.stop
    return {"i": {"acts": acts, "slices": codes, "part": part, **framing}}


def golden(config: "BitSliceDotConfig", inputs: Streams) -> Streams:
    """Exact sums of the activations times what their slices stand for."""
    i = inputs["i"]
    weights = values(config, i["slices"].astype(np.int64), i["part"][:, None])
    terms = np.einsum("nk,nk->n", i["acts"].astype(np.int64), weights)
    return {"o": {"sum": wrapped(sums(terms, i), config.sum_width)}}


def cycles(config: "BitSliceDotConfig", inputs: Streams) -> int:
    """A transfer a cycle; then the latency of the last run."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency
