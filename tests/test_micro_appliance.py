# SPDX-License-Identifier: Apache-2.0
"""The micro engine on a board: its model in a flash, its host on a serial line."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from atriplex.fpga import flow, shell
from atriplex.fpga.boards import board
from atriplex.gen.engine import appliance, micro, serial
from atriplex.gen.engine.machine import Stuck
from atriplex.gen.engine.story import Tally
from atriplex.gen.model.generate import shipped
from atriplex.gen.verilog import Design
from atriplex.rtl.engine.micro_engine import MicroEngineConfig
from atriplex.rtl.errors import AtriplexError
from atriplex.sim.engine.engine import random_model
from atriplex.sim.engine.image import DoesNotFit
from atriplex.sim.engine.integer import IntegerModel
from atriplex.sim.engine.model import ModelConfig
from atriplex.sim.engine.store import compile_store

CONFIG = MicroEngineConfig(store=8192, local=256, longest=32)
SIZES = ModelConfig(
    dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=32, vocab=300, context=8
)
CLOCKS = 4
"""Of a bit of the serial line."""


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    return IntegerModel.compile(random_model(SIZES, np.random.default_rng(5)))


@pytest.fixture(scope="module")
def design(model: IntegerModel) -> Design:
    return micro.design(CONFIG, compile_store(model, CONFIG).words, CLOCKS)


@pytest.fixture(scope="module")
def library(design: Design) -> Path:
    return serial.build(design, CLOCKS)


@pytest.fixture
def line(library: Path, design: Design) -> Iterator[serial.Line]:
    found = serial.Line(library, (micro.ADDRESS, design.beside[micro.IMAGE]))
    yield found
    found.close()


def test_tokens_of_a_model_in_flash_are_the_golden_models(line: serial.Line, model: IntegerModel):
    tally = Tally()
    prompt = [290, 3, 17]  # one of them has a high byte
    assert len(list(serial.tell(line, model, prompt, 4, tally))) == 4
    assert (tally.tokens, tally.checked, tally.wrong) == (4, 6, [])
    again = Tally()
    assert len(list(serial.tell(line, model, [5], 2, again))) == 2, "another text"
    assert again.wrong == []


@pytest.mark.parametrize("first", [0, micro.ADDRESS + 2], ids=["elsewhere", "without its magic"])
def test_nothing_is_answered_while_there_is_no_model(
    library: Path, design: Design, first: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serial, "LIMIT", 1 << 18)
    line = serial.Line(library, (first, design.beside[micro.IMAGE]))
    with pytest.raises(Stuck, match="no answer within 262144 cycles"):
        line.token(3, restart=True, sample=True)
    line.close()


def test_the_flash_image_says_what_and_how_much_it_is(design: Design, model: IntegerModel):
    image = np.frombuffer(design.beside[micro.IMAGE], "<u2")
    assert design.beside[micro.IMAGE][:2] == b"AX"
    assert image[1] == len(image) - 2
    np.testing.assert_array_equal(image[2:], compile_store(model, CONFIG).words)


def test_icebreaker_has_its_flash_on_the_shell(design: Design):
    wanted = board("icebreaker")
    text = shell.verilog(design, wanted, 12.0)
    assert "output flash_clk" in text and ".flash_cipo(flash_cipo)" in text
    pins = wanted.pins([port.name for port in design.ports])
    assert {name: pin.name for name, pin in pins.items() if name.startswith("flash")} == {
        "flash_clk": "15",
        "flash_cs": "16",
        "flash_copi": "14",
        "flash_cipo": "17",
    }
    assert "flash_clk" not in wanted.pins(["clk", "host_in", "host_out"])


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(AtriplexError, match=r"^ulx3s-85f has no flash that the micro engine"):
        micro.for_board(board("ulx3s"), 25.0)
    with pytest.raises(DoesNotFit, match=r"needs store=\d+ \(has 65536\).*or a shorter context"):
        micro.for_board(board("icebreaker"), 12.0, shipped())
    with pytest.raises(DoesNotFit, match=r"block RAMs of icebreaker's 30 .*, or micro_engine"):
        appliance.for_board(board("icebreaker"), 12.0)
    with pytest.raises(AtriplexError, match=r"^a model goes into engine or micro_engine, not"):
        serial.appliance_for("residual")


def test_the_small_model_keeps_its_context_on_icebreaker():
    given = {"store": 1 << 15}
    with pytest.raises(DoesNotFit):
        micro.for_board(board("icebreaker"), 12.0, settings=given)
    made, model, _ = micro.for_board(board("icebreaker"), 12.0)
    assert model.config.context == 128
    assert made.beside[micro.IMAGE]
    with pytest.raises(DoesNotFit, match="store="):
        micro.for_board(board("icebreaker"), 12.0, settings={**given, "context": 64})


@pytest.mark.long
def test_the_small_model_is_told_by_icebreakers_netlist():
    wanted = board("icebreaker")
    story = serial.LineStory("Once upon a time", wanted, 12.0, block="micro_engine", tokens=16)
    assert "".join(story).strip()
    assert (story.tally.tokens, story.tally.wrong) == (16, [])


@pytest.mark.long
def test_it_fits_icebreaker_at_its_clock(tmp_path: Path):
    wanted = board("icebreaker")
    made = micro.for_board(wanted, wanted.clock_mhz)[0]
    report = flow.build(made, wanted, tmp_path / "out")
    assert report.met
    assert report.lut < 2600
    assert (tmp_path / "out" / micro.IMAGE).read_bytes() == made.beside[micro.IMAGE]
