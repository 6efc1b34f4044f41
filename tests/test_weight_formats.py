# SPDX-License-Identifier: Apache-2.0
"""Weights of a few bits with factors of their own: dual bits and hierarchical levels."""

import itertools

import numpy as np
import pytest
from atriplex.rtl.formats._formats import FormatError
from atriplex.sim.formats import dual, hlq


def test_dual_bits_take_the_nearest_of_their_four_levels():
    step = 0.5
    values = np.linspace(-2, 3, 4001)
    planes = dual.binarise(values, (2 * step, -step))
    found = 2 * step * planes[0] - step * planes[1].astype(float)
    levels = np.array([-step, 0, step, 2 * step])
    far = np.abs(values[:, None] - levels)
    assert (np.abs(values - found) == far.min(axis=1)).all()
    # Decision points, the upper level at each but where the second plane decides.
    for point, level in ((-step / 2, -step), (step / 2, step), (3 * step / 2, step)):
        one, two = dual.binarise([point], (2 * step, -step))
        assert 2 * step * one[0] - step * two[0] == level


def test_dual_bits_of_gaussian_weights_are_as_dense_as_published():
    values = np.random.default_rng(1).normal(size=(1, 200_000))
    planes = dual.binarise(values, np.array([[2.0], [-1.0]]))
    assert planes[0].mean() == pytest.approx(0.31, abs=0.005)
    assert planes[1].mean() == pytest.approx(0.55, abs=0.005)
    assert (planes.sum(axis=0) == 0).mean() == pytest.approx(0.383, abs=0.005)


def test_least_squares_lessen_the_error_of_dual_bits():
    values = np.random.default_rng(2).normal(size=(50, 256))
    first, fitted = dual.fit(values, 64, rounds=0), dual.fit(values, 64)
    errors = [
        np.square(values.reshape(50, 4, 64) - each.values()).sum(axis=-1)
        for each in (first, fitted)
    ]
    assert (errors[1] <= errors[0]).all() and errors[1].sum() < 0.8 * errors[0].sum()


def test_dual_bits_hold_trits_and_odd_input():
    trits = np.random.default_rng(3).integers(-1, 2, (4, 64)) * 0.25
    # With these factors the levels are those of trits, and a quarter of the codes is unused.
    planes = dual.binarise(trits, np.full((2, 4), [[0.25], [-0.25]]))
    made = 0.25 * planes[0] - 0.25 * planes[1].astype(float)
    np.testing.assert_array_equal(made, trits)
    assert (dual.fit(np.zeros((2, 10)), 8).values() == 0).all()
    for bad in ([], [np.nan], [np.inf]):
        with pytest.raises(FormatError, match="values, all of them finite"):
            dual.fit(bad, 8)
    with pytest.raises(FormatError, match="at least 1 element, not 0"):
        dual.fit([1.0], 0)


@pytest.mark.parametrize(("bits", "group", "published"), [(2, 128, 2.375), (2, 64, 2.75)])
def test_levels_take_the_published_bits(bits: int, group: int, published: float):
    values = np.random.default_rng(4).normal(size=(3, 256))
    assert hlq.fit(values, bits, group).bits_per_weight == published


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_each_weight_takes_the_nearest_of_its_levels(bits: int):
    values = np.random.default_rng(bits).normal(size=(5, 100))
    made = hlq.fit(values, bits, 32)
    given = np.pad(values, ((0, 0), (0, 28)), mode="edge").reshape(5, 4, 32)
    for row, group in itertools.product(range(5), range(4)):
        levels = [
            made.offsets[row, group]
            + sum(made.scales[b, row, group] for b in range(bits) if code >> b & 1)
            for code in range(1 << bits)
        ]
        far = np.abs(given[row, group][:, None] - np.array(levels))
        found = np.abs(given[row, group] - made.values()[row, group])
        np.testing.assert_allclose(found, far.min(axis=1), rtol=1e-12)
    assert (made.scales == made.scales.astype(np.float16)).all()


@pytest.mark.parametrize("bits", [2, 3])
def test_levels_of_their_own_beat_uniform_ones(bits: int):
    values = np.random.default_rng(5).normal(size=(40, 256))
    errors = [
        np.square(values.reshape(40, 2, 128) - hlq.fit(values, bits, 128, rounds).values()).mean()
        for rounds in (0, 1, 10)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_levels_refuse_what_is_none():
    with pytest.raises(FormatError, match="all of them finite"):
        hlq.fit([np.inf], 2)
    with pytest.raises(FormatError, match="1 to 4 bits"):
        hlq.fit([1.0], 5)
