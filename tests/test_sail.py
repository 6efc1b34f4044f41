# SPDX-License-Identifier: Apache-2.0
"""Tables of weights: every pattern, every width, cycles against adds, faults inside."""

import importlib
import inspect
import itertools
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Cat
from atriplex.gen import blocks
from atriplex.gen.studies import reuse as study
from atriplex.gen.verilog import emit
from atriplex.rtl.config import ConfigError
from atriplex.rtl.lut import _bit_rows, _plane_sum, _slices, _weight_table
from atriplex.rtl.lut import sail_sram as rtl
from atriplex.rtl.lut.pattern_reuse import PatternReuse
from atriplex.rtl.lut.sail import SailConfig
from atriplex.rtl.lut.sail_sram import SailSramConfig
from atriplex.sim.lut import pattern_reuse, sail, sail_sram
from atriplex.sim.run import Outcome, simulate

STYLES = ("word", "serial")


def run(config: SailSramConfig, inputs: Any, simulator: str = "icarus") -> Outcome:
    design = emit(blocks.find("sail_sram"), config)
    outcome = simulate(design, inputs=inputs, simulator=simulator, modes=["free"])
    assert list(outcome.complaints()) == []
    return outcome


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("w_signed", [True, False])
def test_every_group_of_weights_meets_every_group_of_activations(
    style: str, w_signed: bool
) -> None:
    """Columns are all groups of two weights, tables' look-ups all groups of two activations."""
    wb, ab, nbw = 2, 3, 2
    groups = np.array(list(itertools.product(range(1 << wb), repeat=nbw))).T
    acts = np.array(list(itertools.product(range(-4, 4), repeat=nbw)))
    config = SailSramConfig(
        wb=wb, ab=ab, nbw=nbw, cols=16, batch=64, w_signed=w_signed, max_k=nbw, style=style
    )
    weights = (groups ^ 2) - 2 if w_signed else groups
    inputs = sail_sram.transfers_of(config, weights, acts)
    assert (sail_sram.golden(config, inputs)["o"]["sums"] == acts @ weights).all()
    run(config, inputs)


@pytest.mark.parametrize("style", STYLES)
def test_every_group_of_ternary_weights_meets_corners(style: str) -> None:
    """Of four weights: 81 columns; all extremes and random activations."""
    rng = np.random.default_rng(1)
    codes = np.array(list(itertools.product((-1, 0, 1), repeat=4))).T
    acts = np.array([*itertools.product((-128, 127), repeat=4), *rng.integers(-128, 128, (16, 4))])
    config = SailSramConfig(wb=2, cols=81, batch=32, max_k=4, style=style)
    inputs = sail_sram.transfers_of(config, codes, acts)
    assert (sail_sram.golden(config, inputs)["o"]["sums"] == acts @ codes).all()
    run(config, inputs, "verilator")


def test_any_shape_in_either_style() -> None:
    """Configurations drawn at random: sums and cycles, free and stalled."""
    rng = np.random.default_rng(5)
    for number in range(4):
        style = STYLES[number == 3]
        word = style == "word"
        config = SailSramConfig(
            wb=int(rng.integers(1, 9)),
            ab=int(rng.integers(1, 10)),
            nbw=int(rng.integers(1, 6)),
            cols=int(rng.integers(1, 4)),
            batch=int(rng.integers(1, 6)),
            w_signed=bool(rng.integers(2)),
            a_signed=bool(rng.integers(2)),
            double=word and bool(rng.integers(2)),
            access=int(rng.integers(1, 5)) if word else 1,
            stage=int(rng.integers(2)),
            max_k=40,
            style=style,
        )
        design = emit(blocks.find("sail_sram"), config)
        outcome = simulate(design, transfers=60, simulator="icarus")
        assert list(outcome.complaints()) == [], config


@pytest.mark.parametrize("a_signed", [True, False])
@pytest.mark.parametrize("w_signed", [True, False])
def test_widths_hold_every_sum_and_no_more(w_signed: bool, a_signed: bool) -> None:
    for wb, ab, nbw, k in itertools.product((1, 3), (1, 4), (1, 2, 3, 6), (6, 8, 9)):
        config = SailSramConfig(
            wb=wb, ab=ab, nbw=nbw, max_k=k, w_signed=w_signed, a_signed=a_signed
        )
        w, a = sail_sram.extremes(wb, w_signed), sail_sram.extremes(ab, a_signed)
        sums = [k * x * y for x in w for y in a]
        half = 1 << config.acc_width - 1
        assert -half <= min(sums) and max(sums) < half
        assert min(sums) < -half // 2 or max(sums) >= half // 2
        entries, half = [nbw * x for x in w], 1 << config.entry_width - 1
        assert -half <= min(entries) and max(entries) < half


def look_ups(config: SailSramConfig) -> tuple[int, int]:
    """Cycles of building a table and of one vector's look-ups, as the sheet counts them."""
    if config.style == "word":
        return 1 << config.nbw, config.ab
    entry, width = config.entry_width, config.acc_width
    build = config.nbw * entry + ((1 << config.nbw) - config.nbw - 1) * (entry + 1)
    return build, sum(width - plane + 1 for plane in range(config.ab))


@pytest.mark.parametrize("style", STYLES)
def test_a_table_more_takes_its_adds_and_look_ups(style: str) -> None:
    rng = np.random.default_rng(2)
    for nbw, batch in ((3, 2), (5, 1)):
        config = SailSramConfig(
            nbw=nbw, cols=1, batch=batch, ab=3, wb=3, max_k=5 * nbw, style=style
        )
        took = []
        for tables in (2, 5):
            acts = rng.integers(-4, 4, (batch, tables * nbw))
            weights = rng.integers(-4, 4, (tables * nbw, 1))
            took.append(run(config, sail_sram.transfers_of(config, weights, acts)).cycles)
        build, one = look_ups(config)
        assert took[1] - took[0] == 3 * (build + batch * one)


def best(style: str, batch: int, max_k: int) -> int:
    """The table size with which 60 inputs take fewest cycles by the cycle model."""

    def cost(nbw: int) -> int:
        config = SailSramConfig(nbw=nbw, cols=1, batch=batch, max_k=max_k, style=style)
        acts, weights = np.zeros((batch, 60), np.int64), np.zeros((60, 1), np.int64)
        return sail_sram.cycles(config, sail_sram.transfers_of(config, weights, acts))

    return min(range(1, 7), key=cost)


def test_the_best_table_grows_with_the_batch() -> None:
    """As the sheet's adds say where an add is a cycle.

    Bit rows are added to the whole sum, so that look-ups cost the more the wider it is, and larger
    tables pay earlier.
    """
    batches = (1, 2, 4, 8, 32)
    assert [best("word", batch, 4096) for batch in batches] == [3, 3, 4, 5, 6]
    assert [best("serial", batch, 60) for batch in batches] == [3, 4, 4, 5, 6]
    assert [best("serial", batch, 4096) for batch in batches] == [4, 4, 5, 6, 6]


def test_what_cannot_be_is_refused_with_its_size() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"nbw": 7}, r"tables of 127 rows of 16 x 7 bits are 14224 bits; at most 63 rows"),
        ({"nbw": 6, "cols": 1024}, r"63 rows of 1024 x 7 bits are 451584 bits; .* 262144 bits"),
        ({"style": "serial", "double": True}, "double needs style=word"),
        ({"style": "serial", "access": 2}, "access needs style=word"),
        ({"acc": 20}, "sums of 4096 products of 4 by 8 bits need 24 bits, and acc is 20"),
        ({"max_k": 3}, r"max_k must be at least nbw \(4\), not 3"),
    ]
    for values, said in refused:
        with pytest.raises(ConfigError, match=said):
            SailSramConfig(**values)


Fault = tuple[str | dict[str, Any], type, str, str]

SHORT = {"wb": 1, "ab": 1, "nbw": 1, "cols": 1, "batch": 1, "max_k": 2, "style": "serial"}
"""Sums that are ready soon after one another."""

FAULTS: list[Fault] = [
    ("tiny", _weight_table.WeightTable, "x_row.eq(bit | below)", "x_row.eq(bit)"),
    ("tiny", _weight_table.WeightTable, "full[reading] &", ""),
    ("tiny", _weight_table.WeightTable, "blocked.eq(pending &", "blocked.eq(0 &"),
    ("tiny", _weight_table.WeightTable, "width, banks = config", "width, banks = -1 + config"),
    ("tiny", _plane_sum.PlaneSum, "carry=plane.sign & plane.some", "carry=0"),
    ("tiny", _plane_sum.PlaneSum, "invert=plane.sign", "invert=0"),
    ("tiny", _plane_sum.PlaneSum, "clears.eq((moves & plane.ends)", "clears.eq(0"),
    ("tiny", _plane_sum.PlaneSum, "opens.eq(plane.first |", "opens.eq("),
    ("tiny", _plane_sum.PlaneSum, "plane.first | ~inside[plane.item]", "plane.first"),
    ("tiny", _plane_sum.PlaneSum, "write.addr.eq(item)", "write.addr.eq(0)"),
    ("tiny", _plane_sum.PlaneSum, "width = config.acc_width", "width = config.acc_width - 1"),
    ("serial", _bit_rows.BitRows, "carry.eq(subtracts.replicate(columns))", "carry.eq(0)"),
    ("serial", _bit_rows.BitRows, "(carry & (one | other))", "0"),
    ("serial", _bit_rows.BitRows, "length.eq(acc - look.bit)", "length.eq(acc - 1 - look.bit)"),
    ("serial", _bit_rows.BitRows, "entry - 1, at)", "entry - 2, at)"),
    ("serial", _bit_rows.BitRows, "(opens & (look.bit == 0))", "opens"),
    (SHORT, _bit_rows.BitRows, "goes.eq(~self.o.valid)", "goes.eq(1)"),
]
"""Preset or values, part, what is there, and what is there instead."""


def faulty(part: type, sound: str, fault: str) -> Any:
    """The part with a piece of its source replaced."""
    source = inspect.getsource(part)
    assert source.count(sound) == 1, sound
    module = inspect.getmodule(part)
    names = dict(vars(module))
    exec(compile(source.replace(sound, fault), str(module), "exec"), names)
    return names[part.__name__]


@pytest.mark.parametrize(
    ("given", "part", "sound", "fault"),
    [pytest.param(*each, marks=[pytest.mark.long] * (n % 4 > 0)) for n, each in enumerate(FAULTS)],
)
def test_faults_inside_are_seen(
    given: Any, part: type, sound: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = rtl if part is _bit_rows.BitRows else _slices
    monkeypatch.setattr(user, part.__name__, faulty(part, sound, fault))
    block = blocks.find("sail_sram")
    config = block.config.preset(given) if isinstance(given, str) else block.config(**given)
    design = emit(block, config, fresh=True)
    assert list(simulate(design, transfers=200, simulator="icarus").complaints())


STALE = [
    ("(tag.data == self.i.p.pattern) &", ""),  # the value of an entry that another one took
    ("(at.data < count) &", ""),  # the value of the table before
    ("& ~self.i.p.flush", ""),
    ("m.d.sync += count.eq(1)", "m.d.sync += count.eq(count)"),
    ("place == config.entries - 1, 0, place + 1", "place == 0, 1, 0"),  # one never gives way
    ("room.eq(~self.o.valid | self.o.ready)", "room.eq(1)"),
]


@pytest.mark.parametrize(
    ("sound", "fault"),
    [pytest.param(*each, marks=[pytest.mark.long] * (n > 1)) for n, each in enumerate(STALE)],
)
def test_a_value_of_another_pattern_or_table_is_seen(
    sound: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(blocks.find("pattern_reuse").module)
    monkeypatch.setattr(module, "PatternReuse", faulty(PatternReuse, sound, fault))
    block = blocks.find("pattern_reuse")
    design = emit(block, block.config.preset("tiny"), fresh=True)
    assert list(simulate(design, transfers=400, simulator="icarus").complaints())


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_random_patterns_are_there_as_often_as_they_repeat(batch: int) -> None:
    """1 - D / L of L look-ups, of which D = 2^n (1 - (1 - 2^-n)^L) differ, where all are kept."""
    rng = np.random.default_rng(3)
    tables = 4000
    for bits in (4, 5):
        look_ups, every = batch * 8, 1 << bits
        patterns = rng.integers(0, every, tables * look_ups)
        flush = np.arange(len(patterns)) % look_ups == 0
        different = every * (1 - (1 - 1 / every) ** look_ups)
        hits = pattern_reuse.hits(32, patterns, flush).mean()
        assert hits == pytest.approx(1 - different / look_ups, abs=0.01)
        assert pattern_reuse.hits(8, patterns, flush).mean() <= hits


def drawn(rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of a ``sail``."""
    nbw = int(rng.integers(1, 6))
    return {
        "wb": int(rng.integers(1, 6)),
        "ab": int(rng.integers(1, 7)),
        "nbw": nbw,
        "cols": int(rng.integers(1, 4)),
        "slices": int(rng.integers(1, 3)),
        "batch": int(rng.integers(1, 6)),
        "max_k": 40,
        "max_tables": int(rng.integers(1, 6)),
        "entries": int(rng.choice([0, min(3, 1 << nbw), 1 << nbw])),
        "w_signed": bool(rng.integers(2)),
        "a_signed": bool(rng.integers(2)),
        "double": bool(rng.integers(2)),
        "access": int(rng.integers(1, 5)),
        "stage": int(rng.integers(2)),
    }


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 3, 4))])
def test_any_shape_with_reuse_and_without(seed: int) -> None:
    """Sums and cycles, free and stalled; the cycles tell which patterns were there."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        config = SailConfig(**drawn(rng))
        outcome = simulate(emit(blocks.find("sail"), config), transfers=60, simulator="icarus")
        assert list(outcome.complaints()) == [], config


@pytest.mark.parametrize("entries", [0, 16])
def test_a_product_in_several_instructions(entries: int) -> None:
    rng = np.random.default_rng(4)
    config = SailConfig(cols=3, batch=3, max_tables=4, max_k=64, entries=entries)
    acts, weights = rng.integers(-128, 128, (2, 64)), rng.integers(-8, 8, (64, 6))
    inputs = sail.transfers_of(config, weights, acts)
    assert len(inputs["cmd_i"]["opens"]) == 4
    assert (sail.golden(config, inputs)["o"]["sums"] == acts @ weights).all()
    design = emit(blocks.find("sail"), config)
    outcome = simulate(design, inputs=inputs, simulator="icarus")
    assert list(outcome.complaints()) == []


def test_reuse_on_activations_of_the_shipped_model() -> None:
    """What is saved follows from the hits; the RTL takes these cycles on codes of a projection."""
    vectors = study.activations()
    hits, saved = study.saved(vectors, 1, 3, 8, double=False)
    assert 0.5 < hits < 0.6 and 0.13 < saved < 0.16  # 13.8 % in the paper
    rng = np.random.default_rng(1)
    random = [rng.integers(-128, 128, each.shape) for each in vectors[:2]]
    hits, saved = study.saved(random, 8, 5, 32, double=False)
    assert hits == pytest.approx(1 - 32 * (1 - (31 / 32) ** 64) / 64, abs=0.01)
    for entries in (0, 8):
        config = SailConfig(nbw=3, batch=1, slices=1, cols=1, entries=entries, double=False)
        inputs = sail.transfers_of(config, np.zeros((192, 1), np.int64), vectors[0][5:6])
        outcome = simulate(emit(blocks.find("sail"), config), inputs=inputs, simulator="icarus")
        assert list(outcome.complaints()) == []


def test_the_array_is_what_takes_most_of_the_bits() -> None:
    """32 entries of six-bit patterns keep half a table, whatever its columns; of five a whole."""
    half, copy = (SailConfig(nbw=nbw, entries=32, double=False) for nbw in (6, 5))
    assert half.reuse_bits / half.slices == pytest.approx(half.part.table_bits * 0.51, rel=0.1)
    assert copy.reuse_bits / copy.slices > copy.part.table_bits


def test_instructions_that_cannot_be_are_refused() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"entries": 17}, "entries must be at most 16, the patterns of nbw=4, not 17"),
        ({"nbw": 7}, r"tables of 127 rows of 16 x 7 bits are 28448 bits"),
        ({"slices": 64, "cols": 128}, r"slices \* cols must be at most 4096, not 8192"),
    ]
    for values, said in refused:
        with pytest.raises(ConfigError, match=said):
            SailConfig(**values)


@pytest.mark.parametrize(
    ("part", "sound", "fault"),
    [
        (_slices.Slices, "reuse.i.p.flush.eq(look.p.opens)", "reuse.i.p.flush.eq(0)"),
        (_slices.Slices, "looks & look.p.closes", "looks & look.p.plane.ends"),
        (_slices.Slices, "plane.eq(look.p.plane)", "plane.eq(Cat(look.p.plane.some))"),
    ],
)
def test_faults_between_the_parts_are_seen(
    part: type, sound: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = blocks.find("sail")
    module = importlib.import_module(block.module)
    monkeypatch.setattr(_slices, "Cat", Cat, raising=False)
    monkeypatch.setattr(module, part.__name__, faulty(part, sound, fault))
    design = emit(block, block.config.preset("tiny"), fresh=True)
    assert list(simulate(design, transfers=200, simulator="icarus").complaints())
