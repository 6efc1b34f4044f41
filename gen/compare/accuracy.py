# SPDX-License-Identifier: Apache-2.0
"""What a number format costs the shipped model: perplexity with rounded weights and activations.

The model is the float twin of the small one, the texts are its own, drawn at temperature 1.  Every
projection's weights and inputs are rounded to the format; everything else stays float32.  Weights
that are ternary are those of the small model that was trained so, on the same texts.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
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
from ...sim.formats import hlq
from ...sim.formats.blocks import dequantise, quantise
from ...sim.formats.codec import decode, encode, largest
from ..checkpoints.quantise import GROUP, block_format, hierarchical, matrix, nearest, values
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
    return _perplexity(
        model,
        functools.partial(rounded_weights, weights),
        functools.partial(rounded_activations, activations),
    )


def _perplexity(model: Any, weights: Rounding, activations: Rounding) -> float:
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


def planes() -> Iterator[dict[str, Any]]:
    """Hierarchical linear quantisation of the shipped float model against evenly spaced levels.

    Perplexity with projections of 2 and 3 bits in groups, activations as they are.  Scales and
    offsets are float16, in the last columns integers of 8 bits, as in the engine.
    """
    model = packed.load(shipped(TWIN)).model
    floats = _perplexity(model, values, lambda x: x)

    def of(rounded: Callable[[Floats], Floats]) -> float:
        """With every projection that is not quantised already rounded so."""
        return _perplexity(
            model,
            lambda weight: rounded(weight) if isinstance(weight, np.ndarray) else values(weight),
            lambda x: x,
        )

    for bits, group in itertools.product((2, 3), (32, 64, 128)):
        even = of(functools.partial(_levels, bits=bits, group=group, rounds=0))
        fitted = of(functools.partial(_levels, bits=bits, group=group, rounds=10))
        integers = of(lambda weight, b=bits, g=group: values(hierarchical(weight, b, g)))
        yield {
            "bits": bits,
            "group": group,
            "float32": f"{floats:.2f}",
            "even levels": f"{even:.2f}",
            "HLQ": f"{fitted:.2f}",
            "HLQ to even levels": f"{100 * (fitted / even - 1):+.1f} %",
            "HLQ, 8-bit factors": f"{integers:.2f}",
            "what 8 bits cost": f"{100 * (integers / fitted - 1):+.1f} %",
            "bits per weight": bits + 16 * (bits + 1) / group,
            "with 8-bit factors": bits + 8 * (bits + 1) / group,
        }


def _levels(weight: Floats, bits: int, group: int, rounds: int) -> Floats:
    made = hlq.fit(weight, bits, group, rounds).values()
    return made.reshape(len(weight), -1)[:, : weight.shape[1]].astype(np.float32)


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
