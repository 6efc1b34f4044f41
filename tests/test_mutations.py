# SPDX-License-Identifier: Apache-2.0
"""Blocks broken on purpose at every port: each bench must see each fault."""

from pathlib import Path

import pytest
from atriplex.gen import blocks, cache
from atriplex.gen.verilog import Design, emit
from atriplex.sim.run import simulate


def smallest(name: str) -> Design:
    block = blocks.find(name)
    preset = "tiny" if "tiny" in block.presets else next(iter(block.presets))
    return emit(block, block.config.preset(preset))


def faults(design: Design) -> dict[str, tuple[str, str]]:
    """By name of the fault: the port it replaces, and the expression it replaces it by.

    ``$`` stands for what would be there.  Inputs are replaced on their way in, outputs on their
    way out.
    """
    found = {}
    width = {port.name: port.width for port in design.ports}
    for stream in design.streams:
        ready = stream.port("ready")
        found[f"{ready}_ignored"] = (ready, "1'b1")
        for field in stream.fields:
            port = stream.port(field.name)
            bits = width[port]
            if stream.direction == "in":
                found[f"{port}_flipped"] = (port, f"$ ^ {bits}'d1")
            else:
                found[f"{port}_narrow"] = (port, f"$ & ~({bits}'d1 << {bits - 1})")
                found[f"{port}_even"] = (port, f"$ & ~{bits}'d1")
    return found


def breakable(design: Design) -> str:
    """The design inside a module of its name, where a plusarg brings each fault about."""
    lines, joins = [], []
    by_port: dict[str, list[tuple[str, str]]] = {}
    for fault, (port, expression) in faults(design).items():
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


@pytest.mark.parametrize("name", blocks.names())
def test_every_fault_at_a_port_is_seen(name: str, tmp_path: Path) -> None:
    design = smallest(name)
    source = tmp_path / "broken.v"
    source.write_text(breakable(design))

    def complaints(*plusargs: str) -> list[str]:
        outcome = simulate(
            design,
            cache=cache.root() / "sim",
            transfers=300,
            sources=[source],
            plusargs=plusargs,
        )
        return list(outcome.complaints())

    assert complaints() == []
    unseen = [fault for fault in faults(design) if not complaints(f"+{fault}")]
    assert unseen == []
