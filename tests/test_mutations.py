# SPDX-License-Identifier: Apache-2.0
"""Blocks broken on purpose at every port: each bench must see each fault."""

import dataclasses
import functools
import importlib

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import Design, Port, emit
from atriplex.rtl import interface
from atriplex.rtl.config import Config
from atriplex.sim.run import in_time, simulate

LOADED_ONCE = {
    "rope": ("table_i",),
    "sequencer": ("program_i",),
    "engine": ("program_i", "table_i"),
}
"""Streams that are ready until their last transfer, so that ignoring ``ready`` is no fault."""

NAMES = {"attention": ("op_i_payload_context",)}
"""Inputs that only tell things apart: other names for all of them are no fault, one for two is."""

SLOW = ("engine",)
"""Blocks whose texts take too long for ``make test``."""


def config_of(name: str) -> Config:
    block = blocks.find(name)
    return block.config.preset("tiny" if "tiny" in block.presets else next(iter(block.presets)))


@functools.cache
def smallest(name: str) -> Design:
    return emit(blocks.find(name), config_of(name))


def faults(name: str) -> dict[str, tuple[str, str]]:
    """By name of the fault: the port it replaces, and the expression it replaces it by.

    ``$`` stands for what would be there.  Inputs are replaced on their way in, outputs on their
    way out.
    """
    found = {}
    for stream in interface.streams_of(blocks.find(name).component, config_of(name)):
        ready = stream.port("ready")
        if stream.name not in LOADED_ONCE.get(name, ()):
            found[f"{ready}_ignored"] = (ready, "1'b1")
        for field in stream.fields:
            port = stream.port(field.name)
            bits = field.total_width
            if stream.direction == "in" and port not in NAMES.get(name, ()):
                found[f"{port}_flipped"] = (port, f"$ ^ {bits}'d1")
            else:
                found[f"{port}_even"] = (port, f"$ & ~{bits}'d1")
                found[f"{port}_narrow"] = (port, f"$ & ~({bits}'d1 << {bits - 1})")
    return found


def breakable(name: str) -> Design:
    """The design in a module of its name, whose input ``variant`` brings a fault about, 0 none."""
    design = smallest(name)
    lines, joins = ["  input [15:0] variant;"], []
    by_port: dict[str, list[tuple[int, str]]] = {}
    for number, (port, expression) in enumerate(faults(name).values(), 1):
        by_port.setdefault(port, []).append((number, expression))
    for port in design.ports:
        span = f"[{port.width - 1}:0] "
        lines.append(f"  {port.direction} {span}{port.name};")
        lines.append(f"  wire {span}inner_{port.name};")
        outer, inner = port.name, f"inner_{port.name}"
        target, source = (inner, outer) if port.direction == "input" else (outer, inner)
        expression = source
        for number, broken in by_port.get(port.name, []):
            broken = broken.replace("$", source)
            expression = f"variant == {number} ? ({broken}) : ({expression})"
        lines.append(f"  assign {target} = {expression};")
        joins.append(f".{outer}({inner})")
    inner = f"{design.top}__sound"
    text = design.text.replace(f"\nmodule {design.top}(", f"\nmodule {inner}(")
    ports = ", ".join(["variant", *(port.name for port in design.ports)])
    body = "\n".join(lines)
    body += f"\n  {inner} sound ({', '.join(joins)});"
    text += f"\nmodule {design.top}({ports});\n{body}\nendmodule\n"
    variant = Port("variant", 16, "input")
    return dataclasses.replace(design, text=text, ports=(variant, *design.ports))


def mode_of(number: int, fault: str) -> str:
    """Back-pressure that is ignored shows where streams pause, all else without."""
    return f"{'stalled' if fault.endswith('_ignored') else 'free'}@{number}"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in blocks.names()],
)
def test_every_fault_at_a_port_is_seen(name: str) -> None:
    modes = {fault: mode_of(number, fault) for number, fault in enumerate(faults(name), 1)}
    outcome = simulate(
        breakable(name),
        transfers=300,
        modes=["free@0", "stalled@0", *modes.values(), "free@0"],
    )
    seen = {
        mode["mode"]: bool(mode["first"] or mode["untaken"]) or not in_time(mode)
        for mode in outcome.modes
    }
    assert not any(bad for mode, bad in seen.items() if mode.endswith("@0"))
    assert [fault for fault, mode in modes.items() if not seen[mode]] == []


@pytest.mark.parametrize(("name", "stream"), [("rope", "table_i"), ("sequencer", "program_i")])
def test_what_is_loaded_once_takes_no_more_afterwards(name: str, stream: str) -> None:
    design, config = smallest(name), config_of(name)
    golden = importlib.import_module(design.module.replace(".rtl.", ".sim."))
    inputs = golden.stimulus(config, np.random.default_rng(1), 300)
    inputs[stream] = {
        field: np.append(values, values[:1]) for field, values in inputs[stream].items()
    }
    outcome = simulate(design, inputs=inputs)
    assert [mode["untaken"] for mode in outcome.modes] == [1, 1]
