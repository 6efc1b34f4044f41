# SPDX-License-Identifier: Apache-2.0
"""Matrix times integer vector, weights of bit planes that have a scale each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import add, or_
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._once import place
from .._pipeline import Pipeline, delayed, held
from .._streams import bits_for
from .._tree import reduce_tree
from ..config import Config, Rate, param
from ..mac._vectors import Vectors
from ._bit_lookup import CONVENTIONS, BitLookup, BitLookupConfig
from ._scale_sum import PRODUCTS, SCALES, ScaleSum, ScaleSumConfig


def _rate(weights: str, planes: int, rows: int, sharing: int, **scale: Any) -> Rate:
    """32 products a cycle, with the tables that cost least on ECP5."""
    small = {"table": 2, "tables": 2, "product": "rows", "max_k": 1024}
    values = {"planes": planes, "rows": rows, "sharing": sharing, **small, **scale}
    label = f"scales of {scale.get('scale', 'fp16')}"
    return Rate(weights, "int8", rows * 4 / planes, values, rows=rows, label=label)


@dataclass(frozen=True, kw_only=True)
class HlqGemvConfig(Config):
    planes: int = param(2, "bits of a weight", ge=1, le=4)
    group: int = param(128, "most weights of a row that share their scales", ge=4, le=1024)
    rows: int = param(16, "rows at a time, which share the tables", ge=1, le=256)
    table: int = param(4, "activations of one table", ge=2, le=5)
    tables: int = param(1, "tables of a row, whose entries are added in the same cycle", ge=1, le=8)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    max_k: int = param(4096, "longest vector, a multiple of group", ge=4, le=1 << 20)
    convention: str = param("folded", "bits are -1 and 1, or 0 and 1", choices=CONVENTIONS)
    scale: str = param("fp16", "what a scale is", choices=SCALES)
    scale_width: int = param(16, "fixed: bits of one signed scale", ge=2, le=18)
    shift_width: int = param(3, "pow2: bits of a scale's power", ge=1, le=5)
    sharing: int = param(16, "rows that share a multiplier, a part of rows", ge=1, le=256)
    product: str = param(
        "multiply", "the synthesis' multiplier, or rows of adders", choices=PRODUCTS
    )
    stage: int = param(1, "adder levels between pipeline registers; 0 for none", ge=0, le=4)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "group": 8,
            "rows": 2,
            "table": 2,
            "act_width": 4,
            "max_k": 32,
            "scale": "fixed",
            "scale_width": 6,
            "sharing": 2,
        },
        "wide": {
            "planes": 3,
            "group": 64,
            "tables": 2,
            "max_k": 1024,
            "convention": "bits",
            "sharing": 8,
            "product": "rows",
        },
        "uniform": {
            "planes": 4,
            "group": 32,
            "rows": 4,
            "max_k": 512,
            "scale": "pow2",
            "sharing": 4,
            "stage": 0,
        },
    }
    papers: ClassVar[tuple[str, ...]] = ("ELUTQ, arXiv 2510.19482", "T-MAC, arXiv 2407.00088")

    rates: ClassVar[tuple[Rate, ...]] = (
        _rate("hlq2", 2, 16, 16),
        _rate("hlq3", 3, 24, 12),
        _rate("hlq2", 2, 16, 16, scale="fixed", scale_width=8),
        _rate("int2", 2, 16, 16, scale="pow2"),
    )

    def faults(self) -> Iterator[str]:
        if self.group % self.acts:
            yield (
                f"group must be a multiple of the {self.acts} activations of a transfer "
                f"(table * tables), not {self.group}"
            )
        elif self.max_k % self.group:
            yield f"max_k must be a multiple of group ({self.group}), not {self.max_k}"
        if self.rows % self.sharing:
            yield f"sharing must divide the {self.rows} rows, not {self.sharing}"
        elif self.sharing < self.beats:
            yield (
                f"sharing must be at least {self.beats} with scale fp16, whose additions take as "
                f"many cycles, not {self.sharing}"
            )
        if self.scale != "fp16" and self.exact_width > 64:
            yield (
                f"sums of {self.max_k} weights need {self.exact_width} bits, more than 64; "
                "take a smaller max_k or smaller scales"
            )

    @property
    def acts(self) -> int:
        """Activations of a transfer."""
        return self.table * self.tables

    @property
    def multipliers(self) -> int:
        """Multipliers, each with an adder and the sums of its rows."""
        return self.rows // self.sharing

    @property
    def group_transfers(self) -> int:
        """Transfers of one plane of a group."""
        return self.group // self.acts

    @property
    def max_tiles(self) -> int:
        """Transfers of the longest vector."""
        return self.max_k // self.acts

    @property
    def max_groups(self) -> int:
        """Groups of the longest vector."""
        return self.max_k // self.group

    @property
    def value_width(self) -> int:
        """Bits of a plane's sum over a group: ``group`` times ``2**(act_width - 1)``, of both signs
        where bits are -1 and 1."""
        return self.act_width + ceil_log2(self.group) + (self.convention == "folded")

    @property
    def exact_width(self) -> int:
        """Bits of a sum with scales that are integers: ``max_k * (planes + 1)`` products."""
        top = self.scale_width - 1 if self.scale == "fixed" else (1 << self.shift_width) - 1
        return self.act_width + top + (self.max_k * (self.planes + 1)).bit_length()

    @property
    def beats(self) -> int:
        """Cycles that an addition to a sum takes."""
        stage = min(self.stage, 1)
        return ScaleSumConfig(scale=self.scale, slots=256, stage=stage).beats

    @property
    def lookup(self) -> BitLookupConfig:
        """Tables and rows."""
        return BitLookupConfig(
            rows=self.rows,
            table=self.table,
            tables=self.tables,
            act_width=self.act_width,
            convention=self.convention,
            acc_width=self.value_width,
            stage=self.stage,
        )

    @property
    def scaled(self) -> ScaleSumConfig:
        """A multiplier and the sums of its rows."""
        return ScaleSumConfig(
            value_width=self.value_width,
            scale=self.scale,
            scale_width=self.scale_width,
            shift_width=self.shift_width,
            slots=self.sharing,
            sum_width=self.exact_width,
            product=self.product,
            stage=min(self.stage, 1),
        )

    @property
    def scale_bits(self) -> int:
        """Bits of a scale as it comes."""
        return self.scaled.code_width

    @property
    def bits_per_weight(self) -> float:
        """Storage of a weight: its planes, and a group's scales and offset."""
        return self.planes + self.scale_bits * (self.planes + 1) / self.group

    @property
    def lookup_latency(self) -> int:
        """Registers from a transfer of weights to its sums."""
        return 1 + (self.stage > 0) + self.lookup.latency

    @property
    def latency(self) -> int:
        """Cycles from a transfer's last plane sum to the first row's result."""
        return self.lookup_latency + 1 + self.scaled.latency


def acts_layout(config: HlqGemvConfig) -> data.StructLayout:
    acts = data.ArrayLayout(signed(config.act_width), config.acts)
    return data.StructLayout({"acts": acts, "first": unsigned(1), "last": unsigned(1)})


def weights_layout(config: HlqGemvConfig) -> data.StructLayout:
    bits = data.ArrayLayout(unsigned(1), config.acts)
    return data.StructLayout({"bits": data.ArrayLayout(bits, config.rows), "last": unsigned(1)})


def scales_layout(config: HlqGemvConfig) -> data.StructLayout:
    shape = signed if config.scale == "fixed" else unsigned
    scales = data.ArrayLayout(shape(config.scale_bits), config.multipliers)
    return data.StructLayout({"scales": scales})


def sums_layout(config: HlqGemvConfig) -> data.StructLayout:
    width = config.scaled.out_width
    shape = unsigned(width) if config.scale == "fp16" else signed(width)
    sums = data.ArrayLayout(shape, config.multipliers)
    return data.StructLayout({"sums": sums, "last": unsigned(1)})


class HlqGemv(wiring.Component):
    """Matrix times integer vector, weights of bit planes that have a scale each.

    A weight is ``z + sum over b of s[b] * c[b]`` with a bit for each of ``planes``; a group of
    ``group`` weights of a row shares its scales ``s[b]`` and its offset ``z``.  Bits count 0 and 1,
    or -1 and 1 with ``convention="folded"`` (tables of half the size; the same weights have half
    the scales and an offset larger by their sum).  For row ``n``, over groups ``g`` in order,

        ``sum[n] += z[n, g] * SA[g]``, and then for ``b`` from 0 up
        ``sum[n] += s[b, n, g] * D[b, n, g]``

    with ``SA`` the sum of the group's activations, found once while the vector loads, and ``D`` the
    sum of the products of activations and bits, both exact integers.  ``scale`` says how they are
    multiplied and added:

    fp16
        Scales are codes of float16.  Each product is rounded to float32, each addition is one of
        float32, to nearest even, from +0; ``sums`` are codes of float32.  An exponent of 31 counts
        like others, so there are no infinities and no NaN, and sums are too small to make one.
    fixed
        Scales are signed integers, ``sums`` exact.
    pow2
        A scale is ``(some, negative, power)``, highest first: 0 or plus or minus ``2**power``.
        Exact, with a shifter and no multiplier.  Uniform weights of ``planes`` bits are these.

    Any scale may be negative, and they come in no order.  Exact sums do not overflow: at most
    ``max_k`` weights of ``planes + 1`` terms of at most ``2**(act_width - 1)`` times the largest
    scale, which ``exact_width`` bits hold.  The scale of the vector is left to who uses the sums.

    A vector arrives on ``acts_i``, ``table * tables`` activations a transfer, and waits in one of
    two banks.  A pass multiplies it with ``rows`` rows at a time.  The bits of these come on
    ``weights_i``: groups in order, in a group plane after plane, in a plane the vector's transfers.
    The last group may be short.  ``scales_i`` has the scales, a multiplier's for ``sharing`` rows
    in succession: groups in order, in a group the offset and then plane by plane, of each the
    rows in order.  ``o`` has the rows' sums in that order.  ``last`` on the last bits of rows ends
    the pass and frees the bank.

    Throughput: one transfer of bits a cycle, so a group takes ``planes * group_transfers`` cycles
    whatever its scales are.  The multipliers work meanwhile, ``(planes + 1) * sharing`` cycles a
    group; the next plane's sums wait where that is more.  Latency is ``config.latency`` cycles from
    a row's last bits to the first of its sums.  Everything stops while a sum is not taken.  Reset
    drops whatever is in flight.

    Restart: ``first`` on ``acts_i`` drops the transfers since the last complete vector; elsewhere
    only reset.  Errors: a vector of more than ``max_k`` activations, and ``last`` on ``weights_i``
    elsewhere than with the last bits of rows, give unspecified sums until reset.

    Members
    -------
    acts_i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed.  ``first``, ``last``: bounds of the vector.
    weights_i : :py:`In(stream.Signature(StructLayout))`
        ``bits``: ``rows`` rows.  ``last``: of the pass.
    scales_i : :py:`In(stream.Signature(StructLayout))`
        ``scales``: one for each multiplier.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: one for each multiplier.  ``last``: the pass ends with these.

    Source: Hierarchical Linear Quantization of ELUTQ, whose kernels are software, with the tables
    of T-MAC; the structure is ours (docs/blocks/hlq_gemv.md).
    """

    acts_i: stream.Interface
    weights_i: stream.Interface
    scales_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: HlqGemvConfig):
        self.config = config
        super().__init__({
            "acts_i": In(stream.Signature(acts_layout(config))),
            "weights_i": In(stream.Signature(weights_layout(config))),
            "scales_i": In(stream.Signature(scales_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.lookups = lookups = _Lookups(config)
        m.submodules.products = products = _Products(config)
        wiring.connect(m, wiring.flipped(self.acts_i), lookups.acts_i)
        wiring.connect(m, wiring.flipped(self.weights_i), lookups.weights_i)
        wiring.connect(m, wiring.flipped(self.scales_i), products.scales_i)
        wiring.connect(m, products.o, wiring.flipped(self.o))
        wiring.connect(m, lookups.total_o, products.total_i)
        wiring.connect(m, lookups.planes_o, products.planes_i)
        return m


def _total_layout(config: HlqGemvConfig) -> data.StructLayout:
    """The sum of a group's activations, of a row's first group or another."""
    return data.StructLayout({"total": signed(config.value_width), "first": unsigned(1)})


def _planes_layout(config: HlqGemvConfig) -> data.StructLayout:
    """The sums of a plane; of a row's last group, of the last rows of a pass."""
    sums = data.ArrayLayout(signed(config.value_width), config.rows)
    return data.StructLayout({"sums": sums, "final": unsigned(1), "ends": unsigned(1)})


class _Lookups(wiring.Component):
    """From a vector and bits to the sums of groups and planes.

    ``total_o`` comes with a group's first transfer of bits, ``planes_o`` with a plane's last.
    """

    acts_i: stream.Interface
    weights_i: stream.Interface
    total_o: stream.Interface
    planes_o: stream.Interface

    def __init__(self, config: HlqGemvConfig):
        self.config = config
        super().__init__({
            "acts_i": In(stream.Signature(acts_layout(config))),
            "weights_i": In(stream.Signature(weights_layout(config))),
            "total_o": Out(stream.Signature(_total_layout(config))),
            "planes_o": Out(stream.Signature(_planes_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config, lookup = self.config, self.config.lookup
        m.submodules.vectors = vectors = Vectors(acts_layout(config), config.max_tiles)
        m.submodules.totals = totals = Memory(
            shape=signed(config.value_width), depth=2 << bits_for(config.max_groups), init=[]
        )
        self._load(m, vectors, totals.write_port())

        # Where the walk is: in a group, of which plane; and what is to be done there.
        at, tile, base = (
            Signal(range(config.group_transfers)),
            *(Signal.like(vectors.tile, name=name) for name in ("tile", "base")),
        )
        group, bank = Signal(bits_for(config.max_groups)), Signal()
        plane = Signal(range(max(config.planes, 2)))
        enable, moves, plane_ends, row_ends, last_plane = (
            Signal(name=name)
            for name in ("enable", "moves", "plane_ends", "row_ends", "last_plane")
        )
        m.d.comb += [
            moves.eq(enable & vectors.valid & self.weights_i.valid),
            self.weights_i.ready.eq(enable & vectors.valid),
            plane_ends.eq((at == config.group_transfers - 1) | vectors.last_tile),
            last_plane.eq(plane == config.planes - 1),
            row_ends.eq(plane_ends & last_plane & vectors.last_tile),
            vectors.tile.eq(tile),
            vectors.enable.eq(enable),
            vectors.release.eq(moves & row_ends & self.weights_i.p.last),
        ]
        with m.If(moves):
            m.d.sync += [at.eq(at + 1), tile.eq(tile + 1)]
            with m.If(plane_ends):
                m.d.sync += [at.eq(0), plane.eq(Mux(last_plane, 0, plane + 1))]
                with m.If(~last_plane):
                    m.d.sync += tile.eq(base)
                with m.Elif(vectors.last_tile):
                    m.d.sync += [tile.eq(0), base.eq(0), group.eq(0)]
                with m.Else():
                    m.d.sync += [base.eq(tile + 1), group.eq(group + 1)]
        with m.If(vectors.release):
            m.d.sync += bank.eq(~bank)

        step = data.StructLayout(dict.fromkeys(("opens", "begins", "first", "final", "ends"), 1))
        now: Any = Signal(step)
        m.d.comb += [
            now.opens.eq(at == 0),
            now.begins.eq((at == 0) & (plane == 0)),
            now.first.eq(group == 0),
            now.final.eq(vectors.last_tile),
            now.ends.eq(self.weights_i.p.last),
        ]
        # Registers to the sums, the first those of the memories.
        count = config.lookup_latency
        steps: Any = delayed(m, enable, now, "step", count)
        there, ended = (
            [Signal(name=f"{name}_{n}") for n in range(count)] for name in ("there", "ended")
        )
        with m.If(enable):
            for chain, value in ((there, moves), (ended, moves & plane_ends)):
                m.d.sync += [
                    late.eq(early) for early, late in zip([value, *chain], chain, strict=False)
                ]
        read = totals.read_port()
        m.d.comb += [read.addr.eq(Cat(group, bank)), read.en.eq(enable)]
        bits = held(m, enable, self.weights_i.p.bits.as_value(), "bits")
        acts, before = vectors.acts, lookup.before
        if config.stage:  # block RAM is slow to read
            acts, bits = held(m, enable, acts, "acts_read"), held(m, enable, bits, "bits_read")
            before += 1
        lookups = place(
            m,
            platform,
            "lookup",
            BitLookup(lookup),
            acts=acts,
            bits=bits,
            opens=steps[before].opens,
            moves=there[before],
            enable=enable,
        )

        total_there = there[-1] & steps[-1].begins
        m.d.comb += [
            enable.eq(~(total_there & ~self.total_o.ready) & ~(ended[-1] & ~self.planes_o.ready)),
            self.total_o.valid.eq(total_there & enable),
            self.total_o.p.total.eq(delayed(m, enable, read.data, "total", count - 1)[-1]),
            self.total_o.p.first.eq(steps[-1].first),
            self.planes_o.valid.eq(ended[-1] & enable),
            self.planes_o.p.sums.eq(lookups.acc),
            self.planes_o.p.final.eq(steps[-1].final),
            self.planes_o.p.ends.eq(steps[-1].ends),
        ]
        return m

    def _load(self, m: Module, vectors: Any, write: Any) -> None:
        """The vector to its bank, behind a register, and sums of its groups to their memory."""
        config, payload = self.config, self.acts_i.p
        m.submodules.front = front = Pipeline(1)
        total = reduce_tree(add, [payload.acts[k] for k in range(config.acts)])
        total = held(m, front.enable, total, "tile_total")
        x: Any = held(m, front.enable, payload, "acts")
        m.d.comb += [
            front.i_valid.eq(self.acts_i.valid),
            self.acts_i.ready.eq(front.i_ready),
            vectors.acts_i.valid.eq(front.o_valid),
            front.o_ready.eq(vectors.acts_i.ready),
            vectors.acts_i.p.eq(x),
        ]
        at, group = Signal(range(config.group_transfers)), Signal(bits_for(config.max_groups))
        now_at, now_group = Signal.like(at), Signal.like(group)
        bank, so_far = Signal(), Signal(signed(config.value_width), reset_less=True)
        taken, sum_now = Signal(), Signal.like(so_far)
        m.d.comb += [
            taken.eq(front.o_valid & vectors.acts_i.ready),
            now_at.eq(Mux(x.first, 0, at)),
            now_group.eq(Mux(x.first, 0, group)),
            sum_now.eq(Mux(now_at == 0, 0, so_far) + total),
            write.addr.eq(Cat(now_group, bank)),
            write.data.eq(sum_now),
            write.en.eq(taken),
        ]
        with m.If(taken):
            m.d.sync += [so_far.eq(sum_now), at.eq(now_at + 1), group.eq(now_group)]
            with m.If(now_at == config.group_transfers - 1):
                m.d.sync += [at.eq(0), group.eq(now_group + 1)]
            with m.If(x.last):
                m.d.sync += [at.eq(0), group.eq(0), bank.eq(~bank)]


class _Products(wiring.Component):
    """The scale stage: what was summed up times scales, one row of each multiplier a cycle."""

    total_i: stream.Interface
    planes_i: stream.Interface
    scales_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: HlqGemvConfig):
        self.config = config
        super().__init__({
            "total_i": In(stream.Signature(_total_layout(config))),
            "planes_i": In(stream.Signature(_planes_layout(config))),
            "scales_i": In(stream.Signature(scales_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config, scaled = self.config, self.config.scaled
        total: Any = Signal(self.total_i.p.shape(), reset_less=True)
        planes: Any = Signal(self.planes_i.p.shape(), reset_less=True)
        total_there, planes_there = Signal(), Signal()
        m.submodules.pipeline = pipeline = Pipeline(scaled.latency)
        term = Signal(range(config.planes + 1))
        slot = Signal(bits_for(config.sharing))
        turns = Signal(config.sharing, init=1)  # the slot's bit, which is cheaper to choose with
        offset, some, goes, last_slot, results = (
            Signal(name=name) for name in ("offset", "some", "goes", "last_slot", "results")
        )
        m.d.comb += [
            offset.eq(term == 0),
            some.eq(Mux(offset, total_there, planes_there)),
            self.scales_i.ready.eq(some & pipeline.enable),
            goes.eq(some & self.scales_i.valid),
            last_slot.eq(slot == config.sharing - 1),
            results.eq(goes & planes.final & (term == config.planes)),
            pipeline.i_valid.eq(results),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
        ]
        leaves = goes & pipeline.enable & last_slot
        for port, kept, there, left in (
            (self.total_i, total, total_there, leaves & offset),
            (self.planes_i, planes, planes_there, leaves & ~offset),
        ):
            m.d.comb += port.ready.eq(~there)
            with m.If(port.valid & port.ready):
                m.d.sync += [kept.eq(port.p), there.eq(1)]
            with m.If(left):
                m.d.sync += there.eq(0)
        with m.If(goes & pipeline.enable):
            m.d.sync += [slot.eq(slot + 1), turns.eq(turns.rotate_left(1))]
            with m.If(last_slot):
                m.d.sync += [slot.eq(0), term.eq(Mux(term == config.planes, 0, term + 1))]

        ends = delayed(m, pipeline.enable, planes.ends & last_slot, "ends", scaled.latency)[-1]
        m.d.comb += self.o.p.last.eq(ends)
        for number in range(config.multipliers):
            own = [planes.sums[number * config.sharing + n] for n in range(config.sharing)]
            own = reduce_tree(
                or_,
                [
                    sums & turn.replicate(config.value_width)
                    for sums, turn in zip(own, turns, strict=True)
                ],
            ).as_signed()
            part = place(
                m,
                platform,
                f"scale_{number}",
                ScaleSum(scaled),
                value=Mux(offset, total.total, own),
                scale=self.scales_i.p.scales[number],
                slot=slot,
                opens=offset & total.first,
                moves=goes,
                enable=pipeline.enable,
            )
            m.d.comb += self.o.p.sums[number].eq(part.sum)
        return m
