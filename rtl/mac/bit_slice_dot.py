# SPDX-License-Identifier: Apache-2.0
"""Dot products with weights in two slices, and drafts of them from the upper slice alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig, accumulated
from .._once import place
from .._pipeline import delayed, held
from .._runs import run_pipeline
from ..config import Config, Rate, param
from ._planes import plane_sums
from ._select_tree import SelectTreeConfig
from ._sign_tree import SignTree


class Part(enum.IntEnum, shape=2):
    """What the slices of a transfer are."""

    LOWER = 0
    UPPER = 1
    CENTRE = 2


@dataclass(frozen=True, kw_only=True)
class BitSliceDotConfig(Config):
    lanes: int = param(64, "weights in a transfer, a power of two", ge=2, le=1024)
    act_width: int = param(8, "bits of one signed activation", ge=2, le=16)
    weight_width: int = param(8, "bits of one signed weight", ge=3, le=16)
    split: int = param(
        4, "bits of a weight's upper slice; the lower one has the others", ge=2, le=8
    )
    augment: bool = param(True, "drafts from the centre of an upper slice's range")
    max_k: int = param(4096, "most weights of one sum", ge=2, le=1 << 20)
    stage: int = param(2, "adder levels between pipeline registers; 0 for none", ge=0, le=12)
    chain: int = param(4, "lanes in series at each leaf of a tree, a power of two", ge=2, le=16)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"lanes": 4, "act_width": 4, "max_k": 64, "stage": 1, "chain": 2},
        "real_lsb": {"split": 5},
        "plain": {"augment": False},
        "flat": {"lanes": 8, "weight_width": 6, "split": 3, "max_k": 100, "stage": 0},
    }
    papers: ClassVar[tuple[str, ...]] = ("ELMoE-3D, arXiv 2604.14626",)

    rates: ClassVar[tuple[Rate, ...]] = (Rate("int8", "int8", 32, {"lanes": 64}),)

    def faults(self) -> Iterator[str]:
        if self.lanes & (self.lanes - 1):
            yield f"lanes must be a power of two, not {self.lanes}"
        if self.chain & (self.chain - 1):
            yield f"chain must be a power of two, not {self.chain}"
        if self.max_k < self.lanes:
            yield f"max_k must be at least lanes ({self.lanes}), not {self.max_k}"
        if not self.split < self.weight_width <= 2 * self.split:
            least, most = -(-self.weight_width // 2), self.weight_width - 1
            yield (
                f"split must be in {least}..{most} for weights of {self.weight_width} bits, "
                f"not {self.split}"
            )

    @property
    def low(self) -> int:
        """Bits of the lower slice of a weight."""
        return self.weight_width - self.split

    @property
    def sum_width(self) -> int:
        """Bits that hold ``max_k`` products below ``2**(act_width + weight_width - 1)``."""
        return self.act_width + self.weight_width + ceil_log2(self.max_k)

    @property
    def part_width(self) -> int:
        """Bits of the sum of a transfer's slices."""
        return self.act_width + self.split + ceil_log2(self.lanes)

    @property
    def tree(self) -> SelectTreeConfig:
        """Sums one plane of the slices."""
        return SelectTreeConfig(
            lanes=self.lanes, act_width=self.act_width, stage=self.stage, chain=self.chain
        )

    @property
    def join_latency(self) -> int:
        """Registers behind the adders that join the planes."""
        return ceil_log2(self.split) if self.stage else 0

    @property
    def latency(self) -> int:
        """Cycles from a run's last transfer to the first cycle its sum is offered."""
        return 1 + self.tree.latency + self.join_latency + 1


class BitSliceDot(wiring.Component):
    """Dot product of integers with weights in two slices, or with drafts from the upper ones.

    A weight ``w`` has an upper slice ``h = w >> low``, signed and of ``split`` bits, and a lower
    one ``l = w & (2**low - 1)``, unsigned; ``low = weight_width - split``.  A transfer brings
    ``lanes`` activations and one slice of as many weights.  What a transfer adds to the sum of its
    run depends on its ``part``:

    0, lower
        ``acts[n] * l[n]``.  With ``low < split`` slices may have ``split`` bits all the same.
    1, upper
        ``acts[n] * h[n] * 2**low``
    2, centre, with ``augment``
        ``acts[n] * (2 * h[n] + 1) * 2**(low - 1)``: the middle of the range that ``h`` stands for

    So the exact product takes a transfer of each slice, in any order, and its sum is that of
    ``acts[n] * w[n]``.  A draft takes half of the transfers and reads the upper slices only: with
    part 1 ``w`` is truncated, with part 2 it is rounded to the middle.  With ``split=5`` of 8 bits
    the draft has five real bits and the slices are 5 + 3.  Part 3 is none and gives an unspecified
    sum; so does part 2 without ``augment``.

    Exact: no rounding.  No overflow up to ``max_k`` weights: a run of both slices or of drafts is
    less than ``max_k * 2**(act_width + weight_width - 1)`` in magnitude, whatever slices and
    activations come together, which ``sum_width`` bits hold.  Beyond that, sums wrap.

    Throughput is one transfer per cycle, runs follow without a gap; parts may change with every
    transfer.  Latency is ``config.latency`` cycles after a run's last transfer.  All stages stop
    while an offered sum is not taken.  Reset drops whatever is in flight.

    Restart: ``first`` drops an unfinished run and begins a new one; after ``last`` it may be left
    out.  Errors: none.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``acts``: signed.  ``slices``: ``split`` bits each.  ``part``: 0 lower, 1 upper, 2 centre.
        ``first``, ``last``: bounds of the run.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``sum``: signed.

    Source: the LSB-augmented bit slices of ELMoE-3D, whose format is not public; this is a
    reconstruction from its abstract, and the structure is ours (docs/blocks/bit_slice_dot.md).
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: BitSliceDotConfig):
        self.config = config
        payload = data.StructLayout({
            "acts": data.ArrayLayout(signed(config.act_width), config.lanes),
            "slices": data.ArrayLayout(unsigned(config.split), config.lanes),
            "part": unsigned(2),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        super().__init__({
            "i": In(stream.Signature(payload)),
            "o": Out(stream.Signature(data.StructLayout({"sum": signed(config.sum_width)}))),
        })

    def elaborate(self, platform):
        m = Module()
        config, payload = self.config, self.i.p
        run = run_pipeline(m, self.i, self.o, config.latency)
        enable = run.enable
        parts = delayed(m, enable, payload.part, "part", config.latency)

        if config.augment:
            planes = self._signed_planes(m, platform, enable)
        else:
            bits = {f"plane_{n}": [word[n] for word in payload.slices] for n in range(config.split)}
            sums = plane_sums(m, platform, config.tree, list(payload.acts), bits, enable)
            planes = [(total, Const(0, 1), Const(0, 1)) for total in sums]
        at = config.tree.latency
        total, pending, negative = self._joined(m, platform, enable, planes, parts[at:])
        at += config.join_latency

        value = Mux(parts[at] == Part.LOWER, total, total << config.low)
        if config.augment:
            ones = pending.replicate(config.low - 1)
            centre = parts[at] == Part.CENTRE
            negative = negative ^ centre  # see _signed_planes
            value = Mux(centre, Cat(ones, total).as_signed(), value)
            value = value ^ negative.replicate(len(value)).as_signed()
        acc = accumulated(
            m,
            platform,
            config.sum_width,
            value,
            pending ^ negative,
            run.opens[at],
            enable & run.moves[at],
        )
        m.d.comb += self.o.p.sum.eq(acc)
        return m

    def _signed_planes(self, m: Module, platform, enable):
        """By plane the sum of the activations whose bit is set; for a draft, of all with a sign.

        ``2 * h + 1`` is a sum of ``+2**n`` and ``-2**n``, one for each bit ``n`` of ``h``: plus
        where it is set, and for the top bit where it is not.  So a draft needs no plane more: every
        lane is used, and negative where its bit is set, which makes the draft negative as a whole.
        The top plane is subtracted anyway.
        """
        config, payload = self.config, self.i.p
        centre = payload.part == Part.CENTRE
        leaf = config.tree.leaf
        shared = {n: held(m, enable, x, f"act_{n}") for n, x in enumerate(payload.acts) if n % leaf}
        planes = []
        for plane in range(config.split):
            bits = [word[plane] for word in payload.slices]
            acts, used, minus = [], [], []
            for lane, bit in enumerate(bits):
                name, start = f"{plane}_{lane}", bits[lane - lane % leaf]
                if lane in shared:
                    acts.append(shared[lane])
                    x_used = Signal(name=f"x_used_{name}", reset_less=True)
                    with m.If(enable):
                        m.d.sync += x_used.eq(bit)
                        with m.If(centre):  # the set input of the register, no LUT
                            m.d.sync += x_used.eq(1)
                    used.append(x_used)
                else:
                    act = payload.acts[lane]
                    acts.append(held(m, enable, act, f"act_{name}", zero=~(bit | centre)))
                    used.append(Const(1, 1))
                sign = bit ^ start if lane in shared else bit
                minus.append(held(m, enable, sign, f"minus_{name}", zero=~centre))
            tree = SignTree(config.tree)
            inputs = {"acts": Cat(acts), "used": Cat(used), "minus": Cat(minus), "enable": enable}
            place(m, platform, f"tree_{plane}", tree, **inputs)
            planes.append((tree.sum, tree.pending, tree.negative))
        return planes

    def _joined(self, m: Module, platform, enable, planes, parts):
        """One sum of the planes' sums, each counting twice the one below.

        The top plane is subtracted unless the slices are unsigned, and so is, or rather is not, a
        sum of another sign than the one below it.  Every adder makes the pending one of its upper
        operand whole: as carry-in, with ones for the bits below that operand.
        """
        shift, top = 1, True
        while len(planes) > 1:
            part, parts = parts[0], parts[bool(self.config.stage) :]
            joined = []
            for low, high in zip(planes[::2], planes[1::2], strict=False):
                last = top and high is planes[-1]
                upper = Cat(high[1].replicate(shift), high[0]).as_signed()
                minus = low[2] ^ high[2] ^ ((part != Part.LOWER) if last else 0)
                width = max(len(low[0]), len(upper))
                add = place(
                    m,
                    platform,
                    f"join_{shift}_{len(joined)}",
                    AddSelect(AddSelectConfig(width=width)),
                    a=low[0],
                    b=upper,
                    enable=1,
                    invert=minus,
                    carry=high[1] ^ minus,
                )
                top = top and not last
                joined.append((add.y, low[1], low[2]))
            planes = joined + planes[2 * len(joined) :]
            if self.config.stage:
                planes = [
                    tuple(
                        held(m, enable, value, f"{name}_of_{shift}_{n}")
                        for name, value in zip(("join", "kept", "minus"), each, strict=True)
                    )
                    for n, each in enumerate(planes)
                ]
            shift *= 2
        total, pending, negative = planes[0]
        return total[: self.config.part_width].as_signed(), pending, negative
