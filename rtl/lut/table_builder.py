# SPDX-License-Identifier: Apache-2.0
"""All signed sums of a group of activations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Array, Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._pipeline import Pipeline
from .._streams import bits_for
from ..config import Config, param
from ._table import CODES, Walk, build, entry_width, moves, plan, size, summed

MOST = {"parallel": 128, "serial": 512}
"""Most entries of a table."""


@dataclass(frozen=True, kw_only=True)
class TableBuilderConfig(Config):
    group: int = param(4, "activations of a table", ge=1, le=6)
    code: str = param("binary", "the weights there are", choices=CODES)
    half: bool = param(True, "leave out entries that are another one negated")
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    style: str = param(
        "parallel", "all entries at once, or one a cycle", choices=("parallel", "serial")
    )
    stage: int = param(
        0, "parallel: adder levels between pipeline registers; 0 for none", ge=0, le=12
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"group": 2, "act_width": 4},
        "bits": {"code": "bits", "half": False, "stage": 1},
        "tl2": {"group": 3, "code": "ternary", "style": "serial"},
        "whole": {"group": 3, "half": False, "style": "serial"},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "LUT Tensor Core, arXiv 2408.06003",
        "Bitnet.cpp, arXiv 2502.11880",
        "TeLLMe, arXiv 2510.15926",
    )

    def faults(self) -> Iterator[str]:
        if self.half and self.code == "bits":
            yield "half must be false with bits: only binary and ternary have both signs"
        elif self.entries > MOST[self.style]:
            yield (
                f"a {'half' if self.half else 'whole'} {self.code} table of {self.group} "
                f"activations has {self.entries} entries and a {self.style} builder makes at most "
                f"{MOST[self.style]}"
            )

    @property
    def entries(self) -> int:
        """Entries of a table."""
        return size(self.group, self.code, self.half)

    @property
    def entry_width(self) -> int:
        """Bits that hold every entry, activations of ``-2**(act_width - 1)`` among them."""
        return entry_width(self.group, self.code, self.half, self.act_width)

    @property
    def adds(self) -> int:
        """Adders of a parallel builder that have two operands."""
        return plan(self.group, self.code, self.half).adds if self.style == "parallel" else 1

    @property
    def interval(self) -> int:
        """Cycles that a table takes."""
        serial = self.style == "serial"
        return len(moves(self.group, self.code, self.half)) if serial else 1

    @property
    def latency(self) -> int:
        """Cycles from a table's activations, or from the step of an entry, to what is offered."""
        if self.style == "serial":
            return 1
        return len(plan(self.group, self.code, self.half).registers(self.stage))


def table_layout(config: TableBuilderConfig) -> data.StructLayout:
    entry = signed(config.entry_width)
    if config.style == "parallel":
        return data.StructLayout({"entries": data.ArrayLayout(entry, config.entries)})
    index = unsigned(bits_for(config.entries))
    return data.StructLayout({"entry": entry, "index": index, "last": unsigned(1)})


class TableBuilder(wiring.Component):
    """All signed sums of a group of activations, a table for each transfer.

    Entry ``p`` is the dot product of the activations with pattern ``p`` of weights:

    ``binary``
        -1 and 1; bit ``k`` of ``p`` is set where activation ``k`` is added.
    ``bits``
        0 and 1; bit ``k`` of ``p`` is set where activation ``k`` is added.
    ``ternary``
        -1, 0 and 1; ``p`` is ``v + (3**group - 1) / 2`` with ``v = sum of w[k] * 3**(group-1-k)``.

    With ``half`` a table has the patterns whose leading weight is positive, since the others are
    these negated: of ``binary`` those in which the last activation is added, ``p`` without its top
    bit; of ``ternary`` those with ``v`` from 0 up, and ``p`` is ``v`` (for 3 activations TL2).

    ``parallel`` makes a table a cycle with ``config.adds`` adders that share sums of parts of the
    group, and offers it ``config.latency`` cycles after its activations.  ``serial`` makes an entry
    a cycle with one adder, in the order of a reflected Gray code: the weight of the activation with
    the smallest part in ``p`` changes most often.  A table takes ``config.interval`` cycles, whole
    and binary tables ``group - 1`` more than they have entries: the first is summed up.  Its
    transfer is taken with the last entry, and every entry is offered a cycle later.

    Exact: no rounding and no overflow, ``config.entry_width`` bits hold every entry, and all values
    of activations are allowed.  Everything stops while what is offered is not taken.  Reset drops
    what is in flight.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed, ``group`` of them.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``entries``, in order; or ``entry``, its ``index``, and ``last`` with a table's last one.

    Source: the precomputed tables of LUT Tensor Core (half, by symmetry), of Bitnet.cpp (TL1, TL2)
    and of TeLLMe; the shared adders and the order are ours.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: TableBuilderConfig):
        self.config = config
        acts = data.ArrayLayout(signed(config.act_width), config.group)
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({"acts": acts}))),
            "o": Out(stream.Signature(table_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.pipeline = pipeline = Pipeline(config.latency)
        enable = pipeline.enable
        acts = [self.i.p.acts[k] for k in range(config.group)]
        m.d.comb += [pipeline.o_ready.eq(self.o.ready), self.o.valid.eq(pipeline.o_valid)]
        if config.style == "parallel":
            m.d.comb += [self.i.ready.eq(enable), pipeline.i_valid.eq(self.i.valid)]
            made = plan(config.group, config.code, config.half)
            entries = build(m, made, acts, config.entry_width, enable, config.stage)
            for at, entry in enumerate(entries):
                m.d.comb += self.o.p.entries[at].eq(entry)
            return m

        m.submodules.walk = walk = Walk(config.group, config.code, config.half)
        moves = Signal()
        m.d.comb += [
            moves.eq(enable & self.i.valid),
            walk.enable.eq(moves),
            self.i.ready.eq(enable & walk.ends),
            pipeline.i_valid.eq(self.i.valid & walk.shows),
        ]
        double = walk.double if config.code == "binary" else 0
        act = Array(acts)[walk.act]
        entry = summed(m, platform, walk, act, config.entry_width, moves, double)
        offered = self.o.p
        held = Signal.like(Cat(offered.entry, offered.index, offered.last), name="held")
        with m.If(enable):
            m.d.sync += held.eq(Cat(entry, walk.entry, walk.ends))
        m.d.comb += Cat(offered.entry, offered.index, offered.last).eq(held)
        return m
