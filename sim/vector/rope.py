# SPDX-License-Identifier: Apache-2.0
"""Golden model of the rotary position embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._fixed import round_shift, saturate
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.vector.rope import RopeConfig

Ints = NDArray[np.int64]


def table(context: int, half: int, theta: float, fraction: int) -> tuple[Ints, Ints]:
    """Cosines and sines by position and pair, the angle being ``position * theta**(-pair/half)``.

    Each is the nearest multiple of ``2**-fraction``, but that 1 and -1 lose a step: it fits
    ``fraction + 1`` bits.
    """
    angle = np.arange(context)[:, None] * theta ** -(np.arange(half) / half)
    one, limit = float(1 << fraction), (1 << fraction) - 1
    cos, sin = (
        np.clip(np.rint(f(angle) * one), -limit, limit).astype(np.int64) for f in (np.cos, np.sin)
    )
    return cos, sin


def rotate(
    low: Ints, high: Ints, cos: Ints, sin: Ints, fraction: int, bits: int
) -> tuple[Ints, Ints]:
    """Pairs turned by angles, to nearest, ties upwards, saturated to ``bits``."""
    turned = low * cos - high * sin, low * sin + high * cos
    one, other = (saturate(round_shift(value, fraction), bits) for value in turned)
    return one, other


def stimulus(config: RopeConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """A table with a circle's entries and random ones, some written twice; heads of all kinds."""
    depth, top = config.depth, (1 << config.fraction) - 1
    rewritten = rng.integers(0, depth - 1, depth // 8 + 2) if depth > 1 else np.zeros(0, np.int64)
    address = np.append(rng.permutation(np.append(np.arange(depth - 1), rewritten)), depth - 1)
    angle = rng.random(len(address)) * 2 * np.pi
    entries = np.rint([np.cos(angle) * top, np.sin(angle) * top]).astype(np.int64)
    odd = rng.integers(-top - 1, top + 1, entries.shape)
    special = rng.random(len(address))
    entries = np.where(special < 0.3, odd, entries)
    entries = np.where(special < 0.2, rng.choice([-top - 1, top, 0, 1, -1], entries.shape), entries)

    heads = max(-(-transfers // config.head_dim), 4)
    count = heads * config.head_dim
    bypass = rng.random(heads) < 0.25
    bypass[:4] = (True, False, False, True)
    limit = 1 << rng.integers(0, config.x_width, count)
    low, high = -(1 << config.x_width - 1), (1 << config.x_width - 1) - 1
    x = rng.integers(-limit, limit)
    extreme = rng.random(count) < 0.15
    x[extreme] = rng.choice([low, high, low + 1, 0, 1, -1], int(extreme.sum()))
    position = rng.integers(0, config.context, heads)
    position[1] = config.context - 1
    return {
        "op_i": {"position": position, "bypass": bypass},
        "table_i": {"address": address, "cos": entries[0], "sin": entries[1]},
        "i": {"x": x},
    }


def golden(config: RopeConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    op, given = inputs["op_i"], inputs["table_i"]
    # Of entries at one address the last one holds.
    written = len(given["address"]) - 1
    address, newest = np.unique(given["address"][::-1], return_index=True)
    held = np.zeros((2, config.depth), np.int64)
    held[:, address] = np.stack([given["cos"], given["sin"]])[:, written - newest]
    at = op["position"][:, None] * config.half + np.arange(config.half)
    bypass = op["bypass"].astype(bool)[:, None]
    cos = np.where(bypass, 1 << config.fraction, held[0, at])
    sin = np.where(bypass, 0, held[1, at])
    x = inputs["i"]["x"].astype(np.int64).reshape(len(at), config.half, 2)
    turned = rotate(x[..., 0], x[..., 1], cos, sin, config.fraction, config.x_width)
    first, last = np.zeros((2, len(at), config.head_dim), np.int64)
    first[:, 0] = last[:, -1] = 1
    return {
        "o": {
            "x": np.stack(turned, axis=-1).reshape(-1),
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        }
    }


def cycles(config: RopeConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    start = max(len(inputs["table_i"]["address"]) + 1, 2)  # edge at which the first one is taken
    return start + len(inputs["i"]["x"]) + config.latency
