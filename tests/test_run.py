# SPDX-License-Identifier: Apache-2.0
"""Models of other programs on the engine: integers on the Booth core, SiLU, no sub-norms."""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atriplex.gen.checkpoints.models import runnable, with_round_heads
from atriplex.gen.engine import machine
from atriplex.gen.engine.story import Story, Tally, Teller, config_for
from atriplex.rtl.config import ConfigError
from atriplex.rtl.engine._program import Mode
from atriplex.rtl.engine.engine import EngineConfig
from atriplex.sim.engine import image
from atriplex.sim.engine.image import DoesNotFit, check_fit, compile_image
from atriplex.sim.engine.integer import IntegerModel
from atriplex.sim.engine.matvec import socket
from atriplex.sim.engine.model import (
    Embedding,
    Integer,
    Matrix,
    Model,
    ModelConfig,
    Ternary,
    expected_shapes,
)
from atriplex.sim.engine.reference import Reference
from numpy.typing import NDArray

SIZES = ModelConfig(
    dim=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=8,
    hidden=24,
    vocab=40,
    context=8,
    gate="silu",
    sub_norms=False,
)
CONFIG = config_for(SIZES, lanes=8, norm_lanes=4, head_lanes=2, matvec="booth")
MIXED = (2, 8, 4)


def random_model(bits: tuple[int, ...], seed: int = 0, **changes: Any) -> Model:
    """Matrices of ``bits`` in turn, with all codes that there are."""
    rng, config = np.random.default_rng(seed), dataclasses.replace(SIZES, **changes)
    tensors: dict[str, Any] = {}
    for index, (name, shape) in enumerate(expected_shapes(config).items()):
        width, top = bits[index % len(bits)], 1 << bits[index % len(bits)] - 1
        if name == "token_embd.weight":
            tensors[name] = Embedding(rng.integers(-127, 128, shape).astype(np.int8), 0.01)
        elif len(shape) == 1:
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif width == 2:
            tensors[name] = Ternary(rng.integers(-1, 2, shape).astype(np.int8), 0.2)
        else:
            codes = rng.integers(-top, top, shape).astype(np.int8)
            tensors[name] = Integer(codes, 0.3 / top, width)
    return Model.from_tensors(config, tensors)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Builds that take seconds, for texts that take less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "OPTIMISED", "-O0")
        yield


def told(model: Model, stalls: float, config: EngineConfig = CONFIG) -> Tally:
    """What a text took of which every vector is compared."""
    teller, tally = Teller(IntegerModel.compile(model), config), Tally()
    teller.machine.stall(stalls, 5)
    list(teller.tell([1, 2, 3], 6, check_activations=True, tally=tally))
    teller.close()
    assert tally.wrong == []
    assert tally.checked == min(8, model.config.context)
    if not stalls:
        assert teller.estimate(tally) * tally.tokens == pytest.approx(tally.cycles, rel=0.01)
    return tally


@pytest.mark.parametrize("stalls", [0.0, 0.4])
def test_integers_of_all_widths_equal_the_golden_model(stalls: float) -> None:
    tallies = {bits: told(random_model(bits, 1), stalls) for bits in [(2,), (4,), (8,), MIXED]}
    lanes, words = CONFIG.lanes, {}
    for bits, tally in tallies.items():
        assert tally.linear == tally.limit
        words[bits] = tally.bytes_moved["weights"] // (lanes // 4)
    # Four ternary products in the time of one of 8 bits, and the bytes of as many bits.
    assert tallies[8,].linear == tallies[4,].linear == 4 * tallies[2,].linear
    assert words[8,] == 2 * words[4,] == 4 * words[2,]
    assert tallies[2,].linear < tallies[MIXED].linear < tallies[8,].linear


def test_a_tied_head_and_sub_norms_run_on_the_same_engine() -> None:
    told(random_model(MIXED, 2, tied=True, context=7), 0.2)  # less than the engine has
    told(random_model(MIXED, 3, sub_norms=True), 0.2)


@pytest.mark.long
def test_ternary_core_runs_other_sizes_with_silu() -> None:
    changes = {"dim": 36, "heads": 3, "head_dim": 16, "hidden": 20, "vocab": 33, "context": 9}
    for sub_norms in (False, True):
        model = random_model((2,), 4, layers=2, sub_norms=sub_norms, **changes)
        told(model, 0.3, config_for(model.config, lanes=16, packing="trit5"))


def write_v0(path: Path, config: ModelConfig, seed: int) -> Path:
    """A llama2.c file with a tied head, in float32, and its vocabulary beside it."""
    rng, c = np.random.default_rng(seed), config
    header = (c.dim, c.hidden, c.layers, c.heads, c.kv_heads, c.vocab, c.context)
    shapes = [(c.vocab, c.dim), (c.dim,), (c.dim, c.dim), (c.kv_dim, c.dim), (c.kv_dim, c.dim)]
    shapes += [(c.dim, c.dim), (c.dim,), (c.hidden, c.dim), (c.dim, c.hidden), (c.hidden, c.dim)]
    shapes += [(c.dim,), (c.context * c.head_dim,)]
    values = [rng.normal(size=shape).astype("<f4").tobytes() for shape in shapes]
    path.write_bytes(struct.pack("<7i", *header) + b"".join(values))
    pieces = ["<unk>", "<s>", "</s>", " ", *map(chr, range(ord("a"), ord("z") + 1))]
    pieces += ["the", "th", " a", " t", "an", "and", "\u00e9", "\u2019", ".", "he"]
    table = struct.pack("<i", 8)
    for index, piece in enumerate(piece.encode() for piece in pieces):
        table += struct.pack("<fi", -float(index), len(piece)) + piece
    (path.parent / "tokenizer.bin").write_bytes(table)
    return path


def test_text_of_a_float_checkpoint_comes_out_of_the_hardware(tmp_path: Path) -> None:
    found = runnable(write_v0(tmp_path / "m.bin", SIZES, 5))
    assert found.model.config == dataclasses.replace(SIZES, tied=True)
    settings = {"lanes": 8, "norm_lanes": 4, "head_lanes": 2}
    text = Story("the", found=found, tokens=5, settings=settings, check_activations=True)
    assert text.config == CONFIG
    pieces = list(text)
    text.teller.close()
    assert text.tally.wrong == []
    assert text.tally.tokens == 5
    start = len(found.tokenizer.encode("the", bos=True))
    assert "the" + "".join(pieces) == found.tokenizer.decode(text.ids)
    model, answers = IntegerModel.compile(found.model), []
    state, given = model.start(), text.ids[:start]
    for _ in range(5):
        answers.append(int(model.forward(np.array(given), state).greedy()[-1]))
        given = answers[-1:]
    assert text.ids[start:] == answers


@pytest.mark.parametrize(
    ("bits", "changes"),
    [
        *((bits, {}) for bits in [(2,), (4,), (8,), MIXED]),
        *((bits, {"sub_norms": True}) for bits in [(2,), MIXED]),
        (MIXED, {"tied": True}),
        ((8,), {"gate": "relu2", "sub_norms": True}),
    ],
)
def test_integer_model_is_close_to_the_float_reference(
    bits: tuple[int, ...], changes: dict[str, Any]
) -> None:
    model = random_model(bits, 6, dim=64, hidden=96, layers=2, context=32, **changes)
    tokens = np.random.default_rng(6).integers(0, SIZES.vocab, 32)
    golden, reference = IntegerModel.compile(model), Reference(model)
    found = golden.forward(tokens, golden.start()).real
    exact = reference.forward(tokens, reference.start()).real
    scatter = exact.std()
    assert np.abs(found - exact).max() < 0.35 * scatter
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.05 * scatter


@pytest.mark.parametrize("sub_norms", [False, True])
def test_heads_filled_up_to_a_power_of_two_change_nothing(sub_norms: bool) -> None:
    sizes = {"dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 12, "hidden": 96, "layers": 2}
    model = random_model(MIXED, 8, context=32, sub_norms=sub_norms, **sizes)
    other = with_round_heads(model)
    assert other.config.head_dim == 16 and with_round_heads(other) is other
    tokens = np.random.default_rng(8).integers(0, SIZES.vocab, 32)
    exact, found = (
        one.forward(tokens, one.start()).real
        for one in (Reference(model, quantise=False), Reference(other, quantise=False))
    )
    assert np.abs(found - exact).max() < 1e-3 * exact.std()
    golden = IntegerModel.compile(other)
    found = golden.forward(tokens, golden.start()).real
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.07 * exact.std()


def test_words_hold_the_weights_in_the_order_of_their_turns() -> None:
    row = np.arange(-8, 8, dtype=np.int8)[None]
    packing = socket(CONFIG)

    def words(matrix: Matrix, mode: Mode) -> NDArray[np.uint8]:
        assert packing.mode(matrix) == mode
        return image.packed_words(packing.words(matrix, mode), CONFIG)

    assert words(Integer(row, 1.0), Mode.INT8).view(np.int8).tolist() == [
        *([-8, -4], [-7, -3], [-6, -2], [-5, -1]),
        *([0, 4], [1, 5], [2, 6], [3, 7]),
    ]
    found = words(Integer(row, 1.0, 4), Mode.INT4)
    assert [[f"{byte:02x}" for byte in word] for word in found] == [
        *(["98", "dc"], ["ba", "fe"]),
        *(["10", "54"], ["32", "76"]),
    ]
    trits = Ternary(np.array([[0, 1, -1, 0, 0, 0, 0, 1]], np.int8), 1.0)
    assert words(trits, Mode.TERNARY).tolist() == [[0b00110100, 0b01000000]]


def test_a_model_that_does_not_fit_is_told_what_would_do() -> None:
    model = IntegerModel.compile(random_model((8,)))
    check_fit(model, CONFIG)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dim": 8, "hidden": 16}, r"dim=16 \(has 8\), hidden=24 \(has 16\)"),
        ({"heads": 1}, r"heads=2 \(has 1\)"),
        ({"context": 4}, r"context=8 \(has 4\)"),
        ({"vocab": 39}, r"vocab=40 \(has 39\)"),
        ({"program": 16}, r"program=17 \(has 16\)"),
        ({"head_dim": 16}, r"head_dim=8 \(has 16\)"),
        ({"gate": "relu2"}, r"gate=silu \(has relu2\)"),
        ({"norm_lanes": 6, "dim": 24, "lanes": 8}, "norm_lanes that divides dim=16"),
        ({"matvec": "ternary"}, r"matvec=booth.* for weights of int8 \(has ternary\)"),
        ({"memory": 2}, r"memory=4 \(has 2\)"),
    ]
    for changes, rule in cases:
        with pytest.raises(
            DoesNotFit, match=f"^the model does not fit the engine; it needs.*{rule}"
        ):
            check_fit(model, dataclasses.replace(CONFIG, **changes))
    with pytest.raises(DoesNotFit, match="precision"):
        check_fit(model, dataclasses.replace(CONFIG, select="lop", keep=4))
    with pytest.raises(DoesNotFit, match=r"the eps of blk\.0's attn_norm does not fit"):
        check_fit(IntegerModel.compile(random_model((2,), eps=1e4)), CONFIG)
    with pytest.raises(ConfigError, match="packing must be trit2 with booth"):
        dataclasses.replace(CONFIG, packing="trit5")
    with pytest.raises(ConfigError, match="head_dim must be a power of two, not 12"):
        dataclasses.replace(CONFIG, head_dim=12)
    with pytest.raises(ConfigError, match="lanes must be at least 8 with booth"):
        dataclasses.replace(CONFIG, lanes=4)


@pytest.mark.parametrize(("bits", "packing"), [((2,), "trit5"), ((2,), "trit2"), (MIXED, "trit2")])
def test_the_memory_that_a_model_needs_is_that_of_its_image(
    bits: tuple[int, ...], packing: str
) -> None:
    model = IntegerModel.compile(random_model(bits, 7, sub_norms=True))
    matvec = "ternary" if packing == "trit5" else "booth"
    config = dataclasses.replace(CONFIG, packing=packing, matvec=matvec)
    made = compile_image(model, config)
    assert image.sizes(model, config) == {
        "weights": image.packed_words(made.weights, config).nbytes,
        "gains": made.gains.nbytes,
        "embedding": made.embedding.nbytes,
    }
