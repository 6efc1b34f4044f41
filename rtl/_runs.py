# SPDX-License-Identifier: Apache-2.0
"""Control of a block in which a run of transfers makes one result."""

from itertools import pairwise
from typing import Any, NamedTuple

from amaranth.hdl import Module, Signal

from ._pipeline import Pipeline


class Run(NamedTuple):
    """What travels beside a transfer's data; index ``n`` is ``n + 1`` registers behind the input.

    ``enable`` moves all registers; ``opens``: the transfer begins a run; ``moves``: there is one.
    ``begins`` is ``opens`` at the input itself.
    """

    enable: Signal
    opens: list[Signal]
    moves: list[Signal]
    begins: Any


def run_pipeline(m: Module, i: Any, o: Any, latency: int, ends: Any = 1) -> Run:
    """Joins the streams ``i``, with ``first`` and ``last``, and ``o``: a transfer for each run.

    The result of a run is to be in the registers that ``o`` shows ``latency`` cycles after its last
    transfer.  ``first`` drops a run that is not finished; after ``last`` it may be left out.  A
    transfer may take several cycles: ``ends`` says which is its last.
    """
    m.submodules.pipeline = pipeline = Pipeline(latency)
    inside = Signal()
    enable = pipeline.enable
    opens, moves = (
        [Signal(name=f"x_{name}_{n}", reset_less=True) for n in range(latency)]
        for name in ("opens", "moves")
    )
    m.d.comb += [
        i.ready.eq(enable & ends),
        pipeline.i_valid.eq(i.valid & ends & i.p.last),
        pipeline.o_ready.eq(o.ready),
        o.valid.eq(pipeline.o_valid),
    ]
    begins = i.p.first | ~inside
    with m.If(i.valid & i.ready):
        m.d.sync += inside.eq(~i.p.last)
    with m.If(enable):
        m.d.sync += [opens[0].eq(begins), moves[0].eq(i.valid & ends)]
        m.d.sync += [late.eq(early) for row in (opens, moves) for early, late in pairwise(row)]
    return Run(enable, opens, moves, begins)
