# SPDX-License-Identifier: Apache-2.0
"""The quantised float reference: BitNet b1.58 arithmetic as published.

Every projection is an exact integer dot product of int8 codes and trits, scaled in float32 in the
order of the reference runtime; norms, attention, gate and residual stream are float32. With
``quantise=False`` the activations stay float32 as well: what int8 activations cost.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .model import Matrix, Model, ModelConfig, ModelError

Floats = NDArray[np.float32]


@dataclass(eq=False)
class FloatState:
    """Keys and values of the tokens so far, (layer, kv head, token, head_dim)."""

    keys: Floats
    values: Floats
    length: int = 0


@dataclass(frozen=True, eq=False)
class FloatLogits:
    """Result of the head for a run of tokens."""

    real: Floats

    def greedy(self) -> NDArray[np.int64]:
        """Token of the largest logit of each row, the lowest among equals."""
        return self.real.argmax(axis=-1)


@dataclass(eq=False)
class Reference:
    """Runs a :class:`Model` in float32."""

    model: Model
    quantise: bool = True
    _weights: dict[int, Floats] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        config = self.model.config
        half = config.head_dim // 2
        rate = config.theta ** -(np.arange(half) / half)
        angle = np.arange(config.context)[:, None] * rate
        self._cos, self._sin = np.cos(angle, dtype=np.float32), np.sin(angle, dtype=np.float32)

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self.model.config

    def start(self) -> FloatState:
        """State before the first token."""
        c = self.model.config
        shape = (c.layers, c.kv_heads, c.context, c.head_dim)
        return FloatState(np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    def forward(self, tokens: NDArray[np.integer], state: FloatState) -> FloatLogits:
        """Logits (token, vocab) of ``tokens``, which follow those already in ``state``.

        Raises :class:`ModelError` when the context is full.
        """
        m, c = self.model, self.model.config
        tokens = check_tokens(tokens, state.length, c)
        x = m.token_embd.codes[tokens].astype(np.float32) * np.float32(m.token_embd.scale)
        span = slice(state.length, state.length + len(tokens))
        for index, layer in enumerate(m.layers):
            u = self._norm(x, layer.attn_norm)
            q, k, v = (
                self._project(u, w).reshape(len(tokens), -1, c.head_dim).swapaxes(0, 1)
                for w in (layer.attn_q, layer.attn_k, layer.attn_v)
            )
            q, k = self._rotate(q, span), self._rotate(k, span)
            state.keys[index, :, span], state.values[index, :, span] = k, v
            mixed = self._attend(q, state.keys[index], state.values[index], span)
            x = x + self._project(self._norm(mixed, layer.attn_sub_norm), layer.attn_output)
            u = self._norm(x, layer.ffn_norm)
            gate, up = self._project(u, layer.ffn_gate), self._project(u, layer.ffn_up)
            if c.gate == "relu2":
                hidden = np.maximum(gate, 0) ** 2 * up
            else:
                hidden = gate / (np.float32(1) + np.exp(-gate)) * up
            x = x + self._project(self._norm(hidden, layer.ffn_sub_norm), layer.ffn_down)
        state.length = span.stop
        return FloatLogits(self._project(self._norm(x, m.output_norm), m.output))

    def _norm(self, x: Floats, gain: Floats | None) -> Floats:
        if gain is None:
            return x
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x * (np.float32(1) / np.sqrt(mean + np.float32(self.model.config.eps))) * gain

    def _project(self, x: Floats, weight: Matrix) -> Floats:
        weights = self._weights.get(id(weight))
        if weights is None:
            weights = self._weights[id(weight)] = weight.codes.T.astype(np.float32)
        if not self.quantise:
            return x @ weights * np.float32(weight.unit)
        codes, scale = quantise(x)
        # Exact in float32 for trits: no sum exceeds 127 * inputs, far below 2**24.
        return (codes @ weights) / scale * np.float32(weight.unit)

    def _rotate(self, heads: Floats, span: slice) -> Floats:
        cos, sin = self._cos[span], self._sin[span]
        low, high = np.split(heads, 2, axis=-1)
        return np.concatenate((low * cos - high * sin, low * sin + high * cos), axis=-1)

    def _attend(self, q: Floats, keys: Floats, values: Floats, span: slice) -> Floats:
        c = self.model.config
        keys, values = keys[:, : span.stop], values[:, : span.stop]
        grouped = q.reshape(c.kv_heads, -1, q.shape[1], c.head_dim)
        scores = grouped @ keys[:, None].swapaxes(-1, -2) * np.float32(c.head_dim**-0.5)
        future = np.arange(span.stop) > np.arange(span.start, span.stop)[:, None]
        scores = np.where(future, np.float32(-np.inf), scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = weights @ values[:, None]
        return mixed.reshape(c.heads, q.shape[1], c.head_dim).swapaxes(0, 1).reshape(-1, c.q_dim)


def quantise(x: Floats) -> tuple[Floats, Floats]:
    """Absmax int8 codes of each row, as float32, and the scale ``127 / amax`` (rows, 1)."""
    peak = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    scale = np.float32(127) / peak
    return np.clip(np.rint(x * scale), -128, 127), scale


def check_tokens(
    tokens: NDArray[np.integer], length: int, config: ModelConfig
) -> NDArray[np.int64]:
    """``tokens`` as int64; :class:`ModelError` for an id or a length the model cannot take."""
    tokens = np.asarray(tokens, dtype=np.int64).reshape(-1)
    if length + len(tokens) > config.context:
        raise ModelError(
            f"{length + len(tokens)} tokens do not fit the context of {config.context}"
        )
    wrong = np.flatnonzero((tokens < 0) | (tokens >= config.vocab))
    if wrong.size:
        raise ModelError(
            f"token {tokens[wrong[0]]} at position {length + wrong[0]} is not in "
            f"0..{config.vocab - 1}"
        )
    return tokens
