# SPDX-License-Identifier: Apache-2.0
"""What the engine's taps must show for a token, from the golden model's trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .image import pair_order
from .integer import IntegerModel, Trace

if TYPE_CHECKING:
    from ...rtl.engine.engine import EngineConfig

Ints = NDArray[np.int64]
Named = tuple[str, Ints]


def expected(
    model: IntegerModel, config: EngineConfig, trace: Trace, sample: bool
) -> dict[str, list[Named]]:
    """Transfers of each tap in order, in pieces named as in the trace.

    ``trace`` is that of a single token.  Without ``sample`` there is neither the last norm nor the
    head.
    """
    c = model.config
    shown: dict[str, list[Named]] = {
        name: []
        for name in ("input", "codes", "mantissa", "shift", "sum", "element", "head", "peak")
    }

    def norm(name: str) -> None:
        rows = (-1, config.norm_lanes)
        shown["input"].append((f"{name}.input", trace[f"{name}.input"].reshape(rows)))
        shown["codes"].append((f"{name}.codes", trace[f"{name}.codes"].reshape(rows)))
        for part in ("mantissa", "shift"):
            shown[part].append((f"{name}.{part}", trace[f"{name}.{part}"].reshape(-1)))

    def linear(name: str, *others: str, order: Ints | None = None) -> None:
        for tap, part in (("sum", "sums"), ("element", "out")):
            rows = np.stack([trace[f"{each}.{part}"][0] for each in (name, *others)], axis=1)
            rows = rows.reshape(-1)
            shown[tap].append((f"{name}.{part}", rows if order is None else rows[order]))

    def heads(name: str, order: Ints) -> None:
        codes = trace[f"{name}.codes"][0].reshape(-1)[order]
        shown["head"].append((f"{name}.codes", codes.reshape(-1, config.head_lanes)))
        shown["peak"].append((f"{name}.peaks", trace[f"{name}.peaks"].reshape(-1)))

    pairs = {heads: pair_order(heads, c.head_dim) for heads in (c.heads, c.kv_heads)}
    for index in range(c.layers):
        at = f"blk.{index}"
        norm(f"{at}.attn_norm")
        linear(f"{at}.attn_q", order=pairs[c.heads])
        linear(f"{at}.attn_k", order=pairs[c.kv_heads])
        linear(f"{at}.attn_v")
        heads(f"{at}.q", pairs[c.heads])
        heads(f"{at}.k", pairs[c.kv_heads])
        heads(f"{at}.v", np.arange(c.kv_dim))
        norm(f"{at}.attn_sub_norm")
        linear(f"{at}.attn_output")
        norm(f"{at}.ffn_norm")
        linear(f"{at}.ffn_gate", f"{at}.ffn_up")
        norm(f"{at}.ffn_sub_norm")
        linear(f"{at}.ffn_down")
    if sample:
        norm("output_norm")
        linear("output")
    return shown


def differences(shown: dict[str, Ints], wanted: dict[str, list[Named]]) -> Iterator[str]:
    """A sentence for the first wrong transfer of each tap, in the order in which they happened."""
    found: list[tuple[int, str]] = []
    cycle_of = {"mantissa": "scale", "shift": "scale", "sum": "element"}
    for tap, pieces in wanted.items():
        values = shown.get(tap, np.zeros(0, np.int64))
        cycles = shown.get(f"{cycle_of.get(tap, tap)}_cycle", np.zeros(0, np.int64))
        at = 0
        for name, rows in pieces:
            got = values[at : at + len(rows)]
            if len(got) < len(rows):
                found.append((1 << 62, f"{name}: {len(got)} of {len(rows)} transfers came"))
                break
            wrong = np.flatnonzero((got != rows).reshape(len(rows), -1).any(axis=1))
            if wrong.size:
                row = int(wrong[0])
                cycle = int(cycles[at + row])
                what = f"expected {rows[row].tolist()}, got {got[row].tolist()}"
                many = f"{wrong.size} of {len(rows)} are wrong"
                found.append((cycle, f"{name}[{row}] in cycle {cycle}: {what}; {many}"))
                break
            at += len(rows)
        else:
            if at != len(values):
                found.append((1 << 62, f"{tap}: {len(values) - at} transfers too many"))
    yield from (sentence for _, sentence in sorted(found))
