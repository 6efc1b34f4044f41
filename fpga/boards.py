# SPDX-License-Identifier: Apache-2.0
"""FPGA boards: a board is a file in this folder that holds ``BOARD = Board(...)``.

No list is kept.  Parts and place-and-route options are written in the file; pins come from
amaranth-boards, which is imported when they are asked for.
"""

import functools
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rtl.errors import AtriplexError, Missing, unknown


@dataclass(frozen=True)
class Pin:
    """A package pin and its input or output attributes, as amaranth-boards has them."""

    name: str
    attrs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board, its part, and the pins that the shell needs.

    ``platform`` names the class in amaranth-boards.  ``host_in`` and ``host_out`` name the pins for
    the host: ``uart.rx`` is a part of a resource, ``led`` a resource, ``io:0`` a connector's pin.
    ``flash`` is the resource of a serial flash that a design may read, empty where there is none
    or the part does not let it.  ``synth``, ``place`` and ``pack`` are options of yosys, nextpnr
    and the packer.  ``lut``, ``ff``, ``ram`` and ``dsp`` are what the part has, as nextpnr counts
    it.
    """

    name: str
    title: str
    family: str
    device: str
    platform: str
    host_in: str
    host_out: str
    flash: str = ""
    clock_mhz: float
    synth: tuple[str, ...] = ()
    place: tuple[str, ...]
    pack: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    lut: int
    ff: int
    ram: int
    dsp: int

    def places(self) -> dict[str, str]:
        """Where the ports are that a design may have by itself."""
        flash = ("clk", "cs", "copi", "cipo") if self.flash else ()
        return {
            "host_in": self.host_in,
            "host_out": self.host_out,
            **{f"flash_{name}": f"{self.flash}.{name}" for name in flash},
        }

    def pins(self, ports: Iterable[str]) -> dict[str, Pin]:
        """Pins of the shell's ``clk`` and of those of its ``ports`` that are in :meth:`places`."""
        module, _, name = self.platform.partition(":")
        try:
            platform = getattr(importlib.import_module(f"amaranth_boards.{module}"), name)()
        except ModuleNotFoundError:
            raise Missing(
                "amaranth-boards is not installed; get it with: pip install 'atriplex[fpga]'"
            ) from None
        return {
            "clk": _pin(platform, platform.default_clk),
            **{
                port: _pin(platform, where)
                for port, where in self.places().items()
                if port in ports
            },
        }


def boards() -> list[Board]:
    """All boards, by name."""
    return sorted(_scan().values(), key=lambda board: board.name)


def board(name: str) -> Board:
    """The board of that name or alias; an unknown one is an error with the nearest name."""
    names = {key: each for each in boards() for key in (each.name, *each.aliases)}
    if name not in names:
        raise AtriplexError(unknown("board", name, names))
    return names[name]


@functools.cache
def _scan() -> dict[str, Board]:
    found = {}
    for path in Path(__file__).parent.glob("*.py"):
        if re.search(r"^BOARD = Board\(", path.read_text(), re.MULTILINE):
            each = importlib.import_module(f".{path.stem}", __package__).BOARD
            found[each.name] = each
    return found


def _pin(platform: Any, where: str) -> Pin:
    """The pin that ``where`` names, with the attributes of the clock where it has none."""
    name, colon, number = where.partition(":")
    if colon:
        pins = platform.connectors[name, 0].mapping[number]
        return Pin(pins, _attrs(platform.resources[platform.default_clk, 0]))
    name, _, part = where.partition(".")
    resource = platform.resources[name, 0]
    pins = resource.ios[0]
    if part:
        pins = next(sub for sub in resource.ios if sub.name == part).ios[0]
    return Pin(pins.names[0], _attrs(resource))


def _attrs(resource: Any) -> dict[str, str]:
    return {name: str(value) for name, value in resource.attrs.items()}
