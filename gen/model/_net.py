# SPDX-License-Identifier: Apache-2.0
"""The trainable network, in torch: BitNet b1.58 with fake quantisation, or its float twin.

Imported only by :mod:`.train`, inside functions, because torch is an optional dependency.
"""

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from ...sim.engine.model import ModelConfig


def ternarise(weight: torch.Tensor) -> torch.Tensor:
    """Absmean ternary values of a weight, real-valued; gradients pass straight through."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return weight + ((weight / scale).round().clamp(-1, 1) * scale - weight).detach()


def to_int8(values: torch.Tensor) -> torch.Tensor:
    """Absmax int8 values per row, real-valued; gradients pass straight through."""
    scale = 127 / values.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return values + ((values * scale).round() / scale - values).detach()


def embedding_int8(weight: torch.Tensor) -> torch.Tensor:
    """Int8 values of the embedding table, one scale for all; gradients pass straight through."""
    scale = 127 / weight.abs().amax().clamp(min=1e-5)
    return weight + ((weight * scale).round() / scale - weight).detach()


def normalise(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis."""
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps) * gain


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding with half-split pairing; ``heads`` is batch, head, time, dim."""
    low, high = heads.chunk(2, -1)
    return torch.cat((low * cos - high * sin, low * sin + high * cos), -1)


class Layer(nn.Module):
    """One decoder layer with the four norms of BitNet b1.58 2B4T."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        dim, kv, hidden = config.dim, config.kv_dim, config.hidden
        self.attn_norm = nn.Parameter(torch.ones(dim))
        self.attn_sub_norm = nn.Parameter(torch.ones(dim))
        self.ffn_norm = nn.Parameter(torch.ones(dim))
        self.ffn_sub_norm = nn.Parameter(torch.ones(hidden))
        self.attn_q = nn.Parameter(torch.empty(dim, dim))
        self.attn_k = nn.Parameter(torch.empty(kv, dim))
        self.attn_v = nn.Parameter(torch.empty(kv, dim))
        self.attn_output = nn.Parameter(torch.empty(dim, dim))
        self.ffn_gate = nn.Parameter(torch.empty(hidden, dim))
        self.ffn_up = nn.Parameter(torch.empty(hidden, dim))
        self.ffn_down = nn.Parameter(torch.empty(dim, hidden))
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
                if name in {"attn_output", "ffn_down"}:
                    weight.data *= (2 * config.layers) ** -0.5

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, quantise: bool
    ) -> torch.Tensor:
        c = self.config
        act = to_int8 if quantise else _same
        weight = ternarise if quantise else _same
        batch, time, _ = x.shape
        u = act(normalise(x, self.attn_norm, c.eps))
        qkv = F.linear(u, torch.cat([weight(w) for w in (self.attn_q, self.attn_k, self.attn_v)]))
        heads = qkv.view(batch, time, -1, c.head_dim).transpose(1, 2)
        q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, time, -1)
        mixed = act(normalise(mixed, self.attn_sub_norm, c.eps))
        x = x + F.linear(mixed, weight(self.attn_output))
        u = act(normalise(x, self.ffn_norm, c.eps))
        gate, up = F.linear(u, torch.cat([weight(self.ffn_gate), weight(self.ffn_up)])).chunk(2, -1)
        hidden = F.relu(gate).square() * up
        hidden = act(normalise(hidden, self.ffn_sub_norm, c.eps))
        return x + F.linear(hidden, weight(self.ffn_down))


class Net(nn.Module):
    """The decoder; ``quantise`` off makes the float twin out of the same parameters."""

    def __init__(self, config: ModelConfig, *, quantise: bool):
        super().__init__()
        self.config, self.quantise = config, quantise
        self.token_embd = nn.Parameter(torch.empty(config.vocab, config.dim))
        self.output_norm = nn.Parameter(torch.ones(config.dim))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.output = nn.Parameter(torch.empty(config.vocab, config.dim))
        nn.init.normal_(self.token_embd, std=0.3)
        nn.init.normal_(self.output, std=config.dim**-0.5)
        half = config.head_dim // 2
        rate = config.theta ** -(torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(config.context, dtype=torch.float64)[:, None] * rate
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits for every position of ``tokens`` (batch, time)."""
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        table = embedding_int8(self.token_embd) if self.quantise else self.token_embd
        x = F.embedding(tokens, table)
        for layer in self.layers:
            x = layer(x, cos, sin, self.quantise)
        x = normalise(x, self.output_norm, self.config.eps)
        if self.quantise:
            return F.linear(to_int8(x), ternarise(self.output))
        return F.linear(x, self.output)


def _same(values: torch.Tensor) -> torch.Tensor:
    return values
