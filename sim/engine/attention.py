# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...rtl.engine._constants import mix_scale, score_scale
from .._fixed import Ints, bit_length, normalise, product, quotient, requantise, saturate
from ..types import Streams, Transfers
from ..vector.softmax import CHANCE_BITS, SHIFT_TOP, Runs, Softmax, Steps, totals

if TYPE_CHECKING:
    from ...rtl.engine.attention import AttentionConfig


@dataclass(frozen=True, eq=False)
class Pairs:
    """What operations amount to: a row for each pair, and for each that has none but does a thing.

    ``op`` is the operation of each, ``query`` the number of the query it meets.
    """

    op: Ints
    context: Ints
    query: Ints
    first: NDArray[np.bool_]
    last: NDArray[np.bool_]
    skip: NDArray[np.bool_]

    @classmethod
    def of(cls, ops: Transfers) -> Pairs:
        opens, closes = ops["opens"].astype(bool), ops["closes"].astype(bool)
        entries = np.where((ops["count"] == 0) & (opens | closes), 1, ops["count"])
        op = np.repeat(np.arange(len(entries)), entries)
        starts = np.cumsum(entries) - entries
        place = np.arange(len(op)) - starts[op]
        queries, held = np.zeros(len(entries), np.int64), {}
        number = -1
        for index, (context, opening) in enumerate(
            zip(ops["context"].tolist(), opens, strict=True)
        ):
            if opening:
                number += 1
                held[context] = number
            queries[index] = held.get(context, 0)
        return cls(
            op=op,
            context=ops["context"][op],
            query=queries[op],
            first=opens[op] & (place == 0),
            last=closes[op] & (place == entries[op] - 1),
            skip=ops["count"][op] == 0,
        )


class Mixing(NamedTuple):
    """Both softmax steps of every pair, as tables with a row for each run of a context."""

    runs: Runs
    chances: Steps
    weights: Steps


def top_of(config: AttentionConfig) -> int:
    return (1 << config.code_width - 1) - 1


def scores(config: AttentionConfig, pairs: Pairs, inputs: Streams) -> Ints:
    """One for each pair; 0 where there is none."""
    rows = config.head_dim // config.lanes
    queries = inputs["query_i"]["codes"].astype(np.int64)
    queries = queries[: len(queries) // rows * rows].reshape(-1, config.head_dim)
    real = ~pairs.skip
    query = pairs.query[real]
    keys = inputs["key_i"]["codes"][: len(query)].astype(np.float64)
    # Exact: |dot| is far below 2**53.
    dots = np.einsum("pn,pn->p", queries.astype(np.float64)[query], keys).astype(np.int64)
    fixed = score_scale(
        config.head_dim, top_of(config), config.score_fraction, config.activation_fraction
    )
    mantissa, shift = product(normalise(inputs["query_scale_i"]["peak"]), fixed)
    values = dots * inputs["key_i"]["scale"][: len(query)]
    result = np.zeros(len(real), np.int64)
    result[real] = saturate(requantise(values, mantissa[query], shift[query]), config.score_width)
    return result


def mixing(config: AttentionConfig, pairs: Pairs, inputs: Streams) -> Mixing:
    softmax = Softmax.of(config.score_fraction, config.weight_bits)
    score = scores(config, pairs, inputs)
    level = score.copy()
    level[~pairs.skip] += inputs["value_i"]["scale"][: np.count_nonzero(~pairs.skip)]
    runs = Runs(pairs.context, pairs.first)
    seen = runs.table(~pairs.skip).astype(bool)
    return Mixing(
        runs,
        softmax.chance_steps(runs.table(score), seen),
        softmax.weight_steps(runs.table(level), seen),
    )


def golden(config: AttentionConfig, inputs: Streams) -> Streams:
    """All results, in the order of closing."""
    pairs = Pairs.of(inputs["op_i"])
    runs, chances, weights = mixing(config, pairs, inputs)
    codes = np.zeros((len(pairs.op), config.head_dim), np.int64)
    codes[~pairs.skip] = inputs["value_i"]["codes"][: np.count_nonzero(~pairs.skip)]
    values = runs.table(codes)
    sums = np.zeros((len(values), config.head_dim), np.int64)
    after = np.zeros_like(values)
    for token in range(values.shape[1]):
        moved = np.minimum(weights.moved[:, token], 62)[:, None]
        sums = (sums >> moved) + weights.term[:, token, None] * values[:, token]
        after[:, token] = sums
    at = runs.row[pairs.last], runs.column[pairs.last]
    scale = mix_scale(top_of(config), config.weight_bits, CHANCE_BITS)
    total = np.maximum(totals(chances)[at], 1)
    mantissa, shift = quotient(scale, normalise(total))
    shift = shift + chances.octave[at] - weights.octave[at]
    out = saturate(requantise(after[at], mantissa[:, None], shift[:, None]), config.out_width)
    rows = config.head_dim // config.lanes
    row = np.tile(np.arange(rows), len(out))
    return {
        "o": {
            "x": out.reshape(-1, config.lanes),
            "first": (row == 0).astype(int),
            "last": (row == rows - 1).astype(int),
        }
    }


def stimulus(config: AttentionConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Texts of several heads: old tokens first, all at once, piece by piece, or none at all."""
    ops: list[tuple[int, int, bool]] = []  # context, count, closes
    pairs = texts = 0
    while pairs < transfers:
        kind, texts = texts % 4, texts + 1
        heads = config.heads if kind < 2 else int(rng.integers(1, config.heads + 1))
        most = config.max_tokens if kind == 0 else int(rng.integers(1, config.max_tokens + 1))
        most = min(most, max(2, transfers // (4 * heads)))
        contexts = np.arange(heads) if kind == 0 else rng.permutation(config.heads)[:heads]
        left = dict.fromkeys(contexts.tolist(), most) if kind == 0 else {}
        if kind == 0:  # as the engine does it
            ops += [(context, most - 1, False) for context in left]
            ops += [(context, 1, True) for context in left]
        else:
            left = {context: int(rng.integers(0, most + 1)) for context in contexts.tolist()}
        pairs += sum(left.values())
        if kind == 1:
            ops += [(context, count, True) for context, count in left.items()]
        while kind > 1 and left:
            context = int(rng.choice(list(left)))
            count = int(rng.integers(0, min(left[context], 2 if kind == 3 else most) + 1))
            left[context] -= count
            closes = left[context] == 0 and rng.random() < 0.7
            ops.append((context, count, closes))
            if closes:
                del left[context]
    return _filled(config, rng, _framed(ops))


def _framed(ops: list[tuple[int, int, bool]]) -> Transfers:
    """Operations with ``opens`` where a context is not open."""
    active: set[int] = set()
    opens = []
    for context, _, closes in ops:
        opens.append(context not in active)
        (active.discard if closes else active.add)(context)
    context, count, closes = (np.array(column) for column in zip(*ops, strict=True))
    return {
        "context": context,
        "count": count,
        "opens": np.array(opens).astype(int),
        "closes": closes.astype(int),
    }


def _filled(config: AttentionConfig, rng: np.random.Generator, ops: Transfers) -> Streams:
    """Queries, keys and values for ``ops``: random, small, extreme, and rising scores."""
    low, top = -(1 << config.code_width - 1), top_of(config)
    count, queries = int(ops["count"].sum()), int(ops["opens"].sum())
    rows = config.head_dim // config.lanes
    pairs = Pairs.of(ops)
    query_of = pairs.query[~pairs.skip]

    def codes(number: int) -> Ints:
        values = rng.integers(low, top + 1, (number, config.head_dim))
        extreme = rng.choice([low, top, 0], (number, config.head_dim))
        return np.where(rng.random((number, 1)) < 0.1, extreme, values)

    def peaks(number: int) -> Ints:
        bits = rng.integers(0, config.key_scale_width + 1, number)
        values = rng.integers((1 << bits) >> 1, np.int64(1) << bits)
        ends = rng.choice([0, 1, (1 << config.key_scale_width) - 1], number)
        return np.where(rng.random(number) < 0.15, ends, values)

    query, key, value = codes(queries), codes(count), codes(count)
    # Half of all keys lie along their query or against it, so that scores are large.
    sign = rng.choice([-1, 1], (count, 1))
    along = np.clip(sign * query[query_of], low, top)
    key = np.where(rng.random((count, 1)) < 0.5, along, key)
    steady = rng.random(queries) < 0.5  # keys of one size: as in a model
    key_peak = np.where(steady[query_of], (1 << config.key_scale_width) // 3, peaks(count))
    logs = rng.integers(0, config.value_log_top + 1, count)
    ends = rng.choice([0, config.value_log_top], count)
    logs = np.where(rng.random(count) < 0.2, ends, logs)
    logs = np.where(rng.random(queries)[query_of] < 0.6, config.value_log_top // 2, logs)
    return {
        "query_i": {"codes": query.reshape(queries * rows, config.lanes)},
        "query_scale_i": {"peak": peaks(queries)},
        "op_i": ops,
        "key_i": {"codes": key, "scale": key_peak},
        "value_i": {"codes": value, "scale": logs},
    }


def cycles(config: AttentionConfig, inputs: Streams) -> int:
    """Cycles until the last result has left, nobody stalling; ``docs/blocks`` has the rules."""
    ops = inputs["op_i"]
    pairs = Pairs.of(ops)
    runs, chances, weights = mixing(config, pairs, inputs)
    shifts = np.minimum(runs.tokens(weights.moved), SHIFT_TOP).tolist()
    width = max(config.online.total_width, 17)
    zeros = width - bit_length(runs.tokens(totals(chances)))
    divides = np.where(zeros == width, 0, zeros).tolist()
    loads = _loads(config, inputs["query_scale_i"]["peak"])
    # Operations that do nothing take a cycle too.
    idle = (ops["count"] == 0) & (ops["opens"] == 0) & (ops["closes"] == 0)
    issue_gap = np.diff(np.cumsum(np.append(0, idle))[pairs.op], prepend=0).tolist()

    rows, ahead, closings = config.head_dim // config.lanes, config.ahead, config.closings
    loaded: list[int] = []  # cycle in which a query can first be met
    released: list[int] = []  # by query, cycle in which it was met last
    issued, left, taken = [], [], []  # cycles: of beginning, of leaving the queue, of being added
    scale: list[int] = []  # by closing, cycle in which its scale is there
    drained: list[int] = []  # by closing, cycle in which that was taken
    context, clean, ending = -1, False, False
    out = 0
    contexts = pairs.context.tolist()
    for index, (first, last, query) in enumerate(
        zip(pairs.first.tolist(), pairs.last.tolist(), pairs.query.tolist(), strict=True)
    ):
        begin = (issued[-1] if issued else 0) + 1 + issue_gap[index]
        if first:
            while len(loaded) <= query:
                number = len(loaded)
                free = loaded[-1] if loaded else 0
                if number >= config.heads:
                    free = max(free, released[number - config.heads] + 1)
                loaded.append(free + max(loads[number], rows) + 1)
            released += [0] * (query + 1 - len(released))
        begin = max(begin, loaded[query])
        if index >= ahead:
            begin = max(begin, left[index - ahead] + 2)
        if last:
            number = len(scale)
            if number >= closings:
                begin = max(begin, drained[number - closings] + 1)
            released[query] = begin
        issued.append(begin)
        seen = begin + config.score_latency + 2  # as the oldest score that waits
        leave = max(seen, left[-1] + 1 if left else 0)
        if index >= 6:
            leave = max(leave, taken[index - 6] + 1)
        left.append(leave)

        # The turn that the pair before asks for, then those that this one needs.
        at = taken[-1] + 1 if taken else 0
        offered = max(leave + 5, at)
        seen += 1  # by the sums
        if ending:
            start = max(at, scale[-1])
            drained.append(start)
            end = start + rows
            out = end
            context = -1
            if seen <= start:
                context, clean = contexts[index], first
            free, at = end, end + 1
        else:
            free = at
        if context != contexts[index] or (first and not clean):
            context = contexts[index]
            free = max(at, seen) + rows
        accept = max(offered, free) + max(shifts[index] - 1, 0)
        taken.append(accept)
        clean, ending = False, last
        if last:
            there = begin + config.score_latency + 4 + 1
            start = max(there, scale[-2] if len(scale) > 1 else 0)
            made = start + divides[index] + 21 + 1
            scale.append(max(made, scale[-1] + 1 if scale else 0))
    if ending:
        drained.append(max(taken[-1] + 1, scale[-1]))
        out = drained[-1] + rows
    return out + 7 + 1


def _loads(config: AttentionConfig, peaks: Ints) -> list[int]:
    """Cycles that the scale of each query takes."""
    width = max(config.key_scale_width, 17)
    zeros = np.where(peaks == 0, 0, width - bit_length(peaks))
    return (zeros + 19).tolist()
