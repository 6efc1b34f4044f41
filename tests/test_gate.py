# SPDX-License-Identifier: Apache-2.0
"""The gate's golden model against rationals and reals, and the precision it promises."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from atriplex.rtl.config import ConfigError
from atriplex.rtl.vector.gate import GateConfig
from atriplex.sim.vector import gate


def test_squared_relu_is_the_rounded_rational() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.integers(-(1 << 17), 1 << 17, (2, 2000))
    for shift in (20, 26, 34):
        got = gate.gated(one, other, shift, 18)
        for g, u, x in zip(one.tolist(), other.tolist(), got.tolist(), strict=True):
            real = floor(Fraction(max(g, 0) ** 2 * u, 1 << shift) + Fraction(1, 2))
            assert x == max(min(real, (1 << 17) - 1), 1 - (1 << 17))


def test_ties_go_upwards_and_the_lowest_value_does_not_occur() -> None:
    assert gate.gated(np.array([1, 1, 2]), np.array([1, -1, -3]), 1, 8).tolist() == [1, 0, -6]
    assert gate.gated(np.array([100]), np.array([-128]), 0, 8).tolist() == [-127]


@pytest.mark.parametrize("fraction", [4, 5, 8, 10, 12])
def test_sigmoid_is_as_near_as_it_promises(fraction: int) -> None:
    x = np.arange(-(1 << 17), 1 << 17)
    got = gate.sigmoid(x, fraction)
    with np.errstate(over="ignore"):
        real = 1 / (1 + np.exp(-x * 2.0**-fraction))
    assert np.abs(got - real * 65536).max() < 5
    assert (np.diff(got) >= 0).all()
    assert (got + gate.sigmoid(-x, fraction))[x != 0].tolist() == [65536] * (len(x) - 1)


def test_silu_is_wrong_by_less_than_a_step_of_its_input() -> None:
    x = np.arange(-(1 << 17), 1 << 17)
    with np.errstate(over="ignore"):
        real = x / (1 + np.exp(-x / 1024))
    assert np.abs(gate.silu(x, 10) - real).max() < 1


def test_a_shift_beyond_the_product_is_refused() -> None:
    with pytest.raises(ConfigError, match="shift must be below the 36 bits of the product"):
        GateConfig(activation="silu", shift=36)
    with pytest.raises(ConfigError, match="width must exceed fraction - 4 = 6, not 6"):
        GateConfig(activation="silu", width=6, shift=2)
