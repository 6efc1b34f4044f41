# SPDX-License-Identifier: Apache-2.0
"""What a number format costs the shipped model: perplexity with rounded weights and activations.

The model is the float twin of the small one, the texts are its own, drawn at temperature 1.  Every
projection's weights and inputs are rounded to the format; everything else stays float32.  Weights
that are ternary are those of the small model that was trained so, on the same texts.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.formats._blocks import block_format_named
from ...rtl.formats._formats import (
    BipolarFormat,
    FloatFormat,
    FormatError,
    PositFormat,
    format_named,
)
from ...sim.engine.generate import generate
from ...sim.engine.reference import Reference
from ...sim.formats.blocks import dequantise, quantise
from ...sim.formats.codec import decode, encode, largest
from ..checkpoints.quantise import GROUP, block_format, matrix, nearest, values
from ..model import packed
from ..model.evaluate import Windows, loss
from ..model.generate import shipped

Floats = NDArray[np.float32]
Rounding = Callable[[Any], Floats]
TEXTS = 16
FLOATS = "float32"


def perplexity(weights: str, activations: str) -> float:
    """Of the texts, with both rounded to these formats; ``float32`` rounds nothing."""
    trained = weights == "ternary"
    model = packed.load(shipped("storybook-small" if trained else TWIN)).model
    return perplexity_of(
        model,
        functools.partial(rounded_weights, weights),
        functools.partial(rounded_activations, activations),
    )


def perplexity_of(model: Any, weights: Rounding, activations: Rounding) -> float:
    """Of the texts by a model whose projections and their inputs are rounded so."""
    return float(np.exp(loss(_Rounded(model, weights, activations), texts())))


TWIN = "storybook-small-float"


@functools.cache
def texts() -> Windows:
    """Inputs and targets: texts that the float model writes."""
    file = packed.load(shipped(TWIN))
    model = _Rounded(file.model, values, lambda x: x)
    length = file.model.config.context
    written = [
        np.array([0, *generate(model, [0], length, temperature=1.0, seed=seed)])
        for seed in range(TEXTS)
    ]
    return [(ids[:-1], ids[1:]) for ids in written]


def weights_of_a_token() -> int:
    """Weights of the shipped model, each of which is used once a token."""
    return packed.load(shipped("storybook-small")).model.config.ternary_weights


class _Rounded(Reference):
    """The reference in float32, with rounded weights and inputs of projections."""

    def __init__(self, model: Any, weights: Rounding, rounds: Rounding):
        super().__init__(model, quantise=False)
        self.weights, self.rounds = weights, rounds

    def _project(self, x: Floats, weight: Any) -> Floats:
        made = self._weights.get(id(weight))
        if made is None:
            made = self._weights[id(weight)] = self.weights(weight).T
        return self.rounds(x) @ made


def rounded_weights(name: str, weight: Any) -> Floats:
    """A matrix (outputs, inputs) as it is after rounding."""
    if name == FLOATS or not isinstance(weight, np.ndarray):
        return values(weight)
    try:
        return _blocks(name, weight)
    except FormatError:
        pass
    if _plain(name):
        codes, scale = nearest(weight, name)
        return (decode(format_named(name), codes) * scale).astype(np.float32)
    return values(matrix(weight, name))


def _plain(name: str) -> bool:
    """Whether it is a format of single numbers with a scale of least squared error."""
    try:
        return isinstance(format_named(name), BipolarFormat | FloatFormat | PositFormat)
    except FormatError:
        return False


def rounded_activations(name: str, x: Floats) -> Floats:
    """Vectors (tokens, inputs): a scale for each, or for each block."""
    if name == FLOATS:
        return x
    try:
        return _blocks(name, x)
    except FormatError:
        pass
    format_ = format_named(name)
    peak = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-9).astype(np.float64)
    if isinstance(format_, PositFormat):
        # Finest around 1: of the powers of two for the largest, the one of least squared error.
        tried = [_scaled(format_, x, peak * 2.0**-power) for power in range(-2, 8)]
        errors = np.stack([np.square(made - x).sum(axis=-1) for made in tried])
        return np.take_along_axis(np.stack(tried), errors.argmin(axis=0)[None, :, None], axis=0)[0]
    return _scaled(format_, x, peak / largest(format_))


def _scaled(format_: Any, x: Floats, scale: NDArray[np.float64]) -> Floats:
    return (decode(format_, encode(format_, x / scale)) * scale).astype(np.float32)


def _blocks(name: str, x: Floats) -> Floats:
    format_ = block_format(name)
    return dequantise(format_, quantise(format_, x), x.shape[-1]).astype(np.float32)


def bits_per_weight(name: str) -> float:
    """Storage of a weight, with what a block's scale adds."""
    if name == "fdb":
        return 2 + 2 * 8 / GROUP
    if found := re.fullmatch("hlq([1-4])", name):
        bits = int(found[1])
        return bits + (bits + 1) * 8 / GROUP
    try:
        return block_format_named(name).bits_per_element
    except FormatError:
        return float(format_named(name).width)
