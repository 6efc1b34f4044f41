# SPDX-License-Identifier: Apache-2.0
"""The compiler's back end for the micro engine: from an integer model to words of its store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...rtl.engine._routines import LANES, LOGARITHMS, THREAD, WEIGHTS, microcode
from ..vector.softmax import log2
from .image import DoesNotFit, TooLarge
from .integer import IntegerModel, Norm, Precision, Projection

if TYPE_CHECKING:
    from ...rtl.engine.micro_engine import MicroEngineConfig

SHORTEST = 16
"""Elements of a vector that the ternary core takes."""


@dataclass(frozen=True)
class Layout:
    """Where things are: vectors in local memory, all else in the store, in words.

    ``pair``: words of a token's key and value of one head; ``slot``: of all tokens'.
    """

    x: int
    work: int
    codes: int
    angles: int
    peaks: int
    sums: int
    local: int
    pair: int
    slot: int


@dataclass(frozen=True, eq=False)
class StoreImage:
    """``words`` go into the store; ``used``: with the keys and values that come after them."""

    words: NDArray[np.uint16]
    used: int
    layout: Layout


def compile_store(model: IntegerModel, config: MicroEngineConfig) -> StoreImage:
    """What a micro engine reads.  Raises :class:`.image.DoesNotFit`."""
    _check(model, config)
    return _Compiler(model, config).image()


def _check(model: IntegerModel, config: MicroEngineConfig) -> None:
    """What has nothing to do with sizes in memory."""
    c = model.config
    reasons = []
    if c.gate != "relu2":
        reasons.append(f"a gate of relu2, not {c.gate}")
    formats = {each.weights.format for each in model.projections.values()}
    if formats - {"ternary"}:
        reasons.append(f"ternary weights, not {' and '.join(sorted(formats))}")
    for name, size in (("dim", c.dim), ("hidden", c.hidden), ("heads * head_dim", c.q_dim)):
        if size % LANES or size < SHORTEST:
            reasons.append(f"{name} a multiple of {LANES} from {SHORTEST} on, not {size}")
    if (longest := max(c.dim, c.hidden, c.q_dim)) > config.longest:
        reasons.append(f"longest={longest} (has {config.longest})")
    for name, most in (("head_dim", 256), ("context", 2047), ("vocab", 4095)):
        if (size := getattr(c, name)) > most:
            reasons.append(f"{name} of at most {most}, not {size}")
    if reasons:
        raise DoesNotFit(f"the micro engine needs {', '.join(reasons)}")
    if model.precision != Precision():
        raise DoesNotFit("the model was compiled for another precision, or selection of tokens")
    for where, norm in _norms(model):
        if norm.eps >> 32:
            raise DoesNotFit(f"the eps of {where} does not fit the micro engine's 32 bits")


def _norms(model: IntegerModel) -> Iterator[tuple[str, Norm]]:
    for index, layer in enumerate(model.layers):
        yield from ((f"blk.{index}.{name}", norm) for name, norm in layer.norms.items())
    yield "output_norm", model.output_norm


def _layout(model: IntegerModel) -> Layout:
    c = model.config
    widest = max(c.hidden, c.q_dim + 2 * c.kv_dim)
    sizes = (c.dim, widest, max(c.dim, c.hidden, c.q_dim), c.head_dim, c.heads, c.head_dim)
    starts = np.cumsum((microcode().local, *sizes)).tolist()
    pair = c.head_dim + 3
    return Layout(*starts, pair=pair, slot=pair * c.context)


class _Compiler:
    def __init__(self, model: IntegerModel, config: MicroEngineConfig):
        self.model, self.config, self.layout = model, config, _layout(model)
        self.routines = microcode().labels

    def image(self) -> StoreImage:
        model, c, layout = self.model, self.model.config, self.layout
        # Addresses are known once it is known how long everything is, which depends on none.
        length, size = len(self._placed(0, 0)), self.at
        first = THREAD + length
        thread = self._placed(first, first + size)
        words = np.concatenate((self._tables(), np.array(thread).astype(np.uint16), *self.parts))
        used = len(words) + c.layers * c.kv_heads * layout.slot
        small = [
            f"{name}={1 << (need - 1).bit_length()} (has {has})"
            for name, need, has in (
                ("store", used, self.config.store),
                ("local", layout.local, self.config.local),
            )
            if need > has
        ]
        if small:
            raise TooLarge(
                f"the model does not fit the micro engine; it needs {', '.join(small)}, or a "
                f"shorter context than {model.config.context}"
            )
        return StoreImage(words, used, layout)

    def _placed(self, first: int, keys: int) -> list[int]:
        """The thread where what it refers to begins at ``first``, keys and values at ``keys``."""
        self.at, self.keys = first, keys
        self.parts: list[NDArray[np.uint16]] = []
        return list(self._thread())

    def _tables(self) -> NDArray[np.uint16]:
        softmax = self.model.softmax
        tables = np.zeros(THREAD, np.int64)
        tables[:WEIGHTS] = softmax.chances
        tables[WEIGHTS:LOGARITHMS] = softmax.weights
        # Of numbers with 9 bits, whose logarithms are 8 and what is in the table.
        tables[LOGARITHMS:] = log2(np.arange(256, 512), 8) - (8 << 8)
        return tables.astype(np.uint16)

    def _put(self, words: NDArray[np.integer]) -> int:
        """The address of words, which follow all others."""
        at, self.at = self.at, self.at + words.size
        self.parts.append(words.reshape(-1).astype(np.uint16))
        return at

    def _bytes(self, codes: NDArray[np.integer]) -> int:
        return self._put(codes.astype(np.int8).reshape(-1).view(np.uint8).view("<u2"))

    def _thread(self) -> Iterator[int]:
        model, c, layout, go = self.model, self.model.config, self.layout, self.routines
        yield c.context
        rows = c.dim // 2
        yield from (go["embed"], rows, self._bytes(model.embedding))
        yield from (1 << model.embedding_shift, c.dim, layout.x)
        cos, sin = model.rope
        angles = np.concatenate((cos, sin), axis=1)
        yield from (go["rotary"], c.head_dim, self._put(angles), layout.angles)
        yield from (go["scales"], *model.score_scale, *model.mix_scale)
        for index in range(c.layers):
            yield from self._layer(index)
        yield go["ask"]
        yield from self._norm(model.output_norm, layout.x)
        head = self._weights(model.output)
        yield from (go["choose"], head, model.output.codes.size // LANES, c.vocab)

    def _layer(self, index: int) -> Iterator[int]:
        layer, c, layout, go = (
            self.model.layers[index],
            self.model.config,
            self.layout,
            self.routines,
        )
        norms, weights = layer.norms, layer.projections
        q, k, v = layout.work, layout.work + c.q_dim, layout.work + c.q_dim + c.kv_dim
        keys = self.keys + index * c.kv_heads * layout.slot
        yield from self._norm(norms["attn_norm"], layout.x)
        yield from self._linear("linear", weights["attn_q"], q, ends=0)
        yield from self._linear("linear", weights["attn_k"], k, ends=0)
        yield from self._linear("linear", weights["attn_v"], v)
        heads = c.heads + c.kv_heads  # keys lie behind queries
        yield from (go["rotate"], c.head_dim // 2, layout.angles, heads, q)
        yield from (go["queries"], c.heads, c.head_dim, q, layout.peaks)
        yield from (go["remember"], c.head_dim, layout.pair, c.kv_heads, k, v, keys, layout.slot)
        # What is mixed takes the place of keys and values, or more.
        yield from (go["attend"], c.head_dim, c.kv_heads, c.heads // c.kv_heads, q, layout.peaks)
        yield from (layout.codes, keys, layout.slot, layout.sums)
        yield from self._norm(norms["attn_sub_norm"], layout.codes)
        yield from self._linear("residual", weights["attn_output"], layout.x)
        yield from self._norm(norms["ffn_norm"], layout.x)
        yield from self._linear("linear", weights["ffn_gate"], layout.work, ends=0)
        yield from self._linear("gate", weights["ffn_up"], layout.work)
        yield from self._norm(norms["ffn_sub_norm"], layout.work)
        yield from self._linear("residual", weights["ffn_down"], layout.x)

    def _norm(self, norm: Norm, vector: int) -> Iterator[int]:
        yield self.routines["plain" if norm.plain else "norm"]
        yield from (vector, len(norm.gain), self.layout.codes, self._put(norm.gain))
        yield from (norm.eps >> 16, norm.eps & 0xFFFF)

    def _linear(
        self, routine: str, weight: Projection, vector: int, ends: int = 1
    ) -> Iterator[int]:
        rows = len(weight.codes)
        yield from (self.routines[routine], self._weights(weight), ends)
        yield from (weight.codes.size // LANES, rows, *weight.scale, vector)

    def _weights(self, weight: Projection) -> int:
        codes = (weight.codes.reshape(-1, LANES) & 3).astype(np.int64)
        return self._put(codes @ (1 << np.arange(0, 2 * LANES, 2)))
