# SPDX-License-Identifier: Apache-2.0
"""The shell: any block, however many ports it has, behind three pins of a board.

``host_in`` shifts into a register with one flip-flop for each input bit of the block.  The block's
outputs go into a second register, which is folded into a third that shifts out at ``host_out``.
So every path through the block runs from register to register, and nothing is optimised away.

A design that has ``host_in`` and ``host_out`` itself gets them directly, and the board's flash
where it asks for that, a reset after power-up, and on ECP5 a PLL where the target is not the
board's clock.
"""

from fractions import Fraction
from itertools import product

from ..gen.verilog import Design, Port
from ..rtl.errors import AtriplexError
from .boards import Board

TOP = "atriplex_shell"
RUN = 512  # the longest chain of bare flip-flops: yosys from the wheel fails at some 2,500


def verilog(design: Design, board: Board, target_mhz: float) -> str:
    """Module :data:`TOP` around ``design``, whose instance is called ``block``."""
    pins = [port for port in design.ports if port.name not in ("clk", "rst")]
    if {"host_in", "host_out"} <= {port.name for port in pins} <= board.places().keys():
        return _direct(board, target_mhz, design.top, pins)
    return _shifted(design)


def _direct(board: Board, target_mhz: float, top: str, pins: list[Port]) -> str:
    """The design on the pins, out of reset 16 cycles after power-up."""
    clock = "    wire clock = clk;"
    if board.family == "ecp5" and target_mhz != board.clock_mhz:
        clock = _pll(board.clock_mhz, target_mhz)
    elif target_mhz > board.clock_mhz:
        raise AtriplexError(
            f"{board.name} has a clock of {board.clock_mhz:g} MHz, and a PLL is made on ECP5 only; "
            "leave the target out"
        )
    ports = ", ".join(f"{port.direction} {port.name}" for port in pins)
    joined = ", ".join(f".{port.name}({port.name})" for port in pins)
    return f"""module {TOP}(input clk, {ports});
{clock}
    reg [3:0] up = 0;
    always @(posedge clock) if (~&up) up <= up + 1'b1;
    {top} block(.clk(clock), .rst(~&up), {joined});
endmodule
"""


def _pll(clock_mhz: float, target_mhz: float) -> str:
    """An ECP5 PLL: the largest clock up to the target that whole dividers give."""
    ratio = Fraction(target_mhz).limit_denominator(1000) / Fraction(clock_mhz)
    ratio = ratio.limit_denominator(10**6)
    pairs = (Fraction(up, down) for up, down in product(range(1, 81), range(1, 8)))
    best = max((pair for pair in pairs if pair <= ratio), default=None)
    if best is None:
        raise AtriplexError(f"no divider of the PLL gives {target_mhz:g} MHz")
    made = float(best) * clock_mhz
    divider = min(range(1, 129), key=lambda each: abs(each * made - 600))  # the VCO's middle
    return f"""    wire clock;
    (* FREQUENCY_PIN_CLKI="{clock_mhz:g}", FREQUENCY_PIN_CLKOP="{made:g}" *)
    EHXPLLL #(
        .CLKI_DIV({best.denominator}), .CLKFB_DIV({best.numerator}), .CLKOP_DIV({divider}),
        .CLKOP_ENABLE("ENABLED"), .CLKOP_CPHASE({divider - 1}), .FEEDBK_PATH("CLKOP")
    ) pll (
        .CLKI(clk), .CLKFB(clock), .CLKOP(clock), .RST(1'b0), .STDBY(1'b0), .PHASESEL0(1'b0),
        .PHASESEL1(1'b0), .PHASEDIR(1'b0), .PHASESTEP(1'b0), .PHASELOADREG(1'b0),
        .PLLWAKESYNC(1'b0), .ENCLKOP(1'b1)
    );"""


def _shifted(design: Design) -> str:
    """The shell around ``design``: module :data:`TOP`, with the block as its instance ``block``.

    Registers have the names of the ports they serve, an output's with ``_seen`` behind it.  Every
    ``RUN`` bits ``host_in`` is added to what is shifted; each state can still be shifted in.
    """
    inputs = [p for p in design.ports if p.direction == "input" and p.name != "clk"]
    outputs = [p for p in design.ports if p.direction == "output"]
    drive = ", ".join(port.name for port in inputs)
    seen = ", ".join(f"{port.name}_seen" for port in outputs)
    width = sum(port.width for port in outputs)
    depth = sum(port.width for port in inputs)
    breaks = sum(1 << at for at in range(RUN, depth, RUN))
    lines = [
        f"module {TOP}(input clk, input host_in, output host_out);",
        *(f"    reg [{port.width - 1}:0] {port.name};" for port in inputs),
        *(f"    wire [{port.width - 1}:0] {port.name};" for port in outputs),
        *(f"    reg [{port.width - 1}:0] {port.name}_seen;" for port in outputs),
        f"    reg [{width - 1}:0] fold;",
        f"    assign host_out = fold[{width - 1}];",
        "    always @(posedge clk) begin",
        f"        {{{drive}}} <= {{{drive}, host_in}}" if inputs else "",
        f"            ^ ({{{depth}{{host_in}}}} & {depth}'h{breaks:x});" if inputs else "",
        f"        {{{seen}}} <= {{{', '.join(port.name for port in outputs)}}};",
        f"        fold <= {{fold, 1'b0}} ^ {{{seen}}};",
        "    end",
        f"    {design.top} block({', '.join(f'.{p.name}({p.name})' for p in design.ports)});",
        "endmodule",
    ]
    return "\n".join(line for line in lines if line) + "\n"
