# SPDX-License-Identifier: Apache-2.0
"""The rotary embedding: its table and its results against reals, its wait for the table."""

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator
from atriplex.rtl.config import ConfigError
from atriplex.rtl.vector.rope import Rope, RopeConfig
from atriplex.sim.vector import rope


@pytest.mark.parametrize("fraction", [4, 15, 16])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_table_is_within_half_a_step_and_a_step_at_one(theta: float, fraction: int) -> None:
    cos, sin = rope.table(4096, 64, theta, fraction)
    angle = np.arange(4096)[:, None] * theta ** -(np.arange(64) / 64)
    one = 1 << fraction
    for got, real in ((cos, np.cos(angle)), (sin, np.sin(angle))):
        clipped = np.abs(real) * one > one - 0.5
        assert np.abs(got - real * one)[~clipped].max() <= 0.5
        assert (got[clipped] == np.sign(real[clipped]) * (one - 1)).all()
        assert np.abs(got).max() < one
    assert cos[0].tolist() == [one - 1] * 64
    assert not sin[0].any()


@pytest.mark.parametrize("fraction", [8, 15])
def test_results_are_as_near_to_the_rotation_as_promised(fraction: int) -> None:
    rng = np.random.default_rng(fraction)
    cos, sin = rope.table(256, 16, 10_000.0, fraction)
    low, high = rng.integers(-(1 << 16), 1 << 16, (2, 256, 16))
    angle = np.arange(256)[:, None] * 10_000.0 ** -(np.arange(16) / 16)
    got = rope.rotate(low, high, cos, sin, fraction, 18)
    real = (
        low * np.cos(angle) - high * np.sin(angle),
        low * np.sin(angle) + high * np.cos(angle),
    )
    bound = 0.5 + 1.5 * np.maximum(np.abs(low), np.abs(high)) * 2.0**-fraction
    for one, other in zip(got, real, strict=True):
        assert (np.abs(one - other) <= bound).all()


def test_pairs_are_rounded_once_ties_upwards_and_saturated() -> None:
    rng = np.random.default_rng(5)
    low, high = rng.integers(-32, 32, (2, 4000))
    cos, sin = rng.integers(-16, 16, (2, 4000))
    got = [part.tolist() for part in rope.rotate(low, high, cos, sin, 4, 6)]
    for at, (a, b, c, s) in enumerate(np.stack([low, high, cos, sin], axis=1).tolist()):
        for value, part in ((a * c - b * s, got[0][at]), (a * s + b * c, got[1][at])):
            nearest = floor(Fraction(value, 16) + Fraction(1, 2))
            assert part == max(min(nearest, 31), -31)


def test_bypassed_heads_pass_unchanged_but_for_the_lowest_value() -> None:
    config = RopeConfig(head_dim=4, context=1, x_width=6, fraction=4)
    inputs = {
        "op_i": {"position": np.array([0, 0]), "bypass": np.array([1, 0])},
        "table_i": {"address": np.arange(2), "cos": np.array([0, 0]), "sin": np.array([15, -16])},
        "i": {"x": np.array([-32, 31, -31, 0, 16, 3, 16, 3])},
    }
    out = rope.golden(config, inputs)["o"]
    assert out["x"].tolist() == [-31, 31, -31, 0, -3, 15, 3, -16]
    assert out["first"].tolist() == [1, 0, 0, 0] * 2
    assert out["last"].tolist() == [0, 0, 0, 1] * 2


@pytest.mark.parametrize("bypass", [0, 1])
def test_no_element_is_taken_before_the_table_is_complete(bypass: int) -> None:
    config = RopeConfig(head_dim=4, context=3)
    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.rope = part = Rope(config)
    ready: list[int] = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.op_i.valid, 1)
        ctx.set(part.op_i.p.bypass, bypass)
        ctx.set(part.i.valid, 1)
        ctx.set(part.o.ready, 1)
        await ctx.tick().repeat(5)
        ctx.set(part.table_i.valid, 1)
        for address in (0, 4, 1, 3, 2, 5):  # the last address completes it
            ctx.set(part.table_i.p.address, address)
            ready.append(ctx.get(part.i.ready))
            assert ctx.get(part.table_i.ready)
            await ctx.tick()
        ready.append(ctx.get(part.i.ready))
        assert not ctx.get(part.table_i.ready)

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert ready == [0, 0, 0, 0, 0, 0, 1]


def test_heads_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim must be even, not 7"):
        RopeConfig(head_dim=7)
    with pytest.raises(ConfigError, match=r"= 4194304 entries exceeds 1048576"):
        RopeConfig(head_dim=128, context=1 << 16)
