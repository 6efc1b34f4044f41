# SPDX-License-Identifier: Apache-2.0
"""The engine with a model in its memories, as a design for a board."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from amaranth.lib import data
from numpy.typing import NDArray

from ...rtl.engine.engine import EngineConfig
from ...rtl.engine.sequencer import program_layout
from ...rtl.system._appliance import Appliance
from ...rtl.vector.rope import table_layout
from ...sim.engine.image import Image, packed_words
from ..verilog import Design, convert

TOP = "appliance"
WORDS = 64
"""Memories with fewer words stay in the Verilog."""
INITIAL = re.compile(
    r"  initial begin\n(?P<words>    (?P<memory>\w+)\[0\] = .*?)  end\n", re.DOTALL
)


def design(config: EngineConfig, image: Image, divisor: int) -> Design:
    """The appliance's Verilog; ``divisor`` is clock cycles a bit of the serial line.

    Ports: ``clk``, ``rst``, ``host_in`` and ``host_out``.
    """
    component = Appliance(config, contents(config, image), divisor)
    text, ports = convert(component, TOP)
    text, data = _apart(text)
    module = "atriplex.rtl.engine.engine"
    return Design("engine", module, config.values(), TOP, text, ports, data=data)


def _apart(text: str) -> tuple[str, dict[str, str]]:
    """``text`` with the words of large memories in files of their own.

    yosys takes a quarter of an hour for tens of thousands of assignments, and a second for a file.
    """
    data: dict[str, str] = {}

    def move(match: re.Match[str]) -> str:
        words = re.findall(r"= \d+'h([0-9a-f]+);", match["words"])
        if len(words) < WORDS:
            return match[0]
        name = f"memory_{len(data)}.hex"
        data[name] = "\n".join(words) + "\n"
        return f'  initial $readmemh("{name}", {match["memory"]});\n'

    return INITIAL.sub(move, text), data


def contents(config: EngineConfig, image: Image) -> dict[str, list[int]]:
    """The words of every memory as integers, lowest element lowest."""
    rows = [
        {"at": at, **op, "last": int(at == len(image.program) - 1)}
        for at, op in enumerate(image.program)
    ]
    table = [
        {"address": at, "cos": int(cos), "sin": int(sin)}
        for at, (cos, sin) in enumerate(image.table)
    ]
    return {
        "weights": _words(packed_words(image.weights, config.packing)),
        "gains": _words(image.gains.astype("<i2").view(np.uint8)),
        "embedding": _words(image.embedding.view(np.uint8)),
        "program": list(_structs(program_layout(config.sequencer), rows)),
        "table": list(_structs(table_layout(config.rope), table)),
    }


def _words(rows: NDArray[np.uint8]) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


def _structs(layout: data.StructLayout, rows: Iterable[dict[str, int]]) -> Iterable[int]:
    from amaranth.hdl import Shape

    fields: list[tuple[str, Any]] = list(layout)
    for row in rows:
        word = 0
        for name, field in fields:
            width = Shape.cast(field.shape).width
            word |= (row[name] & (1 << width) - 1) << field.offset
        yield word
