# SPDX-License-Identifier: Apache-2.0
"""Matrix tiles by multipliers, or by additions: what table lookup is compared with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import add
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
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
from ..formats._float_multiply import FloatMultiply, FloatMultiplyConfig
from ..formats._formats import FloatFormat, format_named
from ..formats._shift import normalised
from ..mac._booth import BoothProduct, BoothProductConfig
from ..mac._select_tree import SelectTree, SelectTreeConfig

ACTIVATION = {"int8": 8, "fp16": 16}
"""Bits of an activation, and of a weight of the same format."""

SUM = 32
"""Bits of the widest integer sum."""


def _rate(style: str, bits: int, activations: str = "int8") -> Rate:
    """32 products a cycle, of fp16 8, of a tile one row high and four activations deep."""
    serial = bits if style == "add" else 1
    columns = 2 if activations == "fp16" else 8
    weights = "bipolar1" if style == "add" and bits == 1 else f"int{bits}"
    values = {"n": columns * serial, "style": style, "bits": bits, "activations": activations}
    fields = {"coded": 1} if style == "dequant" else {}
    if style == "mac":
        weights = activations
        del values["bits"]
    rows = columns * serial
    return Rate(weights, activations, 4 * columns, values, fields, rows=rows, label=style)


@dataclass(frozen=True, kw_only=True)
class MacTileConfig(Config):
    m: int = param(1, "rows of activations of a tile", ge=1, le=16)
    n: int = param(8, "columns of weights of a tile", ge=1, le=256)
    k: int = param(4, "activations of a row, which is the depth of a tile", ge=1, le=64)
    style: str = param("mac", "how a tile is computed", choices=("mac", "dequant", "native", "add"))
    activations: str = param("int8", "their format, and that of sums", choices=tuple(ACTIVATION))
    bits: int = param(4, "bits of a weight, but for style mac", ge=1, le=8)
    product: str = param(
        "booth", "what integers are multiplied by", choices=("booth", "rows", "multiply")
    )
    max_k: int = param(4096, "most activations of one integer sum", ge=1, le=1 << 20)
    stages: int = param(
        2, "registers: operands; behind them products; in the tree of sums", ge=1, le=3
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"n": 2, "k": 2, "style": "dequant", "bits": 3, "max_k": 64},
        "native": {"n": 3, "k": 3, "style": "native", "bits": 3, "product": "rows", "stages": 3},
        "add": {"m": 2, "n": 3, "style": "add", "bits": 3, "max_k": 1024, "stages": 1},
        "float": {"n": 2, "k": 3, "style": "dequant", "activations": "fp16"},
    }
    papers: ClassVar[tuple[str, ...]] = ("LUT Tensor Core, arXiv 2408.06003",)

    rates: ClassVar[tuple[Rate, ...]] = (
        _rate("mac", 8),
        _rate("dequant", 2),
        _rate("dequant", 4),
        _rate("native", 2),
        _rate("native", 4),
        _rate("add", 1),
        _rate("add", 2),
        _rate("add", 4),
        _rate("mac", 8, "fp16"),
        _rate("dequant", 2, "fp16"),
        _rate("dequant", 4, "fp16"),
    )

    def faults(self) -> Iterator[str]:
        if self.max_k < self.k:
            yield f"max_k must be at least k ({self.k}), not {self.max_k}"
        elif not self.floats and self.acc_width > SUM:
            yield (
                f"sums of {self.max_k} products of 8 by {self.weight_width} bits need "
                f"{self.acc_width} bits, more than {SUM}"
            )
        if self.style == "add" and not self.floats and (self.k < 2 or self.k & (self.k - 1)):
            yield f"style add needs k to be a power of two from 2 on with int8, not {self.k}"
        if self.style == "native" and self.floats:
            yield "style native needs activations int8; fp16 has styles mac, dequant and add"
        if self.style == "native" and self.bits == 1:
            yield "style native needs bits of 2 or more; weights of 1 bit are style add"
        if self.style == "dequant" and self.bits == 8 and not self.floats:
            yield (
                "style dequant needs bits of 7 or less with int8: a code of 8 bits less its zero "
                "point has 9; fp16 may have 8"
            )

    @property
    def floats(self) -> bool:
        return self.activations == "fp16"

    @property
    def act_width(self) -> int:
        return ACTIVATION[self.activations]

    @property
    def weight_width(self) -> int:
        """Bits of a weight where it is multiplied, or all its planes."""
        return self.bits if self.style in ("native", "add") else self.act_width

    @property
    def sum_bound(self) -> int:
        """No integer sum is larger in magnitude."""
        weight = (1 << self.bits) - 1 if self.style == "add" else 1 << self.weight_width - 1
        return (self.max_k << 7) * weight

    @property
    def acc_width(self) -> int:
        """Bits of a sum."""
        return 16 if self.floats else self.sum_bound.bit_length() + 1

    @property
    def booth(self) -> BoothProductConfig:
        """The multiplier of integers; an odd weight has its sign twice."""
        digits = (self.weight_width + 1) // 2
        stage = 2 * digits if self.stages > 1 else 0
        kind = "rows" if self.product == "rows" else "booth"
        return BoothProductConfig(a_width=8, digits=digits, stage=stage, structure=kind)

    @property
    def tree(self) -> SelectTreeConfig:
        """Adds or subtracts the activations of ``add``, each inside a carry chain."""
        levels = ceil_log2(self.k)
        return SelectTreeConfig(
            lanes=max(self.k, 2),
            act_width=7 + self.bits,
            stage=(0, levels, 1)[self.stages - 1],
            chain=4 if self.stages < 3 else 2,
        )

    @property
    def latency(self) -> int:
        """Cycles from a run's last transfer to the first its sums are offered in."""
        if self.style == "add" and not self.floats:
            return 1 + self.tree.latency + 1
        widens = self.style == "dequant" and self.stages > 1
        levels = ceil_log2(self.k) if self.stages > 2 else 0
        rounds = self.floats and self.style != "add" and self.stages > 2
        return 1 + widens + (self.stages > 1) + rounds + levels + 1


def acts_layout(config: MacTileConfig) -> data.StructLayout:
    shape = unsigned(16) if config.floats else signed(8)
    row = data.ArrayLayout(shape, config.k)
    return data.StructLayout({"acts": data.ArrayLayout(row, config.m)})


def weights_layout(config: MacTileConfig) -> data.StructLayout:
    if config.style == "add":
        column: Any = unsigned(config.k)
    else:
        width = config.weight_width
        column = data.ArrayLayout(unsigned(16) if config.floats else signed(width), config.k)
    more = {"tile_last": unsigned(1)} if config.style == "add" else {}
    if config.style == "dequant":
        more = {"zero": data.ArrayLayout(unsigned(config.bits), config.n), "coded": unsigned(1)}
    return data.StructLayout({
        "weights": data.ArrayLayout(column, config.n),
        **more,
        "first": unsigned(1),
        "last": unsigned(1),
    })


def sums_layout(config: MacTileConfig) -> data.StructLayout:
    shape = unsigned(16) if config.floats else signed(config.acc_width)
    return data.StructLayout({
        "sums": data.ArrayLayout(data.ArrayLayout(shape, config.n), config.m)
    })


class MacTile(wiring.Component):
    """Matrix tiles by multipliers, or by additions: what table lookup is compared with.

    A run adds up tiles.  A tile multiplies ``m`` rows of ``k`` activations by ``n`` columns of as
    many weights; what a weight is depends on ``style``:

    mac
        A number of the activations' format, int8 or fp16.
    dequant
        The same, or, where the transfer is ``coded``, a code of ``bits`` bits, in the lowest ones,
        less its column's ``zero``; the difference is made int8 or fp16, exactly, and goes into the
        same multipliers.
    native
        A two's complement number of ``bits`` bits, by multipliers that are as narrow.
    add
        A weight comes in planes, one bit a transfer, the lowest first, and each bit adds or
        subtracts its activation ``2**s`` times, where ``s`` is the number of planes before: with
        ``B`` planes a weight of code ``q`` counts ``2 * q - (2**B - 1)``.  A plane has the ``k``
        bits of a column as a number, the first one lowest; ``tile_last`` ends the tile.  These are
        the planes of ``lut_tensor_core`` with remap inline, and the same sums.

    int8
        Exact int32: no rounding.  No overflow up to ``max_k`` activations in a run, for which
        ``sum_bound`` is the largest there is; beyond, sums wrap to ``acc_width`` bits.
    fp16
        Products, and in ``add`` activations times ``2**s``, are rounded to fp16, then added in
        pairs, the first with the second and so on, pairs of these, until there is one; that is
        added to the sum, which begins with +0.  Each is IEEE 754, to nearest, ties to even.

    Throughput is one transfer a cycle: a tile, or with ``add`` one of its planes.  Latency is
    ``config.latency`` cycles after a run's last transfer.  All stages stop while an offered sum is
    not taken.  Reset drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  A tile is not cut by it.  Errors: none; every transfer is valid.

    Members
    -------
    acts_i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: of every row; one transfer a tile, taken with its first transfer of ``i``.
    i : :py:`In(stream.Signature(StructLayout))`
        ``weights``: of every column.  ``zero``: by column, and ``coded``, with dequant.
        ``tile_last``, with add.  ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sums``: of every row and column.

    Source: the baselines of LUT Tensor Core (arXiv 2408.06003), a multiplier array and a bit-serial
    adder array of the same tile; the streams are those of ``lut_tensor_core``.
    """

    acts_i: stream.Interface
    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: MacTileConfig):
        self.config = config
        super().__init__({
            "acts_i": In(stream.Signature(acts_layout(config))),
            "i": In(stream.Signature(weights_layout(config))),
            "o": Out(stream.Signature(sums_layout(config))),
        })

    @property
    def format(self) -> FloatFormat:
        found = format_named("fp16")
        assert isinstance(found, FloatFormat)
        return found

    def elaborate(self, platform):
        m = Module()
        config = self.config
        # A transfer goes in when there are weights and, where a tile begins, activations.
        fresh = Signal(init=1)
        both = stream.Signature(weights_layout(config)).create(path=("both",))
        m.d.comb += [
            both.valid.eq(self.i.valid & (~fresh | self.acts_i.valid)),
            both.payload.eq(self.i.payload),
            self.i.ready.eq(both.ready & (~fresh | self.acts_i.valid)),
            self.acts_i.ready.eq(both.ready & fresh & self.i.valid),
        ]
        run = run_pipeline(m, both, self.o, config.latency)
        enable = run.enable
        if config.style == "add":
            with m.If(both.valid & both.ready):
                m.d.sync += fresh.eq(self.i.p.tile_last)
        acts = self._activations(m, enable, fresh)
        at = 1 + (config.style == "dequant" and config.stages > 1)
        if at > 1:
            acts = [
                [held(m, enable, act, f"widened_{row}_{n}") for n, act in enumerate(values)]
                for row, values in enumerate(acts)
            ]
        columns = [self._weights(m, enable, n) for n in range(config.n)]
        for row in range(config.m):
            for number, weights in enumerate(columns):
                name = f"{row}_{number}"
                total, pending = self._sum(m, platform, enable, name, acts[row], weights)
                moves, opens = enable & run.moves[-2], run.opens[-2]
                if config.floats:
                    acc = self._accumulated(m, platform, name, total, opens, moves)
                else:
                    acc = accumulated(
                        m, platform, config.acc_width, total, pending, opens, moves, f"_{name}"
                    )
                m.d.comb += self.o.p.sums[row][number].eq(acc)
        return m

    def _activations(self, m: Module, enable, fresh) -> list[list[Any]]:
        """Registers of the activations of a tile; in ``add`` they double with every plane."""
        config, rows = self.config, []
        width = config.act_width
        if config.style == "add" and not config.floats:
            width += config.bits - 1
        for row in range(config.m):
            values = []
            for n in range(config.k):
                given: Any = self.acts_i.p.acts[row][n]
                shape = unsigned(width) if config.floats else signed(width)
                act = Signal(shape, name=f"act_{row}_{n}", reset_less=True)
                following = given
                if config.style == "add":
                    double = twice(self.format, act) if config.floats else (act << 1)[:width]
                    following = Mux(fresh, given, double if config.floats else double.as_signed())
                    with m.If(enable & self.i.valid & (~fresh | self.acts_i.valid)):
                        m.d.sync += act.eq(following)
                else:
                    with m.If(enable):
                        m.d.sync += act.eq(following)
                values.append(act)
            rows.append(values)
        return rows

    def _weights(self, m: Module, enable, column: int) -> list[Any]:
        """Registers of the weights of a column; with dequant what is multiplied."""
        config, payload = self.config, self.i.p
        given = payload.weights[column]
        if config.style == "add":
            return [held(m, enable, given, f"plane_{column}")]
        values = [held(m, enable, given[n], f"weight_{column}_{n}") for n in range(config.k)]
        if config.style != "dequant":
            return values
        zero = held(m, enable, payload.zero[column], f"zero_{column}")
        coded = held(m, enable, payload.coded, f"coded_{column}")
        widened = []
        for n, value in enumerate(values):
            name = f"{column}_{n}"
            number = Signal(signed(config.bits + 1), name=f"number_{name}")
            m.d.comb += number.eq(value[: config.bits] - zero)
            wide = self._half(m, name, number) if config.floats else number
            chosen = Signal.like(value, name=f"chosen_{name}")
            m.d.comb += chosen.eq(Mux(coded, wide, value))
            if config.stages > 1:
                chosen = held(m, enable, chosen, f"chosen_{name}")
            widened.append(chosen)
        return widened

    def _half(self, m: Module, name: str, number) -> Any:
        """A small integer as fp16, which holds it exactly."""
        bits, sign = self.config.bits, number[-1]
        size = Signal(bits, name=f"size_{name}")
        m.d.comb += size.eq((number ^ sign.replicate(bits + 1)) + sign)
        shifted, zeros = normalised(m, f"shifted_{name}", size)
        mantissa = Cat(Const(0, 11 - bits), shifted[:-1])
        field = (15 + bits - 1 - zeros)[:5]
        return Cat(mantissa, field & shifted[-1].replicate(5), sign)

    def _sum(self, m: Module, platform, enable, name: str, acts, weights) -> tuple[Any, Any]:
        """What a transfer adds to one output, and one to be added to that."""
        config = self.config
        if config.style == "add" and not config.floats:
            tree = SelectTree(config.tree)
            codes = Cat(Cat(1, ~bit) for bit in weights[0])
            place(m, platform, f"sum_{name}", tree, acts=Cat(acts), weights=codes, enable=enable)
            return tree.sum, tree.pending
        if config.product == "multiply" and not config.floats and config.stages < 3:
            # In one expression, for which synthesis has an array of carry-save adders.
            total = reduce_tree(add, [a * b for a, b in zip(acts, weights, strict=True)])
            return self._late(m, enable, f"sum_{name}", total, config.stages > 1), 0
        terms = [
            self._term(m, platform, enable, f"{name}_{n}", acts[n], weights, n)
            for n in range(config.k)
        ]
        level = 0
        while len(terms) > 1:
            level += 1
            joined = []
            for n, (a, b) in enumerate(zip(terms[::2], terms[1::2], strict=False)):
                where = f"{name}_{level}_{n}"
                joined.append(self._added(m, platform, where, a, b) if config.floats else a + b)
            terms = [
                self._late(m, enable, f"level_{name}_{level}_{n}", term, config.stages > 2)
                for n, term in enumerate([*joined, *terms[2 * len(joined) :]])
            ]
        return terms[0], 0

    def _term(self, m: Module, platform, enable, where: str, act, weights, n: int) -> Any:
        """One product, or an activation with the sign that its bit says."""
        config = self.config
        if config.style == "add":
            term = Cat(act[:-1], act[-1] ^ ~weights[0][n])
        elif config.floats:
            part = FloatMultiply(FloatMultiplyConfig(stages=int(config.stages > 2)))
            place(m, platform, f"product_{where}", part, a=act, b=weights[n], enable=enable)
            term = part.y
        elif config.product == "multiply":
            term = act * weights[n]
        else:
            part = BoothProduct(config.booth)
            place(m, platform, f"product_{where}", part, a=act, b=weights[n], enable=enable)
            return part.y
        return self._late(m, enable, f"term_{where}", term, config.stages > 1)

    def _added(self, m: Module, platform, where: str, a, b) -> Any:
        part = FloatAdd(FloatAddConfig())
        place(m, platform, f"add_{where}", part, a=a, b=b, enable=0)
        return part.y

    def _accumulated(self, m: Module, platform, name: str, total, opens, moves) -> Any:
        acc = Signal(16, name=f"acc_{name}", reset_less=True)
        after = self._added(m, platform, f"acc_{name}", Mux(opens, 0, acc), total)
        with m.If(moves):
            m.d.sync += acc.eq(after)
        return acc

    def _late(self, m: Module, enable, name: str, value, registered: bool) -> Any:
        return held(m, enable, value, name) if registered else value
