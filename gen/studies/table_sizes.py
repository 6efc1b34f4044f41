# SPDX-License-Identifier: Apache-2.0
"""What tables of weights cost by their size and the batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...sim.lut import sail_sram
from .. import blocks
from ..verilog import emit

Row = dict[str, Any]

K = 60
"""Inputs of a product: whole tables of any size up to six."""


def table_sizes() -> Iterator[Row]:
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
    from ...sim.run import simulate

    block = blocks.find("sail_sram")
    config = block.config(style=style, batch=batch, nbw=nbw, cols=1)
    rng = np.random.default_rng(1)
    acts, weights = rng.integers(-128, 128, (batch, K)), rng.integers(-8, 8, (K, 1))
    inputs = sail_sram.transfers_of(config, weights, acts)
    outcome = simulate(emit(block, config), inputs=inputs, modes=["free"], simulator="icarus")
    if not outcome.passed:
        raise AssertionError(list(outcome.complaints()))
    return outcome.cycles
