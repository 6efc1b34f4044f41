# SPDX-License-Identifier: Apache-2.0
"""Prompt tokens that share a pass over the weights: same vectors, fewer words, known cycles."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.engine import machine, story
from atriplex.gen.engine.story import Story, Tally, Teller
from atriplex.gen.verilog import emit
from atriplex.rtl.config import ConfigError
from atriplex.rtl.engine.engine import EngineConfig
from atriplex.rtl.engine.sequencer import SequencerConfig
from atriplex.rtl.vector.residual import ResidualConfig
from atriplex.sim.engine.engine import compiled
from atriplex.sim.engine.generate import generate
from atriplex.sim.engine.image import turns_of
from atriplex.sim.engine.integer import IntegerModel
from atriplex.sim.engine.timing import estimate
from atriplex.sim.run import simulate

ROWS = 4
TINY = EngineConfig.preset("tiny").values()
CONFIG = EngineConfig.of({**TINY, "lanes": 4, "vocab": 80, "rows": ROWS})
"""More logits than there is room for sums: those of one token need not all be kept."""

FAULTS = {
    "all keys at the first position": ("replay", r"op_o__payload\[20:17\]", "read__data[20:17]"),
    "rows added to the first vector": ("core", "vector", "0"),
    "operations for the first token alone": ("sequencer", "group_more", "0"),
    "gains fetched for every token": ("sequencer", "group_again", "0"),
    "sums given up after the first token": ("replay", "frees", "1"),
}
"""By name: the module, the wire and what it is instead; operations have positions in 17 to 20."""


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Builds that take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "OPTIMISED", "-O0")
        yield


def broken(text: str) -> str:
    """The engine with all faults; the sampler's seed, unused without sampling, chooses one."""
    for number, (module, wire, instead) in enumerate(FAULTS.values(), 1):
        name = "engine__core" if module == "core" else f"engine__core__{module}"
        start = text.index(f"\nmodule {name}(")
        end = text.index("\nendmodule", start)
        body, count = re.subn(
            rf"(  assign {wire} = )(.*);",
            rf"\1engine.sampler_i_payload_seed == {number} ? {instead} : (\2);",
            text[start:end],
        )
        assert count == 1, f"{wire} of {name}"
        text = text[:start] + body + text[end:]
    return text


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    return compiled(CONFIG, 3)[0]


@pytest.fixture(scope="module")
def teller(model: IntegerModel) -> Iterator[Teller]:
    design = story.design_for(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        text = broken(design.text)
        patch.setattr(story, "design_for", lambda config: dataclasses.replace(design, text=text))
        one = Teller(model, CONFIG)
    yield one
    one.close()


def prompt_of(length: int, vocab: int = CONFIG.vocab) -> list[int]:
    return [int(token) for token in np.random.default_rng(length).integers(0, vocab, length)]


def told(teller: Teller, prompt: list[int], tokens: int = 100) -> Tally:
    tally = Tally()
    answers = list(teller.tell(prompt, tokens, check_activations=True, tally=tally))
    assert tally.wrong == []
    assert answers == list(generate(teller.model, prompt, tokens))
    return tally


@pytest.mark.parametrize("stalls", [0.0, 0.3, 0.8])
def test_every_vector_of_prompts_of_all_lengths_equals_the_golden_model(
    teller: Teller, stalls: float
) -> None:
    teller.machine.stall(stalls, 7)
    for length in (1, 2, 3, 4, 5, 6, 11, 16):
        tally = told(teller, prompt_of(length), 3)
        assert [len(group) for group, _ in tally.prompt] == [
            *[ROWS] * (length // ROWS),
            *[length % ROWS] * (length % ROWS > 1),
        ]
        assert tally.checked == min(length + 2, CONFIG.context)
    teller.machine.stall(0.0, 7)


def test_words_of_weights_fall_by_the_number_of_rows(teller: Teller) -> None:
    image = teller.image
    counts = teller.machine.counts
    for length in (5, 9, 13):
        before = counts()
        tally = told(teller, prompt_of(length), 1)
        moved = {name: count - before[name] for name, count in counts().items()}
        passes = (length - 1) // ROWS
        assert tally.prompt_words * ROWS == tally.prompt_tokens * image.prefill_words
        assert moved["words"] == passes * image.prefill_words + image.sampled_words
        # Gains as well; rows of the embedding are each token's own.
        rows = CONFIG.dim // CONFIG.norm_lanes
        assert moved["gains"] == (passes + 1) * len(image.gains) - passes * rows
        assert moved["rows"] == length * rows
    # The last token of a prompt may share a pass too, and is the only one that has a head.
    before = counts()
    told(teller, prompt_of(8), 1)
    moved = counts()["words"] - before["words"]
    assert moved == image.prefill_words + image.sampled_words


def test_estimates_of_prompts_are_near_the_simulation(teller: Teller) -> None:
    total = expected = 0.0
    for length in (2, 3, 4, 7, 12, 16):
        tally = told(teller, prompt_of(length), 1)
        estimated = teller.estimate_prompt(tally) * tally.prompt_tokens
        assert estimated == pytest.approx(tally.prompt_cycles, rel=0.04)
        total, expected = total + tally.prompt_cycles, expected + estimated
    assert expected == pytest.approx(total, rel=0.02)
    turns = turns_of(teller.config, teller.image.program)
    alone = [
        estimate(teller.model.config, CONFIG, at, sample=False, turns=turns) for at in range(ROWS)
    ]
    group = estimate(teller.model.config, CONFIG, 0, count=ROWS, sample=False, turns=turns)
    assert group.linear * ROWS == sum(one.linear for one in alone)
    assert group.cycles < 0.6 * sum(one.cycles for one in alone)


def test_a_new_text_and_a_reset_end_a_group_that_is_not_full(teller: Teller) -> None:
    one = teller.machine
    assert one.token(7, restart=True, sample=False) is None
    assert one.token(8, restart=False, sample=False) is None
    words = one.counts()["words"]
    told(teller, [4, 2], 6)
    assert one.counts()["words"] > words + teller.image.prefill_words
    for cycles in (1, 40, 150, 400, 800):
        assert one.token(7, restart=True, sample=False) is None
        with pytest.raises(machine.Stuck):
            one.token(9, restart=False, sample=True, limit=cycles)
        one.reset()
        told(teller, prompt_of(7), 3)


@pytest.mark.parametrize("memory", ["weights", "gains", "embedding"])
def test_a_stream_that_stops_is_named(teller: Teller, memory: str) -> None:
    one = teller.machine
    one.starve(memory)
    assert one.token(7, restart=True, sample=False) is None
    with pytest.raises(machine.Stuck, match=rf"it waits for {memory}$"):
        one.token(9, restart=False, sample=True, limit=2000)
    one.starve(None)
    one.reset()
    told(teller, prompt_of(5), 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(teller: Teller, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, tally = teller.machine, Tally()
    monkeypatch.setattr(one, "token", functools.partial(one.token, limit=5000))
    one.sampling(0, 1 + list(FAULTS).index(fault))
    before = one.counts()["gains"]
    try:
        list(teller.tell(prompt_of(5), 2, check_activations=True, tally=tally))
        passes = 3 * len(teller.image.gains) - CONFIG.dim // CONFIG.norm_lanes
        seen = bool(tally.wrong) or one.counts()["gains"] - before != passes
    except machine.Stuck:
        seen = True
    one.sampling(0, 0)
    one.reset()
    assert seen
    told(teller, prompt_of(5), 2)


def test_rows_that_cannot_be_are_refused() -> None:
    for config, changes, rule in (
        (EngineConfig, {"rows": 3}, "rows must be a power of two, not 3"),
        (EngineConfig, {"rows": 32}, r"rows must be in 1\.\.16, not 32"),
        (EngineConfig, {"rows": 8, "context": 4}, "rows must be at most context, 4, not 8"),
        (SequencerConfig, {"rows": 6}, "rows must be a power of two, not 6"),
        (SequencerConfig, {"rows": 4, "context": 2}, "rows must be at most context, 2, not 4"),
        (ResidualConfig, {"vectors": 3}, "vectors must be a power of two, not 3"),
    ):
        with pytest.raises(ConfigError, match=f"^{config.__name__}: {rule}$"):
            config.of({**config().values(), **changes})


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (2, {"packing": "trit5", "norm_lanes": 1, "head_lanes": 1}),
        (16, {}),
        (8, {"heads": 4, "slots": 4, "select": "lop", "keep": 4, "recent": 2}),
        (4, {"matvec": "booth", "gate": "silu"}),
    ],
)
def test_other_engines_tell_the_same(rows: int, changes: dict[str, Any]) -> None:
    config = EngineConfig.of({**TINY, **changes, "rows": rows})
    for overlap in (True, False):
        teller = Teller(compiled(config, 5)[0], config, overlap=overlap)
        for stalls in (0.0, 0.4):
            teller.machine.stall(stalls, 3)
            for length in (1, 5, 8, 16):
                tally = told(teller, prompt_of(length, config.vocab))
                if not stalls and overlap and tally.prompt:
                    assert teller.estimate_prompt(tally) * tally.prompt_tokens == pytest.approx(
                        tally.prompt_cycles, rel=0.06
                    )
        teller.close()


@pytest.mark.long
def test_rtl_with_rows_agrees_with_golden_model_at_its_ports() -> None:
    design = emit(blocks.find("engine"), EngineConfig.of({**TINY, "rows": 4}))
    outcome = simulate(design, transfers=1000)
    assert [(mode["first"], mode["untaken"]) for mode in outcome.modes] == [(None, 0)] * len(
        outcome.modes
    )


@pytest.mark.long
@pytest.mark.parametrize("rows", [2, 4])
def test_the_shipped_model_takes_the_cycles_that_are_estimated(rows: int) -> None:
    text = "Once upon a time there was a little girl who liked to play in the park with her dog"
    told_ = Story(text, tokens=2, check_activations=True, settings={"rows": rows})
    "".join(told_)
    tally, teller = told_.tally, told_.teller
    teller.close()
    assert tally.wrong == []
    assert tally.prompt_words == len(tally.prompt) * teller.image.prefill_words
    assert teller.estimate_prompt(tally) * tally.prompt_tokens == pytest.approx(
        tally.prompt_cycles, rel=0.01
    )
