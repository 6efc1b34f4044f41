# SPDX-License-Identifier: Apache-2.0
"""Tables of signed sums: their entries, their adders, the order in which one adder makes them."""

import itertools
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
from atriplex.rtl.lut import _table
from atriplex.rtl.lut import table_builder as rtl
from atriplex.rtl.lut.table_builder import TableBuilderConfig
from atriplex.sim.lut import table_builder
from atriplex.sim.run import simulate

TABLES = [
    (group, code, half)
    for group in range(1, 7)
    for code in _table.CODES
    for half in (False, True)
    if not (half and code == "bits")
]


@pytest.mark.parametrize(("group", "code", "half"), TABLES)
def test_entries_are_all_patterns_or_one_of_each_pair(group: int, code: str, half: bool) -> None:
    made = list(map(tuple, table_builder.weights(group, code, half).tolist()))
    weights = {"binary": (-1, 1), "bits": (0, 1), "ternary": (-1, 0, 1)}[code]
    every = set(itertools.product(weights, repeat=group))
    if half:
        assert {*made, *(tuple(-w for w in each) for each in made)} == every
        assert len(made) == (len(every) + (code == "ternary")) // 2
    else:
        assert sorted(made) == sorted(every)
    assert list(_table.patterns(group, code, half)) == made


def test_tables_of_bitnet_cpp() -> None:
    """TL1 and TL2 as they are written down there."""
    rng = np.random.default_rng(1)
    a0, a1, a2 = (int(a) for a in rng.integers(-128, 128, 3))
    tl1 = [(index // 3 - 1) * a0 + (index % 3 - 1) * a1 for index in range(9)]
    tl2 = [0, a2, a1 - a2, a1, a1 + a2, a0 - a1 - a2, a0 - a1, a0 - a1 + a2]
    tl2 += [a0 - a2, a0, a0 + a2, a0 + a1 - a2, a0 + a1, a0 + a1 + a2]
    assert (table_builder.weights(2, "ternary", False) @ [a0, a1]).tolist() == tl1
    assert (table_builder.weights(3, "ternary", True) @ [a0, a1, a2]).tolist() == tl2


@pytest.mark.parametrize(("group", "code", "half"), TABLES)
def test_plans_make_every_entry_and_no_sum_twice(group: int, code: str, half: bool) -> None:
    plan = _table.plan(group, code, half)
    made = [tuple(int(at == k) for at in range(group)) for k in range(group)]
    for step in plan.steps:
        a = made[step.a]
        b = (0,) * group if step.b is None else made[step.b]
        signs = (-1, 0) if step.b is None else (1, -1 if step.subtract else 1)
        made.append(tuple(signs[0] * x + signs[1] * y for x, y in zip(a, b, strict=True)))
    assert len(set(made)) == len(made)
    entries = [(0,) * group if node is None else made[node] for node in plan.entries]
    assert entries == list(_table.patterns(group, code, half))
    assert plan.levels <= (group - 1).bit_length() + (not half and code != "bits")


def test_adders_of_a_table() -> None:
    """Halves share theirs with the whole, which negates besides: symmetry is never computed."""
    groups = range(1, 7)
    adds = {
        code: [_table.plan(k, code, code != "bits").adds for k in groups] for code in _table.CODES
    }
    assert adds["binary"] == [0, 2, 6, 12, 24, 44]
    assert adds["bits"] == [2**k - k - 1 for k in groups]
    assert adds["ternary"] == [(3**k - 1) // 2 - k for k in groups]
    for code, k in itertools.product(("binary", "ternary"), groups):
        half, whole = _table.plan(k, code, True), _table.plan(k, code, False)
        assert half.negations == 0 and half.adds == whole.adds
        assert whole.negations == len(whole.entries) // 2


@pytest.mark.parametrize(("group", "code", "half"), TABLES)
def test_one_weight_changes_at_a_time(group: int, code: str, half: bool) -> None:
    weights = table_builder.weights(group, code, half)
    order = table_builder.order(group, code, half)
    assert sorted(order.tolist()) == list(range(len(weights)))
    assert (np.count_nonzero(np.diff(weights[order], axis=0), axis=1) == 1).all()
    moves = _table.moves(group, code, half)
    assert [move.entry for move in moves if move.entry is not None] == order.tolist()
    assert sum(move.act is None for move in moves) == (not weights[order[0]].any())


@pytest.mark.parametrize("act_width", [2, 3, 8])
@pytest.mark.parametrize(("group", "code", "half"), TABLES)
def test_entries_need_their_width(group: int, code: str, half: bool, act_width: int) -> None:
    low, high = -(1 << act_width - 1), (1 << act_width - 1) - 1
    corners = np.array(list(itertools.product((low, high), repeat=group)))
    entries = corners @ table_builder.weights(group, code, half).T
    bound = 1 << _table.entry_width(group, code, half, act_width) - 1
    assert -bound <= entries.min() and entries.max() < bound
    assert entries.min() < -bound // 2 or entries.max() >= bound // 2


def test_tables_that_are_too_large_are_refused_with_their_size() -> None:
    with pytest.raises(
        ValueError, match=r"6 activations has 365 entries .* parallel .* at most 128"
    ):
        TableBuilderConfig(group=6, code="ternary")
    with pytest.raises(ValueError, match=r"whole .* has 729 entries and a serial .* at most 512"):
        TableBuilderConfig(group=6, code="ternary", style="serial", half=False)
    with pytest.raises(ValueError, match="half must be false with bits"):
        TableBuilderConfig(code="bits")


def broken(monkeypatch: pytest.MonkeyPatch, preset: str, name: str, change: Any) -> bool:
    """Whether the bench sees what ``change`` makes of a function that the generator calls."""
    sound = getattr(rtl, name)
    monkeypatch.setattr(rtl, name, lambda *given: change(sound(*given)))
    block = blocks.find("table_builder")
    design = emit(block, block.config.preset(preset), fresh=True)
    return bool(list(simulate(design, transfers=100, simulator="icarus").complaints()))


def other_sign(plan: _table.Plan) -> _table.Plan:
    last = plan.steps[-1]
    return plan._replace(steps=(*plan.steps[:-1], last._replace(subtract=not last.subtract)))


def test_an_adder_that_subtracts_instead_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broken(monkeypatch, "default", "plan", other_sign)


def test_an_entry_that_is_a_bit_short_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_table, "ceil_log2", lambda n: (n - 1).bit_length() - (n > 2))
    assert broken(monkeypatch, "default", "plan", lambda plan: plan)


def test_a_move_that_is_lost_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = _table.moves

    def lossy(*given: Any) -> tuple[_table.Move, ...]:
        made = sound(*given)
        return (*made[:5], made[5]._replace(act=None), *made[6:])

    monkeypatch.setattr(_table, "moves", lossy)
    assert broken(monkeypatch, "tl2", "plan", lambda plan: plan)
