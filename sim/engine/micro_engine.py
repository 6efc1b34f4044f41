# SPDX-License-Identifier: Apache-2.0
"""Golden model of the micro engine at its ports: random small models and texts."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...rtl.engine._microcode import Op, Source
from ...rtl.engine._routines import microcode
from ..types import Streams
from .engine import random_model
from .integer import IntegerModel, IntegerState, Trace
from .model import Embedding, Model, ModelConfig, Ternary
from .store import StoreImage, compile_store

if TYPE_CHECKING:
    from ...rtl.engine.micro_engine import MicroEngineConfig

SIZES = ModelConfig(
    dim=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    hidden=32,
    vocab=32,
    context=8,
)
SHAPES = (
    SIZES,
    ModelConfig(
        dim=16,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=16,
        hidden=24,
        vocab=20,
        context=5,
    ),
    ModelConfig(
        dim=24,
        layers=1,
        heads=2,
        kv_heads=2,
        head_dim=8,
        hidden=16,
        vocab=24,
        context=4,
        sub_norms=False,
    ),
    ModelConfig(
        dim=160,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=8,
        hidden=16,
        vocab=28,
        context=4,
    ),
)
"""Sizes of models, among them one without sub-norms and one whose words take longer than what is
done with a row.  A model's seed says which are its own."""


MEMORIES = (Source.LOCAL, Source.INDEXED, Source.THREAD, Source.DATA)
"""Where an operand takes a cycle to be read."""

CYCLE_TOLERANCE = 0.03
"""The cycle model takes as typical what the values decide."""

PATIENCE = 20_000
"""Cycles without a transfer: attention shows nothing until a head is done."""


def _values(c: ModelConfig) -> int:
    """About as many as the tap shows of a token."""
    layer = 2 * c.dim + 3 * c.hidden + 6 * c.q_dim
    return c.dim + c.layers * layer + c.vocab


def stimulus(config: MicroEngineConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """The image of a random model, and texts of at least so many transfers at the tap."""
    return texts(config, rng, transfers, int(rng.integers(1 << 30)))


def texts(
    config: MicroEngineConfig, rng: np.random.Generator, transfers: int, seed: int
) -> Streams:
    """The image of the model of ``seed``, and texts: prompts, answers, restarts, one too long."""
    model, image = compiled(config, seed)
    c = model.config
    count = max(2 * c.context, transfers // _values(c))
    token = rng.integers(BLANK + 1, c.vocab, count)
    token[1] = BLANK
    restart = rng.random(count) < 1 / c.context
    restart[: c.context + 2] = False
    sample = rng.random(count) < 0.7
    sample[c.context + 1] = restart[c.context + 2] = sample[-1] = restart[-1] = True
    # Where keys and values will be, the seed is for the golden model.
    words = np.append(image.words, [seed & 0xFFFF, seed >> 16])
    return {
        "image_i": {"word": words, "last": np.arange(len(words)) == len(words) - 1},
        "token_i": {"token": token, "restart": restart, "sample": sample},
    }


BLANK = 0
"""The token whose row of the embedding is all 0.  It takes fewer cycles than others."""


@functools.lru_cache(maxsize=4)
def compiled(config: MicroEngineConfig, seed: int) -> tuple[IntegerModel, StoreImage]:
    """A random model, compiled."""
    fit = [c for c in SHAPES if max(c.dim, c.q_dim, c.hidden) <= config.longest]
    sizes = fit[seed % len(fit)]
    model = _with_corners(random_model(sizes, np.random.default_rng(seed)))
    model = IntegerModel.compile(model)
    return model, compile_store(model, config)


def _with_corners(model: Model) -> Model:
    """The same with what random models lack.

    A row of the embedding is 0, the others are odd and loud; every sum of the head is there
    twice; many codes of the first norm are ties; queries, gates and the residual stream of the
    last layer saturate.
    """
    codes, trits = model.token_embd.codes.astype(np.int64), model.output.codes.copy()
    codes += codes + 1
    codes[BLANK] = 0
    trits[len(trits) // 2 :] = trits[: len(trits) // 2]
    # What is not normalised is loud as it is, too much so for some scales.
    down = LOUD / 4 if model.config.sub_norms else 1 / 16

    def louder(name: str, factor: float) -> Ternary:
        weight = getattr(model.layers[-1], name)
        return Ternary(weight.codes.astype(np.int8), weight.scale * factor)

    factors = {"attn_q": LOUD, "ffn_gate": LOUD, "ffn_down": down}
    loud = {name: louder(name, factor) for name, factor in factors.items()}
    layers = [*model.layers[:-1], dataclasses.replace(model.layers[-1], **loud)]
    # 127 * v / peak is a whole number and a half where v is odd and has the lower gain.
    gain = np.where(np.arange(model.config.dim) % 2, 0.5, 1.0).astype(np.float32)
    layers[0] = dataclasses.replace(layers[0], attn_norm=gain)
    return dataclasses.replace(
        model,
        token_embd=Embedding(np.clip(codes, -127, 127).astype(np.int8), 2.0),
        layers=tuple(layers),
        output=Ternary(trits.astype(np.int8), model.output.scale),
    )


LOUD = 128.0


def _compiled(config: MicroEngineConfig, inputs: Streams) -> tuple[IntegerModel, StoreImage]:
    low, high = (int(word) for word in inputs["image_i"]["word"][-2:])
    return compiled(config, low | high << 16)


def told(
    model: IntegerModel, token: int, sample: bool, state: IntegerState
) -> tuple[int, NDArray[np.int64]]:
    """The likeliest token behind ``token``, and what the tap shows."""
    trace: Trace = {}
    logits = model.forward(np.array([token]), state, trace)
    shown = [part.reshape(-1) for part in _shown(model.config, trace, sample)]
    return int(logits.greedy()[0]), np.concatenate(shown)


def _shown(c: ModelConfig, trace: Trace, sample: bool) -> Iterator[NDArray[np.int64]]:
    """What the microcode makes, in its order."""

    def norm(name: str) -> Iterator[NDArray[np.int64]]:
        yield from (trace[f"{name}.{part}"] for part in ("codes", "mantissa", "shift"))

    def heads(at: str, names: str) -> Iterator[NDArray[np.int64]]:
        for head in range(trace[f"{at}.{names[0]}.peaks"].size):
            for name in names:
                yield trace[f"{at}.{name}.codes"][0][head]
                yield trace[f"{at}.{name}.peaks"][0][head]

    yield trace["token_embd.out"]
    for at in (f"blk.{index}" for index in range(c.layers)):
        yield from norm(f"{at}.attn_norm")
        yield from (trace[f"{at}.attn_{name}.out"] for name in "qkv")
        yield from heads(at, "q")
        yield from heads(at, "kv")
        yield trace[f"{at}.attn_sub_norm.input"]
        yield from norm(f"{at}.attn_sub_norm")
        yield trace[f"{at}.attn_output.out"]
        yield from norm(f"{at}.ffn_norm")
        yield from (trace[f"{at}.ffn_{name}.out"] for name in ("gate", "up"))
        yield from norm(f"{at}.ffn_sub_norm")
        yield trace[f"{at}.ffn_down.out"]
    if sample:
        yield from norm("output_norm")
        yield trace["output.sums"]


def golden(config: MicroEngineConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    model = _compiled(config, inputs)[0]
    answers, shown, state = [], [], model.start()
    given = inputs["token_i"]
    for token, restart, sample in zip(
        given["token"], given["restart"], given["sample"], strict=True
    ):
        if restart:
            state = model.start()
        if state.length == model.config.context:
            continue
        answer, values = told(model, int(token), bool(sample), state)
        shown.append(values)
        if sample:
            answers.append(answer)
    return {"token_o": {"token": np.array(answers)}, "tap_o": {"value": np.concatenate(shown)}}


def cycles(config: MicroEngineConfig, inputs: Streams) -> int:
    """Cycles until the last answer, nobody stalling."""
    model, image = _compiled(config, inputs)
    given = inputs["token_i"]
    total, position = len(image.words) + _cost("reset"), 0
    for restart, sample in zip(given["restart"], given["sample"], strict=True):
        position = 0 if restart else position
        if position < model.config.context:
            total += token_cycles(model.config, position, bool(sample))
            position += 1
        else:
            total += _cycles({"start": 1, "start.1": 1, "follows": 1, "follows.1": 1})
    return total


PEAK, QUOTIENT, PRODUCT, TOTAL = 14, 17, 32, 18
"""Typical bits of what is normalised."""
SQUARES = 28
"""Typical bits of a sum of squares."""
UNNORMED = 31
"""Bits of what is there instead without a norm."""


def _normal(bits: int, own: int = 16) -> dict[str, int]:
    """What normalising a number of so many bits to ``own`` takes."""
    if bits > own:
        over = {"normal2": bits - own + 1, "normal2.1": bits - own}
        return over | {"normal1": 1, "normal1.1": 1, "normal3": 1, "normal3.1": 1, "normal4": 1}
    under = {"normal6": own + 1 - bits, "normal6.1": 1, "normal8": own - bits}
    return under | {"normal1": 1, "normal1.1": 1, "normal2": 1, "normal3": 1, "normal5": 1}


def _root(bits: int) -> dict[str, int]:
    over, under = max(0, (bits - 31) // 2), max(0, (32 - bits) // 2)
    found = {"root": 1, "root1": over + 1, "root1.1": over, "root2": under + 1, "root3": under}
    return found | {
        **{"root2.1": 1, "root4": 1, "root5": 16, "root5.1": 8, "root6": 8},
        **{"root7": 16, "root7.1": 15, "root8": 1},
    }


def token_cycles(c: ModelConfig, position: int, sample: bool) -> int:
    """Cycles of a token at ``position``, nobody stalling; what the values decide is typical."""
    counts: Counter[str] = Counter()

    def add(times: int, *blocks: str) -> None:
        counts.update(dict.fromkeys(blocks, times))

    def normal(times: int, *sizes: int) -> None:
        add(times * len(sizes), "normal")
        for bits in sizes:
            counts.update({name: count * times for name, count in _normal(bits).items()})

    def absmax(times: int, width: int) -> None:
        add(times, "absmax", "absmax1.1")
        add(times * width, "absmax1", "absmax2")
        add(times * width // 2, "absmax2.1", "absmax3")

    def norm(width: int, plain: bool = False) -> None:
        name = "plain" if plain else "norm"
        add(1, name, "normed", f"{name}.1", "norm2", "norm2.1", "norm3.1", "norm3.2", "norm4.1")
        add(1, "norm4.2", "norm4.3")
        add(width, "norm3", "norm4")
        add(width * (not plain), "norm1")
        counts.update(_root(UNNORMED if plain else SQUARES))
        absmax(1, width)
        normal(1, PEAK, QUOTIENT)

    waits = 0

    def project(routine: str, rows: int, columns: int) -> None:
        """A row takes as long as its words or its instructions."""
        nonlocal waits
        add(1, routine, f"{routine}.1", "project", "project.1", f"{routine}1.1")
        add(rows, f"{routine}1")
        normal(1, PRODUCT)
        waits += rows * max(0, columns // 8 - _cost(f"{routine}1"))

    tokens, half = position + 1, c.head_dim // 2
    add(1, "start", "follows", "follows.1", "fits", "embed", "embed1.1", "rotary", "rotary1.1")
    add(1, "start.1", "scales", "ask", "ask.1")
    add(c.dim, "embed1")
    add(c.head_dim, "rotary1")
    for _ in range(c.layers):
        norm(c.dim)
        for rows in (c.q_dim, c.kv_dim, c.kv_dim):
            project("linear", rows, c.dim)
        add(1, "rotate", "rotate2.2", "queries", "queries1.2", "remember", "remember1.6", "attend")
        add(c.heads + c.kv_heads, "rotate1", "rotate2.1")
        add((c.heads + c.kv_heads) * half, "rotate2")
        add(c.heads, "queries1", "queries1.1")
        absmax(c.heads + 2 * c.kv_heads, c.head_dim)
        add(c.kv_heads, *(f"remember1.{at}" for at in range(1, 6)), "remember1")
        add(c.kv_heads, "logarithm", "logarithm.1", "logarithm.2", "logarithm1")
        add(2 * c.kv_heads, "write", "write1.1")
        add(2 * c.kv_heads * c.head_dim, "write1")
        normal(c.heads, PEAK, PRODUCT, TOTAL, QUOTIENT)
        counts.update({name: count * c.kv_heads for name, count in _normal(PEAK, 9).items()})
        add(c.kv_heads, "attend1", "attend7.2")
        add(c.heads, "attend2", "attend2.1", "attend2.2", "attend3.1", "attend6.2")
        add(c.heads, "attend6.3", "attend6.4", "attend7.1")
        add(c.heads * c.head_dim, "attend3", "attend7")
        add(c.heads * tokens, "attend4", "attend5.1", "attend6.1")
        add(c.heads * tokens * c.head_dim, "attend5", "attend6")
        norm(c.q_dim, not c.sub_norms)
        project("residual", c.dim, c.q_dim)
        norm(c.dim)
        project("linear", c.hidden, c.dim)
        project("gate", c.hidden, c.dim)
        norm(c.hidden, not c.sub_norms)
        project("residual", c.dim, c.hidden)
    routines = 4 + c.layers * 14
    if sample:
        norm(c.dim)
        add(1, "choose", "choose2.1")
        add(c.vocab, "choose1", "choose2")
        add(4, "choose1.1")
        waits += c.vocab * max(0, c.dim // 8 - _cost("choose1") - _cost("choose2"))
        routines += 2
    add(routines, "next")
    return _cycles(counts) + waits


def _cycles(counts: Mapping[str, int]) -> int:
    return sum(count * _cost(block) for block, count in counts.items())


@functools.cache
def _cost(block: str) -> int:
    """Cycles of a block of the microcode that waits for nothing."""
    total = 0
    for fields in _blocks()[block]:
        read = fields["op"] != Op.ST and fields["source"] in MEMORIES
        product = fields["op"] in (Op.MUL, Op.MAC, Op.MSC)
        total += 1 + read + product + (fields["op"] == Op.DIV) * (fields["argument"] - 1)
    return total


@functools.cache
def _blocks() -> dict[str, list[dict[str, int]]]:
    return microcode().blocks()
