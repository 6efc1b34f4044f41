# SPDX-License-Identifier: Apache-2.0
"""Products of low-bit weights, one bit at a time, by tables of the activations' sums."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import add
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import accumulated
from .._once import place
from .._pipeline import held
from .._runs import run_pipeline
from .._tree import reduce_tree
from ..config import Config, Rate, param
from ..formats._float_add import FloatAdd, FloatAddConfig, twice
from ._lookup import Lookup, LookupConfig
from ._table import build, entry_width, plan

ACTIVATION_WIDTH = 8
HALF = FloatAddConfig(format="fp16").of_format


def _rate(weights: str, bits: int, activations: str, n: int, k: int = 4, groups: int = 1) -> Rate:
    """A row of activations by ``n`` columns of weights; a tile takes as many cycles as bits."""
    values: dict[str, Any] = {"m": 1, "n": n, "k": k, "groups": groups, "max_bits": bits}
    if k == 2:
        values["table_width"] = 9
    if activations != "int8":
        values["activations"] = activations
    return Rate(weights, activations, n * k * groups / bits, values, rows=n)


@dataclass(frozen=True, kw_only=True)
class LutTensorCoreConfig(Config):
    m: int = param(1, "rows of activations of a tile", ge=1, le=16)
    n: int = param(16, "columns of weights of a tile, which share the tables", ge=1, le=256)
    k: int = param(4, "activations of one table", ge=2, le=6)
    groups: int = param(1, "tables of a row, whose entries are added in the same cycle", ge=1, le=8)
    activations: str = param("int8", "what tables are sums of", choices=("int8", "fp16"))
    table_width: int = param(10, "bits of an entry of integer tables", ge=2, le=16)
    max_bits: int = param(4, "most planes of a tile, which are the bits of a weight", ge=1, le=8)
    max_k: int = param(4096, "most activations of one sum", ge=2, le=1 << 20)
    sign_bit: str = param("msb", "which bit of a plane negates", choices=("msb", "lsb"))
    remap: str = param(
        "offline", "who complements addresses where the sign is set", choices=("offline", "inline")
    )
    half_table: bool = param(True, "tables without the entries that are negatives of others")
    table_beats: int = param(1, "transfers that bring the tables of a tile", ge=1, le=16)
    precompute: bool = param(False, "activations come instead, and the unit makes its tables")
    zero_point: bool = param(True, "sum up the activations as well, for the zero point's term")
    operand: bool = param(False, "a run begins with an operand C instead of zero")
    stages: int = param(
        2, "registers: sums; before them what was looked up; before it the weights", ge=1, le=3
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "m": 2,
            "n": 3,
            "k": 3,
            "groups": 2,
            "table_width": 5,
            "max_bits": 3,
            "max_k": 96,
            "table_beats": 2,
            "stages": 3,
        },
        "made": {
            "n": 4,
            "k": 2,
            "groups": 4,
            "table_width": 9,
            "max_bits": 2,
            "max_k": 64,
            "sign_bit": "lsb",
            "remap": "inline",
            "precompute": True,
            "operand": True,
            "stages": 1,
        },
        "float": {"n": 4, "activations": "fp16", "operand": True},
        "wide": {"m": 2, "n": 64},
    }
    papers: ClassVar[tuple[str, ...]] = ("LUT Tensor Core, arXiv 2408.06003",)

    rates: ClassVar[tuple[Rate, ...]] = (
        _rate("bipolar1", 1, "int8", 8),
        _rate("int2", 2, "int8", 16),
        _rate("int4", 4, "int8", 32),
        _rate("bipolar1", 1, "int8", 16, k=2, groups=8),
        _rate("int2", 2, "int8", 16, k=2, groups=8),
        _rate("int4", 4, "int8", 16, k=2, groups=8),
        _rate("bipolar1", 1, "fp16", 8),
        _rate("int2", 2, "fp16", 16),
        _rate("int4", 4, "fp16", 32),
    )

    def faults(self) -> Iterator[str]:
        size = self.groups * self.entries
        if size % self.table_beats:
            yield f"table_beats must divide the {size} entries of a row, not be {self.table_beats}"
        if self.max_k < self.depth:
            yield f"max_k must be at least the depth of a tile ({self.depth}), not {self.max_k}"
        if self.floats and self.groups > 1:
            yield (
                f"groups must be 1 with activations fp16, whose sums have an order, "
                f"not {self.groups}; int8 may have more"
            )
        if not self.half_table and (self.remap, self.sign_bit) != ("offline", "msb"):
            yield (
                "half_table must be true for remap inline and sign_bit lsb: "
                "an entry of a full table has no sign and its address is the plane"
            )

        if self.precompute and self.floats:
            yield "precompute must be false with activations fp16; with int8 it may be true"
        if self.precompute and self.table_beats > 1:
            yield f"table_beats must be 1 with precompute, not {self.table_beats}"
        if self.precompute and self.table_width != self.exact_width:
            yield (
                f"table_width must be {self.exact_width} with precompute, which makes exact tables "
                f"of {self.k}, not {self.table_width}"
            )

    @property
    def exact_width(self) -> int:
        """Bits of the sums of ``k`` int8 activations that a table holds."""
        return entry_width(self.k, "binary", self.half_table, ACTIVATION_WIDTH)

    @property
    def floats(self) -> bool:
        return self.activations == "fp16"

    @property
    def depth(self) -> int:
        """Activations of one row of a tile."""
        return self.groups * self.k

    @property
    def address(self) -> int:
        """Bits of an address of a table."""
        return self.k - self.half_table

    @property
    def entries(self) -> int:
        """Entries of one table."""
        return 1 << self.address

    @property
    def entry_width(self) -> int:
        """Bits of an entry as it comes."""
        return HALF.width if self.floats else self.table_width

    @property
    def table_bits(self) -> int:
        """Bits of the tables of a tile as they come."""
        return self.m * self.groups * self.entries * self.entry_width

    @property
    def plane_width(self) -> int:
        """Bits of an entry as it is looked up: integers double with every plane."""
        return HALF.width if self.floats else self.table_width + self.max_bits - 1

    @property
    def terms(self) -> int:
        """Entries of each plane that make one sum, at most."""
        return -(-self.max_k // self.depth) * self.groups

    @property
    def acc_width(self) -> int:
        """Bits that hold ``terms`` entries, each times less than ``2**max_bits``."""
        if self.floats:
            return HALF.width
        return self.table_width + self.max_bits + ceil_log2(self.terms)

    @property
    def activation_width(self) -> int:
        """Bits that hold the sum of the activations of a run."""
        return HALF.width if self.floats else self.table_width + ceil_log2(self.terms)

    @property
    def latency(self) -> int:
        """Cycles from a run's last plane at the tables to the first its sums are offered."""
        return min(self.stages, 2)

    @property
    def lookup(self) -> LookupConfig:
        """The processing element of one output."""
        return LookupConfig(
            address=self.address,
            groups=self.groups,
            signs=self.half_table,
            entry_width=self.plane_width,
            acc_width=self.acc_width,
            floats=self.floats,
            registered=self.stages > 1,
            operand=self.operand,
        )


def table_layout(config: LutTensorCoreConfig) -> data.StructLayout:
    shape = unsigned(HALF.width) if config.floats else signed(config.table_width)
    if config.precompute:
        acts = data.ArrayLayout(signed(ACTIVATION_WIDTH), config.k)
        acts = data.ArrayLayout(data.ArrayLayout(acts, config.groups), config.m)
        return data.StructLayout({"acts": acts})
    row = data.ArrayLayout(shape, config.groups * config.entries // config.table_beats)
    return data.StructLayout({"tables": data.ArrayLayout(row, config.m)})


def planes_layout(config: LutTensorCoreConfig) -> data.StructLayout:
    column = data.ArrayLayout(unsigned(config.k), config.groups)
    shape = unsigned(HALF.width) if config.floats else signed(config.acc_width)
    operand = data.ArrayLayout(data.ArrayLayout(shape, config.n), config.m)
    return data.StructLayout({
        "weights": data.ArrayLayout(column, config.n),
        **({"c": operand} if config.operand else {}),
        "equal": unsigned(1),
        "tile_last": unsigned(1),
        "first": unsigned(1),
        "last": unsigned(1),
    })


def sums_layout(config: LutTensorCoreConfig) -> data.StructLayout:
    floats, row = config.floats, {}
    shape = unsigned(HALF.width) if floats else signed(config.acc_width)
    if config.zero_point:
        total = unsigned(HALF.width) if floats else signed(config.activation_width)
        row = {"activations": data.ArrayLayout(total, config.m)}
    return data.StructLayout({
        "sums": data.ArrayLayout(data.ArrayLayout(shape, config.n), config.m),
        **row,
    })


class LutTensorCore(wiring.Component):
    """Products of low-bit weights, one bit at a time, by tables of the activations' sums.

    A run adds up tiles.  A tile multiplies ``m`` rows of ``depth`` activations by ``n`` columns of
    as many weights of ``B`` bits, and ``B`` is chosen by the tile, up to ``max_bits``.  For each
    row there are ``groups`` tables of ``k`` activations each: entry ``p`` of a table is
    ``sum(p[i] ? a[i] : -a[i])``, so that bits stand for 1 and -1 and entry ``~p`` is the negative
    of entry ``p``.  Half of the entries are stored: those whose sign bit is 1, which is the highest
    of ``p`` (``sign_bit`` msb) or the lowest (lsb), in the order of the other bits.

    A transfer of ``i`` is one plane: one bit of every weight, the bits of ``k`` weights as ``p``,
    the first one lowest.  With ``remap`` offline it is ``p`` with the sign bit cleared if that is
    set and ``~p`` if not, so that the bits say which entry and whether it is negated; with inline
    the unit does that.  To output ``[r][c]`` it adds ``2**s`` times the entries of column ``c`` in
    the tables of row ``r``; ``s`` is the number of earlier planes of the tile without ``equal``.
    So with ``B`` planes, lowest first, a weight of code ``q`` counts ``q' = 2 * q - (2**B - 1)``,
    an odd number; with ``equal`` the next plane counts as much as this one, as for weights -1, 0, 1
    as halves of two signs.  ``tile_last`` ends the tile, and the next plane looks into the next
    tables.  Planes of a tile must not add up to more than ``2**max_bits - 1``.

    ``s * (q - z)`` is ``s / 2 * (q' - (2 * z + 1 - 2**B))``.  For a zero point ``z`` the sum of the
    activations is needed, which with ``zero_point`` a run yields for each row too, of every tile
    whose first plane is of the run.

    int8
        Exact: no rounding.  Entries are any numbers of ``table_width`` bits: with 10, half tables
        of 4 are exact for all int8; with 8 they are quantised, which is done where they are made
        (sim/lut/lut_tensor_core.py has the rule).  No overflow up to ``max_k`` activations in a
        run: its ``terms`` entries are at most ``2**(table_width - 1)`` in magnitude and count less
        than ``2**max_bits`` times; beyond, sums wrap to ``acc_width`` bits.
    fp16
        Entries, operand and sums are IEEE 754 half precision.  A plane doubles entries exactly:
        subnormals too, zero stays zero, and what is too large becomes infinite.  Each addition
        rounds to nearest, ties to even, in the order operand (or +0), plane 0, plane 1, ... tile
        by tile.  NaNs become the positive quiet one.

    Throughput is one plane a cycle, ``B`` cycles a tile, without a gap between tiles or runs: the
    tables of a tile are taken with the last plane of the one before, or earlier as far as
    ``table_beats`` goes, of which all but the last have registers.  Latency is ``config.latency``
    cycles after a run's last plane.  All stages stop while an offered result is not taken.  Reset
    drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one, also inside of a tile; after
    ``last`` it may be left out.  Errors: none; every transfer is valid.

    Members
    -------
    table_i : :py:`In(stream.Signature(StructLayout))`
        ``tables``: of every row, one ``table_beats``-th of its entries, those of a table together.
        With ``precompute`` instead ``acts``, int8, by row and group.
    i : :py:`In(stream.Signature(StructLayout))`
        ``weights``: a plane of every column and group, unsigned ``k``.  ``c``, with ``operand``:
        what a run begins with, looked at with its first plane.  ``equal``, ``tile_last``.
        ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: of every row and column.  ``activations``, with ``zero_point``: of every row.

    Source: LUT Tensor Core (arXiv 2408.06003), tables of half the entries, reinterpreted weights
    and remapping ahead of time; doubling the tables instead of shifting in every element, several
    tables for one accumulator and the handshake are ours (docs/blocks/lut_tensor_core.md).
    """

    table_i: stream.Interface
    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: LutTensorCoreConfig):
        self.config = config
        super().__init__({
            "table_i": In(stream.Signature(table_layout(config))),
            "i": In(stream.Signature(planes_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        source = self._weights(m) if config.stages == 3 else self.i
        plane = source.p
        full = Signal()
        run = run_pipeline(m, source, self.o, config.latency, full)
        taken, ends = Signal(), Signal()
        m.d.comb += [taken.eq(source.valid & source.ready), ends.eq(taken & plane.tile_last)]
        fresh = Signal()  # the first plane of a tile is to come
        tables = self._tables(m, full, fresh, taken & ~plane.equal, ends)
        with m.If(taken):
            m.d.sync += fresh.eq(ends)

        if config.stages > 1:
            opens, moves = run.opens[0], run.enable & run.moves[0]
        else:
            opens, moves = run.begins, taken
        columns = [self._column(m, plane.weights[n], n) for n in range(config.n)]
        start: Any = None
        if config.operand:
            start = plane.c if config.stages == 1 else held(m, run.enable, plane.c, "c")
        for row in range(config.m):
            for number, (address, sign) in enumerate(columns):
                inputs: dict[str, Any] = {"table": Cat(tables[row]), "address": address}
                if config.half_table:
                    inputs["sign"] = sign
                if config.operand:
                    inputs["start"] = start[row][number]
                lookup = place(
                    m,
                    platform,
                    f"lookup_{row}_{number}",
                    Lookup(config.lookup),
                    enable=run.enable,
                    opens=opens,
                    moves=moves,
                    **inputs,
                )
                m.d.comb += self.o.p.sums[row][number].eq(lookup.acc)
            if config.zero_point:
                self._activations(m, platform, row, tables[row], fresh, run, opens, moves)
        return m

    def _weights(self, m: Module):
        """The planes behind a register of their own."""
        held = stream.Signature(planes_layout(self.config)).create(path=("held",))
        m.d.comb += self.i.ready.eq(~held.valid | held.ready)
        with m.If(self.i.ready):
            m.d.sync += [held.valid.eq(self.i.valid), held.payload.eq(self.i.payload)]
        return held

    def _tables(self, m: Module, full, fresh, doubles, ends) -> list[list[Signal]]:
        """By row and entry; new ones come with the last plane of the tile before."""
        config = self.config
        count = config.groups * config.entries
        offered, free, load = Signal(), Signal(), Signal()
        m.d.comb += [free.eq(~full | ends), load.eq(offered & free)]
        m.d.sync += full.eq(load | (full & ~ends))
        with m.If(load):
            m.d.sync += fresh.eq(1)
        come = self._made(m, offered, free) if config.precompute else self._beats(m, offered, free)

        tables = []
        for row in range(config.m):
            entries = []
            for n in range(count):
                entry = Signal(config.plane_width, name=f"table_{row}_{n}", reset_less=True)
                word = come[row][n]
                value = word if config.floats else word.as_signed()
                with m.If(load):
                    m.d.sync += entry.eq(value)
                if config.max_bits > 1:  # else no plane follows another in a tile
                    with m.Elif(doubles):
                        m.d.sync += entry.eq(twice(HALF, entry) if config.floats else entry << 1)
                entries.append(entry)
            tables.append(entries)
        return tables

    def _beats(self, m: Module, offered, free) -> list[list[Any]]:
        """Entries by row: the last beat as it is offered, those before from registers."""
        config = self.config
        beat = Signal(range(config.table_beats))
        final = Signal()
        m.d.comb += [
            final.eq(beat == config.table_beats - 1),
            offered.eq(self.table_i.valid & final),
            self.table_i.ready.eq(free | ~final),
        ]
        if config.table_beats == 1:
            parts = []
        else:
            with m.If(self.table_i.valid & self.table_i.ready):
                m.d.sync += beat.eq(Mux(final, 0, beat + 1))
            parts = [
                Signal.like(self.table_i.payload, name=f"beat_{n}", reset_less=True)
                for n in range(config.table_beats - 1)
            ]
            for n, part in enumerate(parts):
                with m.If(beat == n):
                    m.d.sync += part.eq(self.table_i.payload)
        parts.append(self.table_i.payload)
        each = config.groups * config.entries // config.table_beats
        return [
            [part.tables[row][n] for part in parts for n in range(each)] for row in range(config.m)
        ]

    def _made(self, m: Module, offered, free) -> list[list[Any]]:
        """Entries by row, in registers of the adders that make them from the activations."""
        config = self.config
        ready = Signal()
        m.d.comb += [ready.eq(~offered | free), self.table_i.ready.eq(ready)]
        with m.If(ready):
            m.d.sync += offered.eq(self.table_i.valid)
        made = plan(config.k, "binary", config.half_table)
        rows = []
        for row in range(config.m):
            entries = []
            for group in range(config.groups):
                acts = list(self.table_i.p.acts[row][group])
                if config.sign_bit == "lsb":
                    acts = [*acts[1:], acts[0]]
                name = f"_{row}_{group}"
                entries += build(m, made, acts, config.table_width, ready, 0, name)
            rows.append(entries)
        return rows

    def _column(self, m: Module, groups, number: int):
        """Address and sign of the entries of a column, in each group."""
        config = self.config
        addresses, signs = [], []
        for group in range(config.groups):
            bits = groups[group]
            if not config.half_table:
                addresses.append(bits)
                continue
            low = config.sign_bit == "lsb"
            sign, address = (bits[0], bits[1:]) if low else (bits[-1], bits[:-1])
            if config.remap == "inline":
                sign = ~sign
                inverted = Signal(config.address, name=f"address_{number}_{group}")
                m.d.comb += inverted.eq(address ^ sign.replicate(config.address))
                address = inverted
            addresses.append(address)
            signs.append(sign)
        return Cat(addresses), Cat(signs)

    def _activations(self, m: Module, platform, row: int, table, fresh, run, opens, moves) -> None:
        """The running sum of a row's activations: entries of all ones, once a tile."""
        config = self.config
        ones = [table[n] for n in range(config.entries - 1, len(table), config.entries)]
        if config.floats:
            term = ones[0]
        else:
            term = reduce_tree(add, [one[: config.table_width].as_signed() for one in ones])
        term = Mux(fresh, term, 0)
        if config.stages > 1:
            term = held(m, run.enable, term, f"ones_{row}")
        total = self.o.p.activations[row]
        if config.floats:
            acc = Signal(HALF.width, name=f"ones_{row}", reset_less=True)
            adder = FloatAdd(FloatAddConfig())
            place(m, platform, f"add_{row}", adder, a=Mux(opens, 0, acc), b=term, enable=1)
            with m.If(moves):
                m.d.sync += acc.eq(adder.y)
        else:
            acc = accumulated(m, platform, len(total), term, 0, opens, moves, f"_ones_{row}")
        m.d.comb += total.eq(acc)
