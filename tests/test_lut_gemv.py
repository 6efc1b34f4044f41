# SPDX-License-Identifier: Apache-2.0
"""Table lookups instead of products: codes, groups, what is refused, and faults inside."""

import dataclasses
import importlib
import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator
from atriplex.gen import blocks
from atriplex.gen.verilog import convert, emit
from atriplex.rtl.lut.lut_gemv import LutGemvConfig
from atriplex.rtl.mac._select_tree import SelectTree, SelectTreeConfig
from atriplex.sim._passes import joined
from atriplex.sim.engine.matvec import socket
from atriplex.sim.engine.model import Integer, ModelError
from atriplex.sim.lut import lut_gemv
from atriplex.sim.run import simulate

TL1 = {"group": 2, "groups": 2, "half": False, "max_k": 8}
TL2 = {"group": 3, "groups": 2, "max_k": 12}
BINARY = {"group": 4, "groups": 2, "code": "binary", "max_k": 16}


def config(**values: Any) -> LutGemvConfig:
    return LutGemvConfig(**values)


def complaints(chosen: LutGemvConfig, inputs: Any) -> list[str]:
    design = emit(blocks.find("lut_gemv"), chosen)
    return list(simulate(design, inputs=inputs, simulator="icarus").complaints())


@pytest.mark.parametrize("table", ["block", "registers"])
@pytest.mark.parametrize("values", [TL1, TL2, BINARY], ids=["tl1", "tl2", "binary"])
def test_every_pattern_of_a_group_is_lossless(values: dict[str, Any], table: str) -> None:
    """All patterns of weights against corners and random activations, as the plain product."""
    chosen, rng = config(**values, table=table), np.random.default_rng(1)
    weights = (-1, 1) if chosen.code == "binary" else (-1, 0, 1)
    patterns = np.array(list(itertools.product(weights, repeat=chosen.group)))
    own = np.zeros((len(patterns), chosen.k_lanes), np.int64)
    columns = lut_gemv.columns(chosen)
    own[:, columns[0]], own[:, columns[1]] = patterns, patterns[::-1]
    matrix = np.concatenate([own, np.roll(own, 1, axis=0)], axis=1)
    corners = np.resize([-128, 127], 2 * chosen.k_lanes)
    vectors = [corners, -1 - corners, corners * 0 - 128]
    vectors += list(rng.integers(-128, 128, (3, 2 * chosen.k_lanes)))
    inputs = joined([lut_gemv.product(chosen, acts, matrix) for acts in vectors])
    sums = lut_gemv.golden(chosen, inputs)["o"]["sums"][:, 0]
    assert sums.tolist() == np.concatenate([matrix @ acts for acts in vectors]).tolist()
    assert complaints(chosen, inputs) == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 24)])
@pytest.mark.parametrize("preset", list(LutGemvConfig.presets))
def test_model_is_the_matrix_product(preset: str, shape: tuple[int, int]) -> None:
    chosen, rng = LutGemvConfig.preset(preset), np.random.default_rng(2)
    end = 1 << chosen.act_width - 1
    acts = rng.integers(-end, end, shape[1])
    matrix = rng.integers(-1, 2, shape)
    if chosen.code == "binary":
        matrix = 2 * (matrix > 0) - 1
    sums = lut_gemv.golden(chosen, lut_gemv.product(chosen, acts, matrix))["o"]["sums"]
    assert sums.reshape(-1)[: shape[0]].tolist() == (matrix @ acts).tolist()


def test_stimulus_reaches_the_largest_sums_there_are() -> None:
    for preset in LutGemvConfig.presets:
        chosen = LutGemvConfig.preset(preset)
        inputs = lut_gemv.stimulus(chosen, np.random.default_rng(1), 1000)
        sums = lut_gemv.golden(chosen, inputs)["o"]["sums"]
        assert sums.max() == chosen.max_k << chosen.act_width - 1 < 1 << chosen.acc_width - 1


@pytest.mark.parametrize(
    ("values", "wrong"),
    [(TL1, range(9, 16)), (TL2, (14, 15, 30, 31)), (BINARY, ())],
    ids=["tl1", "tl2", "binary"],
)
def test_codes_are_unpacked_as_packed_and_others_reported(
    values: dict[str, Any], wrong: Any
) -> None:
    chosen = config(**values)
    codes = np.arange(1 << chosen.code_width)
    matrix, found = lut_gemv.decoded(chosen, np.stack([codes, codes[::-1]], axis=1))
    assert np.flatnonzero(found[:, 0]).tolist() == list(wrong)
    again = lut_gemv.encoded(chosen, matrix[~found.any(axis=1)])
    zero = 1 << chosen.index_width if chosen.half and chosen.code == "ternary" else -1
    kept = np.where(codes == zero, 0, codes)  # -0 is 0
    assert again.tolist() == np.stack([kept, kept[::-1]], axis=1)[~found.any(axis=1)].tolist()
    assert chosen.checked == bool(list(wrong))


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ternary weights are \(-1, 0, 1\), not 2"):
        lut_gemv.encoded(config(**TL2), np.full((1, 6), 2))
    with pytest.raises(ValueError, match=r"binary weights are \(-1, 1\), not 0"):
        lut_gemv.encoded(config(**BINARY), np.zeros((1, 8), np.int64))
    from atriplex.rtl.engine.engine import EngineConfig

    for name in ("lut", "tl2"):
        packing = socket(EngineConfig(matvec=name))
        with pytest.raises(ModelError, match=f"the core {name} takes trits, not int8"):
            packing.taken(Integer(np.ones((2, 64), np.int8), 1.0))


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="whole ternary table of 5 activations has 243 entries"):
        config(group=5, half=False)
    with pytest.raises(ValueError, match=r"tables of 160 tiles take 32768 words .* at most 8192"):
        config(max_k=10240)
    with pytest.raises(ValueError, match="share must be 1 with registers"):
        config(table="registers", share=2)
    with pytest.raises(ValueError, match=r"share must divide groups \(16\), not 3"):
        config(share=3)
    with pytest.raises(ValueError, match=r"multiple of group \* groups \(64\), not 100"):
        config(max_k=100)


def test_larger_groups_take_fewer_lookups() -> None:
    """K = 2560 in 854 lookups of three weights or 640 of four: 25 % fewer, counted on the RTL."""
    taken = {}
    for group in (3, 4):
        tiles = -(-2560 // (2 * group))
        chosen = config(group=group, groups=2, max_k=tiles * 2 * group, table="registers")
        inputs = lut_gemv.product(chosen, np.ones(2560, np.int64), np.ones((3, 2560), np.int64))
        outcome = simulate(
            emit(blocks.find("lut_gemv"), chosen), inputs=inputs, modes=["free"], simulator="icarus"
        )
        assert list(outcome.complaints()) == [] and outcome.cycles
        words = (outcome.cycles - chosen.latency - tiles) // 3
        taken[group] = words * chosen.groups
    assert taken == {3: 854, 4: 640}


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize(("lanes", "chain"), [(3, 2), (5, 4), (6, 4), (7, 2), (13, 4), (22, 2)])
def test_trees_of_any_number_of_lanes(lanes: int, chain: int, stage: int) -> None:
    tree = SelectTree(SelectTreeConfig(lanes=lanes, act_width=6, stage=stage, chain=chain))
    rng = np.random.default_rng(1)
    acts, weights = rng.integers(-32, 32, (40, lanes)), rng.integers(-1, 2, (40, lanes))
    acts[:2], weights[0], weights[1] = -32, 1, -1
    sums: list[int] = []
    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.tree = tree

    async def bench(ctx: Any) -> None:
        ctx.set(tree.enable, 1)
        for a, w in zip(acts, weights, strict=True):
            ctx.set(tree.acts, sum((int(x) & 63) << 6 * n for n, x in enumerate(a)))
            ctx.set(tree.weights, sum((int(x) & 3) << 2 * n for n, x in enumerate(w)))
            await ctx.delay(1e-8)
            sums.append(ctx.get(tree.sum) + ctx.get(tree.pending))
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    latency = tree.config.latency
    assert sums[latency:] == (acts * weights).sum(axis=1)[: len(acts) - latency].tolist()


INSIDE = {
    "sign_lost": ("code[-1] & valid[group] if", "0 if"),
    "sign_of_a_wrong_code": ("code[-1] & valid[group] if", "code[-1] if"),
    "sum_not_still": ("walk.subtract & walk.enable", "walk.subtract"),
    "index_narrow": ("Cat(code[: config.index_width], self", "Cat(code[:1], 0, 0, self"),
    "banks_swapped": ("Cat(late.address, late.bank)", "Cat(late.address, ~late.bank)"),
    "error_of_one_word": ("errors | Mux(opens, 0, error)", "errors"),
    "error_kept": ("errors | Mux(opens, 0, error)", "errors | error"),
    "built_without_room": ("self.vector_valid & ~full[building]", "self.vector_valid"),
    "read_too_early": ("self.valid.eq(full[reading])", "self.valid.eq(1)"),
    "ends_a_tile_early": ("ends_tile & (seen | late_last)", "ends_tile"),
    "tables_of_one_tile": ("tile.eq(tile + ends_tile)", "tile.eq(tile)"),
    "entry_narrow": ("entries[group % step])", "entries[group % step][:-1].as_signed())"),
}
"""Faults inside: what is in the source, and what is there instead."""


@pytest.mark.parametrize("fault", INSIDE)
def test_every_fault_inside_is_seen(fault: str) -> None:
    module = importlib.import_module("atriplex.rtl.lut.lut_gemv")
    source, (sound, broken) = inspect.getsource(module), INSIDE[fault]
    assert source.count(sound) == 1, sound
    names: dict[str, Any] = {"__name__": module.__name__, "__package__": module.__package__}
    exec(compile(source.replace(sound, broken), module.__name__, "exec"), names)
    chosen = LutGemvConfig.preset("tiny", half=fault != "sum_not_still")
    text, ports = convert(names["LutGemv"](chosen), "lut_gemv")
    design = dataclasses.replace(emit(blocks.find("lut_gemv"), chosen), text=text, ports=ports)
    outcome = simulate(design, transfers=600, modes=["free"], simulator="icarus")
    assert list(outcome.complaints())


@pytest.mark.long
def test_tables_in_block_ram_take_fewer_luts_than_selects(tmp_path: Path) -> None:
    """The core of the engine's socket ``lut`` against that of ``ternary``, with their vectors."""
    from atriplex.fpga.boards import board
    from atriplex.fpga.flow import build
    from atriplex.rtl.engine.engine import EngineConfig

    lut = {}
    for name, socket_name in (("lut_gemv", "lut"), ("ternary_gemv", "ternary")):
        chosen = EngineConfig(matvec=socket_name).product
        design = emit(blocks.find(name), chosen)
        report = build(design, board("ulx3s-85f"), tmp_path / name, out_of_context=True, dsp=False)
        assert report.dsp == 0
        lut[name] = report.lut / chosen.lanes
    assert lut["lut_gemv"] < 11.5 < 13.8 < lut["ternary_gemv"]
