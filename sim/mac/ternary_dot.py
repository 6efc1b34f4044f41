# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the ternary dot product."""

from typing import TYPE_CHECKING

import numpy as np

from .._ternary import CODES, VALUES
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.mac.ternary_dot import TernaryDotConfig


def stimulus(config: "TernaryDotConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Random transfers; the first are the extremes of activations and sums."""
    low, high = -(1 << config.act_width - 1), (1 << config.act_width - 1) - 1
    acts = rng.integers(low, high + 1, (transfers, config.lanes))
    trits = rng.integers(-1, 2, (transfers, config.lanes))
    corners = [(a, t) for a in (low, high, -1, 0) for t in (-1, 1, 0)]
    for row, (act, trit) in enumerate(corners[:transfers]):
        acts[row], trits[row] = act, trit
    alternating = slice(len(corners), len(corners) + 4)
    acts[alternating, ::2], acts[alternating, 1::2] = low, high
    return {"i": {"acts": acts, "weights": CODES[trits]}}


def golden(config: "TernaryDotConfig", inputs: Streams) -> Streams:
    """Exact sums of the activations weighted by their trits."""
    acts, weights = inputs["i"]["acts"], VALUES[inputs["i"]["weights"]]
    return {"o": {"sum": np.einsum("nk,nk->n", acts.astype(np.int64), weights)}}


def cycles(config: "TernaryDotConfig", inputs: Streams) -> int:
    """One transfer per cycle after the latency."""
    return len(inputs["i"]["acts"]) + config.latency
