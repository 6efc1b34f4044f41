# SPDX-License-Identifier: Apache-2.0
"""Tables of signed sums: their entries, their adders, the order in which one adder makes them."""

import itertools
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
from atriplex.rtl.lut import _table
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
    patterns = list(map(tuple, table_builder.weights(group, code, half).tolist()))
    values = {"binary": (-1, 1), "bits": (0, 1), "ternary": (-1, 0, 1)}[code]
    if half:
        negated = [tuple(-w for w in pattern) for pattern in patterns]
        assert {*patterns, *negated} == {*itertools.product(values, repeat=group)}
        assert len(patterns) + len(negated) - (0 in map(any, patterns)) in (len({*patterns, *negated}), len({*patterns, *negated}) + 1)
    else:
        assert sorted(patterns) == sorted(itertools.product(values, repeat=group))
    assert list(_table.patterns(group, code, half)) == patterns
