# SPDX-License-Identifier: Apache-2.0
"""Matrix times integer vector through tables of the activations' sums."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import accumulated
from .._once import place
from .._pipeline import Pipeline, delayed
from ..config import Config, Rate, param
from ..mac._select_tree import SelectTree, SelectTreeConfig
from ..mac._vectors import Vectors, walk_tiles
from ._table import Walk, build, entry_width, moves, plan, size, summed

TABLES = ("block", "lutram", "registers")

MOST_ENTRIES = 128
"""Most entries of a table."""

MOST_WORDS = 8192
"""Most words of a memory of tables."""


def _rate(group: int, table: str, rows: int, bits: int = 8, **values: Any) -> Rate:
    """Ternary groups in half tables; a weight's share of a code is an index's and a sign's."""
    return Rate(
        *("ternary", f"int{bits}", group * values["groups"] * rows),
        {"group": group, "rows": rows, "table": table, **values},
        rows=rows,
        label=f"groups of {group}, {table}",
        bits={1: 2, 2: 4, 3: 5, 4: 7}[group] / group,
    )


@dataclass(frozen=True, kw_only=True)
class LutGemvConfig(Config):
    group: int = param(4, "weights of a code, activations of a table", ge=2, le=6)
    groups: int = param(16, "tables read per cycle and row", ge=2, le=1024)
    rows: int = param(1, "rows multiplied per cycle, which share the tables", ge=1, le=256)
    code: str = param("ternary", "the weights there are", choices=("ternary", "binary"))
    half: bool = param(True, "half tables, codes with a sign; else whole ones, plain indices")
    table: str = param("block", "what holds the tables", choices=TABLES)
    share: int = param(1, "block, lutram: tables that one adder builds in turn", ge=1, le=64)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    max_k: int = param(384, "longest vector, a multiple of group * groups", ge=2, le=1 << 20)
    memory_stage: bool = param(True, "register what memories give; block RAM is slow to read")
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    chain: int = param(2, "entries in series at each leaf of a tree, a power of two", ge=2, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"group": 2, "groups": 3, "rows": 2, "act_width": 4, "max_k": 24, "stage": 1},
        "tl1": {"group": 2, "groups": 8, "half": False},
        "tl2": {"group": 3, "groups": 6, "table": "lutram", "share": 2, "max_k": 36},
        "binary": {
            "code": "binary",
            "groups": 4,
            "rows": 4,
            "table": "registers",
            "memory_stage": False,
        },
    }
    papers: ClassVar[tuple[str, ...]] = (
        "Bitnet.cpp, arXiv 2502.11880",
        "TeLLMe, arXiv 2510.15926",
        "TENET, arXiv 2509.13765",
        "LUT design space, arXiv 2604.25183",
    )

    rates: ClassVar[tuple[Rate, ...]] = (
        *(
            _rate(group, "registers", rows, groups=groups, max_k=160 * group * groups)
            for group, groups in ((2, 4), (3, 3), (4, 2))
            for rows in ((1, 4, 16) if group < 4 else (1, 4))
        ),
        *(_rate(2, "registers", 4, bits, groups=4, max_k=1280, act_width=bits) for bits in (4, 16)),
        *(
            _rate(group, "block", rows, groups=16, max_k=96 * group)
            for group in (3, 4)
            for rows in (1, 4)
        ),
        Rate(
            *("bipolar1", "int8", 128),
            {"code": "binary", "groups": 2, "rows": 16, "table": "registers"},
            rows=16,
            label="groups of 4, registers",
        ),
    )

    def faults(self) -> Iterator[str]:
        if self.chain & (self.chain - 1):
            yield f"chain must be a power of two, not {self.chain}"
        if self.entries > MOST_ENTRIES:
            yield (
                f"a {'half' if self.half else 'whole'} {self.code} table of {self.group} "
                f"activations has {self.entries} entries and at most {MOST_ENTRIES} are allowed"
            )
        if self.table == "registers" and self.share > 1:
            yield "share must be 1 with registers: all tables of a tile are built at once"
        elif self.groups % self.share:
            yield f"share must divide groups ({self.groups}), not {self.share}"
        if self.max_k % self.k_lanes:
            yield f"max_k must be a multiple of group * groups ({self.k_lanes}), not {self.max_k}"
        elif self.acc_width > self.sum_width:
            yield (
                f"sums of {self.max_k} activations of {self.act_width} bits need "
                f"{self.acc_width} bits and int32 has {self.sum_width}"
            )
        elif self.table != "registers" and self.words > MOST_WORDS:
            yield (
                f"tables of {self.max_tiles} tiles take {self.words} words and a memory has at "
                f"most {MOST_WORDS}"
            )

    @property
    def k_lanes(self) -> int:
        """Columns multiplied per cycle: a tile."""
        return self.group * self.groups

    @property
    def lanes(self) -> int:
        """Multiply-accumulates per cycle."""
        return self.k_lanes * self.rows

    @property
    def entries(self) -> int:
        """Entries of a table."""
        return size(self.group, self.code, self.half)

    @property
    def index_width(self) -> int:
        """Bits of an entry's index."""
        return ceil_log2(self.entries)

    @property
    def code_width(self) -> int:
        """Bits of the code of ``group`` weights."""
        return self.index_width + self.half

    @property
    def checked(self) -> bool:
        """Whether there are indices beyond the table, which the core reports."""
        return self.entries != 1 << self.index_width

    @property
    def entry_width(self) -> int:
        """Bits that hold every entry, activations of ``-2**(act_width - 1)`` among them."""
        return entry_width(self.group, self.code, self.half, self.act_width)

    @property
    def parts(self) -> int:
        """Transfers of a tile's activations."""
        return 1 if self.table == "registers" else self.group * self.share

    @property
    def max_tiles(self) -> int:
        """Tiles of the longest vector."""
        return self.max_k // self.k_lanes

    @property
    def words(self) -> int:
        """Words of the memory that holds the tables of a group's activations, two vectors."""
        return 2 << ceil_log2(self.max_tiles) + self.index_width

    @property
    def build(self) -> int:
        """Cycles in which the tables of a tile are built; 0: in the pipeline."""
        if self.table == "registers":
            return 0
        return self.share * len(moves(self.group, self.code, self.half))

    @property
    def build_latency(self) -> int:
        """Cycles from the last step of building to the first word of weights."""
        return 0 if self.table == "registers" else 1 + self.memory_stage

    @property
    def sum_width(self) -> int:
        """Bits of one output sum."""
        return 32

    @property
    def acc_width(self) -> int:
        """Bits that hold every sum: ``max_k`` terms of magnitude ``2**(act_width - 1)``."""
        return self.act_width + ceil_log2(self.max_k) + 1

    @property
    def tree(self) -> SelectTreeConfig:
        """Sums the entries of a row."""
        return SelectTreeConfig(
            lanes=self.groups, act_width=self.entry_width, stage=self.stage, chain=self.chain
        )

    @property
    def lookup_latency(self) -> int:
        """Cycles from a word of weights to its entries."""
        if self.table != "registers":
            return 1 + self.memory_stage
        built = plan(self.group, self.code, self.half).registers(self.stage)
        return 1 + self.memory_stage + len(built) + 1

    @property
    def latency(self) -> int:
        """Cycles from the transfer of a row's last weights to the first cycle it is offered."""
        return self.lookup_latency + self.tree.latency + 1


def acts_layout(config: LutGemvConfig) -> data.StructLayout:
    acts = data.ArrayLayout(signed(config.act_width), config.k_lanes // config.parts)
    return data.StructLayout({"acts": acts, "first": unsigned(1), "last": unsigned(1)})


def weights_layout(config: LutGemvConfig) -> data.StructLayout:
    row = data.ArrayLayout(unsigned(config.code_width), config.groups)
    codes = data.ArrayLayout(row, config.rows)
    return data.StructLayout({"codes": codes, "first": unsigned(1), "last": unsigned(1)})


def sums_layout(config: LutGemvConfig) -> data.StructLayout:
    sums = data.ArrayLayout(signed(config.sum_width), config.rows)
    error = {"error": data.ArrayLayout(unsigned(1), config.rows)} if config.checked else {}
    return data.StructLayout({"sums": sums, **error, "last": unsigned(1)})


class LutGemv(wiring.Component):
    """Product of a ternary or binary matrix and an integer vector, by tables of the activations.

    Each ``group`` of activations has a table of all their signed sums; a code of the same number
    of weights is the index of one of them.  ``sums[n]`` is the sum of what row ``n``'s codes find:
    ``sum over k of weights[n, k] * acts[k]`` in int32, exact: no rounding, no overflow (the
    configuration proves it), activations may take every value.

    Codes, with entry ``p`` of the tables as in ``table_builder``:

    with ``half``
        Bits 0 up to the highest but one are ``p``; with the highest one the entry is negated.  For
        ternary groups of 3 that is TL2, 14 entries and a sign.
    without
        All bits are ``p``.  For ternary groups of 2 that is TL1, ``3 * w0 + w1 + 4``.

    A tile is ``k_lanes = group * groups`` columns of the matrix, in ``config.parts`` transfers on
    ``acts_i``.  Of the tile's columns in the order in which they arrive, group ``g`` has ``group``:
    the first is column ``(g // step) * group * step + g % step`` with ``step = groups / share``,
    and the others follow ``step`` columns apart.

    A vector arrives in whole tiles, ``last`` on its last transfer.  Its tables are built, a pass
    multiplies it: ``rows`` rows at a time, one transfer of ``rows * groups`` codes per cycle in the
    order of the vector's tiles; after each row group's last tile the group's sums are offered on
    ``o``.  The transfer marked ``last`` ends the pass; a row group it leaves unfinished is dropped.

    ``block``, ``lutram``
        Memories hold the tables of two vectors: while one is multiplied, the next one's are built
        and the activations of the one after arrive.  One adder for every ``share`` groups writes
        an entry a cycle, so a vector's tables take ``config.build`` cycles a tile; a pass begins
        ``config.build_latency`` cycles after, or follows the one before without a gap.
    ``registers``
        The tables of a tile are built again whenever a word of weights meets it, all at once in
        the pipeline, and are gone afterwards: every row group pays for them with adders.

    Latency is ``config.latency`` cycles after a group's last weights; one word of weights per
    cycle.  The core stops while offered sums are not taken; building goes on.  Reset drops vectors,
    tables and partial sums.

    Restart: ``first`` on ``acts_i`` drops what came since the last complete vector; ``first`` on
    ``weights_i`` drops the unfinished row group and begins the next one.  Both are allowed but not
    needed elsewhere.

    Errors: a code whose index is beyond the table (TL1 9 to 15, TL2 14 and 15) adds nothing, and
    ``error`` is set with the sum of its row.  A vector of more than ``max_tiles`` tiles keeps its
    last transfer and those before that have room; what a vector lacks of its last tile is
    unspecified.

    Members
    -------
    acts_i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed, ``k_lanes / parts`` of them.  ``first``, ``last``: bounds of the vector.
    weights_i : :py:`In(stream.Signature(StructLayout))`
        ``codes``: ``rows`` rows of ``groups``.  ``first``, ``last``: bounds of the pass.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: ``rows`` times int32.  ``error``, where codes can be wrong: one for each sum.
        ``last``: the pass ends with these.

    Source: TL1 and TL2 of Bitnet.cpp; the table-lookup matrix multiplication of TeLLMe and the half
    tables of TENET, of which only the principle is public.  The structure is ours.
    """

    acts_i: stream.Interface
    weights_i: stream.Interface
    o: stream.Interface

    def __init__(self, config: LutGemvConfig):
        self.config = config
        super().__init__({
            "acts_i": In(stream.Signature(acts_layout(config))),
            "weights_i": In(stream.Signature(weights_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        parts = config.max_tiles * config.parts
        m.submodules.vectors = vectors = Vectors(acts_layout(config), parts)
        wiring.connect(m, wiring.flipped(self.acts_i), vectors.acts_i)
        enable, payload = pipeline.enable, self.weights_i.p

        tile = Signal(range(config.max_tiles))
        ready, last_tile, moves, ending = (
            Signal(name=name) for name in ("tables_ready", "last_tile", "moves", "ending")
        )
        walk_tiles(m, tile, moves, payload.first, payload.last, last_tile)
        m.d.comb += [
            self.weights_i.ready.eq(enable & ready),
            moves.eq(self.weights_i.ready & self.weights_i.valid),
            ending.eq(moves & payload.last),
            pipeline.i_valid.eq(moves & last_tile),
            pipeline.o_ready.eq(self.o.ready),
            self.o.valid.eq(pipeline.o_valid),
        ]

        if config.table == "registers":
            m.d.comb += [
                vectors.enable.eq(enable),
                vectors.tile.eq(tile),
                vectors.release.eq(ending),
                ready.eq(vectors.valid),
                last_tile.eq(vectors.last_tile),
            ]
            rows = self._built_each_time(m, vectors.acts, enable)
        else:
            m.submodules.tables = tables = Tables(config)
            m.d.comb += [
                vectors.enable.eq(1),
                vectors.tile.eq(tables.part),
                vectors.release.eq(tables.releases),
                tables.vector_valid.eq(vectors.valid),
                tables.last_part.eq(vectors.last_tile),
                tables.acts.eq(vectors.acts),
                tables.enable.eq(enable),
                tables.tile.eq(tile),
                tables.release.eq(ending),
                tables.codes.eq(payload.codes.as_value()),
                ready.eq(tables.valid),
                last_tile.eq(tables.last_tile),
            ]
            rows = []
            for row in range(config.rows):
                found = tables.found[row * config.groups * config.entry_width :]
                rows.append(found[: config.groups * config.entry_width])

        # What a word is travels beside what it finds.
        at = config.lookup_latency
        weights, wrong = self._weights(m, payload.codes)
        selects = delayed(m, enable, Cat(weights), "select", at)[-1]
        step = Cat(moves, tile == 0, ending)
        steps = delayed(m, enable, step, "step", config.latency)
        summing, opens = steps[-2][0], steps[-2][1]
        m.d.comb += self.o.p.last.eq(steps[-1][2])
        if config.checked:
            errors = delayed(m, enable, Cat(wrong), "wrong", config.latency - 1)[-1]
            error = Signal(config.rows, reset_less=True)
            with m.If(enable & summing):
                m.d.sync += error.eq(errors | Mux(opens, 0, error))
            m.d.comb += self.o.p.error.as_value().eq(error)

        for row, found in enumerate(rows):
            tree = place(
                m,
                platform,
                f"tree_{row}",
                SelectTree(config.tree),
                acts=found,
                weights=selects.word_select(row, 2 * config.groups),
                enable=enable,
            )
            acc = accumulated(
                *(m, platform, config.acc_width, tree.sum, tree.pending, opens, enable & summing),
                name=f"_{row}",
            )
            m.d.comb += self.o.p.sums[row].eq(acc)
        return m

    def _weights(self, m: Module, codes) -> tuple[list[Any], list[Any]]:
        """How the tree takes each entry, enabled or not and its sign; whether a row has an error.

        An index beyond the table finds anything: it is not enabled.
        """
        config = self.config
        weights, wrong = [], []
        for row in range(config.rows):
            valid = Signal(config.groups, name=f"valid_{row}")
            for group in range(config.groups):
                code = codes[row][group]
                index = code[: config.index_width]
                m.d.comb += valid[group].eq(_below(index, config.entries) if config.checked else 1)
                weights.append(Cat(valid[group], code[-1] & valid[group] if config.half else 0))
            wrong.append(~valid.all())
        return weights, wrong

    def _built_each_time(self, m: Module, acts, enable) -> list[Any]:
        """For each row the entries that its codes find in the tables of the tile."""
        config = self.config
        acts = Cat(delayed(m, enable, acts, "acts", 1)[-1] if config.memory_stage else acts)
        made = plan(config.group, config.code, config.half)
        width = config.entry_width
        tables = []
        for group in range(config.groups):
            own = [
                acts.word_select(k * config.groups + group, config.act_width).as_signed()
                for k in range(config.group)
            ]
            tables.append(build(m, made, own, width, enable, config.stage, f"_{group}"))
        codes = self.weights_i.p.codes.as_value()
        codes = delayed(m, enable, codes, "codes", config.lookup_latency - 1)[-1]
        rows = []
        for row in range(config.rows):
            found = []
            for group, table in enumerate(tables):
                code = codes.word_select(row * config.groups + group, config.code_width)
                x_found = Signal(width, name=f"x_found_{row}_{group}", reset_less=True)
                with m.If(enable):
                    m.d.sync += x_found.eq(Array(table)[code[: config.index_width]])
                found.append(x_found)
            rows.append(Cat(found))
        return rows


def _below(index: Any, bound: int) -> Any:
    """``index < bound`` in LUTs: yosys would make a carry chain of each."""
    below: Any = 0
    for at in range(len(index)):
        below = ~index[at] | below if bound >> at & 1 else ~index[at] & below
    return below


class Tables(wiring.Component):
    """Tables of two vectors in memories: one is read while the other is built.

    ``part``, ``acts``: a transfer of the vector under work, which is asked for and there a cycle
    later.  ``valid``: there are tables to read, until ``release``.  ``found``: the entries of
    ``codes`` in the tables of ``tile``, 1 cycle of ``enable`` later or with ``memory_stage`` 2.
    """

    vector_valid: Signal
    last_part: Signal
    part: Signal
    acts: Signal
    releases: Signal
    enable: Signal
    tile: Signal
    release: Signal
    codes: Signal
    valid: Signal
    last_tile: Signal
    found: Signal

    def __init__(self, config: LutGemvConfig):
        self.config = config
        super().__init__({
            "vector_valid": In(1),
            "last_part": In(1),
            "part": Out(range(config.max_tiles * config.parts)),
            "acts": In(config.k_lanes // config.parts * config.act_width),
            "releases": Out(1),
            "enable": In(1),
            "tile": In(range(config.max_tiles)),
            "release": In(1),
            "codes": In(config.rows * config.groups * config.code_width),
            "valid": Out(1),
            "last_tile": Out(1),
            "found": Out(config.rows * config.groups * config.entry_width),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        full = Array(Signal(name=f"full_{bank}") for bank in (0, 1))
        ends = Array(Signal.like(self.tile, name=f"end_{bank}", reset_less=True) for bank in (0, 1))
        building, reading = Signal(name="building"), Signal(name="reading")
        m.submodules.walk = walk = Walk(config.group, config.code, config.half)
        turn, tile = Signal(range(max(config.share, 2))), Signal.like(self.tile)
        base, final, ends_tile, closes, late_last, seen = (
            Signal.like(self.part, name="base"),
            *(Signal(name=name) for name in ("final", "ends_tile", "closes", "late_last", "seen")),
        )
        m.d.comb += [
            walk.enable.eq(self.vector_valid & ~full[building]),
            self.part.eq(base + walk.act),
            final.eq(walk.enable & walk.ends),
            ends_tile.eq(turn == config.share - 1),
            # A tile's last move asks for no part that was not asked for before.
            closes.eq(ends_tile & (seen | late_last)),
            self.releases.eq(final & closes),
            self.valid.eq(full[reading]),
            self.last_tile.eq(self.tile == ends[reading]),
        ]
        m.d.sync += [
            late_last.eq(walk.enable & ~final & self.last_part),
            seen.eq(seen | late_last),
        ]
        with m.If(final):
            m.d.sync += [
                base.eq(base + config.group),
                turn.eq(Mux(ends_tile, 0, turn + 1)),
                tile.eq(tile + ends_tile),
            ]
            with m.If(closes):
                m.d.sync += [
                    *(base.eq(0), tile.eq(0), seen.eq(0)),
                    *(building.eq(~building), ends[building].eq(tile)),
                ]

        # The activation comes out of memory beside what is registered here.
        shape = data.StructLayout({
            **{name: 1 for name in ("used", "subtract", "double", "ends", "writes", "closes")},
            "turn": len(turn),
            "address": config.index_width + len(tile),
            "bank": 1,
        })
        issued = Signal(shape)
        m.d.comb += [
            # Between tables nothing changes the sum.
            issued.used.eq(walk.used & walk.enable),
            issued.subtract.eq(walk.subtract & walk.enable),
            issued.double.eq(walk.double),
            issued.ends.eq(final),
            issued.writes.eq(walk.shows & walk.enable),
            issued.closes.eq(self.releases),
            issued.turn.eq(turn),
            issued.address.eq(Cat(walk.entry, tile)),
            issued.bank.eq(building),
        ]
        late = Signal(shape, name="x_move_0")
        m.d.sync += late.eq(issued)
        acts = self.acts
        if config.memory_stage:
            x_late, x_acts = Signal(shape, name="x_move_1"), Signal.like(acts, reset_less=True)
            m.d.sync += [x_late.eq(late), x_acts.eq(acts)]
            late, acts = x_late, x_acts
        with m.If(self.release):
            m.d.sync += [full[reading].eq(0), reading.eq(~reading)]
        with m.If(late.closes):
            m.d.sync += full[late.bank].eq(1)

        step = config.groups // config.share
        double = late.double if config.code == "binary" else None
        entries = [
            summed(
                *(m, platform, late, acts.word_select(at, config.act_width).as_signed()),
                *(config.entry_width, 1, double, f"_{at}"),
            )
            for at in range(step)
        ]
        found = []
        for group in range(config.groups):
            memory = Memory(shape=signed(config.entry_width), depth=config.words, init=[])
            m.submodules[f"table_{group}"] = memory
            write = memory.write_port()
            m.d.comb += [
                write.addr.eq(Cat(late.address, late.bank)),
                write.data.eq(entries[group % step]),
                # Of a bank that is not full, which reads are: said so, no logic is made for both.
                write.en.eq(late.writes & (late.turn == group // step) & ~full[late.bank]),
            ]
            for row in range(config.rows):
                code = self.codes.word_select(row * config.groups + group, config.code_width)
                address = Cat(code[: config.index_width], self.tile, reading)
                found.append((row, group, self._read(m, memory, address)))
        m.d.comb += self.found.eq(Cat(entry for *_, entry in sorted(found, key=lambda at: at[:2])))
        return m

    def _read(self, m: Module, memory: Any, address: Any) -> Any:
        config = self.config
        if config.table == "block":
            port = memory.read_port()
            m.d.comb += [port.addr.eq(address), port.en.eq(self.enable & self.valid)]
            entry = port.data
        else:
            port = memory.read_port(domain="comb")
            m.d.comb += port.addr.eq(address)
            (entry,) = delayed(m, self.enable, port.data, "entry", 1)
        return delayed(m, self.enable, entry, "found", 1)[-1] if config.memory_stage else entry
