# SPDX-License-Identifier: Apache-2.0
"""The Booth core: digits, products, the ratio of its modes, and what sharing one array saves."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator
from atriplex.gen import blocks
from atriplex.gen.studies import sharing as arrays
from atriplex.gen.verilog import emit
from atriplex.rtl.mac._booth import STRUCTURES, BoothProduct, BoothProductConfig
from atriplex.rtl.mac.boothflex import BoothflexConfig
from atriplex.sim.mac import boothflex
from atriplex.sim.run import simulate


def run(part: Any, bench: Any) -> None:
    """``bench(ctx)`` on the bare ``part``, with a clock."""
    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.part = part
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("stage", [0, 2, 4])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("a_width", "digits"), [(4, 2), (5, 1), (8, 4), (16, 3)])
def test_products_are_exact(a_width: int, digits: int, structure: str, stage: int) -> None:
    config = BoothProductConfig(a_width=a_width, digits=digits, structure=structure, stage=stage)
    part = BoothProduct(config)
    a_end, b_end = 1 << a_width - 1, 1 << config.b_width - 1
    if config.y_width <= 8:
        pairs = list(itertools.product(range(-a_end, a_end), range(-b_end, b_end)))
    else:
        corners = itertools.product((-a_end, -1, 0, a_end - 1), (-b_end, -1, 0, b_end - 1))
        chosen = np.random.default_rng(1).integers([-a_end, -b_end], [a_end, b_end], (300, 2))
        pairs = [*corners, *chosen.tolist()]
    wrong = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.enable, 1)
        for n, (a, b) in enumerate(pairs + [(0, 0)] * config.latency):
            ctx.set(part.a, a)
            ctx.set(part.b, b)
            await ctx.delay(1e-8)
            late = n - config.latency
            if late >= 0 and ctx.get(part.y) != pairs[late][0] * pairs[late][1]:
                wrong.append(pairs[late])
            await ctx.tick()

    run(part, bench)
    assert wrong == []


def test_registers_of_a_booth_product_need_whole_digits() -> None:
    with pytest.raises(ValueError, match="stage must be even with structure booth, not 3"):
        BoothProductConfig(structure="booth", stage=3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 40), (5, 100)])
@pytest.mark.parametrize("preset", list(BoothflexConfig.presets))
def test_model_is_the_dot_product_in_both_modes(preset: str, shape: tuple[int, int]) -> None:
    config, rng = BoothflexConfig.preset(preset), np.random.default_rng(2)
    a_end, b_end = 1 << config.a_width - 1, 1 << config.b_width - 1
    a, b = rng.integers(-a_end, a_end, shape), rng.integers(-b_end, b_end, shape)
    sums = boothflex.golden(config, boothflex.integers(config, a, b))["o"]["sum"]
    assert sums.tolist() == (a * b).sum(axis=1).tolist()
    if config.ternary:
        weights = rng.integers(-2 if config.int2 else -1, 2, shape)
        sums = boothflex.golden(config, boothflex.ternary(config, a, weights))["o"]["sum"]
        assert sums.tolist() == (a * weights).sum(axis=1).tolist()


def test_stimulus_reaches_the_largest_sums_there_are() -> None:
    for preset in BoothflexConfig.presets:
        config = BoothflexConfig.preset(preset)
        inputs = boothflex.stimulus(config, np.random.default_rng(1), 10_000)
        sums = boothflex.golden(config, inputs)["o"]["sum"]
        most = (config.max_k // config.pes * config.pes) << config.a_width + config.b_width - 2
        assert sums.max() == most < 1 << config.acc_width - 1


def test_configs_whose_sums_could_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="sums of 131072 products of 8 by 8 bits need 33 bits"):
        BoothflexConfig(max_k=131072)
    with pytest.raises(ValueError, match="must be 1, 2 or 4 and divide the 3 digits"):
        BoothflexConfig(b_width=6, digits_per_cycle=2)


@pytest.mark.parametrize("preset", ["default", "trits", "serial"])
def test_four_ternary_products_for_one_of_int8(preset: str) -> None:
    """Cycles counted on the RTL: the same number of products takes four times as long."""
    block, config = blocks.find("boothflex"), BoothflexConfig.preset(preset)
    design, rng = emit(block, config), np.random.default_rng(1)
    shape = (4, 40 * config.lanes)
    a, b = rng.integers(-128, 128, (2, *shape))
    weights = rng.integers(-1, 2, shape)
    taken = {}
    for mode, inputs in {
        "integer": boothflex.integers(config, a, b),
        "ternary": boothflex.ternary(config, a, weights),
    }.items():
        outcome = simulate(design, inputs=inputs, modes=["free"])
        assert list(outcome.complaints()) == []
        assert outcome.cycles is not None
        taken[mode] = outcome.cycles - config.latency
    assert taken["integer"] == 4 * taken["ternary"]
    assert taken["ternary"] * config.lanes == weights.size


def test_narrow_operands_take_fewer_cycles() -> None:
    """INT2, INT4 and INT8 take 1, 2 and 4 cycles a transfer with one digit per cycle."""
    block, config = blocks.find("boothflex"), BoothflexConfig.preset("serial")
    design, rng = emit(block, config), np.random.default_rng(1)
    for bits, factor in ((2, 1), (4, 2), (8, 4)):
        a = rng.integers(-128, 128, (2, 64 * config.pes))
        b = rng.integers(-(1 << bits - 1), 1 << bits - 1, a.shape)
        inputs = boothflex.integers(config, a, b, passes=factor - 1)
        assert boothflex.golden(config, inputs)["o"]["sum"].tolist() == (a * b).sum(1).tolist()
        outcome = simulate(design, inputs=inputs, modes=["free"])
        assert list(outcome.complaints()) == []
        assert outcome.cycles == 2 * 64 * factor + config.latency


@pytest.mark.parametrize(
    ("product", "ternary"),
    [
        ("multiply", False),
        ("rows", False),
        ("booth", False),
        ("select", False),
        ("multiply", True),
        ("rows", True),
    ],
)
def test_the_arrays_compared_with_are_right(product: str, ternary: bool) -> None:
    select = product == "select"
    config = arrays.DotArrayConfig(
        lanes=8, product=product, b_width=2 if select else 8, max_k=64, ternary=ternary
    )
    part: Any = arrays.DotArray(config)
    rng = np.random.default_rng(1)
    a = rng.integers(-128, 128, (60, 8, 4 if ternary else 1))
    b = rng.integers(-1, 2, (60, 8)) if select else rng.integers(-128, 128, (60, 8))
    mode = rng.integers(0, 2, (60, 1)) * ternary
    weights = rng.integers(-1, 2, a.shape)
    packed = ((weights & 3) << 2 * np.arange(a.shape[2])).sum(axis=2)
    products = np.where(mode, (a * weights).sum(axis=2), a[:, :, 0] * b)
    b = np.where(mode, (packed ^ 128) - 128, b)
    a = a.reshape(60, -1)
    expected = products.sum(axis=1).reshape(-1, 3).sum(axis=1).tolist()
    sums: list[int] = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.o.ready, 1)
        for n in range(len(a) + 20):
            ctx.set(part.i.valid, n < len(a))
            if n < len(a):
                for port, values in ((part.i.p.a, a[n]), (part.i.p.b, b[n])):
                    for lane, value in enumerate(values.tolist()):
                        ctx.set(port[lane], value)
                if ternary:
                    ctx.set(part.i.p.mode, int(mode[n, 0]))
                ctx.set(part.i.p.last, n % 3 == 2)
            await ctx.delay(1e-8)
            if ctx.get(part.o.valid):
                sums.append(ctx.get(part.o.p.sum))
            await ctx.tick()

    run(part, bench)
    assert sums == expected


@pytest.mark.long
def test_one_array_is_smaller_than_the_two_it_replaces(tmp_path: Path) -> None:
    from atriplex.asic.flow import build as to_cells
    from atriplex.asic.library import library
    from atriplex.fpga.boards import board
    from atriplex.fpga.flow import build as to_board

    ulx3s = board("ulx3s-85f")
    without_dsp = dataclasses.replace(ulx3s, synth=(*ulx3s.synth, "-nodsp"))
    made = arrays.designs(pes=8)
    lut, area = {}, {}
    both = ("both of a * b, shared ends", "both of our rows, shared ends")
    integers = ("INT8 array of a * b", "INT8 array of our rows")
    for name in ("boothflex", *integers, "ternary array", *both):
        (design,) = made[name]
        report = to_board(design, without_dsp, tmp_path / "out", out_of_context=True)
        assert report.dsp == 0
        lut[name] = report.lut
        area[name] = to_cells(design, library("osu018"), tmp_path / "out").area_um2
    for cost in (lut, area):
        for integer, shared in zip(integers, both, strict=True):
            assert cost["boothflex"] < min(cost[shared], cost[integer] + cost["ternary array"])
    assert lut["boothflex"] < 0.6 * (lut["INT8 array of a * b"] + lut["ternary array"])
