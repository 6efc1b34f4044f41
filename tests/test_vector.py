# SPDX-License-Identifier: Apache-2.0
"""Quantiser, norm, rescaling, residual: models against rationals, and their promises on time."""

from fractions import Fraction
from math import floor, sqrt

import numpy as np
import pytest
from atriplex.rtl.config import ConfigError
from atriplex.rtl.vector.absmax_quantise import AbsmaxQuantiseConfig
from atriplex.rtl.vector.residual import ResidualConfig
from atriplex.rtl.vector.rms_norm import RmsNormConfig
from atriplex.sim.vector import _runs, absmax_quantise, rescale, residual, rms_norm


def framed(sizes: list[int]) -> dict[str, np.ndarray]:
    ends = np.cumsum(sizes) - 1
    first, last = np.zeros((2, sum(sizes)), int)
    first[np.append(0, ends[:-1] + 1)] = 1
    last[ends] = 1
    return {"first": first, "last": last}


def quantised(values: list[int], code_width: int = 8) -> tuple[list[int], int]:
    config = AbsmaxQuantiseConfig(
        lanes=len(values), max_len=len(values), x_width=24, code_width=code_width
    )
    out = absmax_quantise.golden(config, {"i": {"x": np.array([values]), **framed([1])}})
    return out["o"]["codes"][0].tolist(), int(out["scale_o"]["amax"][0])


def test_ties_go_to_the_even_code() -> None:
    assert quantised([254, 1, 3, 5, -1, -3, -5]) == ([127, 0, 2, 2, 0, -2, -2], 254)
    assert quantised([2, 1, -1], code_width=2) == ([1, 0, 0], 2)


def test_zeros_and_the_most_negative_value() -> None:
    assert quantised([0, 0]) == ([0, 0], 0)
    low = -(1 << 23)
    assert quantised([low, -low - 1, 0]) == ([-127, 127, 0], 1 << 23)


@pytest.mark.parametrize("code_width", [2, 4, 8, 12])
def test_codes_are_the_rounded_rationals(code_width: int) -> None:
    rng, top = np.random.default_rng(code_width), (1 << code_width - 1) - 1
    for bits in (3, 9, 16, 23):
        values = rng.integers(-(1 << bits), 1 << bits, 250).tolist()
        peak = max(map(abs, values))
        # Python rounds a Fraction half to even, exactly.
        expected = [round(Fraction(top * value, peak)) for value in values]
        assert quantised(values, code_width) == (expected, peak)


def test_norm_codes_and_scale_are_near_the_real_ones() -> None:
    rng = np.random.default_rng(7)
    for bits in (4, 12, 23):
        x = rng.integers(-(1 << bits), 1 << bits, (20, 192))
        gain = rng.integers(-(1 << 15), 1 << 15, 192)
        codes, (mantissa, shift) = rms_norm.norm_quantise(x, gain, 37)
        for row in range(len(x)):
            weighted = (x[row] * gain).tolist()
            peak = max(map(abs, weighted))
            assert codes[row].tolist() == [round(Fraction(127 * y, peak)) for y in weighted]
            real = peak / sqrt(sum(v * v for v in x[row].tolist()) + 37)
            assert abs(mantissa[row] * 2.0 ** -shift[row] / real - 1) < 2**-14
            assert mantissa[row] >> 15 == 1


def test_norm_of_zeros_has_codes_and_mantissa_zero() -> None:
    codes, (mantissa, _) = rms_norm.norm_quantise(np.zeros((1, 4), int), np.ones(4, int), 0)
    assert not codes.any()
    assert mantissa[0] == 0


@pytest.mark.parametrize("drop", [1, 4, 15])
def test_products_are_rounded_to_nearest_ties_upwards(drop: int) -> None:
    rng = np.random.default_rng(drop)
    x, gain = rng.integers(-(1 << 17), 1 << 17, (4, 48)), rng.integers(-(1 << 15), 1 << 15, 48)
    x[0], gain[:4] = 1 << drop - 1, (1, -1, 3, -3)  # halves
    codes, _ = rms_norm.norm_quantise(x, gain, 1, drop=drop)
    for row, got in zip(x.tolist(), codes.tolist(), strict=True):
        exact = [Fraction(v * g, 1 << drop) for v, g in zip(row, gain.tolist(), strict=True)]
        y = [floor(value + Fraction(1, 2)) for value in exact]
        assert got == [round(Fraction(127 * value, max(map(abs, y)))) for value in y]


def test_a_plain_vector_has_no_norm_in_its_scale() -> None:
    config = RmsNormConfig(lanes=2, max_len=4)
    x = np.array([[30, -40], [30, -40], [30, -40]])
    inputs = norm_run(config, x, [1, 1, 1], [0, 0, 0], np.array([[1, 1]]), [1])
    inputs["i"] |= {"eps": np.array([0, 1, 400]), "plain": np.array([0, 1, 1])}
    out = rms_norm.golden(config, inputs)
    values = out["scale_o"]["mantissa"] * 2.0 ** -out["scale_o"]["shift"]
    assert np.abs(values / [40 / 50, 40, 2] - 1).max() < 2**-14
    assert out["o"]["codes"].tolist() == [[95, -127]] * 3


def test_rescaled_sums_are_products_rounded_once_with_a_scale_of_sixteen_bits() -> None:
    rng = np.random.default_rng(11)
    one, other = rng.integers(1 << 15, 1 << 16, (2, 200))
    shifts = rng.integers(16, 24, (2, 200))
    sums = rng.integers(-(1 << 20), 1 << 20, (200, 5))
    got = rescale.rescale(sums, (one, shifts[0]), (other, shifts[1]), 40)
    real = sums * (one * other * 2.0 ** -shifts.sum(axis=0))[:, None]
    assert (np.abs(got - real) <= 0.5 + np.abs(real) * 2.0**-16).all()
    halves = rescale.rescale(
        np.array([[1, -1, 3, -3, 400, -400]]),
        (np.array([1 << 15]), np.array([15])),
        (np.array([1 << 15]), np.array([16])),
        8,
    )
    assert halves.tolist() == [[1, 0, 2, -1, 127, -127]]


def test_the_residual_adds_sets_and_keeps_what_short_vectors_do_not_reach() -> None:
    config = ResidualConfig(lanes=2, max_len=4, x_width=6)
    inputs = {
        "i": {
            "x": np.array([[1, 2], [-32, 31], [5, -5], [20, 20], [20, -20], [1, -1]]),
            "set": np.array([1, 1, 0, 0, 0, 1]),
            **framed([2, 1, 2, 1]),
        }
    }
    out = residual.golden(config, inputs)["o"]
    assert out["x"].tolist() == [[1, 2], [-31, 31], [6, -3], [26, 17], [-11, 11], [1, -1]]
    assert out["last"].tolist() == [0, 1, 1, 0, 1, 1]


def norm_run(config: RmsNormConfig, x, sizes, load, gains, set_sizes):
    marks = {"load": np.array(load), "plain": np.zeros(len(x), int), **framed(sizes)}
    transfers = {"x": x, "eps": np.ones(len(x), int), **marks}
    return {"i": transfers, "gain_i": {"gains": gains, **framed(set_sizes)}}


def test_gains_change_where_a_vector_asks_for_it() -> None:
    config = RmsNormConfig(lanes=1, max_len=4)
    x = np.full((5, 1), 10)
    gains = np.array([[1], [-2], [3]])
    inputs = norm_run(config, x, [2, 2, 1], [0, 1, 0, 0, 1], gains, [2, 1])
    codes = rms_norm.golden(config, inputs)["o"]["codes"][:, 0]
    # The first vector loads unasked; ``load`` inside it means nothing; the last set is one short.
    assert codes.tolist() == [64, -127, 64, -127, 127]
    short = norm_run(config, x, [5 - 1, 1], [1, 0, 0, 0, 0], gains[:1], [1])
    assert rms_norm.golden(config, short)["o"]["codes"][:, 0].tolist() == [127, 0, 0, 0, 127]


def test_unfinished_vectors_are_dropped_and_long_ones_end() -> None:
    first = np.array([1, 0, 1, 0, 0, 0, 0, 0])
    last = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    runs = _runs.Runs.of({"first": first, "last": last}, 3)
    assert runs.kept.tolist() == [2, 3, 4, 5, 6, 7]
    assert runs.lengths.tolist() == [3, 3]
    assert runs.opens.tolist() == [1, 0, 1, 0, 0, 1, 0, 0]


def test_the_quantiser_takes_a_transfer_every_cycle() -> None:
    config = AbsmaxQuantiseConfig()
    for size in (3, 10, 24):
        count = [
            absmax_quantise.cycles(
                config, {"i": {"x": np.zeros((size * n, 8), int), **framed([size] * n)}}
            )
            for n in (100, 200)
        ]
        assert count[1] - count[0] == 100 * size


def test_the_norm_takes_a_transfer_every_cycle_for_long_vectors() -> None:
    config = RmsNormConfig(max_len=2560, lanes=16)
    for size in (43, 160):
        count = []
        for n in (10, 20):
            x = np.zeros((size * n, 16), int)
            inputs = norm_run(config, x, [size] * n, [0] * len(x), np.ones((160, 16), int), [160])
            count.append(rms_norm.cycles(config, inputs))
        assert count[1] - count[0] == 10 * size


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (
            AbsmaxQuantiseConfig,
            {"max_len": 100},
            "max_len must be a multiple of lanes = 8, not 100",
        ),
        (RmsNormConfig, {"max_len": 100}, "max_len must be a multiple of lanes = 8, not 100"),
        (
            RmsNormConfig,
            {"x_width": 30, "max_len": 2560},
            "the sum of max_len = 2560 squares of 30 bits must fit 61, not 70 bits",
        ),
    ],
)
def test_parameters_that_do_not_go_together_are_named(config, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**values)
