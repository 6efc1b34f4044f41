# SPDX-License-Identifier: Apache-2.0
"""How long the engine takes for a token, from the latencies of its units, without simulation.

Every dependency between units is a delay of their configurations; what the data decide, such as
how far a sum is shifted, is taken as in typical texts.  ``docs/engine.md`` has the chain of events.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...rtl._streams import QUEUE_LATENCY, WIDEN_LATENCY
from ...rtl.engine._rows import REPLAY_LATENCY
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
    count: int = 1,
    sample: bool = True,
    overlap: bool = True,
    fetch: int = 1,
    turns: Iterable[int] = (),
) -> Estimate:
    """The token at ``position``; memories answer ``fetch`` cycles after they are asked.

    It and those after it are ``count`` that share a pass over the weights; the last is answered
    with ``sample``.  ``turns`` are the cycles that a tile of weights takes in each linear
    operation, in order: 1 with trits, 4 with integers; 1 where none are given.
    """
    if count > 1:
        return _Group(model, config, position, sample, overlap, fetch, turns, count).estimate()
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


@dataclass
class _Attention:
    """When attention has done what the tokens so far gave it to do.

    The last query was loaded, key met its query, value was added; each divider gave its last
    result; each head's query was done with.  ``tried``: what was given to the choice of tokens.
    """

    loaded: int = 0
    met: int = 0
    mixed: int = 0
    divided: list[int] = field(default_factory=lambda: [0, 0])
    free: dict[int, int] = field(default_factory=dict)
    tried: list[tuple[int, int]] = field(default_factory=list)


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
        count: int = 1,
    ):
        self.model, self.config, self.position = model, config, position
        self.sample, self.overlap, self.fetch = sample, overlap, fetch
        core, rescale = config.norm.quantiser, config.rescale
        # From a vector's last row at the norm: to its codes, to the first sum with its scale.
        self.norm_codes = core.early + 2 + core.code_latency
        self.norm_scale = config.norm.scale_latency + rescale.interval
        # From a word to the sum, and from the sum to the element.
        self.sums = config.sum_latency + (REPLAY_LATENCY if config.rows > 1 else QUEUE_LATENCY)
        self.elements = rescale.latency + QUEUE_LATENCY
        self.time = 0  # the cycle after the last word
        self.scaled = 0  # the first cycle in which a sum of the next operation finds its scale
        self.final = 0  # the cycle in which the last sum was scaled
        self.result = Estimate()
        self.count = count
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
            arrives = self._attention(queries, keys, values, self.position, _Attention())
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
        prepared = self.config.socket.preparation(self.config, rows * self.config.norm_lanes)
        codes = arrives + self.norm_codes + rows - 1
        self._wait(codes + WIDEN_LATENCY + prepared + 1, name)

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

    def _attention(
        self,
        queries: _Product,
        keys: _Product,
        values: _Product,
        position: int,
        state: _Attention,
    ) -> int:
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
        loaded, met, mixed = state.loaded, state.met, state.mixed
        theirs = list(self._heads(queries, model.heads))
        old = min(position, config.kept - 1) if config.kept else position
        rises = min(old // 4, RISES)
        loads_at, late, taken = [], 0, [0, 0]
        for head, there in enumerate(theirs):
            # The quantiser has room for two heads; one leaves when its query's place is free.
            late = max(late, taken[-2] + 1 - rotated - there)
            theirs[head] = there = there + late
            taken.append(max(there + peak, loaded, state.free.get(head, 0)))
            loaded = max(taken[-1] + loads, there + codes + 1)
            loads_at.append(loaded)
        for ready, (first, last) in zip(
            loads_at,
            self._chosen([there + codes for there in theirs], position, state),
            strict=True,
        ):
            met = max(ready, first_old, met, first)
            mixed = max(met + unit.score_latency + 5, mixed) + unit.rows + old + rises
            met = max(met + max(old, 1), last)
            mixed = max(mixed, last + unit.score_latency + 6)
            if self.count > 1:  # keys are no further ahead of values
                met = max(met, mixed - unit.ahead)
        late = max(late, taken[-2] + 1 - rotated - self._heads(keys, 1)[0])
        self.final += late
        written = codes + 3 + late
        key_at = [there + written for there in self._heads(keys, model.kv_heads)]
        value_at = [there + written for there in self._heads(values, model.kv_heads)]
        divided = state.divided
        for head in range(model.heads):
            slot = head * model.kv_heads // model.heads
            met = max(met + 1, key_at[slot])
            state.free[head] = met + 1
            begins = max(met + unit.score_latency + 5, divided[head % 2])
            divided[head % 2] = begins + unit.closing_latency + TOTAL_ZEROS
            mixed = max(mixed, value_at[slot] + 6 + QUEUE_LATENCY) + 1
            mixed = max(mixed, divided[head % 2]) + unit.rows
        state.loaded, state.met, state.mixed = loaded, met, mixed
        return mixed + unit.result_latency + 1

    def _chosen(
        self, queries: list[int], position: int, state: _Attention
    ) -> Iterator[tuple[int, int]]:
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
        state.tried += [(position + 1, each) for each in offered]
        for first, last in list(passes(config.choice, state.tried))[-len(queries) :]:
            yield first + 3 + read, last - 1 + read


class _Group(_Token):
    """Tokens that share a pass: products side by side, everything else one after the other.

    The first token's sums are scaled while they come, the others' follow, one a cycle; the next
    pass begins when the last vector is there.
    """

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.scales: list[int] = []  # cycles in which each token's first sum finds its scale
        self.offered = [0, 0]  # when the norm's last two vectors were offered to its scale

    def estimate(self) -> Estimate:
        model, config, everyone = self.model, self.config, range(self.count)
        rows, hidden = model.dim // config.norm_lanes, model.hidden // config.norm_lanes
        # Tokens are gathered, and all operations on the embedding come before the first norm.
        first = 7 + 2 * (self.count - 1) + self.fetch - 1 + 2 * rows
        self._norms([first + row * (rows + self.fetch + 1) for row in everyone], rows, "embedding")
        added: list[int] = []
        down: _Product | None = None
        for _ in range(model.layers):
            if added:
                self._norms(added, rows, "norm before Q, K and V")
            sizes = (model.q_dim, model.kv_dim, model.kv_dim)
            state, mixed = _Attention(), []
            for row, (queries, keys, values) in enumerate(self._products(sizes)):
                at = self.position + row
                mixed.append(self._attention(queries, keys, values, at, state))
            self._norms(mixed, model.q_dim // config.norm_lanes, "attention and its norm")
            added = [
                self._row_added(row, *each) for row, each in self._pass(model.dim, model.q_dim)
            ]
            self._norms(added, rows, "norm before gate and up")
            after = config.gating.latency + WIDEN_LATENCY
            gated = [self._element() + after for _ in self._pass(2 * model.hidden)]
            self._norms(gated, hidden, "gate and its norm")
            added = []
            for row, (down,) in self._pass(model.dim, model.hidden):
                added.append(self._row_added(row, down))
        if self.sample and down:
            self._norm(self._added(down), rows, "norm before the head")
            self._linear(model.vocab)
            self._wait(self._element() + 3, "choice of the token")
        else:
            self._wait(self._row_added(1, down) + 3 if down else 0, "end")
        return self.result

    def _row_added(self, row: int, product: _Product) -> int:
        """As ``_added``; gains are loaded for the first token."""
        if not row:
            return self._added(product)
        return self._element() + WIDEN_LATENCY + self.config.residual.latency + QUEUE_LATENCY

    def _norms(self, arrive: list[int], rows: int, name: str) -> None:
        """Vectors whose last rows could reach the norm in those cycles, until the first word.

        Two wait for their scale, of which one is made at a time.
        """
        norm = self.config.norm
        at, self.scales = 0, []
        for each in arrive:
            at = max(each, at + rows, self.offered[-2] + 1)
            self.offered.append(
                max(at + norm.quantiser.commit + 1, self.offered[-1] + norm.scale.interval)
            )
            made = self.offered[-1] + norm.scale.latency
            self.scales.append(made + self.config.rescale.interval)
        self._norm(at, rows, name)
        self.scaled = 0

    def _pass(self, rows: int, width: int | None = None) -> Iterator[tuple[int, list[_Product]]]:
        yield from enumerate(self._products((rows,), width))

    def _products(self, sizes: Sequence[int], width: int | None = None) -> Iterator[list[_Product]]:
        """The projections of each token, as its sums are scaled; ``final`` may be put off."""
        self.scaled = max(self.scaled, self.scales[0])
        yield [self._linear(size, width) for size in sizes]
        for scale in self.scales[1:]:
            products, self.scaled = [], max(self.scaled, scale)
            for size in sizes:
                start = max(self.final + 1, self.scaled)
                products.append(_Product(start, start, 1))
                self.final = start + size - 1
                self.scaled = start + self.config.rescale.interval
            yield products
