# SPDX-License-Identifier: Apache-2.0
"""The floating-point adder: numpy's float16, every pair of a small format, registers, faults."""

import inspect
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.sim import Simulator
from atriplex.rtl.formats import _float_add
from atriplex.rtl.formats._float_add import FloatAdd, FloatAddConfig, twice
from atriplex.sim.formats.add import add

Pairs = np.ndarray
SMALLEST, ONE, LARGEST, INFINITY, NAN = 0x0001, 0x3C00, 0x7BFF, 0x7C00, 0x7E00


def sums(part: Any, latency: int, pairs: Pairs) -> np.ndarray:
    """The sum of every pair, given one each cycle."""
    m = Module()
    m.domains.sync = ClockDomain()
    m.submodules.part = part
    found: list[int] = []

    async def bench(ctx: Any) -> None:
        ctx.set(part.enable, 1)
        for a, b in [*pairs.tolist(), *[(0, 0)] * latency]:
            ctx.set(part.a, a)
            ctx.set(part.b, b)
            await ctx.delay(1e-8)
            found.append(ctx.get(part.y))
            if latency:
                await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return np.array(found[latency:])


def corners() -> Pairs:
    """Ends of every exponent, and what is next to them, crossed; both signs."""
    codes = np.unique([
        min(max((exponent << 10) + near, 0), NAN)
        for exponent in (0, 1, 2, 5, 11, 12, 13, 14, 15, 16, 28, 29, 30, 31)
        for near in (-2, -1, 0, 1, 2)
    ])
    codes = np.concatenate((codes, codes | 0x8000))
    return np.stack(np.meshgrid(codes, codes), axis=-1).reshape(-1, 2)


def close(count: int, seed: int) -> Pairs:
    """Random codes whose exponents are few places apart: ties and cancellation."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 1 << 16, count)
    far = (a >> 10 & 31) + rng.integers(-13, 14, count)
    b = np.clip(far, 0, 31) << 10 | rng.integers(0, 1 << 10, count)
    b = np.where(rng.random(count) < 0.3, b & ~0xFF, b)
    return np.stack((a, b | rng.integers(0, 2, count) << 15), axis=-1)


def numpys(pairs: Pairs) -> np.ndarray:
    """Codes of numpy's float16 sums, with one NaN."""
    a, b = (pairs[:, n].astype(np.uint16).view(np.float16) for n in range(2))
    with np.errstate(invalid="ignore", over="ignore"):
        total = a + b
    return np.where(np.isnan(total), NAN, total.view(np.uint16))


def test_the_model_is_numpys_float16() -> None:
    rng = np.random.default_rng(1)
    pairs = np.concatenate((corners(), close(200_000, 2), rng.integers(0, 1 << 16, (200_000, 2))))
    got = add(FloatAddConfig().of_format, *pairs.T)
    np.testing.assert_array_equal(got, numpys(pairs))


def test_sums_of_corners_and_close_numbers_are_numpys() -> None:
    pairs = np.concatenate((corners()[::5], close(5_000, 3)))
    np.testing.assert_array_equal(sums(FloatAdd(FloatAddConfig()), 0, pairs), numpys(pairs))


@pytest.mark.long
@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_a_hundred_thousand_sums_are_numpys(stages: int) -> None:
    rng = np.random.default_rng(stages)
    pairs = np.concatenate((
        corners(),
        close(80_000, stages),
        rng.integers(0, 1 << 16, (20_000, 2)),
    ))
    part = FloatAdd(FloatAddConfig(stages=stages))
    np.testing.assert_array_equal(sums(part, stages, pairs), numpys(pairs))


@pytest.mark.long
def test_every_pair_of_a_small_format() -> None:
    config = FloatAddConfig(format="fp8_e5m2")
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).reshape(-1, 2)
    np.testing.assert_array_equal(sums(FloatAdd(config), 0, pairs), add(config.of_format, *pairs.T))


@pytest.mark.parametrize("name", ["bf16", "fp8_e5m2"])
def test_other_formats(name: str) -> None:
    config = FloatAddConfig(format=name, stages=3)
    width, mantissa = config.of_format.width, config.of_format.mantissa
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, 1 << width, (4000, 2))
    pairs[::2, 1] = (pairs[::2, 0] + (rng.integers(-9, 10, 2000) << mantissa)) % (1 << width)
    pairs[::4, 1] ^= 1 << width - 1
    got = sums(FloatAdd(config), 3, pairs)
    np.testing.assert_array_equal(got, add(config.of_format, *pairs.T))


def test_specials() -> None:
    minus = 0x8000
    rows = {
        (0, minus): 0,
        (minus, minus): minus,
        (ONE, ONE | minus): 0,
        (LARGEST, LARGEST): INFINITY,
        (LARGEST | minus, 0x4C00 | minus): INFINITY | minus,  # half a place: a tie, to even
        (LARGEST, 0x4BFF): LARGEST,
        (SMALLEST, SMALLEST): 2,
        (0x03FF, SMALLEST): 0x0400,
        (INFINITY, LARGEST | minus): INFINITY,
        (INFINITY, INFINITY | minus): NAN,
        (ONE, 0xFD01): NAN,
        (0xFE00, INFINITY): NAN,
    }
    got = sums(FloatAdd(FloatAddConfig()), 0, np.array(list(rows)))
    assert got.tolist() == list(rows.values())


def test_a_format_without_infinities_is_refused() -> None:
    with pytest.raises(ValueError, match=r"format must have infinities, as .*, not fp8_e4m3"):
        FloatAddConfig(format="fp8_e4m3")
    with pytest.raises(ValueError, match="no format 'fp17'; is it fp16"):
        FloatAddConfig(format="fp17")


def test_twice_is_numpys() -> None:
    m, code = Module(), Signal(16)
    double = Signal(16)
    m.d.comb += double.eq(twice(FloatAddConfig().of_format, code))
    codes = np.unique(np.concatenate((np.arange(0, 1 << 16, 37), corners()[:, 0])))
    found: list[int] = []

    async def bench(ctx: Any) -> None:
        for given in codes.tolist():
            ctx.set(code, given)
            await ctx.delay(1e-8)
            found.append(ctx.get(double))

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
    values = codes.astype(np.uint16).view(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = (2 * values).view(np.uint16)
    real = ~np.isnan(values)
    np.testing.assert_array_equal(np.array(found)[real], expected[real])
    np.testing.assert_array_equal(np.array(found)[~real], codes[~real])


FAULTS = {
    "no_larger_one": ("swap.eq(self.b[:fields] > self.a[:fields])", "swap.eq(0)"),
    "subnormals_one_lower": ("Cat(field[0] | ~field.any(), ", "Cat(field[0], "),
    "nothing_lost": ("Cat(lost, aligned)", "Cat(0, aligned)"),
    "far_is_near": ("Mux(far, 0, value)", "value"),
    "never_subtracted": ("differ.replicate(width)", "Const(0, width)"),
    "one_bit_below_less": ("BELOW = 3", "BELOW = 2"),
    "moved_beyond_subnormals": ("(free | within))", "1)"),
    "ties_upwards": ("(shifted[BELOW + 1] | shifted[:BELOW].any())", "1"),
    "infinity_keeps_its_mantissa": ("& finite.replicate(mantissa)", ""),
    "minus_zero": ("exact | ~parts.pop", "1 | parts.pop"),
    "nan_is_infinity": ("kept[-1] | nan", "kept[-1]"),
}
"""Faults inside the adder: what is there, and what is there instead."""


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_inside_are_seen(fault: str) -> None:
    sound, broken = FAULTS[fault]
    source = inspect.getsource(_float_add)
    assert source.count(sound) == 1
    names: dict[str, Any] = {"__name__": _float_add.__name__, "__package__": "atriplex.rtl.formats"}
    exec(compile(source.replace(sound, broken), _float_add.__file__, "exec"), names)
    pairs = np.concatenate((corners()[::41], close(300, 5), [(0, 0x8000), (0x8000, 0)]))
    got = sums(names["FloatAdd"](names["FloatAddConfig"]()), 0, pairs)
    assert np.any(got != numpys(pairs))


@pytest.mark.parametrize("stages", [0, 5])
def test_float32_is_that_of_numpy(stages: int) -> None:
    """Exponents a few places apart, differences of a bit, subnormals, the largest."""
    rng = np.random.default_rng(1)
    a = rng.integers(0, 255, 500) << 23 | rng.integers(0, 1 << 23, 500)
    far = np.clip((a >> 23) + rng.integers(-27, 28, 500), 0, 254)
    b = np.where(rng.random(500) < 0.2, a ^ rng.integers(0, 4, 500), far << 23 | a >> 5 & 0x7FFFFF)
    tiny = rng.integers(0, 1 << 25, (100, 2))
    ends = [[0, 0], [0x7F7FFFFF, 0x7F7FFFFF], [0x7F7FFFFF, 0x73000000], [0x7F7FFFFF, 0x72FFFFFF]]
    pairs = np.concatenate((np.stack((a, b), axis=-1), tiny, ends))
    pairs |= rng.integers(0, 2, pairs.shape) << 31
    found = sums(FloatAdd(FloatAddConfig(format="fp32", stages=stages)), stages, pairs)
    x, y = pairs.astype(np.uint32).view(np.float32).T
    with np.errstate(over="ignore"):
        wanted = (x + y).view(np.uint32)
    assert found.tolist() == wanted.tolist()
