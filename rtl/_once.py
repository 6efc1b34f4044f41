# SPDX-License-Identifier: Apache-2.0
"""Modules that are emitted once however often they are used.

Amaranth elaborates and prints a module anew for every use; a tree of 4096 lanes would take a
quarter of a minute and four megabytes of Verilog.  ``m.submodules.x = once(platform, part)`` is the
part itself in plain Amaranth, and an instance of one common module where our emitter asks for it
by handing a :class:`Modules` down as the platform.
"""

import dataclasses
import re
from typing import Any

import amaranth.back.rtlil as rtlil  # pyright: ignore[reportMissingImports]  # not in the stubs
from amaranth.hdl import ClockSignal, Instance, ResetSignal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from .config import Config, snake


def once(platform: Any, part: wiring.Component) -> Any:
    """``part``, or an instance of the one module all parts of its class and config share."""
    return platform.instance(part) if isinstance(platform, Modules) else part


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

    def instance(self, part: Any) -> Instance:
        """An instance wired to ``part``'s own ports; its module is converted at first sight."""
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
        wires = {
            f"{'i' if flow == In else 'o'}_{port}": value for port, (value, flow) in ports.items()
        }
        for port, signal in (("clk", ClockSignal()), ("rst", ResetSignal())):
            if re.search(rf"wire width 1 input \d+ +\\{port}\n", self.rtlil[name]):
                wires[f"i_{port}"] = signal
        return Instance(name, **wires)
