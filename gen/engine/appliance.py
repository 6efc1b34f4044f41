# SPDX-License-Identifier: Apache-2.0
"""The engine with a model in its memories, as a design for a board."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from amaranth.lib import data
from numpy.typing import NDArray

from ...fpga.boards import Board
from ...rtl.engine.engine import WIDTH, EngineConfig
from ...rtl.engine.sequencer import program_layout
from ...rtl.system._appliance import Appliance
from ...rtl.vector.rope import table_layout
from ...sim.engine.image import (
    Image,
    TooLarge,
    compile_image,
    packed_words,
    precision_of,
    word_bytes,
)
from ...sim.engine.integer import IntegerModel
from ...sim.engine.matvec import socket
from ..checkpoints.models import Runnable, runnable
from ..model.generate import shipped
from ..verilog import Design, convert
from .story import config_for

Made = TypeVar("Made")
TOP = "appliance"
BAUD = 1_000_000
LEAST = 16
"""The shortest context that is taken to make a model fit."""
WORDS = 64
"""Memories with fewer words stay in the Verilog."""
INITIAL = re.compile(
    r"  initial begin\n(?P<words>    (?P<memory>\w+)\[0\] = .*?)  end\n", re.DOTALL
)


def design(config: EngineConfig, image: Image, clocks: int, apart: bool = True) -> Design:
    """The appliance's Verilog; ``clocks`` cycles are a bit of the serial line.

    With ``apart`` the words of large memories are files beside the Verilog.
    Ports: ``clk``, ``rst``, ``host_in`` and ``host_out``.
    """
    component = Appliance(config, contents(config, image), clocks)
    text, ports = convert(component, TOP)
    text, data = _apart(text) if apart else (text, {})
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


def for_board(
    board: Board,
    clock_mhz: float,
    path: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Design, IntegerModel, Runnable]:
    """The appliance of a model for ``board``, the model as it runs there, and its file.

    Weights come five trits a byte.  Unless ``settings`` say what the context is, it is halved until
    the memories fit the board's block RAM.
    """
    given = {"packing": "trit5", **(settings or {})}
    context = given.pop("context", None)

    def made(found: Runnable) -> tuple[Design, IntegerModel, Runnable]:
        config = config_for(found.model.config, **given)
        model = IntegerModel.compile(socket(config).model(found.model), precision_of(config))
        image = compile_image(model, config)
        needs = blocks(config, image)
        if needs > board.ram:
            other = ", or micro_engine, which reads its model from a flash" if board.flash else ""
            raise TooLarge(
                f"the model needs some {needs} block RAMs of {board.name}'s {board.ram} with a "
                f"context of {config.context}; take a smaller context or a larger board{other}"
            )
        return design(config, image, divisor(clock_mhz)), model, found

    return shortened(path or shipped(), context, made)


def shortened(path: Path, context: int | None, make: Callable[[Runnable], Made]) -> Made:
    """What ``make`` gives for the model in a file.

    Unless ``context`` says what its context is, it is halved while ``make`` raises ``TooLarge``.
    """
    shorter = context
    while True:
        found = runnable(path, context=shorter)
        try:
            return make(found)
        except TooLarge:
            size = 1 << (found.model.config.context - 1).bit_length()
            if context is not None or size <= LEAST:
                raise
            shorter = size // 2


def divisor(clock_mhz: float) -> int:
    """Clock cycles a bit of the serial line."""
    return round(clock_mhz * 1e6 / BAUD)


def blocks(config: EngineConfig, image: Image) -> int:
    """Block RAMs of ECP5 that the large memories take."""
    key, value = config.store(WIDTH - 1), config.store(config.attention.value_scale_width)
    memories = [
        (image.words, 8 * word_bytes(config)),
        (len(image.embedding), 8 * config.norm_lanes),
        (len(image.gains), 16 * config.norm_lanes),
        (config.sums, config.rows * config.acc_width),
        *((store.vectors, store.word_width) for store in (key, value)),
        *((len(image.table), 32 + len(image.table).bit_length()),) * 2,  # ROM and table
    ]
    shapes = ((1 << 14, 1), (1 << 13, 2), (1 << 12, 4), (1 << 11, 9), (1 << 10, 18), (512, 36))
    return sum(
        min(-(-depth // deep) * -(-width // wide) for deep, wide in shapes)
        for depth, width in memories
    )


def contents(config: EngineConfig, image: Image) -> dict[str, Sequence[int]]:
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
        "weights": _words(packed_words(image.weights, config)),
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
