# SPDX-License-Identifier: Apache-2.0
"""Softmax in integers, token by token, for several contexts at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .._streams import Queue
from ._online import (
    OnlineConfig,
    Total,
    Weights,
    rounded_up,
    score_layout,
    token_layout,
    total_layout,
    weight_layout,
)


@dataclass(frozen=True, kw_only=True)
class SoftmaxConfig(OnlineConfig):
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "tiny": {
            "score_width": 9,
            "fraction": 4,
            "log_width": 6,
            "weight_bits": 4,
            "contexts": 2,
            "max_tokens": 16,
            "ahead": 2,
        },
        "bitnet_2b": {"contexts": 20, "max_tokens": 4096, "ahead": 32},
    }
    papers: ClassVar[tuple[str, ...]] = ("Softermax, arXiv 2103.09301",)

    def faults(self) -> Iterator[str]:
        if self.fraction >= self.score_width:
            yield f"fraction must be below score_width = {self.score_width}, not {self.fraction}"
        if self.ahead & (self.ahead - 1):
            yield f"ahead must be a power of two, not {self.ahead}"


class Softmax(wiring.Component):
    """Online softmax in integers, base 2: weights token by token, and the total they are shares of.

    A context is a run of tokens, ``first`` to ``last``; tokens of different contexts may alternate.
    With ``f = fraction``, ``octave(x) = ceil(x / 2**f)`` and ``T(x, b) = 2**b * 2**(-r / 2**f)`` to
    nearest where ``r = octave(x) * 2**f - x``, a token of ``score`` and ``level = score + log``
    does the following; ``M`` and ``N`` are the largest octaves of the context's scores and levels
    so far, the token included, ``M'`` and ``N'`` those before it:

        total  = (total >> M - M') + round(T(score, 15) >> M - octave(score))
        weight = round(min(T(level, weight_bits), 2**weight_bits - 1) >> N - octave(level))
        shift  = N - N'

    ``round`` is to nearest, ties upwards; ``>>`` of the total is a floor.  Whoever sums values by
    these weights shifts the sum right by ``shift`` before adding.  The total depends on scores
    alone: it is offered as soon as they are there, however late values come.

    A token with ``skip`` counts for nothing: weight and shift are 0, and no logarithm is taken.  It
    opens or closes a context with ``first`` and ``last``; the octave of an empty context is 0.

    Error: in reals, let ``p`` be a token's share ``2**score / sum(2**score)`` of ``n`` tokens and
    ``p_max`` the largest one.  With all logarithms 0, the share that the outputs give,
    ``weight * 2**(N_t - weight_bits) / (total * 2**(M - 15))`` with ``N_t`` as it was at the token,
    differs from ``p`` by at most ``(p_max * 2**(1 - weight_bits) + p * e) / (1 - e)``,
    ``e = 0.75 * (n + 1) / 2**14``: the first term is one unit of a weight, the second the total's.
    Nothing overflows with at most ``max_tokens`` tokens in a context.

    One token a cycle, without a gap between tokens of the same context.  Latency: weight and total
    are offered 4 edges after the score was taken, the weight 3 edges after the logarithm was.  Up
    to ``ahead`` scores wait for logarithms, then ``i`` waits.  Reset drops all tokens; each context
    then begins with ``first``.

    Errors: a context that does not begin with ``first`` after reset, or has too many tokens, gives
    unspecified results.

    Members
    -------
    i : :py:`In(stream.Signature(StructLayout))`
        ``score``: signed, the binary logarithm, ``fraction`` bits of fraction.  ``context``.
        ``first``: forget what the context had.  ``last``: its total is asked for.  ``skip``.
    log_i : :py:`In(stream.Signature(StructLayout))`
        ``log``: unsigned logarithm of the value's peak, one for each token without ``skip``.
    o : :py:`Out(stream.Signature(StructLayout))`
        ``weight``: unsigned.  ``shift``: at most 31, which stands for all above.  ``octave``: N.
        ``context``, ``first``, ``last``, ``skip`` of the token.
    total_o : :py:`Out(stream.Signature(StructLayout))`
        ``total``: unsigned.  ``octave``: M.  ``context``.  One for each ``last``.

    Source: Softermax, whose running maxima are powers of two too; one of scores and one of levels
    let the scale of each value go into its weight.
    """

    i: stream.Interface
    log_i: stream.Interface
    o: stream.Interface
    total_o: stream.Interface

    def __init__(self, config: SoftmaxConfig):
        self.config = config
        log = data.StructLayout({"log": unsigned(config.log_width)})
        super().__init__({
            "i": In(stream.Signature(score_layout(config))),
            "log_i": In(stream.Signature(log)),
            "o": Out(stream.Signature(weight_layout(config))),
            "total_o": Out(stream.Signature(total_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.total = total = Total(config)
        m.submodules.weights = weights = Weights(config)
        token = token_layout(config, up=signed(config.score_width + 1))
        m.submodules.queue = queue = Queue(token, config.ahead)

        enable = Signal()
        up = rounded_up(self.i.p.score, config.fraction)
        m.d.comb += [
            enable.eq(~self.total_o.valid | self.total_o.ready),
            self.i.ready.eq(enable & queue.i.ready),
            queue.i.valid.eq(enable & self.i.valid),
            queue.i.p.up.eq(up),
            total.enable.eq(enable),
            total.valid.eq(self.i.valid & queue.i.ready),
            total.i.up.eq(up),
            weights.log_i.valid.eq(self.log_i.valid),
            weights.log_i.payload.eq(self.log_i.p.log),
            self.log_i.ready.eq(weights.log_i.ready),
            self.total_o.valid.eq(total.o_valid),
            self.total_o.payload.eq(total.o),
        ]
        for name in ("context", "first", "last", "skip"):
            value = self.i.p[name]
            m.d.comb += [queue.i.p[name].eq(value), total.i[name].eq(value)]
        wiring.connect(m, queue.o, weights.i)
        wiring.connect(m, weights.o, wiring.flipped(self.o))
        return m
