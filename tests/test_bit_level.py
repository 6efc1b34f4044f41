# SPDX-License-Identifier: Apache-2.0
"""Dot products made of single bits: models against plain numpy, bounds, claims, faults inside."""

import dataclasses
import importlib
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator
from atriplex.gen import blocks
from atriplex.gen.verilog import Design, Port, convert, emit
from atriplex.rtl.config import Config
from atriplex.rtl.formats._formats import format_named
from atriplex.rtl.mac import _planes, _popcount, _sign_tree
from atriplex.rtl.mac._popcount import STRUCTURES, Popcount, PopcountConfig
from atriplex.rtl.mac.bipolar_gemm import BipolarGemmConfig
from atriplex.rtl.mac.bit_serial_dot import BitSerialDotConfig
from atriplex.rtl.mac.bit_slice_dot import BitSliceDotConfig
from atriplex.rtl.mac.fdb_dot import FdbDotConfig
from atriplex.rtl.mac.xnor_dot import XnorDotConfig
from atriplex.sim.formats.codec import decode
from atriplex.sim.mac import bipolar_gemm, bit_serial_dot, bit_slice_dot, fdb_dot, xnor_dot
from atriplex.sim.mac.bit_slice_dot import CENTRE, LOWER, UPPER
from atriplex.sim.run import in_time, simulate

GOLDEN: dict[str, Any] = {
    "fdb_dot": fdb_dot,
    "bit_serial_dot": bit_serial_dot,
    "bit_slice_dot": bit_slice_dot,
    "xnor_dot": xnor_dot,
    "bipolar_gemm": bipolar_gemm,
}

OUTPUT = {"bipolar_gemm": "sums"}


def whole(config: Any) -> int:
    """The most lanes that whole transfers of one run can bring."""
    return config.max_k // config.lanes * config.lanes


def bound(name: str, config: Any) -> tuple[int, int]:
    """The smallest and the largest sum of a run, by hand."""
    if name == "fdb_dot":
        most = whole(config) << config.act_width + config.scale_width - 1
        other = (1 << config.act_width - 1) - 1
        other = max(
            2 * whole(config) * other << config.scale_width - 1,
            (whole(config) << config.act_width) * ((1 << config.scale_width - 1) - 1),
        )
        return -other, most
    if name == "bit_serial_dot":
        act = 1 << config.act_width - 1
        planes = (1 << config.max_bits) - 1
        return -whole(config) * act * planes, whole(config) * act * planes
    if name == "bit_slice_dot":
        act, top = 1 << config.act_width - 1, 1 << config.weight_width - 1
        every = (1 << config.split) - 1
        return (
            whole(config) * (-(act - 1) * top - act * every),
            whole(config) * (act * top + (act - 1) * every),
        )
    if name == "xnor_dot":
        return -whole(config), whole(config)
    most = whole(config) * ((1 << config.w_bits) - 1) * ((1 << config.x_bits) - 1)
    return -most, most


def joined(parts: list[Any]) -> Any:
    """The runs of several inputs after one another."""
    names = parts[0]["i"]
    return {"i": {name: np.concatenate([part["i"][name] for part in parts]) for name in names}}


@pytest.mark.parametrize("name", GOLDEN)
def test_stimulus_reaches_the_largest_sums_there_are(name: str) -> None:
    block = blocks.find(name)
    for preset in block.presets:
        config: Any = block.config.preset(preset)
        inputs = GOLDEN[name].stimulus(config, np.random.default_rng(1), 10_000)
        sums = GOLDEN[name].golden(config, inputs)["o"][OUTPUT.get(name, "sum")]
        least, most = bound(name, config)
        assert {least, most} <= set(sums.flat), preset
        if name != "bipolar_gemm":  # doublings at random go beyond what its planes can
            assert (sums.min(), sums.max()) == (least, most), preset
        assert most < 1 << config.sum_width - 1
        assert least >= -(1 << config.sum_width - 1)


# Dual binary weights


def test_planes_of_dual_binary_weights_are_the_nearest_of_their_four_levels() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=10_000)
    for step in (0.5, 0.8, 1.0, 1.5):
        b1, b2 = fdb_dot.planes(weights, np.array(2 * step), np.array(-step))
        levels = step * np.array([-1.0, 0.0, 1.0, 2.0])
        nearest = levels[np.abs(weights[:, None] - levels).argmin(axis=1)]
        np.testing.assert_allclose(2 * step * b1 - step * b2, nearest)


def test_planes_of_dual_binary_gaussian_weights_are_sparse() -> None:
    """The densities of the paper's sheet: what an engine that skips zeros would save."""
    weights = np.random.default_rng(1).normal(size=400_000)
    for step, expected in ((0.8, 0.46), (1.0, 0.43), (1.5, 0.33)):
        planes = fdb_dot.planes(weights, np.array(2 * step), np.array(-step))
        assert np.mean(planes) == pytest.approx(expected, abs=0.01)
        if step == 1.0:
            assert [plane.mean() for plane in planes] == pytest.approx([0.31, 0.55], abs=0.005)
            assert np.mean((planes[0] | planes[1]) == 0) == pytest.approx(0.38, abs=0.005)


@pytest.mark.parametrize("size", [3, 16, 21])
def test_model_is_the_product_with_dual_binary_weights(size: int) -> None:
    rng, config = np.random.default_rng(2), FdbDotConfig(lanes=8, max_group=32)
    acts = rng.integers(-128, 128, (5, size))
    b1, b2 = rng.integers(0, 2, (2, 3, 5, size))
    alpha1, alpha2 = rng.integers(-(1 << 15), 1 << 15, (2, 3, 5))
    inputs = fdb_dot.product(config, acts, b1, b2, alpha1, alpha2)
    weights = alpha1[..., None] * b1 + alpha2[..., None] * b2
    expected = (weights * acts).sum(axis=(1, 2))
    assert fdb_dot.golden(config, inputs)["o"]["sum"].tolist() == expected.tolist()


@pytest.mark.parametrize("lanes", [8, 64])
def test_dual_binary_weights_take_two_multipliers_whatever_the_lanes(lanes: int) -> None:
    design = emit(blocks.find("fdb_dot"), FdbDotConfig(lanes=lanes))
    assert len(re.findall(r" \* ", design.text.partition("\nmodule ")[2])) == 2
    adders = emit(blocks.find("fdb_dot"), FdbDotConfig(lanes=lanes, product="rows"))
    assert " * " not in adders.text.partition("\nmodule ")[2]


# Bit-serial weights


@pytest.mark.parametrize("order", ["msb", "lsb"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_model_is_the_product_with_weights_of_any_width(order: str, bits: int) -> None:
    config = BitSerialDotConfig(lanes=8, order=order)
    acts = np.random.default_rng(bits).integers(-128, 128, 256)
    for signed in (True, False):
        low = -(1 << bits - 1) if signed else 0
        every = np.arange(low, low + (1 << bits))
        weights = np.stack([np.roll(np.resize(every, 256), n) for n in range(7)])
        inputs = bit_serial_dot.product(config, acts, weights, bits, signed)
        sums = bit_serial_dot.golden(config, inputs)["o"]["sum"]
        assert sums.tolist() == (weights @ acts).tolist()


@pytest.mark.parametrize("order", ["msb", "lsb"])
def test_a_bit_of_the_weights_is_a_cycle_of_every_tile(order: str) -> None:
    config = BitSerialDotConfig(lanes=4, order=order, stage=0)
    rng, parts = np.random.default_rng(1), []
    for bits in range(1, 9):
        acts = rng.integers(-128, 128, 60)
        weights = rng.integers(-(1 << bits - 1), 1 << bits - 1, (5, 60))
        parts.append(bit_serial_dot.product(config, acts, weights, bits))
        assert len(parts[-1]["i"]["last"]) == 5 * bits * 15
    outcome = simulate(
        emit(blocks.find("bit_serial_dot"), config), inputs=joined(parts), modes=["free"]
    )
    assert list(outcome.complaints()) == []
    assert outcome.cycles == 5 * sum(range(1, 9)) * 15 + config.latency


# Sliced weights


@pytest.mark.parametrize(("width", "split"), [(8, 4), (8, 5), (8, 7), (6, 3), (4, 2)])
def test_slices_of_every_weight_add_up_to_it(width: int, split: int) -> None:
    config = BitSliceDotConfig(weight_width=width, split=split)
    weights = np.arange(-(1 << width - 1), 1 << width - 1)
    upper, lower = bit_slice_dot.slices(config, weights)
    assert upper.max() < 1 << split
    assert lower.max() < 1 << width - split
    value = bit_slice_dot.values
    total = value(config, upper, np.array(UPPER)) + value(config, lower, np.array(LOWER))
    assert total.tolist() == weights.tolist()


def test_values_are_those_of_the_five_bit_port() -> None:
    """The sheet's port: ``2h`` and ``2h + 1`` count 8, ``l`` counts 1; ``w >> 3`` counts 8."""
    weights = np.arange(-128, 128)
    four, five = BitSliceDotConfig(), BitSliceDotConfig(split=5)
    high, low = weights >> 4, weights & 15
    upper, lower = bit_slice_dot.slices(four, weights)
    value = bit_slice_dot.values
    assert value(four, upper, np.array(UPPER)).tolist() == (8 * (2 * high)).tolist()
    assert value(four, upper, np.array(CENTRE)).tolist() == (8 * (2 * high + 1)).tolist()
    assert value(four, lower, np.array(LOWER)).tolist() == low.tolist()
    upper, lower = bit_slice_dot.slices(five, weights)
    assert value(five, upper, np.array(UPPER)).tolist() == (8 * (2 * high + (low >> 3))).tolist()
    assert value(five, upper, np.array(CENTRE)).tolist() == (8 * (weights >> 3) + 4).tolist()
    assert value(five, lower, np.array(LOWER)).tolist() == (weights & 7).tolist()


@pytest.mark.parametrize(
    ("split", "part", "mean", "mse", "largest"),
    [
        (4, UPPER, -7.5, 77.5, 15),
        (4, CENTRE, 0.5, 21.5, 8),
        (5, UPPER, -3.5, 17.5, 7),
        (5, CENTRE, 0.5, 5.5, 4),
    ],
)
def test_errors_of_drafts(split: int, part: int, mean: float, mse: float, largest: int) -> None:
    """From the model: one activation of 1 times every weight."""
    config, weights = BitSliceDotConfig(lanes=2, split=split), np.arange(-128, 128)
    inputs = bit_slice_dot.product(config, np.array([1]), weights[:, None], [part])
    error = bit_slice_dot.golden(config, inputs)["o"]["sum"] - weights
    assert (error.mean(), (error**2).mean(), abs(error).max()) == (mean, mse, largest)


def test_error_of_the_nearest_four_bits_for_comparison() -> None:
    weights = np.arange(-128, 128)
    error = 16 * np.clip(weights + 8 >> 4, -8, 7) - weights
    assert (error.mean(), (error**2).mean(), abs(error).max()) == (0, 25.0, 15)


@pytest.mark.parametrize("split", [4, 5])
def test_a_draft_takes_half_of_the_cycles_and_of_the_slices(split: int) -> None:
    config = BitSliceDotConfig(lanes=4, split=split, stage=0)
    design, rng = emit(blocks.find("bit_slice_dot"), config), np.random.default_rng(1)
    acts, weights = rng.integers(-128, 128, 320), rng.integers(-128, 128, (4, 320))
    taken = {}
    for parts in ([UPPER, LOWER], [UPPER], [CENTRE]):
        inputs = bit_slice_dot.product(config, acts, weights, parts)
        if len(parts) == 2:
            sums = bit_slice_dot.golden(config, inputs)["o"]["sum"]
            assert sums.tolist() == (weights @ acts).tolist()
        outcome = simulate(design, inputs=inputs, modes=["free"])
        assert list(outcome.complaints()) == []
        taken[tuple(parts)] = outcome.cycles - config.latency
    assert taken == {(UPPER, LOWER): 640, (UPPER,): 320, (CENTRE,): 320}


@pytest.mark.long
@pytest.mark.parametrize("parts", [[UPPER, LOWER], [CENTRE]])
def test_all_activations_times_all_weights(parts: list[int]) -> None:
    config = BitSliceDotConfig(lanes=2, stage=0)
    acts, weights = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    tiles = np.zeros((acts.size, 2), np.int64)
    tiles[:, 0] = acts.reshape(-1)
    inputs = bit_slice_dot.product(config, np.zeros(1, np.int64), weights.reshape(-1, 1), parts)
    inputs["i"]["acts"] = np.repeat(tiles, len(parts), axis=0)
    expected = acts * (weights if len(parts) == 2 else 16 * (weights >> 4) + 8)
    sums = bit_slice_dot.golden(config, inputs)["o"]["sum"]
    assert sums.tolist() == expected.reshape(-1).tolist()
    outcome = simulate(emit(blocks.find("bit_slice_dot"), config), inputs=inputs, modes=["free"])
    assert list(outcome.complaints()) == []


# Signs


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("bits", [4, 8, 64])
def test_counts_of_bits(bits: int, stage: int, structure: str) -> None:
    config = PopcountConfig(bits=bits, stage=stage, structure=structure)
    part = Popcount(config)
    if bits <= 8:
        words = list(range(1 << bits))
    else:
        rng = np.random.default_rng(1)
        words = [int(word) for word in rng.integers(0, 1 << 63, 200, dtype=np.uint64)]
        words += [(1 << n) - 1 for n in range(65)]
    wrong = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.enable, 1)
        for n, word in enumerate(words + [0] * config.latency):
            ctx.set(part.bits, word)
            await ctx.delay(1e-8)
            late = n - config.latency
            if late >= 0 and ctx.get(part.count) + ctx.get(part.pending) != words[late].bit_count():
                wrong.append(words[late])
            await ctx.tick()

    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.part = part
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert wrong == []


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 300, 4096])
def test_model_is_the_product_of_signs(size: int) -> None:
    config, rng = XnorDotConfig(lanes=64, mask=True), np.random.default_rng(size)
    acts, weights = rng.normal(size=size), rng.normal(size=(5, size))
    bits = xnor_dot.signs(acts), xnor_dot.signs(weights)
    sums = xnor_dot.golden(config, xnor_dot.product(config, *bits))["o"]["sum"]
    expected = np.where(weights >= 0, 1, -1) @ np.where(acts >= 0, 1, -1)
    assert sums.tolist() == expected.tolist()
    assert sums.tolist() == (size - 2 * (bits[0] ^ bits[1]).sum(axis=1)).tolist()


@pytest.mark.long
def test_counters_are_smaller_than_an_adder_tree(tmp_path: Path) -> None:
    from atriplex.fpga.boards import board
    from atriplex.fpga.flow import build

    lut = {}
    for structure in STRUCTURES:
        design = emit(blocks.find("xnor_dot"), XnorDotConfig(structure=structure))
        report = build(design, board("ulx3s-85f"), tmp_path / "out", out_of_context=True)
        lut[structure] = report.lut
    assert lut["counters"] < 0.8 * lut["adders"]
    assert lut["counters"] < 2.75 * 256


@pytest.mark.long
def test_what_drafts_from_the_centre_cost(tmp_path: Path) -> None:
    from atriplex.fpga.boards import board
    from atriplex.fpga.flow import build

    lut = {}
    for augment in (True, False):
        config = BitSliceDotConfig(augment=augment)
        design = emit(blocks.find("bit_slice_dot"), config)
        report = build(design, board("ulx3s-85f"), tmp_path / "out", out_of_context=True, dsp=False)
        lut[augment] = report.lut
    assert lut[False] < lut[True] < lut[False] + 9 * 64


# Bipolar integers


@pytest.mark.parametrize("bits", range(1, 9))
def test_bipolar_bits_of_integers_are_their_own_with_the_top_inverted(bits: int) -> None:
    integers = np.arange(-(1 << bits - 1), 1 << bits - 1)
    planes = bipolar_gemm.planes(2 * integers + 1, bits)
    assert ((2 * planes - 1) * (1 << np.arange(bits))[:, None]).sum(axis=0).tolist() == (
        2 * integers + 1
    ).tolist()
    codes = (planes << np.arange(bits)[:, None]).sum(axis=0)
    assert codes.tolist() == ((integers & (1 << bits) - 1) ^ 1 << bits - 1).tolist()


def odd(rng: np.random.Generator, bits: int, shape: tuple[int, int]) -> Any:
    return 2 * rng.integers(0, 1 << bits, shape) - (1 << bits) + 1


@pytest.mark.parametrize(("p", "q"), list(itertools.product(range(1, 9), repeat=2)))
def test_model_is_the_product_of_bipolar_integers(p: int, q: int) -> None:
    config, rng = BipolarGemmConfig(lanes=8, rows=2, columns=3), np.random.default_rng(p)
    w, x = odd(rng, p, (4, 21)), odd(rng, q, (3, 21))
    inputs = bipolar_gemm.product(config, bipolar_gemm.planes(w, p), bipolar_gemm.planes(x, q))
    sums = bipolar_gemm.golden(config, inputs)["o"]["sums"]
    assert sums.reshape(4, 3).tolist() == (w @ x.T).tolist()
    constant = 21 * ((1 << p) - 1) * ((1 << q) - 1)  # the sheet's single constant
    pairs = itertools.product(range(p), range(q))
    planes = bipolar_gemm.planes(w, p)[:, :, None], bipolar_gemm.planes(x, q)[:, None]
    counts = np.sum([(planes[0][i] ^ planes[1][j]).sum(axis=-1) << i + j for i, j in pairs], axis=0)
    assert (constant - 2 * counts).tolist() == (w @ x.T).tolist()


def test_model_is_the_product_of_ternary_weights() -> None:
    config, rng = BipolarGemmConfig(lanes=8, rows=2, columns=1), np.random.default_rng(1)
    trits, x = rng.integers(-1, 2, (6, 40)), odd(rng, 8, (1, 40))
    planes = bipolar_gemm.ternary_planes(trits), bipolar_gemm.planes(x, 8)
    inputs = bipolar_gemm.product(config, *planes, w_powers=bipolar_gemm.TERNARY, halve=1)
    sums = bipolar_gemm.golden(config, inputs)["o"]["sums"]
    assert sums.reshape(6, 1).tolist() == (trits @ x.T).tolist()


def test_integers_in_two_s_complement_are_corrected_by_sums_of_rows_and_columns() -> None:
    """``w' = 2w + 1``: the product of those is ``4 w x`` and sums that are known beforehand."""
    config, rng = BipolarGemmConfig(lanes=8, rows=3, columns=1), np.random.default_rng(1)
    w, x = rng.integers(-8, 8, (3, 30)), rng.integers(-128, 128, (1, 30))
    planes = bipolar_gemm.planes(2 * w + 1, 4), bipolar_gemm.planes(2 * x + 1, 8)
    sums = bipolar_gemm.golden(config, bipolar_gemm.product(config, *planes))["o"]["sums"]
    offset = 2 * w.sum(axis=1)[:, None] + 2 * x.sum(axis=1)[None] + 30
    assert (sums.reshape(3, 1) - offset).tolist() == (4 * w @ x.T).tolist()


def test_one_instance_takes_every_width_in_as_many_cycles_as_pairs_of_planes() -> None:
    config = BipolarGemmConfig(lanes=8, rows=2, columns=2)
    rng, parts = np.random.default_rng(1), []
    busy = 0
    for p, q in itertools.product(range(1, 9), repeat=2):
        w, x = odd(rng, p, (2, 20)), odd(rng, q, (2, 20))
        planes = bipolar_gemm.planes(w, p), bipolar_gemm.planes(x, q)
        parts.append(bipolar_gemm.product(config, *planes))
        busy += p * q * 3
    outcome = simulate(
        emit(blocks.find("bipolar_gemm"), config), inputs=joined(parts), modes=["free"]
    )
    assert list(outcome.complaints()) == []
    assert outcome.cycles == busy + config.latency


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, pytest.param(8, marks=pytest.mark.long)])
def test_every_pair_of_bipolar_numbers_is_multiplied_right(bits: int) -> None:
    config = BipolarGemmConfig(lanes=4, rows=8, columns=8, max_k=4)
    every = decode(format_named(f"bipolar{bits}"), np.arange(1 << bits)).astype(np.int64)
    planes = bipolar_gemm.planes(every[:, None], bits)
    inputs = bipolar_gemm.product(config, planes, planes)
    outcome = simulate(emit(blocks.find("bipolar_gemm"), config), inputs=inputs, modes=["free"])
    assert list(outcome.complaints()) == []
    found = np.unique(bipolar_gemm.golden(config, inputs)["o"]["sums"])
    assert set(np.multiply.outer(every, every).flat) <= set(found)


# Configurations


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("fdb_dot", {"lanes": 48}, "lanes must be a power of two, not 48"),
        ("fdb_dot", {"max_group": 32}, r"max_group must be at least lanes \(64\), not 32"),
        ("fdb_dot", {"max_k": 100}, r"max_k must be at least max_group \(128\), not 100"),
        (
            "fdb_dot",
            {"scale_width": 15, "product": "rows"},
            "scale_width must be even with product rows, not 15",
        ),
        ("bit_serial_dot", {"chain": 3}, "chain must be a power of two, not 3"),
        ("bit_serial_dot", {"max_k": 32}, r"max_k must be at least lanes \(64\), not 32"),
        ("bit_serial_dot", {"order": "up"}, "order must be one of lsb, msb, not 'up'"),
        ("bit_slice_dot", {"split": 3}, "split must be in 4..7 for weights of 8 bits, not 3"),
        ("bit_slice_dot", {"split": 8}, "split must be in 4..7 for weights of 8 bits, not 8"),
        ("xnor_dot", {"lanes": 100}, "lanes must be a power of two, not 100"),
        ("bipolar_gemm", {"max_k": 60}, r"max_k must be at least lanes \(64\), not 60"),
    ],
)
def test_configs_that_cannot_be_are_refused(name: str, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks.find(name).config(**values)


# Faults inside

FAULTS: dict[str, dict[str, tuple[str, str]]] = {
    "fdb_dot": {
        "group_narrow": ("config.group_width,\n", "config.group_width - 1,\n"),
        "sum_narrow": ("config.sum_width,\n", "config.sum_width - 2,\n"),
        "one_scale_for_both": ("getattr(payload, name)", "payload.alpha1"),
        "scale_too_late": ("at + 2)[-1]", "at + 3)[-1]"),
        "last_ends_no_group": ("payload.ends | payload.last", "payload.ends"),
        "groups_of_a_run_not_added": ("ends | ~run_opens", "ends & 0"),
        "groups_never_end": ("inside.eq(~ends)", "inside.eq(1)"),
        "restart_keeps_groups": ("run_opens.eq(run.opens[0] | ~later)", "run_opens.eq(~later)"),
        "every_transfer_is_scaled": ("run.moves[at] & ends[at]", "run.moves[at]"),
    },
    "bit_serial_dot": {
        "planes_not_doubled": ("Mux(plane, Cat(0, acc)[:width], acc)", "acc"),
        "every_transfer_doubles": ("Mux(plane, Cat(0, acc)[:width], acc)", "Cat(0, acc)[:width]"),
        "sign_ignored": ("invert=sign", "invert=0"),
        "complement_for_negative": ("carry=sign", "carry=0"),
        "sums_not_cleared": ("(~run.opens[at]).replicate(width)", "C(1).replicate(width)"),
        "sum_narrow": ("AddSelectConfig(width=width)", "AddSelectConfig(width=width - 2)"),
        "plane_too_early": ("planes[at], signs[at], run", "planes[at - 1], signs[at], run"),
    },
    "bit_serial_dot lsb": {
        "tiles_counted_as_planes": ("before + plane", "before + 1"),
        "planes_not_counted": ("before.eq(number)", "before.eq(0)"),
        "run_does_not_reset": ("Mux(run.opens[0], 0, before + plane)", "before + plane"),
        "zeros_below_a_complement": ("sign.replicate(1 << bit)", "C(0, 1 << bit)"),
        "sign_too_early": ("signs[at],\n", "signs[at - 1],\n"),
    },
    "bit_slice_dot": {
        "top_always_subtracted": ("(part != Part.LOWER)", "C(1)"),
        "top_never_subtracted": ("(part != Part.LOWER)", "C(0)"),
        "negative_without_one": ("carry=high[1] ^ minus", "carry=high[1]"),
        "zeros_below_a_pending_one": ("high[1].replicate(shift)", "C(0, shift)"),
        "planes_of_other_signs_added": ("low[2] ^ high[2] ^ (", "C(0) | ("),
        "draft_one_too_large": ("            pending ^ negative", "            negative"),
        "draft_skips_lanes": ("x_used.eq(1)", "x_used.eq(bit)"),
        "draft_skips_first_lanes": ("zero=~(bit | centre)", "zero=~bit"),
        "slices_subtracted": ("zero=~centre", "zero=0"),
        "signs_not_relative": ("bit ^ start if lane in shared else bit", "bit"),
        "draft_negative": ("negative = negative ^ centre", "negative = negative"),
        "part_narrow": (": self.config.part_width]", ": self.config.part_width - 1]"),
        "upper_counts_twice": ("total << config.low", "total << config.low + 1"),
        "part_too_early": ("centre = parts[at] ==", "centre = parts[at - 1] =="),
    },
    "bit_slice_dot plain": {},
    "xnor_dot": {
        "unbalanced": ("Cat(count[:-1], ~count[-1])", "Cat(count[:-1], count[-1])"),
        "a_lane_lost": ("pending,\n            run", "0,\n            run"),
        "masked_lanes_count": ("bits | ~payload.mask.as_value()", "bits"),
        "differing_lanes_count_twice": ("bits & payload.mask.as_value()", "C(0, config.lanes)"),
        "greater_for_at_least": (
            "invert=1,\n            carry=1",
            "invert=1,\n            carry=0",
        ),
        "not_flipped": ("^ ~flip", "^ 1"),
        "threshold_too_late": ("config.latency - 1\n", "config.latency\n"),
    },
    "bipolar_gemm": {
        "a_lane_too_many": ("carry=~pending", "carry=1"),
        "balance_narrow": (".y[: config.count_width + 1]", ".y[: config.count_width]"),
        "pairs_not_doubled": ("Mux(control[at][0], Cat(0, acc)", "Mux(0, Cat(0, acc)"),
        "doubled_too_late": ("Mux(control[at][0],", "Mux(control[at + 1][0],"),
        "halved_too_early": ("Mux(control[at + 1][1],", "Mux(control[at][1],"),
        "sums_not_cleared": ("(~run.opens[at])", "C(1)"),
        "padding_counts": ("a=valid", "a=config.lanes"),
        "first_row_for_all": ("self.i.p.w[row]", "self.i.p.w[0]"),
    },
}
"""By block and preset: what is in its source, and what is there instead."""

SHARED: dict[str, tuple[Any, str, str, str]] = {
    "bit_lost_in_a_counter": (_popcount, "Popcount", "(carry & (one ^ other))", "(carry & one)"),
    "carries_not_delayed": (
        _popcount,
        "Popcount",
        'carries = self._registered(m, f"carry_{level}", carries)',
        "pass",
    ),
    "a_sum_of_another_sign_added": (_sign_tree, "SignTree", "low[2] ^ high[2]", "0"),
    "pending_one_of_the_wrong_sign": (_sign_tree, "SignTree", "high[1] ^ invert", "high[1]"),
    "a_lane_not_selected": (_planes, "plane_sums", "zero=~bit", "zero=0"),
    "a_lane_never_added": (_planes, "plane_sums", "Const(1, 2)", "Const(0, 2)"),
}
"""Faults of what blocks share: its module, the name a block imports, and as above."""


CHANGES = {"bit_serial_dot lsb": {"order": "lsb"}, "bit_slice_dot plain": {"augment": False}}

UNUSED = {("bit_slice_dot", "plane_sums"), ("bit_slice_dot plain", "SignTree")}
"""What a case does not use, though its block does."""


def config_of(case: str) -> tuple[str, Config]:
    name = case.partition(" ")[0]
    return name, blocks.find(name).config.preset("tiny", **CHANGES.get(case, {}))


def changed(module: Any, sound: str, broken: str) -> dict[str, Any]:
    """What a module defines with one part of its source replaced."""
    source = inspect.getsource(module)
    assert source.count(sound) == 1, sound
    names: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    exec("from amaranth.hdl import C", names)
    exec(compile(source.replace(sound, broken), module.__name__, "exec"), names)
    return names


def renamed(text: str, suffix: str) -> str:
    """The modules of a design under other names, so that designs can be in one text."""
    for name in re.findall(r"^module (\S+?) ?\(", text, re.MULTILINE):
        pattern = rf"^(module |  ){re.escape(name)}(?=[ (])"
        text = re.sub(pattern, rf"\g<0>{suffix}", text, flags=re.MULTILINE)
    return text


def broken_classes(case: str) -> Iterator[tuple[str, type]]:
    """The component with each fault, in turn: those of its own source, then of what it uses."""
    name = case.partition(" ")[0]
    module = importlib.import_module(blocks.find(name).module)
    cls = blocks.find(name).class_name
    for fault, (sound, broken) in FAULTS[case].items():
        yield fault, changed(module, sound, broken)[cls]
    for fault, (helper, used, sound, broken) in SHARED.items():
        if used in vars(module) and (case, used) not in UNUSED:
            with mock.patch.object(module, used, changed(helper, sound, broken)[used]):
                yield fault, vars(module)[cls]


def breakable(case: str) -> tuple[Design, list[str]]:
    """The sound design and the broken ones in one; the input ``variant`` chooses, 0 is sound."""
    name, config = config_of(case)
    sound = emit(blocks.find(name), config)
    faults, texts = [], [renamed(sound.text, "__0")]
    for number, (fault, component) in enumerate(broken_classes(case), 1):
        text, _ = convert(component(config), name)
        faults.append(fault)
        texts.append(renamed(text, f"__{number}"))
    lines = ["  input [15:0] variant;"]
    ports = [*sound.ports]
    for port in ports:
        lines.append(f"  {port.direction} [{port.width - 1}:0] {port.name};")
        if port.direction == "output":
            lines.append(f"  wire [{port.width - 1}:0] {port.name}_of [{len(faults)}:0];")
            lines.append(f"  assign {port.name} = {port.name}_of[variant];")
    for number in range(len(faults) + 1):
        joins = [
            f".{port.name}({port.name}{f'_of[{number}]' if port.direction == 'output' else ''})"
            for port in ports
        ]
        lines.append(f"  {name}__{number} at_{number} ({', '.join(joins)});")
    names = ", ".join(["variant", *(port.name for port in ports)])
    texts.append(f"module {name}({names});\n" + "\n".join(lines) + "\nendmodule\n")
    every = (Port("variant", 16, "input"), *ports)
    return dataclasses.replace(sound, text="\n".join(texts), ports=every), faults


@pytest.mark.parametrize("case", FAULTS)
def test_every_fault_inside_is_seen(case: str) -> None:
    design, faults = breakable(case)
    modes = [f"free@{number}" for number in range(len(faults) + 1)]
    outcome = simulate(design, transfers=1000, modes=[*modes, "stalled@0"])
    wrong = [bool(mode["first"]) or not in_time(mode) for mode in outcome.modes]
    assert not wrong[0]
    assert not wrong[-1]
    assert [fault for fault, seen in zip(faults, wrong[1:-1], strict=True) if not seen] == []
