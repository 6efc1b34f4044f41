# SPDX-License-Identifier: Apache-2.0
"""The micro engine: assembler, compiler, models of several shapes, corners of arithmetic."""

import dataclasses
import functools
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import Design, emit
from atriplex.rtl.engine._microcode import (
    ARGUMENT,
    INSTRUCTION,
    Microcode,
    MicrocodeError,
    Op,
    Register,
    Source,
    assemble,
)
from atriplex.rtl.engine._routines import VARIABLES, microcode
from atriplex.rtl.engine.micro_engine import MicroEngineConfig
from atriplex.sim.engine import micro_engine as golden
from atriplex.sim.engine.engine import random_model
from atriplex.sim.engine.image import DoesNotFit
from atriplex.sim.engine.integer import IntegerModel, Precision, Trace
from atriplex.sim.engine.matvec._socket import random_integers, random_trits
from atriplex.sim.engine.model import ModelConfig
from atriplex.sim.engine.store import compile_store
from atriplex.sim.run import Outcome, simulate
from atriplex.sim.types import Streams

CONFIG = MicroEngineConfig.preset("tiny")
TOP = (1 << 17) - 1


@functools.cache
def design() -> Design:
    return emit(blocks.find("micro_engine"), CONFIG)


# The assembler.


def fields(code: Microcode) -> list[tuple[int, ...]]:
    """Operation, source, argument and tap flag of each instruction."""
    return [
        tuple(
            word >> INSTRUCTION[name].offset & (1 << INSTRUCTION[name].width) - 1
            for name in ("op", "source", "argument", "tap")
        )
        for word in code.words
    ]


@pytest.mark.parametrize(
    ("line", "op", "source", "argument"),
    [
        ("ld #5", Op.LD, Source.NUMBER, 5),
        ("ld #-1", Op.LD, Source.NUMBER, 0xFFF),
        ("add one", Op.ADD, Source.LOCAL, 0),
        ("mul two", Op.MUL, Source.LOCAL, 1),
        ("mac [i2]", Op.MAC, Source.INDEXED, 2),
        ("st [i3+]", Op.ST, Source.INDEXED, 7),
        ("ld uthread", Op.LD, Source.THREAD, 1),
        ("ldx byte+", Op.LDX, Source.DATA, 4),
        ("st word+", Op.ST, Source.DATA, 5),
        ("add table", Op.ADD, Source.DATA, 11),
        ("ld sample", Op.LD, Source.TOKEN, 2),
        ("rnd n", Op.RND, Source.REGISTER, 0),
        ("shr #63", Op.SHR, Source.NUMBER, 63),
        ("div #25", Op.DIV, Source.NUMBER, 25),
        ("set p1, a", Op.SET + Register.P1, Source.REGISTER, 0),
        ("loop c2, here", Op.LOOP + 2, Source.NUMBER, 1),
        ("brn here", Op.BRN, Source.NUMBER, 1),
        ("mvx", Op.MVX, Source.NUMBER, 0),
    ],
)
def test_an_instruction_is_its_fields(line: str, op: int, source: int, argument: int):
    code = assemble(f"ret\nhere: {line} ; {line}\n{line} !", ["one", "two"])
    assert fields(code) == [
        (Op.RET, 0, 0, 0),
        (op, source, argument, 0),
        (op, source, argument, 1),
    ]
    assert code.labels == {"here": 1}
    assert code.local == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("lda #1", "no instruction 'lda'; is it ld?"),
        ("!", "no instruction ''"),
        ("ld fifteem", "no operand 'fifteem'; is it fifteen?"),
        ("ld n", "no operand 'n'"),
        ("ld #x", "#x is no number"),
        ("ld [i4]", "no index register 'i4'"),
        ("ld [i1", r"\[i1 is no operand"),
        ("ld", "ld takes 1 operands, not 0"),
        ("mvx #1", "mvx takes 0 operands, not 1"),
        ("set n", "set takes 2 operands, not 1"),
        ("set c4, #1", "no register 'c4'"),
        ("loop p0, start", "no counter 'p0'"),
        ("jmp begin", "no label 'begin'"),
        ("jmp far", "the jump's target must be in 0..4095, not 4096"),
        ("loop c0, far", "the jump's target must be in 0..4095, not 4096"),
        ("ld #2048", r"the number must be in -2048..2047, not 2048"),
        ("ld #-2049", r"the number must be in -2048..2047, not -2049"),
        ("shr #64", r"shr takes a number in 0..63, not #64"),
        ("rnd fifteen", r"rnd takes a number in 0..63, not fifteen"),
        ("div #26", r"div takes a number in 1..25, not #26"),
        ("div #0", r"div takes a number in 1..25, not #0"),
        ("st #1", "nothing is stored in #1"),
        ("st thread", "nothing is stored in thread"),
    ],
)
def test_what_is_no_instruction_is_an_error_that_names_its_line(line: str, sentence: str):
    text = f"start:\n{line}\n" + "ret\n" * (1 << ARGUMENT) + "far: ret"
    text = text if " far" in line else f"start:\n{line}\n"
    with pytest.raises(MicrocodeError, match=rf"^microcode, line 2, .*: {sentence}"):
        assemble(text.replace("ret\n", "", 1), ["fifteen"])


def test_names_are_told_apart_and_have_their_place():
    with pytest.raises(MicrocodeError, match="'one' is the name of two operands"):
        assemble("", ["one", "two", "one"])
    with pytest.raises(MicrocodeError, match="'sum' is the name of two operands"):
        assemble("", ["sum"])
    with pytest.raises(MicrocodeError, match="line 2: label 'here' is there twice"):
        assemble("here: ret\nhere: ret", [])
    with pytest.raises(MicrocodeError, match=r"local memory must be in 0\.\.4095, not 4096"):
        assemble("ld last", [*(f"v{at}" for at in range(1 << ARGUMENT)), "last"])


def test_blocks_begin_at_labels_and_behind_what_may_jump():
    code = assemble("a: ld #1\nbrn b\nadd #2\nret\nb: loop c0, b\ncode\ngo a", [])
    ops = {name: [each["op"] for each in block] for name, block in code.blocks().items()}
    assert ops == {
        "a": [Op.LD, Op.BRN],
        "a.1": [Op.ADD, Op.RET],
        "b": [Op.LOOP],
        "b.1": [Op.CODE, Op.GO],
    }


def test_all_words_of_the_microcode_are_in_blocks_and_all_its_names_are_used():
    code = microcode()
    assert sum(map(len, code.blocks().values())) == len(code.words)
    used = {argument for op, source, argument, _ in fields(code) if source == Source.LOCAL}
    assert [name for at, name in enumerate(VARIABLES) if at not in used] == []


# The compiler.


def sizes(**changes: object) -> ModelConfig:
    return dataclasses.replace(golden.SIZES, **changes)


def compiled(config: ModelConfig, integers: bool = False) -> IntegerModel:
    draw = partial(random_integers, bits=8) if integers else random_trits
    return IntegerModel.compile(random_model(config, np.random.default_rng(3), draw))


@pytest.mark.parametrize(
    ("changes", "config", "sentence"),
    [
        ({"gate": "silu", "sub_norms": False}, {}, "needs a gate of relu2, not silu"),
        ({"dim": 20}, {}, "needs dim a multiple of 8 from 16 on, not 20"),
        ({"dim": 8}, {}, "needs dim a multiple of 8 from 16 on, not 8"),
        ({"hidden": 36}, {"longest": 64}, "needs hidden a multiple of 8 from 16 on, not 36"),
        ({"heads": 2}, {}, r"needs heads \* head_dim a multiple of 8 from 16 on, not 8"),
        ({"hidden": 40, "dim": 48}, {}, r"needs longest=48 \(has 32\)"),
        ({"context": 2048}, {}, "needs context of at most 2047, not 2048"),
        ({"vocab": 4096}, {}, "needs vocab of at most 4095, not 4096"),
        ({"head_dim": 258}, {"longest": 4096}, "needs head_dim of at most 256, not 258"),
        ({"layers": 12}, {}, r"needs store=\d+ \(has 4096\), or a shorter context than 8$"),
        ({"context": 200}, {}, r"needs store=\d+ \(has 4096\), or a shorter context than 200$"),
        ({}, {"local": 128}, r"needs local=256 \(has 128\), or a shorter context"),
        (
            {"gate": "silu", "dim": 20, "sub_norms": False},
            {},
            "needs a gate of relu2, not silu, dim a multiple of 8 from 16 on, not 20$",
        ),
    ],
)
def test_models_that_it_does_not_take_are_refused_in_a_sentence(
    changes: dict[str, object], config: dict[str, int], sentence: str
):
    with pytest.raises(DoesNotFit, match=sentence):
        compile_store(compiled(sizes(**changes)), dataclasses.replace(CONFIG, **config))


def test_integers_another_precision_and_a_large_eps_are_refused():
    with pytest.raises(DoesNotFit, match="needs ternary weights, not int8"):
        compile_store(compiled(golden.SIZES, integers=True), CONFIG)
    model = compiled(golden.SIZES)
    other = dataclasses.replace(model, precision=Precision(select_k=4))
    with pytest.raises(DoesNotFit, match="another precision, or selection of tokens"):
        compile_store(other, CONFIG)
    norm = dataclasses.replace(model.output_norm, eps=1 << 32)
    with pytest.raises(DoesNotFit, match="the eps of output_norm does not fit"):
        compile_store(dataclasses.replace(model, output_norm=norm), CONFIG)


def test_a_model_that_just_fits_is_taken():
    image = compile_store(compiled(golden.SIZES), CONFIG)
    exact = MicroEngineConfig(store=4096, local=256, longest=32)
    assert len(compile_store(compiled(golden.SIZES), exact).words) == len(image.words)
    keys = golden.SIZES.layers * golden.SIZES.kv_heads * golden.SIZES.context
    assert image.used - len(image.words) == keys * (golden.SIZES.head_dim + 3)


# The engine.


def run(inputs: Streams, *modes: str) -> Outcome:
    outcome = simulate(design(), inputs=inputs, modes=modes or ["free"])
    assert list(outcome.complaints()) == []
    return outcome


def text(seed: int, tokens: list[int], restart: tuple[int, ...] = ()) -> Streams:
    """The image of the model of ``seed`` and ``tokens``, all of them answered."""
    inputs = golden.texts(CONFIG, np.random.default_rng(seed), 0, seed)
    inputs["token_i"] = {
        "token": np.array(tokens),
        "restart": np.isin(np.arange(len(tokens)), restart),
        "sample": np.ones(len(tokens), bool),
    }
    return inputs


def traces(inputs: Streams, seed: int) -> list[Trace]:
    """The golden model's of every token."""
    model = golden.compiled(CONFIG, seed)[0]
    found, state, given = [], model.start(), inputs["token_i"]
    for token, restart in zip(given["token"], given["restart"], strict=True):
        state = model.start() if restart else state
        if state.length < model.config.context:
            found.append({})
            model.forward(np.array([token]), state, found[-1])
    return found


FIT = [c for c in golden.SHAPES if max(c.dim, c.q_dim, c.hidden) <= CONFIG.longest]


def seeds(shape: int) -> int:
    """A seed, not that of the generic bench, of a model of this shape."""
    return 3 * len(FIT) + shape


@pytest.mark.parametrize("shape", [0, 1, pytest.param(2, marks=pytest.mark.long)])
def test_models_of_every_shape_are_bit_equal(shape: int):
    assert golden.compiled(CONFIG, seeds(shape))[0].config == FIT[shape]
    run(text(seeds(shape), [7, 3, 15]))


def test_shapes_differ_in_what_the_image_says():
    assert {c.sub_norms for c in FIT} == {True, False}
    assert {c.heads // c.kv_heads for c in FIT} == {1, 2}
    assert len({c.head_dim for c in FIT}) == len({c.hidden for c in FIT}) == len(FIT)
    assert len(golden.SHAPES) > len(FIT)  # the default preset has one more


@pytest.mark.parametrize("seed", [1, 2])
def test_a_text_that_begins_with_zeros_is_bit_equal(seed: int):
    inputs = text(seed, [golden.BLANK, 3, golden.BLANK, golden.BLANK], restart=(2,))
    first, second, *others = traces(inputs, seed)
    for trace in (first, *others):
        assert not trace["output.sums"].any()
        assert not trace["blk.0.k.peaks"].any()
        assert not trace["blk.0.attn_sub_norm.input"].any()
    assert second["output.sums"].any()
    # The cycle model is of vectors that are not zero.
    outcome = simulate(design(), inputs=inputs, modes=["free"])
    assert (outcome.mismatches, outcome.modes[0]["untaken"]) == (0, 0)


def test_the_stimulus_has_the_corners_it_promises():
    for shape, config in enumerate(FIT):
        seed = seeds(shape)
        inputs = golden.texts(CONFIG, np.random.default_rng(shape), 0, seed)
        found = traces(inputs, seed)
        last = f"blk.{config.layers - 1}"
        assert any(not trace["token_embd.out"].any() for trace in found)
        assert any((abs(trace[f"{last}.attn_q.out"]) == TOP).any() for trace in found)
        if config.sub_norms:
            assert any((abs(trace[f"{last}.out"]) == TOP).any() for trace in found)
        for trace in found:
            sums = trace["output.sums"][0]
            assert (sums == sums.max()).sum() >= 2


def test_the_lowest_of_equals_is_the_answer():
    inputs = text(2, [5, 6, 7])
    answers = golden.golden(CONFIG, inputs)["token_o"]["token"]
    for trace, answer in zip(traces(inputs, 2), answers, strict=True):
        sums = trace["output.sums"][0]
        assert answer == np.flatnonzero(sums == sums.max())[0] < len(sums) // 2
    run(inputs)


@pytest.mark.long
def test_estimates_are_near_the_simulation_token_by_token():
    seed, tokens = 2, [5, 6, 7, 8]
    c = golden.compiled(CONFIG, seed)[0].config
    few, all_of_them = (run(text(seed, tokens[:count])).cycles for count in (1, len(tokens)))
    estimates = [golden.token_cycles(c, position, True) for position in range(len(tokens))]
    assert all_of_them - few == pytest.approx(sum(estimates[1:]), rel=0.01)
    assert estimates == sorted(set(estimates))
    prompt = text(seed, tokens[:2])
    prompt["token_i"]["sample"][0] = False
    saved = run(text(seed, tokens[:2])).cycles - run(prompt).cycles
    head = golden.token_cycles(c, 0, True) - golden.token_cycles(c, 0, False)
    assert saved == pytest.approx(head, rel=0.05)


def test_the_store_is_written_once():
    inputs = text(2, [5])
    image = inputs["image_i"]
    more = {name: np.append(values, values[-2:]) for name, values in image.items()}
    outcome = simulate(design(), inputs={**inputs, "image_i": more}, modes=["free"])
    assert (outcome.mismatches, outcome.modes[0]["untaken"]) == (0, 2)


def test_a_token_without_a_place_is_dropped_and_costs_nearly_nothing():
    seed = 2
    context = golden.compiled(CONFIG, seed)[0].config.context
    tokens = list(range(1, context + 1))
    full = run(text(seed, [*tokens, 9]))
    more = run(text(seed, [*tokens, 7, 8, 5, 9], restart=(context + 3,)))
    assert full.modes[0]["outputs"] < more.modes[0]["outputs"]


def test_the_page_has_the_cycles_of_the_model():
    page = (Path(__file__).parents[1] / "docs" / "blocks" / "micro_engine.md").read_text()
    names = ("dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "vocab", "context")
    rows = re.findall(r"^\| (\d+(?: \| \d+){10}) \|$", page, re.MULTILINE)
    assert len(rows) == 2
    for row in rows:
        *values, first, unanswered, last = map(int, row.split(" | "))
        c = ModelConfig(**dict(zip(names, values, strict=True)))
        assert first == golden.token_cycles(c, 0, True)
        assert unanswered == golden.token_cycles(c, 0, False)
        assert last == golden.token_cycles(c, c.context - 1, True)
