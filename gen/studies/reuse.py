# SPDX-License-Identifier: Apache-2.0
"""What reusing the values of patterns saves when tables of weights are looked up."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.lut.sail import SailConfig
from ...sim.engine.integer import NORM_OF, IntegerModel, Trace
from ...sim.lut import sail
from ..model import packed
from ..model.generate import shipped

Row = dict[str, Any]

TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her "
    "dog Max. One day they saw a big red ball under the old tree."
)


def reuse() -> Iterator[Row]:
    """Cycles that a pattern reuse table saves in `sail`, on the shipped model and on random codes.

    The codes of all projections of a text of the shipped model, a batch being its tokens in order;
    random ones are uniform. Reading the array takes two cycles, a value that is there one; tables
    are built before (`saved`) or during (`ping-pong`) look-ups. The paper's figure is 13.8 %. `1 -
    D/L`: hits of random patterns if none gives way. By the cycle model, which tests/test_sail.py
    holds the RTL to.
    """
    vectors = activations()
    rng = np.random.default_rng(1)
    random = [rng.integers(-128, 128, each.shape) for each in vectors]
    for batch, nbw, entries in (
        *((1, 3, 8), (1, 4, 8), (1, 4, 16), (1, 6, 32)),
        *((8, 4, 8), (8, 5, 16), (8, 6, 32), (32, 6, 32)),
    ):
        look_ups = 8 * batch
        different = (1 << nbw) * (1 - (1 - 2.0**-nbw) ** look_ups)
        row: Row = {
            "batch": batch,
            "nbw": nbw,
            "entries": entries,
            "1 - D/L": percent(1 - different / look_ups),
        }
        for name, given in (("real", vectors), ("random", random)):
            found = saved(given, batch, nbw, entries, double=False)
            row |= {f"hits, {name}": percent(found[0]), f"saved, {name}": percent(found[1])}
            both = saved(given, batch, nbw, entries, double=True)
            row[f"ping-pong, {name}"] = percent(both[1])
        yield row


def percent(share: float) -> str:
    """``13.8 %``."""
    return f"{100 * share:.1f} %"


def activations(text: str = TEXT) -> list[NDArray[np.int64]]:
    """Codes (tokens, inputs) of every projection's input, of all layers of the shipped model."""
    file = packed.load(shipped())
    model = IntegerModel.compile(file.model)
    tokens = np.array(file.tokenizer.encode(text))
    trace: Trace = {}
    model.forward(tokens, model.start(), trace)
    norms = sorted(set(NORM_OF.values()))
    return [
        values.astype(np.int64)
        for name, values in trace.items()
        if name.endswith(".codes") and any(name.endswith(f"{norm}.codes") for norm in norms)
    ]


def saved(
    vectors: list[NDArray[np.int64]], batch: int, nbw: int, entries: int, *, double: bool
) -> tuple[float, float]:
    """Share of look-ups whose value was there, and of cycles that were saved."""
    config = SailConfig(nbw=nbw, batch=batch, slices=1, cols=1, entries=entries, double=double)
    without = SailConfig(nbw=nbw, batch=batch, slices=1, cols=1, double=double)
    took = {config: 0, without: 0}
    there = count = 0
    for each in vectors:
        for at in range(0, len(each) - batch + 1, batch):
            weights = np.zeros((each.shape[1], 1), np.int64)
            inputs = sail.transfers_of(config, weights, each[at : at + batch])
            for one in took:
                took[one] += sail.cycles(one, inputs)
            costs = sail.look_ups(config, inputs)[0]
            there += int((costs == 1).sum())
            count += len(costs)
    return there / count, 1 - took[config] / took[without]
