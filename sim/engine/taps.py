# SPDX-License-Identifier: Apache-2.0
"""What the engine's taps must show for a group of tokens, from the golden model's traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    model: IntegerModel, config: EngineConfig, traces: Sequence[Trace], sample: bool
) -> dict[str, list[Named]]:
    """Transfers of each tap in order, in pieces named as in the trace.

    ``traces`` are those of the tokens of a group, one each.  Only the last one has the last norm
    and the head, and without ``sample`` there is neither.
    """
    c = model.config
    shown: dict[str, list[Named]] = {
        name: []
        for name in ("input", "codes", "mantissa", "shift", "sum", "element", "head", "peak")
    }

    def show(tap: str, row: int, name: str, values: Ints) -> None:
        place = f" of token {row} of {len(traces)}" if len(traces) > 1 else ""
        shown[tap].append((f"{name}{place}", values))

    def norm(name: str, rows: Sequence[int]) -> None:
        shape = (-1, config.norm_lanes)
        for row in rows:
            for part in ("input", "codes"):
                show(part, row, f"{name}.{part}", traces[row][f"{name}.{part}"].reshape(shape))
            for part in ("mantissa", "shift"):
                show(part, row, f"{name}.{part}", traces[row][f"{name}.{part}"].reshape(-1))

    def linear(row: int, name: str, *others: str, order: Ints | None = None) -> None:
        for tap, part in (("sum", "sums"), ("element", "out")):
            parts = [traces[row][f"{each}.{part}"][0] for each in (name, *others)]
            values = np.stack(parts, axis=1).reshape(-1)
            show(tap, row, f"{name}.{part}", values if order is None else values[order])

    def heads(row: int, name: str, order: Ints) -> None:
        codes = traces[row][f"{name}.codes"][0].reshape(-1)[order]
        show("head", row, f"{name}.codes", codes.reshape(-1, config.head_lanes))
        show("peak", row, f"{name}.peaks", traces[row][f"{name}.peaks"].reshape(-1))

    pairs = {heads: pair_order(heads, c.head_dim) for heads in (c.heads, c.kv_heads)}
    everyone = range(len(traces))
    for index in range(c.layers):
        at = f"blk.{index}"
        norm(f"{at}.attn_norm", everyone)
        for row in everyone:
            linear(row, f"{at}.attn_q", order=pairs[c.heads])
            linear(row, f"{at}.attn_k", order=pairs[c.kv_heads])
            linear(row, f"{at}.attn_v")
            heads(row, f"{at}.q", pairs[c.heads])
            heads(row, f"{at}.k", pairs[c.kv_heads])
            heads(row, f"{at}.v", np.arange(c.kv_dim))
        norm(f"{at}.attn_sub_norm", everyone)
        for row in everyone:
            linear(row, f"{at}.attn_output")
        norm(f"{at}.ffn_norm", everyone)
        for row in everyone:
            linear(row, f"{at}.ffn_gate", f"{at}.ffn_up")
        norm(f"{at}.ffn_sub_norm", everyone)
        for row in everyone:
            linear(row, f"{at}.ffn_down")
    if sample:
        norm("output_norm", everyone[-1:])
        linear(everyone[-1], "output")
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
