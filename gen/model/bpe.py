# SPDX-License-Identifier: Apache-2.0
"""Byte-pair vocabulary over ASCII: training, encoding, decoding.

The vocabulary is ``<bos>`` (id 0), the base alphabet (newline and the 95 printable ASCII
characters, ids 1 to 96), then one piece per merge, in the order the merges were learnt. Text is
first split into words (:data:`WORDS`), a leading space belonging to the word that follows it, and
no merge crosses a word boundary. Training is deterministic: the most frequent pair wins, among
equals the pair whose two texts sort first.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from ...rtl.errors import AtriplexError

BOS = "<bos>"
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
WORDS = re.compile(r"\n| ?[A-Za-z]+| ?[0-9]| ?[!-/:-@\[-`{-~]+| ")


class TokenizerError(AtriplexError, ValueError):
    """A text, a token id or a merge table that the vocabulary cannot take; one sentence."""


@dataclass(frozen=True)
class Tokenizer:
    """A trained vocabulary.

    ``merges[i]`` is the pair of ids that forms piece ``97 + i``; both are smaller than that.
    Ids outside the alphabet and the merges do not exist, so :meth:`encode` and :meth:`decode` are
    inverse on every text over :data:`ALPHABET`.
    """

    merges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for index, (left, right) in enumerate(self.merges):
            piece = 1 + len(ALPHABET) + index
            if not (1 <= left < piece and 1 <= right < piece):
                raise TokenizerError(
                    f"merge {index} joins pieces {left} and {right}, not both in 1..{piece - 1}"
                )

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """Text of every id; that of ``<bos>`` is its name."""
        pieces = [BOS, *ALPHABET]
        for left, right in self.merges:
            pieces.append(pieces[left] + pieces[right])
        return tuple(pieces)

    @property
    def bos(self) -> int:
        """Id of the token that opens a text."""
        return 0

    @property
    def eos(self) -> None:
        """Id of the token that ends a text: there is none."""
        return None

    def __len__(self) -> int:
        return 1 + len(ALPHABET) + len(self.merges)

    @cached_property
    def _ranks(self) -> dict[tuple[int, int], int]:
        ranks: dict[tuple[int, int], int] = {}
        for index, pair in enumerate(self.merges):
            ranks.setdefault(pair, 1 + len(ALPHABET) + index)
        return ranks

    @cached_property
    def _words(self) -> dict[str, tuple[int, ...]]:
        return {}

    def _encode_word(self, word: str) -> tuple[int, ...]:
        known = self._words.get(word)
        if known is not None:
            return known
        ids = [1 + ALPHABET.index(char) for char in word]
        ranks = self._ranks
        while len(ids) > 1:
            best = min(ranks.get(pair, len(self)) for pair in pairwise(ids))
            if best == len(self):
                break
            ids = _join(ids, self.merges[best - 1 - len(ALPHABET)], best)
        if len(self._words) < 1 << 16:
            self._words[word] = tuple(ids)
        return tuple(ids)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``, after ``<bos>`` where asked.

        Raises :class:`TokenizerError` for the first character outside :data:`ALPHABET`.
        """
        ids = [self.bos] if bos else []
        at = 0
        for match in WORDS.finditer(text):
            if match.start() != at:
                break
            ids.extend(self._encode_word(match.group()))
            at = match.end()
        if at != len(text):
            raise TokenizerError(
                f"character {text[at]!r} at position {at} is not in the vocabulary, "
                "which holds newline and printable ASCII"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; ``<bos>`` gives no text."""
        texts = []
        for index, token in enumerate(ids):
            if not 0 <= token < len(self):
                raise TokenizerError(
                    f"token {token} at position {index} is not in 0..{len(self) - 1}"
                )
            texts.append(self.pieces[token] if token else "")
        return "".join(texts)

    def piece(self, token: int) -> bytes:
        """What a token adds to a text, in UTF-8."""
        return self.decode([token]).encode()


def _join(ids: Sequence[int], pair: tuple[int, int], piece: int) -> list[int]:
    """``ids`` with each occurrence of ``pair``, from the left, replaced by ``piece``."""
    joined, at = [], 0
    while at < len(ids):
        if at + 1 < len(ids) and ids[at] == pair[0] and ids[at + 1] == pair[1]:
            joined.append(piece)
            at += 2
        else:
            joined.append(ids[at])
            at += 1
    return joined


def train(text: str, vocab: int = 512) -> Tokenizer:
    """Learn a vocabulary of ``vocab`` pieces from ``text``.

    Raises :class:`TokenizerError` for a character outside the alphabet, a ``vocab`` below the
    alphabet, and a text with too few repeated pairs.
    """
    base = 1 + len(ALPHABET)
    if vocab < base:
        raise TokenizerError(f"vocab must be at least {base}, not {vocab}")
    Tokenizer(()).encode(text)
    counts = Counter(match.group() for match in WORDS.finditer(text))
    words = [[1 + ALPHABET.index(char) for char in word] for word in counts]
    weights = list(counts.values())
    texts = ["", *ALPHABET]
    pairs: Counter[tuple[int, int]] = Counter()
    homes: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, ids in enumerate(words):
        for pair in pairwise(ids):
            pairs[pair] += weights[index]
            homes[pair].add(index)
    merges: list[tuple[int, int]] = []
    while base + len(merges) < vocab:
        best = min(
            pairs, key=lambda pair: (-pairs[pair], texts[pair[0]], texts[pair[1]]), default=None
        )
        if best is None or pairs[best] < 2:
            raise TokenizerError(
                f"the text repeats too few pairs: {base + len(merges)} pieces of {vocab} learnt"
            )
        piece = base + len(merges)
        merges.append(best)
        texts.append(texts[best[0]] + texts[best[1]])
        for index in sorted(homes.pop(best)):
            ids = words[index]
            joined = _join(ids, best, piece)
            if len(joined) == len(ids):
                continue
            for pair in pairwise(ids):
                pairs[pair] -= weights[index]
            for pair in pairwise(joined):
                pairs[pair] += weights[index]
                homes[pair].add(index)
            words[index] = joined
        pairs = +pairs
    return Tokenizer(tuple(merges))


def train_file(path: Path, vocab: int = 512) -> Tokenizer:
    """:func:`train` on the text of a file."""
    return train(path.read_text(encoding="utf-8"), vocab)
