# SPDX-License-Identifier: Apache-2.0
"""Blocks broken on purpose at every port: each bench must see each fault."""

import dataclasses
import functools
import importlib
import inspect
import re
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Signal
from atriplex.gen import blocks
from atriplex.gen.verilog import Design, Port, convert, emit
from atriplex.rtl import interface
from atriplex.rtl.config import Config
from atriplex.rtl.engine import _micro_core
from atriplex.rtl.engine.micro_engine import MicroEngineConfig
from atriplex.sim.engine import micro_engine
from atriplex.sim.run import in_time, simulate

LOADED_ONCE = {
    "rope": ("table_i",),
    "sequencer": ("program_i",),
    "engine": ("program_i", "table_i"),
    "micro_engine": ("image_i",),
}
"""Streams that are ready until their last transfer, so that ignoring ``ready`` is no fault."""

NAMES = {"attention": ("op_i_payload_context",)}
"""Inputs that only tell things apart: other names for all of them are no fault, one for two is."""

IDLE = {
    "engine": (
        *("program_i_payload_waits", "program_i_payload_slot"),
        *(f"sampler_i_payload_{name}" for name in ("keep", "seed", "seed_load")),
    )
}
"""Inputs of no use there: there is one layer, no token is drawn, and all may wait for longer."""

COARSE = {
    "engine": (
        *("table_i_payload_cos", "table_i_payload_sin"),
        *("gains_i_payload_gains", "embed_i_payload_codes"),
    ),
    "xr_npe_array": ("s_axil_awaddr", "s_axil_araddr"),
}
"""Inputs whose lowest bit decides nothing; all their bits are flipped."""

_FETCHED = (
    *(f"{memory}_fetch_o_payload_address" for memory in ("weights", "gains")),
    *(f"{memory}_fetch_o_payload_count" for memory in ("weights", "gains")),
    "embed_fetch_o_payload_rows",
)
_ANSWERS = ("s_axil_bresp", "s_axil_rresp")
EVEN = {"engine": _FETCHED, "xr_npe_array": _ANSWERS}
"""Outputs whose lowest bit is never set by the smallest preset; it is set instead."""

ROOMY = {
    "engine": (*_FETCHED, "embed_fetch_o_payload_shift"),
    "micro_engine": ("token_o_payload_token",),
}
"""Ports whose highest bit no model of the smallest preset has a use for."""

SLOW = ("engine", "micro_engine")
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
            if port in IDLE.get(name, ()):
                continue
            if port in COARSE.get(name, ()):
                found[f"{port}_flipped"] = (port, "~$")
            elif stream.direction == "in" and port not in NAMES.get(name, ()):
                found[f"{port}_flipped"] = (port, f"$ ^ {bits}'d1")
            else:
                odd = port in EVEN.get(name, ())
                found[f"{port}_even"] = (port, f"$ {'|' if odd else '& ~'}{bits}'d1")
                if port not in ROOMY.get(name, ()):
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


INSIDE: dict[str, tuple[str, str, str]] = {
    "accumulator_narrow": ("acc.eq($)", "after", "after[:51].as_signed()"),
    "multiplicand_narrow": ("x.eq($)", "acc", "acc[:38].as_signed()"),
    "factor_narrow": ("(x * $)", "b[:FACTOR].as_signed()", "b[: FACTOR - 1].as_signed()"),
    "product_not_awaited": ("(~multiplies | $)", "multiplied", "1"),
    "sum_not_awaited": ("Source.SUM) | $)", "self.sum_i.valid", "1"),
    "a_trit_of_the_other_sign": ("as_value().eq($)", "words.o.p", "words.o.p & 0x1FFFD"),
    "end_lost": ("final.eq($)", "ends & (left == 1)", "0"),
    "end_too_early": ("final.eq($)", "ends & (left == 1)", "left == 1"),
    "words_without_room": ("self.free & $ &", "room", "1"),
    "ties_upwards": ("up = $", "acc[0] & (acc[1] | acc[DIVISOR:].any())", "acc[0]"),
    "quotients_down": ("up = $", "acc[0] & (acc[1] | acc[DIVISOR:].any())", "0"),
    "shr_for_rnd": ("carry.eq($)", "shifted[0] & (self.op == Op.RND)", "0"),
    "rnd_for_shr": ("carry.eq($)", "shifted[0] & (self.op == Op.RND)", "shifted[0]"),
    "far_not_clamped": ("Mux(large, $, b[:6])", "63", "b[:6]"),
    "min_always": ("changes.eq($)", "self.done & ~negative", "self.done"),
    "max_never": ("changes.eq($)", "self.done & negative", "0"),
    "abs_never": ("changes.eq($)", "self.done & acc[-1]", "0"),
    "bytes_swapped": ("| where", "Cat(~pointer[0], pointer[0])", "Cat(pointer[0], ~pointer[0])"),
    "thread_signed": ("self.data[-1] & ~$)", "i.argument[0]", "0"),
    "data_signed": ("self.data[-1] & ~$)", "where.unsigned", "0"),
    "one_call_deep": ("link.eq($)", "deeper", "link"),
    "tap_o_not_awaited": ("shown.eq($)", "~self.tap_o.valid | self.tap_o.ready", "1"),
    "token_o_not_awaited": ("!= Op.OUT) | $)", "self.token_o.ready", "1"),
}
"""Faults of the micro engine: where in its source, what is there, and what is there instead."""

FAULTY = MicroEngineConfig(store=8192, local=512, longest=160)


@functools.cache
def faulty_micro_engine() -> Design:
    """The micro engine with an input ``variant``, which brings about one of ``INSIDE``."""
    module = blocks.find("micro_engine").module
    parts = (_micro_core, importlib.import_module(module))
    source = "\n".join(inspect.getsource(part) for part in parts)
    source = re.sub(r"^from \._micro_core import .*\n", "", source, flags=re.MULTILINE)
    by_place: dict[tuple[str, str], str] = {}
    for number, (where, sound, fault) in enumerate(INSIDE.values(), 1):
        before = by_place.get((where, sound), sound)
        by_place[where, sound] = f"Mux(VARIANT == {number}, {fault}, {before})"
    by_place["super().__init__({\n            $", '"image_i"'] = '"variant": In(16), "image_i"'
    given = "m.d.comb += VARIANT.eq(self.variant)\n        m.submodules.store"
    by_place["$ = store", "m.submodules.store"] = given
    for (where, sound), broken in by_place.items():
        there = where.replace("$", sound) if "$" in where else f"{sound} {where}"
        instead = where.replace("$", broken) if "$" in where else f"{broken} {where}"
        assert source.count(there) == 1, there
        source = source.replace(there, instead)
    names: dict[str, Any] = {"__name__": module, "__package__": module.rpartition(".")[0]}
    names["VARIANT"] = Signal(16)
    exec(compile(source, module, "exec"), names)
    text, ports = convert(names["MicroEngine"](FAULTY), "micro_engine")
    design = emit(blocks.find("micro_engine"), FAULTY)
    return dataclasses.replace(design, text=text, ports=ports)


def unseen(modes: dict[str, str], seed: int, tokens: int) -> dict[str, str]:
    """Of faults by name, each with a mode that brings it about: those that do not show."""
    inputs = micro_engine.texts(FAULTY, np.random.default_rng(1), 0, seed)
    inputs["token_i"] = {name: values[:tokens] for name, values in inputs["token_i"].items()}
    inputs["token_i"]["sample"][-1] = True
    every = ["free@0", "stalled@0", *modes.values(), "free@0"]
    outcome = simulate(faulty_micro_engine(), inputs=inputs, modes=every)
    seen = [mode["mode"] for mode in outcome.modes if mode["first"] or mode["untaken"]]
    assert not any(mode.endswith("@0") for mode in seen)
    return {fault: mode for fault, mode in modes.items() if mode not in seen}


@pytest.mark.long
def test_every_fault_inside_the_micro_engine_is_seen() -> None:
    modes = {
        fault: f"{'stalled' if fault.endswith('o_not_awaited') else 'free'}@{number}"
        for number, fault in enumerate(INSIDE, 1)
    }
    wide = {"sum_not_awaited": modes.pop("sum_not_awaited")}  # elsewhere sums come early enough
    assert unseen(modes, 1, 3) == {}
    assert unseen(wide, 3, 1) == {}
