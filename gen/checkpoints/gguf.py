# SPDX-License-Identifier: Apache-2.0
"""GGUF, versions 2 and 3, little-endian: metadata, vocabulary, tensors.

Types F32, F16, BF16, Q8_0, TQ1_0, TQ2_0, and I2_S (36) of bitnet.cpp. Everything else that a file
may hold is refused by name rather than guessed at.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sim.engine.model import Ternary
from . import codecs, tokenizers
from ._source import CheckpointError, Source
from .checkpoint import (
    LAYERS,
    Checkpoint,
    CheckpointConfig,
    ConfigError,
    Entry,
    Gate,
    Pairing,
    Tensor,
    assemble,
    gguf_name,
)

MAGIC = b"GGUF"
KEYS = 4096
TENSORS = 1 << 16
STRINGS = 1 << 20
"""Bounds of what one file may hold; strings are those of all arrays together."""
LONGEST, VALUE = (1 << 16) - 1, 1 << 24
"""Bytes of the longest key, name or element, and of the longest value."""
DIMENSIONS = 4

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_NUMPY = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1"} | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}

I2_S = 36
TYPES = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", I2_S: "I2_S"}
_OTHER_TYPES = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K"} | {
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    38: "TL1",
    39: "TL2",
}
_BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34)} | {
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
}
_FLOATS = {"F32": codecs.f32, "F16": codecs.f16, "BF16": codecs.bf16, "Q8_0": codecs.q8_0}

GATES: Mapping[str, Gate] = {
    "llama": "silu",
    "bitnet": "silu",
    "bitnet-25": "relu2",
    "bitnet-b1.58": "relu2",
}
"""Architectures that are read, and the gate each implies."""


@dataclass(frozen=True)
class _Info:
    name: str
    offset: int
    """Of its entry in the directory."""
    shape: tuple[int, ...]
    type: str
    start: int
    size: int


class _Cursor:
    """Reads on through a source."""

    def __init__(self, source: Source):
        self.source, self.at, self.strings = source, 0, 0
        self.view = source.view

    def number(self, form: str, what: str) -> Any:
        size = struct.calcsize(form)
        if self.at + size > self.source.size:
            self.source.bytes(self.at, size, what)
        (value,) = struct.unpack_from("<" + form, self.view, self.at)
        self.at += size
        return value

    def raw(self, what: str, longest: int) -> bytes:
        length = self.number("Q", f"the length of {what}")
        if length > self.source.size - self.at:
            raise self.source.fail(
                self.at - 8,
                f"{what} must end within the file, and its length is {length} of "
                f"{self.source.size - self.at} bytes left",
            )
        if length > longest:
            raise self.source.fail(
                self.at - 8, f"{what} may have at most {longest} bytes, not {length}"
            )
        text = bytes(self.view[self.at : self.at + length])
        self.at += length
        return text

    def string(self, what: str, longest: int = LONGEST) -> str:
        at = self.at
        try:
            return self.raw(what, longest).decode("utf-8")
        except UnicodeDecodeError:
            raise self.source.fail(at + 8, f"{what} must be UTF-8") from None

    def count(self, what: str, top: int, least: int) -> int:
        """A count of things of which each takes ``least`` bytes or more."""
        at = self.at
        count = self.number("Q", f"the number of {what}")
        if count > top:
            raise self.source.fail(at, f"there may be at most {top} {what}, not {count}")
        if count * least > self.source.size - self.at:
            raise self.source.fail(
                at, f"{count} {what} do not fit the {self.source.size - self.at} bytes left"
            )
        return count

    def value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], f"the value of {key}")
        if kind == _STRING:
            return self.string(f"the value of {key}", VALUE)
        if kind != _ARRAY:
            raise self.source.fail(self.at - 4, f"the type of {key} must be in 0..12, not {kind}")
        return self.array(key)

    def array(self, key: str) -> "list[str] | NDArray[Any]":
        kind = self.number("I", f"the type of the elements of {key}")
        if kind in _NUMPY:
            dtype = np.dtype(_NUMPY[kind])
            count = self.count(f"elements of {key}", 1 << 40, dtype.itemsize)
            size = count * dtype.itemsize
            values = self.source.data[self.at : self.at + size].view(dtype)
            self.at += size
            return values
        if kind != _STRING:
            raise self.source.fail(
                self.at - 4, f"elements of {key} must be numbers or strings, not of type {kind}"
            )
        count = self.count(f"elements of {key}", STRINGS - self.strings, 8)
        self.strings += count
        return list(self.elements(count, f"an element of {key}"))

    def elements(self, count: int, what: str) -> Iterator[str]:
        """:meth:`string` ``count`` times, for vocabularies of hundreds of thousands."""
        view, size, unpack = self.view, self.source.size, struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = self.at + 8
            end = start + unpack(view, self.at)[0] if start <= size else size + 1
            if end > size or end - start > LONGEST:
                self.raw(what, LONGEST)
            try:
                yield str(view[start:end], "utf-8")
            except UnicodeDecodeError:
                raise self.source.fail(start, f"{what} must be UTF-8") from None
            self.at = end


class _File:
    """Metadata and directory of a GGUF file."""

    def __init__(self, source: Source):
        self.source = source
        cursor = _Cursor(source)
        if source.bytes(0, 4, "the magic").tobytes() != MAGIC:
            raise source.fail(0, f"the magic must be {MAGIC!r}")
        cursor.at = 4
        version = cursor.number("I", "the version")
        if version in (2 << 24, 3 << 24):
            raise source.fail(4, "big-endian files are not read")
        if version not in (2, 3):
            raise source.fail(4, f"the version must be 2 or 3, not {version}")
        self.version = version
        # The shortest name, dimension, type and offset; the shortest key, type and value.
        tensors = cursor.count("tensors", TENSORS, 8 + 1 + 4 + 8 + 4 + 8)
        keys = cursor.count("keys", KEYS, 8 + 1 + 4 + 1)
        self.meta: dict[str, Any] = {}
        self.at: dict[str, int] = {}
        for _ in range(keys):
            at = cursor.at
            key = cursor.string("a key")
            if key in self.meta:
                raise source.fail(at, f"the key {key} is there twice")
            kind = cursor.number("I", f"the type of {key}")
            self.at[key] = cursor.at
            self.meta[key] = cursor.value(key, kind)
        self.directory = cursor.at
        alignment = self.get("general.alignment", int, 32)
        if not (8 <= alignment <= 1 << 20 and alignment % 8 == 0):
            raise self.fail(
                "general.alignment", f"must be a multiple of 8 in 8..{1 << 20}, not {alignment}"
            )
        raw = [self._info(cursor) for _ in range(tensors)]
        base = cursor.at + -cursor.at % alignment
        self.infos: dict[str, _Info] = {}
        for at, name, shape, type, offset in raw:
            if name in self.infos:
                raise source.fail(at, "the tensor is there twice", name)
            size = self._size(at, name, shape, type)
            if offset % alignment:
                raise source.fail(
                    at, f"its offset must be a multiple of {alignment}, not {offset}", name
                )
            if base + offset + size > source.size:
                raise source.fail(
                    at,
                    f"its {size} bytes at offset {base + offset} must end within the file of "
                    f"{source.size} bytes",
                    name,
                )
            self.infos[name] = _Info(name, at, shape, type, base + offset, size)
        end, last = base, ""
        for info in sorted(self.infos.values(), key=lambda info: (info.start, info.size)):
            if info.start < end:
                raise source.fail(
                    info.offset,
                    f"its data at offset {info.start} overlap those of {last}",
                    info.name,
                )
            end, last = info.start + info.size, info.name

    def _info(self, cursor: _Cursor) -> tuple[int, str, tuple[int, ...], str, int]:
        source, at = self.source, cursor.at
        name = cursor.string("the name of a tensor")
        count = cursor.number("I", f"the dimensions of {name}")
        if not 1 <= count <= DIMENSIONS:
            raise source.fail(
                cursor.at - 4, f"there must be 1 to {DIMENSIONS} dimensions, not {count}", name
            )
        sizes = tuple(cursor.number("Q", f"a dimension of {name}") for _ in range(count))
        if 0 in sizes:
            raise source.fail(at, f"every dimension must be at least 1, not {sizes}", name)
        kind = cursor.number("I", f"the type of {name}")
        if kind not in TYPES:
            called = _OTHER_TYPES.get(kind, f"number {kind}")
            raise source.fail(
                cursor.at - 4,
                f"the type must be one of {', '.join(TYPES.values())}, not {called}",
                name,
            )
        offset = cursor.number("Q", f"the offset of {name}")
        return at, name, sizes[::-1], TYPES[kind], offset

    def _size(self, at: int, name: str, shape: tuple[int, ...], type: str) -> int:
        elements = math.prod(shape)
        if type == "I2_S":
            if elements % 4:
                raise self.source.fail(
                    at, f"an I2_S tensor must have a multiple of 4 elements, not {elements}", name
                )
            return elements // 4 + codecs.I2S_TRAILER
        block, size = _BLOCKS[type]
        if shape[-1] % block:
            raise self.source.fail(
                at, f"rows of {type} must be a multiple of {block} long, not {shape[-1]}", name
            )
        return elements // block * size

    def fail(self, key: str, rule: str) -> CheckpointError:
        """The error for the value of ``key``."""
        return self.source.fail(self.at.get(key, self.directory), f"{key} {rule}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, of the kind that it must have; ``default`` where it is missing."""
        if key not in self.meta:
            return default
        value = self.meta[key]
        if kind is float and type(value) in (int, float):
            return float(value)
        if type(value) is not kind:
            raise self.fail(key, f"must be of the kind {kind.__name__}, not {value!r:.60}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number; one for all layers where the file has one for each."""
        value = self.meta.get(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and 0 < value.size <= LAYERS:
            if (value != value[0]).any():
                raise self.fail(key, "must be the same for all layers")
            value = int(value[0])
        if value is None:
            raise self.fail(key, "must be there and is not")
        if type(value) is not int:
            raise self.fail(key, f"must be a whole number, not {value!r:.60}")
        return value


def load(
    source: Source,
    *,
    i2s: str | None = None,
    pairing: Pairing | None = None,
    gate: Gate | None = None,
    words: str | None = None,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Checkpoint:
    """The checkpoint of a GGUF file.

    ``i2s`` is the order of I2_S (:data:`.codecs.I2S_BLOCKS`, by default ``128``); ``pairing``, that
    of the rows of Q and K (by default interleaved for ``llama``, half for the others); ``gate``, by
    default that of :data:`GATES`; ``words``, how a byte-level vocabulary cuts texts;
    ``tokenizer``, one to use in place of the file's.
    """
    file = _File(source)
    if i2s is not None and i2s not in codecs.I2S_BLOCKS:
        raise CheckpointError(
            f"{source.path}: option i2s must be one of {', '.join(codecs.I2S_BLOCKS)}, not {i2s!r}"
        )
    config = _config(file, pairing, gate)
    if tokenizer is None:
        tokenizer = vocabulary(file, words)
    entries: dict[str, Entry] = {}
    scales = _scales(file)
    for info in file.infos.values():
        if info.name.removesuffix("scale") + "weight" in scales and info.name.endswith(".scale"):
            continue
        if gguf_name(info.name) != info.name:
            raise source.fail(
                info.offset, "no such tensor is part of a Llama or BitNet model", info.name
            )
        read = _reader(source, info, scales.get(info.name, 1.0), i2s or "128")
        entries[info.name] = Entry(info.shape, info.start, info.type, read)
    return assemble(
        source,
        config,
        entries,
        directory=file.directory,
        format=f"GGUF {file.version}",
        tokenizer=tokenizer,
        meta={key: value for key, value in file.meta.items() if key.startswith("general.")},
    )


def _scales(file: _File) -> dict[str, float]:
    """Scales that are tensors of their own, ``blk.0.attn_q.scale``, by the names of the weights."""
    scales: dict[str, float] = {}
    for info in file.infos.values():
        weight = info.name.removesuffix("scale") + "weight"
        if not info.name.endswith(".scale") or weight not in file.infos:
            continue
        if math.prod(info.shape) != 1 or info.type not in ("F32", "F16", "BF16"):
            raise file.source.fail(
                info.offset,
                f"a scale must be one float, not {info.type} of shape {info.shape}",
                info.name,
            )
        value = file.source.decode(_FLOATS[info.type], info.start, info.size, info.name)
        scales[weight] = file.source.check_scale(float(value[0]), info.start, info.name)
    return scales


def _reader(source: Source, info: _Info, scale: float, order: str) -> Callable[[], Tensor]:
    if info.type in _FLOATS:
        codec = _FLOATS[info.type]

        def floats() -> Tensor:
            values = source.decode(codec, info.start, info.size, info.name).reshape(info.shape)
            return values if scale == 1 else values * np.float32(scale)

        return floats
    if info.type == "I2_S":
        codes = info.size - codecs.I2S_TRAILER
        whole = math.prod(info.shape[:-1]) if order == "rows" else math.prod(info.shape)
        block = codecs.I2S_BLOCKS[order]
        if whole % block:
            raise source.fail(
                info.offset,
                f"I2_S in the order {order} must have a multiple of {block} "
                f"{'rows' if order == 'rows' else 'elements'}, not {whole}",
                info.name,
            )
        own = source.scale(info.start + codes, info.name)

        def i2_s() -> Tensor:
            trits = source.decode(
                lambda raw: codecs.i2_s(raw, order, info.shape[-1]), info.start, codes, info.name
            )
            return Ternary(trits.reshape(info.shape), own * scale)

        return i2_s
    blocks = codecs.tq1_0 if info.type == "TQ1_0" else codecs.tq2_0

    def ternary() -> Tensor:
        trits, scales = source.decode(blocks, info.start, info.size, info.name)
        return _one_scale(trits, scales, info.shape, scale)

    return ternary


def _one_scale(
    trits: codecs.Trits, scales: codecs.Floats, shape: tuple[int, ...], scale: float
) -> Tensor:
    """Ternary where all blocks that are not zero have one scale, else the float values."""
    used = scales[trits.any(axis=1)]
    if used.size and (used != used[0]).any():
        values = trits.astype(np.float32) * scales[:, None]
        return (values if scale == 1 else values * np.float32(scale)).reshape(shape)
    if not used.size or used[0] == 0:
        return Ternary(np.zeros(shape, np.int8), 1.0)
    return Ternary(trits.reshape(shape), float(used[0]) * scale)


def _config(file: _File, pairing: Pairing | None, gate: Gate | None) -> CheckpointConfig:
    source = file.source
    arch = file.get("general.architecture", str)
    if arch not in GATES:
        raise file.fail(
            "general.architecture", f"must be one of {', '.join(GATES)}, not {arch!r:.60}"
        )
    embedding = file.infos.get("token_embd.weight")
    if embedding is None:
        raise source.fail(
            file.directory, "the tensor must be there and is not", "token_embd.weight"
        )
    heads = file.size(f"{arch}.attention.head_count")
    dim = file.size(f"{arch}.embedding_length")
    head_dim = file.size(f"{arch}.attention.key_length", dim // heads if heads else 0)
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.size(f"{arch}.{key}", head_dim) != head_dim:
            raise file.fail(
                f"{arch}.{key}", f"must be that of a whole head, {head_dim}, not another"
            )
    scaling = file.get(f"{arch}.rope.scaling.type", str, "none")
    if scaling != "none" or file.get(f"{arch}.rope.scale_linear", float, 1.0) != 1:
        raise file.fail(f"{arch}.rope.scaling.type", "must be none: scaled positions are not read")
    vocab = file.size(f"{arch}.vocab_size", embedding.shape[0])
    if vocab != embedding.shape[0]:
        raise file.fail(
            f"{arch}.vocab_size",
            f"must be the rows of token_embd.weight, {embedding.shape[0]}, not {vocab}",
        )
    try:
        return CheckpointConfig(
            dim=dim,
            layers=file.size(f"{arch}.block_count"),
            heads=heads,
            kv_heads=file.size(f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            hidden=file.size(f"{arch}.feed_forward_length"),
            vocab=vocab,
            context=file.size(f"{arch}.context_length"),
            theta=file.get(f"{arch}.rope.freq_base", float, 10000.0),
            eps=_epsilon(file.get(f"{arch}.attention.layer_norm_rms_epsilon", float, 1e-5)),
            gate=gate or GATES[arch],
            sub_norms="blk.0.attn_sub_norm.weight" in file.infos,
            tied="output.weight" not in file.infos,
            pairing=pairing or ("interleaved" if arch == "llama" else "half"),
        )
    except ConfigError as error:
        raise source.fail(
            file.directory, f"the metadata of {arch} make no model: {error}"
        ) from None


def _epsilon(value: float) -> float:
    """A float32 as the shortest decimal that gives it: 1e-5 rather than 9.99999974737875e-06."""
    return float(str(np.float32(value)))


def vocabulary(file: _File, words: str | None = None) -> tokenizers.Tokenizer | None:
    """The vocabulary of the metadata; None where there is none."""
    model = file.get("tokenizer.ggml.model", str)
    if model is None or model == "no_vocab":
        return None
    if model not in ("llama", "gpt2"):
        raise file.fail("tokenizer.ggml.model", f"must be llama or gpt2, not {model!r:.60}")
    pieces = _strings(file, "tokenizer.ggml.tokens")
    kinds = _numbers(file, "tokenizer.ggml.token_type", "iu")
    if kinds is None and model == "llama":
        byte = tokenizers._BYTE_PIECE
        kinds = [
            tokenizers.BYTE if byte.fullmatch(piece) else tokenizers.NORMAL for piece in pieces
        ]
    elif kinds is None:
        kinds = [tokenizers.NORMAL] * len(pieces)
    default = (1, 2, 0) if model == "llama" else (None, None, None)
    bos, eos, unk = (
        file.size(f"tokenizer.ggml.{name}_token_id", -1 if other is None else other)
        for name, other in zip(("bos", "eos", "unknown"), default, strict=True)
    )
    shared: dict[str, Any] = {
        "pieces": tuple(pieces),
        "kinds": tuple(kinds),
        "bos": None if bos == -1 else bos,
        "eos": None if eos == -1 else eos,
        "unk": None if unk == -1 else unk,
        "add_bos": file.get("tokenizer.ggml.add_bos_token", bool, bos != -1),
    }
    try:
        if model == "llama":
            scores = _numbers(file, "tokenizer.ggml.scores", "f")
            if scores is None:
                raise file.fail("tokenizer.ggml.scores", "must be there and is not")
            return tokenizers.ScoreTokenizer(
                **shared,
                scores=tuple(scores),
                space_prefix=file.get("tokenizer.ggml.add_space_prefix", bool, True),
            )
        merges = []
        for index, text in enumerate(_strings(file, "tokenizer.ggml.merges")):
            left, _, right = text.partition(" ")
            if not left or not right or " " in right:
                raise file.fail(
                    "tokenizer.ggml.merges",
                    f"{index} must be two texts and a space, not {text!r:.60}",
                )
            merges.append((left, right))
        words = words or _words(file)
        return tokenizers.RankTokenizer(
            **shared, merges=tuple(merges), words=words, whole_words=words == "llama-bpe"
        )
    except tokenizers.TokenizerError as error:
        raise file.fail("tokenizer.ggml.tokens", f"make no vocabulary: {error}") from None


def _words(file: _File) -> str:
    arch = file.get("general.architecture", str, "")
    pre = file.get("tokenizer.ggml.pre", str, "llama-bpe" if arch.startswith("bitnet") else "gpt-2")
    if pre == "default" and arch.startswith("bitnet"):
        pre = "llama-bpe"
    pre = tokenizers.ALIASES.get(pre, pre)
    if pre not in tokenizers.WORDS:
        raise file.fail(
            "tokenizer.ggml.pre",
            f"must be one of {', '.join([*tokenizers.WORDS, *tokenizers.ALIASES])}, "
            f"not {pre!r:.60}; option words overrides it",
        )
    return pre


def _strings(file: _File, key: str) -> list[str]:
    values = file.meta.get(key)
    if not isinstance(values, list):
        raise file.fail(key, "must be an array of strings" if key in file.meta else "must be there")
    return values


def _numbers(file: _File, key: str, kinds: str) -> list[Any] | None:
    values = file.meta.get(key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
        raise file.fail(key, "must be an array of numbers")
    if values.size > tokenizers.PIECES:
        raise file.fail(key, f"may have at most {tokenizers.PIECES} elements, not {values.size}")
    return values.tolist()


def read_vocabulary(source: Source, words: str | None = None) -> tokenizers.Tokenizer:
    """The vocabulary of a GGUF file, whatever else it holds."""
    tokenizer = vocabulary(_File(source), words)
    if tokenizer is None:
        raise source.fail(0, "the file must have a vocabulary")
    return tokenizer
