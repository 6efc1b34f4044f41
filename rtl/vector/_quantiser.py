# SPDX-License-Identifier: Apache-2.0
"""Largest magnitude of a vector, and every element divided by it: two passes over one buffer."""

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._once import place
from .._pipeline import Pipeline
from ..config import Config, param
from ._divider import Divider, DividerConfig

SLACK = 16
"""Rows of the buffer beyond the longest vector: what is in flight between the two passes."""


@dataclass(frozen=True, kw_only=True)
class QuantiserConfig(Config):
    lanes: int = param(8, "elements per transfer", ge=1, le=256)
    rows: int = param(24, "transfers of the longest vector", ge=1, le=65536)
    width: int = param(24, "bits of an unsigned magnitude", ge=2, le=62)
    code_width: int = param(8, "bits of a signed code", ge=2, le=16)
    front: int = param(1, "registers between admission and the magnitudes", ge=1, le=16)
    tag_width: int = param(0, "bits of the tag that goes with the peak", ge=0, le=64)

    @property
    def address_width(self) -> int:
        """Bits of a row's address in the buffer, which holds a power of two of rows."""
        return ceil_log2(self.rows + SLACK)

    @property
    def levels(self) -> int:
        """Registered levels of the tree that finds a row's largest magnitude."""
        return ceil_log2(self.lanes)

    @property
    def code_latency(self) -> int:
        """Registers between a row's read address and its codes."""
        return 2 + self.divider.latency

    @property
    def commit(self) -> int:
        """Edges from a vector's last admission until its peak is known."""
        return self.front + self.levels

    @property
    def early(self) -> int:
        """Edges from a vector's last admission until the second pass may turn to it.

        Its first row is read two edges later and meets the peak one further on, which must be known
        by then; the row itself must have been written, ``front`` edges after it was admitted.
        """
        return self.commit - (2 if self.levels else 1)

    @property
    def divider(self) -> DividerConfig:
        """The unit that makes one lane's codes."""
        return DividerConfig(width=self.width, code_width=self.code_width)


class Quantiser(wiring.Component):
    """Codes ``sign * round_half_even(top * magnitude / peak)`` and the peak of every vector.

    ``top = 2**(code_width - 1) - 1``; ``peak`` is the vector's largest magnitude; a vector of zeros
    has codes 0 and peak 0.  Exact: a non-restoring division, one quotient bit per stage.

    Rows are admitted by a handshake; their magnitudes follow ``front`` cycles later, without one.
    The buffer is a ring of rows: a vector leaves while the next ones come in behind it.  The second
    pass reads a vector's first row while the peak is still being found.

    Members
    -------
    valid, ready, first, last : admission of a row.  ``last`` is implied where ``rows`` are reached.
    take, opens, row : what is admitted now, whether it opens a vector, its index in the vector.
    magnitudes, signs : of the row admitted ``front`` cycles ago.
    tag : if ``tag_width`` is not 0; of the vector whose last row was admitted
        ``front + levels`` cycles ago.
    o : :py:`Out(stream.Signature(StructLayout))`, ``codes``, ``first``, ``last``.
    peak_o : :py:`Out(stream.Signature(StructLayout))`, ``peak``, ``tag``: one per vector.
    """

    valid: Signal
    ready: Signal
    first: Signal
    last: Signal
    take: Signal
    opens: Signal
    row: Signal
    magnitudes: data.View
    signs: Signal
    tag: Signal
    o: stream.Interface
    peak_o: stream.Interface

    def __init__(self, config: QuantiserConfig):
        self.config = config
        super().__init__({
            "valid": In(1),
            "ready": Out(1),
            "first": In(1),
            "last": In(1),
            "take": Out(1),
            "opens": Out(1),
            "row": Out(range(config.rows)),
            "magnitudes": In(data.ArrayLayout(unsigned(config.width), config.lanes)),
            "signs": In(config.lanes),
            **({"tag": In(config.tag_width)} if config.tag_width else {}),
            "o": Out(stream.Signature(codes_layout(config.code_width, config.lanes))),
            "peak_o": Out(
                stream.Signature(
                    data.StructLayout({
                        "peak": unsigned(config.width),
                        **({"tag": unsigned(config.tag_width)} if config.tag_width else {}),
                    })
                )
            ),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        address = config.address_width

        # Two vectors may wait between the passes; a slot each.  ``closing``: the peak is not known
        # yet; ``to_read``: the second pass may turn to it; ``to_divide`` and ``to_send``: the peak
        # was not taken by the second pass, by the peak's stream.
        closing, to_read, to_divide, to_send = (Signal(2) for _ in range(4))
        slot_length = Array(
            Signal(range(config.rows), name=f"length_{slot}", reset_less=True) for slot in range(2)
        )
        slot_peak = Array(
            Signal(config.width, name=f"peak_{slot}", reset_less=True) for slot in range(2)
        )
        close_slot, early_slot, commit_slot, read_slot, divide_slot, send_slot = (
            Signal(name=f"{name}_slot")
            for name in ("close", "early", "commit", "read", "divide", "send")
        )

        # Admission.  Pointers have a bit more than an address, so that full and empty differ.  Who
        # offers a row waits for ``ready``, so what a number of rows decides is a register.
        start, head = Signal(address + 1), Signal(address + 1)
        at, end = Signal(range(config.rows)), Signal()
        single = int(config.rows == 1)
        at_start, at_end = Signal(init=1), Signal(init=single)
        used, full = Signal(address + 1), Signal()
        row_at = Signal(address)
        busy = closing | to_divide | to_send
        m.d.comb += [
            self.row.eq(Mux(self.first, 0, at)),
            self.opens.eq(self.first | at_start),
            end.eq(self.last | (at_end & ~self.first) | single),
            used.eq(start + at - head),
            row_at.eq(start + self.row),
            self.ready.eq(~full & ~(end & busy.bit_select(close_slot, 1))),
            self.take.eq(self.valid & self.ready),
        ]
        # With one row less than there is room for, and late: whether one leaves is not asked.
        m.d.sync += full.eq(used + self.take >= (1 << address) - 1)
        with m.If(self.take):
            m.d.sync += [
                at.eq(self.row + 1),
                at_start.eq(end),
                at_end.eq(Mux(end, single, self.row == config.rows - 2)),
            ]
            with m.If(end):
                m.d.sync += [
                    at.eq(0),
                    start.eq(start + self.row + 1),
                    closing.bit_select(close_slot, 1).eq(1),
                    slot_length[close_slot].eq(self.row),
                    close_slot.eq(~close_slot),
                ]

        # First pass: rows go into the buffer, and up a tree for the largest magnitude.
        write = delayed(m, Cat(self.take, row_at), config.front, "write")
        m.submodules.memory = memory = Memory(
            shape=unsigned(config.lanes * (config.width + 1)), depth=1 << address, init=[]
        )
        rows_in, rows_out = memory.write_port(), memory.read_port()
        m.d.comb += [
            rows_in.en.eq(write[0]),
            rows_in.addr.eq(write[1:]),
            rows_in.data.eq(Cat(self.magnitudes, self.signs)),
        ]
        largest = registered_tree(
            m, larger, [self.magnitudes[lane] for lane in range(config.lanes)], "largest"
        )
        done = delayed(m, Cat(self.take, self.opens, self.take & end), config.commit, "done")
        with m.If(delayed(m, self.take & end, config.early, "early")):
            m.d.sync += [to_read.bit_select(early_slot, 1).eq(1), early_slot.eq(~early_slot)]
        peak, so_far = Signal(config.width, reset_less=True), Signal(config.width)
        m.d.comb += so_far.eq(larger(largest, Mux(done[1], 0, peak)))
        with m.If(done[0]):
            m.d.sync += peak.eq(so_far)
        with m.If(done[2]):
            m.d.sync += [
                slot_peak[commit_slot].eq(so_far),
                closing.bit_select(commit_slot, 1).eq(0),
                to_divide.bit_select(commit_slot, 1).eq(1),
                to_send.bit_select(commit_slot, 1).eq(1),
                commit_slot.eq(~commit_slot),
            ]

        m.d.comb += [
            self.peak_o.valid.eq(to_send.bit_select(send_slot, 1)),
            self.peak_o.p.peak.eq(slot_peak[send_slot]),
        ]
        if config.tag_width:
            slot_tag = Array(
                Signal(config.tag_width, name=f"tag_{slot}", reset_less=True) for slot in range(2)
            )
            m.d.comb += self.peak_o.p.tag.eq(slot_tag[send_slot])
            with m.If(done[2]):
                m.d.sync += slot_tag[commit_slot].eq(self.tag)
        with m.If(self.peak_o.valid & self.peak_o.ready):
            m.d.sync += [to_send.bit_select(send_slot, 1).eq(0), send_slot.eq(~send_slot)]

        # Second pass: a row a cycle.  The divisor changes when a vector's first row has been read.
        m.submodules.pipeline = pipeline = Pipeline(config.code_latency)
        reading, count, length = Signal(), Signal(range(config.rows)), Signal(range(config.rows))
        divisor = Signal(config.width, reset_less=True)
        issue, final, load, starts = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            pipeline.i_valid.eq(reading),
            issue.eq(reading & pipeline.i_ready),
            final.eq(count == length),
            load.eq(to_read.bit_select(read_slot, 1) & (~reading | (issue & final))),
            rows_out.en.eq(pipeline.enable),
            rows_out.addr.eq(head),
        ]
        with m.If(issue):
            m.d.sync += [head.eq(head + 1), count.eq(count + 1)]
            with m.If(final):
                m.d.sync += reading.eq(0)
        with m.If(load):
            m.d.sync += [
                reading.eq(1),
                count.eq(0),
                length.eq(slot_length[read_slot]),
                to_read.bit_select(read_slot, 1).eq(0),
                read_slot.eq(~read_slot),
            ]
        marks = delayed(
            m, Cat(count == 0, final), config.code_latency, "marks", enable=pipeline.enable
        )
        m.d.comb += [
            self.o.valid.eq(pipeline.o_valid),
            pipeline.o_ready.eq(self.o.ready),
            self.o.p.first.eq(marks[0]),
            self.o.p.last.eq(marks[1]),
        ]
        row = Signal(len(rows_out.data), reset_less=True)  # block RAM is slow to answer
        peak_now = Signal(config.width)
        m.d.comb += peak_now.eq(slot_peak[divide_slot])
        with m.If(pipeline.enable):
            m.d.sync += [row.eq(rows_out.data), starts.eq(reading & (count == 0))]
            with m.If(starts):
                m.d.sync += [
                    divisor.eq(Cat(peak_now[0] | (peak_now == 0), peak_now[1:])),
                    to_divide.bit_select(divide_slot, 1).eq(0),
                    divide_slot.eq(~divide_slot),
                ]
        self._divide(m, platform, pipeline.enable, row, divisor)
        return m

    def _divide(self, m, platform, enable, row, divisor):
        """Codes of ``row``, which is beside its ``divisor``."""
        config = self.config
        divisors = [divisor]
        for stage in range(1, config.divider.divisors):
            later = Signal(config.width, name=f"divisor_{stage}", reset_less=True)
            with m.If(enable):
                m.d.sync += later.eq(divisors[-1])
            divisors.append(later)
        for lane in range(config.lanes):
            divider = place(
                m,
                platform,
                f"divider_{lane}",
                Divider(config.divider),
                enable=enable,
                magnitude=row[lane * config.width : (lane + 1) * config.width],
                sign=row[lane - config.lanes],
                divisors=Cat(divisors),
            )
            m.d.comb += self.o.p.codes[lane].eq(divider.code)


def codes_layout(code_width: int, lanes: int) -> data.StructLayout:
    """Payload of quantised vectors."""
    return data.StructLayout({
        "codes": data.ArrayLayout(signed(code_width), lanes),
        "first": unsigned(1),
        "last": unsigned(1),
    })


def larger(one, other):
    """The larger of two unsigned values."""
    return Mux(one > other, one, other)


def delayed(m, value, cycles, name, *, enable=None, reset_less=False):
    """``value`` as it was ``cycles`` cycles ago; cycles without ``enable`` do not count."""
    for cycle in range(cycles):
        later = Signal(len(value), name=f"{name}_{cycle + 1}", reset_less=reset_less)
        with m.If(Const(1, 1) if enable is None else enable):
            m.d.sync += later.eq(value)
        value = later
    return value


def registered_tree(m, join, items, name):
    """``items`` folded pairwise with a register after each of ``ceil_log2(len(items))`` levels."""
    level, depth = list(items), 0
    while len(level) > 1:
        pairs = [join(*level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
        folded = pairs + level[2 * len(pairs) :]
        level = []
        for index, value in enumerate(folded):
            held = Signal(value.shape(), name=f"{name}{depth}_{index}", reset_less=True)
            m.d.sync += held.eq(value)
            level.append(held)
        depth += 1
    return level[0]
