# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the two-mode dot product."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._runs import marks, one, sums, wrapped
from ..types import Streams, Transfers

if TYPE_CHECKING:
    from ...rtl.mac.boothflex import BoothflexConfig

Array = NDArray[np.integer]


def integers(config: "BoothflexConfig", a: Array, b: Array, passes: int | None = None) -> Streams:
    """Transfers of dot products in integer mode: ``a`` and ``b`` (dots, K), K filled with zeros.

    ``passes`` is for ``b`` of fewer than ``b_width`` bits.
    """
    dots, count = len(a), -(-a.shape[1] // config.pes)
    pairs = [_filled(x, count * config.pes).reshape(dots * count, config.pes) for x in (a, b)]
    slots = np.zeros((dots * count, config.pes, config.slots), np.int64)
    slots[:, :, 0] = pairs[0]
    return {"i": {"a": slots, "b": pairs[1], **_control(config, dots, count, 0, passes)}}


def ternary(config: "BoothflexConfig", acts: Array, weights: Array) -> Streams:
    """Transfers of dot products in ternary mode: ``acts`` and ``weights`` (dots, K)."""
    dots, count = len(acts), -(-acts.shape[1] // config.lanes)
    shape = (dots * count, config.pes, config.slots)
    acts, weights = (_filled(x, count * config.lanes).reshape(shape) for x in (acts, weights))
    return {"i": {"a": acts, "b": joined(weights), **_control(config, dots, count, 1, None)}}


def joined(weights: Array) -> Array:
    """One operand of the 2-bit weights along the last axis, the first one lowest."""
    codes = (weights & 3) << 2 * np.arange(weights.shape[-1])
    return codes.sum(axis=-1)


def stimulus(config: "BoothflexConfig", rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths, modes and widths, with extremes and restarts.

    The largest sums come first: ``max_k`` products of extremes, as far as ``transfers`` go.
    """
    a = _random(config.a_width, rng, (transfers, config.pes, config.slots))
    b = _random(config.b_width, rng, (transfers, config.pes))
    mode = rng.integers(0, 2, transfers) if config.ternary else np.zeros(transfers, np.int64)
    passes = rng.integers(0, config.groups, transfers)
    framing = marks(rng, transfers)

    full, at = config.max_k // config.pes, 0
    low, high = -(1 << config.a_width - 1), (1 << config.a_width - 1) - 1
    b_low, b_high = -(1 << config.b_width - 1), (1 << config.b_width - 1) - 1
    minus = joined(np.full(config.digits, -2 if config.int2 else -1))
    corners = [(low, b_low, 0), (high, b_high, 0), (low, b_high, 0), (high, b_low, 0)]
    if config.ternary:
        ones = int(joined(np.ones(config.digits, np.int64)))
        corners += [(low, int(minus), 1), (high, int(minus), 1), (low, ones, 1), (high, ones, 1)]
        corners += [(high, 0, 1)]
    for number, (x, y, how) in enumerate(corners):
        length = min(full // config.slots if how else full, 1 + transfers // 12)
        run = one(framing, at, length, first=number % 2)
        a[run], b[run], mode[run], passes[run] = x, y, how, config.groups - 1
        at = run.stop

    if config.ternary and not config.int2:  # code 2 is no weight there
        codes = _codes(config, b)
        chosen = (mode == 1)[:, None] & (codes == 2).any(axis=-1)
        b = np.where(chosen, joined(np.where(codes == 2, 3, codes)), b)
    b = wrapped(b, config.b_width)
    return {"i": {"a": a, "b": b, **framing, **_chosen(config, mode, passes)}}


def golden(config: "BoothflexConfig", inputs: Streams) -> Streams:
    """Exact sums of the runs, from the definition of both modes."""
    i = inputs["i"]
    passes = i.get("passes", np.zeros(len(i["last"]), np.int64))
    bits = 2 * config.digits_per_cycle * (passes + 1)
    b = wrapped(i["b"].astype(np.int64), bits[:, None])
    terms = (i["a"][:, :, 0].astype(np.int64) * b).sum(axis=1)
    if config.ternary:
        weights = wrapped(_codes(config, i["b"]), 2)[:, :, : config.slots]
        trits = (i["a"].astype(np.int64) * weights).sum(axis=(1, 2))
        terms = np.where(i["mode"] == 1, trits, terms)

    return {"o": {"sum": wrapped(sums(terms, i), config.acc_width)}}


def cycles(config: "BoothflexConfig", inputs: Streams) -> int:
    """A cycle per group of digits, one in ternary mode; then the latency of the last run."""
    i = inputs["i"]
    busy = np.ones(len(i["last"]), np.int64)
    if config.groups > 1:
        busy += np.where(i["mode"] == 1, 0, i["passes"]) if config.ternary else i["passes"]
    end = np.flatnonzero(i["last"])[-1] + 1
    return int(busy[:end].sum()) + config.latency


def _control(
    config: "BoothflexConfig", dots: int, count: int, mode: int, passes: int | None
) -> Transfers:
    """The fields beside the operands, for ``dots`` runs of ``count`` transfers."""
    first, last = np.zeros((2, dots, count), np.int64)
    first[:, 0] = last[:, -1] = 1
    steps = config.groups - 1 if passes is None else passes
    chosen = _chosen(config, np.full(dots * count, mode), np.full(dots * count, steps))
    return {"first": first.reshape(-1), "last": last.reshape(-1), **chosen}


def _chosen(config: "BoothflexConfig", mode: Array, passes: Array) -> Transfers:
    fields = {"mode": mode} if config.ternary else {}
    return {**fields, "passes": passes} if config.groups > 1 else fields


def _random(width: int, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(-(1 << width - 1), 1 << width - 1, shape)


def _codes(config: "BoothflexConfig", b: Array) -> Array:
    """The 2-bit codes of every operand, the lowest first."""
    return b[..., None] >> 2 * np.arange(config.digits) & 3


def _filled(values: Array, length: int) -> Array:
    return np.pad(values, ((0, 0), (0, length - values.shape[1])))
