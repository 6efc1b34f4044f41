# SPDX-License-Identifier: Apache-2.0
"""Post-training quantisation of whole matrices, one scale each.

- :func:`integer`: symmetric absmax. ``peak = max |w|``, ``top = 2**(bits - 1) - 1`` (127 or 7),
  ``code = round_half_even(w * top / peak)`` in float64, within ``-top .. top``; ``scale`` is
  ``peak / top`` rounded to float32. A matrix of zeros has codes 0 and scale 1.
- :func:`ternary`: absmean, as BitNet b1.58 is trained. ``mu = mean |w|`` summed in float64 and
  rounded to float32; ``scale = max(mu, 1e-5)``; ``trit = clamp(round_half_even(w * (1 / scale)),
  -1, 1)`` in float32. A matrix that has no other values than -s, 0 and s is ternary already and
  keeps them: its mean would be below s.
- :func:`blocked`: blocks along the inputs with a power of two each (``mxfp4``, ``mxint8`` ...),
  ``docs/formats.md``. Powers are counted from the least one up; blocks so small that int32 sums
  would overflow take a larger power, and so lose bits.
- :func:`elements`: codes of a number format (``fp4_e2m1``, ``posit8_0``, ``bipolar4`` ...); of 65
  scales from that of the largest magnitude down to a 16th of it, the one of least squared error.
- :func:`dual`: flexible dual binarisation (``fdb``) in groups of 64 inputs, factors rounded to 8
  bits of the matrix's largest.
- :func:`hierarchical`: hierarchical linear quantisation (``hlq2``, ``hlq3``) in the same groups,
  factors and offsets rounded to 8 bits of the matrix's largest.

Source: BitNet b1.58, arXiv 2402.17764, equations 1 to 3, with the clamped mean of its code; OCP
Microscaling Formats v1.0; DB-LLM, arXiv 2402.11960;
ELUTQ, arXiv 2510.19482.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError
from ...rtl.formats._blocks import BlockFormat, Rule, block_format_named
from ...rtl.formats._formats import (
    BipolarFormat,
    FloatFormat,
    Format,
    FormatError,
    IntegerFormat,
    PositFormat,
    format_named,
)
from ...sim.engine.model import Coded, Integer, Planes, Ternary
from ...sim.formats import blocks, hlq
from ...sim.formats.codec import decode, encode, grouped, largest, step_of
from ...sim.formats.dual import binarise, fit
from .checkpoint import Checkpoint, Tensor

Target = str
"""Name of a format: ``ternary``, ``int8``, ``mxfp4``, ``posit8_0``, ``fdb``, ``hlq2`` ..."""
SPREAD = 15
"""Most powers of two between the blocks of a matrix."""
GROUP = 64
"""Inputs that share the factors of planes of bits."""
TOP = 127
"""The largest factor."""
SCALES = 65
_ROWS = 1 << 20
"""Elements that are widened at a time."""


class QuantiseError(AtriplexError, ValueError):
    """A matrix or a width that cannot be quantised; one sentence."""


def _chunks(matrix: NDArray[np.float32]) -> Iterator[slice]:
    step = max(1, _ROWS // max(1, matrix.shape[-1]))
    for start in range(0, len(matrix), step):
        yield slice(start, start + step)


def _peak(matrix: NDArray[np.float32]) -> float:
    peak = float(np.abs(matrix).max(initial=0.0))
    if not np.isfinite(peak):
        raise QuantiseError("a matrix with values that are not finite cannot be quantised")
    return peak


def integer(matrix: NDArray[np.float32], bits: int = 8) -> Integer:
    """Symmetric absmax codes of ``bits`` bits (2 to 8); at most half a step from the values."""
    if not 2 <= bits <= 8:
        raise QuantiseError(f"bits must be in 2..8, not {bits}")
    peak, top = _peak(matrix), (1 << bits - 1) - 1
    scale = float(np.float32(peak / top))
    if scale == 0:  # zeros, or too small for float32
        return Integer(np.zeros(matrix.shape, np.int8), 1.0, bits)
    codes = np.empty(matrix.shape, np.int8)
    for rows in _chunks(matrix):
        codes[rows] = np.rint(matrix[rows].astype(np.float64) * top / peak)
    return Integer(codes, scale, bits)


def exact_ternary(matrix: NDArray[np.float32]) -> Ternary | None:
    """The ternary matrix of exactly these values; None when there is none."""
    peak = _peak(matrix)
    if peak == 0:
        return Ternary(np.zeros(matrix.shape, np.int8), 1.0)
    trits = np.empty(matrix.shape, np.int8)
    for rows in _chunks(matrix):
        part = matrix[rows]
        if not ((np.abs(part) == np.float32(peak)) | (part == 0)).all():
            return None
        trits[rows] = np.sign(part)
    return Ternary(trits, peak)


def ternary(matrix: NDArray[np.float32]) -> Ternary:
    """Absmean trits, or the values themselves where they are ternary."""
    exact = exact_ternary(matrix)
    if exact is not None:
        return exact
    total = sum(float(np.abs(matrix[rows]).sum(dtype=np.float64)) for rows in _chunks(matrix))
    scale = max(np.float32(total / matrix.size), np.float32(1e-5))
    trits = np.empty(matrix.shape, np.int8)
    for rows in _chunks(matrix):
        trits[rows] = np.clip(np.rint(matrix[rows] * (np.float32(1) / scale)), -1, 1)
    return Ternary(trits, float(scale))


def block_format(name: str) -> BlockFormat:
    """The block format of a name, with the rule that suits it: 4 bits rather lose their largest."""
    format_ = block_format_named(name, Rule.CEIL)
    return block_format_named(name, Rule.FLOOR) if format_.element.width == 4 else format_


def blocked(matrix: NDArray[np.float32], name: str) -> Coded:
    """Elements in blocks along the inputs, each with a power of two."""
    format_ = block_format(name)
    _peak(matrix)
    rows, columns = matrix.shape
    made = blocks.quantise(format_, matrix)
    powers = made.scales - 127
    used = np.abs(matrix).max(initial=0) > 0
    most = int(powers.max()) if used else 0
    parts = grouped(matrix.astype(np.float64), format_.block)
    for spread in range(SPREAD, -1, -1):
        least = max(most - spread, int(powers[powers > -127].min(initial=most)))
        kept = np.maximum(powers, least)
        codes = blocks.elements(format_, parts, kept)
        found = Coded(
            name,
            format_.element.name,
            codes.reshape(rows, -1)[:, :columns].astype(np.uint16),
            (kept - least).astype(np.uint8),
            2.0 ** (least + format_.unit),
            format_.block,
        )
        if _fits(found):
            return found
    raise QuantiseError(f"sums of {name} with int8 activations need more than int32's 32 bits")


def elements(matrix: NDArray[np.float32], name: str) -> Coded:
    """Codes of a number format, and one scale."""
    codes, scale = nearest(matrix, name)
    exponents = np.zeros((len(matrix), 1), np.uint8)
    found = Coded(name, name, codes.astype(np.uint16), exponents, scale)
    if not _fits(found):
        raise QuantiseError(f"sums of {name} with int8 activations need more than int32's 32 bits")
    return found


def nearest(matrix: NDArray[np.float32], name: str) -> tuple[NDArray[np.int64], float]:
    """Codes of a number format with the scale, of those tried, that has the least squared error."""
    format_ = format_named(name)
    peak = _peak(matrix)
    wide = matrix.astype(np.float64)
    best, least = (encode(format_, np.zeros(matrix.shape)), 1.0), np.inf
    for scale in peak / _top(format_) * 2.0 ** np.linspace(0, -4, SCALES) if peak else [1.0]:
        scale = float(np.float32(scale)) or 1.0
        codes = encode(format_, wide / scale)
        error = float(np.square(decode(format_, codes) * scale - wide).sum())
        if error < least:
            best, least = (codes, scale), error
    return best


def _top(format_: Format) -> float:
    """The largest value of a format; for posits 1, around which they are finest."""
    return 1.0 if isinstance(format_, PositFormat) else largest(format_)


def _fits(matrix: Coded) -> bool:
    if bits_of(format_named(matrix.element)) > 40:
        return False
    sums = 127 * np.abs(matrix.codes).sum(axis=1)
    return int(sums.max(initial=0)) < 1 << 31


def bits_of(format_: Format) -> int:
    """Bits of the largest value in units of the smallest step."""
    return int(largest(format_) * 2.0 ** -step_of(format_)).bit_length()


def dual(matrix: NDArray[np.float32]) -> Planes:
    """Two planes of bits, and two factors of 8 bits for each group of inputs."""
    _peak(matrix)
    made = fit(matrix, GROUP)
    rows, columns = matrix.shape
    scale = _factor_scale(made.alphas)
    alphas = np.rint(made.alphas / scale).astype(np.int16)
    planes = binarise(grouped(matrix.astype(np.float64), GROUP), alphas * scale)
    planes = planes.reshape(2, rows, -1)[:, :, :columns]
    return Planes(planes.swapaxes(0, 1), alphas.swapaxes(0, 1), scale, GROUP)


def hierarchical(
    matrix: NDArray[np.float32], bits: int, group: int = GROUP, top: int = TOP, rounds: int = 10
) -> Planes:
    """Planes of bits, a factor for each and an offset, of at most ``top``, for a group of inputs.

    ``rounds`` of the fit: with 0 the levels of a group are evenly spaced, but for the rounding.
    """
    _peak(matrix)
    made = hlq.fit(matrix, bits, group, rounds)
    rows, columns = matrix.shape
    scale = _factor_scale(np.concatenate((made.scales, made.offsets[None])), top)
    factors, offsets = np.rint(made.scales / scale), np.rint(made.offsets / scale)
    given = grouped(matrix.astype(np.float64), group, "edge")
    codes = hlq.nearest(given, factors * scale, offsets * scale).reshape(rows, -1)[:, :columns]
    planes = (codes[:, None] >> np.arange(bits)[:, None] & 1).astype(np.uint8)
    factors, offsets = factors.astype(np.int16), offsets.astype(np.int16)
    return Planes(planes, factors.swapaxes(0, 1), scale, group, offsets)


def _factor_scale(factors: NDArray[np.float64], top: int = TOP) -> float:
    """What 1 of the rounded factors stands for, the largest being ``top``."""
    peak = float(np.abs(factors).max(initial=0.0)) or float(top)
    return float(np.float32(peak / top)) or 1.0


def values(tensor: Tensor) -> NDArray[np.float32]:
    """The float32 values that a tensor stands for: code times unit, rounded once."""
    if isinstance(tensor, np.ndarray):
        return tensor
    return tensor.codes.astype(np.float32) * np.float32(tensor.unit)


def matrix(tensor: Tensor, target: Target) -> Tensor:
    """A float matrix brought to ``target``; one that is quantised already stays as it is."""
    if not isinstance(tensor, np.ndarray):
        return tensor
    if target == "ternary":
        return ternary(tensor)
    if target == "fdb":
        return dual(tensor)
    if found := re.fullmatch("hlq([1-4])", target):
        return hierarchical(tensor, int(found[1]))
    try:
        if re.fullmatch("mx.*|bfp.*", target):
            return blocked(tensor, target)
        format_ = format_named(target)
        if isinstance(format_, IntegerFormat) and format_.bits <= 8:
            return integer(tensor, format_.bits)
        if isinstance(format_, BipolarFormat | FloatFormat | PositFormat):
            return elements(tensor, target)
    except FormatError:
        pass
    shown = "ternary, int8, int4, mxint8, mxfp4, fp4_e2m1, posit8_0, bipolar4, fdb, hlq2"
    raise QuantiseError(f"no projection can be brought to {target!r}; there are {shown} and others")


class _Quantised(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Tensor], targets: Mapping[str, Target]):
        self.tensors, self.targets = tensors, targets

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return matrix(tensor, self.targets[name]) if name in self.targets else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def quantise(
    checkpoint: Checkpoint,
    projections: Target = "int8",
    *,
    embedding: Target = "int8",
    head: Target | None = None,
) -> Checkpoint:
    """The checkpoint with its float matrices quantised as they are accessed; norms stay float.

    ``head`` is that of ``output.weight``, by default ``projections``; a tied head is the embedding.
    """
    targets: dict[str, Target] = {}
    for name in checkpoint.tensors:
        if name == "token_embd.weight":
            targets[name] = embedding
        elif name == "output.weight":
            targets[name] = head or projections
        elif not name.endswith("norm.weight"):
            targets[name] = projections
    return dataclasses.replace(checkpoint, tensors=_Quantised(checkpoint.tensors, targets))
