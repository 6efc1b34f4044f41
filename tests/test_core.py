# SPDX-License-Identifier: Apache-2.0
"""The parts every block stands on: configs, trees, payloads, cycle-exact comparison."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from atriplex.rtl._tree import reduce_tree
from atriplex.rtl.config import Config, ConfigError, param
from atriplex.sim import payload


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    lanes: int = param(4, "lanes", ge=1, le=64)
    mode: str = param("fast", "mode", choices=("fast", "small"))
    wide: bool = param(False, "wide")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "big": {"lanes": 32}}

    def faults(self) -> Iterator[str]:
        if self.wide and self.lanes < 8:
            yield f"wide needs 8 lanes or more, not {self.lanes}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lanes": 65}, "SampleConfig: lanes must be in 1..64, not 65"),
        ({"lanes": True}, "SampleConfig: lanes must be int, not True"),
        ({"lanes": "4"}, "SampleConfig: lanes must be int, not '4'"),
        ({"mode": "slow"}, "SampleConfig: mode must be one of fast, small, not 'slow'"),
        ({"wide": True}, "SampleConfig: wide needs 8 lanes or more, not 4"),
        ({"lane": 4}, "SampleConfig: no parameter 'lane'; is it lanes?"),
    ],
)
def test_config_names_parameter_rule_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SampleConfig.of(values)
    assert str(error.value) == message


def test_preset_takes_changes_and_refuses_unknown_names() -> None:
    assert SampleConfig.preset("big", wide=True).values() == {
        "lanes": 32,
        "mode": "fast",
        "wide": True,
    }
    with pytest.raises(ConfigError, match=r"no preset 'bug'; is it big\?"):
        SampleConfig.preset("bug")


def test_digest_changes_with_every_parameter() -> None:
    digests = {SampleConfig.of(v).digest() for v in ({}, {"lanes": 5}, {"mode": "small"})}
    assert len(digests) == 3


@pytest.mark.parametrize("count", range(1, 40))
def test_reduce_tree_keeps_every_item_at_logarithmic_depth(count: int) -> None:
    items = [(1 << index, 0) for index in range(count)]
    total, depth = reduce_tree(lambda a, b: (operator.add(a[0], b[0]), 1 + max(a[1], b[1])), items)
    assert total == (1 << count) - 1
    assert depth == (count - 1).bit_length()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 7, 8, 13, 32, 63, 64])
@pytest.mark.parametrize("dims", [(), (1,), (5,), (3, 4)])
def test_unpack_is_the_inverse_of_pack(width: int, signed: bool, dims: tuple[int, ...]) -> None:
    rng = np.random.default_rng(width)
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    high = min(high, (1 << 63) - 1)
    values = rng.integers(low, high, (20, *dims), endpoint=True)
    values[0], values[1] = low, high
    words = payload.pack(values, width)
    assert max(words) < 1 << width * max(1, int(np.prod(dims)))
    np.testing.assert_array_equal(payload.unpack(words, width, signed, dims), values)


def test_pack_puts_the_first_element_lowest() -> None:
    assert payload.pack(np.array([[1, 2, -1]]), 4) == [0xF21]


def test_pack_refuses_values_that_do_not_fit() -> None:
    with pytest.raises(OverflowError, match="does not fit 4 bits"):
        payload.pack(np.array([[16]]), 4)
