# SPDX-License-Identifier: Apache-2.0
"""Carry chains and multiplexers of the ECP5: what yosys does not find, and nextpnr would waste."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PORTS = ["a", "b", "carry", "enable", "invert", "y"]
MUX_PORTS = ["address", "invert", "words", "y"]
WIDE = range(2, 5)
"""Address bits for which slices have multiplexers."""


def select_adders(text: str) -> dict[str, int]:
    """Modules ``add_select*`` and ``add_mask*`` in Verilog ``text`` with the ports of these cells,
    and their widths."""
    found = {}
    for name, ports, body in re.findall(
        r"^module (add_(?:select|mask)\w*)\(([\w\s,]*)\);(.*?)^endmodule",
        text,
        re.MULTILINE | re.DOTALL,
    ):
        width = re.search(r"\binput\s+(?:\[(\d+):0\]\s*)?b;", body)
        if width and sorted(port.strip() for port in ports.split(",")) == PORTS:
            found[name] = int(width[1] or 0) + 1
    return found


def table_muxes(text: str) -> dict[str, tuple[int, int]]:
    """Modules ``table_mux*`` in Verilog ``text``: bits of their address, and their widths."""
    found = {}
    for name, ports, body in re.findall(
        r"^module (table_mux\w*)\(([\w\s,]*)\);(.*?)^endmodule", text, re.MULTILINE | re.DOTALL
    ):
        bits = {
            port: int(high or 0) + 1
            for high, port in re.findall(r"\binput\s+(?:\[(\d+):0\]\s*)?(address|words);", body)
        }
        if sorted(port.strip() for port in ports.split(",")) == MUX_PORTS:
            address = bits["address"]
            if address in WIDE:
                found[name] = address, bits["words"] >> address
    return found


def technology_map(adders: dict[str, int], muxes: dict[str, tuple[int, int]] | None = None) -> str:
    """A map for the ``techmap`` pass of yosys from these modules to cells of a slice."""
    folder = Path(__file__).parent
    select, mask, mux = (
        (folder / f"ecp5_{kind}.v").read_text() for kind in ("add_select", "add_mask", "table_mux")
    )
    return "".join(
        (mask if name.startswith("add_mask") else select)
        .replace("module NAME", f"module {name}")
        .replace("W = WIDTH", f"W = {width}")
        for name, width in sorted(adders.items())
    ) + "".join(
        mux
        .replace("module NAME", f"module {name}")
        .replace("W = WIDTH", f"W = {width}")
        .replace("A = ADDRESS", f"A = {address}")
        for name, (address, width) in sorted((muxes or {}).items())
    )


def free_chain_ends(modules: Mapping[str, Any]) -> None:
    """Spare nextpnr two cells for each carry chain, one at either end.

    A chain that starts with a constant gets a cell that feeds it in, and one whose last carry goes
    nowhere a cell that feeds it out.  The carry-out is disconnected here.  The carry-in is, where
    only the carry of the first position is used: that position then makes it without propagating.
    """
    for module in modules.values():
        uses = Counter(
            bit
            for cell in module["cells"].values()
            for bits in cell["connections"].values()
            for bit in bits
        )
        uses.update(bit for port in module["ports"].values() for bit in port["bits"])
        for cell in module["cells"].values():
            if cell["type"] != "CCU2C":
                continue
            pins = cell["connections"]
            for port in ("S0", "COUT"):
                pins.setdefault(port, ["x"])
                if uses[pins[port][0]] == 1:
                    pins[port] = ["x"]
            constants = [pins[port][0] for port in ("CIN", "C0", "D0")]
            if pins["S0"] != ["x"] or not all(bit in ("0", "1") for bit in constants):
                continue
            carry, c, d = (int(bit) for bit in constants)
            init = int(cell["parameters"]["INIT0"], 2)
            made = 0
            for ab in range(4):
                propagate = init >> (8 * d + 4 * c + ab) & 1
                made |= (carry if propagate else init >> ab & 1) << ab
            cell["parameters"]["INIT0"] = f"{made:016b}"  # LUT2 half; the LUT4 gives 0 at C = D = 1
            pins["C0"], pins["D0"], pins["CIN"] = ["1"], ["1"], ["x"]
