# SPDX-License-Identifier: Apache-2.0
"""Golden model of the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._fixed import round_shift, saturate
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.vector.gate import GateConfig

Ints = NDArray[np.int64]

SIGMOID_FRACTION = 16
NODES_PER_UNIT = 16
NODES = np.rint(
    (1 << SIGMOID_FRACTION) / (1 + np.exp(np.arange(16 * NODES_PER_UNIT + 1) / NODES_PER_UNIT))
).astype(np.int64)
"""``1 - sigmoid`` at 0, 1/16, ... 16; there it has become 0."""


def gated(gate: Ints, up: Ints, shift: int, bits: int) -> Ints:
    """``relu(gate)**2 * up * 2**-shift`` to nearest, ties upwards, saturated to ``bits``."""
    positive = np.maximum(gate, 0)
    return saturate(round_shift(positive * positive * up, shift), bits)


def sigmoid(x: Ints, fraction: int) -> Ints:
    """Sigmoid in 16 bits of fraction of ``x`` in ``fraction`` bits, at least 4.

    Linear between nodes 1/16 apart; wrong by less than ``5 * 2**-16``.
    """
    step = fraction - NODES_PER_UNIT.bit_length() + 1
    size = np.abs(x)
    left = np.minimum(size >> step, len(NODES) - 2)
    less = (NODES[left] - NODES[left + 1]) * (size & (1 << step) - 1)
    falling = np.where(size >> step < len(NODES) - 1, NODES[left] - round_shift(less, step), 0)
    return np.where(x < 0, falling, (1 << SIGMOID_FRACTION) - falling)


def silu(x: Ints, fraction: int) -> Ints:
    """``x * sigmoid(x)``, of ``x``'s fraction, to nearest, ties upwards."""
    return round_shift(x * sigmoid(x, fraction), SIGMOID_FRACTION)


def silu_gated(gate: Ints, up: Ints, shift: int, bits: int, fraction: int) -> Ints:
    """``silu(gate) * up * 2**-shift`` to nearest, ties upwards, saturated to ``bits``."""
    return saturate(round_shift(silu(gate, fraction) * up, shift), bits)


def stimulus(config: GateConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Pairs of all magnitudes, ties, extremes; some gates are followed by the next vector."""
    low, high = -(1 << config.width - 1), (1 << config.width - 1) - 1

    def elements(count: int) -> Ints:
        limit = 1 << rng.integers(0, config.width, count)
        found = rng.integers(-limit, limit)
        special = rng.random(count)
        found = np.where(special < 0.2, 1 << rng.integers(0, config.width - 1, count), found)
        extreme = rng.choice([low, high, low + 1, 0, 1, -1], count)
        return np.where(special < 0.1, extreme, found)

    # Vectors of one pair and more; half a pair at the end of some that have no last.
    sizes = rng.integers(1, 12, transfers)
    sizes[:6] = (1, 1, 2, 1, 3, 40)
    lone = rng.random(transfers) < 0.2
    count = int(np.searchsorted(np.cumsum(2 * sizes + lone), transfers)) + 1
    sizes, lone = sizes[:count], lone[:count]
    lone[-1] = False
    lengths = 2 * sizes + lone
    ends = np.cumsum(lengths)
    first, last = np.zeros((2, int(ends[-1])), bool)
    ended = ~lone & (rng.random(count) < 0.9)
    ended[-1] = True
    last[ends[ended] - 1] = True
    bare = np.append(False, ended[:-1]) & (rng.random(count) < 0.3)
    first[(ends - lengths)[~bare]] = True
    x = elements(len(first))
    gates = _pairs({"first": first, "last": last})[1] - 1
    x[gates] = np.abs(x[gates]).clip(0, high) * rng.choice([1, 1, 1, 1, -1], len(gates))
    last[gates[rng.random(len(gates)) < 0.1]] = True  # not heeded with a gate
    return {"i": {"x": x, "first": first, "last": last}}


def golden(config: GateConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    given = inputs["i"]
    x = given["x"].astype(np.int64)
    _, ups = _pairs(given)
    gate, up, last = x[ups - 1], x[ups], given["last"][ups].astype(np.int64)
    if config.activation == "relu2":
        out = gated(gate, up, config.shift, config.width)
    else:
        out = silu_gated(gate, up, config.shift, config.width, config.fraction)
    first = given["first"][ups - 1].astype(np.int64) | np.append(1, last[:-1])
    return {"o": {"x": out, "first": first, "last": last}}


def cycles(config: GateConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    _, ups = _pairs(inputs["i"])
    return int(ups[-1]) + 1 + config.latency


def _pairs(given: Transfers) -> tuple[Ints, Ints]:
    """Indices of gates, lone ones included, and of ups; an up is behind its gate.

    Elements alternate from the last ``first`` on.
    """
    index = np.arange(len(given["first"]))
    anchor = np.maximum.accumulate(np.where(given["first"], index, 0))
    is_up = (index - anchor) % 2 == 1
    return np.flatnonzero(~is_up), np.flatnonzero(is_up)
