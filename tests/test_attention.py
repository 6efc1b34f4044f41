# SPDX-License-Identifier: Apache-2.0
"""Online softmax and attention: models against reals, within the error their contracts state."""

from fractions import Fraction

import numpy as np
import pytest
from atriplex.rtl.config import ConfigError
from atriplex.rtl.engine import _constants
from atriplex.rtl.engine.attention import AttentionConfig
from atriplex.rtl.vector.softmax import SoftmaxConfig
from atriplex.sim._fixed import scale_of
from atriplex.sim.engine import attention
from atriplex.sim.vector import softmax

RANDOM, RISING, FALLING, EXTREME, NEAR = range(5)


def scores_of(kind: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    if kind == NEAR:
        return rng.integers(-300, 300, tokens)
    if kind == EXTREME:
        return rng.choice([-(1 << 17), (1 << 17) - 1, 0], tokens)
    found = rng.integers(-4000, 4000, tokens)
    return {RANDOM: found, RISING: np.sort(found), FALLING: -np.sort(-found)}[kind]


@pytest.mark.parametrize("weight_bits", [4, 7, 10])
@pytest.mark.parametrize("kind", [RANDOM, RISING, FALLING, EXTREME, NEAR])
def test_shares_are_as_near_as_the_contract_says(kind: int, weight_bits: int) -> None:
    rng = np.random.default_rng(kind)
    config = SoftmaxConfig(weight_bits=weight_bits)
    for tokens in (1, 2, 17, 256):
        score = scores_of(kind, tokens, rng)
        marks = np.zeros((2, tokens), int)
        marks[0, 0] = marks[1, -1] = 1
        none = np.zeros(tokens, int)
        given = {"score": score, "context": none, "first": marks[0], "last": marks[1], "skip": none}
        out = softmax.golden(config, {"i": given, "log_i": {"log": none}})
        total = Fraction(int(out["total_o"]["total"][0]), 1 << 15)
        total *= Fraction(2) ** int(out["total_o"]["octave"][0])
        got = [
            float(Fraction(weight) * Fraction(2) ** (octave - weight_bits) / total)
            for weight, octave in zip(
                out["o"]["weight"].tolist(), out["o"]["octave"].tolist(), strict=True
            )
        ]
        chance = np.exp2((score - score.max()) / 256)
        share = chance / chance.sum()
        error = 0.75 * (tokens + 1) / 2**14
        bound = (share.max() * 2.0 ** (1 - weight_bits) + share * error) / (1 - error)
        assert (np.abs(np.array(got) - share) <= bound).all()


def test_sums_forget_as_many_octaves_as_the_shift_says() -> None:
    """Whoever follows weights and shifts gets the sum of values that ``mix`` makes."""
    rng = np.random.default_rng(2)
    unit = softmax.Softmax.of(8, 7)
    score = rng.integers(-2000, 2000, 50)
    values = rng.integers(-127, 128, (50, 3))
    seen = np.ones(50, bool)
    mixed = unit.mix(score[None, None, None], score[None, None, None], values[None], seen)
    steps = unit.weight_steps(score[None], seen[None])
    sums = np.zeros(3, np.int64)
    for token in range(50):
        sums = (sums >> steps.moved[0, token]) + steps.term[0, token] * values[token]
    assert mixed.sums[0, 0, 0].tolist() == sums.tolist()


def test_constants_of_the_hardware_are_scales_of_the_model() -> None:
    for value in [1.0, 1 / 3, 2.0**-40, 65535.4, 65535.6, *np.random.default_rng(1).random(1000)]:
        assert _constants.nearest(value) == scale_of(value)
    mantissa, shift = _constants.mix_scale(127, 7, 15)
    assert abs(Fraction(mantissa, 1 << shift) * 127 / 256 - 1) <= Fraction(1, 1 << 16)
    mantissa, shift = _constants.score_scale(64, 127, 8, 10)
    real = np.log2(np.e) / 8 * 2**8 / (127 * 1024) ** 2
    assert abs(mantissa * 2.0**-shift / real - 1) < 2**-15


def test_attention_is_near_the_softmax_of_reals() -> None:
    config, rng = AttentionConfig(), np.random.default_rng(3)
    tokens, dim, top, unit = 100, config.head_dim, 127, 2.0**-config.activation_fraction
    query = rng.integers(-top, top + 1, dim)
    keys, values = rng.integers(-top, top + 1, (2, tokens, dim))
    peaks = rng.integers(1000, 4000, tokens)
    value_peaks = rng.integers(500, 8000, tokens)
    inputs = {
        "query_i": {"codes": query.reshape(-1, config.lanes)},
        "query_scale_i": {"peak": np.array([3000])},
        "op_i": {name: np.array([n]) for name, n in zip(*OPERATION, strict=True)},
        "key_i": {"codes": keys, "scale": peaks},
        "value_i": {"codes": values, "scale": softmax.log2(value_peaks, config.score_fraction)},
    }
    got = attention.golden(config, inputs)["o"]["x"].reshape(-1) * unit
    q, k = query * 3000 * unit / top, keys * peaks[:, None] * unit / top
    score = k @ q / np.sqrt(dim)
    share = np.exp(score - score.max())
    real = (share / share.sum()) @ (values * value_peaks[:, None] * unit / top)
    assert np.abs(got - real).max() < 0.01 * value_peaks.max() * unit


OPERATION = (("context", "count", "opens", "closes"), (2, 100, 1, 1))


def test_a_context_without_pairs_gives_zeros() -> None:
    config = AttentionConfig()
    inputs = {
        "query_i": {"codes": np.full((8, config.lanes), 9)},
        "query_scale_i": {"peak": np.array([3000])},
        "op_i": {"context": [0], "count": [0], "opens": [1], "closes": [1]},
        "key_i": {"codes": np.zeros((0, 32), int), "scale": np.zeros(0, int)},
        "value_i": {"codes": np.zeros((0, 32), int), "scale": np.zeros(0, int)},
    }
    inputs["op_i"] = {name: np.array(value) for name, value in inputs["op_i"].items()}
    assert not attention.golden(config, inputs)["o"]["x"].any()


def test_parameters_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ConfigError, match="value_scale_width must hold the logarithm of a peak"):
        AttentionConfig(value_scale_width=8)
    with pytest.raises(ConfigError, match="weight_bits must be below code_width = 4, not 7"):
        AttentionConfig(code_width=4)
