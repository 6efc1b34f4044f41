# SPDX-License-Identifier: Apache-2.0
"""Text from a model, by the golden models alone."""

import importlib.resources
from collections.abc import Iterator
from pathlib import Path

from ...sim.engine.generate import ProjectionRun, generate, layer_activations
from ...sim.engine.integer import IntegerModel
from ...sim.engine.model import ModelError
from ...sim.engine.reference import Reference
from ..checkpoints import TextStream
from ..checkpoints.models import Runnable, runnable
from . import packed
from . import shipped as _shipped


def shipped(name: str = "storybook") -> Path:
    """A trained model that comes with the package: ``storybook`` or ``storybook-small``."""
    return Path(str(importlib.resources.files(_shipped) / f"{name}.atx"))


class Story:
    """A text that grows while it is iterated over.

    Iterating yields the text of each new token, not the prompt. An empty prompt starts from
    ``<bos>`` alone; others follow it. ``note`` is, afterwards, a sentence when fewer than
    ``tokens`` came: the context was full. ``ids`` are all tokens so far, ``<bos>`` first.
    ``found`` is a model that was read already.

    Raises, on construction, :class:`atriplex.gen.checkpoints.CheckpointError` for the file,
    :class:`.bpe.TokenizerError` for a character that the vocabulary lacks, and
    :class:`atriplex.sim.engine.model.ModelError` for a prompt longer than the context.
    """

    def __init__(
        self,
        prompt: str = "",
        *,
        path: Path | None = None,
        tokens: int = 200,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        arithmetic: str = "integer",
        found: Runnable | None = None,
    ):
        file = found or runnable(path or shipped())
        self.tokenizer = file.tokenizer
        self.ids = file.tokenizer.encode(prompt, bos=True)
        self.note: str | None = None
        self.tokens = tokens
        self.context = file.model.config.context
        if len(self.ids) > self.context:
            raise ModelError(
                f"the prompt is {len(self.ids)} tokens with <bos>, "
                f"which do not fit the context of {self.context}"
            )
        if arithmetic not in ("integer", "float"):
            raise ModelError(f"arithmetic must be 'integer' or 'float', not {arithmetic!r}")
        model = (
            IntegerModel.compile(file.model) if arithmetic == "integer" else Reference(file.model)
        )
        self._tokens = generate(model, list(self.ids), tokens, temperature, top_k, seed)

    def __iter__(self) -> Iterator[str]:
        came, text = 0, TextStream(self.tokenizer, self.ids)
        for token in self._tokens:
            came += 1
            self.ids.append(token)
            yield text.feed(token)
        if rest := text.end():
            yield rest
        if came < self.tokens:
            self.note = (
                f"stopped after {came} of {self.tokens} tokens: the context of "
                f"{self.context} tokens is full"
            )


def first_layer(prompt: str, *, path: Path | None = None) -> dict[str, ProjectionRun]:
    """Real activations and weights of the first layer's projections for a prompt."""
    file = packed.load(path or shipped())
    model = IntegerModel.compile(file.model)
    return layer_activations(model, file.tokenizer.encode(prompt, bos=True))
