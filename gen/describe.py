# SPDX-License-Identifier: Apache-2.0
"""What a block is, as data for the command line and as Markdown for its page."""

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..rtl.config import Config, bounds
from .blocks import Block
from .verilog import Design

Row = dict[str, Any]


def contract(block: Block) -> str:
    """The component's docstring."""
    return inspect.getdoc(block.component) or ""


def parameters(block: Block) -> list[Row]:
    """Name, type, default, bounds and help of every parameter, in the order of definition."""
    types = typing.get_type_hints(block.config)
    return [
        {
            "name": field.name,
            "type": types[field.name].__name__,
            "default": field.default,
            "bounds": bounds(field),
            "help": field.metadata["help"],
        }
        for field in dataclasses.fields(block.config)
    ]


def presets(block: Block) -> list[Row]:
    """Name of every preset and the values that differ from the defaults."""
    return [{"name": name, "values": dict(values)} for name, values in block.presets.items()]


def derived(config: Config) -> list[Row]:
    """Numbers that follow from the parameters: the public properties of the config's class."""
    rows = []
    for name, member in inspect.getmembers(type(config), lambda each: isinstance(each, property)):
        if not name.startswith("_") and isinstance(
            value := getattr(config, name), int | float | str
        ):
            rows.append({"name": name, "value": value, "help": _first_line(member)})
    return rows


def ports(design: Design) -> list[Row]:
    """Name, width, direction and meaning of every port of the Verilog module."""
    meaning = {"clk": "clock", "rst": "synchronous reset, active high", **design.records}
    for stream in design.streams:
        role = "input" if stream.direction == "in" else "output"
        meaning[stream.port("valid")] = f"{role} stream {stream.name}: a transfer is offered"
        meaning[stream.port("ready")] = f"{role} stream {stream.name}: it is taken at this edge"
        for field in stream.fields:
            meaning[stream.port(field.name)] = layout(field.width, field.signed, field.dims)
    return [
        {
            "name": port.name,
            "width": port.width,
            "direction": port.direction,
            "layout": meaning.get(port.name, ""),
        }
        for port in design.ports
    ]


def layout(width: int, signed: bool, dims: Sequence[int]) -> str:
    """``64 x signed 8, element 0 lowest``"""
    element = f"{'signed' if signed else 'unsigned'} {width}"
    if not dims:
        return element
    return f"{' x '.join(map(str, dims))} x {element}, element 0 lowest"


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of ``rows``, which all have the same keys; code in back quotes."""
    rows = list(rows)
    if not rows:
        return "none\n"
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(key, value) for key, value in row.items()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(block: Block, config: Config, design: Design) -> str:
    """The generated part of a block's page: parameters, presets, derived numbers, ports."""
    parts = {
        "Parameters": markdown(parameters(block)),
        "Presets": markdown(presets(block)),
        "Derived": markdown(derived(config)),
        "Ports": markdown(ports(design)),
    }
    return "\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def _cell(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}={each}" for name, each in value.items())
    text = str(value).replace("|", "\\|")
    return f"`{text}`" if text and key in ("name", "default", "values", "value") else text


def _first_line(member: property) -> str:
    return (inspect.getdoc(member) or "").partition("\n")[0]
