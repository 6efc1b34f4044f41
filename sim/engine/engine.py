# SPDX-License-Identifier: Apache-2.0
"""Golden model of the engine at its ports: random small models and texts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.engine._program import Kind, Source, When
from ..types import Streams, Transfers
from .image import Image, compile_image, precision_of, turns_of
from .integer import IntegerModel
from .matvec import socket
from .matvec._socket import random_trits
from .model import Embedding, Layer, Matrix, Model, ModelConfig
from .sequencer import groups
from .timing import estimate

if TYPE_CHECKING:
    from ...rtl.engine.engine import EngineConfig

Draw = Callable[[np.random.Generator, int, int], Matrix]

CYCLE_TOLERANCE = 0.01
"""The cycle model is an estimate: what the data decide it takes as typical."""

BEFORE_QUERY = 48
"""Cycles from a token to its first query, about."""


def stimulus(config: EngineConfig, rng: np.random.Generator, transfers: int) -> Streams:
    """A random model that fills the engine, and texts: prompts, answers, restarts."""
    seed = int(rng.integers(1 << 30))
    image = compiled(config, seed)[1]
    words = image.sampled_words  # a token
    count = min(max(3 * config.context // 2, transfers // words), max(4, 2 * transfers // words))
    token = rng.integers(0, config.vocab, count)
    restart = np.zeros(count, bool)
    restart[min(config.context, count // 2) :: max(config.context // 2, 3)] = True
    sample = rng.random(count) < 0.7
    sample[-1] = True
    given = {"token_i": {"token": token, "restart": restart, "sample": sample}}
    ops = image.program
    program: Transfers = {name: np.array([op[name] for op in ops]) for name in ops[0]}
    program["at"] = np.arange(len(ops))
    program["last"] = program["at"] == len(ops) - 1
    rows = _embedding_rows(config, image)
    words, gains = image.prefill_words, len(image.gains) - config.dim // config.norm_lanes
    passes = [bool(sample[group.numbers[-1]]) for group in groups(config.sequencer, given)]
    weights = {
        name: np.concatenate([each[: None if s else words] for s in passes])
        for name, each in image.weights.items()
    }
    return {
        **given,
        "program_i": program,
        "table_i": _table(image),
        "sampler_i": {
            name: np.zeros(int(sample.sum()), np.int64)
            for name in ("mode", "keep", "seed_load", "seed")
        }
        | {"seed": np.full(int(sample.sum()), seed)},
        "weights_i": weights,
        "gains_i": {"gains": np.concatenate([image.gains[: None if s else gains] for s in passes])},
        "embed_i": {"codes": rows[token].reshape(-1, config.norm_lanes)},
    }


def golden(config: EngineConfig, inputs: Streams) -> Streams:
    """All output transfers, in order."""
    model, image = compiled(config, int(inputs["sampler_i"]["seed"][0]))
    tokens = inputs["token_i"]
    answers, state = [], model.start()
    fetches: dict[str, list[list[int]]] = {"weights": [], "gains": [], "embed": []}
    for group in groups(config.sequencer, inputs):
        numbers, sample = group.numbers, False
        for number in numbers:
            if tokens["restart"][number]:
                state = model.start()
            logits = model.forward(tokens["token"][number : number + 1], state)
            sample = bool(tokens["sample"][number])
            if sample:
                answers.append(int(logits.greedy()[0]))
        for op in image.program:
            if op["when"] == (When.PREFILL if sample else When.SAMPLE):
                continue
            if op["kind"] == Kind.EMBED:
                fetches["embed"] += [
                    [int(tokens["token"][number]), op["rows"], op["value"]] for number in numbers
                ]
            elif op["kind"] == Kind.LINEAR:
                fetches["weights"].append([op["address"], op["words"]])
            elif op["kind"] == Kind.NORM and op["unit"] != Source.DISCARD:
                fetches["gains"].append([op["address"], op["rows"]])

    def stream(name: str, *fields: str) -> Transfers:
        return dict(zip(fields, np.array(fetches[name], np.int64).T, strict=True))

    return {
        "token_o": {"token": np.array(answers)},
        "weights_fetch_o": stream("weights", "address", "count"),
        "gains_fetch_o": stream("gains", "address", "count"),
        "embed_fetch_o": stream("embed", "token", "rows", "shift"),
    }


def cycles(config: EngineConfig, inputs: Streams) -> int:
    """Cycles until the last answer, nobody stalling: the sum of the tokens' estimates."""
    model, image = compiled(config, int(inputs["sampler_i"]["seed"][0]))
    tokens, turns = inputs["token_i"], turns_of(config, image.program)
    # Side by side: the first token needs the program at once, the table when it has a query.
    table = len(inputs["table_i"]["address"]) - BEFORE_QUERY
    total = max(len(inputs["program_i"]["at"]), table)
    for group in groups(config.sequencer, inputs):
        total += estimate(
            model.config,
            config,
            group.position,
            count=len(group.numbers),
            sample=bool(tokens["sample"][group.numbers[-1]]),
            fetch=0,
            turns=turns,
        ).cycles
    return total


def random_model(
    sizes: ModelConfig, rng: np.random.Generator, matrix: Draw = random_trits
) -> Model:
    """A model whose weights are drawn at random; its activations use their whole range.

    ``matrix`` draws a projection: :meth:`.Socket.random`.
    """

    def gain(width: int) -> NDArray[np.float32]:
        return rng.uniform(0.3, 1.5, width).astype(np.float32)

    norms, present, matrices = sizes.norms(), sizes.gains(), sizes.projections()

    def layer() -> Layer:
        parts: dict[str, Any] = {
            name: gain(width) if name in present else None for name, width in norms.items()
        }
        parts |= {name: matrix(rng, *shape) for name, shape in matrices.items()}
        return Layer(**parts)

    codes = rng.integers(-127, 128, (sizes.vocab, sizes.dim)).astype(np.int8)
    return Model(
        config=sizes,
        token_embd=Embedding(codes, 0.02),
        layers=tuple(layer() for _ in range(sizes.layers)),
        output_norm=gain(sizes.dim),
        output=matrix(rng, sizes.vocab, sizes.dim),
    )


@functools.lru_cache(2)
def compiled(config: EngineConfig, seed: int) -> tuple[IntegerModel, Image]:
    kv_heads = 2 if config.heads % 2 == 0 and config.slots % 2 == 0 else 1
    sizes = ModelConfig(
        dim=config.dim,
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=kv_heads,
        head_dim=config.head_dim,
        layers=config.slots // kv_heads,
        context=config.context,
        vocab=config.vocab,
        gate="silu" if config.gate == "silu" else "relu2",
        sub_norms=config.gate == "relu2",
    )
    random = random_model(sizes, np.random.default_rng(seed), socket(config).random)
    model = IntegerModel.compile(random, precision_of(config))
    return model, compile_image(model, config)


def _embedding_rows(config: EngineConfig, image: Image) -> NDArray[np.int8]:
    return image.embedding.reshape(config.vocab, -1)


def _table(image: Image) -> Transfers:
    return {
        "address": np.arange(len(image.table)),
        "cos": image.table[:, 0].astype(np.int64),
        "sin": image.table[:, 1].astype(np.int64),
    }
