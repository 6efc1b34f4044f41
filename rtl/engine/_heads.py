# SPDX-License-Identifier: Apache-2.0
"""From projections to attention: elements of heads become queries, keys and values."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue, Skid, Widen
from ..vector.absmax_quantise import AbsmaxQuantise, AbsmaxQuantiseConfig
from ..vector.rope import Rope, RopeConfig, table_layout
from ._log2 import Log2, log_width
from ._program import Target


def element_layout(width: int, slot: int, position: int) -> data.StructLayout:
    """An element on its way, with what the heads need to know of its operation."""
    return data.StructLayout({
        "x": signed(width),
        "target": unsigned(3),
        "slot": unsigned(slot),
        "position": unsigned(position),
        "first": unsigned(1),
        "last": unsigned(1),
    })


class Heads(wiring.Component):
    """Rotates queries and keys, quantises all heads, and sends each where it belongs.

    Elements of an operation are those of its heads one after the other; head ``n`` of an
    operation for K or V goes to slot ``slot + n`` of its store.

    Members
    -------
    i : elements; ``target`` is QUERY, KEY or VALUE.
    query_o, query_scale_o : to the attention unit.
    key_o, key_scale_o, key_at_o, value_o, value_scale_o, value_at_o : to the stores.
    peak_o, codes_o : what the quantiser gives, for those who watch; not to be held up.
    """

    i: stream.Interface
    table_i: stream.Interface
    query_o: stream.Interface
    query_scale_o: stream.Interface
    key_o: stream.Interface
    key_scale_o: stream.Interface
    key_at_o: stream.Interface
    value_o: stream.Interface
    value_scale_o: stream.Interface
    value_at_o: stream.Interface
    tap: data.View

    def __init__(
        self, element: data.StructLayout, rope: RopeConfig, quantiser: AbsmaxQuantiseConfig
    ):
        self.element, self.rope, self.quantiser = element, rope, quantiser
        self.address_width = len_of(element, "slot") + len_of(element, "position")
        codes = data.StructLayout({
            "codes": data.ArrayLayout(signed(quantiser.code_width), quantiser.lanes)
        })
        peak = data.StructLayout({"peak": unsigned(quantiser.x_width - 1)})
        at = data.StructLayout({"address": unsigned(self.address_width)})
        super().__init__({
            "i": In(stream.Signature(element)),
            "table_i": In(stream.Signature(table_layout(rope))),
            "query_o": Out(stream.Signature(codes)),
            "query_scale_o": Out(stream.Signature(peak)),
            "key_o": Out(stream.Signature(codes)),
            "key_scale_o": Out(stream.Signature(data.StructLayout({"scale": peak["peak"].shape}))),
            "key_at_o": Out(stream.Signature(at)),
            "value_o": Out(stream.Signature(codes)),
            "value_scale_o": Out(
                stream.Signature(
                    data.StructLayout({"scale": unsigned(log_width(quantiser.x_width - 1))})
                )
            ),
            "value_at_o": Out(stream.Signature(at)),
            "tap": Out(
                data.StructLayout({
                    "codes_valid": 1,
                    "codes": codes["codes"].shape,
                    "peak_valid": 1,
                    "peak": peak["peak"].shape,
                })
            ),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.rope = rope = Rope(self.rope)
        m.submodules.quantiser = quantiser = AbsmaxQuantise(self.quantiser)
        m.submodules.rows = rows = Widen(signed(self.quantiser.x_width), 1, self.quantiser.lanes)
        wiring.connect(m, wiring.flipped(self.table_i), rope.table_i)
        kind = data.StructLayout({"target": unsigned(3), "address": unsigned(self.address_width)})
        m.submodules.codes_of = codes_of = Queue(kind, 4)
        m.submodules.peak_of = peak_of = Queue(kind, 4)

        # The first element of a head announces it.
        head_dim = self.rope.head_dim
        at, head, told = Signal(range(head_dim)), Signal(len_of(self.element, "slot")), Signal()
        opens, announced, take = Signal(), Signal(), Signal()
        element, here = self.i.p, Signal.like(head, name="here")
        all_ready = rope.op_i.ready & codes_of.i.ready & peak_of.i.ready
        m.d.comb += [
            here.eq(Mux(element.first, 0, head)),
            opens.eq(at == 0),
            announced.eq(self.i.valid & opens & ~told & all_ready),
            rope.op_i.valid.eq(announced),
            rope.op_i.p.position.eq(element.position),
            rope.op_i.p.bypass.eq(element.target == Target.VALUE),
            rope.i.valid.eq(self.i.valid & (told | ~opens)),
            rope.i.p.x.eq(element.x),
            self.i.ready.eq(rope.i.ready & (told | ~opens)),
            take.eq(self.i.valid & self.i.ready),
        ]
        for queue in (codes_of, peak_of):
            m.d.comb += [
                queue.i.valid.eq(announced),
                queue.i.p.target.eq(element.target),
                queue.i.p.address.eq(Cat(element.position, (element.slot + here)[: len(head)])),
            ]
        with m.If(announced):
            m.d.sync += told.eq(1)
        with m.If(take):
            m.d.sync += [told.eq(0), at.eq(Mux(at == head_dim - 1, 0, at + 1)), head.eq(here)]
            with m.If(at == head_dim - 1):
                m.d.sync += head.eq(here + 1)

        m.submodules.rotated = rotated = Skid(rope.o.p.shape())
        wiring.connect(m, rope.o, rotated.i)
        m.d.comb += [
            rows.i.valid.eq(rotated.o.valid),
            rotated.o.ready.eq(rows.i.ready),
            rows.i.p.x[0].eq(rotated.o.p.x),
            rows.i.p.first.eq(rotated.o.p.first),
            rows.i.p.last.eq(rotated.o.p.last),
            quantiser.i.valid.eq(rows.o.valid),
            rows.o.ready.eq(quantiser.i.ready),
            quantiser.i.p.x.eq(rows.o.p.x),
            quantiser.i.p.first.eq(rows.o.p.first),
            quantiser.i.p.last.eq(rows.o.p.last),
        ]
        self._codes(m, quantiser, codes_of)
        self._scales(m, quantiser, peak_of)
        return m

    def _codes(self, m: Module, quantiser: Any, queue: Any) -> None:
        """Rows of codes to their unit."""
        out = quantiser.o
        ports = {Target.QUERY: self.query_o, Target.KEY: self.key_o, Target.VALUE: self.value_o}
        for target, port in ports.items():
            chosen = queue.o.valid & (queue.o.p.target == target)
            m.d.comb += [port.valid.eq(out.valid & chosen), port.p.codes.eq(out.p.codes)]
            with m.If(chosen):
                m.d.comb += out.ready.eq(port.ready)
        moved = out.valid & out.ready
        m.d.comb += [
            queue.o.ready.eq(moved & out.p.last),
            self.tap.codes_valid.eq(moved),
            self.tap.codes.eq(out.p.codes),
        ]

    def _scales(self, m: Module, quantiser: Any, queue: Any) -> None:
        """Peaks to their unit: of values the logarithm; with keys and values their address."""
        peak = quantiser.scale_o
        m.submodules.log = log = Log2(self.quantiser.x_width - 1)
        layout = data.StructLayout({"address": unsigned(self.address_width)})
        m.submodules.value_at = value_at = Queue(layout, 4)
        m.submodules.key_at = key_at = Queue(layout, 4)
        wiring.connect(m, value_at.o, wiring.flipped(self.value_at_o))
        wiring.connect(m, key_at.o, wiring.flipped(self.key_at_o))
        key_layout = data.StructLayout({"scale": unsigned(self.quantiser.x_width - 1)})
        m.submodules.key_scale = key_scale = Queue(key_layout, 4)
        wiring.connect(m, key_scale.o, wiring.flipped(self.key_scale_o))
        target = queue.o.p.target
        ready = {
            Target.QUERY: self.query_scale_o.ready,
            Target.KEY: key_scale.i.ready & key_at.i.ready,
            Target.VALUE: log.i.ready & value_at.i.ready,
        }
        valid = {
            Target.QUERY: [self.query_scale_o.valid],
            Target.KEY: [key_scale.i.valid, key_at.i.valid],
            Target.VALUE: [log.i.valid, value_at.i.valid],
        }
        offered = peak.valid & queue.o.valid
        for kind, ports in valid.items():
            with m.If(target == kind):
                m.d.comb += [port.eq(offered & ready[kind]) for port in ports[1:]]
                alone = ready[kind] if len(ports) > 1 else 1
                m.d.comb += [
                    ports[0].eq(offered & alone),
                    peak.ready.eq(queue.o.valid & ready[kind]),
                ]
        m.d.comb += [
            self.query_scale_o.p.peak.eq(peak.p.amax),
            key_scale.i.p.scale.eq(peak.p.amax),
            key_at.i.p.address.eq(queue.o.p.address),
            value_at.i.p.address.eq(queue.o.p.address),
            log.i.p.value.eq(peak.p.amax),
            self.value_scale_o.valid.eq(log.o.valid),
            log.o.ready.eq(self.value_scale_o.ready),
            self.value_scale_o.p.scale.eq(log.o.p.log),
            queue.o.ready.eq(peak.valid & peak.ready),
            self.tap.peak_valid.eq(peak.valid & peak.ready),
            self.tap.peak.eq(peak.p.amax),
        ]


def len_of(layout: data.StructLayout, field: str) -> int:
    """Bits of one field."""
    return layout[field].width
