# SPDX-License-Identifier: Apache-2.0
"""A ternary decoder-only model as plain data: sizes and arrays."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a BitNet b1.58 decoder."""

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

    @property
    def kv_dim(self) -> int:
        """Width of K and of V for one token."""
        return self.kv_heads * self.head_dim
