# SPDX-License-Identifier: Apache-2.0
"""What tables of weights cost by their size and the batch, and what reusing their values saves."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rtl.lut.sail import SailConfig
from ..rtl.lut.sail_sram import SailSramConfig
from ..sim.engine.integer import NORM_OF, IntegerModel, Trace
from ..sim.lut import sail, sail_sram
from . import blocks
from .model import packed
from .model.generate import shipped
from .verilog import emit

Row = dict[str, Any]

K = 60
"""Inputs of a product: whole tables of any size up to six."""

TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her "
    "dog Max. One day they saw a big red ball under the old tree."
)


def tables() -> Iterator[Row]:
    """Cycles a product and column of `sail_sram` by weights of a table, measured in RTL.

    60 inputs, weights of 4 and activations of 8 bits, sums of 24; by the adds of SAIL's sheet the
    best sizes for batches of 1, 4, 8 and 32 are 3, 4, 5 and 6.
    """
    for style in ("word", "serial"):
        for batch in (1, 4, 8, 32):
            costs = {nbw: measured(style, batch, nbw) / (K * batch) for nbw in range(1, 7)}
            yield {
                "style": style,
                "batch": batch,
                **{f"nbw {nbw}": round(cost, 2) for nbw, cost in costs.items()},
                "best": min(costs, key=lambda nbw: costs[nbw]),
                "best by adds": min(costs, key=lambda nbw: adds(nbw, batch)),
            }


def adds(nbw: int, batch: int, bits: int = 8) -> float:
    """Adds a weight and vector: those of its table, shared by the batch, and a look-up a bit."""
    return ((1 << nbw) - nbw - 1) / (nbw * batch) + bits / nbw


def measured(style: str, batch: int, nbw: int) -> int:
    """Cycles of the RTL for one column."""
    from ..sim.run import simulate

    block = blocks.find("sail_sram")
    config = block.config(style=style, batch=batch, nbw=nbw, cols=1)
    rng = np.random.default_rng(1)
    acts, weights = rng.integers(-128, 128, (batch, K)), rng.integers(-8, 8, (K, 1))
    inputs = sail_sram.transfers_of(config, weights, acts)
    outcome = simulate(emit(block, config), inputs=inputs, modes=["free"], simulator="icarus")
    if not outcome.passed:
        raise AssertionError(list(outcome.complaints()))
    return outcome.cycles


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


BIT_UM2 = 5.0
"""Area assumed of a bit of SRAM with its share of the array's edges, in a process of 0.18 um."""


def overhead() -> Iterator[Row]:
    """Logic beside the memory array that it serves: osu018 cells, and bits of tables and sums.

    64 columns, weights of 4 and activations of 8 bits, a batch of 8, sums of 24 bits; the paper
    says about 2 %, and not of what. A bit of memory is taken as 5 um2; the pattern reuse table's
    bits count as logic. `2 % of`: the memory beside which that would be 2 %.
    """
    from ..asic.flow import build
    from ..asic.library import library

    serial = SailSramConfig(cols=64, style="serial")
    word = SailConfig(cols=64, slices=1, double=False)
    reused = SailConfig(cols=64, slices=1, double=False, nbw=6, entries=32)
    designs = (
        ("sail_sram, serial", "sail_sram", serial, serial.table_bits + serial.sum_bits, 0),
        ("sail, nbw 4", "sail", word, word.array_bits, 0),
        ("sail, nbw 6, 32 entries", "sail", reused, reused.array_bits, reused.reuse_bits),
    )
    for name, block, config, bits, kept in designs:
        with tempfile.TemporaryDirectory() as scratch:
            design = emit(blocks.find(block), config)
            mapped = build(design, library("osu018"), Path(scratch) / "out", memory_bits=128)
        area = mapped.area_um2 + kept * BIT_UM2
        yield {
            "design": name,
            "array bits": bits,
            "reuse bits": kept,
            "cells um2": round(mapped.area_um2),
            "um2 a column": round(mapped.area_um2 / 64),
            "overhead": percent(area / (bits * BIT_UM2)),
            "2 % of": f"{area / 0.02 / BIT_UM2 / 8192:.0f} KiB",
        }
