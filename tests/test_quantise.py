# SPDX-License-Identifier: Apache-2.0
"""Projections brought to number formats after training, and what the model loses by it."""

import ml_dtypes
import numpy as np
import pytest
from atriplex.gen.checkpoints.quantise import (
    QuantiseError,
    blocked,
    dual,
    elements,
    matrix,
    values,
)
from atriplex.gen.compare.accuracy import FLOATS, bits_per_weight, perplexity
from atriplex.gen.model import packed
from atriplex.gen.model.generate import shipped
from atriplex.rtl.engine.matvec import taking
from atriplex.rtl.formats._blocks import Rule, block_format_named
from atriplex.sim.engine.model import Coded, Planes, in_turn, rows_of
from atriplex.sim.formats.blocks import dequantise, quantise

RNG = np.random.default_rng(1)
WEIGHTS = (RNG.normal(size=(24, 80)) * RNG.uniform(0.2, 3, (24, 1))).astype(np.float32)
NAMES = (
    *("ternary", "int8", "int4", "int2", "mxint8", "mxint4", "mxfp4", "mxfp6", "mxfp6_e3m2"),
    *("mxfp8", "bfp4", "fp4_e2m1", "fp6_e2m3", "posit4_1", "posit8_0", "bipolar4", "fdb"),
    *("hlq2", "hlq3"),
)


@pytest.mark.parametrize("name", ["mxint8", "mxint4", "mxfp4", "mxfp6", "mxfp6_e3m2"])
def test_blocks_are_those_of_the_format(name: str) -> None:
    found = blocked(WEIGHTS, name)
    rule = Rule.FLOOR if name in ("mxint4", "mxfp4") else Rule.CEIL
    format_ = block_format_named(name, rule)
    wanted = dequantise(format_, quantise(format_, WEIGHTS), WEIGHTS.shape[1])
    np.testing.assert_array_equal(found.codes * found.unit, wanted)
    assert found.exponents.min() == 0


def test_blocks_too_small_for_int32_lose_bits_and_no_more() -> None:
    wide = np.ldexp(WEIGHTS, -np.arange(24)[:, None]).astype(np.float32)
    found = blocked(wide, "mxfp4")
    assert found.exponents.max() <= 15
    sums = 127 * np.abs(found.codes).sum(axis=1)
    assert sums.max() < 1 << 31
    largest = np.abs(wide).max()
    assert np.abs(found.codes * found.unit - wide).max() < largest / 6  # half of E2M1's widest step


def test_elements_are_the_nearest_with_the_best_of_the_scales_tried() -> None:
    found = elements(WEIGHTS, "fp4_e2m1")
    wanted = (WEIGHTS / found.scale).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(values(found), (wanted * found.scale).astype(np.float32))
    error = np.square(values(found) - WEIGHTS).sum()
    peak = float(np.abs(WEIGHTS).max())
    plain = (WEIGHTS / (peak / 6)).astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * peak / 6
    assert error <= np.square(plain - WEIGHTS).sum()


@pytest.mark.parametrize("name", NAMES)
def test_a_format_keeps_shapes_zeros_and_what_is_quantised(name: str) -> None:
    found = matrix(WEIGHTS, name)
    assert not isinstance(found, np.ndarray) and found.codes.shape == WEIGHTS.shape
    assert matrix(found, "int8") is found
    assert np.square(values(found) - WEIGHTS).sum() < np.square(WEIGHTS).sum()
    zeros = matrix(np.zeros((2, 40), np.float32), name)
    if not name.startswith("bipolar"):  # which has no 0
        assert not values(zeros).any()
    order = RNG.permutation(24)
    np.testing.assert_array_equal(values(rows_of(found, order)), values(found)[order])
    both = in_turn(found, rows_of(found, order))
    np.testing.assert_array_equal(both.codes[0::2], found.codes)
    np.testing.assert_array_equal(both.codes[1::2], found.codes[order])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"bfp4", "fp6_e2m3"}))
def test_there_is_a_core_for_a_format(name: str) -> None:
    found = matrix(WEIGHTS, name)
    assert not isinstance(found, np.ndarray) and taking([found.format])


def test_planes_and_factors_are_those_of_a_groups_levels() -> None:
    found = dual(WEIGHTS)
    assert isinstance(found, Planes) and np.abs(found.factors).max() == 127
    for group in range(2):
        part = found.codes[:, 64 * group : 64 * group + 64]
        one, two = found.factors[:, :, group].T
        for row in range(24):
            levels = {0, int(one[row]), int(two[row]), int(one[row] + two[row])}
            assert set(part[row].tolist()) <= levels


def test_what_cannot_be_done_is_one_sentence() -> None:
    for name in ("fp8_e5m2", "posit16_1", "fp16"):
        with pytest.raises(QuantiseError, match=f"sums of {name} .* more than int32's 32 bits"):
            matrix(WEIGHTS, name)
    for name in ("e8m0", "nvfp4", "int9", "int16", "posit99_1", "mxint9", "nothing"):
        with pytest.raises(QuantiseError, match=f"no projection can be brought to {name!r}"):
            matrix(WEIGHTS, name)
    for bad in (np.nan, np.inf):
        with pytest.raises(QuantiseError, match="not finite"):
            matrix(np.full((2, 2), bad, np.float32), "mxfp4")


def test_a_file_of_floats_keeps_halves(tmp_path) -> None:
    file = packed.load(shipped("storybook-small-float"))
    packed.save(tmp_path / "again.atx", file)
    assert (tmp_path / "again.atx").read_bytes() == shipped("storybook-small-float").read_bytes()
    weight = file.model.output
    assert isinstance(weight, np.ndarray)
    assert (weight == weight.astype(np.float16)).all()
    coded = matrix(weight, "mxfp4")
    assert isinstance(coded, Coded)


def test_more_bits_lose_less() -> None:
    base = perplexity(FLOATS, FLOATS)
    found = {
        name: perplexity(name, name) / base
        for name in ("mxint8", "mxfp8", "mxfp6", "nvint4", "mxfp4", "mxint4")
    }
    assert found["mxint8"] < found["mxfp8"] < found["mxfp6"] < 1.05
    assert found["mxfp6"] < found["nvint4"] < found["mxfp4"] < found["mxint4"]
    assert perplexity("posit16_1", "posit16_1") / base == pytest.approx(1, abs=1e-3)
    assert bits_per_weight("mxfp4") == 4.25 and bits_per_weight("fdb") == 2.25
