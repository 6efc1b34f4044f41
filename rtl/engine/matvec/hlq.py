# SPDX-License-Identifier: Apache-2.0
"""Projections of bit planes that have a factor each, by the lookups of ``hlq_gemv``."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from amaranth.hdl import Cat, Const, Module, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..._add_select import accumulated
from ..._once import place
from ..._pipeline import delayed, held
from ..._runs import run_pipeline
from ...lut._bit_lookup import BitLookup, BitLookupConfig
from ._socket import CODE, Tiled, added, bytes_layout, record, tree_latency

if TYPE_CHECKING:
    from ..engine import EngineConfig

FACTOR = 8
OFFSET = FACTOR + 3
"""Bits of twice an offset and the factors of at most four planes."""
TABLE = 2
"""Activations of a table: so few share it that larger ones cost more than they save."""
CHAIN = 4
"""Tables whose entries are added in a row."""


def planes_of(format_: str) -> int:
    """Planes of a format."""
    return int(format_.removeprefix("hlq"))


def word_layout(lanes: int, planes: int) -> data.StructLayout:
    """A tile's bits, and the factors of the group that it belongs to.

    Bits count -1 and 1.  ``offset`` is twice that of bits of 0 and 1, and all factors besides.
    """
    return data.StructLayout({
        "bits": data.ArrayLayout(data.ArrayLayout(unsigned(1), lanes), planes),
        "factors": data.ArrayLayout(signed(FACTOR), planes),
        "offset": signed(OFFSET),
    })


class Core(Tiled):
    """A word is all planes of a tile, a factor of 8 bits for each, and an offset.

    To the core every tile is a group: groups of several tiles have the same factors in each.
    """

    FORMATS = ("hlq2", "hlq3")

    @classmethod
    def faults(cls, engine: "EngineConfig") -> Iterator[str]:
        yield from super().faults(engine)
        if engine.lanes % TABLE:
            yield f"lanes must be a multiple of {TABLE} with hlq, not {engine.lanes}"

    @classmethod
    def product(cls, engine: "EngineConfig") -> "PlanesDotConfig":
        return PlanesDotConfig(
            lanes=engine.lanes,
            planes=planes_of(engine.format),
            max_k=engine.longest,
            stage=engine.stage,
        )

    @classmethod
    def word(cls, engine: "EngineConfig") -> data.StructLayout:
        return bytes_layout(word_layout(engine.lanes, planes_of(engine.format)))

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = PlanesDot(self.config)
        x = self._walk(m, core.i.ready)
        self._joined(m, core, x)
        layout = word_layout(self.engine.lanes, self.config.planes)
        m.d.comb += [core.i.p.acts.eq(x.acts), core.i.p.word.eq(record(layout, x.word))]
        return m


@dataclasses.dataclass(frozen=True)
class PlanesDotConfig:
    """Dot products of tiles of ``lanes`` inputs; at most ``max_k`` to a sum."""

    lanes: int
    planes: int
    max_k: int
    stage: int

    @property
    def parts(self) -> int:
        """Rows of tables side by side, whose sums are added."""
        return self.lanes // self.lookup.acts

    @property
    def lookup(self) -> BitLookupConfig:
        """Tables, looked up for every plane and for the offset."""
        tables = max(n for n in range(1, CHAIN + 1) if self.lanes // TABLE % n == 0)
        return BitLookupConfig(
            rows=self.planes + 1,
            table=TABLE,
            tables=tables,
            act_width=CODE,
            acc_width=CODE + ceil_log2(TABLE * tables) + 1,
            stage=min(self.stage, 1),
        )

    @property
    def value_width(self) -> int:
        """Bits of a plane's sum over a tile, of either sign."""
        return CODE + ceil_log2(self.lanes) + 1

    @property
    def sum_width(self) -> int:
        """Bits of ``max_k`` activations times an offset and factors."""
        return CODE + FACTOR + ceil_log2(self.max_k) + ceil_log2(self.planes + 1)

    @property
    def latency(self) -> int:
        """Registers from a transfer to its place in the sum."""
        return (
            self.lookup.latency + tree_latency(self.parts) + 1 + tree_latency(self.planes + 1) + 1
        )


class PlanesDot(wiring.Component):
    """Runs of transfers, each a tile: sums of its planes times factors, and of all times an offset.

    Members
    -------
    i : ``acts``: codes, lane 0 lowest; ``word``; ``first``, ``last``.
    o : ``sum``.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: PlanesDotConfig):
        self.config = config
        super().__init__({
            "i": In(
                stream.Signature(
                    data.StructLayout({
                        "acts": unsigned(config.lanes * CODE),
                        "word": word_layout(config.lanes, config.planes),
                        "first": unsigned(1),
                        "last": unsigned(1),
                    })
                )
            ),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(config.sum_width)}))),
        })

    def elaborate(self, platform):
        m = Module()
        config, lookup, payload = self.config, self.config.lookup, self.i.p
        run = run_pipeline(m, self.i, self.o, config.latency)
        enable = run.enable
        each = lookup.acts
        found = []
        for part in range(config.parts):
            lanes = slice(part * each, (part + 1) * each)
            rows = [payload.word.bits[plane].as_value()[lanes] for plane in range(config.planes)]
            sums = place(
                m,
                platform,
                f"lookup_{part}",
                BitLookup(lookup),
                acts=payload.acts.word_select(part, each * CODE),
                bits=Cat(*rows, Const(-1, each)),  # of the offset: every activation once
                opens=1,
                moves=1,
                enable=enable,
            )
            found.append([
                sums.acc.word_select(row, lookup.acc_width).as_signed()
                for row in range(lookup.rows)
            ])
        at = lookup.latency + tree_latency(config.parts)
        word = payload.word
        factors = [*(word.factors[plane] for plane in range(config.planes)), word.offset]
        terms = []
        for number, factor in enumerate(factors):
            total = added(m, enable, f"row_{number}", [part[number] for part in found])
            factor = delayed(m, enable, factor, f"factor_{number}", at)[-1]
            terms.append(held(m, enable, total * factor, f"scaled_{number}"))
        at += 1 + tree_latency(len(terms))
        total = added(m, enable, "tile", terms)
        # Twice the sum, and so even.
        acc = accumulated(
            m,
            platform,
            config.sum_width,
            total[1:].as_signed(),
            0,
            run.opens[at - 1],
            enable & run.moves[at - 1],
        )
        m.d.comb += self.o.p.sum.eq(acc)
        return m
