# SPDX-License-Identifier: Apache-2.0
"""Blocks with a common scale."""

import math

import ml_dtypes
import numpy as np
import pytest
from atriplex.rtl.formats._blocks import Rule, block_format_named
from atriplex.rtl.formats._formats import FormatError
from atriplex.sim.formats.blocks import Blocks, dequantise, qsnr, quantise
from atriplex.sim.formats.noise import crossover, expected_qsnr
from atriplex.sim.formats.rearrange import channel_order, row_norms

ELEMENTS = {
    "mxfp8": (ml_dtypes.float8_e4m3fn, 448, 8),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 57344, 15),
    "mxfp6": (ml_dtypes.float6_e2m3fn, 7.5, 2),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 28, 4),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 6, 2),
}
"""The library's element, its largest value and the exponent of that."""
INTEGERS = ("mxint8", "mxint6", "mxint4")
NVIDIA = ("nvfp4", "nvint4")


def corners(rng: np.random.Generator, block: int) -> np.ndarray:
    """Blocks with the largest magnitude at and beside powers of two and the largest element."""
    rows = [rng.normal(size=block) * 2.0 ** int(rng.integers(-30, 30)) for _ in range(200)]
    for top in (1.0, 2.0, 448.0, 6.0, 127 / 64, 7.0, 7.5):
        for peak in (np.nextafter(top, 0), top, np.nextafter(top, np.inf)):
            rows.append(np.append(rng.uniform(-peak, peak, block - 1), peak))
    return np.array(rows)


@pytest.mark.parametrize("rule", [Rule.FLOOR, Rule.CEIL])
@pytest.mark.parametrize("name", ELEMENTS)
def test_mx_floats_are_the_librarys_after_their_scale(name: str, rule: Rule):
    format_ = block_format_named(name, rule)
    values = corners(np.random.default_rng(1), format_.block).astype(np.float32).astype(np.float64)
    got = dequantise(format_, quantise(format_, values))
    element, top, exponent = ELEMENTS[name]
    for row, found in zip(values, got, strict=True):
        most = float(np.abs(row).max())
        power = math.frexp(most)[1] - 1 - exponent
        if rule is Rule.CEIL and top * 2.0**power < most:
            power += 1
        parts = np.clip(row / 2.0**power, -top, top).astype(np.float32)
        wanted = parts.astype(element).astype(np.float64) * 2.0**power
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rule", [Rule.FLOOR, Rule.CEIL])
@pytest.mark.parametrize("name", INTEGERS)
def test_mx_integers_are_rounded_and_symmetric(name: str, rule: Rule):
    format_ = block_format_named(name, rule)
    values = corners(np.random.default_rng(2), format_.block)
    got = dequantise(format_, quantise(format_, values))
    top = (1 << format_.element.width - 1) - 1
    for row, found in zip(values, got, strict=True):
        most = float(np.abs(row).max())
        step = 2.0 ** (math.frexp(most)[1] - 1) / (1 << format_.element.width - 2)
        if rule is Rule.CEIL and top * step < most:
            step *= 2
        np.testing.assert_array_equal(found, np.clip(np.rint(row / step), -top, top) * step)
    if rule is Rule.CEIL:
        assert np.all(np.abs(values - got).max(axis=-1) <= np.abs(values).max(axis=-1) / top)


@pytest.mark.parametrize("name", NVIDIA)
def test_nvidias_scales_have_two_levels(name: str):
    format_ = block_format_named(name)
    values = np.random.default_rng(3).normal(size=(64, 64)) * 3
    found = quantise(format_, values)
    top = 6 if name == "nvfp4" else 7
    assert found.tensor == np.abs(values).max() / (top * 448)
    scales = found.scales.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert scales.max() == 448
    peaks = np.abs(values.reshape(64, 4, 16)).max(axis=-1)
    np.testing.assert_allclose(scales * found.tensor * top, peaks, rtol=1 / 16)
    wanted = (peaks / top / found.tensor).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(scales, wanted.astype(np.float64))


# Synthetic check of the sheet on block formats: 20,000 Gaussian blocks, scale up and down.
QUALITY = {
    "mxint8": (41.63, 41.68),
    "mxfp8": (31.53, 30.65),
    "mxfp8_e5m2": (25.55, 25.36),
    "mxint6": (29.44, 29.63),
    "mxfp6": (30.96, 30.95),
    "mxint4": (16.84, 17.56),
    "mxfp4": (18.75, 18.78),
    "nvint4": (21.29, 21.29),
    "nvfp4": (20.42, 20.42),
}


@pytest.mark.parametrize("name", QUALITY)
def test_noise_of_gaussian_blocks_is_what_is_published(name: str):
    for rule, wanted in zip((Rule.CEIL, Rule.FLOOR), QUALITY[name], strict=True):
        format_ = block_format_named(name, rule)
        values = np.random.default_rng(4).normal(size=(20_000, format_.block))
        got = dequantise(format_, quantise(format_, values))
        assert qsnr(values, got) == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("name", [*ELEMENTS, *INTEGERS, *NVIDIA])
def test_odd_blocks_are_defined(name: str):
    format_ = block_format_named(name)
    size = format_.block
    values = np.zeros((4, size))
    values[1, 3], values[2, 5], values[3, 0] = np.nan, np.inf, 1.0
    found = quantise(format_, values)
    made = dequantise(format_, found)
    assert not found.codes[0].any() and not found.scales[0].any()
    assert np.isnan(made[1]).all() and not found.codes[1].any()
    assert made[2].max() == made[2, 5] > 0 and np.isfinite(made[2]).all()
    assert made[3, 0] == pytest.approx(1.0, rel=0.13)
    tail = np.linspace(-1, 1, size + 3)
    again = dequantise(format_, quantise(format_, tail), len(tail))
    assert again.shape == tail.shape
    assert np.abs(again - tail).max() < 0.2


def test_extremes_of_the_scale():
    format_ = block_format_named("mxfp4")
    values = np.array([2.0**-140, 2.0**-127, 2.0**127, 1e300])[:, None] * np.ones(32)
    found = quantise(format_, values)
    assert found.scales[:, 0].tolist() == [0, 0, 127 + 127 - 2, 254]
    made = dequantise(format_, found)[:, 0].tolist()
    assert made == [0.0, 2.0**-127, 2.0**127, 6 * 2.0**127]


def test_what_makes_no_blocks_is_said():
    with pytest.raises(FormatError, match="no block format 'mxfp5'"):
        block_format_named("mxfp5")
    with pytest.raises(FormatError, match="a block has 1 to 1024 elements, not 2000"):
        block_format_named("mxfp4", Rule.CEIL, 2000)
    format_ = block_format_named("mxfp4", Rule.CEIL, 8)
    with pytest.raises(FormatError, match="mxfp4: there are no values"):
        quantise(format_, [])
    with pytest.raises(FormatError, match=r"codes of shape \(2, 7\) do not go with"):
        dequantise(format_, Blocks(np.zeros((2, 7), int), np.zeros(2, int)))
    assert block_format_named("mxfp4").bits_per_element == 4.25
    assert block_format_named("nvint4").bits_per_element == 4.5


# Where integers begin to lose.


@pytest.mark.parametrize(
    ("integers", "floats", "published"),
    [
        ("mxint8", "mxfp8", 7.55),
        ("mxint6", "mxfp6", 1.96),
        ("mxint4", "mxfp4", 2.04),
        ("nvint4", "nvfp4", 2.39),
    ],
)
def test_integers_lose_from_the_published_crest_on(integers: str, floats: str, published: float):
    found = crossover(block_format_named(integers), block_format_named(floats))
    assert abs(found / published - 1) < 0.02


def test_the_closed_form_tells_the_noise_that_blocks_have():
    """A long block, so that the outlier that makes the crest has little of the power."""
    rng, size = np.random.default_rng(1), 1024
    for crest in (6.0, 7.5, 9.0):
        values = rng.normal(size=(1000, size))
        values[:, 0] = np.sqrt((values[:, 1:] ** 2).sum(1) / (size / crest**2 - 1))
        values *= 2 ** rng.uniform(0, 1, (1000, 1))
        for name in ("mxint8", "mxfp8"):
            format_ = block_format_named(name, Rule.CEIL, size)
            made = dequantise(format_, quantise(format_, values))
            noise = ((values - made) ** 2).sum(1)
            found = np.mean(10 * np.log10((values**2).sum(1) / noise))
            # The overhead's mean is 1.5, that of its logarithm 1.41.
            assert abs(found - expected_qsnr(format_, crest)) < 0.7


# Block floating point.


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_block_floating_point_follows_its_recipe(bits: int):
    values = corners(np.random.default_rng(3), 16)
    for rule in (Rule.FLOOR, Rule.ROUND):
        format_ = block_format_named(f"bfp{bits}", rule, 16)
        got = dequantise(format_, quantise(format_, values))
        top = (1 << bits - 1) - 1
        for row, found in zip(values, got, strict=True):
            exponent = math.frexp(float(np.abs(row).max()))[1] - 1
            step = 2.0 ** (exponent - (bits - 2))
            if rule is Rule.ROUND and np.rint(np.abs(row).max() / step) > top:
                step *= 2
            wanted = np.clip(np.rint(row / step), -top - 1, top) * step
            np.testing.assert_array_equal(found, wanted)
    assert block_format_named("bfp4", block=64).bits_per_element == 4 + 8 / 64


def test_rounding_up_beyond_the_last_element_doubles_the_scale_of_floats_too():
    format_ = block_format_named("mxfp4", Rule.ROUND, 2)
    for peak, scale in ((6.9, 1), (7.0, 2), (7.9, 2)):  # 7 is a tie, and goes to 8
        assert quantise(format_, [[peak, 0.0]]).scales[0, 0] == 126 + scale
    format_ = block_format_named("mxfp8", Rule.ROUND, 2)
    for peak, scale in ((464.0, 1), (464.1, 2)):  # 448 has the even code
        assert quantise(format_, [[peak, 0.0]]).scales[0, 0] == 126 + scale


def score_error(block: int, order: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> float:
    format_ = block_format_named("bfp4", Rule.FLOOR, block)
    made = dequantise(format_, quantise(format_, keys[:, order]))
    exact = queries @ keys.T
    return float(np.sqrt(np.mean((queries[:, order] @ made.T - exact) ** 2)) / exact.std())


def test_sorted_channels_help_where_queries_are_small_and_keys_are_large():
    rng, channels = np.random.default_rng(1), 128
    sizes = np.exp(rng.normal(size=channels) * 0.7)
    sizes[rng.choice(channels, 6, replace=False)] *= 15
    keys = rng.normal(size=(500, channels)) * sizes
    plain = rng.normal(size=(200, channels))
    order = channel_order(np.linalg.norm(keys, axis=0))
    assert sorted(order) == list(range(channels))
    everyone = np.arange(channels)
    for queries, better in ((plain, False), (plain / sizes, True)):
        for block in (128, 64, 32, 16):
            before = score_error(block, everyone, queries, keys)
            after = score_error(block, order, queries, keys)
            if block == channels:
                assert after == pytest.approx(before)  # one block, in whatever order
            elif better:
                assert after < 0.8 * before
            else:
                assert after < 1.4 * before


def test_rotary_pairs_stay_together():
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(2 * 16, 8)) * rng.uniform(0.1, 3, (32, 1))
    for norms in row_norms(weights, 16):
        order = channel_order(norms, rotary=True)
        assert (order[8:] == order[:8] + 8).all()
        larger = np.maximum(norms[:8], norms[8:])[order[:8]]
        assert (np.diff(larger) >= 0).all()
    with pytest.raises(FormatError, match="even number of channels, not 3"):
        channel_order([1, 2, 3], rotary=True)
    with pytest.raises(FormatError, match="a list of finite sizes"):
        channel_order([])
