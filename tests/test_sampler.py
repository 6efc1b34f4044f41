# SPDX-License-Identifier: Apache-2.0
"""The sampler against chances computed in floats, and its random bits against their definition."""

import numpy as np
import pytest
from atriplex.rtl.vector import sampler as rtl
from atriplex.sim.vector.sampler import Sampler, golden
from atriplex.sim.vector.softmax import CHANCE_BITS, exp2_table


@pytest.mark.parametrize(("temperature", "keep"), [(0.7, 8), (1.0, 4), (3.0, 16)])
def test_draws_have_the_chances_of_a_softmax(temperature: float, keep: int) -> None:
    rng = np.random.default_rng(keep)
    real = rng.normal(size=64) * 2
    logits = np.rint(real / temperature * np.log2(np.e) * 256).astype(np.int64)
    sampler, draws = Sampler(), 20_000
    sampler.seed(keep)
    counts = np.bincount([sampler.draw(logits, keep) for _ in range(draws)], minlength=64)
    best = np.argsort(-real)[:keep]
    chances = np.zeros(64)
    chances[best] = np.exp(real[best] / temperature)
    chances /= chances.sum()
    assert not counts[chances == 0].any()
    # chi squared with keep - 1 degrees of freedom: mean keep - 1, variance twice that
    expected = draws * chances[best]
    chi = ((counts[best] - expected) ** 2 / expected).sum()
    assert chi < keep - 1 + 5 * np.sqrt(2 * (keep - 1))


def test_random_words_are_even_and_differ_between_near_seeds() -> None:
    words = []
    for seed in range(2000):
        sampler = Sampler()
        sampler.seed(seed)
        words += [sampler.word(), sampler.word()]
    bits = (np.array(words)[:, None] >> np.arange(32)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05
    parts = np.bincount(np.array(words[::2]) >> 28, minlength=16) / 2000
    assert np.abs(parts * 16 - 1).max() < 0.35
    assert len(set(words[2:])) == len(words) - 2  # the seeds 0 and 1 are one


def test_the_shift_register_runs_through_all_states() -> None:
    """Its polynomial is primitive: x has order 2**32 - 1 modulo it."""
    assert rtl.POLYNOMIAL == 0xEDB88320
    taps = int(f"{rtl.POLYNOMIAL:032b}"[::-1], 2) | 1 << 32

    def times(a: int, b: int) -> int:
        result = 0
        while b:
            result ^= a if b & 1 else 0
            a, b = a << 1, b >> 1
            a ^= taps if a >> 32 else 0
        return result

    def power(exponent: int) -> int:
        result, base = 1, 2
        while exponent:
            result = times(result, base) if exponent & 1 else result
            base, exponent = times(base, base), exponent >> 1
        return result

    turn = (1 << 32) - 1
    assert power(turn) == 1
    assert all(power(turn // prime) != 1 for prime in (3, 5, 17, 257, 65537))


def test_table_of_the_hardware_is_that_of_the_softmax() -> None:
    for fraction in (1, 8, 12):
        steps = 1 << fraction
        own = [round(2 ** (rtl.WEIGHT_BITS - step / steps)) for step in range(steps)]
        assert own == exp2_table(fraction, CHANCE_BITS, 1 << CHANCE_BITS).tolist()


def test_equal_entries_go_to_the_lower_token() -> None:
    config = rtl.SamplerConfig()
    entries = {
        "sum": np.array([1, 7, 7, -9, 5, 5]),
        "logit": np.array([0, 0, 0, 3, 9, 9]),
        "first": np.array([0, 0, 0, 0, 0, 0]),
        "last": np.array([0, 0, 1, 0, 0, 1]),
    }
    op = {
        "mode": np.array([0, 1]),
        "keep": np.array([0, 1]),
        "seed_load": np.array([0, 0]),
        "seed": np.array([0, 0]),
    }
    assert golden(config, {"op_i": op, "i": entries})["o"]["token"].tolist() == [1, 1]
