# SPDX-License-Identifier: Apache-2.0
"""Golden model of Leading One Prediction, for one query and for many at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._fixed import Ints, bit_length
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.kv.lop_select import LopSelectConfig


def leading_ones(codes: Ints, code_width: int = 8) -> Ints:
    """Leading-one codes: the sign on top of the leading one's index plus one, 0 for 0.

    The most negative code counts as the one above it.
    """
    magnitude = np.minimum(np.abs(codes), (1 << code_width - 1) - 1)
    return bit_length(magnitude) | (codes < 0).astype(np.int64) << (code_width - 1).bit_length()


def powers(codes: Ints, code_width: int = 8) -> Ints:
    """Codes rounded towards zero to powers of two."""
    length = leading_ones(np.abs(codes), code_width)
    return np.sign(codes) * (np.int64(1) << length >> 1)


def buckets(scores: Ints, detail: int) -> Ints:
    """The class of each score by sign, leading one and ``detail`` bits below; rises with it."""
    size = np.abs(scores)
    leads = bit_length(size) - 1
    below = (size << detail >> np.maximum(leads, 0)) - (1 << detail)
    return np.sign(scores) * (np.where(size == 0, 0, (leads << detail) + below) + 1)


def select(
    queries: Ints,
    keys: Ints,
    keep: int,
    recent: int = 1,
    newest: Ints | None = None,
    *,
    detail: int = 1,
    code_width: int = 8,
) -> NDArray[np.bool_]:
    """Which tokens each query attends to: a mask (..., query, token).

    ``queries`` (..., query, element) and ``keys`` (..., token, element) are codes, other axes
    broadcast; ``newest`` is the index of the newest token of each query, by default the last one.
    Each gets the ``recent`` newest tokens and, up to ``keep`` in all, older ones by falling bucket
    of their score, the oldest first in a bucket.
    """
    tokens = keys.shape[-2]
    last = np.full(queries.shape[-2], tokens - 1) if newest is None else newest
    # Sums of powers of two stay far below 2**53.
    rounded = [powers(part, code_width).astype(np.float64) for part in (queries, keys)]
    scores = (rounded[0] @ rounded[1].swapaxes(-1, -2)).astype(np.int64)
    index = np.arange(tokens)
    age = last[:, None] - index
    old = age >= recent
    order = np.where(old, index - buckets(scores, detail) * tokens, np.iinfo(np.int64).max)
    rank = np.empty_like(order)
    np.put_along_axis(rank, np.argsort(order, axis=-1), index, axis=-1)
    return np.where(old, rank < max(keep - recent, 0), age >= 0)


def stimulus(config: LopSelectConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Heads with all numbers of tokens; codes of all sizes, many zeros, equal scores, extremes."""
    most = min(config.context, max(transfers // 4, 2))
    # A head of few tokens costs a walk all the same: enough of them, not more.
    some = rng.integers(0, most + 1, transfers)
    some[rng.random(transfers) < 0.3] = most
    counts = np.minimum(np.append([config.recent, 0, 1, most, config.recent + 1], some), most)
    old = np.maximum(counts - config.recent, 0)
    heads = int(np.searchsorted(np.cumsum(old), transfers)) + 1
    counts, old = counts[:heads], old[:heads]
    limit = (1 << config.count_width) - 1
    keep = np.minimum(rng.integers(0, 2 * np.maximum(counts, 1)), limit)
    keep[rng.random(heads) < 0.1] = limit
    queries = _codes(config, rng, heads)
    keys = _codes(config, rng, int(old.sum()))
    keys[rng.random(len(keys)) < 0.05] = 0
    same = np.flatnonzero(rng.random(len(keys)) < 0.3)[1:]
    keys[same] = keys[same - 1]
    return {
        "query_i": {"codes": queries.reshape(-1, config.lanes)},
        "op_i": {"count": counts, "keep": keep},
        "key_i": {"leads": leading_ones(keys, config.code_width)},
    }


def _codes(config: LopSelectConfig, rng: np.random.Generator, count: int) -> Ints:
    low = -(1 << config.code_width - 1)
    size = 1 << rng.integers(0, config.code_width, (count, 1))
    codes = np.clip(rng.integers(-size, size + 1, (count, config.head_dim)), low, -low - 1)
    extreme = rng.random(count) < 0.1
    signs = rng.choice([low, -low - 1], (count, 1))
    return np.where(extreme[:, None], signs, codes)


def golden(config: LopSelectConfig, inputs: Streams) -> Streams:
    """The tokens chosen for each query."""
    op = inputs["op_i"]
    queries = inputs["query_i"]["codes"].reshape(-1, config.head_dim)
    leads = inputs["key_i"]["leads"]
    sign = leads >> config.one_width
    keys = (1 - 2 * sign) * (np.int64(1) << (leads & (1 << config.one_width) - 1) >> 1)
    ends = np.cumsum(_old(config, op["count"]))
    tokens, lasts = [], []
    for query, count, keep, end in zip(queries, op["count"], op["keep"], ends, strict=True):
        own = np.zeros((count, config.head_dim), np.int64)
        old = max(count - config.recent, 0)
        own[:old] = keys[end - old : end]
        mask = select(
            query[None],
            own,
            keep,
            config.recent,
            detail=config.detail,
            code_width=config.code_width,
        )
        chosen = np.flatnonzero(mask[0])
        tokens.append(chosen)
        lasts.append(np.arange(len(chosen)) == len(chosen) - 1)
    return {"o": {"token": np.concatenate(tokens), "last": np.concatenate(lasts)}}


def cycles(config: LopSelectConfig, inputs: Streams) -> int:
    """First passes one after the other, second passes one after the other, two banks between."""
    counts = inputs["op_i"]["count"].tolist()
    ends = [end for _, end in passes(config, [(count, 0) for count in counts], config.buckets)]
    return max((end for end, count in zip(ends, counts, strict=True) if count), default=0)


def passes(
    config: LopSelectConfig, queries: Iterable[tuple[int, int]], cleared: int = 0
) -> Iterator[tuple[int, int]]:
    """When the second pass of each query begins to choose, and when it has ended.

    ``queries`` are counts of tokens, and the edge at which the query's first row is offered at the
    latest; histograms are clear from ``cleared`` on.
    """
    done = [cleared] * 2  # edge at which each bank was last free
    free = begun = walked = 0
    for head, (count, offered) in enumerate(queries):
        loaded = max(begun, offered) + config.rows
        begun = max(free, loaded, done[head % 2]) + 1
        free = begun + max(count - config.recent, 0)
        started = max(free + config.count_latency, walked) + 1
        threshold = started + config.buckets + 1
        walked = done[head % 2] = threshold + (count + 3 if count else 1)
        yield threshold, walked


def _old(config: LopSelectConfig, counts: Ints) -> Ints:
    return np.maximum(counts - config.recent, 0)
