# SPDX-License-Identifier: Apache-2.0
"""Golden model of the rescaling of sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._fixed import MANTISSA_BITS, IntLike, product, requantise, saturate
from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.vector.rescale import RescaleConfig

Ints = NDArray[np.int64]
Scale = tuple[IntLike, IntLike]


def rescale(sums: Ints, one: Scale, other: Scale, bits: int) -> Ints:
    """Rows of sums times two scales, of which each row has its own, as elements of ``bits``.

    The scales are multiplied and normalised to 16 bits first; then there is one rounding, to
    nearest, ties upwards, and saturation.
    """
    mantissa, shift = product(one, other)
    return saturate(requantise(sums, mantissa[..., None], shift[..., None]), bits)


def stimulus(config: RescaleConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """Operations of all lengths and scales; most elements of about the width of the output."""
    longest = (1 << config.rows_width) - 1
    corners = np.minimum([3, 0, 1, 2, 0, 40, longest, 1, 20, 19, 21, 22], min(longest, 60))
    rows = rng.integers(0, min(longest, 60) + 1, transfers)
    rows[: len(corners)] = corners[:transfers]
    count = max(int(np.searchsorted(np.cumsum(rows), transfers)) + 1, 2)
    rows = rows[:count]
    if rows[-1] == 0:
        rows[-1] = 1
    fresh = rng.random(count) < 0.6
    fresh[:3] = (False, True, False)  # at first there is no norm scale
    used = np.cumsum(fresh) - 1

    norms = {"mantissa": _mantissas(rng, int(fresh.sum()))}
    norms["shift"] = rng.integers(0, 64, len(norms["mantissa"]))
    norms["shift"] >>= rng.random(len(norms["shift"])) < 0.7
    norms["mantissa"][0] |= 1 << MANTISSA_BITS - 1
    norms["shift"][0] = 20
    # Own shifts that leave elements of up to two bits more than there is room for.
    spare = config.sum_width + MANTISSA_BITS - config.out_width
    wanted = MANTISSA_BITS + spare + rng.integers(-2, config.out_width, count)
    shift = np.clip(wanted - norms["shift"][used], 0, 63)
    wild = rng.random(count) < 0.15
    shift[wild] = rng.integers(0, 64, int(wild.sum()))
    # Powers of two, so that sums come out as halves and one bit of a mantissa decides.
    mantissa = _mantissas(rng, count)
    ties = (norms["mantissa"][used] == 1 << MANTISSA_BITS - 1) & (rng.random(count) < 0.7)
    mantissa[ties] = 1 << MANTISSA_BITS - 1
    halves = 2 * (MANTISSA_BITS - 1) + rng.integers(1, 4, count) - norms["shift"][used]
    shift[ties] = np.clip(halves, 0, 63)[ties]
    sums = int(rows.sum())
    bits = rng.integers(1, config.sum_width, sums)
    low, high = -(1 << config.sum_width - 1), (1 << config.sum_width - 1) - 1
    values = rng.integers(-(1 << bits), 1 << bits)
    extreme = rng.random(sums) < 0.2
    values[extreme] = rng.choice([low, high, low + 1, 0, 1, -1], int(extreme.sum()))
    return {
        "norm_i": norms,
        "op_i": {
            "mantissa": mantissa,
            "shift": shift,
            "rows": rows,
            "fresh": fresh,
            "tag": rng.integers(0, 1 << min(config.tag_width, 62), count),
        },
        "i": {"sum": values},
    }


def _mantissas(rng: np.random.Generator, count: int) -> Ints:
    """Mantissas, some extreme, powers of two or 0."""
    top = 1 << MANTISSA_BITS - 1
    found = rng.integers(top, 2 * top, count)
    special = rng.random(count)
    found[special < 0.4] = top
    found[special < 0.15] = 2 * top - 1
    found[special < 0.05] = 0
    return found


def golden(config: RescaleConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    op, norm, sums = inputs["op_i"], inputs["norm_i"], inputs["i"]["sum"]
    used = np.cumsum(op["fresh"].astype(np.int64))
    rows = op["rows"]
    theirs, own = (
        (np.repeat(mantissa, rows), np.repeat(shift, rows))
        for mantissa, shift in (
            (np.append(0, norm["mantissa"])[used], np.append(0, norm["shift"])[used]),
            (op["mantissa"], op["shift"]),
        )
    )
    y = rescale(sums[:, None], theirs, own, config.out_width)[:, 0]
    ends = np.cumsum(rows)[rows > 0]
    first, last = np.zeros((2, len(sums)), np.int64)
    last[ends - 1] = 1
    first[np.append(0, ends[:-1])] = 1
    return {
        "o": {
            "y": y,
            "sum": sums,
            "tag": np.repeat(op["tag"], rows),
            "first": first,
            "last": last,
        }
    }


def cycles(config: RescaleConfig, inputs: Streams) -> int:
    """Cycles from the first edge with all input offered to the edge of the last output."""
    taken, end = 1, 0
    for rows in inputs["op_i"]["rows"].tolist():
        if rows:
            loaded = max(taken + config.interval - 1, end)
            end, taken = loaded + rows, loaded + 1
        else:
            taken += 1
    return end + config.latency
