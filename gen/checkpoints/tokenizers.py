# SPDX-License-Identifier: Apache-2.0
"""Vocabularies of checkpoints: encoding by merges, decoding, text as it grows.

Two kinds, behind the interface of :class:`atriplex.gen.model.bpe.Tokenizer`:

- :class:`ScoreTokenizer`, SentencePiece's BPE: of all neighbours whose joined text is a piece, the
  piece of the highest score is made first, the leftmost among equals;
- :class:`RankTokenizer`, byte-level BPE as of GPT-2: the text is cut into words, their UTF-8 bytes
  are written as printable characters, and the neighbours that come first in the list of merges
  are joined first.

Both merge with a heap over a linked list, n log n for n characters, and remember short runs. What
the text of a control piece spells (``<s>``) is text like any other in a prompt.
"""

import codecs as _codecs
import heapq
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
from unicodedata import category

from ..model.bpe import TokenizerError
from ._source import Source

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces, numbered as in GGUF."""
SPACE = "\u2581"
UNKNOWN_TEXT = " \u2047 "
PIECES = 1 << 19
"""More pieces than any vocabulary may have."""
LONGEST = 1 << 16
"""Bytes of the longest piece."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer(Protocol):
    """What text generation needs of a vocabulary."""

    @property
    def bos(self) -> int | None:
        """Id of the token that opens a text, if there is one."""

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text, if there is one."""

    def __len__(self) -> int: ...

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; with ``bos``, opened the way the vocabulary opens a text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, which begin a text."""
        ...

    def piece(self, token: int) -> bytes:
        """UTF-8, or a part of it, that a token adds inside a text."""
        ...


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


_codecs.register_error("atriplex-replace-each", _replace_each)


class TextStream:
    """Text of tokens that come one by one.

    The texts that :meth:`feed` and :meth:`end` return, joined, are what ``decode`` makes of all
    tokens; a character whose bytes are spread over tokens appears with the last of them. ``prompt``
    are the ids before, whose text is not returned.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Iterable[int] = ()):
        self.tokenizer = tokenizer
        self._decoder = _codecs.getincrementaldecoder("utf-8")("atriplex-replace-each")
        self._strip = isinstance(tokenizer, ScoreTokenizer) and tokenizer.space_prefix
        for token in prompt:
            self.feed(token)

    def feed(self, token: int) -> str:
        """The text that ``token`` completes."""
        piece = self.tokenizer.piece(token)
        if piece and self._strip:
            self._strip = False
            if piece[:1] == b" " and self._may_drop(token):
                piece = piece[1:]
        return self._decoder.decode(piece)

    def end(self) -> str:
        """What is left: a replacement character for each byte of an unfinished character."""
        return self._decoder.decode(b"", True)

    def _may_drop(self, token: int) -> bool:
        """Whether a space in front is that before a text: not that of a byte or unknown token."""
        assert isinstance(self.tokenizer, ScoreTokenizer)
        return self.tokenizer.kinds[token] in (NORMAL, USER, UNUSED) and token != self.tokenizer.unk


def merge(
    symbols: Sequence[str],
    rank: Callable[[str, str], float | None],
    made: dict[str, tuple[str, str]] | None = None,
) -> list[str]:
    """``symbols`` after all merges, the lowest ``rank`` first, the leftmost among equals.

    ``rank`` of two neighbours is None where they do not merge; ``made`` collects the two parts of
    every symbol made.
    """
    texts: list[str] = list(symbols)
    count = len(texts)
    before, after = list(range(-1, count - 1)), list(range(1, count + 1))
    heap: list[tuple[float, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        if left < 0 or right >= count:
            return
        cost = rank(texts[left], texts[right])
        if cost is not None:
            heapq.heappush(heap, (cost, left, right, len(texts[left]) + len(texts[right])))

    for left in range(count - 1):
        offer(left, left + 1)
    while heap:
        _, left, right, length = heapq.heappop(heap)
        # A side that was merged since is empty or longer.
        if (
            not texts[left]
            or not texts[right]
            or len(texts[left]) + len(texts[right]) != length
            or after[left] != right
        ):
            continue
        joined = texts[left] + texts[right]
        if made is not None:
            made.setdefault(joined, (texts[left], texts[right]))
        texts[left], texts[right] = joined, ""
        after[left] = after[right]
        if after[right] < count:
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [text for text in texts if text]


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {text[error.start]!r} at position {error.start} is half a character"
        ) from None


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    """What both kinds of vocabulary have: texts and kinds of pieces, and the special ids."""

    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    add_bos: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.pieces) <= PIECES:
            raise TokenizerError(
                f"a vocabulary must have 1 to {PIECES} pieces, not {len(self.pieces)}"
            )
        if len(self.kinds) != len(self.pieces):
            raise TokenizerError(
                f"there must be a kind for each of {len(self.pieces)} pieces, not {len(self.kinds)}"
            )
        for name, token in (("bos", self.bos), ("eos", self.eos), ("unk", self.unk)):
            if token is not None and not 0 <= token < len(self.pieces):
                raise TokenizerError(
                    f"the {name} token {token} is not in 0..{len(self.pieces) - 1}"
                )

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Ids of the pieces that text may become; the first of two with the same text."""
        ids: dict[str, int] = {}
        for token, (text, kind) in enumerate(zip(self.pieces, self.kinds, strict=True)):
            if text and kind in (NORMAL, USER, UNUSED):
                ids.setdefault(text, token)
        return ids

    @cached_property
    def _users(self) -> re.Pattern[str] | None:
        """Pieces that the text is searched for before anything else, the longest first."""
        users = {
            text
            for text, kind in zip(self.pieces, self.kinds, strict=True)
            if kind == USER and text
        }
        if not users:
            return None
        return re.compile(
            "|".join(map(re.escape, sorted(users, key=lambda text: (-len(text), text))))
        )

    def _opening(self, text: str) -> list[int]:
        if self.bos is not None and (self.add_bos or not text):
            return [self.bos]
        if text:
            return []
        if self.eos is not None:
            return [self.eos]
        raise TokenizerError("an empty prompt needs a token that opens a text; there is none")

    def _missing(self, text: str, at: int) -> TokenizerError:
        return TokenizerError(
            f"character {text[at]!r} at position {at} is not in the vocabulary, which has neither "
            "bytes nor an unknown token"
        )

    def _check_token(self, token: int, at: int | None = None) -> None:
        if not 0 <= token < len(self.pieces):
            where = "" if at is None else f" at position {at}"
            raise TokenizerError(f"token {token}{where} is not in 0..{len(self.pieces) - 1}")

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; with ``bos`` after the token that opens a text."""
        raise NotImplementedError

    def piece(self, token: int) -> bytes:
        """UTF-8, or a part of it, that a token adds inside a text."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, which begin a text; bytes that are no UTF-8 become U+FFFD each."""
        tokens = list(ids)
        for at, token in enumerate(tokens):
            self._check_token(token, at)
        stream = TextStream(self)
        return "".join(map(stream.feed, tokens)) + stream.end()


@dataclass(frozen=True, kw_only=True)
class ScoreTokenizer(_Vocabulary):
    """Pieces with scores: SentencePiece BPE models, llama2.c's tokenizer.bin, GGUF ``llama``.

    A space is put before a text that is not empty (``space_prefix``) and taken off again by
    :meth:`decode`; with ``escaped``, pieces have U+2581 for a space, and so may the text. A
    character that no piece has becomes the pieces of its UTF-8 bytes, if there are all 256;
    else a run of such characters becomes one unknown token; else it is an error.
    """

    scores: tuple[float, ...]
    space_prefix: bool = True
    escaped: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.scores) != len(self.pieces):
            raise TokenizerError(
                f"there must be a score for each of {len(self.pieces)} pieces, "
                f"not {len(self.scores)}"
            )
        for token, score in enumerate(self.scores):
            if not math.isfinite(score):
                raise TokenizerError(f"the score of piece {token} must be finite, not {score}")

    @cached_property
    def _bytes(self) -> tuple[int, ...] | None:
        found: dict[int, int] = {}
        for token, (text, kind) in enumerate(zip(self.pieces, self.kinds, strict=True)):
            match = _BYTE_PIECE.fullmatch(text) if kind == BYTE else None
            if match:
                found.setdefault(int(match[1], 16), token)
        return tuple(found[value] for value in range(256)) if len(found) == 256 else None

    def _rank(self, left: str, right: str) -> float | None:
        token = self._ids.get(left + right)
        return None if token is None else -self.scores[token]

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; with ``bos`` after the token that opens a text."""
        _check_text(text)
        ids = self._opening(text) if bos else []
        if not text:
            return ids
        # Positions in errors are those of the text that was given.
        whole = " " + text if self.space_prefix else text
        shift = len(whole) - len(text)
        if self.escaped:
            whole = whole.replace(" ", SPACE)
        at, unknown = -shift, False
        for part in self._parts(whole):
            token = self._ids.get(part)
            if token is not None:
                ids.append(token)
            elif self._bytes is not None:
                ids.extend(self._bytes[value] for value in part.encode("utf-8"))
            elif self.unk is None:
                raise self._missing(text, max(at, 0))
            elif not unknown:
                ids.append(self.unk)
            unknown = token is None
            at += len(part)
        return ids

    def _parts(self, text: str) -> Iterator[str]:
        at = 0
        for match in self._users.finditer(text) if self._users else ():
            yield from self._merged(text[at : match.start()])
            yield match.group()
            at = match.end()
        yield from self._merged(text[at:])

    @cached_property
    def _inside(self) -> frozenset[str]:
        """Two neighbouring characters of any piece: between others no merge can ever happen."""
        return frozenset(text[at : at + 2] for text in self._ids for at in range(len(text) - 1))

    @cached_property
    def _known(self) -> dict[str, tuple[str, ...]]:
        return {}

    def _merged(self, text: str) -> Iterator[str]:
        """Parts of a text without pieces of the user's, run by run of what may merge."""
        start, inside = 0, self._inside
        for end in range(1, len(text) + 1):
            if end < len(text) and text[end - 1 : end + 1] in inside:
                continue
            run = text[start:end]
            start = end
            if len(run) == 1:
                yield run
                continue
            parts = self._known.get(run)
            if parts is None:
                made: dict[str, tuple[str, str]] | None = {} if UNUSED in self.kinds else None
                symbols = merge(run, self._rank, made)
                parts = tuple(part for each in symbols for part in self._used(each, made))
                if len(self._known) < 1 << 16 and len(run) < 64:
                    self._known[run] = parts
            yield from parts

    def _used(self, symbol: str, made: dict[str, tuple[str, str]] | None) -> Iterable[str]:
        """A symbol, or the parts it was made of where its piece is not to be used."""
        if made is None:
            return (symbol,)
        parts, todo = [], [symbol]
        while todo:
            part = todo.pop()
            token = self._ids.get(part)
            if token is not None and self.kinds[token] == UNUSED and part in made:
                todo.extend(reversed(made[part]))
            else:
                parts.append(part)
        return parts

    def piece(self, token: int) -> bytes:
        """UTF-8, or a part of it, that a token adds inside a text."""
        self._check_token(token)
        text, kind = self.pieces[token], self.kinds[token]
        if kind == CONTROL:
            return b""
        if kind == UNKNOWN or token == self.unk:
            return UNKNOWN_TEXT.encode()
        match = _BYTE_PIECE.fullmatch(text) if kind == BYTE else None
        if match:
            return bytes((int(match[1], 16),))
        return (text.replace(SPACE, " ") if self.escaped else text).encode()


def _byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level vocabularies.

    Bytes that print in Latin-1 stand for themselves, the others, in order, for U+0100 and up.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in shown else next(others)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
_TO_CHARACTERS = {byte: character for byte, character in enumerate(BYTE_CHARACTERS)}

_ENDINGS = r"'s|'t|'re|'ve|'m|'ll|'d"
_TAIL = r"\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"(?i:{_ENDINGS})|[^\r\na-zA-Z0-9]?[a-zA-Z]+|[0-9]{{1,%d}}| ?[^\sa-zA-Z0-9]+[\r\n]*"
    rf"|\s*[\r\n]+|{_TAIL}"
)
_GPT2 = rf"{_ENDINGS}| ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|{_TAIL}"
WORDS = {
    "gpt-2": re.compile(_GPT2, re.ASCII),
    "llama-bpe": re.compile(_LLAMA3 % 3, re.ASCII),
    "qwen2": re.compile(_LLAMA3 % 1, re.ASCII),
}
"""How texts are cut into words, by the names of GGUF; on texts that :func:`_fold` made ASCII."""
ALIASES = {"gpt2": "gpt-2", "default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}

_SPACES = {*map(chr, range(0x2000, 0x200B)), *"\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"}


def _fold(text: str) -> str:
    """``text`` with a character of the same class for each that is not ASCII.

    Letters become ``x``, which is in no English ending, numbers ``0``, spaces a tab, all else
    ``!``: Python's regular expressions know no Unicode categories.
    """
    if text.isascii():
        return text
    table: dict[int, str] = {}
    for character in set(text):
        if character.isascii():
            continue
        kind = category(character)[0]
        folded = "\t" if character in _SPACES else {"L": "x", "N": "0"}.get(kind, "!")
        table[ord(character)] = folded
    return text.translate(table)


@dataclass(frozen=True, kw_only=True)
class RankTokenizer(_Vocabulary):
    """Byte-level BPE: pieces, and pairs of texts in the order in which they merge; GGUF ``gpt2``.

    ``words`` names how a text is cut (:data:`WORDS`); with ``whole_words`` a word that is a piece
    is that piece, whatever the merges say. No space is put before a text. Every byte that the
    vocabulary has is text; a byte it lacks becomes the unknown token, or is an error.
    """

    merges: tuple[tuple[str, str], ...]
    words: str = "gpt-2"
    whole_words: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words not in WORDS:
            raise TokenizerError(
                f"words must be one of {', '.join(sorted(WORDS))}, not {self.words!r}"
            )
        ids = self._ids
        for index, (left, right) in enumerate(self.merges):
            if left + right in ids and left in ids and right in ids:
                continue
            text = next(text for text in (left, right, left + right) if text not in ids)
            raise TokenizerError(f"merge {index} of {left!r} and {right!r}: {text!r} is no piece")

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        ranks: dict[tuple[str, str], int] = {}
        for index, pair in enumerate(self.merges):
            ranks.setdefault(pair, index)
        return ranks

    @cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; with ``bos`` after the token that opens a text."""
        _check_text(text)
        ids = self._opening(text) if bos else []
        at = 0
        for match in self._users.finditer(text) if self._users else ():
            ids += self._encode_run(text, at, match.start())
            ids.append(self._ids[match.group()])
            at = match.end()
        return ids + self._encode_run(text, at, len(text))

    def _encode_run(self, text: str, start: int, end: int) -> list[int]:
        ids: list[int] = []
        run = text[start:end]
        for match in WORDS[self.words].finditer(_fold(run)):
            word = run[match.start() : match.end()]
            known = self._known.get(word)
            if known is None:
                known = self._encode_word(word, text, start + match.start())
                if len(self._known) < 1 << 16 and len(word) < 64:
                    self._known[word] = known
            ids.extend(known)
        return ids

    def _encode_word(self, word: str, text: str, at: int) -> tuple[int, ...]:
        raw = word.encode("utf-8")
        letters = raw.decode("latin-1").translate(_TO_CHARACTERS)
        if self.whole_words and letters in self._ids:
            return (self._ids[letters],)
        ids, done = [], 0
        for symbol in merge(letters, lambda left, right: self._ranks.get((left, right))):
            token = self._ids.get(symbol, self.unk)
            if token is None:
                raise self._missing(text, at + len(raw[:done].decode("utf-8", "ignore")))
            ids.append(token)
            done += len(symbol)
        return tuple(ids)

    def piece(self, token: int) -> bytes:
        """UTF-8, or a part of it, that a token adds inside a text."""
        self._check_token(token)
        text, kind = self.pieces[token], self.kinds[token]
        if kind == CONTROL:
            return b""
        if kind == UNKNOWN or token == self.unk:
            return UNKNOWN_TEXT.encode()
        if kind == USER:
            return text.encode()
        return b"".join(
            bytes((_BYTE_OF[character],)) if character in _BYTE_OF else character.encode()
            for character in text
        )


def llama2c(path: Path | str) -> ScoreTokenizer:
    """The vocabulary of a llama2.c ``tokenizer.bin``.

    An int32, the bytes of the longest piece; then to the end of the file, per piece, a float32
    score, an int32 length and as many bytes of UTF-8, with spaces as spaces. Pieces 0, 1 and 2 are
    unknown, ``<s>`` and ``</s>``; ``<0x00>`` to ``<0xFF>`` are bytes.
    """
    return read_llama2c(Source(path))


def read_llama2c(source: Source) -> ScoreTokenizer:
    """:func:`llama2c` of an open file."""
    (longest,) = source.unpack("<i", 0, "the length of the longest piece")
    if not 1 <= longest <= LONGEST:
        raise source.fail(0, f"the longest piece must have 1 to {LONGEST} bytes, not {longest}")
    contents = source.view
    texts: list[str] = []
    scores: list[float] = []
    at, size = 4, source.size
    while at < size:
        if len(texts) == PIECES:
            raise source.fail(at, f"a vocabulary must have at most {PIECES} pieces")
        if at + 8 > size:
            raise source.fail(at, f"expected 8 bytes of piece {len(texts)}, found {size - at}")
        score, length = struct.unpack_from("<fi", contents, at)
        if not math.isfinite(score):
            raise source.fail(at, f"the score of piece {len(texts)} must be finite, not {score}")
        if not 0 <= length <= longest:
            raise source.fail(
                at + 4, f"the length of piece {len(texts)} must be in 0..{longest}, not {length}"
            )
        at += 8
        if at + length > size:
            raise source.fail(
                at, f"expected {length} bytes of piece {len(texts)}, found {size - at}"
            )
        try:
            texts.append(bytes(contents[at : at + length]).decode("utf-8"))
        except UnicodeDecodeError:
            raise source.fail(at, f"piece {len(texts)} must be UTF-8") from None
        scores.append(score)
        at += length
    if len(texts) < 3:
        raise source.fail(at, f"a vocabulary must have at least 3 pieces, not {len(texts)}")
    kinds = [BYTE if _BYTE_PIECE.fullmatch(text) else NORMAL for text in texts]
    kinds[:3] = UNKNOWN, CONTROL, CONTROL
    return ScoreTokenizer(
        pieces=tuple(texts),
        kinds=tuple(kinds),
        scores=tuple(scores),
        bos=1,
        eos=2,
        unk=0,
        escaped=False,
    )
