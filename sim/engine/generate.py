# SPDX-License-Identifier: Apache-2.0
"""Tokens from a golden model, and its activations for a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .integer import NORM_OF, IntegerModel, Trace
from .model import ModelConfig, ModelError


class AnyLogits(Protocol):
    """Result of a head: logits as floats, and the likeliest token of each row."""

    @property
    def real(self) -> NDArray[np.floating]: ...

    def greedy(self) -> NDArray[np.int64]: ...


class GoldenModel(Protocol):
    """What :class:`.reference.Reference` and :class:`.integer.IntegerModel` have in common."""

    @property
    def config(self) -> ModelConfig: ...

    def start(self) -> Any: ...

    def forward(self, tokens: NDArray[np.integer], state: Any, /) -> AnyLogits: ...


def choose(
    logits: NDArray[np.floating], temperature: float, top_k: int, rng: np.random.Generator
) -> int:
    """One token drawn from ``softmax(logits / temperature)`` over the ``top_k`` largest.

    A ``top_k`` of 0 takes all; among equal logits the lower token counts as larger.
    """
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = (logits[order] - logits[order[0]]) / temperature
    chances = np.cumsum(np.exp(scaled))
    drawn = np.searchsorted(chances, rng.random() * chances[-1], side="right")
    return int(order[min(int(drawn), len(order) - 1)])


def generate(
    model: GoldenModel,
    prompt: Sequence[int],
    tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[int]:
    """At most ``tokens`` tokens that continue ``prompt``, which holds at least one.

    Temperature 0 takes the likeliest token, the lowest among equals; the integer model compares
    its int32 sums for that. Ends early when the context is full: rotary positions are absolute, so
    a cache cannot slide. Raises :class:`.model.ModelError` for a prompt longer than the context
    and for values out of range.
    """
    context = model.config.context
    if not prompt:
        raise ModelError("a prompt must hold at least one token")
    if len(prompt) > context:
        raise ModelError(f"a prompt of {len(prompt)} tokens does not fit the context of {context}")
    if not temperature >= 0:
        raise ModelError(f"temperature must be at least 0, not {temperature}")
    if top_k < 0:
        raise ModelError(f"top_k must be at least 0, not {top_k}")
    rng = np.random.default_rng(seed)
    state = model.start()
    next_tokens = np.asarray(prompt)
    for _ in range(min(tokens, context + 1 - len(prompt))):
        logits = model.forward(next_tokens, state)
        if temperature > 0:
            token = choose(logits.real[-1].astype(np.float64), temperature, top_k, rng)
        else:
            token = int(logits.greedy()[-1])
        yield token
        next_tokens = np.array([token])


@dataclass(frozen=True, eq=False)
class ProjectionRun:
    """One ternary projection for a prompt: ``sums[t] == trits @ codes[t]``."""

    trits: NDArray[np.int8]
    codes: NDArray[np.int8]
    sums: NDArray[np.int32]


def layer_activations(
    model: IntegerModel, prompt: Sequence[int], layer: int = 0
) -> dict[str, ProjectionRun]:
    """Inputs and outputs of every projection of a layer, one row a token of the prompt.

    Keys are ``attn_q``, ``attn_k``, ``attn_v``, ``attn_output``, ``ffn_gate``, ``ffn_up`` and
    ``ffn_down``, in the order of use.
    """
    if not 0 <= layer < model.config.layers:
        raise ModelError(f"layer must be in 0..{model.config.layers - 1}, not {layer}")
    trace: Trace = {}
    model.forward(np.asarray(prompt), model.start(), trace)
    runs = {}
    for name, norm in NORM_OF.items():
        runs[name] = ProjectionRun(
            model.layers[layer].projections[name].codes.astype(np.int8),
            trace[f"blk.{layer}.{norm}.codes"].astype(np.int8),
            trace[f"blk.{layer}.{name}.sums"].astype(np.int32),
        )
    return runs
