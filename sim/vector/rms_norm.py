# SPDX-License-Identifier: Apache-2.0
"""Golden model of the fused RMS norm and quantiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._fixed import absmax_codes, normalise, quotient, root, round_half_even_div, round_shift
from ..types import Streams
from . import _runs
from .absmax_quantise import values

if TYPE_CHECKING:
    from ...rtl.vector.rms_norm import RmsNormConfig

Ints = NDArray[np.int64]


def norm_quantise(
    x: Ints, gain: Ints, eps: Ints | int, top: int = 127, drop: int = 0, plain: bool = False
) -> tuple[Ints, tuple[Ints, Ints]]:
    """Codes and scale of ``RMSNorm(x) * gain`` along the last axis, quantised by ``max|y|``.

    With ``y = x * gain / 2**drop``, to nearest, ties upwards, codes are ``top * y / max|y|`` to
    nearest, ties to even; the norm cancels there.  The scale is ``max|y| / sqrt(sum(x**2) + eps)``
    as (mantissa, shift); constants that complete it (``sqrt(width) / top``, the units of gain and
    ``y``) are left to whoever takes the codes.  ``plain``: the scale is ``max|y| / sqrt(eps)``.
    """
    weighted = round_shift(x * gain, drop)
    peak = np.abs(weighted).max(axis=-1)
    squares = 0 if plain else (x * x).sum(axis=-1)
    return absmax_codes(weighted, peak, top), scale_of(peak, squares + np.asarray(eps))


def scale_of(peak: Ints, square: Ints) -> tuple[Ints, Ints]:
    """``peak / sqrt(square)`` as (mantissa, shift), rounded in three steps; a square of 0 is 1."""
    return quotient(normalise(peak), root(np.maximum(square, 1)))


def stimulus(config: RmsNormConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Vectors as for the quantiser; new gains now and then, some sets short or begun twice."""
    rows = config.max_len // config.lanes
    sizes = _runs.lengths(rng, rows, transfers)
    first, last = _runs.framing(rng, sizes, rows)
    x = values(rng, sizes, config.lanes, config.x_width, config.code_width)
    count = len(x)
    opens = _runs.Runs.of({"first": first, "last": last}, rows).opens

    load = (rng.random(count) < 0.15) & opens
    load[np.flatnonzero(opens)[1:3]] = (False, True)
    noise = rng.random(count) < 0.05  # heeded only where a vector opens
    sets = int(load.sum()) + (not load[0])
    set_sizes = rng.integers(1, rows + 1, sets)
    set_sizes[rng.random(sets) < 0.7] = rows
    set_first, set_last = _runs.framing(rng, set_sizes, rows)
    extra = sets - int(_runs.Runs.of({"first": set_first, "last": set_last}, rows).ends.sum())
    if extra:  # what framing left unfinished is made up for with whole sets
        set_first = np.append(set_first, np.tile(np.arange(rows) == 0, extra))
        set_last = np.append(set_last, np.tile(np.arange(rows) == rows - 1, extra))

    low, high = -(1 << config.gain_width - 1), (1 << config.gain_width - 1) - 1
    shape = (len(set_first), config.lanes)
    gains = rng.integers(low, high + 1, shape)
    gains = np.where(
        rng.random((len(set_first), 1)) < 0.1, rng.choice([low, high, 0], shape), gains
    )
    plain = rng.random(count) < 0.2
    eps_bits = rng.integers(0, config.eps_width + 1, count)
    return {
        "i": {
            "x": x,
            "eps": rng.integers(0, np.int64(1) << eps_bits),
            "first": first,
            "last": last,
            "load": load | (noise & ~opens),
            "plain": plain,
        },
        "gain_i": {"gains": gains, "first": set_first, "last": set_last},
    }


def golden(config: RmsNormConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    given = inputs["i"]
    rows = config.max_len // config.lanes
    runs = _runs.Runs.of(given, rows)
    begin = runs.kept[runs.starts]  # the transfer that opens each finished vector
    table, _ = _gain_sets(config, inputs)
    number = np.cumsum(_loads(runs, given))[begin] - 1  # of the gain set that holds
    row = np.arange(len(runs.kept)) - runs.per_row(runs.starts)

    x = given["x"][runs.kept].astype(np.int64)
    weighted = round_shift(x * table[runs.per_row(number), row], config.drop)
    peak = np.maximum.reduceat(np.abs(weighted).max(axis=1), runs.starts)
    top = (1 << config.code_width - 1) - 1
    codes = round_half_even_div(top * weighted, runs.per_row(np.maximum(peak, 1))[:, None])
    squares = np.add.reduceat((x * x).sum(axis=1), runs.starts)
    squares[given["plain"][begin].astype(bool)] = 0
    mantissa, shift = scale_of(peak, squares + given["eps"][begin])
    return {
        "o": {"codes": codes, **runs.marks()},
        "scale_o": {"mantissa": mantissa, "shift": shift % 64},
    }


def cycles(config: RmsNormConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    core = config.quantiser
    runs = _runs.Runs.of(inputs["i"], core.rows)
    _, taken = _gain_sets(config, inputs)
    loads = _loads(runs, inputs["i"])
    waits = np.zeros(len(loads), np.int64)
    waits[loads] = taken[: loads.sum()]
    return _runs.cycles(
        runs,
        buffer=1 << core.address_width,
        commit=core.commit,
        early=core.early,
        codes=core.code_latency,
        gate=waits.tolist(),
        scale=(config.scale.latency, config.scale.interval),
    )


def _loads(runs: _runs.Runs, given: dict[str, Ints]) -> NDArray[np.bool_]:
    """Which transfers take a set of gains first."""
    loads = runs.opens & given["load"].astype(bool)
    loads[0] = True
    return loads


def _gain_sets(config: RmsNormConfig, inputs: Streams) -> tuple[Ints, Ints]:
    """All sets of gains (set, row, lane), zeros beyond each, and the transfers each took."""
    given = inputs["gain_i"]
    rows = config.max_len // config.lanes
    sets = _runs.Runs.of(given, rows)
    table = np.zeros((len(sets.starts), rows, config.lanes), np.int64)
    row = np.arange(len(sets.kept)) - sets.per_row(sets.starts)
    table[sets.per_row(np.arange(len(sets.starts))), row] = given["gains"][sets.kept]
    return table, np.diff(np.flatnonzero(sets.ends), prepend=-1)
