# SPDX-License-Identifier: Apache-2.0
"""Conversion in a memory of bit rows: numpy's bits for every number, cycles, faults inside."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import convert, emit
from atriplex.rtl.lut import type_convert as rtl
from atriplex.rtl.lut.type_convert import Kind, TypeConvertConfig
from atriplex.sim.lut import type_convert as sim
from atriplex.sim.run import simulate

BLOCK = blocks.find("type_convert")


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_model_of_every_integer_of_16_bits_is_numpys(name: str) -> None:
    config = TypeConvertConfig(bits=16, format=name, cols=256)
    values = np.arange(-(1 << 15), 1 << 15).reshape(-1, 256)
    outputs = sim.golden(config, sim.transfers(config, values))
    found = sim.results(config, outputs)
    assert found.dtype == np.dtype(name)
    np.testing.assert_array_equal(found, values.astype(np.int16).astype(name))


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_model_of_wide_integers_is_numpys(name: str) -> None:
    config, rng = TypeConvertConfig(format=name, cols=100), np.random.default_rng(1)
    values = sim.integers(config, rng, (3000, 100))
    found = sim.results(config, sim.golden(config, sim.transfers(config, values)))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, values.astype(np.int32).astype(name))
    assert not np.array_equal(found.astype(np.float64), values)  # some were rounded


@pytest.mark.parametrize("scale", [-30, -3, 0, 5, 20])
def test_model_of_every_half_is_numpys_rint_and_clip(scale: int) -> None:
    config = TypeConvertConfig(to="int", bits=8, format="float16", cols=256)
    codes = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 256)
    values = codes.view(np.float16)
    found = sim.results(config, sim.golden(config, sim.transfers(config, values, scale)))
    real = ~np.isnan(values)
    wide = values[real].astype(np.longdouble) * np.longdouble(2) ** scale
    np.testing.assert_array_equal(found[real], np.clip(np.rint(wide), -128, 127))
    np.testing.assert_array_equal(found[~real], np.where(codes[~real] >> 15, -128, 127))


def every(config: TypeConvertConfig, values: Any, scale: int = 0) -> None:
    """Converts all values in RTL."""
    inputs = sim.transfers(config, values.reshape(-1, config.cols), scale)
    outcome = simulate(emit(BLOCK, config), inputs=inputs, modes=["free"])
    assert list(outcome.complaints()) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["float32", "float16"])
def test_every_integer_of_16_bits_in_rtl(name: str) -> None:
    every(TypeConvertConfig(bits=16, format=name), np.arange(-(1 << 15), 1 << 15))


@pytest.mark.long
@pytest.mark.parametrize("scale", [0, 17, 20, -9])
def test_every_half_in_rtl(scale: int) -> None:
    config = TypeConvertConfig(to="int", bits=8, format="float16")
    every(config, np.arange(1 << 16, dtype=np.uint16).view(np.float16), scale)


@pytest.mark.long
@pytest.mark.parametrize("bits", [4, 11, 12, 13, 16, 17, 18, 31])
@pytest.mark.parametrize("name", ["float32", "float16"])
@pytest.mark.parametrize("to", ["float", "int"])
def test_other_widths(to: str, name: str, bits: int) -> None:
    config = TypeConvertConfig(to=to, bits=bits, format=name, cols=32)
    outcome = simulate(emit(BLOCK, config), transfers=6000)
    assert list(outcome.complaints()) == []


@pytest.mark.parametrize("bits", range(4, 33))
def test_cycles_are_those_of_the_sheet(bits: int) -> None:
    """Of ``n - 1`` ORs none takes a cycle; ``log2(n)`` moves; rounding from 25 bits on."""
    config = TypeConvertConfig(bits=bits)
    kinds = [step.kind for step in config.program]
    moves = (bits - 1).bit_length()
    assert kinds.count(Kind.HEAD) == moves + 1 and kinds.count(Kind.MOVE) == moves * bits
    assert kinds.count(Kind.ROUND) == (bits > 24)
    assert config.period == bits + bits + moves * (bits + 1) + 1 + (bits > 24) + 32
    ors = sum(step.seen for step in config.program)
    assert ors == sum(min(1 << k, bits) for k in range(moves)) + 1


FAULTS = {
    "float": {
        "no_sign": ("term, one = a ^ (sign & adds", "term, one = a ^ (0 & adds"),
        "a_move_always": ("select_each(found, a, b)", "b"),
        "ors_forget": ("seen.eq(seen | written)", "seen.eq(written)"),
        "nothing_lost": ("lost.eq(lost | written)", "lost.eq(0)"),
        "ties_upwards": ("a & (b | lost), above", "a, above"),
        "no_overflow": ("over.eq(above)", "over.eq(0)"),
        "zero_is_a_number": ("total & found", "total"),
        "constant_off": ("constant = n +", "constant = 1 + n +"),
        "a_row_too_low": ("row < top - 1", "row < top - 2"),
    },
    "int": {
        "subnormals_one_lower": ("does.one.replicate(cols) & ~moved", "0 & ~moved"),
        "no_hidden_bit": ("written.eq(moved)", "written.eq(0)"),
        "far_is_near": ("far.eq(far | total)", "far.eq(far)"),
        "never_clamped": ("over.eq(total | ones)", "over.eq(ones)"),
        "infinity_is_a_number": ("over.eq(total | ones)", "over.eq(total)"),
        "nothing_lost": ("lost.eq(lost | (moved & a))", "lost.eq(lost)"),
        "ties_upwards": ("up = a & (b | lost)", "up = a"),
        "sign_of_the_rounding": ("sign ^ up", "sign"),
        "rounded_beyond": ("(ones & up & ~sign)", "0"),
        "clamped_to_the_other_end": ("clamped = sign ^ ", "clamped = ~sign ^ "),
        "no_scale_limit": ("scale > config.max_scale", "0"),
    },
}
"""Faults inside, by direction: what is there, and what is there instead."""


@pytest.mark.parametrize(
    ("to", "fault"), [(to, fault) for to, faults in FAULTS.items() for fault in faults]
)
def test_faults_inside_are_seen(to: str, fault: str) -> None:
    sound, broken = FAULTS[to][fault]
    source = inspect.getsource(rtl)
    assert source.count(sound) == 1
    names: dict[str, Any] = {"__name__": rtl.__name__, "__package__": "atriplex.rtl.lut"}
    exec(compile(source.replace(sound, broken), rtl.__file__, "exec"), names)
    config = TypeConvertConfig(to=to, bits=20 if to == "float" else 10, format="float16", cols=8)
    faulty = names["TypeConvert"](names["TypeConvertConfig"].of(config.values()))
    design = emit(BLOCK, config)
    text, ports = convert(faulty, design.top)
    outcome = simulate(
        dataclasses.replace(design, text=text, ports=ports),
        transfers=900,
        simulator="icarus",
        modes=["free"],
    )
    assert outcome.mismatches
