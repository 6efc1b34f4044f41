# SPDX-License-Identifier: Apache-2.0
"""Perplexities of a packed model on the held-out part of a text."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sim.engine.generate import GoldenModel
from ...sim.engine.integer import IntegerModel, Precision
from ...sim.engine.reference import Reference
from . import packed
from .corpus import Corpus

WIDER: dict[str, dict[str, int]] = {
    "residual stream": {"residual_fraction": 16, "residual_bits": 26, "product_bits": 26},
    "products with gains": {"product_bits": 40},
    "Q, K, V, gate and up": {"activation_fraction": 12, "activation_bits": 20},
    "rotary table": {"rope_fraction": 20},
    "int8 Q, K and V": {"kv_bits": 12},
    "softmax table": {"score_fraction": 13, "score_bits": 24},
    "7-bit mixing weights": {"weight_bits": 14},
    "gate": {"hidden_bits": 28, "hidden_fraction": 12},
}
"""Widths that make one unit of the integer engine nearly exact.

Products with gains keep their place against the residual stream, which they come from.
"""

Windows = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def loss(
    model: GoldenModel, windows: Windows, progress: Callable[[int], None] | None = None
) -> float:
    """Mean cross entropy of all targets, in nats."""
    total, count = 0.0, 0
    for tokens, targets in windows:
        real = model.forward(tokens, model.start()).real.astype(np.float64)
        peak = real.max(axis=-1)
        log_sum = np.log(np.exp(real - peak[:, None]).sum(axis=-1)) + peak
        total += float((log_sum - real[np.arange(len(targets)), targets]).sum())
        count += len(targets)
        if progress is not None:
            progress(count)
    return total / count


def evaluate(
    path: Path,
    text: Path,
    *,
    limit: int = 0,
    units: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Perplexities of a packed model on the held-out part of ``text``.

    ``limit`` keeps only so many windows, evenly spread (0: all). With ``units`` that many windows
    also give what each unit of the integer engine costs: the rise of perplexity against an engine
    in which that unit alone is nearly exact. Keys of the result: ``tokens``, ``characters``
    (of the whole held-out part), ``reference``, ``integer`` (perplexities), ``float_activations``
    (ternary weights with float32 activations), ``trained`` (the float twin's, from the file's
    ``meta``, where present) and ``units``.
    """
    file = packed.load(path)
    corpus = Corpus.load(Path(text).read_text(encoding="utf-8"), tokenizer=file.tokenizer)
    everything = list(corpus.windows(file.model.config.context))
    windows = _spread(everything, limit)

    def perplexity(model: GoldenModel, name: str, chosen: Windows) -> float:
        tell = None if progress is None else partial(progress, name)
        return float(np.exp(loss(model, chosen, tell)))

    result: dict[str, Any] = {
        "windows": len(windows),
        "tokens": sum(len(targets) for _, targets in windows),
        "tokens_per_character": sum(len(t) for _, t in everything) / corpus.characters[1],
        "float_activations": perplexity(
            Reference(file.model, quantise=False), "float activations", windows
        ),
        "reference": perplexity(Reference(file.model), "reference", windows),
        "integer": perplexity(IntegerModel.compile(file.model), "integer", windows),
        "float_twin": file.meta.get("float_twin", {}).get("perplexity"),
    }
    if units:
        some, default = _spread(everything, units), Precision()
        base = perplexity(IntegerModel.compile(file.model, default), "units", some)
        exact = perplexity(Reference(file.model), "units", some)
        result["units"] = {"all together": base / exact - 1}
        for name, wider in WIDER.items():
            model = IntegerModel.compile(file.model, replace(default, **wider))
            result["units"][name] = base / perplexity(model, name, some) - 1
    return result


def _spread(windows: Windows, limit: int) -> Windows:
    if not limit or limit >= len(windows):
        return windows
    return [windows[round(index)] for index in np.linspace(0, len(windows) - 1, limit)]
