# SPDX-License-Identifier: Apache-2.0
"""A ternary decoder-only model as plain data: sizes and arrays."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError


class ModelError(AtriplexError, ValueError):
    """Sizes or arrays that make no model; one sentence."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a BitNet b1.58 decoder.

    ``heads`` query heads share ``kv_heads`` key and value heads; ``theta`` is the base of the
    rotary embedding, which pairs element ``i`` of a head with ``i + head_dim / 2``; ``context`` is
    the largest number of tokens, prompt and answer together; ``eps`` is that of every norm.
    """

    dim: int = 192
    layers: int = 3
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 384
    vocab: int = 512
    context: int = 256
    theta: float = 10000.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float or field.type == "float":
                good = type(value) in (int, float) and math.isfinite(value) and value > 0
                rule = "a finite number above 0"
            else:
                good = type(value) is int and 1 <= value <= 1 << 20
                rule = "a whole number in 1..1048576"
            if not good:
                raise ModelError(f"ModelConfig: {field.name} must be {rule}, not {value!r}")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"ModelConfig: heads must be a multiple of kv_heads, not {self.heads} "
                f"with {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"ModelConfig: head_dim must be even, not {self.head_dim}")

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of K and of V for one token."""
        return self.kv_heads * self.head_dim

    def projections(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each of a layer's ternary projections."""
        return {
            "attn_q": (self.q_dim, self.dim),
            "attn_k": (self.kv_dim, self.dim),
            "attn_v": (self.kv_dim, self.dim),
            "attn_output": (self.dim, self.q_dim),
            "ffn_gate": (self.hidden, self.dim),
            "ffn_up": (self.hidden, self.dim),
            "ffn_down": (self.dim, self.hidden),
        }

    def norms(self) -> dict[str, int]:
        """Width of each of a layer's norms."""
        return {
            "attn_norm": self.dim,
            "attn_sub_norm": self.q_dim,
            "ffn_norm": self.dim,
            "ffn_sub_norm": self.hidden,
        }

    @property
    def ternary_weights(self) -> int:
        """Ternary weights of the whole model, the output head included."""
        layer = sum(rows * columns for rows, columns in self.projections().values())
        return self.layers * layer + self.vocab * self.dim


@dataclass(frozen=True, eq=False)
class Ternary:
    """A ternary projection: ``trits`` (outputs, inputs) in -1, 0, 1 and one scale."""

    trits: NDArray[np.int8]
    scale: float


@dataclass(frozen=True, eq=False)
class Embedding:
    """The token table: int8 ``codes`` (vocab, dim) and one scale."""

    codes: NDArray[np.int8]
    scale: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One decoder layer; gains are float32."""

    attn_norm: NDArray[np.float32]
    attn_q: Ternary
    attn_k: Ternary
    attn_v: Ternary
    attn_sub_norm: NDArray[np.float32]
    attn_output: Ternary
    ffn_norm: NDArray[np.float32]
    ffn_gate: Ternary
    ffn_up: Ternary
    ffn_sub_norm: NDArray[np.float32]
    ffn_down: Ternary


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A whole model: what the packed file holds and what every golden model is built from."""

    config: ModelConfig
    token_embd: Embedding
    layers: tuple[Layer, ...]
    output_norm: NDArray[np.float32]
    output: Ternary

    def __post_init__(self) -> None:
        config = self.config
        if len(self.layers) != config.layers:
            raise ModelError(f"the model has {len(self.layers)} layers, not {config.layers}")
        shapes = expected_shapes(config)
        for name, tensor in self.tensors().items():
            shape = shapes[name]
            values = tensor if isinstance(tensor, np.ndarray) else _values(tensor)
            if values.shape != shape:
                raise ModelError(f"tensor {name} has shape {values.shape}, not {shape}")

    def tensors(self) -> "dict[str, NDArray[np.float32] | Ternary | Embedding]":
        """All tensors by their GGUF names, in the order of use."""
        tensors: dict[str, NDArray[np.float32] | Ternary | Embedding] = {
            "token_embd.weight": self.token_embd
        }
        for index, layer in enumerate(self.layers):
            for field in dataclasses.fields(layer):
                tensors[f"blk.{index}.{field.name}.weight"] = getattr(layer, field.name)
        return tensors | {"output_norm.weight": self.output_norm, "output.weight": self.output}

    @classmethod
    def from_tensors(
        cls,
        config: ModelConfig,
        tensors: "dict[str, NDArray[np.float32] | Ternary | Embedding]",
    ) -> "Model":
        """The inverse of :meth:`tensors`; all names must be there."""
        layers = tuple(
            Layer(**{
                field.name: tensors[f"blk.{index}.{field.name}.weight"]
                for field in dataclasses.fields(Layer)
            })  # pyright: ignore[reportArgumentType]
            for index in range(config.layers)
        )
        return cls(
            config=config,
            token_embd=tensors["token_embd.weight"],  # pyright: ignore[reportArgumentType]
            layers=layers,
            output_norm=tensors["output_norm.weight"],  # pyright: ignore[reportArgumentType]
            output=tensors["output.weight"],  # pyright: ignore[reportArgumentType]
        )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model, in the order of :meth:`Model.tensors`."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab, config.dim)}
    matrices, norms = config.projections(), config.norms()
    for index in range(config.layers):
        for field in dataclasses.fields(Layer):
            name = field.name
            shape = matrices[name] if name in matrices else (norms[name],)
            shapes[f"blk.{index}.{name}.weight"] = shape
    return shapes | {
        "output_norm.weight": (config.dim,),
        "output.weight": (config.vocab, config.dim),
    }


def _values(tensor: Ternary | Embedding) -> NDArray[np.int8]:
    return tensor.trits if isinstance(tensor, Ternary) else tensor.codes
