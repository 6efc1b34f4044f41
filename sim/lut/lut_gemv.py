# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the table-lookup matrix-vector core."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._passes import bounds, joined, restarted, restarts, row_groups, runs
from ..types import Streams
from .table_builder import weights

if TYPE_CHECKING:
    from ...rtl.lut.lut_gemv import LutGemvConfig

Array = NDArray[np.integer]


def encoded(config: "LutGemvConfig", matrix: Array) -> Array:
    """Codes (..., groups) of weights (..., k_lanes), a tile's columns in the order they arrive.

    Weights that no code is of are refused with :class:`ValueError`.
    """
    known = (-1, 1) if config.code == "binary" else (-1, 0, 1)
    if (wrong := matrix[~np.isin(matrix, known)]).size:
        raise ValueError(f"{config.code} weights are {known}, not {wrong.flat[0]}")
    own = matrix.astype(np.int64)[..., columns(config)]
    k = np.arange(config.group)
    if config.code == "ternary":
        value = own @ 3 ** (config.group - 1 - k)
        if not config.half:
            return value + (3**config.group - 1) // 2
        return np.abs(value) | (value < 0).astype(np.int64) << config.index_width
    if not config.half:
        return (own > 0) @ (1 << k)
    leading = own[..., -1:]
    return (own * leading > 0)[..., :-1] @ (1 << k[:-1]) | (leading[..., 0] < 0) << (
        config.index_width
    )


def decoded(config: "LutGemvConfig", codes: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Weights (..., k_lanes) of codes (..., groups), none of wrong ones, and which are wrong."""
    patterns = weights(config.group, config.code, config.half)
    index = codes.astype(np.int64) & (1 << config.index_width) - 1
    wrong = index >= len(patterns)
    own = np.where(wrong[..., None], 0, patterns[np.where(wrong, 0, index)])
    if config.half:
        own = np.where((codes >> config.index_width & 1)[..., None] == 1, -own, own)
    matrix = np.zeros((*codes.shape[:-1], config.k_lanes), np.int64)
    matrix[..., columns(config)] = own
    return matrix, wrong


def columns(config: "LutGemvConfig") -> Array:
    """The columns of each group (groups, group) within a tile."""
    step = config.groups // config.share
    g, k = np.arange(config.groups)[:, None], np.arange(config.group)
    return (g // step) * config.group * step + g % step + k * step


def product(config: "LutGemvConfig", acts: Array, matrix: Array) -> Streams:
    """Transfers that multiply ``matrix`` (N, K) by ``acts`` (K): the host's side of the contract.

    K is filled up to whole tiles with activations of zero, N to a multiple of ``rows``.
    """
    rows, tiles = -(-len(matrix) // config.rows), -(-matrix.shape[1] // config.k_lanes)
    padded = np.ones((rows * config.rows, tiles * config.k_lanes), np.int64)
    if config.code == "ternary":
        padded[:] = 0
    padded[: len(matrix), : matrix.shape[1]] = matrix
    words = padded.reshape(rows, config.rows, tiles, config.k_lanes).swapaxes(1, 2)
    codes = encoded(config, words.reshape(-1, config.rows, config.k_lanes))
    vector = np.zeros(tiles * config.k_lanes, np.int64)
    vector[: len(acts)] = acts
    parts = tiles * config.parts
    return {
        "acts_i": {"acts": vector.reshape(parts, -1), **bounds(parts)},
        "weights_i": {"codes": codes, **bounds(len(codes))},
    }


def stimulus(config: "LutGemvConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Products of random shapes, with extremes, restarts on both streams, and wrong codes."""
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    made: list[Streams] = []
    steps = 0
    while steps < transfers:
        corner = len(made)
        tiles = int(rng.integers(1, config.max_tiles, endpoint=True))
        tiles = {0: config.max_tiles, 1: 1}.get(corner, min(tiles, 1 + transfers // 200))
        rows = int(rng.integers(1, 6)) if corner % 3 else int(rng.integers(20, 60))
        acts = rng.integers(low, high, tiles * config.k_lanes, endpoint=True)
        shape = (rows * config.rows, len(acts))
        trits = rng.integers(-1, 2, shape)
        if config.code == "binary":
            trits = 2 * rng.integers(0, 2, shape) - 1
        if corner < 6:
            acts[:] = (low, high)[corner % 2]
            trits[:] = (-1, 1, 0 if config.code == "ternary" else 1)[corner // 2]
        run = product(config, acts, trits)
        if corner % 4 == 2:  # any codes there can be
            codes = run["weights_i"]["codes"]
            rare = rng.integers(0, 4 * config.groups, codes.shape) == 0
            codes[rare] = rng.integers(0, 1 << config.code_width, rare.sum())
        if corner % 4 == 3:
            most = config.max_tiles * config.parts
            run["acts_i"] = restarted(run["acts_i"], rng, most)
        if corner % 5 == 4:
            run["weights_i"] = restarted(run["weights_i"], rng, rows * tiles)
        made.append(run)
        steps += rows * tiles
    return joined(made)


def golden(config: "LutGemvConfig", inputs: Streams) -> Streams:
    """Exact int32 sums and errors, in the order of the passes."""
    passes = iter(runs(inputs["weights_i"]))
    sums, errors, ends = [], [], []
    most = config.max_tiles * config.parts
    for vector in runs(inputs["acts_i"]):
        acts = vector["acts"][restarts(vector)[-1] :].astype(np.float64)
        if len(acts) > most:
            acts = np.concatenate([acts[: most - 1], acts[-1:]])
        acts = acts.reshape(-1, config.k_lanes)
        words = next(passes)
        segments = np.split(words["codes"], restarts(words)[1:])
        for codes, last in row_groups(segments, len(acts)):
            matrix, wrong = decoded(config, codes)
            # float64 is exact: |sum| < 2**31
            found = np.einsum("gtnk,tk->gn", matrix.astype(np.float64), acts, optimize=True)
            sums.append(found)
            errors.append(wrong.any(axis=(1, 3)))
            ends.append(last)
    error = {"error": np.concatenate(errors).astype(np.int64)} if config.checked else {}
    return {
        "o": {
            "sums": np.concatenate(sums).astype(np.int64),
            **error,
            "last": np.concatenate(ends),
        }
    }


def cycles(config: "LutGemvConfig", inputs: Streams) -> int:
    """A vector loads, its tables are built, its pass takes a word of codes per cycle.

    Each waits for the same of the vector before, and for room: there are two of everything.
    """
    passes = iter(runs(inputs["weights_i"]))
    loaded, built, ended = 0, [0, 0], [0, 0]
    memories = config.table != "registers"
    for vector in runs(inputs["acts_i"]):
        transfers = len(vector["last"])
        loaded = max(loaded, (built if memories else ended)[-2]) + transfers
        ready = loaded
        if memories:
            length = min(transfers - restarts(vector)[-1], config.max_tiles * config.parts)
            tiles = -(-length // config.parts)
            built.append(max(loaded, built[-1], ended[-2]) + tiles * config.build)
            ready = built[-1] + config.build_latency
        ended.append(max(ready, ended[-1]) + len(next(passes)["last"]))
    return ended[-1] + config.latency
