# SPDX-License-Identifier: Apache-2.0
"""The floating-point multiplier against numpy's float16."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator
from atriplex.rtl.formats._float_multiply import FloatMultiply, FloatMultiplyConfig
from atriplex.sim.formats.multiply import multiply

NAN = 0x7E00


def pairs_of(count: int, seed: int) -> np.ndarray:
    """Corners crossed, and pairs whose product is near the ends of the exponents or anywhere."""
    corners = [0, 1, 2, 0x3FE, 0x3FF, 0x400, 0x401, 0x3BFF, 0x3C00, 0x3C01, 0x7BFF, 0x7C00, NAN]
    corners = np.array([*corners, *(code | 0x8000 for code in corners)])
    crossed = np.stack(np.meshgrid(corners, corners), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 1 << 16, (2, count))
    near = np.clip(
        rng.choice([3, 30], count) - (a >> 10 & 31) + 15 + rng.integers(-6, 3, count), 0, 31
    )
    low = rng.random(count) < 0.5
    b = np.where(low, near << 10 | (b & 0x83FF), b)
    return np.concatenate((crossed, np.stack((a, b), axis=-1)))


def numpys(pairs: np.ndarray) -> np.ndarray:
    a, b = (pairs[:, n].astype(np.uint16).view(np.float16) for n in range(2))
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        product = a * b
    return np.where(np.isnan(product), NAN, product.view(np.uint16))


def test_the_model_is_numpys_float16() -> None:
    pairs = pairs_of(200_000, 1)
    np.testing.assert_array_equal(
        multiply(FloatMultiplyConfig().of_format, *pairs.T), numpys(pairs)
    )


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("stages", [0, 1])
def test_products_are_numpys(stages: int, count: int) -> None:
    part: Any = FloatMultiply(FloatMultiplyConfig(stages=stages))
    m, pairs = Module(), pairs_of(count, stages)
    m.domains.sync = ClockDomain()
    m.submodules.part = part
    found: list[int] = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.enable, 1)
        for a, b in [*pairs.tolist(), *[(0, 0)] * stages]:
            ctx.set(part.a, a)
            ctx.set(part.b, b)
            await ctx.delay(1e-8)
            found.append(ctx.get(part.y))
            if stages:
                await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    np.testing.assert_array_equal(found[stages:], numpys(pairs))
