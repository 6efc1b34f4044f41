# SPDX-License-Identifier: Apache-2.0
"""What every reader returns: sizes, tensors by their GGUF names, vocabulary."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError
from ...sim.engine.model import Matrix, rows_of
from ._source import CheckpointError, Source
from .tokenizers import Tokenizer

Gate = Literal["relu2", "silu"]
Pairing = Literal["half", "interleaved"]

LAYERS = 1024
"""More layers than any reader accepts."""
LARGEST = 1 << 20
"""Bound of every other size."""


class ConfigError(AtriplexError, ValueError):
    """Sizes that make no decoder; one sentence that begins with the field's name."""


Tensor = NDArray[np.float32] | Matrix


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Sizes and constants of a decoder of the Llama or BitNet kind.

    All but ``pairing`` are those of :class:`atriplex.sim.engine.model.ModelConfig`. ``gate`` is
    what the gate projection passes through: squared ReLU or SiLU; ``sub_norms``: norms before the
    output projections of attention and feed-forward; ``tied``: the head is the embedding, and there
    is no ``output.weight``; ``pairing``: which elements of a head the rotary embedding turns
    together, i and i + head_dim / 2 (``half``) or 2 i and 2 i + 1 (``interleaved``).
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int
    theta: float = 10000.0
    eps: float = 1e-5
    gate: Gate = "silu"
    sub_norms: bool = False
    tied: bool = False
    pairing: Pairing = "half"

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "hidden",
            "vocab",
            "context",
        ):
            value = getattr(self, name)
            top = LAYERS if name == "layers" else LARGEST
            if type(value) is not int or not 1 <= value <= top:
                raise ConfigError(f"{name} must be a whole number in 1..{top}, not {value!r}")
        for name in ("theta", "eps"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a finite number above 0, not {value!r}")
        for name, choices in (("gate", ("relu2", "silu")), ("pairing", ("half", "interleaved"))):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}"
                )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads must be a multiple of kv_heads, not {self.heads} with {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, not {self.head_dim}")

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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by its GGUF name, in the order of use."""
        matrices = self.projections()
        layer: dict[str, tuple[int, ...]] = {"attn_norm": (self.dim,)}
        layer |= {name: matrices[name] for name in ("attn_q", "attn_k", "attn_v")}
        if self.sub_norms:
            layer["attn_sub_norm"] = (self.q_dim,)
        layer |= {"attn_output": matrices["attn_output"], "ffn_norm": (self.dim,)}
        layer |= {name: matrices[name] for name in ("ffn_gate", "ffn_up")}
        if self.sub_norms:
            layer["ffn_sub_norm"] = (self.hidden,)
        layer["ffn_down"] = matrices["ffn_down"]
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab, self.dim)}
        for index in range(self.layers):
            shapes |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
        shapes["output_norm.weight"] = (self.dim,)
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.dim)
        return shapes


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor of a file: its shape, where it lies, what it is called there, how to read it."""

    shape: tuple[int, ...]
    offset: int
    encoding: str
    read: Callable[[], Tensor]
    label: str = ""


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, read from the file and decoded at each access; nothing is kept."""

    def __init__(self, entries: Mapping[str, Entry]):
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """A model as it was found: nothing is quantised that was not.

    ``tensors`` are in the order of :meth:`CheckpointConfig.shapes` and each a float32 array, a
    :class:`~atriplex.sim.engine.model.Ternary` or an
    :class:`~atriplex.sim.engine.model.Integer`. Reading checks names,
    shapes, sizes and scales at once and the contents of a tensor when it is first used;
    :meth:`read` uses them all.
    """

    config: CheckpointConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer | None = None
    path: Path | None = None
    format: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> "Checkpoint":
        """The same with every tensor in memory; raises for the first that is wrong."""
        return dataclasses.replace(self, tensors=dict(self.tensors))


_GGUF_NAME = re.compile(
    r"token_embd\.weight|output_norm\.weight|output\.weight"
    r"|blk\.(?:0|[1-9][0-9]{0,4})\.(?:attn_norm|attn_q|attn_k|attn_v|attn_sub_norm|attn_output"
    r"|ffn_norm|ffn_gate|ffn_up|ffn_sub_norm|ffn_down)\.weight",
    re.ASCII,
)
_HF_LAYER = re.compile(r"(?:model\.)?layers\.(0|[1-9][0-9]{0,4})\.([a-z_.]+)\.weight", re.ASCII)
_HF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.inner_attn_ln": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "mlp.ffn_layernorm": "ffn_sub_norm",
}
_HF_OTHERS = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str | None:
    """The GGUF name of a tensor that has a GGUF or a Hugging Face name; None for all others."""
    if _GGUF_NAME.fullmatch(name):
        return name
    match = _HF_LAYER.fullmatch(name)
    if match:
        part = _HF_PARTS.get(match[2])
        return f"blk.{match[1]}.{part}.weight" if part else None
    return _HF_OTHERS.get(name.removeprefix("model."))


def halve_pairs(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of Q or K, per head, from pairs (2 i, 2 i + 1) to pairs (i, i + head_dim / 2)."""
    order = np.arange(head_dim).reshape(-1, 2).T.reshape(-1)

    rows = len(tensor) if isinstance(tensor, np.ndarray) else len(tensor.codes)
    every = np.arange(rows).reshape(-1, head_dim)[:, order].reshape(-1)
    return tensor[every] if isinstance(tensor, np.ndarray) else rows_of(tensor, every)


def assemble(
    source: Source,
    config: CheckpointConfig,
    entries: Mapping[str, Entry],
    *,
    directory: int,
    format: str,
    tokenizer: Tokenizer | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The checkpoint of ``entries``, once they are known to be those that ``config`` asks for.

    ``config.pairing`` is that of the file; the result has ``half``. ``directory`` is the offset at
    which a missing tensor should have been named.
    """
    shapes = config.shapes()
    for name, entry in entries.items():
        if name not in shapes:
            raise source.fail(
                entry.offset,
                f"no such tensor is part of a model of {config.layers} layers "
                f"{'with' if config.sub_norms else 'without'} sub-norms"
                f"{' and a tied head' if config.tied else ''}",
                entry.label or name,
            )
    found = {}
    for name, shape in shapes.items():
        entry = entries.get(name)
        if entry is None:
            raise source.fail(directory, "the tensor must be there and is not", name)
        if entry.shape != shape:
            raise source.fail(
                entry.offset, f"the shape must be {shape}, not {entry.shape}", entry.label or name
            )
        if config.pairing == "interleaved" and re.fullmatch(r"blk\.\d+\.attn_[qk]\.weight", name):
            entry = dataclasses.replace(entry, read=_halved(entry, config.head_dim))
        found[name] = entry
    if tokenizer is not None and len(tokenizer) != config.vocab:
        raise CheckpointError(
            f"{source.path}: tensor token_embd.weight: offset {found['token_embd.weight'].offset}: "
            f"the model has {config.vocab} tokens, the vocabulary {len(tokenizer)}"
        )
    return Checkpoint(
        config=dataclasses.replace(config, pairing="half"),
        tensors=Tensors(found),
        tokenizer=tokenizer,
        path=source.path,
        format=format,
        meta=meta or {},
    )


def _halved(entry: Entry, head_dim: int) -> Callable[[], Tensor]:
    return lambda: halve_pairs(entry.read(), head_dim)
