# SPDX-License-Identifier: Apache-2.0
"""Hierarchical linear quantisation: what its unit claims, its model format, its file."""

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.checkpoints.quantise import TOP, hierarchical, matrix, values
from atriplex.gen.compare.accuracy import TWIN, bits_per_weight, perplexity_of
from atriplex.gen.model import packed
from atriplex.gen.model.generate import shipped
from atriplex.gen.studies.planes import levels
from atriplex.gen.verilog import emit
from atriplex.rtl.lut import _bit_lookup, _scale_sum
from atriplex.rtl.lut import hlq_gemv as rtl
from atriplex.rtl.lut.hlq_gemv import HlqGemvConfig
from atriplex.sim.engine.model import Model, Planes
from atriplex.sim.formats import hlq
from atriplex.sim.lut import hlq_gemv
from atriplex.sim.run import simulate

RNG = np.random.default_rng(1)
TINY = HlqGemvConfig.preset("tiny")


def drawn(config: HlqGemvConfig, rows: int, groups: int, seed: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    top = 1 << config.act_width - 1
    acts = rng.integers(-top, top, groups * config.group)
    return acts, rng.integers(0, 1 << config.planes, (rows, len(acts)))


def sums_of(config: HlqGemvConfig, acts: Any, codes: Any, scales: Any) -> np.ndarray:
    """By row."""
    sums = hlq_gemv.golden(config, hlq_gemv.product(config, acts, codes, scales))["o"]["sums"]
    by_row = sums.reshape(-1, config.sharing, config.multipliers).swapaxes(1, 2)
    return by_row.reshape(-1)[: len(codes)]


@pytest.mark.parametrize("convention", ["folded", "bits"])
def test_float_sums_are_the_definition_in_order(convention: str) -> None:
    """Written out for a row, with numpy's float16 and float32; another order gives others."""
    config = HlqGemvConfig(group=32, rows=16, max_k=512, convention=convention, sharing=8)
    acts, codes = drawn(config, 24, 5)
    scales = RNG.normal(size=(24, 5, 3)).astype(np.float16)
    found = sums_of(config, acts, codes, scales.view(np.uint16).astype(np.int64))
    worth = 2 if convention == "folded" else 1

    def row(n: int, order: list[int]) -> np.float32:
        total = np.float32(0)
        for group in range(5):
            part = slice(32 * group, 32 * group + 32)
            terms = [int(acts[part].sum())]
            for plane in range(2):
                bits = (codes[n, part] >> plane & 1) * worth - (worth - 1)
                terms.append(int((bits * acts[part]).sum()))
            for term in order:
                product = np.float32(float(scales[n, group, term]) * terms[term])
                total = np.float32(total + product)
        return total

    made = found.astype(np.uint32).view(np.float32)
    assert made.tolist() == [row(n, [0, 1, 2]) for n in range(24)]
    assert made.tolist() != [row(n, [1, 2, 0]) for n in range(24)]


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_uniform_weights_are_powers_of_two(planes: int) -> None:
    """The engine that shifts and the one that multiplies give equal integers, as does numpy."""
    shape: dict[str, Any] = {"planes": planes, "group": 32, "rows": 4, "sharing": 4, "max_k": 128}
    shifts = HlqGemvConfig(**shape, scale="pow2", convention="bits")
    free = HlqGemvConfig(**shape, scale="fixed", convention="bits", scale_width=10)
    acts, codes = drawn(shifts, 8, 4)
    # Two's complement: the highest plane counts negative, and all twice as much in odd groups.
    integers = np.where(codes >> planes - 1, codes - (1 << planes), codes)
    powers = np.zeros((8, 4, planes + 1), np.int64)
    powers[:, :, 1:] = np.arange(planes) + np.array([0, 1, 0, 1])[:, None]
    signs = np.zeros_like(powers)
    signs[:, :, planes] = 1
    some = np.arange(planes + 1) > 0
    scales = some * ((1 << powers) * np.where(signs, -1, 1))
    code = some * (powers + (signs << shifts.shift_width) + (2 << shifts.shift_width))
    wanted = integers @ (acts * np.repeat([1, 2, 1, 2], 32))
    assert sums_of(shifts, acts, codes, code).tolist() == wanted.tolist()
    assert sums_of(free, acts, codes, scales).tolist() == wanted.tolist()
    single = HlqGemvConfig(**{**shape, "rows": 8, "sharing": 8}, convention="bits")
    halves = scales.astype(np.float16).view(np.uint16).astype(np.int64)
    found = sums_of(single, acts, codes, halves).astype(np.uint32).view(np.float32)
    assert found.tolist() == wanted.tolist()


def test_folding_halves_the_table_and_changes_no_sum() -> None:
    shape: dict[str, Any] = {"group": 32, "rows": 4, "sharing": 4, "max_k": 128, "scale": "fixed"}
    whole = HlqGemvConfig(**shape, convention="bits")
    half = HlqGemvConfig(**shape, convention="folded")
    assert (whole.lookup.entries, half.lookup.entries) == (16, 8)
    acts, codes = drawn(whole, 8, 4)
    scales = 2 * RNG.integers(-500, 500, (8, 4, 3))
    folded = scales // 2
    folded[:, :, 0] = scales[:, :, 0] + folded[:, :, 1:].sum(axis=2)
    assert (
        sums_of(whole, acts, codes, scales).tolist() == sums_of(half, acts, codes, folded).tolist()
    )


@pytest.mark.parametrize(("planes", "group"), [(2, 128), (2, 64), (3, 128), (1, 32)])
def test_bits_per_weight_are_those_of_the_paper(planes: int, group: int) -> None:
    """What the unit is sent for a matrix."""
    config = HlqGemvConfig(planes=planes, group=group, rows=16)
    weights = RNG.normal(size=(16, 256))
    fit = hlq.fit(weights, planes, group)
    scales = np.concatenate((fit.offsets[None], fit.scales)).astype(np.float16).view(np.uint16)
    codes = fit.codes.reshape(16, -1).astype(np.int64)
    scales = np.moveaxis(scales, 0, -1).astype(np.int64)
    sent = hlq_gemv.product(config, np.ones(256, np.int64), codes, scales)
    bits = sent["weights_i"]["bits"].size + 16 * sent["scales_i"]["scales"].size
    assert bits / weights.size == planes + 16 * (planes + 1) / group == config.bits_per_weight
    # An offset of half the scales more, and half the scales, are the same weights in the unit.
    np.testing.assert_allclose(
        fit.values().reshape(16, -1).sum(axis=1),
        _value_sums(config, codes, scales),
        rtol=1e-2,
        atol=1,
    )


def _value_sums(config: HlqGemvConfig, codes: Any, scales: Any) -> np.ndarray:
    plain = dataclasses.replace(config, convention="bits")
    ones = np.ones(codes.shape[1], np.int64)
    return sums_of(plain, ones, codes, scales).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(("sharing", "waits"), [(21, False), (22, True)])
def test_a_multiplier_serves_21_rows_of_two_planes(sharing: int, waits: bool) -> None:
    """A group of 128 takes 64 cycles with one lookup a cycle, and three products a row."""
    config = HlqGemvConfig(rows=sharing, sharing=sharing)
    taken = []
    for rows in (sharing, 2 * sharing):
        acts, codes = drawn(config, rows, 10)
        scales = np.zeros((rows, 10, 3), np.int64)
        taken.append(hlq_gemv.cycles(config, hlq_gemv.product(config, acts, codes, scales)))
    each = (taken[1] - taken[0]) / 10
    assert each > 64 if waits else each == 64


def test_scales_cost_no_lookup_cycles() -> None:
    """Measured: free scales and powers of two differ in what a product takes, once."""
    found = []
    for scale in ("fp16", "fixed", "pow2"):
        config = HlqGemvConfig(group=32, rows=8, sharing=8, max_k=64, scale=scale)
        acts, codes = drawn(config, 16, 2)
        scales = np.ones((16, 2, 3), np.int64)
        inputs = hlq_gemv.product(config, acts, codes, scales)
        block = blocks.find("hlq_gemv")
        outcome = simulate(emit(block, config), inputs=inputs, modes=["free"], simulator="icarus")
        assert not list(outcome.complaints())
        found.append(outcome.cycles - config.scaled.latency)
    assert len(set(found)) == 1


@pytest.mark.parametrize("convention", ["folded", "bits"])
@pytest.mark.parametrize(
    "table", [4, *(pytest.param(size, marks=pytest.mark.long) for size in (2, 3, 5))]
)
def test_every_pattern_of_a_table_with_corners_of_activations(table: int, convention: str) -> None:
    """A row for every pattern of bits, a vector for every choice of corners, and random ones."""
    rows = 1 << table
    config = HlqGemvConfig(
        planes=1,
        group=4 * table,
        rows=rows,
        table=table,
        max_k=4 * table,
        convention=convention,
        scale="fixed",
        scale_width=2,
        sharing=rows,
    )
    corners = (-128, 127) if table == 5 else (-128, -1, 127)
    vectors = [*itertools.product(corners, repeat=table)]
    vectors += RNG.integers(-128, 128, (20, table)).tolist()
    codes = np.arange(rows)[:, None] >> np.arange(table) & 1
    scales = np.tile([0, 1], (rows, 1, 1))
    runs = [hlq_gemv.product(config, np.array(acts), codes, scales) for acts in vectors]
    inputs = {
        name: {field: np.concatenate([run[name][field] for run in runs]) for field in fields}
        for name, fields in runs[0].items()
    }
    worth = 2 * codes - 1 if convention == "folded" else codes
    sums = hlq_gemv.golden(config, inputs)["o"]["sums"].reshape(-1, rows)
    assert sums.tolist() == (np.array(vectors) @ worth.T).tolist()
    design = emit(blocks.find("hlq_gemv"), config)
    outcome = simulate(design, inputs=inputs, modes=["free"], simulator="icarus")
    assert list(outcome.complaints()) == []


@pytest.mark.parametrize(
    ("changes", "multipliers"),
    [
        ({}, 1),
        ({"scale": "fixed"}, 1),
        ({"scale": "pow2"}, 0),
        ({"sharing": 8}, 2),
        ({"rows": 32, "sharing": 16, "planes": 3}, 2),
    ],
)
def test_there_are_no_multipliers_but_the_shared_ones(
    changes: dict[str, Any], multipliers: int
) -> None:
    """Modules of the Verilog that multiply, as often as they are used."""
    text = emit(blocks.find("hlq_gemv"), HlqGemvConfig(**changes)).text
    modules = re.findall(r"^module (\w+)\(.*?^endmodule", text, re.MULTILINE | re.DOTALL)
    bodies = dict(zip(modules, re.split(r"^endmodule\n", text, flags=re.MULTILINE), strict=False))
    count = 0
    for name, body in bodies.items():
        products = len(re.findall(r"= .*\) \* ", body))
        uses = len(re.findall(rf"^  {name} ", text, re.MULTILINE))
        count += products * uses
    assert count == multipliers


@pytest.mark.parametrize(
    ("values_", "message"),
    [
        ({"group": 30}, r"group must be a multiple of the 4 activations .*, not 30"),
        ({"max_k": 100}, r"max_k must be a multiple of group \(128\), not 100"),
        ({"sharing": 5}, r"sharing must divide the 16 rows, not 5"),
        ({"sharing": 4}, r"sharing must be at least 8 with scale fp16, .*, not 4"),
        (
            {"scale": "pow2", "shift_width": 5, "act_width": 16, "max_k": 1 << 18},
            r"sums of 262144 weights need 6\d bits, more than 64",
        ),
        ({"scale": "fp8"}, "scale must be one of fp16, fixed, pow2, not 'fp8'"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(values_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HlqGemvConfig(**values_)


def broken(config: HlqGemvConfig = TINY) -> bool:
    """Whether the bench sees what has been patched."""
    design = emit(blocks.find("hlq_gemv"), config, fresh=True)
    outcome = simulate(design, transfers=300, simulator="icarus", modes=["free"])
    return bool(list(outcome.complaints()))


def test_a_plane_sum_that_is_a_bit_short_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    short = property(lambda config: config.act_width + 3)  # of 8 activations, one less than needed
    monkeypatch.setattr(HlqGemvConfig, "value_width", short)
    assert broken()


def test_an_offset_that_counts_for_other_groups_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = rtl.bits_for
    monkeypatch.setattr(rtl, "bits_for", lambda n: sound(n) if n < 3 else sound(n) - 1)
    assert broken()


def test_a_product_rounded_to_fewer_bits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = _scale_sum.held

    def truncated(m: Any, enable: Any, value: Any, name: str, zero: Any = 0) -> Any:
        return sound(m, enable, value & 0xFFFFFFFE if name == "rounded" else value, name, zero)

    monkeypatch.setattr(_scale_sum, "held", truncated)
    assert broken(HlqGemvConfig(planes=1, rows=8, sharing=8, max_k=128))


def test_an_entry_of_the_wrong_sign_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = _bit_lookup.plan

    def other(*given: Any) -> Any:
        made = sound(*given)
        return made._replace(entries=(*made.entries[:-2], *made.entries[:-3:-1]))

    monkeypatch.setattr(_bit_lookup, "plan", other)
    assert broken()


# The model format


WEIGHTS = (RNG.normal(size=(24, 200)) * RNG.uniform(0.2, 3, (24, 1))).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_factors_have_8_bits_and_the_fit_is_better_than_even_levels(bits: int) -> None:
    found = matrix(WEIGHTS, f"hlq{bits}")
    assert isinstance(found, Planes) and found.format == f"hlq{bits}" and found.group == 64
    assert found.offsets is not None
    assert max(np.abs(found.factors).max(), np.abs(found.offsets).max()) == TOP
    for group in range(4):
        part = found.codes[:, 64 * group : 64 * group + 64]
        for row in range(24):
            levels = {int(found.offsets[row, group])}
            for factor in found.factors[row, :, group]:
                levels |= {level + int(factor) for level in levels}
            assert set(part[row].tolist()) <= levels

    def error(made: Planes) -> float:
        return float(np.square(values(made) - WEIGHTS).sum())

    assert error(hierarchical(WEIGHTS, bits, top=1 << 14)) <= error(
        hierarchical(WEIGHTS, bits, rounds=0, top=1 << 14)
    )
    assert error(found) < 1.1 * error(hierarchical(WEIGHTS, bits, top=1 << 14))
    assert bits_per_weight(f"hlq{bits}") == bits + (bits + 1) / 8


def test_a_fit_loses_less_than_even_levels_in_the_shipped_model() -> None:
    """docs/benchmarks.md has the figures; the paper has 85 % for 2 bits in groups of 128."""
    model = packed.load(shipped(TWIN)).model

    def perplexity(rounds: int) -> float:
        def rounded(weight: Any) -> Any:
            if not isinstance(weight, np.ndarray):
                return values(weight)
            return levels(weight, 2, 128, rounds)

        return perplexity_of(model, rounded, lambda x: x)

    assert perplexity(10) < 0.3 * perplexity(0)


def model_of(bits: int) -> packed.ModelFile:
    file = packed.load(shipped("storybook-small-float"))
    tensors = {
        name: hierarchical(tensor, bits, 48)
        if isinstance(tensor, np.ndarray) and tensor.ndim == 2
        else tensor
        for name, tensor in file.model.tensors().items()
    }
    return dataclasses.replace(file, model=Model.from_tensors(file.model.config, tensors))


@pytest.mark.parametrize("bits", [2, 3])
def test_a_file_keeps_planes_factors_and_offsets(bits: int) -> None:
    file = model_of(bits)
    contents = packed.encode(file)
    again = packed.decode(contents)
    assert packed.encode(again) == contents
    for name, tensor in file.model.tensors().items():
        if isinstance(tensor, Planes):
            read = again.model.tensors()[name]
            assert isinstance(read, Planes) and read.offsets is not None
            assert read.format == tensor.format and read.group == 48
            np.testing.assert_array_equal(read.codes, tensor.codes)
            assert read.scale == tensor.scale


def test_a_file_of_planes_refuses_what_it_cannot_hold() -> None:
    file = model_of(2)
    wide = hierarchical(np.asarray(WEIGHTS[:, :192], np.float32), 2, top=300)
    with pytest.raises(ValueError, match=r"tensor w has factors that are not in -128\.\.127"):
        packed.pack_planes("w", wide)
    tensors = file.model.tensors()
    name = "blk.0.attn_q.weight"
    found = tensors[name]
    assert isinstance(found, Planes)
    tensors[name] = dataclasses.replace(found, offsets=None)
    other = dataclasses.replace(file, model=Model.from_tensors(file.model.config, tensors))
    with pytest.raises(ValueError, match=r"tensor .* is of fdb; projections of an \.atx file"):
        packed.encode(other)
