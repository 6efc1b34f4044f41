# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the table builder."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.lut.table_builder import TableBuilderConfig

Array = NDArray[np.int64]


def weights(group: int, code: str, half: bool) -> Array:
    """The pattern of every entry (entries, group), from the meaning of its index."""
    k = np.arange(group)
    if code == "ternary":
        middle = (3**group - 1) // 2
        index = np.arange(0 if half else -middle, middle + 1)[:, None]
        return (index + middle) // 3 ** (group - 1 - k) % 3 - 1
    index = np.arange(1 << group)[(1 << group - 1) * half :, None]
    bits = index >> k & 1
    return bits if code == "bits" else 2 * bits - 1


def order(group: int, code: str, half: bool) -> Array:
    """Indices in the order in which a serial builder makes the entries."""
    if code != "ternary":
        number = np.arange(1 << group - half)
        return number ^ number >> 1
    if not half:
        return _reflected(group) @ 3 ** np.arange(group) + (3**group - 1) // 2
    made = np.zeros(1, np.int64)
    for places in range(group):  # ``v`` with 1 at this place, from the weights below that are there
        power = 3 ** np.arange(places)
        corner = (made[-1] + (3**places - 1) // 2) // power % 3 - 1
        made = np.concatenate([made, 3**places - _reflected(places) * corner @ power])
    return made


def _reflected(places: int) -> Array:
    """Digits -1, 0, 1 of the reflected ternary Gray code, the lowest first, from -1 everywhere."""
    number = np.arange(3**places)[:, None]
    power = 3 ** np.arange(places)
    digit = number // power % 3
    return np.where(number // (3 * power) % 2, 2 - digit, digit) - 1


def stimulus(config: "TableBuilderConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Random activations; first all combinations of the extremes of a group."""
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    acts = rng.integers(low, high, (transfers, config.group), endpoint=True)
    corners = np.arange(min(1 << config.group, transfers))
    acts[: len(corners)] = np.where(corners[:, None] >> np.arange(config.group) & 1, high, low)
    return {"i": {"acts": acts}}


def golden(config: "TableBuilderConfig", inputs: Streams) -> Streams:
    """Dot products of the activations with every pattern of weights."""
    acts = inputs["i"]["acts"].astype(np.int64)
    chosen = (config.group, config.code, config.half)
    entries = acts @ weights(*chosen).T
    if config.style == "parallel":
        return {"o": {"entries": entries}}
    index = order(*chosen)
    last = np.arange(len(index)) == len(index) - 1
    tables = len(acts)
    return {
        "o": {
            "entry": entries[:, index].reshape(-1),
            "index": np.tile(index, tables),
            "last": np.tile(last.astype(np.int64), tables),
        }
    }


def cycles(config: "TableBuilderConfig", inputs: Streams) -> int:
    """A table, or an entry, a cycle; then the latency."""
    tables = len(inputs["i"]["acts"])
    if config.style == "parallel":
        return tables + config.latency
    first = 0 if (config.half and config.code == "ternary") or config.code == "bits" else 1
    return tables * (config.entries + first * (config.group - 1)) + config.latency
