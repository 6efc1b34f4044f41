# SPDX-License-Identifier: Apache-2.0
"""Dot products of integers and of ternary weights on one array of radix-4 digits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig, accumulated, add_carry
from .._once import place
from .._pipeline import held
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ._booth import digit, doubled
from ._select_tree import SelectTree, SelectTreeConfig


@dataclass(frozen=True, kw_only=True)
class BoothflexConfig(Config):
    pes: int = param(16, "pairs multiplied per transfer, a power of two", ge=2, le=1024)
    a_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    b_width: int = param(8, "bits of one signed operand, even", ge=2, le=16)
    digits_per_cycle: int = param(4, "digits of each operand at a time: 1, 2 or 4", ge=1, le=4)
    ternary: bool = param(True, "ternary mode: every digit a weight with its own activation")
    int2: bool = param(True, "in ternary mode code 2 is -2; without, it is no weight and cheaper")
    max_k: int = param(2560, "most products of one sum", ge=2, le=1 << 20)
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    chain: int = param(4, "lanes in series at each leaf of a tree, a power of two", ge=2, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"pes": 2, "a_width": 4, "digits_per_cycle": 2, "max_k": 64},
        "serial": {"digits_per_cycle": 1},
        "int4": {"pes": 4, "b_width": 4, "digits_per_cycle": 2, "stage": 0},
        "trits": {"int2": False},
        "integer": {"ternary": False},
        "attention": {"pes": 32, "int2": False},
    }
    papers: ClassVar[tuple[str, ...]] = (
        "VitaLLM, arXiv 2604.27396",
        "VitaLLM, arXiv 2605.00320",
    )

    rates: ClassVar[tuple[Rate, ...]] = (
        Rate("int8", "int8", 32, {"pes": 32, "ternary": False}),
        Rate(
            *("int4", "int8", 32),
            {"pes": 32, "ternary": False, "b_width": 4, "digits_per_cycle": 2},
        ),
    )

    def faults(self) -> Iterator[str]:
        if self.pes & (self.pes - 1):
            yield f"pes must be a power of two, not {self.pes}"
        if self.chain & (self.chain - 1):
            yield f"chain must be a power of two, not {self.chain}"
        if self.b_width % 2:
            yield f"b_width must be even, not {self.b_width}"
        elif self.digits_per_cycle == 3 or self.digits % self.digits_per_cycle:
            yield (
                f"digits_per_cycle must be 1, 2 or 4 and divide the {self.digits} digits of an "
                f"operand, not {self.digits_per_cycle}"
            )
        elif self.max_k < self.pes:
            yield f"max_k must be at least pes ({self.pes}), not {self.max_k}"
        elif self.acc_width > self.sum_width:
            yield (
                f"sums of {self.max_k} products of {self.a_width} by {self.b_width} bits need "
                f"{self.acc_width} bits and int32 has {self.sum_width}"
            )

    @property
    def digits(self) -> int:
        """Radix-4 digits of one operand."""
        return self.b_width // 2

    @property
    def groups(self) -> int:
        """Cycles that an operand of ``b_width`` bits takes."""
        return self.digits // self.digits_per_cycle

    @property
    def lanes(self) -> int:
        """Ternary multiply-accumulates per cycle."""
        return self.pes * self.digits_per_cycle

    @property
    def slots(self) -> int:
        """Activations of one PE in a transfer."""
        return self.digits_per_cycle if self.ternary else 1

    @property
    def sum_width(self) -> int:
        """Bits of one output sum."""
        return 32

    @property
    def acc_width(self) -> int:
        """Bits that hold ``max_k`` products of magnitude ``2**(a_width + b_width - 2)``."""
        return self.a_width + self.b_width + ceil_log2(self.max_k)

    @property
    def tree(self) -> SelectTreeConfig:
        """Sums one digit of every PE."""
        return SelectTreeConfig(
            lanes=self.pes, act_width=self.a_width + 1, stage=self.stage, chain=self.chain
        )

    @property
    def root_latency(self) -> int:
        """Registers behind the adders that join the digits."""
        return ceil_log2(self.digits_per_cycle) if self.stage else 0

    @property
    def latency(self) -> int:
        """Cycles from the last cycle of a dot product's input to the first its sum is offered."""
        return 1 + self.tree.latency + self.root_latency + (self.groups > 1) + 1


def operands_layout(config: BoothflexConfig) -> data.StructLayout:
    slots = data.ArrayLayout(signed(config.a_width), config.slots)
    mode = {"mode": unsigned(1)} if config.ternary else {}
    passes = {"passes": unsigned(ceil_log2(config.groups))} if config.groups > 1 else {}
    return data.StructLayout({
        "a": data.ArrayLayout(slots, config.pes),
        "b": data.ArrayLayout(signed(config.b_width), config.pes),
        **mode,
        **passes,
        "first": unsigned(1),
        "last": unsigned(1),
    })


class Boothflex(wiring.Component):
    """Dot products of integers and of ternary weights on one array of radix-4 digits.

    A run of transfers is one dot product, and its sum is offered after the run.  What a transfer
    adds to the sum depends on its ``mode``:

    0, integer
        ``a[p][0] * b[p]`` for every PE ``p``.  Other slots of ``a`` are not looked at.
    1, ternary
        ``a[p][d] * w[p][d]`` for every PE and every ``d < digits_per_cycle``; ``w[p][d]`` are bits
        ``2 * d`` and ``2 * d + 1`` of ``b[p]`` as a two's complement number.  Codes 0, 1, 3 are 0,
        +1, -1.  Code 2 is -2, as the Booth digit of these bits is (so this is INT2 as well);
        without ``int2`` it is no weight and gives an unspecified sum.

    With the digits of a PE in one cycle, that is 4 ternary products for one of 8 by 8 bits, both in
    every cycle.  Modes may change from transfer to transfer, within a run too.

    Sums are exact int32: no rounding, and no overflow up to ``max_k`` products in a run; beyond
    that they wrap to ``acc_width`` bits.  All values of activations and operands are allowed.

    With fewer ``digits_per_cycle`` than an operand has, a transfer in integer mode takes
    ``passes + 1`` cycles and multiplies by the low ``2 * digits_per_cycle * (passes + 1)`` bits of
    ``b``, as a two's complement number: with one digit per cycle INT2 takes 1, INT4 2, INT8 4
    cycles.  A transfer in ternary mode takes one cycle.

    Throughput is one transfer per cycle (or per ``passes + 1``), runs follow without a gap.
    Latency is ``config.latency`` cycles after a run's last transfer.  All stages stop while an
    offered sum is not taken.  Reset drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  Errors: none; every transfer is valid.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``a``: signed, ``digits_per_cycle`` slots for each of ``pes`` PEs (one without
        ``ternary``).  ``b``: signed, one per PE.  ``mode``, with ``ternary``: 0 integer, 1
        ternary.  ``passes``, where an operand takes several cycles: cycles less one, in integer
        mode.  ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum``: int32.

    Source: BoothFlex-Core of VitaLLM, one radix-4 datapath for both modes, and its bit-serial
    version BoothFlex-BS; the structure is ours (docs/blocks/boothflex.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: BoothflexConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(operands_layout(config))),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(config.sum_width)}))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        payload = self.i.p
        ternary = payload.mode if config.ternary else 0
        begun, ends, moves = Signal(), Signal(), Signal()  # digits of this transfer
        run = run_pipeline(m, self.i, self.o, config.latency, ends)
        enable = run.enable
        m.d.comb += moves.eq(enable & self.i.valid)
        group = self._group(m, begun, ends, moves, ternary)

        step = data.StructLayout({"ternary": 1, "begun": 1})
        steps = [Signal(step, name=f"x_step_{n}", reset_less=True) for n in range(config.latency)]
        with m.If(enable):
            m.d.sync += [
                steps[0].ternary.eq(ternary),
                steps[0].begun.eq(begun),
                *(late.eq(early) for early, late in pairwise(steps)),
            ]

        values, weights = self._lanes(m, enable, ternary, group)
        planes = []
        for index in range(config.digits_per_cycle):
            tree = place(
                m,
                platform,
                f"digit_{index}",
                SelectTree(config.tree),
                acts=Cat(values[index]),
                weights=Cat(weights[index]),
                enable=enable,
            )
            planes.append((tree.sum, tree.pending))
        at = config.tree.latency
        total, pending = self._joined(m, enable, planes, steps[at:])
        at += config.root_latency

        if config.groups > 1:
            # From the highest digits down: the sum so far counts 4**digits_per_cycle times.
            width = config.a_width + config.b_width + ceil_log2(config.pes)
            part = Signal(signed(width), reset_less=True)
            shift = place(
                m,
                platform,
                "shift",
                AddSelect(AddSelectConfig(width=width)),
                a=total,
                b=(part << 2 * config.digits_per_cycle)[:width].as_signed(),
                enable=steps[at].begun,
                invert=0,
                carry=pending,
            )
            with m.If(enable):
                m.d.sync += part.eq(shift.y)
            total, pending, at = part, 0, at + 1

        acc = accumulated(
            m, platform, config.acc_width, total, pending, run.opens[at], enable & run.moves[at]
        )
        m.d.comb += self.o.p.sum.eq(acc)

        return m

    def _group(self, m: Module, begun, ends, moves, ternary):
        """The digits to take now, the highest first; ``ends`` with the lowest."""
        if self.config.groups == 1:
            m.d.comb += ends.eq(1)
            return 0
        passes = Mux(ternary, 0, self.i.p.passes)
        count = Signal.like(self.i.p.passes)
        group = Signal.like(count)
        m.d.comb += [ends.eq(count == passes), begun.eq(count != 0), group.eq(passes - count)]
        with m.If(moves):
            m.d.sync += count.eq(Mux(ends, 0, count + 1))
        return group

    def _lanes(self, m: Module, enable, ternary, group):
        """By digit and PE: the activation as its digit doubles it, and the digit as a weight."""
        config = self.config
        values: list[list[Any]] = [[] for _ in range(config.digits_per_cycle)]
        weights: list[list[Any]] = [[] for _ in range(config.digits_per_cycle)]

        for pe in range(config.pes):
            a, b = self.i.p.a[pe], self.i.p.b[pe].as_unsigned()
            own = held(m, enable, a[0], f"a_{pe}")
            shared = own
            if config.ternary and not config.int2 and config.digits_per_cycle > 1:
                shared = held(m, enable, a[0], f"shared_{pe}", zero=ternary)
            for index in range(config.digits_per_cycle):
                name = f"{pe}_{index}"
                width = 2 * config.digits_per_cycle
                starts = [width * g + 2 * index for g in range(config.groups)]
                bits = Array(b[at : at + 2] for at in starts)[group]
                below = Array(b[at - 1] if at else 0 for at in starts)[group] & ~ternary
                by = digit(m, f"digit_{name}", bits, below)
                two = held(m, enable, by.two, f"two_{name}")
                weight = held(m, enable, Cat(by.enable, by.invert), f"weight_{name}")
                if index == 0 or not config.ternary:
                    value = doubled(own, two)
                elif config.int2:
                    value = doubled(held(m, enable, Mux(ternary, a[index], a[0]), f"a_{name}"), two)
                else:
                    plain = held(m, enable, a[index], f"a_{name}", zero=~ternary)
                    value = doubled(shared, two) | plain
                values[index].append(value)
                weights[index].append(weight)
        return values, weights

    def _joined(self, m: Module, enable, planes, steps):
        """One sum of the digits' sums: each counts 4 times the one below, in ternary mode once.

        Every adder makes the pending one of its upper operand whole: as carry-in, and in integer
        mode with ones for the bits below that operand.
        """
        shift = 2
        while len(planes) > 1:
            step, steps = steps[0], steps[bool(self.config.stage) :]
            joined = []
            for number, ((low, kept), (high, pending)) in enumerate(
                zip(planes[::2], planes[1::2], strict=True)
            ):
                apart = Cat(pending.replicate(shift), high).as_signed()
                upper = Mux(step.ternary, high, apart) if self.config.ternary else apart
                total = add_carry(low, upper, pending)
                if self.config.stage:
                    x_total = Signal.like(total, name=f"x_join_{shift}_{number}", reset_less=True)
                    x_kept = Signal(name=f"x_kept_{shift}_{number}", reset_less=True)
                    with m.If(enable):
                        m.d.sync += [x_total.eq(total), x_kept.eq(kept)]
                    total, kept = x_total, x_kept
                joined.append((total, kept))
            planes, shift = joined, 2 * shift
        return planes[0]
