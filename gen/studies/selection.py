# SPDX-License-Identifier: Apache-2.0
"""What Leading One Prediction finds and costs on the shipped model.

``python -m atriplex.gen.studies.selection`` measures on texts that the model writes itself, which
is what ``make bench`` notes; ``--text`` on the held-out part of a training text.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sim.engine.generate import generate
from ...sim.engine.integer import IntegerModel, Precision
from ...sim.kv.lop_select import select
from ..engine.story import config_for
from ..model import evaluate, packed
from ..model.corpus import Corpus
from ..model.generate import shipped

Row = dict[str, Any]
KEPT = (8, 16, 32, 64)


def selection() -> Iterator[Row]:
    """Leading One Prediction on the shipped model, 4 texts of its own of 256 tokens.

    Recall: share of the old tokens among the K with the largest exact scores that is chosen, the
    newest token, which always is, being one of the K; chance: share of the softmax that the chosen
    have. Both over tokens with at least K before them. Bytes of keys and values are those of all
    tokens of the texts; with the leading ones that the choice reads, 4 bits an element of all keys.
    """
    file = packed.load(shipped())
    model = IntegerModel.compile(file.model)
    texts = [[0, *generate(model, [0], 256, temperature=1.0, seed=seed)] for seed in range(4)]
    yield from measure([(np.array(ids[:-1]), np.array(ids[1:])) for ids in texts])


def measure(windows: evaluate.Windows) -> Iterator[Row]:
    """A row for each K, after the row of the model that attends to all tokens."""
    model = packed.load(shipped()).model
    whole = IntegerModel.compile(model)
    base = np.exp(evaluate.loss(whole, windows))
    traces = []
    for tokens, _ in windows[:4]:
        trace: dict[str, Any] = {}
        whole.forward(tokens, whole.start(), trace)
        traces.append(trace)
    yield {
        "block": "lop_select",
        "K": "all",
        "recall": "",
        "chance": "",
        "K and V read": "100 %",
        "with leading ones": "",
        "perplexity": f"{base:.3f}",
        "change": "",
    }
    for keep in KEPT:
        found = [_found(whole, trace, keep) for trace in traces]
        recall, chance = np.mean(np.concatenate(found, axis=-1), axis=-1)
        precision = replace(Precision(), select_k=keep)
        own = np.exp(evaluate.loss(IntegerModel.compile(model, precision), windows))
        seen = np.concatenate([np.arange(1, len(tokens) + 1) for tokens, _ in windows])
        read = np.minimum(seen, keep).sum() / seen.sum()
        engine = config_for(model.config, select="lop", keep=keep)
        tried = (seen - 1).sum() / seen.sum() * engine.lead_bits / engine.pair_bits
        yield {
            "block": "lop_select",
            "K": keep,
            "recall": f"{100 * recall:.1f} %",
            "chance": f"{100 * chance:.1f} %",
            "K and V read": f"{100 * read:.1f} %",
            "with leading ones": f"{100 * (read + tried):.1f} %",
            "perplexity": f"{own:.3f}",
            "change": f"{100 * (own / base - 1):+.2f} %",
        }


def _found(model: IntegerModel, trace: dict[str, Any], keep: int) -> NDArray[np.float64]:
    """Recall and share of the softmax, for each layer, head and token with enough before it."""
    config, parts = model.config, []
    for layer in range(config.layers):
        codes, peaks = (
            {name: trace[f"blk.{layer}.{name}.{what}"].swapaxes(0, 1) for name in "qk"}
            for what in ("codes", "peaks")
        )
        group = config.heads // config.kv_heads
        keys, key_peaks = (part["k"].repeat(group, axis=0) for part in (codes, peaks))
        tokens = codes["q"].shape[1]
        newest = np.arange(tokens)
        unit = 2.0 ** (-2 * model.precision.activation_fraction)
        unit /= ((1 << model.precision.kv_bits - 1) - 1) ** 2 * np.sqrt(config.head_dim)
        scores = (codes["q"] @ keys.swapaxes(-1, -2)) * key_peaks[:, None]
        scores = scores * peaks["q"][..., None] * unit
        scores[:, newest > newest[:, None]] = -np.inf
        chosen = select(codes["q"], keys, keep, newest=newest)
        # The newest token is always chosen: it is left out of the recall.
        old = np.where(newest == newest[:, None], -np.inf, scores)
        best = np.argsort(-old, axis=-1, kind="stable")[..., : keep - 1]
        recall = np.take_along_axis(chosen, best, axis=-1).mean(axis=-1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chance = (weights * chosen).sum(axis=-1) / weights.sum(axis=-1)
        parts.append(np.stack((recall, chance))[:, :, keep:].reshape(2, -1))
    return np.concatenate(parts, axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="the training text, whose held-out part serves")
    parser.add_argument("--windows", type=int, default=16, help="how much of it, of 256 tokens")
    args = parser.parse_args()
    rows = selection()
    if args.text:
        file = packed.load(shipped())
        corpus = Corpus.load(args.text.read_text(encoding="utf-8"), tokenizer=file.tokenizer)
        windows = [
            (tokens, targets)
            for tokens, targets in corpus.windows(file.model.config.context)
            if len(tokens) == file.model.config.context
        ]
        step = max(len(windows) // args.windows, 1)
        rows = measure(windows[::step][: args.windows])
    for row in rows:
        print(*(f"{name}: {value}" for name, value in row.items()), sep=", ", flush=True)


if __name__ == "__main__":
    main()
