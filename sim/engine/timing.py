# SPDX-License-Identifier: Apache-2.0
"""How long the engine takes for a token, from the latencies of its units, without simulation.

Every dependency between units is a delay of their configurations; what the data decide, such as
how far a sum is shifted, is taken as in typical texts.  ``docs/engine.md`` has the chain of events.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...rtl._streams import QUEUE_LATENCY, WIDEN_LATENCY
from ..kv.lop_select import passes

if TYPE_CHECKING:
    from ...rtl.engine.engine import EngineConfig
    from .model import ModelConfig

PEAK_ZEROS = 4
"""Zeros above a peak's top bit, typically: its scale takes a cycle for each."""

TOTAL_ZEROS = 7
"""The same of the total of a softmax."""

RISES = 7
"""Octaves that the level of a head rises by, beyond those that cost nothing, in a long text."""


@dataclass
class Estimate:
    """Cycles of a token: ``linear`` with weights, ``waits`` without, by what they wait for."""

    linear: int = 0
    waits: dict[str, int] = field(default_factory=dict)

    @property
    def cycles(self) -> int:
        return self.linear + sum(self.waits.values())


def estimate(
    model: ModelConfig,
    config: EngineConfig,
    position: int,
    *,
    sample: bool = True,
    overlap: bool = True,
    fetch: int = 1,
    turns: Iterable[int] = (),
) -> Estimate:
    """The token at ``position``; memories answer ``fetch`` cycles after they are asked.

    ``turns`` are the cycles that a tile of weights takes in each linear operation, in order: 1 with
    trits, 4 with integers; 1 where none are given.
    """
    return _Token(model, config, position, sample, overlap, fetch, turns).estimate()


@dataclass(frozen=True)
class _Product:
    """A projection: the cycles in which its first sum is there and in which its scale is too."""

    first: int
    start: int
    words: int  # of a row

    def sum(self, row: int) -> int:
        """The cycle in which the sum of a row is scaled."""
        return max(self.first + row * self.words, self.start + row)


class _Token:
    def __init__(
        self,
        model: ModelConfig,
        config: EngineConfig,
        position: int,
        sample: bool,
        overlap: bool,
        fetch: int,
        turns: Iterable[int],
    ):
        self.model, self.config, self.position = model, config, position
        self.sample, self.overlap, self.fetch = sample, overlap, fetch
        core, rescale = config.norm.quantiser, config.rescale
        # From a vector's last row at the norm: to its codes, to the first sum with its scale.
        self.norm_codes = core.early + 2 + core.code_latency
        self.norm_scale = config.norm.scale_latency + rescale.interval
        # From a word to the sum, and from the sum to the element.
        self.sums = config.sum_latency + QUEUE_LATENCY
        self.elements = rescale.latency + QUEUE_LATENCY
        self.time = 0  # the cycle after the last word
        self.scaled = 0  # the first cycle in which a sum of the next operation finds its scale
        self.final = 0  # the cycle in which the last sum was scaled
        self.result = Estimate()
        self.turns = itertools.chain(turns, itertools.repeat(1))

    def estimate(self) -> Estimate:
        model, config = self.model, self.config
        rows = model.dim // config.norm_lanes
        # The first norm waits for its gains, which are asked for when the token is known.
        self._norm(7 + self.fetch - 1 + 2 * rows, rows, "embedding and its norm")
        hidden = model.hidden // config.norm_lanes
        down: _Product | None = None
        for _ in range(model.layers):
            if down:
                self._norm(self._added(down), rows, "norm before Q, K and V")
            queries, keys, values = map(self._linear, (model.q_dim, model.kv_dim, model.kv_dim))
            arrives = self._attention(queries, keys, values)
            self._norm(arrives, model.q_dim // config.norm_lanes, "attention and its norm")
            output = self._linear(model.dim, width=model.q_dim)
            self._norm(self._added(output), rows, "norm before gate and up")
            self._linear(2 * model.hidden)
            gated = self._element() + config.gating.latency + WIDEN_LATENCY
            self._norm(gated, hidden, "gate and its norm")
            down = self._linear(model.dim, width=model.hidden)
        if self.sample and down:
            self._norm(self._added(down), rows, "norm before the head")
            self._linear(model.vocab)
            self._wait(self._element() + 3, "choice of the token")
        else:
            self._wait(
                self._element() + WIDEN_LATENCY + config.residual.latency + QUEUE_LATENCY + 3, "end"
            )
        return self.result

    def _words(self, width: int) -> int:
        """Tiles of an output row."""
        return -(-width // self.config.lanes)

    def _element(self) -> int:
        """The cycle of the last element of what was multiplied."""
        return self.final + self.elements

    def _added(self, product: _Product) -> int:
        """The cycle in which the last row of the residual stream reaches the norm.

        The first one waits there while gains are loaded; the second may come meanwhile.
        """
        config, lanes = self.config, self.config.norm_lanes
        between = product.sum(2 * lanes - 1) - product.sum(lanes - 1)
        gains = self.model.dim // lanes
        stall = max(gains + config.residual.latency + QUEUE_LATENCY - between, 0)
        return self._element() + WIDEN_LATENCY + config.residual.latency + QUEUE_LATENCY + stall

    def _wait(self, until: int, name: str) -> None:
        waits = self.result.waits
        waits[name] = waits.get(name, 0) + max(until - self.time, 0)
        self.time = max(until, self.time)

    def _norm(self, arrives: int, rows: int, name: str) -> None:
        """A vector whose last row reaches the norm in that cycle, until its first word."""
        self.scaled = arrives + self.norm_scale
        self._wait(arrives + self.norm_codes + rows - 1 + WIDEN_LATENCY + 1, name)

    def _linear(self, rows: int, width: int | None = None) -> _Product:
        words = self._words(self.model.dim if width is None else width) * next(self.turns)
        first = self.time + words - 1 + self.sums
        product = _Product(first, max(first, self.scaled), words)
        self.result.linear += words * rows
        self.time += words * rows
        self.final = product.sum(rows - 1)
        self.scaled = product.start + self.config.rescale.interval
        return product

    def _heads(self, product: _Product, count: int) -> list[int]:
        """Cycles in which the last element of each head is there."""
        ends = range(self.config.head_dim - 1, count * self.config.head_dim, self.config.head_dim)
        return [product.sum(row) + self.elements for row in ends]

    def _attention(self, queries: _Product, keys: _Product, values: _Product) -> int:
        """The cycle in which the last row of attention reaches the norm.

        Old tokens: a pair a cycle from the first query on, and a turn of the sums for each head.
        Newest: a turn for each head, in which the result of the one before leaves.
        """
        model, config, unit = self.model, self.config, self.config.attention
        quantiser = config.quantiser.quantiser
        # Before it the head is announced, behind it a register.
        rotated = 1 + config.rope.latency + 1 + WIDEN_LATENCY
        peak = rotated + quantiser.commit
        codes = rotated + quantiser.early + 2 + quantiser.code_latency + unit.rows - 1
        loads = unit.query_latency + PEAK_ZEROS
        first_old = 0 if self.overlap else self._element() + 4
        # When the last query was loaded, key met its query, value was added.
        loaded = met = mixed = 0
        theirs = list(self._heads(queries, model.heads))
        old = min(self.position, config.kept - 1) if config.kept else self.position
        rises = min(old // 4, RISES)
        for there, (first, last) in zip(
            theirs, self._chosen([there + codes for there in theirs]), strict=True
        ):
            loaded = max(max(there + peak, loaded) + loads, there + codes + 1)
            met = max(loaded, first_old, met, first)
            mixed = max(met + unit.score_latency + 5, mixed) + unit.rows + old + rises
            met = max(met + max(old, 1), last)
            mixed = max(mixed, last + unit.score_latency + 6)
        written = codes + 3
        key_at = [there + written for there in self._heads(keys, model.kv_heads)]
        value_at = [there + written for there in self._heads(values, model.kv_heads)]
        divided = [0, 0]  # when each of the dividers has given its last result
        for head in range(model.heads):
            slot = head * model.kv_heads // model.heads
            met = max(met + 1, key_at[slot])
            begins = max(met + unit.score_latency + 5, divided[head % 2])
            divided[head % 2] = begins + unit.closing_latency + TOTAL_ZEROS
            mixed = max(mixed, value_at[slot] + 6 + QUEUE_LATENCY) + 1
            mixed = max(mixed, divided[head % 2]) + unit.rows
        return mixed + unit.result_latency + 1

    def _chosen(self, queries: list[int]) -> Iterator[tuple[int, int]]:
        """For each head when its first and its last old key can be there, for what chooses them.

        ``queries``: cycles in which each head's last row of codes comes.
        """
        config = self.config
        if not config.kept:
            yield from [(0, 0)] * len(queries)
            return
        read = QUEUE_LATENCY + 2  # from a chosen token to its key
        rows = config.choice.rows
        offered = [there - rows + 1 + QUEUE_LATENCY for there in queries]
        for first, last in passes(config.choice, [(self.position + 1, each) for each in offered]):
            yield first + 3 + read, last - 1 + read
