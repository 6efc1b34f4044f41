# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the ternary matrix-vector core."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._passes import bounds, joined, restarted, restarts, row_groups, runs
from .._ternary import CODES, VALUES
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.mac.ternary_gemv import TernaryGemvConfig

Array = NDArray[np.integer]


def product(config: "TernaryGemvConfig", acts: Array, trits: Array, load: bool = True) -> Streams:
    """Transfers that multiply ``trits`` (N, K) by ``acts`` (K): the host's side of the contract.

    K and N are filled up with zeros to multiples of ``k_lanes`` and ``n_lanes``.  Without ``load``
    the weights kept by the core are used and none are sent.
    """
    rows, columns = (-(-n // lanes) for n, lanes in zip(trits.shape, _lanes(config), strict=True))
    padded = np.zeros((rows * config.n_lanes, columns * config.k_lanes), np.int64)
    padded[: trits.shape[0], : trits.shape[1]] = trits
    words = CODES[padded].reshape(rows, config.n_lanes, columns, config.k_lanes)
    vector = np.zeros(columns * config.k_lanes, np.int64)
    vector[: len(acts)] = acts
    acts_i = {"acts": vector.reshape(columns, config.k_lanes), **bounds(columns)}
    if config.resident:
        acts_i["load"] = np.full(columns, int(load))
    weights = words.transpose(0, 2, 1, 3).reshape(-1, config.n_lanes, config.k_lanes)
    count = rows * columns if load else 0
    return {"acts_i": acts_i, "weights_i": {"weights": weights[:count], **bounds(count)}}


def stimulus(config: "TernaryGemvConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Products of random shapes, with extremes, restarts on both streams, and replays."""
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    made: list[Streams] = []
    steps = tiles = rows = 0
    while steps < transfers:
        corner = len(made)
        keep = config.resident and corner % 3 > 0 and steps > 0
        if not keep:
            tiles = int(rng.integers(1, config.max_tiles, endpoint=True))
            tiles = {0: config.max_tiles, 1: 1}.get(corner, min(tiles, 1 + transfers // 200))
            rows = int(rng.integers(1, 6))
            if config.resident:
                rows = max(1, min(rows, config.weight_words // tiles))
        acts = rng.integers(low, high, tiles * config.k_lanes, endpoint=True)
        trits = rng.integers(-1, 2, (rows * config.n_lanes, len(acts)))
        if corner < 6:
            acts[:] = (low, high)[corner % 2]
            trits[:] = (-1, 1, 0)[corner // 2]
        run = product(config, acts, trits, load=not keep)
        if corner % 4 == 3:
            run["acts_i"] = restarted(run["acts_i"], rng, config.max_tiles)
        if corner % 5 == 4 and not keep:
            run["weights_i"] = restarted(run["weights_i"], rng, rows * tiles)
        made.append(run)
        steps += rows * tiles
    return joined(made)


def golden(config: "TernaryGemvConfig", inputs: Streams) -> Streams:
    """Exact int32 sums, in the order of the passes."""
    passes = iter(runs(inputs["weights_i"]))
    kept: Array = np.zeros((0, *_lanes(config)), np.int64)
    sums, ends = [], []
    for vector in runs(inputs["acts_i"]):
        start = restarts(vector)[-1]
        acts = vector["acts"][start:].astype(np.float64)
        if len(acts) > config.max_tiles:
            acts = np.concatenate([acts[: config.max_tiles - 1], acts[-1:]])
        if config.resident and not vector["load"][-1]:
            segments = [kept]
        else:
            weights = next(passes)
            segments = np.split(weights["weights"], restarts(weights)[1:])
            kept = segments[-1]
        for words, last in row_groups(segments, len(acts)):
            # float64 is exact: |sum| < 2**31
            blocks = VALUES[words].astype(np.float64)
            sums.append(np.einsum("gtnk,tk->gn", blocks, acts, optimize=True))
            ends.append(last)
    return {
        "o": {
            "sums": np.concatenate(sums).astype(np.int64),
            "last": np.concatenate(ends),
        }
    }


def cycles(config: "TernaryGemvConfig", inputs: Streams) -> int:
    """Vectors load while their predecessor is multiplied; a word of weights per cycle."""
    passes = iter(runs(inputs["weights_i"]))
    load_end, ends, kept = 0, [0, 0], 0
    for vector in runs(inputs["acts_i"]):
        load_end = max(load_end, ends[-2]) + len(vector["last"])
        if not config.resident or vector["load"][-1]:
            weights = next(passes)
            words, kept = len(weights["last"]), len(weights["last"]) - restarts(weights)[-1]
        else:
            words = kept
        ends.append(max(load_end, ends[-1]) + words)
    return ends[-1] + config.latency


def _lanes(config: "TernaryGemvConfig") -> tuple[int, int]:
    return config.n_lanes, config.k_lanes
