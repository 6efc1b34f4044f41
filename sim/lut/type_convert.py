# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of the conversion of columns of numbers."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..types import Streams

if TYPE_CHECKING:
    from ...rtl.lut.type_convert import TypeConvertConfig

Ints = NDArray[np.int64]


def to_float(config: "TypeConvertConfig", values: NDArray[Any]) -> NDArray[Any]:
    """The nearest floats of integers, ties to even; float64 holds integers of 32 bits."""
    with np.errstate(over="ignore"):
        return values.astype(np.float64).astype(_float(config))


def to_int(config: "TypeConvertConfig", values: NDArray[Any], scale: NDArray[Any]) -> Ints:
    """``values * 2**scale`` rounded to nearest, ties to even, and clamped; NaN as infinity."""
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float64)
    wide = np.where(np.isnan(wide), np.copysign(np.inf, wide), wide)
    end = float(1 << config.bits - 1)
    whole = np.rint(np.ldexp(wide, np.minimum(scale, config.max_scale)))
    return np.clip(whole, -end, end - 1).astype(np.int64)


def transfers(
    config: "TypeConvertConfig", values: NDArray[Any], scale: NDArray[Any] | int = 0
) -> Streams:
    """Transfers that convert ``values`` (conversions, cols): integers, or floats of the format."""
    whole = values if config.to == "float" else _codes(config, values)
    bits = whole[:, None, :] >> np.arange(config.rows_in)[None, :, None] & 1
    first = np.zeros((len(whole), config.rows_in), np.int64)
    first[:, 0] = 1
    given = {"bits": bits.reshape(-1, config.cols), "first": first.reshape(-1)}
    if config.to == "int":
        each = np.broadcast_to(np.asarray(scale), (len(whole),))
        given["scale"] = np.repeat(each, config.rows_in)
    return {"i": given}


def results(config: "TypeConvertConfig", outputs: Streams) -> NDArray[Any]:
    """Values (conversions, cols) of the transfers of a result."""
    rows = outputs["o"]["bits"].astype(np.int64).reshape(-1, config.rows_out, config.cols)
    whole = _joined(rows)
    if config.to == "float":
        return whole.astype(_uint(config)).view(_float(config))
    return _signed(whole, config.bits)


def stimulus(config: "TypeConvertConfig", rng: np.random.Generator, transfers_: int) -> Streams:
    """Numbers of all sizes: extremes, ties, specials; restarts inside of operands."""
    count = -(-transfers_ * 9 // (8 * config.rows_in)) + 2  # some are cut off below
    shape = (count, config.cols)
    if config.to == "float":
        given = transfers(config, integers(config, rng, shape))
    else:
        values, scale = floats(config, rng, shape)
        given = transfers(config, values, scale)
    i = given["i"]
    # Behind a whole operand ``first`` may be left out, and it may come too early.
    i["first"][config.rows_in :: 2 * config.rows_in] = 0
    keep = np.ones(len(i["first"]), bool)
    for number in range(3, count - 1, 7):
        keep[number * config.rows_in + 1 + int(rng.integers(config.rows_in - 1)) :][
            : config.rows_in // 2
        ] = False
    starts = np.arange(0, len(keep), config.rows_in)
    broken = np.flatnonzero(~np.minimum.reduceat(keep, starts))
    for number in broken:  # what comes after one that lacks rows begins anew
        i["first"][starts[min(number + 1, count - 1)]] = 1
    return {"i": {name: values[keep] for name, values in i.items()}}


def integers(config: "TypeConvertConfig", rng: np.random.Generator, shape: tuple[int, int]) -> Ints:
    """Integers of all lengths, half of them with a tie, or beside one, below the significand."""
    n = config.bits
    length = rng.integers(0, n, shape)
    values = rng.integers(0, 1 << n - 1, shape) & (np.int64(1) << length) - 1
    values |= np.int64(1) << length >> 1
    half = np.maximum(length - config.mantissa - 2, 0)
    near = (values >> half | 1) << half
    near = near + rng.integers(-1, 2, shape)
    values = np.where(rng.random(shape) < 0.5, near, values)
    values = np.where(rng.random(shape) < 0.5, -values, values)
    ends = np.array([0, -1, 1, (1 << n - 1) - 1, -(1 << n - 1), 1 - (1 << n - 1), 1 << n - 2])
    chosen = ends[rng.integers(0, len(ends), shape)]
    values = np.where(rng.random(shape) < 0.1, chosen, values)
    return np.clip(values, -(1 << n - 1), (1 << n - 1) - 1)


def floats(
    config: "TypeConvertConfig", rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[NDArray[Any], Ints]:
    """Floats, most about as large as integers are, ties among them, and a scale for each row."""
    n, low = config.bits, -(1 << config.exponent)
    scale = rng.integers(low, -low, shape[0])
    near = rng.random(shape[0]) < 0.8
    scale = np.where(near, rng.integers(-8, 9, shape[0]), scale)
    halves = rng.integers(-(1 << n) - 2, (1 << n) + 3, shape) >> rng.integers(0, n + 1, shape)
    edges = np.array([(1 << n) - 2, (1 << n) - 1, 1 << n, -(1 << n), -(1 << n) - 1])
    halves = np.where(rng.random(shape) < 0.1, rng.choice(edges, shape), halves)
    values = np.ldexp(halves / 2.0, -scale[:, None])
    spread = np.exp2(rng.uniform(-3, n + 1, shape)) * rng.choice([-1.0, 1.0], shape)
    spread = np.ldexp(spread, -scale[:, None])
    with np.errstate(over="ignore", under="ignore"):
        values = np.where(rng.random(shape) < 0.5, values, spread).astype(_float(config))
    code = _codes(config, values)
    anything = rng.integers(0, 1 << config.float_rows, shape)
    code = np.where(rng.random(shape) < 0.15, anything, code)
    top = (1 << config.exponent) - 1 << config.mantissa
    specials = np.array([0, 1, 1 << config.mantissa, top - 1, top, top + 1])
    chosen = specials[rng.integers(0, len(specials), shape)]
    chosen = chosen | rng.integers(0, 2, shape) << config.float_rows - 1
    code = np.where(rng.random(shape) < 0.1, chosen, code)
    return code.astype(_uint(config)).view(_float(config)), scale


def golden(config: "TypeConvertConfig", inputs: Streams) -> Streams:
    """Results of all whole operands."""
    i = inputs["i"]
    starts = _starts(config, i["first"])
    rows = i["bits"].astype(np.int64)[starts[:, None] + np.arange(config.rows_in)]
    whole = _joined(rows)
    if config.to == "float":
        made = _codes(config, to_float(config, _signed(whole, config.bits)))
    else:
        values = whole.astype(_uint(config)).view(_float(config))
        made = to_int(config, values, i["scale"][starts][:, None])
    bits = made[:, None, :] >> np.arange(config.rows_out)[None, :, None] & 1
    last = np.tile(np.arange(config.rows_out) == config.rows_out - 1, len(starts))
    return {"o": {"bits": bits.reshape(-1, config.cols), "last": last.astype(np.int64)}}


def cycles(config: "TypeConvertConfig", inputs: Streams) -> int:
    """A cycle for each row of operands, and the program for each whole operand."""
    starts = _starts(config, inputs["i"]["first"])
    loaded = int(starts[-1]) + config.rows_in
    return loaded + len(starts) * len(config.program) + 2


def _starts(config: "TypeConvertConfig", first: NDArray[Any]) -> Ints:
    """The first row of every whole operand."""
    marks = np.flatnonzero(np.append(True, first[1:] != 0))
    found = [
        np.arange(start, end - config.rows_in + 1, config.rows_in)
        for start, end in zip(marks, np.append(marks[1:], len(first)), strict=True)
    ]
    return np.concatenate(found)


def _joined(rows: Ints) -> Ints:
    """Numbers (..., cols) of their bit rows (..., rows, cols)."""
    return (rows << np.arange(rows.shape[-2])[:, None]).sum(axis=-2)


def _signed(whole: Ints, bits: int) -> Ints:
    return whole - (whole >> bits - 1 << bits)


def _codes(config: "TypeConvertConfig", values: NDArray[Any]) -> Ints:
    return values.astype(_float(config)).view(_uint(config)).astype(np.int64)


def _float(config: "TypeConvertConfig") -> Any:
    return np.dtype(config.format)


def _uint(config: "TypeConvertConfig") -> Any:
    return np.dtype(f"uint{config.float_rows}")
