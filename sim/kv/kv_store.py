# SPDX-License-Identifier: Apache-2.0
"""Golden model of the store of quantised vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._fixed import Ints
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.kv.kv_store import KvStoreConfig


def stimulus(config: KvStoreConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Vectors written once, at any time, and vectors written over and over; reads close behind.

    Only what is never written again is read, since nothing here holds back a write for a read, and
    less than half a turn of the count is written.
    """
    most = (1 << config.order_width - 1) - 1
    count = min(max(transfers // config.rows, 2), most)
    addresses = rng.permutation(config.vectors)
    once = addresses[: max(min(3 * config.vectors // 4, count), 1)]
    often = addresses[len(once) :] if len(once) < config.vectors else once[:1]
    at = rng.choice(often, count)
    at[np.sort(rng.permutation(count)[: len(once)])] = once
    codes, scale = corners(config, rng, count)
    return {
        "write_i": {"codes": codes.reshape(-1, config.lanes)},
        "scale_i": {"scale": scale},
        "at_i": {"address": at},
        "read_i": _reads(rng, at, transfers),
    }


def corners(config: KvStoreConfig, rng: np.random.Generator, count: int) -> tuple[Ints, Ints]:
    """Random codes and scales of ``count`` vectors, the extremes among them."""
    low, top = -(1 << config.code_width - 1), (1 << config.scale_width) - 1
    codes = rng.integers(low, -low, (count, config.head_dim))
    codes[rng.random(count) < 0.1] = low
    codes[rng.random(count) < 0.1] = -low - 1
    scale = rng.integers(0, top, count, endpoint=True)
    scale[rng.random(count) < 0.1] = top
    return codes, scale


def _reads(rng: np.random.Generator, at: Ints, reads: int) -> Transfers:
    """Reads of what no later write changes, at about the pace of the writes, some at once."""
    last = len(at) - 1 - np.unique(at[::-1], return_index=True)[1]
    last.sort()  # index of each address's last write
    pace = np.arange(1, reads + 1) * len(at) // reads
    known = np.searchsorted(last, np.maximum(pace, last[0] + 1))  # of these, one is read
    newest = rng.random(reads) < 0.4
    pick = np.where(newest, known - 1, rng.integers(0, known))
    wait = last[pick] + 1
    return {
        "address": at[last[pick]],
        "after": np.where(rng.random(reads) < 0.8, wait, np.maximum(wait, pace)),
    }


def golden(config: KvStoreConfig, inputs: Streams) -> Streams:
    """What each read gives: the last of the first ``after`` vectors that went to its address."""
    at, read = inputs["at_i"]["address"], inputs["read_i"]
    codes = inputs["write_i"]["codes"].reshape(-1, config.head_dim)
    order = np.argsort(at, kind="stable")
    key = at[order] * (len(at) + 1) + order
    after = _unwrapped(config, read["after"])
    found = order[np.searchsorted(key, read["address"] * (len(at) + 1) + after) - 1]
    if not (at[found] == read["address"]).all():
        raise ValueError("a read of an address that was not written before")
    return {
        "written_o": {"address": at},
        "o": {"codes": codes[found], "scale": inputs["scale_i"]["scale"][found]},
    }


def cycles(config: KvStoreConfig, inputs: Streams) -> int:
    """A row and a read per cycle; a vector is there for the second edge after its last row."""
    after = _unwrapped(config, inputs["read_i"]["after"])
    earliest = np.where(after > 0, config.rows * after + 2, 1)
    turn = np.arange(len(after))
    taken = np.maximum.accumulate(earliest - turn) + turn
    written = config.rows * len(inputs["at_i"]["address"]) + 2
    return max(int(taken[-1]) + 2, written)


def _unwrapped(config: KvStoreConfig, after: Ints) -> Ints:
    """Counts since reset, each less than half a turn from the one before."""
    turn = 1 << config.order_width
    steps = np.diff(after, prepend=0)
    return np.cumsum((steps + turn // 2) % turn - turn // 2)
