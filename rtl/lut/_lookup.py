# SPDX-License-Identifier: Apache-2.0
"""One processing element of a table-lookup array: tables in, the accumulator of one output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import accumulated, add_carry
from .._once import place
from .._pipeline import held
from .._tree import reduce_tree
from ..config import Config, param
from ..formats._float_add import FloatAdd, FloatAddConfig
from ._table_mux import TableMux, TableMuxConfig


@dataclass(frozen=True, kw_only=True)
class LookupConfig(Config):
    address: int = param(3, "bits of an address of a table", ge=1)
    groups: int = param(1, "tables of which one entry each is added", ge=1)
    signs: bool = param(True, "an entry is negated by a bit of its own")
    entry_width: int = param(10, "bits of an entry", ge=2)
    acc_width: int = param(22, "bits of the accumulator", ge=2)
    floats: bool = param(False, "entries and accumulator are fp16")
    registered: bool = param(False, "a register between lookup and accumulator")
    operand: bool = param(False, "a run begins with an operand, not with zero")

    def faults(self) -> Iterator[str]:
        if self.floats and self.groups > 1:
            yield f"groups must be 1 with floats, not {self.groups}"

    @property
    def term_width(self) -> int:
        """Bits of the sum of all entries, less one pending for each of them but the last."""
        return self.entry_width + ceil_log2(self.groups)


class Lookup(wiring.Component):
    """``acc`` gains one entry of each table, negated where its ``sign`` is set.

    Entries are inverted by the multiplexers that look them up.  The one that an inversion lacks is
    the carry of the next adder, at last that of ``acc``.

    With ``moves`` it takes ``opens ? start : acc`` plus the entries; ``start`` is zero without
    ``operand``.  With ``registered`` the entries are looked up while ``enable`` is high, and
    ``opens``, ``moves`` and ``start`` belong to the entries of the register.  Tables are plain
    bits, entry 0 of table 0 lowest.
    """

    table: Signal
    address: Signal
    sign: Signal
    enable: Signal
    opens: Signal
    moves: Signal
    start: Signal
    acc: Signal

    def __init__(self, config: LookupConfig):
        self.config = config
        super().__init__({
            "table": In((config.groups << config.address) * config.entry_width),
            "address": In(config.groups * config.address),
            **({"sign": In(config.groups)} if config.signs else {}),
            "enable": In(1),
            "opens": In(1),
            "moves": In(1),
            **({"start": In(config.acc_width)} if config.operand else {}),
            "acc": Out(config.acc_width),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        signs = list(self.sign) if config.signs else [Const(0, 1)] * config.groups
        entries = []
        for group, sign in enumerate(signs):
            mux = TableMuxConfig(address=config.address, width=config.entry_width)
            entry = place(
                m,
                platform,
                f"mux_{group}",
                TableMux(mux),
                words=self.table.word_select(group, config.entry_width << config.address),
                address=self.address.word_select(group, config.address),
                invert=0 if config.floats else sign,
            )
            entries.append((entry.y, sign))
        if config.floats:
            self._float(m, platform, *entries[0])
        else:
            self._integer(m, platform, entries)
        return m

    def _integer(self, m: Module, platform, entries: Sequence[tuple[Any, Any]]) -> None:
        config = self.config
        total, pending = reduce_tree(_joined, [(y.as_signed(), sign) for y, sign in entries])
        total = total[: config.term_width].as_signed()
        if config.registered:
            total = held(m, self.enable, total, "term")
            if config.signs:
                pending = held(m, self.enable, pending, "pending")
        if config.operand:
            acc = Signal(config.acc_width, reset_less=True, name="sum")
            before = Mux(self.opens, self.start, acc).as_signed()
            with m.If(self.moves):
                m.d.sync += acc.eq(add_carry(before, total, pending))
        else:
            acc = accumulated(m, platform, config.acc_width, total, pending, self.opens, self.moves)
        m.d.comb += self.acc.eq(acc)

    def _float(self, m: Module, platform, entry, sign) -> None:
        term = Cat(entry[:-1], entry[-1] ^ sign)
        if self.config.registered:
            term = held(m, self.enable, term, "term")
        acc = Signal(self.config.acc_width, reset_less=True, name="sum")
        start = self.start if self.config.operand else 0
        add = FloatAdd(FloatAddConfig())
        before = Mux(self.opens, start, acc)
        place(m, platform, "add", add, a=before, b=term, enable=1)
        with m.If(self.moves):
            m.d.sync += acc.eq(add.y)
        m.d.comb += self.acc.eq(acc)


def _joined(low: tuple[Any, Any], high: tuple[Any, Any]) -> tuple[Any, Any]:
    """The sum of two sums with one pending each; the upper one's stays."""
    return add_carry(low[0], high[0], low[1]), high[1]
