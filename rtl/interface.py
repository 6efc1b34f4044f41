# SPDX-License-Identifier: Apache-2.0
"""What a component offers at its edge: streams and their fields, read from its signature."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import Out

from .bus._axi import Channel


@dataclass(frozen=True)
class Field:
    """One field of a payload: ``dims`` elements of ``width`` bits, element 0 lowest."""

    name: str
    width: int
    signed: bool
    dims: tuple[int, ...]
    offset: int

    @property
    def total_width(self) -> int:
        return self.width * prod(self.dims)


@dataclass(frozen=True)
class Stream:
    """One stream port; ``direction`` is ``in`` or ``out`` as the block sees it.

    Those of an ``axi`` channel have AXI's names.
    """

    name: str
    direction: str
    fields: tuple[Field, ...]
    axi: bool = False

    def port(self, part: str) -> str:
        """The Verilog port: ``valid``, ``ready`` or a field's name."""
        if self.axi:
            return f"{self.name}{part}"
        return (
            f"{self.name}_{part}" if part in ("valid", "ready") else f"{self.name}_payload_{part}"
        )


def load(module: str) -> tuple[type, Any]:
    """Component class and config class of a block's module, ``...rtl.mac.ternary_dot``."""
    name = "".join(word.capitalize() for word in module.rsplit(".", 1)[-1].split("_"))
    loaded = importlib.import_module(module)
    return getattr(loaded, name), getattr(loaded, f"{name}Config")


def streams(component: wiring.Component) -> tuple[Stream, ...]:
    """All streams of ``component``, in the order of its signature.

    Every payload must be a ``StructLayout``; its fields are shapes or arrays of shapes.
    """
    return tuple(_streams(component))


def records(component: wiring.Component) -> dict[str, str]:
    """What the bits of other ports with a ``StructLayout`` are, lowest first, by port name."""
    found = {}
    for name, member in component.signature.members.items():
        if member.is_port and isinstance(member.shape, data.StructLayout):
            parts = [f"{key} {Shape.cast(field.shape).width}" for key, field in member.shape]
            found[name] = f"{', '.join(parts)} bits, lowest first"
    return found


def streams_of(component_class: Any, config: Any) -> tuple[Stream, ...]:
    """The streams a component with that config would have; none is left to be elaborated."""
    component = component_class(config)
    component._MustUse__used = True
    return streams(component)


def _streams(component: wiring.Component) -> Iterator[Stream]:
    for name, member in component.signature.members.items():
        if not (member.is_signature and isinstance(_plain(member.signature), stream.Signature)):
            continue
        layout = member.signature.members["payload"].shape
        if not isinstance(layout, data.StructLayout):
            raise TypeError(f"{type(component).__name__}.{name}: payload is no StructLayout")
        fields = tuple(_field(key, field.shape, field.offset) for key, field in layout)
        way = "out" if member.flow == Out else "in"
        yield Stream(name, way, fields, axi=isinstance(layout, Channel))


def _plain(signature: Any) -> Any:
    return signature.flip() if isinstance(signature, wiring.FlippedSignature) else signature


def _field(name: str, shape: Any, offset: int) -> Field:
    dims = []
    while isinstance(shape, data.ArrayLayout):
        dims.append(shape.length)
        shape = shape.elem_shape
    shape = Shape.cast(shape)
    return Field(name, shape.width, shape.signed, tuple(dims), offset)
