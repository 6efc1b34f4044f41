# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of dot products of posits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...rtl.formats._formats import PositFormat, format_named
from .._runs import marks, one, sums
from ..formats.codec import decode, encode
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.mac.posit_mac import PositMacConfig

Ints = NDArray[np.int64]
WORD = 32
MASK = (1 << WORD) - 1


def dots(config: PositMacConfig, a: Ints, b: Ints) -> Streams:
    """Transfers of the dot products of posit codes ``a`` and ``b`` (dots, K)."""
    first, last = np.zeros(a.shape, np.int64), np.zeros(a.shape, np.int64)
    first[:, 0] = last[:, -1] = 1
    fields = {"a": a, "b": b, "first": first, "last": last}
    return {"i": {name: values.reshape(-1) for name, values in fields.items()}}


def stimulus(config: PositMacConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Runs of random lengths of all kinds of posits, with NaR, restarts and sums that cancel.

    The largest sums come first: ``max_k`` products of the largest posit, of both signs, as far as
    ``transfers`` go; then the smallest.
    """
    bits = config.bits
    nar, most = 1 << bits - 1, (1 << bits - 1) - 1
    a, b = rng.integers(0, 1 << bits, (2, transfers))
    some = rng.random(transfers)
    tapered = rng.integers(0, 1 << bits, transfers) >> rng.integers(0, bits, transfers)
    a = np.where(some < 0.4, tapered ^ np.where(some < 0.2, nar, 0), a)
    extremes = np.array([1, most, most + 2, 2 * nar - 1, 0, 1 << bits - 2])
    for values in (a, b):
        chosen = rng.random(transfers) < 0.15
        values[chosen] = rng.choice(extremes, int(chosen.sum()))
        unlike = (values == nar) & (rng.random(transfers) < 0.9)
        values[unlike] = most
    rare = rng.random(transfers) < 0.01
    a[rare] = nar
    # Equal and opposite products one after the other.
    again = np.flatnonzero(rng.random(max(transfers - 1, 0)) < 0.2)
    a[again + 1], b[again + 1] = a[again], -b[again] & 2 * nar - 1
    framing = marks(rng, transfers)
    at = 0
    for number, (x, y) in enumerate([(most, most), (most, nar + 1), (1, 1), (1, 2 * nar - 1)]):
        run = one(framing, at, min(config.max_k, 1 + transfers // 8), first=number % 2)
        a[run], b[run] = x, y
        at = run.stop
    for code in (nar, nar + 1, 0):  # a run of one transfer each; NaR does not stay
        run = one(framing, at, 1, first=0)
        a[run], b[run] = code, 1 << bits - 2
        at = run.stop
    return {"i": {"a": a, "b": b, **framing}}


def golden(config: PositMacConfig, inputs: Streams) -> Streams:
    """Exact sums of the runs, and the posits nearest to them."""
    i = inputs["i"]
    format_ = format_named(config.format)
    assert isinstance(format_, PositFormat)
    span = 2 * (config.bits - 2 << config.es)  # a product is a multiple of 2**-span
    a, b = decode(format_, i["a"]), decode(format_, i["b"])
    bad = np.isnan(a) | np.isnan(b)
    limbs = _limbs(np.where(bad, 0.0, a), np.where(bad, 0.0, b), span, config.words)
    quires = _whole(sums(limbs, i))
    nar = sums(bad.astype(np.int64), i) > 0
    half = 1 << config.quire_width - 1
    quires = [(quire + half & 2 * half - 1) - half for quire in quires]
    y = np.where(nar, 1 << config.bits - 1, nearest(format_, quires, span))
    out = {"y": y}
    if config.raw:
        shown = [-half if bad_one else quire for quire, bad_one in zip(quires, nar, strict=True)]
        rows = [[quire >> WORD * n & MASK for n in range(config.words)] for quire in shown]
        out["quire"] = np.array(rows, np.int64).reshape(len(shown), config.words)
    return {"o": out}


def nearest(format_: PositFormat, quires: list[int], span: int) -> Ints:
    """Codes nearest to exact integers times ``2**-span``.

    What is longer than a double becomes one with its last bit set, which no rounding to 16 bits
    tells apart.
    """
    wholes, exponents = [], []
    for quire in quires:
        spare = max(abs(quire).bit_length() - 50, 0)
        size = abs(quire) >> spare | (abs(quire) & (1 << spare) - 1 != 0)
        wholes.append(size if quire >= 0 else -size)
        exponents.append(spare - span)
    return encode(format_, np.ldexp(np.array(wholes, np.float64), np.array(exponents, np.int64)))


def cycles(config: PositMacConfig, inputs: Streams) -> int:
    """One a transfer, then the latency of the last run."""
    return int(np.flatnonzero(inputs["i"]["last"])[-1]) + 1 + config.latency


def _limbs(x: NDArray[np.float64], y: NDArray[np.float64], span: int, words: int) -> Ints:
    """Products times ``2**span`` in words of 32 bits, each with the product's sign."""
    fraction, exponent = np.frexp(np.abs(x) * np.abs(y))  # exact: 26 bits at most
    whole = np.ldexp(fraction, 30).astype(np.int64)
    shift = exponent.astype(np.int64) - 30 + span
    whole = np.where(shift < 0, whole >> -np.minimum(shift, 0), whole)
    shift = np.where(whole == 0, 0, np.maximum(shift, 0))
    low, at = whole << shift % WORD, shift // WORD
    sign = np.where((x < 0) ^ (y < 0), -1, 1)
    limbs = np.zeros((len(x), words + 2), np.int64)
    rows = np.arange(len(x))
    limbs[rows, at] += sign * (low & MASK)
    limbs[rows, at + 1] += sign * (low >> WORD)
    return limbs


def _whole(limbs: Ints) -> list[int]:
    return [sum(int(limb) << WORD * n for n, limb in enumerate(row)) for row in limbs]
