# SPDX-License-Identifier: Apache-2.0
"""Slices of tables and sums that take the same look-ups, with the values of the last patterns."""

from dataclasses import replace
from typing import TYPE_CHECKING

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .._once import place
from ._feed import look_layout
from ._plane_sum import PlaneSum, plane_layout, sums_layout
from ._weight_table import WeightTable, weights_layout
from .pattern_reuse import PatternReuse, PatternReuseConfig

if TYPE_CHECKING:
    from .sail_sram import SailSramConfig


class Slices(wiring.Component):
    """Columns in ``slices`` parts, each a table and its sums; all look up the same patterns.

    They do so in step: one tells when all are ready.  With ``entries`` a pattern reuse table is
    asked first, which keeps the values of all slices: one beside each would keep the same patterns.

    Members
    -------
    weights_i, o : those of all columns, slice after slice.
    look_i : look-ups; it is taken when the table was asked, or the value is there.
    """

    weights_i: stream.Interface
    look_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: "SailSramConfig", slices: int = 1, entries: int = 0):
        self.config, self.slices, self.entries = config, slices, entries
        whole = replace(config, cols=slices * config.cols)
        super().__init__({
            "weights_i": In(stream.Signature(weights_layout(whole))),
            "look_i": In(stream.Signature(look_layout(config))),
            "o": Out(stream.Signature(sums_layout(whole))),
        })

    def elaborate(self, platform):
        m = Module()
        config, look = self.config, self.look_i
        looks = Signal()
        plane = Signal(plane_layout(config), reset_less=True)  # of the value that comes
        m.d.comb += looks.eq(look.valid & look.ready)
        with m.If(looks):
            m.d.sync += plane.eq(look.p.plane)

        tables, sums = [], []
        for n in range(self.slices):
            release = looks & look.p.closes
            table = place(m, platform, f"table_{n}", WeightTable(config), release=release)
            total = place(m, platform, f"sums_{n}", PlaneSum(config))
            tables.append(table)
            sums.append(total)
            m.d.comb += [
                table.weights_i.valid.eq(self.weights_i.valid),
                total.i.p.plane.eq(plane),
                total.o.ready.eq(self.o.ready),
            ]
            for column in range(config.cols):
                at = n * config.cols + column
                m.d.comb += [
                    table.weights_i.p.w[column].eq(self.weights_i.p.w[at]),
                    self.o.p.sums[at].eq(total.o.p.sums[column]),
                ]
        m.d.comb += [
            self.weights_i.ready.eq(tables[0].weights_i.ready),
            self.o.valid.eq(sums[0].o.valid),
        ]

        if not self.entries:
            m.d.comb += look.ready.eq(tables[0].read_i.ready)
            for table, total in zip(tables, sums, strict=True):
                m.d.comb += [
                    table.read_i.valid.eq(look.valid),
                    table.read_i.p.pattern.eq(look.p.pattern),
                    total.i.valid.eq(table.o.valid),
                    table.o.ready.eq(total.i.ready),
                    total.i.p.values.eq(table.o.p.values),
                ]
            return m

        reuse = place(
            m,
            platform,
            "reuse",
            PatternReuse(
                PatternReuseConfig(
                    pattern=config.nbw,
                    width=config.entry_width,
                    cols=self.slices * config.cols,
                    entries=self.entries,
                )
            ),
        )
        m.d.comb += [
            reuse.i.valid.eq(look.valid),
            reuse.i.p.pattern.eq(look.p.pattern),
            reuse.i.p.flush.eq(look.p.opens),
            look.ready.eq(reuse.i.ready),
            reuse.miss_o.ready.eq(tables[0].read_i.ready),
            reuse.fill_i.valid.eq(tables[0].o.valid),
            reuse.o.ready.eq(sums[0].i.ready),
        ]
        for n, (table, total) in enumerate(zip(tables, sums, strict=True)):
            m.d.comb += [
                table.read_i.valid.eq(reuse.miss_o.valid),
                table.read_i.p.pattern.eq(reuse.miss_o.p.pattern),
                table.o.ready.eq(reuse.fill_i.ready),
                total.i.valid.eq(reuse.o.valid),
            ]
            for column in range(config.cols):
                at = n * config.cols + column
                m.d.comb += [
                    reuse.fill_i.p.values[at].eq(table.o.p.values[column]),
                    total.i.p.values[column].eq(reuse.o.p.values[at]),
                ]
        return m
