# SPDX-License-Identifier: Apache-2.0
"""Leading One Prediction in the engine: what is read, what is computed, what it costs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atriplex.gen.engine import machine as machines
from atriplex.gen.engine.story import Story, Tally, Teller, design_for
from atriplex.gen.studies import selection
from atriplex.rtl.config import ConfigError
from atriplex.rtl.engine.engine import EngineConfig
from atriplex.sim.engine.engine import random_model
from atriplex.sim.engine.image import DoesNotFit, compile_image, precision_of
from atriplex.sim.engine.integer import IntegerModel, Precision, Trace
from atriplex.sim.engine.model import ModelConfig

SIZES = ModelConfig(
    dim=16, hidden=32, heads=2, kv_heads=1, head_dim=8, layers=2, context=32, vocab=32
)
MODEL = random_model(SIZES, np.random.default_rng(5))


def tiny(**changes: Any) -> EngineConfig:
    base = {"context": SIZES.context, "select": "lop", "keep": 6, "recent": 2}
    return EngineConfig.of({**EngineConfig.preset("tiny").values(), **base, **changes})


def compiled(config: EngineConfig) -> IntegerModel:
    return IntegerModel.compile(MODEL, precision_of(config))


@pytest.fixture(scope="module")
def teller() -> Iterator[Teller]:
    teller = Teller(compiled(tiny()), tiny())
    yield teller
    teller.close()


def reads_of(teller: Teller, prompt: list[int], tokens: int) -> tuple[Tally, list[dict[str, int]]]:
    """A text with all activations checked, and what was counted for each of its tokens."""
    tally, counted, before = Tally(), [], teller.machine.counts()
    for _ in teller.tell(prompt, tokens, check_activations=True, tally=tally):
        after = teller.machine.counts()
        counted.append({name: after[name] - before[name] for name in after})
        before = after
    return tally, counted


@pytest.mark.parametrize("stalls", [0.0, 0.3])
def test_activations_are_equal_and_reads_fall_by_one_minus_k_over_m(
    teller: Teller, stalls: float
) -> None:
    config = teller.config
    teller.machine.stall(stalls, seed=3)
    tally, counted = reads_of(teller, [1], SIZES.context)
    assert tally.wrong == []
    assert tally.tokens == SIZES.context == len(counted)
    runs = SIZES.layers * SIZES.heads
    for m, one in enumerate(counted, start=1):  # tokens to attend to, the newest one among them
        reads, whole = one["attention"], runs * m
        assert reads == runs * min(m, config.keep)
        if m > config.keep:
            assert 1 - Fraction(reads, whole) == 1 - Fraction(config.keep, m)
        assert one["leads"] == runs * max(m - config.recent, 0)
    pairs = sum(one["attention"] for one in counted)
    assert config.pair_bits == 2 * 8 * 8 + 17 + 13
    assert tally.bytes_moved["keys and values"] == sum(
        config.pair_bits * one["attention"] // 8 for one in counted
    )
    assert pairs < runs * sum(range(1, SIZES.context + 1)) / 2
    assert tally.bytes_moved["leading ones of keys"] == sum(
        4 * 8 * one["leads"] // 8 for one in counted
    )


def test_a_reset_in_the_middle_of_a_choice_leaves_nothing_behind(teller: Teller) -> None:
    teller.machine.stall(0.0)
    first, _ = reads_of(teller, [3, 1, 4, 1, 5], 12)
    for cycles in (150, 300, 450):
        with pytest.raises(machines.Stuck):
            teller.machine.token(9, restart=False, sample=True, limit=cycles)
        teller.machine.reset()
        again, _ = reads_of(teller, [3, 1, 4, 1, 5], 12)
        assert first.wrong == again.wrong == []


def test_a_choice_without_overlap_is_the_same(teller: Teller) -> None:
    """The program is another, the engine is not."""
    other = Teller(teller.model, teller.config, overlap=False)
    tally, _ = reads_of(other, [1], 20)
    other.close()
    assert (tally.tokens, tally.wrong) == (20, [])


def test_the_choice_matters_to_the_model_and_more_kept_is_closer() -> None:
    tokens = np.random.default_rng(1).integers(0, SIZES.vocab, SIZES.context)

    def output(**changes: Any) -> np.ndarray:
        model, trace = compiled(tiny(**changes)), Trace()
        model.forward(tokens, model.start(), trace)
        return trace["blk.0.attn_sub_norm.input"].astype(float)

    whole = output(select="all")
    off = [np.abs(output(keep=keep, recent=1) - whole).mean() for keep in (1, 4, 16, 32)]
    assert off[0] > off[1] > off[2] > off[3] == 0


def test_an_engine_that_reads_all_knows_nothing_of_the_choice() -> None:
    plain, other, lop = (
        [line for line in design_for(config).text.splitlines() if not line.startswith("//")]
        for config in (tiny(select="all"), tiny(select="all", keep=3, recent=1), tiny())
    )
    assert plain == other
    assert not [line for line in plain if "engine__core__select" in line]
    assert [line for line in lop if "engine__core__select" in line]


def test_models_of_another_choice_do_not_fit() -> None:
    for config, precision in (
        (tiny(), Precision()),
        (tiny(), Precision(select_k=5, select_recent=2)),
        (tiny(select="all"), precision_of(tiny())),
    ):
        with pytest.raises(DoesNotFit, match="another precision, or selection of tokens"):
            compile_image(IntegerModel.compile(MODEL, precision), config)


def test_more_to_keep_than_the_context_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep must be at most context, 32"):
        tiny(keep=33)
    with pytest.raises(ConfigError, match="recent must be at most context, 32"):
        tiny(recent=33)
    assert tiny(select="all", keep=33).kept == 0
    assert tiny(keep=2, recent=5).kept == 5


def test_recall_and_chance_are_those_of_a_count_token_by_token() -> None:
    keep = 6
    model = IntegerModel.compile(MODEL)
    trace: Trace = {}
    model.forward(np.random.default_rng(1).integers(0, 32, 20), model.start(), trace)
    found = selection._found(model, trace, keep)
    expected = []
    for layer in range(SIZES.layers):
        parts = {
            name: trace[f"blk.{layer}.{name}.codes"] * trace[f"blk.{layer}.{name}.peaks"][..., None]
            / (127 * 2**10)
            for name in "qk"
        }  # fmt: skip
        kept = selection.select(
            trace[f"blk.{layer}.q.codes"].swapaxes(0, 1),
            trace[f"blk.{layer}.k.codes"].swapaxes(0, 1),
            keep,
            newest=np.arange(20),
        )
        for head in range(SIZES.heads):
            for token in range(keep, 20):
                scores = parts["k"][: token + 1, 0] @ parts["q"][token, head] / np.sqrt(8)
                best = set(sorted(range(token), key=lambda old: -scores[old])[: keep - 1])
                chosen = set(np.flatnonzero(kept[head, token]).tolist())
                assert len(chosen) == keep
                share = np.exp(scores - scores.max())
                expected.append((
                    len(best & chosen) / (keep - 1),
                    share[sorted(chosen)].sum() / share.sum(),
                ))
    assert np.allclose(np.sort(found, axis=-1), np.sort(np.array(expected).T, axis=-1))
    assert 0.3 < found[0].mean() < 1


@pytest.mark.long
@pytest.mark.parametrize("keep", [8, 32])
def test_the_shipped_model_tells_a_story_from_what_it_chose(keep: int) -> None:
    tale = Story(
        "Once upon",
        tokens=220,
        settings={"select": "lop", "keep": keep},
        check_activations=True,
        stalls=0.2,
    )
    teller, before = tale.teller, tale.teller.machine.counts()
    text = "".join(tale)
    after = teller.machine.counts()
    assert tale.tally.wrong == []
    assert (tale.tally.tokens, tale.note) == (220, None)
    assert len(text) > 400
    runs = teller.model.config.layers * teller.model.config.heads
    cached = range(1, tale.tally.checked + 1)
    assert after["attention"] - before["attention"] == runs * sum(min(m, keep) for m in cached)
    teller.close()


@pytest.mark.long
def test_the_choice_comes_through_the_command_line() -> None:
    prompt = "Once upon a time there was a little girl"
    command = [str(Path(sys.executable).parent / "atriplex"), "run", "shipped", prompt]
    command += ["--set", "select=lop", "--set", "keep=8", "--tokens", "24", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    moved = report["bytes_per_token"]
    assert report["wrong"] == []
    # The prompt is longer than 8 tokens, so 3 layers of 6 heads read 8 pairs of 542 bits each time.
    assert moved["keys and values"] == 3 * 6 * 8 * 542 // 8
    assert moved["leading ones of keys"] > 0
