# SPDX-License-Identifier: Apache-2.0
"""Text from an appliance on its serial line: from its Verilog, or from a netlist of it."""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...fpga import flow
from ...fpga.boards import Board
from ...rtl.errors import AtriplexError
from ...sim.engine.integer import IntegerModel
from ..checkpoints.tokenizers import TextStream
from ..verilog import Design
from . import appliance, machine, micro
from .story import Tally, check_prompt

HARNESS = Path(__file__).with_name("serial.cpp")
LIMIT = 1 << 22
"""Cycles that a token may take."""


class Line:
    """One appliance and the host on its line; ``flash`` is what its flash holds from where on."""

    def __init__(self, library: Path, flash: tuple[int, bytes] = (0, b"")):
        self._library = ctypes.CDLL(str(library))
        pointer, word = ctypes.c_void_p, ctypes.c_uint64
        for name, result, arguments in (
            ("new", pointer, []),
            ("free", None, [pointer]),
            ("cycles", word, [pointer]),
            ("flash", None, [pointer, ctypes.c_char_p, word, word]),
            ("token", ctypes.c_int, [pointer, *[ctypes.c_int] * 3, word]),
        ):
            function = getattr(self._library, f"serial_{name}")
            function.restype, function.argtypes = result, arguments
        self._handle: Any = self._library.serial_new()
        first, self._flash = flash
        self._library.serial_flash(self._handle, self._flash, first, len(self._flash))

    def token(self, token: int, *, restart: bool, sample: bool) -> int:
        """The answer; 65535 without ``sample``.  Raises :class:`.Stuck`."""
        answer = self._library.serial_token(self._handle, token, restart, sample, LIMIT)
        if answer < 0:
            raise machine.Stuck(f"the serial line gave no answer within {LIMIT} cycles")
        return answer

    def cycles(self) -> int:
        """Clock cycles since the start, those of the serial line included."""
        return self._library.serial_cycles(self._handle)

    def close(self) -> None:
        """Free the simulation."""
        if self._handle:
            self._library.serial_free(self._handle)
            self._handle = None


def build(
    design: Design,
    divisor: int,
    sources: Sequence[str] = (),
    progress: Callable[[str], None] = lambda stage: None,
) -> Path:
    """The shared library of an appliance; ``sources`` (texts) replace its Verilog."""
    header = f'#pragma once\n#include "V{design.top}.h"\n#define MODEL V{design.top}\n'
    flash = "#define FLASH\n" if design.beside else ""
    return machine.library(
        design.top,
        list(sources) or [design.text],
        HARNESS,
        f"{header}#define DIVISOR {divisor}\n{flash}",
        progress=progress,
    )


def tell(
    line: Line, model: IntegerModel, prompt: Sequence[int], tokens: int, tally: Tally
) -> Iterator[int]:
    """Tokens that follow ``prompt``, each checked by the golden model; stops at a wrong one."""
    check_prompt(model.config, list(prompt))
    state, given = model.start(), list(prompt)
    total = min(len(given) + tokens - 1, model.config.context)
    for position in range(total):
        token, sample = given[position], position >= len(prompt) - 1
        answer = line.token(token, restart=position == 0, sample=sample)
        logits = model.forward(np.array([token]), state)
        wanted = int(logits.greedy()[0]) if sample else 0xFFFF
        tally.checked += 1
        tally.tokens += sample
        tally.all_cycles = line.cycles()
        if answer != wanted:
            tally.wrong.append(f"token {position}: expected {wanted}, got {answer}")
            return
        if sample:
            given.append(answer)
            yield answer


def appliance_for(block: str) -> Any:
    """The module that puts a model into ``block``, for a board."""
    if block == "engine":
        return appliance
    if block == "micro_engine":
        return micro
    raise AtriplexError(f"a model goes into engine or micro_engine, not into {block}")


class LineStory:
    """A text told by an appliance on its serial line.

    With ``netlist`` by what synthesis makes of it for ``board``, otherwise by its Verilog.
    Iterating yields the text of each new token.  ``tally`` counts tokens and cycles, those of the
    serial line and of reading the flash included.
    """

    def __init__(
        self,
        prompt: str,
        board: Board,
        clock_mhz: float,
        *,
        block: str = "engine",
        netlist: bool = True,
        path: Path | None = None,
        tokens: int = 16,
        settings: Mapping[str, Any] | None = None,
        progress: Callable[[str], None] = lambda stage: None,
    ):
        self.tokens, self.tally = tokens, Tally()
        made = appliance_for(block).for_board(board, clock_mhz, path, settings)
        design, self.model, file = made
        self.tokenizer = file.tokenizer
        self.ids = file.tokenizer.encode(prompt, bos=True)
        check_prompt(self.model.config, self.ids)
        sources: list[str] = []
        if netlist:
            progress("synthesis")
            sources = [path.read_text() for path in flow.cell_models(board.family)]
            sources.append(flow.board_netlist(design, board, clock_mhz))
        library = build(design, appliance.divisor(clock_mhz), sources, progress)
        self.line = Line(library, (micro.ADDRESS, design.beside.get(micro.IMAGE, b"")))

    def __iter__(self) -> Iterator[str]:
        text = TextStream(self.tokenizer, self.ids)
        for token in tell(self.line, self.model, self.ids, self.tokens, self.tally):
            yield text.feed(token)
        if rest := text.end():
            yield rest
