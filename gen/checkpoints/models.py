# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a model that the engine can run."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sim.engine.integer import IntegerModel
from ...sim.engine.model import (
    Embedding,
    Integer,
    Layer,
    Matrix,
    Model,
    ModelConfig,
    ModelError,
    Ternary,
)
from ..model.evaluate import Windows, loss
from . import kind, load
from ._source import CheckpointError, Source
from .checkpoint import Checkpoint, Tensor
from .llama2c import BIT_ORDERS
from .quantise import QuantiseError, Target, exact_ternary, integer, matrix
from .tokenizers import Tokenizer

CHECKED = 512
"""Tokens of a text that are enough to tell weights from noise."""
WINDOW = 128


@dataclass(frozen=True, eq=False)
class Runnable:
    """A model and its vocabulary; ``perplexities`` by bit order where a text decided on it."""

    model: Model
    tokenizer: Tokenizer
    perplexities: Mapping[str, float] = field(default_factory=dict)

    @property
    def note(self) -> str | None:
        """What a text said about the bit order, as a sentence."""
        if not self.perplexities:
            return None
        found = [f"{name} {value:.4g}" for name, value in self.perplexities.items()]
        best = min(self.perplexities, key=lambda name: self.perplexities[name])
        return f"perplexity of the text by bit order: {', '.join(found)}; it is {best}"

    def report(self) -> dict[str, Any]:
        """The perplexities by the name that they have in JSON; nothing where there are none."""
        return {"perplexity_by_bit_order": dict(self.perplexities)} if self.perplexities else {}


def runnable(
    path: Path | str,
    *,
    quantise: Target | None = None,
    context: int | None = None,
    check_text: Path | str | None = None,
    **options: Any,
) -> Runnable:
    """The model in a file, with float matrices quantised (:func:`of_checkpoint`).

    ``context`` shortens the model's; ``options`` are those of :func:`.load`. ``check_text``, a text
    file, decides the bit order of a ternary llama2.c file: the one with which the integer model has
    the lower perplexity on the beginning of the text.

    Raises, besides what :func:`.load` raises, :class:`.CheckpointError` for a file without a
    vocabulary, and for a text that decides nothing.
    """
    if check_text is None:
        return _runnable(load(path, **options), quantise, context)
    if options.get("bit_order") is not None:
        raise CheckpointError(f"{path}: options bit_order and check_text exclude each other")
    try:
        text = Path(check_text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CheckpointError(f"{check_text}: expected a text, found {why}") from None
    if Path(path).is_dir() or kind(Source(path)) != "ak42":
        raise CheckpointError(
            f"{path}: option check_text is for ternary files of llama2.c, "
            "in which nothing says the bit order"
        )
    files = [load(path, **options | {"bit_order": order}) for order in BIT_ORDERS]
    found = [_runnable(file, quantise, context) for file in files]
    ids = found[0].tokenizer.encode(text, bos=True)[: CHECKED + 1]
    if len(ids) < 2:
        raise CheckpointError(f"{check_text}: expected a text of some tokens, found {len(ids)}")
    windows = list(_windows(np.array(ids), min(found[0].model.config.context, WINDOW)))
    values = {
        order: float(np.exp(loss(IntegerModel.compile(each.model), windows)))
        for order, each in zip(BIT_ORDERS, found, strict=True)
    }
    if values["high"] == values["low"]:
        raise CheckpointError(
            f"{path}: the text does not tell bit orders apart: both give {values['low']:.4g}"
        )
    best = found[min(range(2), key=lambda at: values[BIT_ORDERS[at]])]
    return dataclasses.replace(best, perplexities=values)


def of_checkpoint(checkpoint: Checkpoint, quantise: Target | None = None) -> Model:
    """The model of a checkpoint.

    Float matrices become ``quantise`` (default int8), but those that have no other values than -s,
    0 and s become trits, which changes nothing; what is ternary or integer stays. The embedding
    becomes int8. Norms stay float32.
    """
    names = [each.name for each in dataclasses.fields(ModelConfig)]
    config = ModelConfig(**{name: getattr(checkpoint.config, name) for name in names})
    tensors: dict[str, Any] = {}
    for name, tensor in checkpoint.tensors.items():
        try:
            tensors[name] = _converted(name, tensor, quantise or "int8")
        except QuantiseError as error:
            raise CheckpointError(f"{checkpoint.path}: tensor {name}: {error}") from None
    return Model.from_tensors(config, tensors)


def with_round_heads(model: Model) -> Model:
    """The model with heads filled up with zeros to a power of two, which the engine needs.

    Pairs of the rotary embedding keep their frequencies (through ``theta``) and scores their
    divisor (through the scale of Q). A norm behind attention keeps its mean through its gains; its
    ``eps`` alone counts as much more as there are more elements.
    """
    config = model.config
    old, new = config.head_dim, 1 << (config.head_dim - 1).bit_length()
    if old == new:
        return model
    half = np.arange(old // 2)
    pairs, plain = np.append(half, new // 2 + half), np.arange(old)
    ratio = new / old

    def rows(weight: Matrix, places: NDArray[np.int64], factor: float = 1.0) -> Matrix:
        codes = np.zeros((len(weight.codes) // old, new, weight.codes.shape[1]), np.int32)
        codes[:, places] = weight.codes.reshape(-1, old, weight.codes.shape[1])
        return _matrix(weight, codes.reshape(-1, weight.codes.shape[1]), weight.scale * factor)

    def filled(layer: Layer) -> Layer:
        output = layer.attn_output
        turned = rows(_matrix(output, output.codes.T, output.scale), plain)
        gains = layer.attn_sub_norm
        if gains is not None:
            wider = np.zeros((config.heads, new), np.float32)
            wider[:, plain] = gains.reshape(-1, old) / np.float32(math.sqrt(ratio))
            gains = wider.reshape(-1)
        return dataclasses.replace(
            layer,
            attn_q=rows(layer.attn_q, pairs, math.sqrt(ratio)),
            attn_k=rows(layer.attn_k, pairs),
            attn_v=rows(layer.attn_v, plain),
            attn_output=_matrix(output, np.ascontiguousarray(turned.codes.T), output.scale),
            attn_sub_norm=gains,
        )

    return dataclasses.replace(
        model,
        config=dataclasses.replace(config, head_dim=new, theta=config.theta**ratio),
        layers=tuple(map(filled, model.layers)),
    )


def _matrix(like: Matrix, codes: NDArray[np.integer], scale: float) -> Matrix:
    if isinstance(like, Ternary):
        return Ternary(codes.astype(np.int8), scale)
    if isinstance(like, Integer):
        return Integer(codes.astype(np.int8), scale, like.bits)
    raise ModelError(
        f"heads are filled up to a power of two for trits and integers, not {like.format}"
    )


def _converted(name: str, tensor: Tensor, target: Target) -> Any:
    if name == "token_embd.weight":
        codes = integer(tensor) if isinstance(tensor, np.ndarray) else tensor
        return Embedding(codes.codes.astype(np.int8), codes.unit)
    if name.endswith("norm.weight"):
        return tensor
    if isinstance(tensor, np.ndarray):
        return exact_ternary(tensor) or matrix(tensor, target)
    return tensor


def _runnable(checkpoint: Checkpoint, quantise: Target | None, context: int | None) -> Runnable:
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: there is no vocabulary in the file; option tokenizer names one"
        )
    if context is not None:
        most = checkpoint.config.context
        if not 1 <= context <= most:
            raise ModelError(f"{checkpoint.path}: context must be in 1..{most}, not {context}")
        config = dataclasses.replace(checkpoint.config, context=context)
        checkpoint = dataclasses.replace(checkpoint, config=config)
    return Runnable(with_round_heads(of_checkpoint(checkpoint, quantise)), tokenizer)


def _windows(ids: NDArray[np.int64], size: int) -> Windows:
    """Inputs and targets, ``size`` tokens or fewer at a time."""
    bounds = [*range(0, len(ids) - 1, size), len(ids) - 1]
    return [(ids[a:b], ids[a + 1 : b + 1]) for a, b in itertools.pairwise(bounds)]
