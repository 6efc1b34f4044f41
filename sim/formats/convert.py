# SPDX-License-Identifier: Apache-2.0
"""Golden model, stimulus and cycle model of conversions between formats."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ...rtl.formats._formats import (
    FloatFormat,
    Format,
    PositFormat,
    ScaleFormat,
    TernaryFormat,
    format_named,
)
from ..types import Streams
from .codec import Codes, decode, encode

if TYPE_CHECKING:
    from ...rtl.formats.convert import ConvertConfig


def convert(source: Format, target: Format, codes: ArrayLike, *, saturate: bool = True) -> Codes:
    """Codes of ``target`` nearest to what codes of ``source`` stand for, ties to the even code.

    What :func:`.encode` refuses is defined here: a NaN becomes 0 where there is none, an infinity
    the largest number of its sign; a NaN that comes out is not negative.
    Raises :class:`.FormatError` for a code that stands for nothing.
    """
    values = decode(source, codes)
    special = isinstance(target, PositFormat | ScaleFormat) or (
        isinstance(target, FloatFormat) and target.nan is not None
    )
    values = np.where(np.isnan(values), np.nan if special else 0.0, values)
    if not isinstance(target, FloatFormat | PositFormat | ScaleFormat):
        largest = np.finfo(np.float64).max
        values = np.clip(values, -largest, largest)
    return encode(target, values, saturate=saturate)


@functools.cache
def table(source: str, target: str, saturate: bool) -> Codes:
    """What becomes of every code of the source; 0 of those that stand for nothing."""
    given, made = format_named(source), np.zeros(1 << format_named(source).width, np.int64)
    codes = valid(given)
    made[codes] = convert(given, format_named(target), codes, saturate=saturate)
    return made


def valid(format_: Format) -> Codes:
    """All codes that stand for something."""
    codes = np.arange(1 << format_.width)
    return codes[codes != 2] if isinstance(format_, TernaryFormat) else codes


def stimulus(config: ConvertConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """The codes around every special one, then all codes in any order, then random ones."""
    codes = valid(format_named(config.source))
    values = decode(format_named(config.source), codes)
    top = len(codes) // 2
    ends = np.array([0, 1, 2, top - 2, top - 1, top, top + 1, len(codes) - 2, len(codes) - 1])
    odd = np.flatnonzero(~np.isfinite(values))[:: max(1, int((~np.isfinite(values)).sum()) // 8)]
    corners = np.concatenate((ends % len(codes), odd, (odd - 1) % len(codes)))
    count = transfers * config.lanes
    order = np.concatenate((corners, rng.permutation(len(codes))))
    more = rng.integers(0, len(codes), max(count - len(order), 0))
    chosen = codes[np.concatenate((order, more))[:count]]
    return {"i": {"code": chosen.reshape(transfers, config.lanes)}}


def golden(config: ConvertConfig, inputs: Streams) -> Streams:
    """Every code by itself."""
    made = table(config.source, config.target, config.saturate)
    return {"o": {"code": made[inputs["i"]["code"]]}}


def cycles(config: ConvertConfig, inputs: Streams) -> int:
    """One a transfer, and the latency of the last."""
    return len(inputs["i"]["code"]) + config.latency
