# SPDX-License-Identifier: Apache-2.0
"""The next token: the largest sum, or one drawn from the largest logits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..config import Config, param

POLYNOMIAL = 0xEDB88320
"""Taps of the shift register: the primitive polynomial of CRC-32, its lowest power on top."""

WORD = 32
"""Bits of the shift register, and steps that make a number of it."""

WEIGHT_BITS = 15
"""The largest logit has weight ``2**15``."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(Config):
    vocab: int = param(512, "most entries of a run", ge=2, le=1 << 20)
    sum_width: int = param(32, "bits of a signed sum", ge=2, le=32)
    logit_width: int = param(18, "bits of a signed logit", ge=2, le=32)
    fraction: int = param(8, "bits of a logit's fraction", ge=1, le=12)
    top_k: int = param(8, "most logits to draw from", ge=2, le=64)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {"vocab": 12, "sum_width": 4, "logit_width": 5, "fraction": 2, "top_k": 3},
        "top16": {"vocab": 32768, "top_k": 16},
    }
    papers: ClassVar[tuple[str, ...]] = ("BitNet b1.58, arXiv 2402.17764",)

    def faults(self) -> Iterator[str]:
        if self.fraction >= self.logit_width:
            yield f"fraction must be below logit_width ({self.logit_width}), not {self.fraction}"

    @property
    def token_width(self) -> int:
        """Bits of a token."""
        return (self.vocab - 1).bit_length()

    @property
    def total_width(self) -> int:
        """Bits of the largest sum of weights."""
        return (self.top_k << WEIGHT_BITS).bit_length()

    @property
    def walk(self) -> int:
        """Cycles of one walk through the kept logits."""
        return self.top_k + 6

    @property
    def draw_latency(self) -> int:
        """Cycles that drawing takes beyond the choice of the largest."""
        return 2 * self.walk + WORD + 1


def choice_layout(config: SamplerConfig) -> data.StructLayout:
    """How to choose in a run."""
    return data.StructLayout({
        "mode": unsigned(1),
        "keep": unsigned(config.top_k.bit_length()),
        "seed_load": unsigned(1),
        "seed": unsigned(WORD),
    })


class Sampler(wiring.Component):
    """Chooses one entry of each run: that of the largest sum, or one drawn by its logit.

    A run takes one ``op_i`` and then the entries of tokens 0, 1, ... up to ``last``.

    ``mode`` 0: the token of the largest ``sum``, the lowest among equals.

    ``mode`` 1: of the ``keep`` largest logits, where among equals the lower token counts as larger,
    each has weight ``round(2**15 * 2**(logit - largest))``: with ``n = largest - logit`` in units
    of ``2**-fraction``, the weight is ``table[n % 2**fraction] * 2**-(n >> fraction)`` to nearest,
    ties upwards, ``table[i] = round(2**(15 - i / 2**fraction))``.  With ``total`` the sum of the
    weights and ``word`` a number of 32 random bits, ``r = word * total >> 32``; the token drawn is
    the first, from the largest logit down, where the weights so far exceed ``r``.  So logits are
    base 2 logarithms, over the temperature if there is one.  ``keep`` of 0 or above ``top_k``
    counts as ``top_k``.

    Random bits: a shift register of 32 bits; a step shifts right, and when the bit that falls out
    is 1, ``0xEDB88320`` (CRC-32) is added modulo 2.  A draw makes 32 steps; bit ``i`` of ``word``
    is what falls out at step ``i``.  ``seed_load`` puts ``seed``, or 1 for 0, and makes 32 steps
    before the run.  Reset puts 1.

    Throughput: an entry per cycle, one cycle for the operation, 32 for a seed.  Latency: the token
    is transferred two edges after the last entry was taken, when drawn ``2 * top_k + 45`` later.
    One run at a time.  Reset drops the run and the random state.

    Errors: a run of more than ``vocab`` entries gives an unspecified token.

    Members
    -------
    op_i : :py:`In(stream.Signature(StructLayout))`
        ``mode``, ``keep``, ``seed_load``, ``seed``.
    i : :py:`In(stream.Signature(StructLayout))`
        ``sum``, ``logit``: signed.  ``first``: token 0 is here, an unfinished run is dropped but
        for its operation; implied at the start.  ``last``.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``token``, one a run.

    Source: sampling by temperature and top-k is common practice; greedy choice by the sums is that
    of BitNet's integer head.  The structure is ours.
    """

    op_i: stream.Interface
    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: SamplerConfig):
        self.config = config
        entry = data.StructLayout({
            "sum": signed(config.sum_width),
            "logit": signed(config.logit_width),
            "first": unsigned(1),
            "last": unsigned(1),
        })
        token = data.StructLayout({"token": unsigned(config.token_width)})
        super().__init__({
            "op_i": In(stream.Signature(choice_layout(config))),
            "i": In(stream.Signature(entry)),
            "o": Out(stream.Signature(token)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config

        mode, keep = Signal(), Signal(range(config.top_k + 1), reset_less=True)
        asked = self.op_i.p.keep
        bits = Signal(WORD, init=1)
        stepping, rotate = Signal(), Signal()
        with m.If(stepping):
            m.d.sync += bits.eq((bits >> 1) ^ Mux(bits[0], POLYNOMIAL, 0))

        # An entry stands in x for a cycle, in front of what is kept of the run.  A key is a logit
        # with its sign turned round and a one on top, so that 0 is less than any.
        kept = data.StructLayout({
            "key": unsigned(config.logit_width + 1),
            "token": unsigned(config.token_width),
        })
        x, tail = Signal(kept, reset_less=True), Signal(kept)
        x_sum = Signal(signed(config.sum_width), reset_less=True)
        x_valid, x_opens, opens = Signal(), Signal(), Signal()
        count, token = Signal(config.token_width), Signal(config.token_width)
        take = Signal()
        m.d.comb += [
            take.eq(self.i.valid & self.i.ready),
            token.eq(Mux(opens | self.i.p.first, 0, count)),
        ]
        m.d.sync += [
            x_valid.eq(take),
            x_opens.eq(opens | self.i.p.first),
            x_sum.eq(self.i.p.sum),
            x.token.eq(Mux(rotate, tail.token, token)),
            x.key.eq(Mux(rotate, tail.key, 0)),
        ]
        with m.If(take):
            logit = self.i.p.logit
            m.d.sync += [
                opens.eq(0),
                count.eq(token + 1),
                x.key.eq(Cat(logit[:-1], ~logit[-1], 1)),
            ]

        largest, best = Signal.like(x_sum), Signal(config.token_width, reset_less=True)
        with m.If(x_valid & (x_opens | (x_sum > largest))):
            m.d.sync += [largest.eq(x_sum), best.eq(x.token)]

        entries = self._kept(m, kept, x, x_valid, x_opens, rotate)
        m.d.comb += tail.eq(entries[-1])

        # Walks: weights of the kept entries from the smallest up, at the end of a pipeline.
        step, second = Signal(range(max(config.walk, WORD))), Signal()
        total = Signal(config.total_width, reset_less=True)
        part = Signal(config.total_width, reset_less=True)
        rest = Signal(signed(config.total_width + 1), reset_less=True)
        drawn, found = Signal(config.token_width, reset_less=True), Signal()
        weight, weight_token = self._weights(
            m,
            x,
            live=rotate & (config.top_k - step < keep) & x.key[-1],
            largest=entries[0].key,
            begin=step == 0,
        )
        left = Signal.like(rest)
        m.d.comb += left.eq(rest - weight)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.op_i.ready.eq(1)
                m.d.sync += [
                    mode.eq(self.op_i.p.mode),
                    keep.eq(Mux((asked == 0) | (asked > config.top_k), config.top_k, asked)),
                    opens.eq(1),
                    step.eq(0),
                ]
                with m.If(self.op_i.valid):
                    m.next = "TAKE"
                    with m.If(self.op_i.p.seed_load):
                        seed = self.op_i.p.seed
                        m.d.sync += bits.eq(seed | (seed == 0))
                        m.next = "SEED"
            with m.State("SEED"):
                m.d.comb += stepping.eq(1)
                m.d.sync += step.eq(step + 1)
                with m.If(step == WORD - 1):
                    m.d.sync += step.eq(0)
                    m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(take & self.i.p.last):
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.sync += [second.eq(0), found.eq(0), total.eq(0), part.eq(0)]
                m.next = "GIVE"
                with m.If(mode):
                    m.next = "WALK"
            with m.State("WALK"):
                m.d.comb += rotate.eq(step <= config.top_k)
                m.d.sync += step.eq(step + 1)
                with m.If(~second):
                    m.d.sync += total.eq(total + weight)
                with m.Else():
                    m.d.sync += rest.eq(left)
                    with m.If(left[-1] & ~found):
                        m.d.sync += [found.eq(1), drawn.eq(weight_token)]
                with m.If(step == config.walk - 1):
                    m.d.sync += [step.eq(0), second.eq(1)]
                    m.next = "MULTIPLY"
                    with m.If(second):
                        m.next = "GIVE"
            with m.State("MULTIPLY"):
                m.d.comb += stepping.eq(1)
                m.d.sync += [part.eq((part + Mux(bits[0], total, 0)) >> 1), step.eq(step + 1)]
                with m.If(step == WORD - 1):
                    m.d.sync += step.eq(0)
                    m.next = "START"
            with m.State("START"):
                m.d.sync += rest.eq(total - part - 1)
                m.next = "WALK"
            with m.State("GIVE"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "IDLE"
        m.d.comb += self.o.p.token.eq(Mux(mode, drawn, best))
        return m

    def _kept(self, m, kept, x, valid, opens, rotate) -> list[Any]:
        """The largest keys so far in falling order; ``rotate`` moves all down by one, x on top.

        With x they are a ring, which ``top_k + 1`` turns bring back to where it was.
        """
        entries: list[Any] = [
            Signal(kept, name=f"kept_{rank}", reset_less=True) for rank in range(self.config.top_k)
        ]
        stays = []
        for rank, entry in enumerate(entries):
            stay = Signal(name=f"stays_{rank}")
            m.d.comb += stay.eq((entry.key >= x.key) & ~opens & ~rotate)
            stays.append(stay)
        with m.If(rotate | (valid & ~stays[0])):
            m.d.sync += entries[0].eq(x)
        for (above, entry), (above_stays, stay) in zip(
            pairwise(entries), pairwise(stays), strict=True
        ):
            with m.If(rotate | (valid & ~stay)):
                m.d.sync += entry.as_value().eq(Mux(above_stays, x.as_value(), above.as_value()))
            with m.If(valid & opens):
                m.d.sync += entry.key.eq(0)
        return entries

    def _weights(self, m, x, *, live, largest, begin):
        """Weight and token of x, five cycles later; 0 unless it was ``live``.

        ``largest`` is asked for where a walk may ``begin``: with x empty.
        """
        config = self.config
        steps = 1 << config.fraction
        m.submodules.table = table = Memory(
            shape=unsigned(WEIGHT_BITS + 1),
            depth=steps,
            init=[round(2 ** (WEIGHT_BITS - step / steps)) for step in range(steps)],
        )
        read = table.read_port()
        most = Signal.like(largest, name="most", reset_less=True)
        with m.If(begin):
            m.d.sync += most.eq(largest)

        # Cycle 1: how far below; 2, 3: the table and a register behind it; 4: shifted; 5: rounded.
        below = Signal(config.logit_width, name="below", reset_less=True)
        octave = registers(m, below[config.fraction :], 2, "octave")
        entry = Signal(WEIGHT_BITS + 1, name="entry", reset_less=True)
        shifted = Signal(WEIGHT_BITS + 2, name="shifted", reset_less=True)
        weight = Signal(WEIGHT_BITS + 1, name="weight", reset_less=True)
        lives, token = registers(m, live, 4, "live"), registers(m, x.token, 5, "token")
        far = octave[5:].any() if len(octave) > 5 else 0
        m.d.comb += read.addr.eq(below[: config.fraction])
        m.d.sync += [
            below.eq(most - x.key),
            entry.eq(read.data),
            shifted.eq(Mux(far, 0, Cat(0, entry) >> octave[:5])),
            weight.eq(Mux(lives, (shifted + 1) >> 1, 0)),
        ]
        return weight, token


def registers(m, value, count, name):
    """``value`` as it was ``count`` cycles ago."""
    for cycle in range(count):
        later = Signal(len(value), name=f"{name}_{cycle + 1}", reset_less=True)
        m.d.sync += later.eq(value)
        value = later
    return value
