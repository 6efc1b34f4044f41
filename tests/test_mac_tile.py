# SPDX-License-Identifier: Apache-2.0
"""Tiles by multipliers and additions: products of matrices, bounds, order of floats, faults."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import convert, emit
from atriplex.rtl.lut import mac_tile as rtl
from atriplex.rtl.lut.mac_tile import MacTileConfig
from atriplex.sim.lut import mac_tile as sim
from atriplex.sim.run import simulate

BLOCK = blocks.find("mac_tile")


@pytest.mark.parametrize("bits", [2, 3, 7])
@pytest.mark.parametrize("style", ["mac", "dequant", "native", "add"])
def test_model_is_the_product_of_matrices(style: str, bits: int) -> None:
    config, rng = MacTileConfig(m=2, n=5, style=style, bits=bits), np.random.default_rng(bits)
    acts = rng.integers(-128, 128, (2, 40))
    codes = rng.integers(0, 1 << bits, (5, 40))
    zero = rng.integers(0, 1 << bits, 5)
    given = {
        "mac": (codes - 9, codes - 9),
        "native": (codes - (1 << bits - 1),) * 2,
        "dequant": (codes, codes - zero[:, None]),
        "add": (codes, 2 * codes - ((1 << bits) - 1)),
    }
    weights, values = given[style]
    inputs = sim.product(config, acts, weights, zero)
    found = sim.golden(config, inputs)["o"]["sums"]
    np.testing.assert_array_equal(found, (acts @ values.T)[None])


@pytest.mark.parametrize("style", ["mac", "dequant", "native", "add"])
def test_stimulus_reaches_the_largest_sum(style: str) -> None:
    config = MacTileConfig(n=2, style=style, bits=5, max_k=512)
    inputs = sim.stimulus(config, np.random.default_rng(1), 10_000)
    found = sim.golden(config, inputs)["o"]["sums"]
    assert found.max() == config.sum_bound < 1 << config.acc_width - 1
    assert config.sum_bound >> config.acc_width - 2  # and no bit is to spare


def test_halves_are_added_in_pairs_then_in_turn() -> None:
    config, rng = MacTileConfig(n=3, k=5, activations="fp16"), np.random.default_rng(1)
    acts, weights = (rng.normal(size=(rows, 20)).astype(np.float16) for rows in (1, 3))
    codes = [x.view(np.uint16).astype(np.int64) for x in (acts, weights)]
    found = sim.golden(config, sim.product(config, *codes))["o"]["sums"]
    p = (acts * weights).reshape(3, 4, 5)
    acc = np.zeros(3, np.float16)
    for tile in range(4):
        a, b, c, d, e = p[:, tile].T
        acc = acc + (((a + b) + (c + d)) + e)
    np.testing.assert_array_equal(found[0, 0].astype(np.uint16).view(np.float16), acc)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_codes_become_halves_exactly(bits: int) -> None:
    config = MacTileConfig(n=1, k=1, style="dequant", activations="fp16", bits=bits, stages=1)
    codes = np.arange(1 << bits)
    count = len(codes) ** 2 if bits < 8 else 4000
    pick = np.random.default_rng(1).integers(0, 1 << 2 * bits, count)
    pick = np.arange(count) if bits < 8 else pick
    code, zero = pick >> bits, pick & (1 << bits) - 1
    ones = np.ones(count, np.int64)
    inputs = {
        "acts_i": {"acts": np.full((count, 1, 1), 0x3C00)},
        "i": {
            "weights": code.reshape(-1, 1, 1),
            "zero": zero.reshape(-1, 1),
            **{name: ones for name in ("coded", "first", "last")},
        },
    }
    outcome = simulate(emit(BLOCK, config), inputs=inputs, simulator="icarus", modes=["free"])
    assert list(outcome.complaints()) == []
    sums = sim.golden(config, inputs)["o"]["sums"].astype(np.uint16).view(np.float16)
    np.testing.assert_array_equal(sums.reshape(-1), code - zero)


@pytest.mark.long
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize(
    "values",
    [
        {"style": "mac", "activations": "fp16"},
        {"style": "add", "activations": "fp16", "bits": 3, "k": 3},
        {"style": "add", "bits": 4, "k": 8},
        {"style": "dequant", "activations": "fp16", "bits": 8, "k": 5},
        {"style": "native", "bits": 7, "product": "multiply"},
        {"style": "mac", "product": "rows", "k": 1},
    ],
    ids=str,
)
def test_other_tiles(values: dict[str, Any], stages: int) -> None:
    config = MacTileConfig(m=2, n=2, stages=stages, max_k=2048, **values)
    outcome = simulate(emit(BLOCK, config), transfers=4000)
    assert list(outcome.complaints()) == []


def test_what_cannot_be_is_refused() -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"style": "native", "activations": "fp16"}, "needs activations int8; fp16 has styles"),
        ({"style": "native", "bits": 1}, "weights of 1 bit are style add"),
        ({"style": "dequant", "bits": 8}, "needs bits of 7 or less with int8"),
        ({"style": "add", "k": 3}, "needs k to be a power of two from 2 on with int8, not 3"),
        ({"max_k": 1 << 20}, "sums of 1048576 products of 8 by 8 bits need 36 bits, more than 32"),
        ({"k": 8, "max_k": 4}, r"max_k must be at least k \(8\), not 4"),
    )
    for values, text in refused:
        with pytest.raises(ValueError, match=text):
            MacTileConfig(**values)


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "accumulator_narrow": (
        {},
        "m, platform, config.acc_width, total",
        "m, platform, config.acc_width - 1, total",
    ),
    "opens_early": ({}, "run.opens[-2]", "run.opens[-1]"),
    "moves_early": ({}, "enable & run.moves[-2]", "enable & run.moves[-1]"),
    "zero_of_another_column": (
        {"style": "dequant"},
        "payload.zero[column]",
        "payload.zero[column - 1]",
    ),
    "number_narrow": ({"style": "dequant"}, "signed(config.bits + 1)", "signed(config.bits)"),
    "acts_do_not_double": ({"style": "add"}, "(act << 1)[:width]", "act[:width]"),
    "signs_swapped": ({"style": "add"}, "Cat(1, ~bit)", "Cat(1, bit)"),
    "tile_without_its_acts": (
        {"style": "add"},
        "both.valid.eq(self.i.valid & (~fresh | self.acts_i.valid))",
        "both.valid.eq(self.i.valid)",
    ),
    "half_one_place_off": (
        {"style": "dequant", "activations": "fp16"},
        "15 + bits - 1",
        "15 + bits",
    ),
    "zero_is_a_number": (
        {"style": "dequant", "activations": "fp16"},
        "field & shifted[-1].replicate(5)",
        "field",
    ),
    "sum_begins_where_it_ended": (
        {"style": "add", "activations": "fp16"},
        "Mux(opens, 0, acc)",
        "acc",
    ),
}
"""Faults inside: the configuration, what is there, and what is there instead."""


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_inside_are_seen(fault: str) -> None:
    values, sound, broken = FAULTS[fault]
    source = inspect.getsource(rtl)
    assert source.count(sound) == 1
    names: dict[str, Any] = {"__name__": rtl.__name__, "__package__": "atriplex.rtl.lut"}
    exec(compile(source.replace(sound, broken), rtl.__file__, "exec"), names)
    config = MacTileConfig(**{"n": 2, "k": 2, "bits": 3, "max_k": 32, **values})
    design = emit(BLOCK, config)
    text, ports = convert(names["MacTile"](names["MacTileConfig"].of(config.values())), design.top)
    outcome = simulate(
        dataclasses.replace(design, text=text, ports=ports),
        transfers=300,
        simulator="icarus",
        modes=["stalled" if fault.startswith("tile_without") else "free"],
    )
    assert outcome.mismatches
