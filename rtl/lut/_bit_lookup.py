# SPDX-License-Identifier: Apache-2.0
"""Sums of the activations that rows of bits choose, by tables that all rows share."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .._once import place
from .._pipeline import delayed
from ..config import Config, param
from ._lookup import Lookup, LookupConfig
from ._table import Plan, build, entry_width, plan

CONVENTIONS = ("folded", "bits")


@dataclass(frozen=True, kw_only=True)
class BitLookupConfig(Config):
    rows: int = param(16, "rows of bits, which share the tables", ge=1)
    table: int = param(4, "activations of one table", ge=2, le=5)
    tables: int = param(1, "tables of a row, whose entries are added in the same cycle", ge=1)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    convention: str = param("folded", "what bits stand for", choices=CONVENTIONS)
    acc_width: int = param(16, "bits of one accumulator", ge=2)
    stage: int = param(1, "adder levels between registers, one behind the lookup; 0: none", ge=0)

    @property
    def acts(self) -> int:
        """Activations of a transfer."""
        return self.table * self.tables

    @property
    def folded(self) -> bool:
        return self.convention == "folded"

    @property
    def plan(self) -> Plan:
        """How a table is made."""
        return plan(self.table, *self._code)

    @property
    def _code(self) -> tuple[str, bool]:
        return ("binary", True) if self.folded else ("bits", False)

    @property
    def entries(self) -> int:
        """Entries of one table."""
        return len(self.plan.entries)

    @property
    def lookup(self) -> LookupConfig:
        """One row."""
        return LookupConfig(
            address=self.table - self.folded,
            groups=self.tables,
            signs=self.folded,
            entry_width=entry_width(self.table, *self._code, self.act_width),
            acc_width=self.acc_width,
            registered=self.stage > 0,
        )

    @property
    def before(self) -> int:
        """Registers from activations to what ``opens`` and ``moves`` accumulators."""
        return len(self.plan.registers(self.stage)) + (self.stage > 0)

    @property
    def latency(self) -> int:
        """Registers from activations to the accumulators."""
        return self.before + 1


class BitLookup(wiring.Component):
    """``acc[row]`` gains the sum over ``k`` of ``value(bits[row][k]) * acts[k]``.

    ``bits``: values are 0 and 1, and a table has ``2**table`` entries.  ``folded``: -1 and 1; a
    table has half as many, and an entry is negated where the last of its bits is not set.

    Everything moves with ``enable``.  With ``moves`` the accumulators gain what came
    ``config.before`` enabled cycles ago, from zero with ``opens``.

    Members
    -------
    acts : ``tables * table`` activations, number 0 lowest.
    bits : as many a row, row 0 lowest.
    opens, moves, enable : see above.
    acc : ``rows`` accumulators.
    """

    acts: Signal
    bits: Signal
    opens: Signal
    moves: Signal
    enable: Signal
    acc: Signal

    def __init__(self, config: BitLookupConfig):
        self.config = config
        super().__init__({
            "acts": In(config.acts * config.act_width),
            "bits": In(config.rows * config.acts),
            **{name: In(1) for name in ("opens", "moves", "enable")},
            "acc": Out(config.rows * config.acc_width),
        })

    def elaborate(self, platform):
        m = Module()
        config, lookup = self.config, self.config.lookup
        acts = Signal.like(self.acts, name="group_acts")
        m.d.comb += acts.eq(self.acts)
        tables = []
        for number in range(config.tables):
            group = acts.word_select(number, config.table * config.act_width)
            each = [
                Signal(signed(config.act_width), name=f"act_{number}_{k}")
                for k in range(config.table)
            ]
            m.d.comb += [
                act.eq(group.word_select(k, config.act_width)) for k, act in enumerate(each)
            ]
            made = build(
                m, config.plan, each, lookup.entry_width, self.enable, config.stage, f"_{number}"
            )
            for index, sums in enumerate(made):
                entry = Signal(signed(lookup.entry_width), name=f"entry_{number}_{index}")
                m.d.comb += entry.eq(sums)
                tables.append(entry)
        registers = len(config.plan.registers(config.stage))
        accs = []
        for row in range(config.rows):
            bits = self.bits.word_select(row, config.acts)
            groups = [bits.word_select(n, config.table) for n in range(config.tables)]
            signs = [~bits[-1] for bits in groups]
            if config.folded:
                groups = [
                    bits[:-1] ^ sign.replicate(config.table - 1)
                    for bits, sign in zip(groups, signs, strict=True)
                ]
            found = Cat(*groups, *signs) if config.folded else Cat(*groups)
            found = delayed(m, self.enable, found, f"found_{row}", registers)[-1]
            split = config.tables * lookup.address
            sign = {"sign": found[split:]} if config.folded else {}
            part = place(
                m,
                platform,
                f"row_{row}",
                Lookup(lookup),
                table=Cat(*tables),
                address=found[:split],
                enable=self.enable,
                opens=self.opens,
                moves=self.moves & self.enable,
                **sign,
            )
            accs.append(part.acc)
        m.d.comb += self.acc.eq(Cat(*accs))
        return m
