# SPDX-License-Identifier: Apache-2.0
"""A decoder-only model, ternary or of integers, as plain data: sizes and arrays."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError
from ...rtl.formats._formats import format_named
from ..formats.codec import decode, step_of


class ModelError(AtriplexError, ValueError):
    """Sizes or arrays that make no model; one sentence."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a decoder of the BitNet or Llama kind.

    ``heads`` query heads share ``kv_heads`` key and value heads; ``theta`` is the base of the
    rotary embedding, which pairs element ``i`` of a head with ``i + head_dim / 2``; ``context`` is
    the largest number of tokens, prompt and answer together; ``eps`` is that of every norm.
    ``gate`` is what the gate passes through: squared ReLU or SiLU; ``sub_norms``: norms before the
    output projections of attention and feed-forward; ``tied``: the head is the embedding.
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
    gate: Literal["relu2", "silu"] = "relu2"
    sub_norms: bool = True
    tied: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "gate":
                good, rule = value in ("relu2", "silu"), "relu2 or silu"
            elif field.type is bool:
                good, rule = type(value) is bool, "true or false"
            elif field.type is float or field.type == "float":
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
        """Outputs and inputs of each of a layer's projections."""
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
        """Width of each of a layer's vectors that are quantised, by the norm that does it.

        Without sub-norms two of them are quantised as they are.
        """
        return {
            "attn_norm": self.dim,
            "attn_sub_norm": self.q_dim,
            "ffn_norm": self.dim,
            "ffn_sub_norm": self.hidden,
        }

    def gains(self) -> dict[str, int]:
        """Width of each of a layer's norms that there are."""
        return {
            name: width
            for name, width in self.norms().items()
            if self.sub_norms or not name.endswith("sub_norm")
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

    bits = 2
    format = "ternary"

    @property
    def codes(self) -> NDArray[np.int8]:
        """The trits, by the name they have in :class:`Integer`."""
        return self.trits

    @property
    def unit(self) -> float:
        """What 1 of ``codes`` stands for."""
        return self.scale


@dataclass(frozen=True, eq=False)
class Integer:
    """A matrix of integers: ``codes`` (outputs, inputs) of ``bits`` bits, and one scale.

    ``value = code * scale``. Codes that quantisation makes are within plus and minus
    ``2**(bits - 1) - 1``; those of a file may be one lower.
    """

    codes: NDArray[np.int8]
    scale: float
    bits: int = 8

    @property
    def format(self) -> str:
        """Name of the number format."""
        return f"int{self.bits}"

    @property
    def unit(self) -> float:
        """What 1 of ``codes`` stands for."""
        return self.scale


@dataclass(frozen=True, eq=False)
class Coded:
    """A matrix in a number format, in blocks along the inputs with a power of two each.

    ``elements`` (outputs, inputs) are codes of the ``element`` format and ``exponents`` (outputs,
    blocks) the powers, not negative: ``value = element * 2**exponent * scale``.  A ``block`` is of
    so many inputs, 0: of all.  ``format`` is what the whole is called, such as ``mxfp4``.  Int8
    activations that it is multiplied with become values of the format ``activations``, see
    :mod:`.activations`.
    """

    format: str
    element: str
    elements: NDArray[np.uint16]
    exponents: NDArray[np.uint8]
    scale: float
    block: int = 0
    activations: str = "int8"

    @property
    def bits(self) -> int:
        """Of an element."""
        return format_named(self.element).width

    @functools.cached_property
    def codes(self) -> NDArray[np.int64]:
        """The values as integers, in units of ``scale`` times the format's smallest step."""
        element = format_named(self.element)
        whole = decode(element, self.elements) * 2.0 ** -step_of(element)
        inputs = self.elements.shape[1]
        powers = np.repeat(self.exponents, self.block or inputs, axis=1)[:, :inputs]
        return whole.astype(np.int64) << powers

    @property
    def unit(self) -> float:
        """What 1 of ``codes`` stands for."""
        return self.scale * 2.0 ** step_of(format_named(self.element))


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes of bits, each with a factor for each group of inputs, and an offset for each group.

    ``value = (offsets + factors[:, 0] * planes[:, 0] + factors[:, 1] * planes[:, 1] + ...) *
    scale``; ``planes`` (outputs, planes, inputs) are 0 or 1, ``factors`` (outputs, planes, groups)
    and ``offsets`` (outputs, groups) integers; a group has ``group`` inputs.  Without offsets and
    with two planes this is flexible dual binarisation, with offsets hierarchical linear
    quantisation.
    """

    planes: NDArray[np.uint8]
    factors: NDArray[np.int16]
    scale: float
    group: int = 64
    offsets: NDArray[np.int16] | None = None

    @property
    def bits(self) -> int:
        """Planes that there are."""
        return self.planes.shape[1]

    @property
    def format(self) -> str:
        """Name of the number format."""
        return "fdb" if self.offsets is None else f"hlq{self.bits}"

    @functools.cached_property
    def codes(self) -> NDArray[np.int64]:
        """The values in units of ``scale``."""
        values = (self._of_inputs(self.factors) * self.planes).sum(axis=1)
        return values if self.offsets is None else values + self._of_inputs(self.offsets)

    def _of_inputs(self, each: NDArray[np.int16]) -> NDArray[np.int64]:
        """What groups have, for each of their inputs."""
        spread = np.repeat(each, self.group, axis=-1)[..., : self.planes.shape[2]]
        return spread.astype(np.int64)

    @property
    def unit(self) -> float:
        """What 1 of ``codes`` stands for."""
        return self.scale


Matrix = Ternary | Integer | Coded | Planes
"""What a projection may be."""


def rows_of(matrix: Any, order: NDArray[np.int64]) -> Any:
    """The matrix with its rows in another order."""
    return dataclasses.replace(
        matrix,
        **{
            field.name: value[order]
            for field in dataclasses.fields(matrix)
            if isinstance(value := getattr(matrix, field.name), np.ndarray)
        },
    )


def in_turn(one: Any, other: Any) -> Any:
    """A matrix of the rows of two of one kind in turn; its scale means nothing."""

    def joined(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return np.stack((a, b), axis=1).reshape(-1, *a.shape[1:])

    return dataclasses.replace(
        one,
        **{
            field.name: joined(value, getattr(other, field.name))
            for field in dataclasses.fields(one)
            if isinstance(value := getattr(one, field.name), np.ndarray)
        },
    )


@dataclass(frozen=True, eq=False)
class Embedding:
    """The token table: int8 ``codes`` (vocab, dim) and one scale."""

    codes: NDArray[np.int8]
    scale: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One decoder layer; gains are float32, None where there is no such norm."""

    attn_norm: NDArray[np.float32]
    attn_q: Matrix
    attn_k: Matrix
    attn_v: Matrix
    attn_sub_norm: NDArray[np.float32] | None
    attn_output: Matrix
    ffn_norm: NDArray[np.float32]
    ffn_gate: Matrix
    ffn_up: Matrix
    ffn_sub_norm: NDArray[np.float32] | None
    ffn_down: Matrix


Tensor = NDArray[np.float32] | Matrix | Embedding


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A whole model: what the packed file holds and what every golden model is built from.

    The ``output`` of a tied model are the codes of the embedding.
    """

    config: ModelConfig
    token_embd: Embedding
    layers: tuple[Layer, ...]
    output_norm: NDArray[np.float32]
    output: Matrix

    def __post_init__(self) -> None:
        config = self.config
        if len(self.layers) != config.layers:
            raise ModelError(f"the model has {len(self.layers)} layers, not {config.layers}")
        shapes = expected_shapes(config)
        tensors = self.tensors()
        for name in shapes.keys() ^ tensors.keys():
            there = "there" if name in shapes else "left out"
            raise ModelError(f"tensor {name} must be {there}, as config.sub_norms says")
        for name, tensor in tensors.items():
            shape = shapes[name]
            values = tensor if isinstance(tensor, np.ndarray) else tensor.codes
            if values.shape != shape:
                raise ModelError(f"tensor {name} has shape {values.shape}, not {shape}")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their GGUF names, in the order of use; a tied head is not among them."""
        tensors: dict[str, Tensor] = {"token_embd.weight": self.token_embd}
        for index, layer in enumerate(self.layers):
            for field in dataclasses.fields(layer):
                tensor = getattr(layer, field.name)
                if tensor is not None:
                    tensors[f"blk.{index}.{field.name}.weight"] = tensor
        tensors["output_norm.weight"] = self.output_norm
        return tensors if self.config.tied else tensors | {"output.weight": self.output}

    @classmethod
    def from_tensors(cls, config: ModelConfig, tensors: Mapping[str, Tensor]) -> "Model":
        """The inverse of :meth:`tensors`; all names must be there."""
        layers = tuple(
            Layer(**{
                field.name: tensors[f"blk.{index}.{field.name}.weight"]
                if config.sub_norms or not field.name.endswith("sub_norm")
                else None
                for field in dataclasses.fields(Layer)
            })  # pyright: ignore[reportArgumentType]
            for index in range(config.layers)
        )
        embedding: Any = tensors["token_embd.weight"]
        output = Integer(embedding.codes, embedding.scale) if config.tied else None
        return cls(
            config=config,
            token_embd=embedding,
            layers=layers,
            output_norm=tensors["output_norm.weight"],  # pyright: ignore[reportArgumentType]
            output=output or tensors["output.weight"],  # pyright: ignore[reportArgumentType]
        )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model, in the order of :meth:`Model.tensors`."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab, config.dim)}
    matrices, norms = config.projections(), config.gains()
    for index in range(config.layers):
        for field in dataclasses.fields(Layer):
            name = field.name
            if name in matrices:
                shapes[f"blk.{index}.{name}.weight"] = matrices[name]
            elif name in norms:
                shapes[f"blk.{index}.{name}.weight"] = (norms[name],)
    shapes["output_norm.weight"] = (config.dim,)
    return shapes if config.tied else shapes | {"output.weight": (config.vocab, config.dim)}
