# SPDX-License-Identifier: Apache-2.0
"""From a text file to token windows for training and validation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import bpe

RUN, PERIOD, HELD_OUT = 20, 20, 10
"""Paragraph ``i`` is held out when ``i // RUN % PERIOD == HELD_OUT``."""


def split(text: str) -> tuple[list[str], list[str]]:
    """Training paragraphs, each with its newline, and the held-out runs of paragraphs.

    The text is one paragraph a line; empty lines are skipped. Runs of 20 consecutive paragraphs
    are held out, every 400 paragraphs: 5 %, spread over the whole text.
    """
    seen: list[str] = []
    runs: dict[int, list[str]] = {}
    for index, line in enumerate(line for line in text.split("\n") if line.strip()):
        if index // RUN % PERIOD == HELD_OUT:
            runs.setdefault(index // RUN, []).append(line + "\n")
        else:
            seen.append(line + "\n")
    return seen, ["".join(run) for run in runs.values()]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token streams of a text, split as by :func:`split`.

    ``stream`` is the training text, ``starts`` where its paragraphs begin; ``held_out`` are the
    held-out runs, each opened by ``<bos>``; ``characters`` counts those of both parts.
    """

    tokenizer: bpe.Tokenizer
    stream: NDArray[np.int64]
    starts: NDArray[np.int64]
    held_out: tuple[NDArray[np.int64], ...]
    characters: tuple[int, int]

    @classmethod
    def load(
        cls, text: str, *, vocab: int = 512, tokenizer: bpe.Tokenizer | None = None
    ) -> "Corpus":
        """Split ``text``, learn a vocabulary from the training part unless one is given, encode."""
        seen, held_out = split(text)
        tokenizer = tokenizer or bpe.train("".join(seen), vocab)
        encoded = [np.array(tokenizer.encode(paragraph), np.int64) for paragraph in seen]
        ends = np.cumsum([len(ids) for ids in encoded])
        return cls(
            tokenizer,
            np.concatenate(encoded),
            np.concatenate(([0], ends[:-1])),
            tuple(np.array(tokenizer.encode(run, bos=True), np.int64) for run in held_out),
            (sum(map(len, seen)), sum(map(len, held_out))),
        )

    def batch(self, seed: int, step: int, rows: int, length: int) -> NDArray[np.int64]:
        """Training windows of ``length + 1`` tokens, a function of ``seed`` and ``step``.

        Even rows are ``<bos>`` and a text from the start of a paragraph, odd rows start anywhere.
        """
        rng = np.random.default_rng((seed, step))
        windows = np.empty((rows, length + 1), np.int64)
        starts = self.starts[: np.searchsorted(self.starts, len(self.stream) - length - 1)]
        for row in range(rows):
            if row % 2 == 0:
                at = starts[rng.integers(len(starts))]
                windows[row, 0] = self.tokenizer.bos
                windows[row, 1:] = self.stream[at : at + length]
            else:
                at = rng.integers(len(self.stream) - length)
                windows[row] = self.stream[at : at + length + 1]
        return windows

    def windows(self, length: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Validation windows as (inputs, targets), each at most ``length`` long.

        Each held-out run is cut into consecutive windows; every token of it but ``<bos>`` is a
        target exactly once.
        """
        for run in self.held_out:
            for at in range(0, len(run) - 1, length):
                window = run[at : at + length + 1]
                yield window[:-1], window[1:]
