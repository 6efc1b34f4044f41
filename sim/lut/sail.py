# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of products by slices of tables."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import bounds, wrapped
from ..types import Streams, Transfers
from .pattern_reuse import hits
from .sail_sram import extremes, tables

if TYPE_CHECKING:
    from ...rtl.lut.sail import SailConfig

Ints = NDArray[np.int64]


def transfers_of(config: "SailConfig", weights: Ints, acts: Ints) -> Streams:
    """Transfers of ``acts @ weights``: (items, K) and (K, columns), K filled up with zeros."""
    count = -(-len(weights) // config.nbw)
    pad = count * config.nbw - len(weights)
    acts = np.pad(acts, ((0, 0), (0, pad))).reshape(len(acts), count, config.nbw)
    starts = np.arange(0, count, config.max_tables)
    lengths = np.minimum(config.max_tables, count - starts)
    items = np.full(len(starts), len(acts))
    return {
        "cmd_i": commands(config, lengths, items, starts == 0, starts == starts[-1]),
        "weights_i": {"w": np.pad(weights, ((0, pad), (0, 0)))},
        "acts_i": {"a": acts.swapaxes(0, 1).reshape(-1, config.nbw)},
    }


def commands(
    config: "SailConfig", tables_: Ints, items: Ints, opens: NDArray, closes: NDArray
) -> Transfers:
    """Instructions by their operands; those that can have one value only have no field."""
    counts = {"tables": tables_, "items": items}
    most = {"tables": config.max_tables, "items": config.batch}
    return {
        **{name: count - 1 for name, count in counts.items() if most[name] > 1},
        "opens": opens.astype(np.int64),
        "closes": closes.astype(np.int64),
    }


def stimulus(config: "SailConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Instructions of all sizes, with extremes, and sums that go on, are dropped, or begin anew."""
    nbw, drawn = config.nbw, []
    rows, vectors = 0, 0
    while max(rows, vectors) < transfers:
        count = int(rng.integers(1, min(config.max_tables, 5) + 1))
        items = int(rng.integers(1, config.batch + 1))
        drawn.append((count, items, int(rng.random() < 0.4), int(rng.random() < 0.6)))
        rows, vectors = rows + count * nbw, vectors + count * items
    first = (min(config.max_tables, 5), config.batch, 1, 1)
    drawn = [first, *drawn, first]
    given = np.array(drawn)
    served = np.repeat(given[:, 1], given[:, 0])  # by each table
    w_ends, a_ends = (
        extremes(bits, is_signed)
        for bits, is_signed in ((config.wb, config.w_signed), (config.ab, config.a_signed))
    )
    w = rng.integers(w_ends[0], w_ends[1] + 1, (len(served), nbw, config.columns))
    a = rng.integers(a_ends[0], a_ends[1] + 1, (int(served.sum()), nbw))
    a[(rng.random((len(a), 1)) < 0.3) & (rng.random(a.shape) < 0.7)] = 0
    # All extremes with all, then extremes in any order.
    for at, (x, y) in enumerate((x, y) for x in w_ends for y in a_ends):
        w[at * len(w) // 16 : (at + 1) * len(w) // 16] = x
        a[at * len(a) // 16 : (at + 1) * len(a) // 16] = y
    some = rng.random(w.shape[0]) < 0.2
    w[some] = rng.choice(w_ends, (int(some.sum()), *w.shape[1:]))
    return {
        "cmd_i": commands(config, *given.T),
        "weights_i": {"w": w.reshape(-1, config.columns)},
        "acts_i": {"a": a},
    }


def by_table(command: Transfers) -> Transfers:
    """Of each table: the items it serves, and whether it is the first or last of sums."""
    none = np.zeros(len(command["opens"]), np.int64)
    counts, items = (command.get(name, none).astype(np.int64) + 1 for name in ("tables", "items"))
    ends = np.cumsum(counts) - 1
    first, last = np.zeros((2, int(counts.sum())), np.int64)
    first[ends - counts + 1] = command["opens"]
    last[ends] = command["closes"]
    return {"items": np.repeat(items, counts), "first": first, "last": last}


def golden(config: "SailConfig", inputs: Streams) -> Streams:
    """Products of each item's activations with the weights, added from ``opens`` to ``closes``."""
    tables_ = by_table(inputs["cmd_i"])
    items = tables_["items"]
    starts = np.cumsum(items) - items
    w = inputs["weights_i"]["w"].astype(np.int64).reshape(len(items), config.nbw, -1)
    a = inputs["acts_i"]["a"].astype(np.int64)
    found, order = [], []
    for item in range(config.batch):
        mine = np.flatnonzero(items > item)
        if not len(mine):
            continue
        terms = np.einsum("gk,gkc->gc", a[starts[mine] + item], w[mine])
        upto = np.concatenate([np.zeros_like(terms[:1]), np.cumsum(terms, axis=0)])
        framing = {name: tables_[name][mine] for name in ("first", "last")}
        begins, ends = bounds(framing)
        found.append(upto[ends + 1] - upto[begins])
        order.append(mine[ends] * config.batch + item)
    sums = np.concatenate(found)[np.argsort(np.concatenate(order))]
    return {"o": {"sums": wrapped(sums, config.acc_width)}}


def patterns(config: "SailConfig", acts: Ints) -> Ints:
    """The patterns of activations (transfers, nbw): one for each bit, the lowest first."""
    bits = acts[:, None, :].astype(np.int64) >> np.arange(config.ab)[:, None] & 1
    return (bits << np.arange(config.nbw)).sum(axis=-1).reshape(-1)


def look_ups(config: "SailConfig", inputs: Streams) -> tuple[Ints, Ints]:
    """Cycles of every look-up, and how many there are of each table."""
    counts = by_table(inputs["cmd_i"])["items"] * config.ab
    total = int(counts.sum())
    if not config.entries:
        return np.full(total, config.access), counts
    opens = np.zeros(total, np.int64)
    opens[np.cumsum(counts) - counts] = 1
    there = hits(config.entries, patterns(config, inputs["acts_i"]["a"]), opens)
    return np.where(there, 1, max(2, config.access)), counts


def cycles(config: "SailConfig", inputs: Streams) -> int:
    """Until the last sum: look-ups of one table after the other, each when it is built."""
    costs, counts = look_ups(config, inputs)
    last = np.flatnonzero(by_table(inputs["cmd_i"])["last"])[-1] + 1
    split = np.split(costs, np.cumsum(counts)[:last])[:last]
    # A memory is free when its last value was taken; its own read may go on a cycle longer.
    early = 0 if config.entries else config.access - max(1, config.access - 1)
    start = int(tables(config.part, split, early)[-1])
    taken = start + int(split[-1].sum()) - (1 if config.entries else config.access)
    return taken + 1 + config.latency
