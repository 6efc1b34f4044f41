# SPDX-License-Identifier: Apache-2.0
"""The compiler's back end: from an integer model to what the engine reads.

A layer's program is Q, attention over the old tokens, K, V, attention over the newest; O; gate and
up; down; the norms before each.  ``docs/engine.md`` says why in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.engine._program import Kind, Source, Target, Wait, When
from ...rtl.engine.matvec import taking
from ..types import Transfers
from .integer import IntegerModel, Norm, Precision, Projection
from .matvec import socket
from .matvec._socket import bytes_of
from .model import Matrix, ModelError, in_turn, rows_of

if TYPE_CHECKING:
    from ...rtl.engine.engine import EngineConfig

Operation = dict[str, int]


@dataclass(frozen=True, eq=False)
class Image:
    """Everything that a model is to an engine.

    ``weights`` are words in the order of use, by the field of the engine's stream; ``gains`` (rows,
    norm_lanes) and ``embedding`` (vocab * rows, norm_lanes) likewise; ``table`` holds cosines and
    sines by address; ``program`` is a list of operations, see ``rtl/engine/_program.py``.
    """

    weights: Transfers
    gains: NDArray[np.int16]
    embedding: NDArray[np.int8]
    table: NDArray[np.int32]
    program: list[Operation]
    sampled_words: int
    prefill_words: int
    sampled_cycles: int

    @property
    def words(self) -> int:
        """Words of weights."""
        return len(next(iter(self.weights.values())))


class DoesNotFit(ModelError):
    """A model that an engine is too small for; says what would make it fit."""


class TooLarge(DoesNotFit):
    """One whose memories are too small, so that a shorter context may do."""


def compile_image(model: IntegerModel, config: EngineConfig, overlap: bool = True) -> Image:
    """The image of ``model`` for ``config``.

    ``overlap`` lets attention begin with the first query; without it attention waits until Q, K
    and V are done.  Raises :class:`DoesNotFit`.
    """
    check_fit(model, config)
    return _Compiler(model, config, overlap).image()


def check_fit(model: IntegerModel, config: EngineConfig) -> None:
    """Raise :class:`DoesNotFit` naming every parameter that must be another for the model to fit.

    Activations: ``dim``, ``hidden``, ``heads``, ``head_dim``, ``norm_lanes``, ``gate``; keys and
    values: ``slots``, ``context``; program: ``program``; weights: ``vocab``, ``matvec``,
    ``memory``.
    """
    c, p = model.config, model.precision
    needs = {
        "dim": c.dim,
        "hidden": c.hidden,
        "heads": c.heads,
        "slots": c.layers * c.kv_heads,
        "context": 1 << (c.context - 1).bit_length(),
        "vocab": c.vocab,
        "program": operations(c.layers),
    }
    if config.memory:
        needs["memory"] = -(-sum(sizes(model, config).values()) // 1024)
    small = [
        f"{name}={need} (has {getattr(config, name)})"
        for name, need in needs.items()
        if getattr(config, name) < need
    ]
    for name, need in {"head_dim": c.head_dim, "gate": c.gate}.items():
        if getattr(config, name) != need:
            small.append(f"{name}={need} (has {getattr(config, name)})")
    for name, size in (("dim", c.dim), ("hidden", c.hidden), ("heads * head_dim", c.q_dim)):
        if size % config.norm_lanes:
            small.append(f"norm_lanes that divides {name}={size} (has {config.norm_lanes})")
    formats = {each.weights.format for each in model.projections.values()}
    if not formats <= set(config.socket.FORMATS):
        others = " or ".join(taking(formats)) or "none"
        kinds = " and ".join(sorted(formats))
        small.append(f"matvec={others} for weights of {kinds} (has {config.matvec})")
    if small:
        raise DoesNotFit(f"the model does not fit the engine; it needs {', '.join(small)}")
    if p != precision_of(config):
        raise DoesNotFit("the model was compiled for another precision, or selection of tokens")
    norms = [*((f"blk.{at}", each.norms) for at, each in enumerate(model.layers))]
    for where, found in (*norms, ("the head", {"output_norm": model.output_norm})):
        for name, norm in found.items():
            if norm.eps >> 32:
                raise DoesNotFit(f"the eps of {where}'s {name} does not fit the engine's 32 bits")


def sizes(model: IntegerModel, config: EngineConfig) -> dict[str, int]:
    """Bytes that a model takes in the memories of an engine."""
    c = model.config
    words = words_of(model.output.weights, config)
    for layer in model.layers:
        weights = {name: each.weights for name, each in layer.projections.items()}
        pair = socket(config).together(weights["ffn_gate"], weights["ffn_up"])
        weights |= zip(("ffn_gate", "ffn_up"), pair, strict=True)
        words += sum(words_of(each, config) for each in weights.values())
    gains = c.layers * sum(c.norms().values()) + c.dim
    return {"weights": words * word_bytes(config), "gains": 2 * gains, "embedding": c.vocab * c.dim}


def precision_of(config: EngineConfig) -> Precision:
    """What a model must be compiled for to run on an engine."""
    if config.select == "lop":
        return Precision(select_k=config.keep, select_recent=config.recent)
    return Precision()


def operations(layers: int) -> int:
    """Operations of a program."""
    return 1 + 12 * layers + 4


class _Compiler:
    def __init__(self, model: IntegerModel, config: EngineConfig, overlap: bool):
        self.model, self.config, self.overlap = model, config, overlap
        self.socket = socket(config)
        self.words: list[Transfers] = []
        self.gains: list[NDArray[np.int64]] = []
        self.word = self.row = 0

    def image(self) -> Image:
        c, model, lanes = self.model.config, self.model, self.config.norm_lanes
        program = list(self._program())
        sampled = self.word
        return Image(
            weights={
                name: np.concatenate([words[name] for words in self.words])
                for name in self.words[0]
            },
            gains=np.concatenate(self.gains).astype(np.int16),
            embedding=model.embedding.reshape(c.vocab * c.dim // lanes, lanes),
            table=self._table(),
            program=program,
            sampled_words=sampled,
            prefill_words=sampled - self.head_words,
            sampled_cycles=sum(cycles_of(self.config, op) for op in program),
        )

    def _table(self) -> NDArray[np.int32]:
        """The rotary table, with zeros for the tokens that only the engine has room for.

        The engine takes no token before all of its table was written.
        """
        found = np.stack(self.model.rope, axis=-1)
        table = np.zeros((self.config.context, *found.shape[1:]), np.int32)
        table[: len(found)] = found
        return table.reshape(-1, 2)

    def _program(self) -> Iterator[Operation]:
        c = self.model.config
        yield _op(
            Kind.EMBED, rows=c.dim // self.config.norm_lanes, value=self.model.embedding_shift
        )
        for index, layer in enumerate(self.model.layers):
            yield from self._layer(index, layer)
        last = self._norm(self.model.output_norm, Source.RESIDUAL, when=When.SAMPLE)
        others = _op(
            Kind.NORM,
            unit=Source.DISCARD,
            rows=c.dim // self.config.norm_lanes,
            when=When.PREFILL,
        )
        # In a group the others come before the token that is answered.
        yield from (last, others) if self.config.rows == 1 else (others, last)
        before = self.word
        yield self._linear(self.model.output, Target.HEAD, when=When.SAMPLE)
        self.head_words = self.word - before
        yield _op(Kind.END)

    def _layer(self, index: int, layer: Any) -> Iterator[Operation]:
        c, weights, norms = self.model.config, layer.projections, layer.norms
        attend = {
            "slot": index * c.kv_heads,
            "rows": c.heads,
            "words": c.heads // c.kv_heads,
        }
        yield self._norm(norms["attn_norm"], Source.RESIDUAL)
        yield self._linear(weights["attn_q"], Target.QUERY, self._pairs(c.heads), flag=0)
        old = _op(Kind.ATTEND, **attend)
        if self.overlap:
            yield old
        keys = self._pairs(c.kv_heads)
        slot = attend["slot"]
        yield self._linear(weights["attn_k"], Target.KEY, keys, flag=0, fresh=0, slot=slot)
        yield self._linear(weights["attn_v"], Target.VALUE, fresh=0, slot=slot)
        if not self.overlap:
            yield old | {"waits": int(Wait.LINEAR)}
        yield _op(Kind.ATTEND, unit=1, **attend)
        yield self._norm(norms["attn_sub_norm"], Source.ATTENTION)
        yield self._linear(weights["attn_output"], Target.ADD)
        yield self._norm(norms["ffn_norm"], Source.RESIDUAL)
        gate, up = weights["ffn_gate"], weights["ffn_up"]
        both = in_turn(*self.socket.together(gate.weights, up.weights))
        yield self._linear(gate, Target.GATE, rows=both)
        yield self._norm(norms["ffn_sub_norm"], Source.GATE)
        yield self._linear(weights["ffn_down"], Target.ADD)

    def _pairs(self, heads: int) -> NDArray[np.int64]:
        """Order of rows that puts the two elements of a rotary pair side by side."""
        return pair_order(heads, self.model.config.head_dim)

    def _norm(self, norm: Norm, source: Source, when: When = When.ALWAYS) -> Operation:
        lanes = self.config.norm_lanes
        rows = norm.gain.reshape(-1, lanes)
        at, self.row = self.row, self.row + len(rows)
        self.gains.append(rows)
        return _op(
            Kind.NORM,
            unit=source,
            flag=norm.plain,
            rows=len(rows),
            address=at,
            value=norm.eps,
            when=when,
        )

    def _linear(
        self,
        weight: Projection,
        target: Target,
        order: NDArray[np.int64] | None = None,
        *,
        rows: Matrix | None = None,
        flag: int = 1,
        fresh: int = 1,
        slot: int = 0,
        when: When = When.ALWAYS,
    ) -> Operation:
        """``flag``: the vector's last operation; ``fresh``: its first.

        ``rows`` are the weights where they are not those of ``weight``.
        """
        matrix = weight.weights if rows is None else rows
        matrix = matrix if order is None else rows_of(matrix, order)
        mode = self.socket.mode(matrix)
        made = self.socket.words(matrix, mode)
        words = len(next(iter(made.values())))
        at, self.word = self.word, self.word + words
        self.words.append(made)
        mantissa, shift = weight.scale
        return _op(
            Kind.LINEAR,
            unit=target,
            flag=flag,
            fresh=fresh,
            slot=slot,
            rows=len(matrix.codes),
            words=words,
            address=at,
            value=int(mantissa) | int(shift) << 16 | mode << 24,
            when=when,
        )


def words_of(matrix: Matrix, config: EngineConfig) -> int:
    """Words that a matrix takes."""
    return socket(config).count(matrix)


def mode_of(op: Operation) -> int:
    """What a linear operation tells the core of its weights."""
    return op["value"] >> 24


def cycles_of(config: EngineConfig, op: Operation) -> int:
    """Cycles in which an operation uses weights."""
    if op["kind"] != Kind.LINEAR:
        return 0
    return op["words"] * socket(config).cycles_per_word(mode_of(op))


def turns_of(config: EngineConfig, program: list[Operation]) -> list[int]:
    """Cycles that a tile of weights takes in each linear operation."""
    packing = socket(config)
    modes = [mode_of(op) for op in program if op["kind"] == Kind.LINEAR]
    return [packing.words_per_tile(mode) * packing.cycles_per_word(mode) for mode in modes]


def pair_order(heads: int, head_dim: int) -> NDArray[np.int64]:
    """Rows ``0, h, 1, h + 1, ...`` of every head, ``h = head_dim / 2``."""
    pairs = np.arange(head_dim).reshape(2, -1).T.reshape(-1)
    return (np.arange(heads)[:, None] * head_dim + pairs).reshape(-1)


def _op(kind: Kind, **fields: int) -> Operation:
    names = (
        "when", "waits", "unit", "flag", "fresh", "slot", "rows", "words", "address", "value"
    )  # fmt: skip
    return {"kind": int(kind)} | {name: int(fields.get(name, 0)) for name in names}


def word_bytes(config: EngineConfig) -> int:
    """Bytes of a word of weights."""
    return -(-config.socket.word(config).size // 8)


def packed_words(weights: Transfers, config: EngineConfig) -> NDArray[np.uint8]:
    """Words of weights as bytes (words, bytes), lowest first, the way the engine takes them."""
    return bytes_of(config.socket.word(config), weights)
