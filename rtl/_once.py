# SPDX-License-Identifier: Apache-2.0
"""Modules that are emitted once however often they are used.

Amaranth elaborates and prints a module anew for every use; a tree of 4096 lanes would take a
quarter of a minute and four megabytes of Verilog.  :func:`place` adds a part as a submodule in
plain Amaranth, and as an instance of one common module where our emitter asks for it by handing a
:class:`Modules` down as the platform.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import amaranth.back.rtlil as rtlil  # pyright: ignore[reportMissingImports]  # no stub
from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Value
from amaranth.lib.wiring import In

from .config import Config, snake

Part = TypeVar("Part", bound=Any)


def place(m: Module, platform: Any, name: str, part: Part, **inputs: Any) -> Part:
    """Add ``part`` as submodule ``name``, its inputs driven by ``inputs``; read outputs off it.

    With :class:`Modules` as platform it is an instance of the one module that all parts of its
    class and config share.
    """
    if isinstance(platform, Modules):
        m.submodules[name] = platform.instance(m, part, inputs)
    else:
        m.submodules[name] = part
        m.d.comb += [getattr(part, port).eq(value) for port, value in inputs.items()]
    return part


def module_name(part_class: type, config: Config) -> str:
    """``add_select__width_8``: the class and every parameter that is not at its default."""
    changed = [
        f"{field.name}_{getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    return "__".join([snake(part_class.__name__), *changed])


class Modules:
    """The shared modules of one design: RTLIL text by module name, in order of first completion."""

    def __init__(self) -> None:
        self.rtlil: dict[str, str] = {}

    def instance(self, m: Module, part: Any, inputs: Mapping[str, Any]) -> Instance:
        """An instance of ``part``'s module, which is converted at first sight.

        An input of the port's width is connected as it is: a signal between, over many levels of
        wide ports, would take half of the time.
        """
        part._MustUse__used = True  # its ports are used, its body is elaborated from a twin
        name = module_name(type(part), part.config)
        ports = {
            "__".join(map(str, path)): (Value.cast(value), member.flow)
            for path, member, value in part.signature.flatten(part)
        }
        if name not in self.rtlil:
            self.rtlil[name] = rtlil.convert(
                type(part)(part.config), name=name, platform=self, emit_src=False
            )
        for port, value in inputs.items():
            own, value = ports[port][0], Value.cast(value)
            if len(value) == len(own):
                ports[port] = (value, In)
            else:
                m.d.comb += own.eq(value)
        wires = {
            f"{'i' if flow == In else 'o'}_{port}": value for port, (value, flow) in ports.items()
        }
        for port, signal in (("clk", ClockSignal()), ("rst", ResetSignal())):
            if re.search(rf"wire width 1 input \d+ +\\{port}\n", self.rtlil[name]):
                wires[f"i_{port}"] = signal
        return Instance(name, **wires)
