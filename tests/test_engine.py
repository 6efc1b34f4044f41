# SPDX-License-Identifier: Apache-2.0
"""The engine against its golden model: texts, every vector, stalls, resets, streams that stop."""

import dataclasses
import json
import re
from collections.abc import Iterator

import pytest
from atriplex.fpga import boards, flow
from atriplex.gen import demo
from atriplex.gen.engine import appliance, machine, serial
from atriplex.gen.engine.story import Story, Tally, Teller, config_for
from atriplex.rtl.engine.engine import EngineConfig
from atriplex.sim.engine.engine import compiled
from atriplex.sim.engine.generate import generate
from atriplex.sim.engine.image import DoesNotFit, compile_image
from atriplex.sim.engine.integer import IntegerModel
from atriplex.sim.engine.timing import estimate

CONFIG = EngineConfig.of({**EngineConfig.preset("tiny").values(), "watchdog": 8})
PROMPTS = ([0], [3, 1, 4, 1, 5], [31, 30, 29])


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    return compiled(CONFIG, 3)[0]


@pytest.fixture(scope="module")
def teller(model: IntegerModel) -> Iterator[Teller]:
    one = Teller(model, CONFIG)
    yield one
    one.close()


@pytest.mark.parametrize("stalls", [0.0, 0.3, 0.8])
def test_every_vector_of_whole_texts_equals_the_golden_model(teller: Teller, stalls: float):
    teller.machine.stall(stalls, 7)
    for prompt in PROMPTS:
        tally = Tally()
        answers = list(teller.tell(prompt, 100, check_activations=True, tally=tally))
        assert tally.wrong == []
        assert answers == list(generate(teller.model, prompt, 100))
        assert len(answers) == CONFIG.context - len(prompt) + 1
    teller.machine.stall(0.0, 7)


def test_a_wrong_weight_is_found_where_it_was_used(model: IntegerModel):
    layer = model.layers[0]
    weight = layer.projections["attn_output"]
    columns = weight.columns.copy()
    columns[3, 5] = -1 if columns[3, 5] == 1 else columns[3, 5] + 1
    broken = dict(layer.projections, attn_output=dataclasses.replace(weight, columns=columns))
    other = dataclasses.replace(
        model, layers=(dataclasses.replace(layer, projections=broken), *model.layers[1:])
    )
    one = Teller(model, CONFIG)
    one.model, tally = other, Tally()
    list(one.tell([1, 2], 4, check_activations=True, tally=tally))
    one.close()
    assert re.match(
        r"token 0: blk.0.attn_output.(sums|out)\[5\] in cycle .* 1 of 16 are wrong", tally.wrong[0]
    )


def test_overlap_saves_cycles_and_changes_no_token(model: IntegerModel, teller: Teller):
    apart = Teller(model, CONFIG, overlap=False)
    tallies = Tally(), Tally()
    texts = [
        list(one.tell([1], 12, check_activations=True, tally=tally))
        for one, tally in zip((teller, apart), tallies, strict=True)
    ]
    apart.close()
    assert texts[0] == texts[1]
    assert tallies[0].wrong == tallies[1].wrong == []
    assert tallies[0].cycles < tallies[1].cycles


def test_estimates_are_near_the_simulation(teller: Teller):
    tally = Tally()
    list(teller.tell([1], CONFIG.context, tally=tally))
    assert teller.estimate(tally) * tally.tokens == pytest.approx(tally.cycles, rel=0.01)
    fewer = estimate(teller.model.config, CONFIG, 3, sample=False)
    assert fewer.cycles < estimate(teller.model.config, CONFIG, 3).cycles


def test_reset_in_mid_token_and_the_next_text_is_right(teller: Teller):
    whole = list(generate(teller.model, [4, 2], 6))
    for cycles in (1, 17, 90, 250, 500):
        with pytest.raises(machine.Stuck):
            teller.machine.token(9, restart=True, sample=True, limit=cycles)
        teller.machine.reset()
        tally = Tally()
        assert list(teller.tell([4, 2], 6, check_activations=True, tally=tally)) == whole
        assert tally.wrong == []


@pytest.mark.parametrize("memory", ["weights", "gains", "embedding"])
def test_a_stream_that_stops_is_named_and_goes_on_when_it_does(teller: Teller, memory: str):
    teller.machine.starve(memory)
    with pytest.raises(machine.Stuck, match=rf"it waits for {memory}$"):
        teller.machine.token(9, restart=True, sample=True, limit=5000)
    teller.machine.starve(None)
    teller.machine.reset()
    assert list(teller.tell([4, 2], 6)) == list(generate(teller.model, [4, 2], 6))


def test_the_watchdog_tells_a_stream_that_stops_from_a_slow_one(teller: Teller):
    one = teller.machine
    one.stall(0.9, 5)
    assert list(teller.tell([4, 2], 3)) == list(generate(teller.model, [4, 2], 3))
    assert not one.status()["stuck"]
    one.stall(0.0, 5)
    one.starve("weights")
    with pytest.raises(machine.Stuck):
        one.token(9, restart=True, sample=True, limit=1000)
    assert one.status() == {
        **dict.fromkeys(("program", "gains", "embedding", "choice", "taker"), 0),
        **{"weights": 1, "stuck": 1},
    }
    one.starve(None)
    one.reset()
    assert not one.status()["stuck"]


def test_drawn_tokens_are_the_golden_samplers(model: IntegerModel, teller: Teller):
    hot = model.at_temperature(1.5)
    one = Teller(hot, CONFIG)
    one.draw(5, seed=11)
    tally = Tally()
    drawn = list(one.tell([1], 14, check_activations=True, tally=tally))
    one.close()
    assert tally.wrong == []
    assert len(drawn) == 14 != len(set(drawn) | {-1})
    assert drawn != list(generate(model, [1], 14))


def test_models_that_do_not_fit_are_refused_with_what_they_need(model: IntegerModel):
    small = dataclasses.replace(CONFIG, hidden=16, vocab=16, program=8)
    with pytest.raises(DoesNotFit, match=r"hidden=32 \(has 16\), vocab=32 \(has 16\), program=17"):
        compile_image(model, small)


def test_the_appliance_answers_on_its_serial_line(model: IntegerModel):
    config = dataclasses.replace(CONFIG, packing="trit5")
    design = appliance.design(config, compile_image(model, config), 8, apart=False)
    line = serial.Line(serial.build(design, 8))
    tally = Tally()
    for prompt in ([3, 1, 4], [2]):
        answers = list(serial.tell(line, model, prompt, 5, tally))
        assert answers == list(generate(model, prompt, 5))
    line.close()
    assert tally.wrong == []
    assert tally.checked == 12


def test_memories_of_an_appliance_are_files_of_all_their_words(model: IntegerModel):
    design = appliance.design(CONFIG, compile_image(model, CONFIG), 8)
    whole = appliance.design(CONFIG, compile_image(model, CONFIG), 8, apart=False)
    assert not whole.data
    words = [text.split() for text in design.data.values()]
    assert compile_image(model, CONFIG).words in map(len, words)
    assert sum(map(len, words)) == whole.text.count("] = ") - design.text.count("] = ")


@pytest.mark.long
def test_the_netlist_of_a_board_tells_the_same_text(model: IntegerModel):
    config = dataclasses.replace(CONFIG, packing="trit5")
    board, design = (
        boards.board("ulx3s-85f"),
        appliance.design(config, compile_image(model, config), 8),
    )
    netlist = flow.board_netlist(design, board, board.clock_mhz)
    cells = [path.read_text() for path in flow.cell_models(board.family)]
    line, tally = serial.Line(serial.build(design, 8, [*cells, netlist])), Tally()
    assert list(serial.tell(line, model, [3, 1, 4], 10, tally)) == list(
        generate(model, [3, 1, 4], 10)
    )
    line.close()
    assert tally.wrong == []


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    story = Story("Once upon a time", tokens=12, check_activations=True)
    yield story
    story.teller.close()


def test_the_shipped_model_runs_at_the_promised_utilisation(shipped: Story):
    assert shipped.config == config_for(shipped.teller.model.config)
    text = "".join(shipped)
    tally = shipped.tally
    assert tally.wrong == []
    assert tally.tokens == 12
    assert text.strip()
    assert tally.utilisation > 0.93
    assert shipped.teller.estimate(tally) == pytest.approx(tally.cycles / 12, rel=0.01)


def test_the_demo_tells_its_tale():
    tale = demo.tale(demo.PROMPT, 2)
    assert "".join(tale)
    assert (tale.tally.wrong, tale.tally.tokens) == ([], 2)
    tale.teller.close()


@pytest.mark.long
@pytest.mark.parametrize("prompt", ["Once upon a time", "The fox said", ""])
@pytest.mark.parametrize("stalls", [0.0, 0.2])
def test_texts_of_the_whole_context_are_equal_in_every_vector(prompt: str, stalls: float):
    story = Story(prompt, tokens=256, check_activations=True, stalls=stalls)
    "".join(story)
    story.teller.close()
    assert story.tally.wrong == []
    assert story.tally.checked == 256
    if not stalls:
        assert story.teller.estimate(story.tally) == pytest.approx(
            story.tally.cycles / story.tally.tokens, rel=0.01
        )


@pytest.mark.long
def test_at_context_128_most_cycles_use_weights(shipped: Story):
    teller, shares = shipped.teller, {}
    for position in range(128):
        before = teller.machine.counts()
        teller.machine.token(position % 500, restart=position == 0, sample=True)
        after = teller.machine.counts()
        shares[position] = (after["linear"] - before["linear"]) / (
            after["cycles"] - before["cycles"]
        )
    assert min(shares.values()) >= 0.93


@pytest.mark.long
def test_the_simulation_is_nearly_as_fast_as_the_bare_model(shipped: Story):
    figures = machine.speed(shipped.teller.machine)
    assert figures["share"] >= 0.8
    json.dumps(figures)
