# SPDX-License-Identifier: Apache-2.0
"""Blocks broken on purpose at every port: each bench must see each fault."""

import functools
import importlib
from pathlib import Path

import numpy as np
import pytest
from atriplex.gen import blocks, cache
from atriplex.gen.verilog import Design, emit
from atriplex.rtl import interface
from atriplex.rtl.config import Config
from atriplex.sim.run import simulate

LOADED_ONCE = {
    "rope": ("table_i",),
    "sequencer": ("program_i",),
    "engine": ("program_i", "table_i"),
}
"""Streams that are ready until their last transfer, so that ignoring ``ready`` is no fault."""

NAMES = {"attention": ("op_i_payload_context",)}
"""Inputs that only tell things apart: other names for all of them are no fault, one for two is."""


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


@functools.cache
def breakable(name: str) -> str:
    """The design inside a module of its name, where a plusarg brings each fault about."""
    design = smallest(name)
    lines, joins = [], []
    by_port: dict[str, list[tuple[str, str]]] = {}
    for fault, (port, expression) in faults(name).items():
        lines.append(f'  reg {fault} = 0; initial {fault} = $test$plusargs("{fault}");')
        by_port.setdefault(port, []).append((fault, expression))
    for port in design.ports:
        span = f"[{port.width - 1}:0] "
        lines.append(f"  {port.direction} {span}{port.name};")
        lines.append(f"  wire {span}inner_{port.name};")
        outer, inner = port.name, f"inner_{port.name}"
        target, source = (inner, outer) if port.direction == "input" else (outer, inner)
        expression = source
        for fault, broken in by_port.get(port.name, []):
            expression = f"{fault} ? ({broken.replace('$', source)}) : ({expression})"
        lines.append(f"  assign {target} = {expression};")
        joins.append(f".{outer}({inner})")
    inner = f"{design.top}__sound"
    text = design.text.replace(f"\nmodule {design.top}(", f"\nmodule {inner}(")
    ports = ", ".join(port.name for port in design.ports)
    body = "\n".join(lines)
    body += f"\n  {inner} sound ({', '.join(joins)});"
    return f"{text}\nmodule {design.top}({ports});\n{body}\nendmodule\n"


def complaints(name: str, folder: Path, *plusargs: str) -> list[str]:
    source = folder / "broken.v"
    source.write_text(breakable(name))
    outcome = simulate(
        smallest(name),
        cache=cache.root() / "sim",
        transfers=300,
        sources=[source],
        plusargs=plusargs,
    )
    return list(outcome.complaints())


@pytest.mark.parametrize("name", blocks.names())
def test_without_a_fault_nothing_is_seen(name: str, tmp_path: Path) -> None:
    assert complaints(name, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name in blocks.names() for fault in faults(name)]
)
def test_every_fault_at_a_port_is_seen(name: str, fault: str, tmp_path: Path) -> None:
    assert complaints(name, tmp_path, f"+{fault}") != []


@pytest.mark.parametrize(("name", "stream"), [("rope", "table_i"), ("sequencer", "program_i")])
def test_what_is_loaded_once_takes_no_more_afterwards(name: str, stream: str) -> None:
    design, config = smallest(name), config_of(name)
    golden = importlib.import_module(design.module.replace(".rtl.", ".sim."))
    inputs = golden.stimulus(config, np.random.default_rng(1), 300)
    inputs[stream] = {
        field: np.append(values, values[:1]) for field, values in inputs[stream].items()
    }
    outcome = simulate(design, cache=cache.root() / "sim", inputs=inputs)
    assert [mode["untaken"] for mode in outcome.modes] == [1, 1]
