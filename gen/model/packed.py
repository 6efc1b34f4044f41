# SPDX-License-Identifier: Apache-2.0
"""The packed model file, ``.atx``: configuration, vocabulary and tensors in one file.

``docs/model.md`` describes the format byte by byte. Writing is deterministic: equal contents give
equal bytes. Reading checks every length against the size of the file before it allocates, and
everything that could make two readers disagree is an error.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError
from ...sim.engine.model import (
    Embedding,
    Model,
    ModelConfig,
    ModelError,
    Planes,
    Ternary,
    expected_shapes,
)
from . import bpe

MAGIC = b"ATX\0"
VERSION = 1
PREAMBLE = struct.Struct("<4sHHIQ32s")
"""Magic, version, 0, bytes of header, bytes of payload, SHA-256 of both."""
ALIGN = 4
TRITS = 5
LAST_CODE = 3**TRITS - 1
FACTOR_END = 127.5
PLANES = re.compile("hlq([1-4])g([1-9][0-9]{0,3})")
"""Encoding of planes of bits: how many, and the inputs of a group."""

_DIGITS = np.array(
    [[code // 3**digit % 3 - 1 for digit in range(TRITS)] for code in range(LAST_CODE + 1)],
    dtype=np.int8,
)


class ModelFileError(AtriplexError, ValueError):
    """A packed file that cannot be read or written.

    One sentence: file, offset, what was expected, what was found.
    """


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a packed file holds. ``meta`` is free: any JSON object, for people and reports."""

    model: Model
    tokenizer: bpe.Tokenizer
    meta: Mapping[str, Any] = field(default_factory=dict)


def pack_trits(trits: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Five trits a byte, in row-major order: ``t0 + 3 t1 + 9 t2 + 27 t3 + 81 t4``, ``t = w + 1``.

    A last byte that is not full is filled with zero weights. Raises :class:`ValueError` naming the
    index of a value that is no trit.
    """
    flat = np.asarray(trits).reshape(-1)
    wrong = np.flatnonzero((flat < -1) | (flat > 1))
    if wrong.size:
        raise ValueError(f"value {flat[wrong[0]]} at index {wrong[0]} is not a trit")
    digits = np.ones(-(-flat.size // TRITS) * TRITS, np.uint8)
    digits[: flat.size] = flat + 1
    return digits.reshape(-1, TRITS) @ (3 ** np.arange(TRITS)).astype(np.uint8)


def unpack_trits(codes: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """The inverse of :func:`pack_trits` for ``count`` trits.

    Raises :class:`ValueError` naming the index of a code above 242, and for a filling that is not
    zero weights.
    """
    wrong = np.flatnonzero(codes > LAST_CODE)
    if wrong.size:
        raise ValueError(f"code {codes[wrong[0]]} at index {wrong[0]} is above {LAST_CODE}")
    trits = _DIGITS.take(codes, axis=0).reshape(-1)
    if trits[count:].any():
        raise ValueError(f"code {codes[-1]} at index {codes.size - 1} is not filled with zeros")
    return trits[:count]


def pack_planes(name: str, matrix: Planes) -> bytes:
    """Offsets and factors, then planes: eight bits a byte, the lowest first, by row and plane.

    Of factors a byte each, by row and plane, the offset as if it were the first plane.
    """
    assert matrix.offsets is not None
    factors = np.concatenate((matrix.offsets[:, None], matrix.factors), axis=1)
    if np.abs(factors + 0.5).max(initial=0) > FACTOR_END:
        raise ValueError(f"tensor {name} has factors that are not in -128..127")
    bits = np.packbits(matrix.planes, axis=2, bitorder="little")
    return factors.astype(np.int8).tobytes() + bits.tobytes()


def encode(file: ModelFile) -> bytes:
    """The bytes of a packed file. Raises :class:`ValueError` for contents it cannot hold."""
    if len(file.tokenizer) != file.model.config.vocab:
        raise ValueError(
            f"the vocabulary has {len(file.tokenizer)} pieces, the model {file.model.config.vocab}"
        )
    payload, tensors = bytearray(), []
    for name, tensor in file.model.tensors().items():
        payload += bytes(-len(payload) % ALIGN)
        offset = len(payload)
        if isinstance(tensor, Ternary):
            encoding, shape = "trit5", tensor.trits.shape
            try:
                codes = pack_trits(tensor.trits).tobytes()
            except ValueError as error:
                raise ValueError(f"tensor {name}: {error}") from None
            payload += struct.pack("<f", _scale(name, tensor.scale)) + codes
        elif isinstance(tensor, Embedding):
            encoding, shape = "int8", tensor.codes.shape
            payload += struct.pack("<f", _scale(name, tensor.scale))
            payload += tensor.codes.astype(np.int8).tobytes()
        elif isinstance(tensor, Planes) and tensor.offsets is not None:
            encoding, shape = f"{tensor.format}g{tensor.group}", tensor.codes.shape
            payload += struct.pack("<f", _scale(name, tensor.scale)) + pack_planes(name, tensor)
        elif not isinstance(tensor, np.ndarray):
            raise ValueError(
                f"tensor {name} is of {tensor.format}; projections of an .atx file are trits, "
                "hlq1 to hlq4 or float16"
            )
        elif tensor.ndim == 2:
            encoding, shape = "float16", tensor.shape
            halves = tensor.astype("<f2")
            if not np.isfinite(halves).all():
                raise ValueError(f"tensor {name} holds a value that float16 has not")
            payload += halves.tobytes()
        else:
            encoding, shape = "float32", tensor.shape
            if not np.isfinite(tensor).all():
                raise ValueError(f"tensor {name} holds a value that is not finite")
            payload += tensor.astype("<f4").tobytes()
        tensors.append({
            "name": name,
            "encoding": encoding,
            "shape": list(shape),
            "offset": offset,
            "bytes": len(payload) - offset,
        })
    header = json.dumps(
        {
            "config": sizes(file.model.config),
            "merges": [list(pair) for pair in file.tokenizer.merges],
            "meta": dict(file.meta),
            "tensors": tensors,
        },
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    ).encode("ascii")
    header += b" " * (-(PREAMBLE.size + len(header)) % ALIGN)
    digest = hashlib.sha256(header + payload).digest()
    preamble = PREAMBLE.pack(MAGIC, VERSION, 0, len(header), len(payload), digest)
    return preamble + header + bytes(payload)


def save(path: Path, file: ModelFile) -> None:
    """Write a packed file, whole or not at all."""
    path = Path(path)
    contents = encode(file)
    handle, part = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(contents)
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def load(path: Path) -> ModelFile:
    """Read a packed file. Raises :class:`ModelFileError` for anything wrong with it."""
    try:
        contents = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: offset 0: expected a file, found {error.strerror}") from None
    return decode(contents, str(path))


def decode(contents: bytes, name: str = "model") -> ModelFile:
    """Contents of a packed file; ``name`` opens the sentence of an error."""
    return _Reader(contents, name).read()


def sizes(config: ModelConfig) -> dict[str, Any]:
    """Sizes as of the first version; what came later is there only where it is not the default."""
    default = {"gate": "relu2", "sub_norms": True, "tied": False}
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if default.get(name) != value}


def _scale(name: str, scale: float) -> float:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"tensor {name} has the scale {scale}, which must be finite and above 0")
    return scale


def _encoding(name: str, shape: tuple[int, ...], entry: object) -> str:
    """How a tensor is to be encoded; of projections it is the file that says so."""
    if name == "token_embd.weight":
        return "int8"
    if len(shape) == 1:
        return "float32"
    said = entry.get("encoding") if isinstance(entry, dict) else None
    return str(said) if said == "float16" or _planes(said) else "trit5"


def _planes(encoding: object) -> tuple[int, int] | None:
    """Planes and inputs of a group, if it is an encoding of planes."""
    found = PLANES.fullmatch(encoding) if isinstance(encoding, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _size(encoding: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    elements = math.prod(shape)
    if planes := _planes(encoding):
        bits, group = planes
        rows, columns = shape
        return 4 + rows * ((bits + 1) * -(-columns // group) + bits * -(-columns // 8))
    return {
        "int8": 4 + elements,
        "trit5": 4 + -(-elements // TRITS),
        "float16": 2 * elements,
        "float32": 4 * elements,
    }[encoding]


class _Reader:
    def __init__(self, contents: bytes, name: str):
        self.contents, self.name = contents, name

    def fail(self, offset: int, expected: str, found: object) -> ModelFileError:
        return ModelFileError(f"{self.name}: offset {offset}: expected {expected}, found {found}")

    def read(self) -> ModelFile:
        size = len(self.contents)
        if self.contents[:4] != MAGIC[: max(1, min(size, 4))] or size < 4:
            raise self.fail(0, f"the magic {MAGIC!r}", repr(self.contents[:4]))
        if size < PREAMBLE.size:
            raise self.fail(size, f"{PREAMBLE.size} bytes of preamble", f"the end after {size}")
        _, version, zero, header, payload, digest = PREAMBLE.unpack_from(self.contents)
        if version != VERSION:
            raise self.fail(4, f"version {VERSION}", version)
        if zero:
            raise self.fail(6, "0", zero)
        if PREAMBLE.size + header > size:
            raise self.fail(8, f"at most {size - PREAMBLE.size} bytes of header", header)
        self.base = PREAMBLE.size + header
        if self.base + payload != size:
            raise self.fail(12, f"{size - self.base} bytes of payload, all that is left", payload)
        if hashlib.sha256(self.contents[PREAMBLE.size :]).digest() != digest:
            raise self.fail(20, "the SHA-256 of header and payload", digest.hex())
        return self.parse(self.header(), payload)

    def header(self) -> dict[str, Any]:
        try:
            header = json.loads(self.contents[PREAMBLE.size : self.base].decode("ascii"))
        except (ValueError, RecursionError) as error:
            raise self.fail(PREAMBLE.size, "a JSON header", error) from None
        for key, kind in {"config": dict, "merges": list, "meta": dict, "tensors": list}.items():
            if not isinstance(header, dict) or not isinstance(header.get(key), kind):
                raise self.fail(
                    PREAMBLE.size, f"a header with {key!r} as {kind.__name__}", "none in it"
                )
        return header

    def parse(self, header: dict[str, Any], payload: int) -> ModelFile:
        at = PREAMBLE.size
        try:
            config = ModelConfig(**header["config"])
        except (TypeError, ModelError) as error:
            raise self.fail(at, "a model configuration", error) from None
        # Not by their names: a header may claim a million layers.
        count = (11 if config.sub_norms else 9) * config.layers + (2 if config.tied else 3)
        if len(header["tensors"]) != count:
            raise self.fail(
                at, f"{count} tensors for {config.layers} layers", len(header["tensors"])
            )
        try:
            tokenizer = bpe.Tokenizer(tuple((int(a), int(b)) for a, b in header["merges"]))
        except (TypeError, ValueError) as error:
            raise self.fail(at, "pairs of pieces as merges", error) from None
        if len(tokenizer) != config.vocab:
            raise self.fail(at, f"{config.vocab} pieces in the vocabulary", len(tokenizer))
        tensors, end = {}, 0
        shapes = expected_shapes(config)
        for entry, (name, shape) in zip(header["tensors"], shapes.items(), strict=True):
            encoding = _encoding(name, shape, entry)
            size = _size(encoding, shape)
            offset = end + -end % ALIGN
            expected = {
                "name": name,
                "encoding": encoding,
                "shape": list(shape),
                "offset": offset,
                "bytes": size,
            }
            if entry != expected:
                known = entry if isinstance(entry, dict) else {}
                wrong = [key for key in expected | known if known.get(key) != expected.get(key)]
                right, found = ({key: of.get(key) for key in wrong} for of in (expected, known))
                raise self.fail(at, f"tensor {name} with {right}", found)
            if offset + size > payload:
                raise self.fail(
                    self.base + offset, f"{size} bytes of tensor {name}", f"{payload - offset}"
                )
            if any(self.contents[self.base + end : self.base + offset]):
                raise self.fail(self.base + end, f"zero bytes before tensor {name}", "others")
            end = offset + size
            tensors[name] = self.tensor(name, encoding, shape, self.base + offset, size)
        if end != payload:
            raise self.fail(self.base + end, "the end of the file", f"{payload - end} more bytes")
        return ModelFile(Model.from_tensors(config, tensors), tokenizer, header["meta"])

    def tensor(
        self, name: str, encoding: str, shape: tuple[int, ...], offset: int, size: int
    ) -> "NDArray[np.float32] | Ternary | Planes | Embedding":
        if encoding.startswith("float"):
            each = int(encoding[5:]) // 8
            values = np.frombuffer(self.contents, f"<f{each}", size // each, offset)
            values = values.astype(np.float32)
            wrong = np.flatnonzero(~np.isfinite(values))
            if wrong.size:
                at, found = offset + each * int(wrong[0]), values[wrong[0]]
                raise self.fail(at, f"finite values in tensor {name}", found)
            return values.reshape(shape)
        (scale,) = struct.unpack_from("<f", self.contents, offset)
        if not (math.isfinite(scale) and scale > 0):
            raise self.fail(offset, f"a finite scale above 0 for tensor {name}", scale)
        if encoding == "int8":
            codes = np.frombuffer(self.contents, np.int8, size - 4, offset + 4)
            return Embedding(codes.reshape(shape).copy(), scale)
        codes = np.frombuffer(self.contents, np.uint8, size - 4, offset + 4)
        if planes := _planes(encoding):
            return self.planes(name, codes, shape, scale, *planes, offset + 4)
        try:
            return Ternary(unpack_trits(codes, math.prod(shape)).reshape(shape), scale)
        except ValueError as error:
            wrong = np.flatnonzero(codes > LAST_CODE)
            index = int(wrong[0]) if wrong.size else codes.size - 1
            raise self.fail(
                offset + 4 + index, f"a code of five trits in tensor {name}", error
            ) from None

    def planes(
        self,
        name: str,
        codes: NDArray[np.uint8],
        shape: tuple[int, ...],
        scale: float,
        bits: int,
        group: int,
        offset: int,
    ) -> Planes:
        rows, columns = shape
        groups, wide = -(-columns // group), -(-columns // 8)
        split = rows * (bits + 1) * groups
        factors = codes[:split].view(np.int8).reshape(rows, bits + 1, groups).astype(np.int16)
        packed = codes[split:].reshape(rows, bits, wide)
        planes = np.unpackbits(packed, axis=2, bitorder="little")
        wrong = np.flatnonzero(planes[:, :, columns:].any(axis=2))
        if wrong.size:
            at = offset + split + (int(wrong[0]) + 1) * wide - 1
            raise self.fail(at, f"zero bits behind a row of tensor {name}", "others")
        return Planes(planes[:, :, :columns], factors[:, 1:], scale, group, factors[:, 0])
