# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the online softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._fixed import Ints, normalise, round_shift
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.vector.softmax import SoftmaxConfig

CHANCE_BITS = 15
"""A chance of 1 is ``2**15``."""

LOWEST = -(1 << 40)
"""The octave before there is any."""

SHIFT_TOP = 31
"""What a larger number of octaves is given as."""


def exp2_table(fraction: int, bits: int, top: int) -> Ints:
    """``2**bits * 2**(-i / 2**fraction)`` to nearest, at most ``top``, for ``i < 2**fraction``."""
    steps = np.arange(1 << fraction) / (1 << fraction)
    return np.minimum(np.rint(np.exp2(bits - steps)).astype(np.int64), top)


def log2(value: Ints, fraction: int) -> Ints:
    """``log2`` of a non-negative integer below 2**61, ``fraction`` bits of fraction; 0 gives 0.

    Of the value's bits below the top one, ``fraction`` (after rounding as by ``normalise``) look
    up a table that is rounded to nearest.
    """
    mantissa, shift = normalise(value, fraction + 1)
    steps = np.arange(1 << fraction) / (1 << fraction)
    table = np.rint(np.log2(1 + steps) * (1 << fraction)).astype(np.int64)
    low = np.where(mantissa == 0, 0, mantissa - (1 << fraction))
    return np.where(mantissa == 0, 0, ((fraction - shift) << fraction) + table[low])


@dataclass(frozen=True)
class Mixed:
    """``sums * 2**octave`` over ``total * 2**total_octave``, each with its own constant factor."""

    sums: Ints
    octave: Ints
    total: Ints
    total_octave: Ints


class Steps(NamedTuple):
    """What each token does: ``term`` is added after what was there moved right by ``moved``.

    ``octave`` is the largest one so far, 0 before there was any.
    """

    term: Ints
    moved: Ints
    octave: Ints


@dataclass(frozen=True, eq=False)
class Softmax:
    """Tables of the online softmax; scores are base 2 logarithms.

    Error: let ``p`` be a token's share ``2**score / sum(2**score)`` of ``n`` tokens in reals, and
    ``p_max`` the largest one. With levels equal to scores its share as :meth:`mix` mixes it,
    ``sums * 2**(octave - weight_bits)`` over ``total * 2**(total_octave - 15)`` for a value of 1,
    differs from ``p`` by at most ``(p_max * 2**(1 - weight_bits) + p * e) / (1 - e)``, where
    ``e = 0.75 * (n + 1) / 2**14``: a unit of a weight, and 0.75 units of a chance a token. Besides,
    each of ``sums`` loses less than 1, once. In tests with up to 256 tokens the largest difference
    is ``2**-7`` with weights of 7 bits (a token alone, whose weight is 127 and not 128).
    """

    fraction: int
    chances: Ints
    weights: Ints

    @classmethod
    def of(cls, fraction: int, weight_bits: int) -> Softmax:
        return cls(
            fraction,
            exp2_table(fraction, CHANCE_BITS, 1 << CHANCE_BITS),
            exp2_table(fraction, weight_bits, (1 << weight_bits) - 1),
        )

    def steps(self, values: Ints, table: Ints, seen: NDArray[np.bool_]) -> Steps:
        """All tokens (row, token) of logarithms to base 2; those not ``seen`` do nothing."""
        own = np.where(seen, -(-values >> self.fraction), LOWEST)
        octave = np.maximum.accumulate(own, axis=-1)
        before = np.insert(octave[..., :-1], 0, LOWEST, axis=-1)
        moved = np.where(before == LOWEST, 0, octave - before)
        index = -values & (1 << self.fraction) - 1
        term = np.where(seen, round_shift(table[index], np.maximum(octave - own, 0)), 0)
        return Steps(term, moved, np.where(octave == LOWEST, 0, octave))

    def chance_steps(self, scores: Ints, seen: NDArray[np.bool_]) -> Steps:
        return self.steps(scores, self.chances, seen)

    def weight_steps(self, levels: Ints, seen: NDArray[np.bool_]) -> Steps:
        return self.steps(levels, self.weights, seen)

    def mix(self, scores: Ints, levels: Ints, values: Ints, seen: NDArray[np.bool_]) -> Mixed:
        """Values weighted by ``2**level``, and the total of ``2**score``, token by token.

        ``scores`` and ``levels`` (kv head, head, row, token), ``values`` (kv head, token, n);
        ``seen`` (row, token) says which tokens a row attends to, with more axes which of its heads.
        """
        seen = np.broadcast_to(seen, scores.shape)
        chances, weights = self.chance_steps(scores, seen), self.weight_steps(levels, seen)
        total = _held(chances, np.ones((*scores.shape[:1], scores.shape[-1], 1), np.int64))[..., 0]
        sums = _held(weights, values)
        return Mixed(sums, weights.octave[..., -1], total, chances.octave[..., -1])


def _held(steps: Steps, values: Ints) -> Ints:
    """What is held after the last token, when each ``term`` comes with ``values``.

    Floors of right shifts nest: all of them together are one, of the sum of all terms, each moved
    by as many octaves as came after it. That sum is made exactly, the far octaves first.
    """
    tokens = values.shape[-2]
    after = np.maximum(steps.octave[..., -1:] - steps.octave, 0)
    largest = int(np.abs(values).max(initial=1)) * int(steps.term.max(initial=1)) * tokens
    room = 53 - largest.bit_length() - 1
    part, place = np.divmod(after, room)
    held = np.zeros((*steps.term.shape[:-1], values.shape[-1]), np.int64)
    floats = values[:, None].astype(np.float64)
    for far in range(int(np.where(steps.term != 0, part, 0).max(initial=0)), -1, -1):
        own = np.where(part == far, steps.term, 0) << (room - place)
        held = (held + (own.astype(np.float64) @ floats).astype(np.int64)) >> room
    return held


def totals(steps: Steps) -> Ints:
    """The total (row, token) after each token."""
    total = np.zeros_like(steps.term)
    held = np.zeros(len(total), np.int64)
    for token in range(total.shape[1]):
        moved = np.minimum(steps.moved[:, token], 62)
        held = total[:, token] = (held >> moved) + steps.term[:, token]
    return total


class Runs:
    """Tokens of contexts as rows of a table: a row begins where a context begins anew."""

    def __init__(self, context: Ints, first: NDArray[Any]):
        order = np.argsort(context, kind="stable")
        sorted_context, begins = context[order], np.asarray(first, bool)[order]
        begins[np.flatnonzero(np.diff(sorted_context, prepend=-1))] = True
        starts = np.flatnonzero(begins)
        lengths = np.diff(np.append(starts, len(order)))
        self.row, self.column = np.zeros((2, len(order)), np.int64)
        self.row[order] = np.repeat(np.arange(len(starts)), lengths)
        self.column[order] = np.arange(len(order)) - np.repeat(starts, lengths)
        self.shape = len(starts), int(lengths.max(initial=0))

    def table(self, values: NDArray[Any]) -> Ints:
        """One value a token, by row and column; zeros elsewhere."""
        full = np.zeros((*self.shape, *values.shape[1:]), np.int64)
        full[self.row, self.column] = values
        return full

    def tokens(self, table: Ints) -> Ints:
        """The inverse of :meth:`table`."""
        return table[self.row, self.column]


def stimulus(config: SoftmaxConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Contexts that alternate, token by token or in long runs; rising, falling, extreme scores.

    Equal scores of whole octaves, at most ``max_tokens`` of them and none skipped, make the largest
    total there is.
    """
    top, steps = (1 << config.score_width - 1) - 1, 1 << config.fraction
    scores, contexts, firsts, lasts, skips = [], [], [], [], []
    count = 0
    while count < transfers:
        kind = len(scores) % 6
        tokens = int(rng.integers(1, config.max_tokens + 1)) if kind % 5 else config.max_tokens
        tokens = min(tokens, max(2, transfers // 8))
        active = np.arange(config.contexts) if kind != 2 else rng.permutation(config.contexts)[:1]
        score = rng.integers(-4 * steps, 4 * steps + 1, (len(active), tokens))
        if kind == 1:
            score = rng.integers(-top - 1, top + 1, score.shape)
        elif kind == 3:
            score = np.sort(score, axis=1) // (steps // 2) * (steps // 2)
        elif kind == 4:
            score = np.sort(rng.choice([-top - 1, 0, 1, top], score.shape), axis=1)
        elif kind == 5:
            score[:] = steps * rng.integers(-(top // steps), top // steps + 1, (len(active), 1))
            score[0] = -steps
        order = rng.permutation(score.size) if kind % 2 else np.arange(score.size)
        row, column = np.unravel_index(order, score.shape)
        column = np.argsort(np.argsort(row, kind="stable"), kind="stable")
        column -= row * tokens  # every context in order, whatever the order between them
        scores.append(score.clip(-top - 1, top)[row, column])
        contexts.append(active[row])
        firsts.append((column == 0) | (rng.random(len(row)) < 0.01))
        lasts.append((column == tokens - 1) | (rng.random(len(row)) < 0.01))
        skips.append(rng.random(len(row)) < (0 if kind == 5 else 0.1))
        count += score.size
    skip = np.concatenate(skips)
    score = np.concatenate(scores)
    logs = rng.integers(0, 1 << config.log_width, int((~skip).sum()))
    logs[rng.random(len(logs)) < 0.5] = rng.choice([0, (1 << config.log_width) - 1])
    return {
        "i": {
            "score": score,
            "context": np.concatenate(contexts),
            "first": np.concatenate(firsts),
            "last": np.concatenate(lasts),
            "skip": skip,
        },
        "log_i": {"log": logs},
    }


def golden(config: SoftmaxConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    given = inputs["i"]
    skip, last = given["skip"].astype(bool), given["last"].astype(bool)
    softmax = Softmax.of(config.fraction, config.weight_bits)
    runs = Runs(given["context"], given["first"])
    level = given["score"].astype(np.int64)
    level[~skip] += inputs["log_i"]["log"]
    seen = runs.table(~skip).astype(bool)
    chances = softmax.chance_steps(runs.table(given["score"]), seen)
    weights = softmax.weight_steps(runs.table(level), seen)
    return {
        "o": {
            "weight": runs.tokens(weights.term),
            "shift": np.minimum(runs.tokens(weights.moved), SHIFT_TOP),
            "octave": runs.tokens(weights.octave),
            **{name: given[name].astype(int) for name in ("context", "first", "last", "skip")},
        },
        "total_o": {
            "total": runs.tokens(totals(chances))[last],
            "octave": runs.tokens(chances.octave)[last],
            "context": given["context"][last],
        },
    }


def cycles(config: SoftmaxConfig, inputs: Streams) -> int:
    """A token a cycle; the last one leaves four edges after it came."""
    del config
    return len(inputs["i"]["score"]) + 4
