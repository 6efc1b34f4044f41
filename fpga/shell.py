# SPDX-License-Identifier: Apache-2.0
"""The shell: any block, however many ports it has, behind three pins of a board.

``host_in`` shifts into a register with one flip-flop for each input bit of the block.  The block's
outputs go into a second register, which is folded into a third that shifts out at ``host_out``.
So every path through the block runs from register to register, and nothing is optimised away.
"""

from ..gen.verilog import Design

TOP = "atriplex_shell"
RUN = 512  # the longest chain of bare flip-flops: yosys from the wheel fails at some 2,500


def verilog(design: Design) -> str:
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
