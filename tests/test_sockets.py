# SPDX-License-Identifier: Apache-2.0
"""Every core of the matvec socket: random models told by the engine, every vector compared."""

import dataclasses
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atriplex.gen.engine import machine
from atriplex.gen.engine.story import Tally, Teller, config_for
from atriplex.rtl.config import ConfigError
from atriplex.rtl.engine.matvec import core, names
from atriplex.sim.engine.engine import random_model
from atriplex.sim.engine.generate import generate
from atriplex.sim.engine.image import DoesNotFit, check_fit, compile_image, packed_words, word_bytes
from atriplex.sim.engine.integer import IntegerModel
from atriplex.sim.engine.matvec import socket
from atriplex.sim.engine.model import Integer, ModelConfig, ModelError

SIZES = ModelConfig(
    dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=24, vocab=40, context=16
)
FORMATS = [(name, format_) for name in names() for format_ in core(name).FORMATS]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Builds that take seconds, for texts that take less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "OPTIMISED", "-O0")
        yield


def engine(matvec: str, **changes: Any) -> Any:
    return config_for(SIZES, **{
        "lanes": 8, "norm_lanes": 4, "head_lanes": 2, "matvec": matvec, **changes
    })  # fmt: skip


def compiled(config: Any, seed: int) -> IntegerModel:
    drawn = random_model(SIZES, np.random.default_rng(seed), socket(config).random)
    return IntegerModel.compile(socket(config).model(drawn))


@pytest.mark.parametrize("name", names())
def test_a_core_gives_every_vector_of_the_golden_model(name: str) -> None:
    config = engine(name)
    for seed in range(3):
        one, tally = Teller(compiled(config, seed), config), Tally()
        for stalls in (0.0, 0.3):
            one.machine.stall(stalls, 3)
            list(one.tell([1, 2, 3], 4, check_activations=True, tally=tally))
        one.close()
        assert tally.wrong == [] and tally.tokens == 8


@pytest.mark.long
@pytest.mark.parametrize(("name", "format_"), FORMATS)
def test_a_core_takes_each_of_its_formats(name: str, format_: str) -> None:
    config = engine(name, weights=format_)
    one, tally = Teller(compiled(config, 4), config), Tally()
    list(one.tell([1, 2, 3], 6, check_activations=True, tally=tally))
    one.close()
    assert tally.wrong == [] and tally.tokens == 6


def test_two_blocks_of_a_word_have_powers_of_their_own() -> None:
    config = engine("mx", lanes=64, weights="mxint4")
    one, tally = Teller(compiled(config, 4), config), Tally()
    list(one.tell([1, 2, 3], 6, check_activations=True, tally=tally))
    one.close()
    assert tally.wrong == [] and tally.tokens == 6


@pytest.mark.parametrize("name", names())
def test_a_ternary_model_tells_the_same_through_each_core(name: str) -> None:
    """The golden model of the engine with that core, not of the model as it was."""
    drawn = random_model(SIZES, np.random.default_rng(3))
    plain = IntegerModel.compile(drawn)
    for format_ in core(name).FORMATS:
        model = IntegerModel.compile(socket(engine(name, weights=format_)).model(drawn))
        assert list(generate(model, [1, 2], 10)) == list(generate(plain, [1, 2], 10))


def cli(*words: str) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "atriplex"), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize("name", names())
def test_one_line_of_a_file_chooses_the_core(name: str, tmp_path: Path) -> None:
    """Of the shipped model, and of the float one in the format that the core takes first."""
    (tmp_path / "engine.yaml").write_text(f"matvec: {name}\n")
    words = ("run", "Once upon a time", "--config", str(tmp_path / "engine.yaml"))
    command, prompt, *rest = words
    told = cli(command, "shipped", prompt, *rest, "--tokens", "8")
    assert told["wrong"] == []
    assert told["text"] == " there was a great deal of wood"[: len(told["text"])]
    told = cli(command, "shipped-float", prompt, *rest, "--tokens", "8")
    assert told["wrong"] == [] and told["text"]


@pytest.mark.parametrize("name", names())
def test_cycles_of_a_text_are_the_estimate(name: str) -> None:
    config = engine(name)
    one, tally = Teller(compiled(config, 5), config), Tally()
    list(one.tell([1, 2, 3], 8, tally=tally))
    assert abs(one.estimate(tally) / (tally.cycles / tally.tokens) - 1) < 0.02
    one.close()


@pytest.mark.parametrize("name", names())
def test_words_are_as_many_and_as_long_as_the_engine_is_told(name: str) -> None:
    config = engine(name)
    image = compile_image(compiled(config, 7), config)
    assert packed_words(image.weights, config).shape == (image.words, word_bytes(config))
    assert image.sampled_words == image.words


@pytest.mark.parametrize("name", names())
def test_a_changed_weight_changes_a_sum(name: str) -> None:
    """Every bit of a word that is one of a weight's counts: none is read from elsewhere."""
    config = engine(name)
    model = compiled(config, 9)
    one = Teller(model, config)
    weights = {field: values.copy() for field, values in one.image.weights.items()}
    (field,) = weights
    weights[field][3].flat[0] ^= 1
    broken = machine.Machine(
        machine.build(*design_of(config)), config, dataclasses.replace(one.image, weights=weights)
    )
    one.machine.close()
    one.machine, tally = broken, Tally()
    list(one.tell([1, 2], 3, check_activations=True, tally=tally))
    one.close()
    assert tally.wrong


def design_of(config: Any) -> Any:
    from atriplex.gen.engine.story import design_for

    return design_for(config), config


@pytest.mark.parametrize("name", names())
def test_a_core_and_its_packing_say_what_they_take(name: str) -> None:
    assert core(name).FORMATS
    for part in ("rtl", "sim"):
        module = importlib.import_module(f"atriplex.{part}.engine.matvec.{name}")
        assert inspect.getdoc(module)


def test_formats_that_no_core_takes_are_named() -> None:
    with pytest.raises(ConfigError, match="must be one of ternary with ternary, not 'int8'"):
        engine("ternary", weights="int8")
    with pytest.raises(ConfigError, match=r"matvec must be one of .*booth.*, not 'both'"):
        engine("both")
    codes = np.ones((2, 8), np.int8)
    for name in ("ternary", "fdb"):
        with pytest.raises(ModelError, match=f"the core {name} takes .*, not int8"):
            socket(engine(name)).taken(Integer(codes, 1.0))
    model = compiled(engine("booth"), 1)
    with pytest.raises(DoesNotFit, match=r"matvec=.* for weights of .* \(has fdb\)"):
        check_fit(model, engine("fdb"))
