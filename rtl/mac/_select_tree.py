# SPDX-License-Identifier: Apache-2.0
"""Adder tree over activations that ternary weights add, subtract or skip.

``-a`` is ``~a + 1``.  A negative weight complements its activation, and the missing one enters as
the carry of an adder further up: a tree of ``n`` lanes has ``n - 1`` adders, so ``n - 1``
corrections are free and one stays ``pending`` for whoever uses the sum.
"""

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig, add_carry, select
from .._once import place
from .._pipeline import delayed
from ..config import Config, param

SELECTS = ("fused", "invert", "mux", "unsigned")


@dataclass(frozen=True, kw_only=True)
class SelectTreeConfig(Config):
    lanes: int = param(2, "leaves of the tree; with fused any number", ge=1)
    act_width: int = param(8, "bits of one signed activation", ge=2)
    stage: int = param(2, "adder levels between registers; 0 for none", ge=0)
    select: str = param("fused", "how a lane is negated", choices=SELECTS)
    chain: int = param(4, "lanes in series at each leaf of a fused tree", ge=2)

    @property
    def leaf(self) -> int:
        """Lanes that one leaf sums."""
        return min(self.chain, self.lanes) if self.select == "fused" else 2

    @property
    def levels(self) -> int:
        return ceil_log2(self.lanes)

    @property
    def latency(self) -> int:
        """Registers from inputs to ``sum``."""
        at = range(ceil_log2(self.leaf), self.levels + 1)
        return sum(self.registers(level) for level in at)

    @property
    def registered(self) -> bool:
        """Whether the root of this (sub)tree ends in a register."""
        return self.registers(self.levels)

    def registers(self, level: int) -> bool:
        """Whether there are registers behind a level of adders."""
        return bool(self.stage and level) and level % self.stage == 0

    @property
    def sum_width(self) -> int:
        """``lanes`` terms in ``-2**(act_width-1) .. 2**(act_width-1) - 1``, one pending.

        Exact negation and doubled terms need one bit more.
        """
        return self.act_width + self.levels + (self.select in ("mux", "unsigned"))


class SelectTree(wiring.Component):
    """``sum + pending`` is the sum of ``acts`` weighted by the two's complement ``weights``.

    Weight code 2 is no weight and must not occur.  With ``select="unsigned"`` the result is the
    sum weighted by ``weight + 1`` instead.  Registers advance while ``enable`` is high.  Lane 0 is
    lowest in ``acts`` and ``weights``, which are plain bits: fields of an array would each become
    a wire in the Verilog.
    """

    acts: Signal
    weights: Signal
    enable: Signal
    sum: Signal
    pending: Signal

    def __init__(self, config: SelectTreeConfig):
        self.config = config
        super().__init__({
            "acts": In(config.lanes * config.act_width),
            "weights": In(config.lanes * 2),
            "enable": In(1),
            "sum": Out(signed(config.sum_width)),
            "pending": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        if self.config.lanes > self.config.leaf:
            total, pending = self._node(m, platform)
        elif self.config.select == "fused":
            total, pending = self._chain(m, platform)
        else:
            total, pending = self._pair()
        if self.config.registered:
            x_sum = Signal.like(self.sum, reset_less=True)
            x_pending = Signal(reset_less=True)
            with m.If(self.enable):
                m.d.sync += [x_sum.eq(total), x_pending.eq(pending)]
            total, pending = x_sum, x_pending
        m.d.comb += [self.sum.eq(total), self.pending.eq(pending)]
        return m

    def _lane(self, lane: int):
        act = self.acts.word_select(lane, self.config.act_width).as_signed()
        return act, self.weights.word_select(lane, 2)

    def _pair(self):
        (a, v), (b, w) = self._lane(0), self._lane(1)
        match self.config.select:
            case "mux":
                terms = [Mux(w == 1, x, Mux(w == 3, -x, 0)) for x, w in ((a, v), (b, w))]
                return terms[0] + terms[1], 0
            case "unsigned":
                terms = [Mux(w == 0, x, Mux(w == 1, x << 1, 0)) for x, w in ((a, v), (b, w))]
                return terms[0] + terms[1], 0
        return add_carry(select(a, v[0], v[1]), select(b, w[0], w[1]), v[1]), w[1]

    def _chain(self, m: Module, platform):
        """One lane in LUTs, the others each inside the carry chain that adds it."""
        act, weight = self._lane(0)
        total, pending = select(act, weight[0], weight[1]), weight[1]
        for lane in range(1, self.config.leaf):
            act, weight = self._lane(lane)
            add = place(
                m,
                platform,
                f"add_{lane}",
                AddSelect(AddSelectConfig(width=self.config.act_width + ceil_log2(lane))),
                a=total,
                b=act,
                enable=weight[0],
                invert=weight[1],
                carry=pending,
            )
            total, pending = add.y, weight[1]
        return total, pending

    def _node(self, m: Module, platform):
        config = self.config
        few = config.lanes // 2
        trees, start = [], 0
        for name, lanes in (("low", config.lanes - few), ("high", few)):
            tree = SelectTree(SelectTreeConfig.of({**config.values(), "lanes": lanes}))
            acts = self.acts[start * config.act_width :][: len(tree.acts)]
            weights = self.weights[2 * start :][: len(tree.weights)]
            place(m, platform, name, tree, acts=acts, weights=weights, enable=self.enable)
            trees.append(tree)
            start += lanes
        low, high = trees
        total, pending = high.sum, high.pending
        wait = low.config.latency - high.config.latency  # of fewer lanes, fewer levels
        if wait > 0:
            total = delayed(m, self.enable, total, "high", wait)[-1]
            pending = delayed(m, self.enable, pending, "high_pending", wait)[-1]
        if config.select in ("mux", "unsigned"):
            return low.sum + total, 0
        return add_carry(low.sum, total, low.pending), pending
