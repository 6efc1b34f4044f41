# SPDX-License-Identifier: Apache-2.0
"""Parts of the online softmax: running maxima, the total, the weights."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config, param

CHANCE_BITS = 15
"""The chance of a score on an octave is ``2**CHANCE_BITS``."""

MOVE = 5
"""Bits of a number of octaves; it saturates."""


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(Config):
    score_width: int = param(18, "bits of a signed score", ge=3, le=30)
    fraction: int = param(8, "bits of fraction of a score", ge=1, le=14)
    log_width: int = param(13, "bits of the unsigned logarithm of a value's peak", ge=1, le=24)
    weight_bits: int = param(7, "bits of an unsigned weight", ge=2, le=14)
    contexts: int = param(6, "sums that are kept", ge=1, le=256)
    max_tokens: int = param(256, "tokens of a context", ge=1, le=32768)
    ahead: int = param(16, "scores that wait for a logarithm, a power of two", ge=2, le=1024)

    @property
    def level_width(self) -> int:
        """Bits of a signed score and logarithm, rounded up to a whole octave."""
        return max(self.score_width, self.log_width + 1) + 1

    @property
    def octave_width(self) -> int:
        """Bits of a signed octave."""
        return self.level_width - self.fraction

    @property
    def total_width(self) -> int:
        """Bits of an unsigned total of ``max_tokens`` chances."""
        return (self.max_tokens << CHANCE_BITS).bit_length()

    @property
    def context_width(self) -> int:
        return max(1, ceil_log2(self.contexts))


def token_layout(config: OnlineConfig, **fields) -> data.StructLayout:
    """``fields``, then what every token of a context carries."""
    return data.StructLayout({
        **fields,
        "context": unsigned(config.context_width),
        "first": unsigned(1),
        "last": unsigned(1),
        "skip": unsigned(1),
    })


def score_layout(config: OnlineConfig) -> data.StructLayout:
    return token_layout(config, score=signed(config.score_width))


def weight_layout(config: OnlineConfig) -> data.StructLayout:
    return token_layout(
        config,
        weight=unsigned(config.weight_bits),
        shift=unsigned(MOVE),
        octave=signed(config.octave_width),
    )


def total_layout(config: OnlineConfig) -> data.StructLayout:
    return data.StructLayout({
        "total": unsigned(config.total_width),
        "octave": signed(config.octave_width),
        "context": unsigned(config.context_width),
    })


def rounded_up(value, fraction: int):
    """Such that the bits above ``fraction`` are the ceiling, those below the complement of what
    indexes a table of powers of ``-value``."""
    return value + ((1 << fraction) - 1)


def round_shift(m, name: str, value, amount):
    """Unsigned ``value * 2**-amount`` to nearest, ties upwards."""
    moved = Signal(len(value) + 1, name=f"{name}_moved")
    m.d.comb += moved.eq(Cat(Const(0, 1), value) >> amount)
    return moved[1:] + moved[0]


def clamp(value, bits: int):
    """Unsigned ``value``, at most all ones of ``bits``."""
    return value[:bits] | value[bits:].any().replicate(bits) if len(value) > bits else value


class Octaves(wiring.Component):
    """The largest octave that each context has had; combinational, ``enable`` notes it.

    ``own`` is the token's octave, ``octave`` the largest one with it, ``fall`` the difference,
    ``rise`` by how much the largest one went up, 0 where there was none.  Both saturate.  ``first``
    forgets what the context had.  ``skip``: there is no token, ``own`` does not count.
    """

    enable: Signal
    own: Signal
    context: Signal
    first: Signal
    skip: Signal
    octave: Signal
    rise: Signal
    fall: Signal

    def __init__(self, config: OnlineConfig):
        self.config = config
        super().__init__({
            "enable": In(1),
            "own": In(signed(config.octave_width)),
            "context": In(config.context_width),
            "first": In(1),
            "skip": In(1),
            "octave": Out(signed(config.octave_width)),
            "rise": Out(MOVE),
            "fall": Out(MOVE),
        })

    def elaborate(self, platform):
        m = Module()
        layout = data.StructLayout({"octave": signed(self.config.octave_width), "empty": 1})
        m.submodules.memory = memory = Memory(shape=layout, depth=self.config.contexts, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        gap, fall = Signal(signed(self.config.octave_width + 1)), Signal(self.config.octave_width)
        fresh, rises = Signal(), Signal()
        m.d.comb += [
            read.addr.eq(self.context),
            gap.eq(self.own - read.data.octave),
            fall.eq(-gap),
            fresh.eq(self.first | read.data.empty),
            rises.eq(fresh | ~gap[-1]),
            self.rise.eq(Mux(fresh | self.skip | ~rises, 0, clamp(gap[:-1], MOVE))),
            self.fall.eq(Mux(rises, 0, clamp(fall, MOVE))),
            write.addr.eq(self.context),
            write.en.eq(self.enable),
            write.data.empty.eq(self.skip & fresh),
            write.data.octave.eq(self.octave),
        ]
        with m.If(self.skip):
            m.d.comb += self.octave.eq(Mux(fresh, 0, read.data.octave))
        with m.Else():
            m.d.comb += self.octave.eq(Mux(rises, self.own, read.data.octave))
        return m


def powers(config: OnlineConfig, bits: int, top: int) -> list[int]:
    """``2**bits * 2**-step``, at most ``top``, by the complement of the step."""
    steps = 1 << config.fraction
    return [min(round(2.0 ** (bits - i / steps)), top) for i in reversed(range(steps))]


class Total(wiring.Component):
    """Sum of ``2**score`` of each context, in units of its largest octave.

    A token is taken in every cycle with ``enable``; ``LATENCY`` such cycles later ``o_valid`` says,
    of a ``last`` one, that ``o`` is the total.
    """

    LATENCY = 4

    enable: Signal
    valid: Signal
    i: data.View
    o_valid: Signal
    o: data.View

    def __init__(self, config: OnlineConfig):
        self.config = config
        super().__init__({
            "enable": In(1),
            "valid": In(1),
            "i": In(token_layout(config, up=signed(config.level_width))),
            "o_valid": Out(1),
            "o": Out(total_layout(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config, fraction = self.config, self.config.fraction
        given = Signal.like(self.i, name="s_given", reset_less=True)
        valid, valid_moved, valid_chance = (Signal(name=f"{n}_valid") for n in "smc")
        m.submodules.octaves = octaves = Octaves(config)
        m.submodules.table = table = Memory(
            shape=unsigned(CHANCE_BITS + 1),
            depth=1 << fraction,
            init=powers(config, CHANCE_BITS, 1 << CHANCE_BITS),
        )
        power = table.read_port()
        m.d.comb += [
            octaves.enable.eq(self.enable & valid),
            octaves.own.eq(given.up[fraction:].as_signed()),
            octaves.context.eq(given.context),
            octaves.first.eq(given.first),
            octaves.skip.eq(given.skip),
            power.en.eq(self.enable),
            power.addr.eq(given.up[:fraction]),
        ]
        step = token_layout(config, octave=signed(config.octave_width), rise=MOVE, fall=MOVE)
        moved = Signal(step, name="m_token", reset_less=True)
        after = Signal(step, name="c_token", reset_less=True)
        chance = Signal(CHANCE_BITS + 1, reset_less=True)
        m.submodules.totals = totals = Memory(
            shape=unsigned(config.total_width), depth=config.contexts, init=[]
        )
        write, read = totals.write_port(), totals.read_port(domain="comb")
        before, total = Signal(config.total_width), Signal(config.total_width)
        m.d.comb += [
            read.addr.eq(after.context),
            before.eq(Mux(after.first, 0, read.data >> after.rise)),
            total.eq(before + chance),
            write.addr.eq(after.context),
            write.en.eq(self.enable & valid_chance),
            write.data.eq(total),
        ]
        with m.If(self.enable):
            m.d.sync += [
                valid.eq(self.valid),
                given.eq(self.i),
                valid_moved.eq(valid),
                moved.octave.eq(octaves.octave),
                moved.rise.eq(octaves.rise),
                moved.fall.eq(octaves.fall),
                *(moved[name].eq(given[name]) for name in ("context", "first", "last", "skip")),
                valid_chance.eq(valid_moved),
                after.eq(moved),
                chance.eq(Mux(moved.skip, 0, round_shift(m, "chance", power.data, moved.fall))),
                self.o_valid.eq(valid_chance & after.last),
                self.o.total.eq(total),
                self.o.octave.eq(after.octave),
                self.o.context.eq(after.context),
            ]
        return m


class Weights(wiring.Component):
    """Weights of tokens whose scores wait at ``i``, as soon as logarithms come.

    Three stages, each of which moves where the next one is free or moves.

    Members
    -------
    i, log_i, o : streams; ``log_i`` has no transfer for a token with ``skip``.
    enables : which stages move; data beside the tokens moves along.
    """

    STAGES = 3

    i: stream.Interface
    log_i: stream.Interface
    o: stream.Interface
    enables: Signal

    def __init__(self, config: OnlineConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(token_layout(config, up=signed(config.score_width + 1)))),
            "log_i": In(stream.Signature(unsigned(config.log_width))),
            "o": Out(stream.Signature(weight_layout(config))),
            "enables": Out(self.STAGES),
        })

    def elaborate(self, platform):
        m = Module()
        config, fraction = self.config, self.config.fraction
        given = Signal(
            token_layout(config, up=signed(config.level_width)), name="l_given", reset_less=True
        )
        valid, valid_moved = Signal(name="l_valid"), Signal(name="m_valid")
        m.submodules.octaves = octaves = Octaves(config)
        m.submodules.table = table = Memory(
            shape=unsigned(config.weight_bits),
            depth=1 << fraction,
            init=powers(config, config.weight_bits, (1 << config.weight_bits) - 1),
        )
        power = table.read_port()
        step = token_layout(config, octave=signed(config.octave_width), rise=MOVE, fall=MOVE)
        moved = Signal(step, name="m_token", reset_less=True)
        weight = Signal(weight_layout(config), reset_less=True)
        offered = Signal(name="w_valid")
        enable = self.enables
        m.d.comb += [
            enable[2].eq(~offered | self.o.ready),
            enable[1].eq(~valid_moved | enable[2]),
            enable[0].eq(~valid | enable[1]),
            self.i.ready.eq(enable[0] & (self.i.p.skip | self.log_i.valid)),
            self.log_i.ready.eq(enable[0] & self.i.valid & ~self.i.p.skip),
            octaves.enable.eq(enable[1] & valid),
            octaves.own.eq(given.up[fraction:].as_signed()),
            octaves.context.eq(given.context),
            octaves.first.eq(given.first),
            octaves.skip.eq(given.skip),
            power.en.eq(enable[1]),
            power.addr.eq(given.up[:fraction]),
            self.o.valid.eq(offered),
            self.o.payload.eq(weight),
        ]
        names = ("context", "first", "last", "skip")
        with m.If(enable[0]):
            m.d.sync += [
                valid.eq(self.i.valid & self.i.ready),
                given.up.eq(self.i.p.up + self.log_i.payload),
                *(given[name].eq(self.i.p[name]) for name in names),
            ]
        with m.If(enable[1]):
            m.d.sync += [
                valid_moved.eq(valid),
                moved.octave.eq(octaves.octave),
                moved.rise.eq(octaves.rise),
                moved.fall.eq(octaves.fall),
                *(moved[name].eq(given[name]) for name in names),
            ]
        with m.If(enable[2]):
            rounded = round_shift(m, "weight", power.data, moved.fall)
            m.d.sync += [
                offered.eq(valid_moved),
                weight.weight.eq(Mux(moved.skip, 0, rounded)),
                weight.shift.eq(moved.rise),
                weight.octave.eq(moved.octave),
                *(weight[name].eq(moved[name]) for name in names),
            ]
        return m
