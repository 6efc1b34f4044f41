# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of products by tables of weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import bounds, marks, wrapped
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.lut.sail_sram import SailSramConfig

Ints = NDArray[np.int64]


def transfers_of(config: "SailSramConfig", weights: Ints, acts: Ints) -> Streams:
    """Transfers of ``acts @ weights``: (batch, K) and (K, cols), K filled up with zeros."""
    groups = -(-len(weights) // config.nbw)
    pad = groups * config.nbw - len(weights)
    acts = np.pad(acts, ((0, 0), (0, pad))).reshape(config.batch, groups, config.nbw)
    first, last = np.zeros((2, groups, config.batch), np.int64)
    first[0], last[-1] = 1, 1
    return {
        "weights_i": {"w": np.pad(weights, ((0, pad), (0, 0)))},
        "acts_i": {
            "a": acts.swapaxes(0, 1).reshape(-1, config.nbw),
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        },
    }


def extremes(bits: int, is_signed: bool) -> tuple[int, int]:
    """The smallest and the largest number."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)


def stimulus(config: "SailSramConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Items' sums of random lengths; extremes, as long sums as there are transfers for, come first.

    Some are dropped by an early ``first``, some begin without one.
    """
    batch, nbw = config.batch, config.nbw
    groups = -(-transfers // max(batch, nbw))
    w_ends, a_ends = (
        extremes(bits, is_signed)
        for bits, is_signed in ((config.wb, config.w_signed), (config.ab, config.a_signed))
    )
    w = rng.integers(w_ends[0], w_ends[1] + 1, (groups, nbw, config.cols))
    a = rng.integers(a_ends[0], a_ends[1] + 1, (groups, batch, nbw))
    few = rng.random((groups, batch, 1)) < 0.2
    a = np.where(few & (rng.random(a.shape) < 0.7), 0, a)
    framing = marks(rng, groups * batch)
    first, last = (framing[name].reshape(groups, batch) for name in ("first", "last"))

    # All extremes with all, for as long as a sum may be.
    longest, at = config.max_k // nbw, 0
    for number, (x, y) in enumerate((x, y) for x in w_ends for y in a_ends):
        stop = min(at + min(longest, 1 + groups // 8), groups)
        w[at:stop], a[at:stop] = x, y
        first[at:stop], last[at:stop] = 0, 0
        first[at : at + 1], last[stop - 1 : stop] = number % 2, stop > at
        at = stop
    first[0], last[-1] = 1, 1
    return {
        "weights_i": {"w": w.reshape(-1, config.cols)},
        "acts_i": {
            "a": a.reshape(-1, nbw),
            "first": first.reshape(-1),
            "last": last.reshape(-1),
        },
    }


def products(config: "SailSramConfig", weights: Ints, acts: Ints) -> Ints:
    """Of every table and item with every column: (tables, items, cols)."""
    w = weights.reshape(-1, config.nbw, config.cols).astype(np.int64)
    a = acts.reshape(len(w), -1, config.nbw).astype(np.int64)
    return np.einsum("gik,gkc->gic", a, w)


def golden(config: "SailSramConfig", inputs: Streams) -> Streams:
    """Every item's finished sums, in the order in which they end."""
    acts = inputs["acts_i"]
    terms = products(config, inputs["weights_i"]["w"], acts["a"])
    framing = {name: acts[name].reshape(len(terms), config.batch) for name in ("first", "last")}
    sums, order = item_sums(terms, framing)
    return {"o": {"sums": wrapped(sums[np.argsort(order)], config.acc_width)}}


def item_sums(terms: Ints, framing: Transfers) -> tuple[Ints, Ints]:
    """Sums of each item's runs of ``terms`` (tables, items, cols), and where they end."""
    found, order = [], []
    items = terms.shape[1]
    upto = np.concatenate([np.zeros_like(terms[:1]), np.cumsum(terms, axis=0)])
    for item in range(items):
        starts, ends = bounds({name: marks[:, item] for name, marks in framing.items()})
        found.append(upto[ends + 1, item] - upto[starts, item])
        order.append(ends * items + item)
    return np.concatenate(found), np.concatenate(order)


def tables(config: "SailSramConfig", costs: Sequence[Ints], held: int = 0) -> Ints:
    """Cycles in which each table's look-ups begin; ``costs`` are those of each, in cycles.

    A table of the word style is built in ``2**nbw`` cycles, from when its memory is free on;
    the next one can follow in another memory after one less.  ``held``: cycles for which the last
    value read keeps the memory busy.
    """
    build = 1 << config.nbw
    banks = 1 + config.double
    begins, done, starts = 0, [0] * banks, []
    free = 0  # when the look-ups of the table before are over
    for number, cost in enumerate(costs):
        begins = max(begins, done[number % banks])
        starts.append(max(begins + build, free))
        begins += build - 1
        free = starts[-1] + int(cost.sum())
        done[number % banks] = free - held
    return np.array(starts)


def cycles(config: "SailSramConfig", inputs: Streams) -> int:
    """Until the last sum: tables are built, or bit rows added, one after the other."""
    last = inputs["acts_i"]["last"].reshape(-1, config.batch)
    group, item = divmod(int(np.flatnonzero(last.reshape(-1))[-1]), config.batch)
    if config.style == "serial":
        entry, width = config.entry_width, config.acc_width
        build = config.nbw * entry + config.adds * (entry + 1)
        look_up = int(np.sum(width - np.arange(config.ab) + 1))
        until = last.reshape(-1)[: group * config.batch + item + 1]
        shown = int(until.sum()) * (width + 1)
        return (group + 1) * build + len(until) * look_up + shown + 1
    count = config.batch * config.ab
    costs = [np.full(count, config.access)] * (group + 1)
    # A memory is free a cycle after its last value was taken.
    held = config.access - max(1, config.access - 1)
    start = tables(config, costs, held)[-1]
    final = start + ((item + 1) * config.ab - 1) * config.access
    return int(final) + 1 + config.latency
