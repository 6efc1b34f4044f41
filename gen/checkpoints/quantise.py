# SPDX-License-Identifier: Apache-2.0
"""Post-training quantisation of whole matrices, one scale each.

- :func:`integer`: symmetric absmax. ``peak = max |w|``, ``top = 2**(bits - 1) - 1`` (127 or 7),
  ``code = round_half_even(w * top / peak)`` in float64, within ``-top .. top``; ``scale`` is
  ``peak / top`` rounded to float32. A matrix of zeros has codes 0 and scale 1.
- :func:`ternary`: absmean, as BitNet b1.58 is trained. ``mu = mean |w|`` summed in float64 and
  rounded to float32; ``scale = max(mu, 1e-5)``; ``trit = clamp(round_half_even(w * (1 / scale)),
  -1, 1)`` in float32. A matrix that has no other values than -s, 0 and s is ternary already and
  keeps them: its mean would be below s.

Source: BitNet b1.58, arXiv 2402.17764, equations 1 to 3, with the clamped mean of its code.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError
from ...sim.engine.model import Ternary
from .checkpoint import Checkpoint, Integer, Tensor

Target = Literal["ternary", "int8", "int4"]
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


def values(tensor: Tensor) -> NDArray[np.float32]:
    """The float32 values that a tensor stands for: code times scale, rounded once."""
    if isinstance(tensor, Ternary):
        return tensor.trits.astype(np.float32) * np.float32(tensor.scale)
    if isinstance(tensor, Integer):
        return tensor.codes.astype(np.float32) * np.float32(tensor.scale)
    return tensor


def matrix(tensor: Tensor, target: Target) -> Tensor:
    """A float matrix brought to ``target``; one that is ternary or integer stays as it is."""
    if not isinstance(tensor, np.ndarray):
        return tensor
    if target == "ternary":
        return ternary(tensor)
    if target in ("int8", "int4"):
        return integer(tensor, int(target[3:]))
    raise QuantiseError(f"the target must be ternary, int8 or int4, not {target!r}")


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
