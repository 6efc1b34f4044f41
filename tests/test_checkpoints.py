# SPDX-License-Identifier: Apache-2.0
"""Readers of checkpoints, vocabularies and quantisation, against the packages of others."""

import dataclasses
import itertools
import json
import math
import os
import random
import struct
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from atriplex.gen import checkpoints
from atriplex.gen.checkpoints import (
    Checkpoint,
    CheckpointConfig,
    CheckpointError,
    Integer,
    TextStream,
    codecs,
    llama2c,
    quantise,
    tokenizers,
)
from atriplex.gen.checkpoints.checkpoint import ConfigError, gguf_name, halve_pairs
from atriplex.gen.checkpoints.models import of_checkpoint, runnable
from atriplex.gen.checkpoints.quantise import QuantiseError, integer, ternary
from atriplex.gen.checkpoints.quantise import values as quantise_values
from atriplex.gen.checkpoints.tokenizers import RankTokenizer, ScoreTokenizer
from atriplex.gen.model import bpe, packed
from atriplex.gen.model.bpe import TokenizerError
from atriplex.gen.model.generate import Story, shipped
from atriplex.rtl.errors import AtriplexError
from atriplex.sim.engine.integer import IntegerModel
from atriplex.sim.engine.model import Embedding, Model, ModelConfig, Ternary
from numpy.typing import NDArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sentencepiece


LLAMA = CheckpointConfig(
    dim=256, layers=2, heads=4, kv_heads=2, head_dim=64, hidden=512, vocab=96, context=64
)
BITNET = replace(LLAMA, gate="relu2", sub_norms=True, tied=True, theta=500000.0)
NARROW = replace(BITNET, dim=32, head_dim=8, hidden=64)
SMALL = CheckpointConfig(
    dim=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=24, vocab=20, context=12
)

HF = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}


def hf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{HF[parts[2]]}.weight"
    return f"{HF[parts[0]]}.weight"


def random_tensors(config: CheckpointConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in config.shapes().items()
    }


def random_ternary(config: CheckpointConfig, seed: int = 0) -> dict[str, Ternary]:
    rng = np.random.default_rng(seed)
    return {
        name: Ternary(rng.integers(-1, 2, shape).astype(np.int8), 0.25 + index / 64)
        for index, (name, shape) in enumerate(config.shapes().items())
        if name.startswith("blk") and len(shape) == 2
    }


def interleave_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Half-split rows of Q or K as converters to GGUF's llama write them."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Ternary) or isinstance(right, Ternary):
        return (
            isinstance(left, Ternary)
            and isinstance(right, Ternary)
            and left.trits.dtype == right.trits.dtype
            and np.array_equal(left.trits, right.trits)
            and left.scale == right.scale
        )
    return left.dtype == right.dtype and np.array_equal(left, right)


@contextmanager
def refused(*parts: str, seconds: float = 1.0, bytes: int = 8 << 20) -> Iterator[None]:
    """The block must raise one sentence with all ``parts``, soon, and allocate little."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(AtriplexError) as caught:
            yield
        took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_status == 2
    for part in parts:
        assert part in message, message
    assert took < seconds and peak < bytes, (took, peak)


# ------------------------------------------------------------------------ codecs


def test_block_formats_agree_with_the_gguf_package() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((6, 512)).astype(np.float32)
    values[0, :256] = 0
    trits = np.sign(np.round(values)) * np.float32(0.75)
    for kind, source, codec in (
        (gguf.GGMLQuantizationType.Q8_0, values, codecs.q8_0),
        (gguf.GGMLQuantizationType.BF16, values, codecs.bf16),
        (gguf.GGMLQuantizationType.F16, values, codecs.f16),
    ):
        raw = gguf.quants.quantize(source, kind).view(np.uint8)
        theirs = gguf.quants.dequantize(raw, kind)
        assert np.array_equal(codec(raw.reshape(-1)), theirs.reshape(-1))
    for kind, codec in (
        (gguf.GGMLQuantizationType.TQ1_0, codecs.tq1_0),
        (gguf.GGMLQuantizationType.TQ2_0, codecs.tq2_0),
    ):
        for source in (trits, values):
            raw = gguf.quants.quantize(source, kind)
            ours, scales = codec(raw.reshape(-1))
            theirs = gguf.quants.dequantize(raw, kind)
            assert np.array_equal((ours * scales[:, None]).reshape(theirs.shape), theirs)


def test_tq1_0_refuses_exactly_the_bytes_that_encode_no_trits() -> None:
    never = {1, 20, 40, 60, 79, 99, 119, 138, 158, 178, 197, 217, 237}
    for position, unused in ((0, never), (47, never), (48, None)):
        for byte in range(256):
            block = bytearray(54)
            for at in range(52):
                block[at] = 128  # five zeros: 121 * 256 / 243, rounded up
            block[48:52] = bytes([127]) * 4
            block[position] = byte
            raw = np.frombuffer(bytes(block), np.uint8)
            digits = (byte * np.array([1, 3, 9, 27, 81]) % 256 * 3) >> 8
            good = byte not in unused if unused is not None else byte not in never and not digits[4]
            if good:
                trits, _ = codecs.tq1_0(raw)
                lanes = {0: range(0, 160, 32), 47: range(175, 240, 16), 48: range(240, 256, 4)}
                assert list(trits[0, lanes[position]]) == list(digits[: len(lanes[position])] - 1)
            else:
                with pytest.raises(codecs.BadCode) as caught:
                    codecs.tq1_0(raw)
                assert caught.value.offset == position


def test_two_bit_codecs_invert_writers_written_from_the_layout() -> None:
    rng = np.random.default_rng(2)
    trits = rng.integers(-1, 2, (64, 128)).astype(np.int8)
    assert np.array_equal(codecs.packed_rows(pack_rows(trits), 64).reshape(trits.shape), trits)
    for order in codecs.I2S_BLOCKS:
        raw = pack_i2s(trits, order)
        assert np.array_equal(codecs.i2_s(raw, order, 128).reshape(trits.shape), trits)
    for order, count in itertools.product(("high", "low"), (8, 9, 10, 11)):
        flat = trits.reshape(-1)[:count]
        assert np.array_equal(codecs.ak42(pack_ak42(flat, order), count, order), flat)


def pack_rows(trits: NDArray[np.int8]) -> NDArray[np.uint8]:
    quarter = len(trits) // 4
    packed = np.zeros((quarter, trits.shape[1]), np.uint8)
    for part in range(4):
        codes = (trits[part * quarter : (part + 1) * quarter] + 1).astype(np.uint8)
        packed |= codes << np.uint8(2 * part)
    return packed.reshape(-1)


def pack_i2s(trits: NDArray[np.int8], order: str) -> NDArray[np.uint8]:
    codes = (trits + 1).astype(np.uint8)
    packed = bytearray()
    if order == "rows":
        for row in range(0, len(codes), 4):
            for column in range(codes.shape[1]):
                a, b, c, d = codes[row : row + 4, column]
                packed.append(a << 6 | b << 4 | c << 2 | d)
    else:
        size = int(order)
        flat, quarter = codes.reshape(-1), size // 4
        for start in range(0, flat.size, size):
            for j in range(quarter):
                a, b, c, d = (flat[start + j + n * quarter] for n in range(4))
                packed.append(a << 6 | b << 4 | c << 2 | d)
    return np.frombuffer(bytes(packed), np.uint8)


def pack_ak42(trits: NDArray[np.int8], order: str) -> NDArray[np.uint8]:
    codes = [{0: 0, 1: 1, -1: 3}[int(trit)] for trit in trits.reshape(-1)]
    codes += [0] * (-len(codes) % 4)
    packed = bytearray()
    for a, b, c, d in zip(*[iter(codes)] * 4, strict=True):
        packed.append(
            a << 6 | b << 4 | c << 2 | d if order == "high" else d << 6 | c << 4 | b << 2 | a
        )
    return np.frombuffer(bytes(packed), np.uint8)


# ------------------------------------------------------------------------ GGUF


def write_gguf(
    path: Path,
    config: CheckpointConfig,
    tensors: dict[str, Any],
    types: Callable[[str], str] = lambda name: "F32",
    *,
    arch: str = "llama",
    i2s: str = "128",
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    skip: tuple[str, ...] = (),
) -> Path:
    """A file by the writer of the gguf package; ``tensors`` are half-split and get permuted."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_freq_base(config.theta)
    writer.add_rope_dimension_count(config.head_dim)
    change(writer)
    kinds = gguf.GGMLQuantizationType
    for name, tensor in tensors.items():
        if name in skip:
            continue
        ternary = isinstance(tensor, Ternary)
        values = tensor.trits if ternary else tensor
        if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = config.heads if "attn_q" in name else config.kv_heads
            values = interleave_pairs(values, heads)
        kind = types(name)
        if kind == "I2_S":
            # The package does not know type 36: written as bytes of the right number, see below.
            raw = pack_i2s(values, i2s).tobytes() + struct.pack("<f", tensor.scale) + bytes(28)
            writer.add_tensor(name, np.frombuffer(raw, np.int8))
            continue
        if ternary:
            values = values.astype(np.float32) * np.float32(tensor.scale)
        if kind == "F32" or values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        else:
            raw = gguf.quants.quantize(values, kinds[kind])
            writer.add_tensor(name, raw, raw_dtype=kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if any(types(name) == "I2_S" for name in tensors):
        contents = bytearray(path.read_bytes())
        for name, tensor in tensors.items():
            if types(name) == "I2_S" and isinstance(tensor, Ternary) and name not in skip:
                retype_i2s(contents, name, tensor.trits.shape)
        path.write_bytes(contents)
    return path


def retype_i2s(contents: bytearray, name: str, shape: tuple[int, ...]) -> None:
    """Turns the directory entry of int8 bytes (one dimension) into one of I2_S (two)."""
    at = contents.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    old = contents[at : at + 24]
    assert struct.unpack("<I", old[:4]) == (1,) and struct.unpack("<I", old[12:16]) == (24,)
    new = struct.pack("<IQQI", 2, shape[1], shape[0], 36) + old[16:24]
    # Eight bytes more per entry: make room by shortening the filling in front of the data.
    contents[at : at + 24] = new
    end = directory_end(contents)
    filled = (end - 8) + -(end - 8) % 32
    wanted = end + -end % 32
    data = contents[filled + 8 :]
    contents[end:] = bytes(wanted - end) + data


def directory_end(contents: bytearray) -> int:
    """Where the directory ends, by the reader under test, of which only this much is used."""
    return entry_of(contents, last=True)


def entry_of(contents: bytearray, last: bool = False) -> int:
    tensors, keys = struct.unpack_from("<QQ", contents, 8)
    at = 24

    def string(at: int) -> int:
        return at + 8 + struct.unpack_from("<Q", contents, at)[0]

    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    for _ in range(keys):
        at = string(at)
        (kind,) = struct.unpack_from("<I", contents, at)
        at += 4
        if kind == 8:
            at = string(at)
        elif kind == 9:
            inner, count = struct.unpack_from("<IQ", contents, at)
            at += 12
            for _ in range(count):
                at = string(at) if inner == 8 else at + sizes[inner]
        else:
            at += sizes[kind]
    if not last:
        return at
    for _ in range(tensors):
        at = string(at)
        (count,) = struct.unpack_from("<I", contents, at)
        at += 4 + 8 * count + 4 + 8
    return at


MIX = {
    "attn_q": "F16",
    "attn_k": "BF16",
    "attn_v": "Q8_0",
    "attn_output": "TQ1_0",
    "ffn_gate": "TQ2_0",
    "ffn_up": "TQ1_0",
    "ffn_down": "F32",
    "token_embd": "F16",
    "output": "Q8_0",
}


def mixed(name: str) -> str:
    return MIX.get(name.split(".")[-2], "F32")


@pytest.mark.parametrize("version", [2, 3])
def test_gguf_file_reads_as_the_gguf_package_reads_it(version: int, tmp_path: Path) -> None:
    tensors: dict[str, Any] = random_tensors(LLAMA)
    path = write_gguf(tmp_path / "m", LLAMA, tensors, mixed)
    contents = bytearray(path.read_bytes())
    contents[4] = version
    path.write_bytes(contents)
    found = checkpoints.load(path)
    assert found.config == LLAMA and found.format == f"GGUF {version}"
    assert list(found.tensors) == list(LLAMA.shapes())
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert set(theirs) == set(found.tensors)
    for name, tensor in found.tensors.items():
        other: Any = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            other = halve_pairs(other, LLAMA.head_dim)
        assert isinstance(tensor, np.ndarray)
        assert np.array_equal(tensor, other), name
    # Half-split rows came back through the converter's permutation.
    half = tensors["blk.0.attn_q.weight"].astype(np.float16).astype(np.float32)
    assert equal(found.tensors["blk.0.attn_q.weight"], half)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "I2_S"])
@pytest.mark.parametrize("arch", ["llama", "bitnet", "bitnet-b1.58"])
def test_ternary_gguf_keeps_trits_and_scale(kind: str, arch: str, tmp_path: Path) -> None:
    config = NARROW if kind == "I2_S" else BITNET
    ternary = random_ternary(config)
    tensors: dict[str, Any] = random_tensors(config) | ternary

    def types(name: str) -> str:
        return kind if name in ternary else "F32"

    path = write_gguf(tmp_path / "m", config, tensors, types, arch=arch)
    found = checkpoints.load(path)
    gate = "relu2" if arch == "bitnet-b1.58" else "silu"
    assert found.config == replace(config, gate=gate)
    for name, tensor in found.tensors.items():
        assert equal(tensor, tensors[name]), name
    assert all(equal(tensor, tensors[name]) for name, tensor in found.read().tensors.items())


@pytest.mark.parametrize("order", ["128", "64", "rows"])
def test_i2s_order_is_an_explicit_option(order: str, tmp_path: Path) -> None:
    ternary = random_ternary(NARROW)
    tensors: dict[str, Any] = random_tensors(NARROW) | ternary

    def types(name: str) -> str:
        return "I2_S" if name in ternary else "F32"

    path = write_gguf(tmp_path / "m", NARROW, tensors, types, arch="bitnet", i2s=order)
    for option in (None, "128", "64", "rows"):
        found = checkpoints.load(path, i2s=option).tensors["blk.1.ffn_down.weight"]
        assert equal(found, ternary["blk.1.ffn_down.weight"]) == ((option or "128") == order)
    with refused("option i2s must be one of 128, 64, rows, not '32'"):
        checkpoints.load(path, i2s="32")


def test_i2s_scales_beside_the_weights_multiply(tmp_path: Path) -> None:
    tensors: dict[str, Any] = random_tensors(BITNET) | random_ternary(BITNET)
    extra = {"blk.0.attn_q.scale": np.array([0.5], np.float32)}

    def types(name: str) -> str:
        return "TQ2_0" if isinstance(tensors.get(name), Ternary) else "F32"

    path = write_gguf(tmp_path / "m", BITNET, tensors | extra, types, arch="bitnet")
    found = checkpoints.load(path).tensors["blk.0.attn_q.weight"]
    assert isinstance(found, Ternary)
    assert found.scale == tensors["blk.0.attn_q.weight"].scale / 2
    extra["blk.0.attn_q.scale"][0] = np.nan
    path = write_gguf(tmp_path / "n", BITNET, tensors | extra, types, arch="bitnet")
    with refused("tensor blk.0.attn_q.scale: offset ", "finite"):
        checkpoints.load(path)


def small_gguf(path: Path, **options: Any) -> Path:
    return write_gguf(path, SMALL, random_tensors(SMALL), **options)


def edit(path: Path, change: Callable[[bytearray], object]) -> Path:
    contents = bytearray(path.read_bytes())
    change(contents)
    path.write_bytes(contents)
    return path


def put(at: int, form: str, *values: Any) -> Callable[[bytearray], object]:
    def change(contents: bytearray) -> None:
        struct.pack_into("<" + form, contents, at, *values)

    return change


HUGE = (1 << 64) - 1


def test_gguf_lengths_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    small_gguf(path)
    contents = bytearray(path.read_bytes())
    directory = entry_of(contents)
    (length,) = struct.unpack_from("<Q", contents, directory)
    dims = directory + 8 + length
    name = "token_embd.weight"
    cases: list[tuple[Callable[[bytearray], object], tuple[str, ...]]] = [
        (put(0, "4s", b"GGUV"), ("offset 0", "begin")),
        (put(4, "I", 1), ("offset 4", "version must be 2 or 3, not 1")),
        (put(4, "I", 3 << 24), ("offset 4", "big-endian")),
        (put(8, "Q", HUGE), ("offset 8", "at most 65536 tensors")),
        (put(8, "Q", 60000), ("offset 8", "60000 tensors do not fit")),
        (put(16, "Q", HUGE), ("offset 16", "at most 4096 keys")),
        (put(24, "Q", HUGE), ("offset 24", "a key must end within the file")),
        (put(24, "Q", 1 << 40), ("offset 24", "a key must end within the file")),
        (
            lambda c: (put(24, "Q", 1 << 17)(c), c.extend(bytes(1 << 18))),
            ("offset 24", "a key may have at most 65535 bytes"),
        ),
        (put(dims, "I", 200), (f"tensor {name}: offset {dims}", "1 to 4 dimensions, not 200")),
        (put(dims + 4, "Q", HUGE), (f"tensor {name}: offset {directory}", "end within the file")),
        (put(dims + 4, "Q", 0), (f"tensor {name}", "every dimension must be at least 1")),
        (put(dims + 4, "Q", 15), (f"tensor {name}", "shape must be (20, 16), not (20, 15)")),
        (put(dims + 20, "I", 14), (f"tensor {name}: offset {dims + 20}", "not Q6_K")),
        (put(dims + 20, "I", 8), (f"tensor {name}", "rows of Q8_0 must be a multiple of 32")),
        (put(dims + 20, "I", 99), (f"tensor {name}", "not number 99")),
        (put(dims + 24, "Q", HUGE), (f"tensor {name}", "multiple of 32")),
        (put(dims + 24, "Q", 1 << 60), (f"tensor {name}", "end within the file")),
        (put(dims + 24, "Q", 32), ("overlap",)),
        (put(dims - 1, "c", b"x"), (f"tensor {name}: offset {directory}", "must be there and is")),
    ]
    for change, parts in cases:
        path.write_bytes(contents)
        edit(path, change)
        with refused(str(path), *parts):
            checkpoints.load(path)


def test_gguf_arrays_cannot_claim_more_than_the_file(tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "m", change=lambda writer: writer.add_token_list(["a"] * 20))
    contents = bytearray(path.read_bytes())
    at = contents.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens")
    for change, part in (
        (put(at + 8, "Q", HUGE), "at most 1048576 elements"),
        (put(at + 8, "Q", 1 << 20), "elements of tokenizer.ggml.tokens do not fit"),
        (put(at + 16, "Q", HUGE), "an element of tokenizer.ggml.tokens must end within"),
        (put(at + 4, "I", 9), "numbers or strings, not of type 9"),
        (put(at, "I", 13), "must be in 0..12, not 13"),
        (put(at + 4, "IQ", 6, HUGE), "at most"),
        (put(at + 24, "B", 0xFF), "must be UTF-8"),
    ):
        path.write_bytes(contents)
        with refused(str(path), part):
            checkpoints.load(edit(path, change))


def test_a_large_file_full_of_keys_is_refused_in_time(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 4000))
        for index in range(3999):
            file.write(struct.pack("<Q4sIB", 4, f"{index:04}".encode(), 0, 0))
        file.truncate(1 << 32)
    with refused(str(path), "general.architecture must be one of"):
        checkpoints.load(path)


def ternary_gguf(path: Path, kind: str) -> Path:
    config = NARROW if kind == "I2_S" else BITNET
    ternary = random_ternary(config)
    tensors: dict[str, Any] = random_tensors(config) | ternary

    def types(name: str) -> str:
        return kind if name in ternary else "F32"

    return write_gguf(path, config, tensors, types, arch="bitnet")


def test_gguf_contents_of_tensors_are_checked_when_used(tmp_path: Path) -> None:
    name = "blk.1.ffn_up.weight"
    codes: list[tuple[str, str, int, float, str]] = [
        ("TQ1_0", "B", 0, 1, "byte 0x01 is no code of TQ1_0"),
        ("TQ1_0", "B", 48, 128, "byte 0x80 is no code of TQ1_0"),
        ("TQ2_0", "B", 66, 0xC0, "byte 0xc0 is no four codes of 0, 1 and 2"),
        ("I2_S", "B", 5, 0x03, "byte 0x03 is no four codes of 0, 1 and 2"),
    ]
    codes += [
        (kind, "e", at, value, "the scale of block 0 must")
        for kind, at in (("TQ1_0", 52), ("TQ2_0", 64))
        for value in (math.nan, math.inf, -1.0)
    ]
    for kind, form, at, value, part in codes:
        path = ternary_gguf(tmp_path / "m", kind)
        start = start_of(path, name)
        edit(path, put(start + at, form, value))
        found = checkpoints.load(path)
        with refused(f"{path}: tensor {name}: offset {start + at}: ", part):
            found.tensors[name]
        with refused(name):
            found.read()


def test_gguf_scales_of_whole_tensors_are_checked_at_once(tmp_path: Path) -> None:
    path = ternary_gguf(tmp_path / "m", "I2_S")
    at = start_of(path, "blk.1.ffn_up.weight") + NARROW.hidden * NARROW.dim // 4
    for value in (math.nan, math.inf, 0.0, -1.0):
        edit(path, put(at, "f", value))
        with refused(f"tensor blk.1.ffn_up.weight: offset {at}: a scale must be finite and"):
            checkpoints.load(path)


def test_gguf_floats_must_be_finite(tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "floats")
    name = "blk.0.attn_norm.weight"
    at = start_of(path, name) + 8
    edit(path, put(at, "f", math.inf))
    with refused(f"tensor {name}: offset {at}: values must be finite, and element 2 is inf"):
        checkpoints.load(path).read()


def start_of(path: Path, name: str, **options: Any) -> int:
    tensors: Any = checkpoints.load(path, **options).tensors
    return tensors.entries[name].offset


def test_gguf_that_is_another_model_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL)

    def attempt(part: str, tensors: dict[str, Any] = tensors, **options: Any) -> None:
        with refused(str(tmp_path / "m"), "offset", part):
            checkpoints.load(write_gguf(tmp_path / "m", SMALL, tensors, **options))

    attempt(
        "tensor blk.1.ffn_up.weight: offset ",
        skip=("blk.1.ffn_up.weight",),
    )
    attempt("tensor token_embd.weight", skip=("token_embd.weight",))
    attempt("one of llama, bitnet, bitnet-25, bitnet-b1.58, not 'gemma'", arch="gemma")
    wrong = tensors | {"blk.0.ffn_down.weight": tensors["blk.0.ffn_down.weight"].T}
    attempt("tensor blk.0.ffn_down.weight: offset", wrong)
    attempt("the shape must be (16, 24), not (24, 16)", wrong)
    attempt("tensor blk.7.attn_norm.weight", tensors | {"blk.7.attn_norm.weight": np.ones(16)})
    attempt("tensor blk.0\\n.weight: offset", tensors | {"blk.0\n.weight": np.ones(16)})
    attempt("tensor blk.0.attn_q.bias", tensors | {"blk.0.attn_q.bias": np.ones(16)})
    attempt("tensor rope_freqs.weight", tensors | {"rope_freqs.weight": np.ones(2)})
    sub = {"blk.0.attn_sub_norm.weight": np.ones(16)}
    attempt("tensor blk.0.ffn_sub_norm.weight", tensors | sub)
    attempt("vocab_size must be the rows", change=lambda w: w.add_vocab_size(21))
    attempt("the model has 20 tokens, the vocabulary 19", change=lambda w: vocabulary(w, 19))
    attempt("scaled positions", change=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN))

    with refused("llama.context_length must be there and is not"):
        path = tmp_path / "bare"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_embedding_length(16)
        writer.add_head_count(4)
        writer.add_block_count(2)
        writer.add_feed_forward_length(24)
        writer.add_tensor("token_embd.weight", np.ones((20, 16), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        checkpoints.load(path)


def vocabulary(writer: gguf.GGUFWriter, count: int) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{index}" for index in range(count)])
    writer.add_token_scores([-float(index) for index in range(count)])


# ------------------------------------------------------------------------ llama2.c


def write_v0(path: Path, config: CheckpointConfig, tensors: dict[str, Any]) -> Path:
    """As llama2.c's legacy export; ``tensors`` are interleaved already."""
    vocab = config.vocab if config.tied else -config.vocab
    header = (config.dim, config.hidden, config.layers, config.heads, config.kv_heads, vocab)
    parts = [struct.pack("<7i", *header, config.context)]

    def layers(name: str) -> None:
        for layer in range(config.layers):
            parts.append(tensors[f"blk.{layer}.{name}.weight"].tobytes())

    parts.append(tensors["token_embd.weight"].tobytes())
    for name in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"):
        layers(name)
    for name in ("ffn_norm", "ffn_gate", "ffn_down", "ffn_up"):
        layers(name)
    parts.append(tensors["output_norm.weight"].tobytes())
    parts.append(np.full(config.context * config.head_dim, np.nan, np.float32).tobytes())
    if not config.tied:
        parts.append(tensors["output.weight"].tobytes())
    path.write_bytes(b"".join(parts))
    return path


def write_v1(
    path: Path,
    config: CheckpointConfig,
    tensors: dict[str, Any],
    bit_order: str | None = None,
    head: str = "2-bit",
) -> Path:
    """As llama2.c's version 1, in float32, or ternary where ``bit_order`` is given."""
    header = struct.pack(
        "<Ii7iB",
        *(0x616B3432, 1, config.dim, config.hidden, config.layers, config.heads, config.kv_heads),
        *(config.vocab, config.context, config.tied),
    )
    parts = [header.ljust(256, b"\0")]
    norms = [] if bit_order else ["attn_norm", "ffn_norm"]

    def matrix(name: str) -> None:
        tensor = tensors[name]
        if isinstance(tensor, Ternary):
            assert bit_order
            parts.append(struct.pack("<f", tensor.scale))
            parts.append(pack_ak42(tensor.trits, bit_order).tobytes())
        else:
            parts.append(tensor.tobytes())

    for name in norms:
        for layer in range(config.layers):
            parts.append(tensors[f"blk.{layer}.{name}.weight"].tobytes())
    parts += [tensors["output_norm.weight"].tobytes(), tensors["token_embd.weight"].tobytes()]
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up"):
        for layer in range(config.layers):
            matrix(f"blk.{layer}.{name}.weight")
    if not config.tied:
        matrix("output.weight")
    path.write_bytes(b"".join(parts))
    return path


def rotate_interleaved(x: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = x[..., ::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., ::2] = low * np.cos(angles) - high * np.sin(angles)
    out[..., 1::2] = low * np.sin(angles) + high * np.cos(angles)
    return out


def rotate_half(x: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate(
        (
            low * np.cos(angles) - high * np.sin(angles),
            low * np.sin(angles) + high * np.cos(angles),
        ),
        axis=-1,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_v0_scores_of_attention_are_those_of_interleaved_pairs(tied: bool, tmp_path: Path) -> None:
    config = replace(SMALL, tied=tied)
    tensors = random_tensors(config)
    found = checkpoints.load(write_v0(tmp_path / "m.bin", config, tensors))
    assert found.config == config and found.format == "llama2.c version 0"
    changed = ("attn_q.weight", "attn_k.weight")
    for name, tensor in found.tensors.items():
        assert equal(tensor, tensors[name]) != name.endswith(changed), name
    rng = np.random.default_rng(5)
    x = rng.standard_normal((7, config.dim))
    angles = np.arange(7)[:, None, None] * 10000.0 ** (
        -np.arange(config.head_dim // 2) / (config.head_dim // 2)
    )
    scores = []
    for source, rotate in ((tensors, rotate_interleaved), (found.tensors, rotate_half)):
        q, k = (
            rotate((x @ source[f"blk.1.{name}.weight"].T).reshape(7, -1, config.head_dim), angles)  # pyright: ignore
            for name in ("attn_q", "attn_k")
        )
        k = np.repeat(k, config.heads // config.kv_heads, axis=1)
        scores.append(np.einsum("ahd,bhd->hab", q, k))
    assert np.allclose(*scores, rtol=1e-12, atol=1e-12)


def test_v0_sizes_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    config = replace(SMALL, tied=True)
    path = write_v0(tmp_path / "m.bin", config, random_tensors(config))
    contents = bytearray(path.read_bytes())
    for change, part in (
        (lambda c: c.extend(b"\0"), f"and it has {len(contents) + 1}"),
        (lambda c: c.pop(), f"ask for a file of {len(contents)} (version 0) bytes"),
        (put(0, "i", 1 << 20), "the sizes in the header ask for"),
        (put(4, "i", 1 << 20), "the sizes in the header ask for"),
        (put(8, "i", 1023), "the sizes in the header ask for"),
        (put(8, "i", 1 << 30), "must begin like"),
        (put(0, "i", -16), "must begin like"),
        (put(12, "i", 0), "must begin like"),
        (put(20, "i", -(1 << 31)), "must begin like"),
        (put(20, "i", -20), "the sizes in the header ask for"),
    ):
        path.write_bytes(contents)
        with refused(str(path), "offset", part):
            checkpoints.load(edit(path, change))


def test_v1_in_float32_reads_like_v0(tmp_path: Path) -> None:
    for tied in (True, False):
        config = replace(SMALL, tied=tied)
        tensors = random_tensors(config)
        old = checkpoints.load(write_v0(tmp_path / "0.bin", config, tensors))
        new = checkpoints.load(write_v1(tmp_path / "1.bin", config, tensors))
        assert new.config == old.config and new.format == "llama2.c version 1, float32"
        assert all(equal(new.tensors[name], old.tensors[name]) for name in old.tensors)
        with refused("option bit_order is for ternary files"):
            checkpoints.load(tmp_path / "1.bin", bit_order="high")


@pytest.mark.parametrize("head", ["tied", "2-bit", "F32"])
@pytest.mark.parametrize("bit_order", ["high", "low"])
def test_ternary_v1_needs_and_obeys_the_bit_order(
    bit_order: str, head: str, tmp_path: Path
) -> None:
    config = replace(SMALL, tied=head == "tied", sub_norms=True)
    tensors: dict[str, Any] = random_tensors(config) | random_ternary(config)
    if head == "2-bit":
        trits = np.random.default_rng(3).integers(-1, 2, (config.vocab, config.dim))
        tensors["output.weight"] = Ternary(trits.astype(np.int8), 0.5)
    path = write_v1(tmp_path / "m.bin", config, tensors, bit_order)
    with refused(str(path), "option bit_order must be high or low"):
        checkpoints.load(path)
    with refused("bit_order must be high or low, not 'middle'"):
        checkpoints.load(path, bit_order="middle")
    found = checkpoints.load(path, bit_order=bit_order)
    assert found.config == config
    for name, tensor in found.tensors.items():
        wanted = tensors[name]
        if name.startswith("blk") and name.endswith("norm.weight"):
            wanted = np.ones_like(wanted)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            wanted = halve_pairs(wanted, config.head_dim)
        assert equal(tensor, wanted), name
    other = checkpoints.load(path, bit_order="low" if bit_order == "high" else "high")
    assert not equal(other.tensors["blk.0.ffn_up.weight"], found.tensors["blk.0.ffn_up.weight"])
    plain = checkpoints.load(path, bit_order=bit_order, sub_norms=False, gate="relu2", theta=5e5)
    assert plain.config == replace(config, sub_norms=False, gate="relu2", theta=5e5)
    assert not any("sub_norm" in name for name in plain.tensors)


def test_ternary_v1_refuses_code_2_scales_and_headers(tmp_path: Path) -> None:
    config = replace(SMALL, tied=True)
    tensors: dict[str, Any] = random_tensors(config) | random_ternary(config)
    path = write_v1(tmp_path / "m.bin", config, tensors, "high")
    contents = bytearray(path.read_bytes())
    name = "blk.1.ffn_gate.weight"
    start = start_of(path, name, bit_order="high")
    for change, part in (
        (put(start, "f", math.nan), f"tensor {name}: offset {start}: a scale must be finite"),
        (put(start, "f", -math.inf), f"tensor {name}: offset {start}: a scale must be finite"),
        (put(start, "f", 0), f"tensor {name}: offset {start}: a scale must be finite"),
        (
            put(start + 9, "B", 0x80),
            f"tensor {name}: offset {start + 9}: byte 0x80 is no four codes of 0, 1 and 3",
        ),
        (put(4, "i", 2), "offset 4: the version must be 1, not 2"),
        (put(36, "B", 2), "offset 36: the byte for a shared classifier"),
        (put(200, "B", 1), "offset 200: the header must be filled with zeros"),
        (put(8, "i", 0), "offset 8: dim must be a multiple of heads, not 0"),
        (put(28, "i", 1 << 30), "offset 28: vocab must be a whole number in 1..1048576"),
        (put(16, "i", -1), "offset 16: layers must be"),
        (put(16, "i", 1000), "the sizes in the header ask for a file of"),
        (lambda c: c.pop(), "the sizes in the header ask for a file of"),
    ):
        path.write_bytes(contents)
        edit(path, change)
        with refused(str(path), part):
            checkpoints.load(path, bit_order="high").read()
    path.write_bytes(b"ak42" + contents[4:])
    assert checkpoints.load(path, bit_order="high").config.tied
    with refused("option theta must be a finite number above 0, not -1"):
        checkpoints.load(path, bit_order="high", theta=-1)


# ------------------------------------------------------------------------ safetensors


def hf_config(config: CheckpointConfig, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "bitnet" if config.sub_norms else "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "rope_theta": config.theta,
        "rms_norm_eps": config.eps,
        "hidden_act": config.gate,
        "tie_word_embeddings": config.tied,
    } | changes


def write_safetensors(path: Path, tensors: dict[str, Any], config: dict[str, Any] | None) -> Path:
    """By the safetensors package: arrays, ternary as packed U8, uint16 turned into BF16."""
    arrays: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Ternary):
            quarter = tensor.trits.shape[0] // 4
            arrays[name] = pack_rows(tensor.trits).reshape(quarter, -1)
            scale = np.array([tensor.scale], np.float32)
            arrays[name + "_scale"] = to_bf16(scale)
        else:
            arrays[name] = np.ascontiguousarray(tensor)
    contents = safetensors.numpy.save(arrays)
    (length,) = struct.unpack_from("<Q", contents)
    header = contents[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    path.write_bytes(struct.pack("<Q", len(header)) + header + contents[8 + length :])
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return path


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def test_safetensors_read_as_the_package_reads_them(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL)
    stored: dict[str, Any] = {}
    for index, (name, values) in enumerate(tensors.items()):
        if index % 3 == 0:
            stored[hf_name(name)] = to_bf16(values)
            tensors[name] = (to_bf16(values).astype(np.uint32) << 16).view(np.float32)
        elif index % 3 == 1:
            stored[hf_name(name)] = values.astype(np.float16)
            tensors[name] = values.astype(np.float16).astype(np.float32)
        else:
            stored[hf_name(name)] = values
    path = write_safetensors(tmp_path / "model.safetensors", stored, hf_config(SMALL))
    for where in (path, tmp_path):
        found = checkpoints.load(where)
        assert found.config == SMALL
        assert all(equal(found.tensors[name], tensors[name]) for name in tensors)
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert {entry["dtype"] for entry in theirs.values()} == {"F32", "F16", "BF16"}
    for name, tensor in found.tensors.items():
        entry = theirs[hf_name(name)]
        raw = np.frombuffer(
            entry["data"], {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry["dtype"]]
        )
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(raw.astype(np.float32).reshape(entry["shape"]), tensor)  # pyright: ignore


def test_safetensors_of_bitnet_unpack_and_scale(tmp_path: Path) -> None:
    tensors: dict[str, Any] = random_tensors(BITNET) | random_ternary(BITNET)
    stored = {hf_name(name): tensor for name, tensor in tensors.items()}
    path = write_safetensors(tmp_path / "model.safetensors", stored, hf_config(BITNET))
    found = checkpoints.load(path)
    assert found.config == BITNET
    assert all(equal(found.tensors[name], tensors[name]) for name in tensors)
    name = "blk.0.attn_q.weight"
    divided = checkpoints.load(path, scale="divide").tensors[name]
    assert isinstance(divided, Ternary) and divided.scale == 1 / tensors[name].scale
    config = hf_config(BITNET, quantization_config={"linear_class": "bitlinear"})
    assert equal(checkpoints.load(path, config=config).tensors[name], divided)
    with refused("option scale must be one of multiply, divide, not 'add'"):
        checkpoints.load(path, scale="add")


def test_safetensors_int8_are_ternary_where_they_can_be(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {hf_name(n): v for n, v in random_tensors(SMALL).items()}
    for name, top in (("self_attn.q_proj", 1), ("self_attn.o_proj", 127)):
        codes = np.random.default_rng(1).integers(-top, top + 1, (16, 16)).astype(np.int8)
        tensors[f"model.layers.0.{name}.weight"] = codes
        tensors[f"model.layers.0.{name}.weight_scale"] = np.array(0.5, np.float32)
    found = checkpoints.load(
        write_safetensors(tmp_path / "model.safetensors", tensors, hf_config(SMALL))
    )
    q, o = (found.tensors[f"blk.0.{name}.weight"] for name in ("attn_q", "attn_output"))
    assert isinstance(q, Ternary) and isinstance(o, Integer) and o.bits == 8 and o.scale == 0.5
    assert np.array_equal(o.codes, tensors["model.layers.0.self_attn.o_proj.weight"])


def test_safetensors_in_shards_are_one_checkpoint(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL)
    names = list(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    index = {hf_name(name): file for file, some in parts.items() for name in some}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for file, some in parts.items():
        stored = {hf_name(name): tensors[name] for name in some}
        write_safetensors(tmp_path / file, stored, hf_config(SMALL))
    found = checkpoints.load(tmp_path)
    assert all(equal(found.tensors[name], tensors[name]) for name in tensors)
    with refused("tensor blk.0.attn_norm.weight", "must be there and is not"):
        checkpoints.load(tmp_path / "a.safetensors")
    write_safetensors(
        tmp_path / "b.safetensors", {"lm_head.weight": tensors["output.weight"]}, None
    )
    with refused("tensor lm_head.weight: offset ", "the tensor is in ", "a.safetensors as well"):
        checkpoints.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../../etc"}}')
    with refused("must name safetensors files beside it"):
        checkpoints.load(tmp_path)


def raw_safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_safetensors_headers_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    def entry(**changes: Any) -> dict[str, Any]:
        return {
            "lm_head.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
        }

    (tmp_path / "config.json").write_text(json.dumps(hf_config(SMALL)))
    for header, data, length, part in (
        (b"{}", b"", HUGE, "offset 0: the header may have at most 2097152 bytes"),
        (b"{}", b"", 1 << 20, "offset 8: expected 1048576 bytes of the header"),
        (b'{"a": ', b"", None, "offset 8: the header must be JSON"),
        (b'{"a":' + b"[" * 100000, b"", None, "offset 8: the header must be JSON"),
        (b'{"a":{},"a":{}}', b"", None, "'a' is there twice"),
        (entry(dtype="F64"), bytes(16), None, "dtype must be one of F32, F16, BF16, I8, U8"),
        (entry(dtype=["F32"]), bytes(16), None, "dtype must be one of"),
        (entry(shape=[2, -2]), bytes(16), None, "shape must be up to 4 whole numbers"),
        (entry(shape=[1 << 62, 1 << 62]), bytes(16), None, "not 16"),
        (entry(shape=[True, 4]), bytes(16), None, "shape must be up to 4 whole numbers"),
        (entry(data_offsets=[0, 1 << 60]), bytes(16), None, "data_offsets must be two of 0..16"),
        (entry(data_offsets=[16, 0]), bytes(16), None, "data_offsets must be two of 0..16"),
        (entry(), bytes(15), None, "data_offsets must be two of 0..15"),
        (entry(), bytes(17), None, "the file must end here, not after 1 more bytes"),
        (entry(data_offsets=[1, 17]), bytes(17), None, "must begin at offset"),
        (entry(extra=1), bytes(16), None, "must hold dtype, shape and data_offsets"),
        (entry(), bytes(16), None, "tensor token_embd.weight: offset 8"),
    ):
        raw_safetensors(path, header, data, length)
        with refused(str(path), part, "offset"):
            checkpoints.load(path)
    (tmp_path / "config.json").unlink()
    raw_safetensors(path, entry(), bytes(16))
    with refused("config.json or given by option config"):
        checkpoints.load(path)


def test_safetensors_contents_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors: dict[str, Any] = random_tensors(BITNET) | random_ternary(BITNET)
    stored = {hf_name(name): tensor for name, tensor in tensors.items()}
    name = "model.layers.0.mlp.up_proj.weight"

    def attempt(part: str, changes: dict[str, Any], **config: Any) -> None:
        left = {name: value for name, value in (stored | changes).items() if value is not None}
        write_safetensors(path, left, hf_config(BITNET, **config))
        with refused(part):
            checkpoints.load(path).read()

    codes = pack_rows(stored[name].trits).reshape(128, 256).copy()
    codes[1, 3] = 0x0C
    scale = np.array([0.5], np.float32)
    attempt("is no four codes of 0, 1 and 2", {name: codes, name + "_scale": scale})
    codes[1, 3] = 0
    attempt(f"must come with {name}_scale", {name: codes})
    for wrong in (np.nan, np.inf, 0, -1):
        attempt(
            f"tensor {name}_scale: offset ",
            {name: codes, name + "_scale": np.array([wrong], np.float32)},
        )
    attempt(
        "a scale must be one float",
        {name: codes, name + "_scale": np.ones(2, np.float32)},
    )
    attempt(
        "the shape must be (512, 256), not (256, 512)",
        {name: codes.reshape(64, 512), name + "_scale": scale},
    )
    attempt("tensor blk.0.ffn_up.weight: offset 8: the tensor must be there", {name: None})
    attempt("no such tensor", {"model.layers.0.self_attn.q_proj.bias": np.ones(4, np.float32)})
    attempt(
        "there are two tensors for blk.0.attn_norm",
        {"blk.0.attn_norm.weight": np.ones(256, np.float32)},
    )
    gains = tensors["output_norm.weight"].copy()
    gains[7] = np.nan
    attempt("values must be finite, and element 7 is nan", {"model.norm.weight": gains})
    attempt("the head is tied", {"lm_head.weight": np.zeros((96, 256), np.float32)})
    attempt("the shape must be (97, 256), not (96, 256)", {}, vocab_size=97)
    attempt("model_type must be llama or bitnet, not 'gpt2'", {}, model_type="gpt2")
    attempt("scaled positions are not read", {}, rope_scaling={"rope_type": "llama3"})
    attempt("biases are not read", {}, attention_bias=True)
    attempt("hidden_act must be silu or relu2, not 'gelu'", {}, hidden_act="gelu")
    attempt("hidden_size must be a whole number, not '256'", {}, hidden_size="256")
    attempt("eps must be a finite number", {}, rms_norm_eps=-1.0)
    head = {"lm_head.weight": tensors["token_embd.weight"]}
    write_safetensors(path, stored | head, hf_config(BITNET))
    assert checkpoints.load(path).config.tied


def test_names_of_hugging_face_and_gguf_map_to_gguf() -> None:
    for name in BITNET.shapes() | replace(BITNET, tied=False).shapes():
        assert gguf_name(name) == name
        assert gguf_name(hf_name(name)) == name
        assert gguf_name(hf_name(name).removeprefix("model.")) == name
    for name in ("blk.01.attn_q.weight", "blk.0.attn_q.bias", "model.layers.x.mlp.up_proj.weight"):
        assert gguf_name(name) is None


# ------------------------------------------------------------------------ any file


def test_files_are_known_by_content(tmp_path: Path) -> None:
    tied = replace(SMALL, tied=True)
    tensors = random_tensors(tied)
    stored = {hf_name(name): tensor for name, tensor in tensors.items()}
    written = {
        "GGUF 3": write_gguf(tmp_path / "1.txt", tied, tensors),
        "llama2.c version 0": write_v0(tmp_path / "2.gguf", tied, tensors),
        "llama2.c version 1, float32": write_v1(tmp_path / "3.safetensors", tied, tensors),
        "safetensors": write_safetensors(tmp_path / "4.bin", stored, hf_config(tied)),
        "atx": shipped(),
    }
    for format, path in written.items():
        assert checkpoints.load(path).format == format
        with refused(str(path), "no option 'bitorder'"):
            checkpoints.load(path, bitorder="high")
    with refused("no option 'bit_order'"):
        checkpoints.load(written["GGUF 3"], bit_order="high")


def test_atx_is_a_checkpoint_without_loss() -> None:
    file, found = packed.load(shipped()), checkpoints.load(shipped())
    assert list(found.config.shapes()) == list(found.tensors)
    for name, tensor in file.model.tensors().items():
        other: Any = found.tensors[name]
        if isinstance(other, Integer):
            assert np.array_equal(other.codes, tensor.codes)  # pyright: ignore
        elif isinstance(other, Ternary):
            assert other is not tensor and equal(other, tensor)
        else:
            assert np.array_equal(other, tensor)  # pyright: ignore
    assert found.tokenizer is not None
    ids = found.tokenizer.encode("Once upon a time", bos=True)
    assert ids == file.tokenizer.encode("Once upon a time", bos=True)
    stream = TextStream(found.tokenizer)
    assert "".join(map(stream.feed, ids)) + stream.end() == "Once upon a time"


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for contents, part in (
        (b"", "no checkpoint has 0 bytes"),
        (b"GG", "no checkpoint has 2 bytes"),
        (b"GGUF", "offset 4: expected 4 bytes of the version"),
        (b"PK\3\4" + bytes(40), "PyTorch archive"),
        (b"#!/bin/sh\n" + bytes(40), "must begin like GGUF, safetensors, llama2.c or atx"),
        (bytes(64), "must begin like"),
        (b"ATX\0" + bytes(40), "offset 8: the lengths of preamble, header and payload"),
    ):
        path = tmp_path / "m"
        path.write_bytes(contents)
        with refused(str(path), part):
            checkpoints.load(path)
    with refused("No such file"):
        checkpoints.load(tmp_path / "none")
    with refused("model.safetensors", "No such file"):
        checkpoints.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with refused("expected a regular file"):
        checkpoints.load(tmp_path / "pipe")


def build_small(tmp_path: Path) -> list[tuple[Path, dict[str, Any]]]:
    bitnet = replace(SMALL, sub_norms=True, tied=True, gate="relu2")
    tensors: dict[str, Any] = random_tensors(bitnet) | random_ternary(bitnet)
    stored = {hf_name(name): tensor for name, tensor in tensors.items()}
    tied = replace(SMALL, tied=True)
    return [
        (small_gguf(tmp_path / "g", change=lambda writer: vocabulary(writer, 20)), {}),
        (write_v0(tmp_path / "0.bin", tied, random_tensors(tied)), {}),
        (write_v1(tmp_path / "1.bin", bitnet, tensors, "low"), {"bit_order": "low"}),
        (write_safetensors(tmp_path / "m.safetensors", stored, hf_config(bitnet)), {}),
    ]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for path, options in build_small(tmp_path):
        contents = path.read_bytes()
        checkpoints.load(path, **options).read()
        cut = tmp_path / ("cut" + path.suffix)
        lengths = {*range(200), *range(200, len(contents), 331)}
        for length in sorted(lengths | {len(contents) - 1}):
            cut.write_bytes(contents[:length])
            with pytest.raises(AtriplexError):
                checkpoints.load(cut, **options).read()


def test_changed_bytes_give_a_checkpoint_or_a_sentence(tmp_path: Path) -> None:
    rng = random.Random(7)
    for path, options in build_small(tmp_path):
        contents = path.read_bytes()
        for _ in range(150):
            changed = bytearray(contents)
            for _ in range(rng.choice((1, 1, 2, 8))):
                at = rng.randrange(min(len(changed), rng.choice((64, 3000, len(changed)))))
                changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            path.write_bytes(changed)
            start = time.perf_counter()
            try:
                found = checkpoints.load(path, **options)
                found.read()
                if found.tokenizer:
                    found.tokenizer.decode(found.tokenizer.encode("t1 t2"))
            except AtriplexError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000, error
            assert time.perf_counter() - start < 1


# ------------------------------------------------------------------------ quantisation


def test_integer_codes_are_absmax_rounded_half_to_even() -> None:
    matrix = np.array([[127, -127, 0.5, 1.5, 2.5, -0.5]], np.float32)
    found = integer(matrix, 8)
    assert found.codes.tolist() == [[127, -127, 0, 2, 2, 0]]
    assert found.codes.dtype == np.int8 and found.scale == 1 and found.bits == 8
    four = integer(np.array([[7, -7, 0.5, 1.5, -2.5, 3.49]], np.float32), 4)
    assert four.codes.tolist() == [[7, -7, 0, 2, -2, 3]] and four.scale == 1 and four.bits == 4
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((300, 5000)).astype(np.float32)
    for bits in (8, 4):
        found = integer(matrix, bits)
        top = 2 ** (bits - 1) - 1
        assert found.scale == np.float32(float(np.abs(matrix).max()) / top)
        error = np.abs(found.codes * np.float64(found.scale) - matrix).max()
        assert error <= found.scale * (0.5 + 1e-5) and np.abs(found.codes).max() == top
    zeros = integer(np.zeros((2, 2), np.float32), 8)
    assert not zeros.codes.any() and zeros.scale == 1
    with pytest.raises(QuantiseError, match=r"bits must be in 2\.\.8, not 9"):
        integer(matrix, 9)
    with pytest.raises(QuantiseError, match="not finite"):
        integer(np.array([[np.nan]], np.float32), 8)


def test_ternary_is_absmean_and_keeps_what_is_ternary() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((64, 96)).astype(np.float32)
    found = ternary(matrix)
    scale = np.float32(np.abs(matrix).mean(dtype=np.float64))
    assert found.scale == scale
    wanted = np.clip(np.rint(matrix * (np.float32(1) / scale)), -1, 1)
    assert np.array_equal(found.trits, wanted)
    trits = rng.integers(-1, 2, (64, 96)).astype(np.int8)
    kept = ternary(trits * np.float32(0.3))
    assert equal(kept, Ternary(trits, float(np.float32(0.3))))


def test_checkpoint_quantises_matrices_only(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m", LLAMA, random_tensors(LLAMA), mixed)
    found = quantise(checkpoints.load(path), "int4", embedding="int8", head="int8")
    kinds = {name: tensor for name, tensor in found.tensors.items()}
    assert len(kinds) == len(LLAMA.shapes())
    for name, tensor in kinds.items():
        if name.endswith("norm.weight"):
            assert isinstance(tensor, np.ndarray)
        else:
            assert isinstance(tensor, Integer)
            assert tensor.bits == (4 if name.startswith("blk") else 8)
    again = quantise(found, "ternary")
    assert isinstance(again.tensors["blk.0.attn_q.weight"], Integer)
    with pytest.raises(QuantiseError, match="no projection can be brought to 'int9'; there are"):
        quantise(checkpoints.load(path), "int9").read()


def test_config_names_what_is_wrong() -> None:
    for field, value, part in (
        ("dim", 0, "dim must be a whole number in 1..1048576, not 0"),
        ("layers", 1025, "layers must be a whole number in 1..1024"),
        ("head_dim", 3, "head_dim must be even"),
        ("kv_heads", 3, "heads must be a multiple of kv_heads"),
        ("eps", math.nan, "eps must be a finite number above 0"),
        ("gate", "gelu", "gate must be one of relu2, silu"),
        ("pairing", "none", "pairing must be one of half, interleaved"),
    ):
        with pytest.raises(ConfigError) as caught:
            replace(SMALL, **{field: value})
        assert part in str(caught.value)


# ------------------------------------------------------------------------ vocabularies

WORDS = (
    "the miller went down to river and said wait little longer then you shall see wind corn mill"
)
ODD = (
    "",
    " ",
    "  ",
    "   two   spaces  ",
    "the miller",
    " the miller ",
    "themiller\nwent\tdown\r\n",
    "naïve café \u2014 Straße",
    "日本語のテキスト",
    "emoji \U0001f600 and \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a\u0301e\u0301",
    "\u2581already\u2581there",
    "<s> </s> <unk> <0x41> <0x0A>",
    "nul \x00 bell \x07 del \x7f",
    "\ufeffbom \u00a0nbsp \u3000wide",
    "x" * 300,
    "\u0370 one odd",
    "\u0370\u0371 two odd \u0370",
    "ÿþ",
)


def story(words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS.split()) for _ in range(words))


@pytest.fixture(scope="module", params=["bytes", "unknown", "user"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A SentencePiece model with byte fallback, without, and with pieces of the user's."""
    folder = tmp_path_factory.mktemp("sp")
    text = folder / "text"
    text.write_text("\n".join(story(12, seed) for seed in range(300)) + "\nnaïve café\n")
    sentencepiece.SentencePieceTrainer.Train(
        input=str(text),
        model_prefix=str(folder / "m"),
        model_type="bpe",
        vocab_size=400 if request.param == "bytes" else 120,
        byte_fallback=request.param == "bytes",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        user_defined_symbols=["<user>", "wait", "ai"] if request.param == "user" else [],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def kind_of(theirs: Any, token: int) -> int:
    if theirs.IsUnknown(token):
        return tokenizers.UNKNOWN
    if theirs.IsControl(token):
        return tokenizers.CONTROL
    if theirs.IsByte(token):
        return tokenizers.BYTE
    if theirs.IsUnused(token):
        return tokenizers.UNUSED
    user = token in (3, 4, 5) and theirs.IdToPiece(3) == "<user>"
    return tokenizers.USER if user else tokenizers.NORMAL


def of_sentencepiece(theirs: Any) -> ScoreTokenizer:
    count = theirs.GetPieceSize()
    return ScoreTokenizer(
        pieces=tuple(theirs.IdToPiece(token) for token in range(count)),
        kinds=tuple(kind_of(theirs, token) for token in range(count)),
        scores=tuple(theirs.GetScore(token) for token in range(count)),
        bos=1,
        eos=2,
        unk=0,
    )


def strings() -> list[str]:
    rng = random.Random(3)
    letters = "themilrwndovsaugc  \n\t.,!éß\u0370日\U0001f600<>0x4"
    some = ["".join(rng.choices(letters, k=rng.randrange(1, 60))) for _ in range(300)]
    users = ["wait", "waitwait", "await <user>!", "<user><user", "mai aid", " wait a i wai t"]
    return [*ODD, *some, *users, *(story(30, seed) for seed in range(50, 80))]


def test_encodings_are_those_of_sentencepiece(trained: Any) -> None:
    ours = of_sentencepiece(trained)
    for text in strings():
        ids = trained.EncodeAsIds(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, bos=True) == [1, *ids]
        assert ours.decode(ids) == trained.DecodeIds(ids), text
        stream = TextStream(ours)
        assert "".join(map(stream.feed, ids)) + stream.end() == ours.decode(ids)
    rng = random.Random(4)
    for _ in range(300):
        ids = [rng.randrange(len(ours)) for _ in range(rng.randrange(12))]
        assert ours.decode(ids) == trained.DecodeIds(ids), ids


def test_gguf_vocabulary_of_scores_is_that_of_sentencepiece(trained: Any, tmp_path: Path) -> None:
    ours = of_sentencepiece(trained)
    config = replace(SMALL, vocab=len(ours))

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(ours.pieces)
        writer.add_token_scores(ours.scores)
        writer.add_token_types(ours.kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    path = write_gguf(tmp_path / "m", config, random_tensors(config), change=change)
    found = checkpoints.load(path).tokenizer
    assert found == ours
    assert checkpoints.load_tokenizer(path) == ours


def write_tokenizer(path: Path, pieces: list[str], scores: list[float]) -> Path:
    raw = [piece.encode() for piece in pieces]
    parts = [struct.pack("<i", max(map(len, raw)))]
    parts += [struct.pack("<fi", s, len(r)) + r for s, r in zip(scores, raw, strict=True)]
    path.write_bytes(b"".join(parts))
    return path


def as_llama2c(theirs: Any) -> tuple[list[str], list[float]]:
    """Pieces as llama2.c's tokenizer.py exports them."""
    pieces = [theirs.IdToPiece(token) for token in range(theirs.GetPieceSize())]
    pieces[1:3] = "\n<s>\n", "\n</s>\n"
    scores = [theirs.GetScore(token) for token in range(theirs.GetPieceSize())]
    return [piece.replace("\u2581", " ") for piece in pieces], scores


def test_tokenizer_bin_encodes_as_sentencepiece(trained: Any, tmp_path: Path) -> None:
    if kind_of(trained, 3) == tokenizers.USER:
        pytest.skip("llama2.c has no pieces of the user's")
    ours = checkpoints.load_tokenizer(write_tokenizer(tmp_path / "t", *as_llama2c(trained)))
    assert (len(ours), ours.bos, ours.eos) == (trained.GetPieceSize(), 1, 2)
    for text in strings():
        if "\u2581" not in text:
            ids = trained.EncodeAsIds(text)
            assert ours.encode(text) == ids, text
            assert ours.decode(ids) == trained.DecodeIds(ids)
    config = replace(SMALL, vocab=len(ours), tied=True)
    path = write_v0(tmp_path / "m.bin", config, random_tensors(config))
    assert checkpoints.load(path).tokenizer is None
    assert checkpoints.load(path, tokenizer=tmp_path / "t").tokenizer == ours
    (tmp_path / "t").rename(tmp_path / "tokenizer.bin")
    assert checkpoints.load(path).tokenizer == ours
    other = write_v0(
        tmp_path / "o.bin", replace(config, vocab=7), random_tensors(replace(config, vocab=7))
    )
    with refused("token_embd.weight", f"the model has 7 tokens, the vocabulary {len(ours)}"):
        checkpoints.load(other)


def test_tokenizer_bin_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    good = write_tokenizer(path, ["<unk>", "<s>", "</s>", "a", "b", "ab"], [0.0] * 6).read_bytes()
    for change, part in (
        (put(0, "i", -1), "offset 0: the longest piece must have 1 to 65536 bytes, not -1"),
        (put(0, "i", 1 << 30), "offset 0: the longest piece"),
        (put(4, "f", math.nan), "offset 4: the score of piece 0 must be finite"),
        (put(8, "i", 1 << 30), "offset 8: the length of piece 0 must be in 0..5"),
        (put(8, "i", -5), "offset 8: the length of piece 0 must be in 0..5, not -5"),
        (put(12, "B", 0xFF), "offset 12: piece 0 must be UTF-8"),
        (lambda c: c.pop(), "expected 2 bytes of piece 5, found 1"),
        (lambda c: c.extend(b"\0\0"), "expected 8 bytes of piece 6, found 2"),
        (lambda c: c.__delitem__(slice(20, None)), "expected"),
        (lambda c: c.__delitem__(slice(17, None)), "at least 3 pieces, not 1"),
        (lambda c: c.clear(), "offset 0: expected 4 bytes"),
    ):
        path.write_bytes(good)
        with refused(str(path), part):
            checkpoints.load_tokenizer(edit(path, change))


def test_merging_takes_the_best_pair_and_then_the_leftmost() -> None:
    def slow(symbols: list[str], rank: dict[str, float]) -> list[str]:
        while True:
            best = min(
                (
                    (rank[a + b], at)
                    for at, (a, b) in enumerate(itertools.pairwise(symbols))
                    if a + b in rank
                ),
                default=None,
            )
            if best is None:
                return symbols
            at = best[1]
            symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]

    rng = random.Random(9)
    for _ in range(300):
        rank: dict[str, float] = {}
        for _ in range(rng.randrange(1, 14)):
            rank["".join(rng.choices("abc", k=rng.randrange(2, 5)))] = rng.randrange(5)
        text = "".join(rng.choices("abc", k=rng.randrange(40)))
        found = tokenizers.merge(text, lambda left, right: rank.get(left + right))  # noqa: B023
        assert found == slow(list(text), rank)


def test_long_texts_do_not_take_quadratic_time(trained: Any) -> None:
    ours = of_sentencepiece(trained)
    text = story(40000)
    start = time.perf_counter()
    ids = ours.encode(text)
    took = time.perf_counter() - start
    assert ids == trained.EncodeAsIds(text) and took < 10, took


def byte_vocabulary(merges: list[tuple[str, str]], **options: Any) -> RankTokenizer:
    pieces = [*tokenizers.BYTE_CHARACTERS, *(left + right for left, right in merges)]
    kinds = [tokenizers.NORMAL] * len(pieces)
    pieces += ["<|begin|>", "<|end|>", "<user>"]
    kinds += [tokenizers.CONTROL, tokenizers.CONTROL, tokenizers.USER]
    return RankTokenizer(
        pieces=tuple(pieces),
        kinds=tuple(kinds),
        merges=tuple(merges),
        bos=len(pieces) - 3,
        eos=len(pieces) - 2,
        **options,
    )


MERGES = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("\u0120", "m"), ("i", "l"), ("Ã", "©")]


def test_byte_level_encoding_is_reversible_and_follows_ranks() -> None:
    ours = byte_vocabulary(MERGES)
    for text in strings():
        ids = ours.encode(text)
        assert ours.decode(ids) == text, text
        stream = TextStream(ours)
        assert "".join(map(stream.feed, ids)) + stream.end() == text
    names = [ours.pieces[token] for token in ours.encode("the the mil\u00e9 <user>the")]
    wanted = ["the", "\u0120the", "\u0120m", "il", "Ã©", "\u0120", "<user>", "the"]
    assert names == wanted
    begin, end = len(ours) - 3, len(ours) - 2
    assert ours.encode("", bos=True) == [begin]
    assert replace(ours, add_bos=False).encode("", bos=True) == [begin]
    assert replace(ours, add_bos=False).encode("x", bos=True) == ours.encode("x")
    assert replace(ours, bos=None).encode("", bos=True) == [end]
    with pytest.raises(TokenizerError, match="an empty prompt needs a token"):
        replace(ours, bos=None, eos=None).encode("", bos=True)
    assert replace(ours, bos=None, eos=None).encode("", bos=False) == []
    assert ours.decode([begin, 0x41, end]) == ours.pieces[0x41]
    broken = [ours.pieces.index("Ã"), ours.pieces.index("a")]
    assert ours.decode(broken) == "\ufffda"
    with pytest.raises(TokenizerError, match=rf"token {len(ours)} at position 1 is not in 0"):
        ours.decode([0, len(ours)])
    with pytest.raises(TokenizerError, match=r"'\\ud800' at position 2 is half a character"):
        ours.encode("ab\ud800")


@pytest.mark.parametrize(
    ("words", "text", "wanted"),
    [
        ("gpt-2", "Hello world's  end", ["Hello", " world", "'s", " ", " end"]),
        ("gpt-2", "x12345 \n\n y", ["x", "12345", " \n\n", " y"]),
        ("gpt-2", "naïve 日本!? ½", ["naïve", " 日本", "!?", " ½"]),
        ("gpt-2", "a\u0301b  ", ["a", "\u0301", "b", "  "]),
        ("gpt-2", "'x 's", ["'", "x", " '", "s"]),
        ("llama-bpe", "Hello world'S  end", ["Hello", " world", "'S", " ", " end"]),
        ("llama-bpe", "x12345 \n\n y", ["x", "123", "45", " \n\n", " y"]),
        ("llama-bpe", "(foo) bar!\n\nz", ["(foo", ")", " bar", "!\n\n", "z"]),
        ("llama-bpe", "\u3000日本\u3000 ٣", ["\u3000日本", "\u3000", " ", "٣"]),
        ("qwen2", "x12", ["x", "1", "2"]),
    ],
)
def test_texts_are_cut_into_words_as_published(words: str, text: str, wanted: list[str]) -> None:
    folded = tokenizers._fold(text)
    spans = [match.span() for match in tokenizers.WORDS[words].finditer(folded)]
    assert [text[start:end] for start, end in spans] == wanted


def test_every_character_belongs_to_a_word() -> None:
    rng = random.Random(11)
    for words in tokenizers.WORDS.values():
        for _ in range(300):
            text = "".join(
                chr(rng.choice((rng.randrange(0x250), rng.randrange(0xD800)))) for _ in range(40)
            )
            assert "".join(words.findall(tokenizers._fold(text))) == tokenizers._fold(text)


def test_characters_that_a_vocabulary_lacks() -> None:
    few = ScoreTokenizer(
        pieces=("<unk>", "<s>", "</s>", "\u2581", "a"),
        kinds=(2, 3, 3, 1, 1),
        scores=(0.0,) * 5,
        bos=1,
        unk=0,
    )
    assert few.encode("aéß a") == [3, 4, 0, 3, 4]
    assert few.decode(few.encode("aé")) == "a \u2047 "
    with pytest.raises(TokenizerError, match="character 'é' at position 1 is not in the vocab"):
        replace(few, unk=None).encode("aé")
    bare = replace(byte_vocabulary([]), pieces=("a", "b"), kinds=(1, 1), bos=0, eos=1)
    with pytest.raises(TokenizerError, match="character 'é' at position 1"):
        bare.encode("aé")
    assert replace(bare, unk=1).encode("ac") == [0, 1]


def test_gguf_vocabulary_of_merges(tmp_path: Path) -> None:
    ours = byte_vocabulary(MERGES)
    config = replace(SMALL, vocab=len(ours))
    merges = [f"{left} {right}" for left, right in MERGES]

    def write(pre: str | None, arch: str = "llama", merges: list[str] = merges) -> Path:
        def change(writer: gguf.GGUFWriter) -> None:
            writer.add_tokenizer_model("gpt2")
            if pre:
                writer.add_tokenizer_pre(pre)
            writer.add_token_list(ours.pieces)
            writer.add_token_types(ours.kinds)
            writer.add_token_merges(merges)
            writer.add_bos_token_id(ours.bos or 0)
            writer.add_eos_token_id(ours.eos or 0)

        return write_gguf(tmp_path / "m", config, random_tensors(config), change=change, arch=arch)

    for pre, arch, words in (
        ("gpt-2", "llama", "gpt-2"),
        (None, "llama", "gpt-2"),
        ("llama-bpe", "llama", "llama-bpe"),
        (None, "bitnet-b1.58", "llama-bpe"),
        ("default", "bitnet", "llama-bpe"),
        ("qwen2", "llama", "qwen2"),
    ):
        found = checkpoints.load(write(pre, arch)).tokenizer
        assert found == replace(ours, words=words, whole_words=words == "llama-bpe")
    with refused("tokenizer.ggml.pre must be one of", "not 'strange'; option words overrides it"):
        checkpoints.load(write("strange"))
    assert checkpoints.load(tmp_path / "m", words="gpt-2").tokenizer == ours
    with refused("tokenizer.ggml.merges 1 must be two texts and a space, not 'the'"):
        checkpoints.load(write(None, merges=["t h", "the"]))
    with refused("'zz' is no piece"):
        checkpoints.load(write(None, merges=["z z"]))


def test_a_word_that_is_a_piece_needs_no_merges() -> None:
    pieces = [*tokenizers.BYTE_CHARACTERS, "the"]
    whole = RankTokenizer(
        pieces=tuple(pieces), kinds=(1,) * 257, merges=(), words="llama-bpe", whole_words=True
    )
    assert whole.encode("the") == [256]
    assert len(replace(whole, whole_words=False).encode("the")) == 3


def test_unused_pieces_are_taken_apart_again() -> None:
    ours = ScoreTokenizer(
        pieces=("<unk>", "\u2581", "a", "b", "ab", "abb"),
        kinds=(2, 1, 1, 1, 1, tokenizers.UNUSED),
        scores=(0.0, 0.0, 0.0, 0.0, -1.0, -2.0),
        unk=0,
    )
    assert ours.encode("abb") == [1, 4, 3]


def test_vocabularies_that_make_no_sense_are_refused() -> None:
    ours = byte_vocabulary(MERGES)
    for changes, part in (
        ({"bos": 1 << 20}, "the bos token 1048576 is not in"),
        ({"kinds": (1,)}, "there must be a kind for each"),
        ({"words": "x"}, "words must be one of"),
    ):
        with pytest.raises(TokenizerError, match=part):
            replace(ours, **changes)
    with pytest.raises(TokenizerError, match="the score of piece 1 must be finite, not nan"):
        ScoreTokenizer(pieces=("a", "b"), kinds=(1, 1), scores=(0.0, math.nan))
    with pytest.raises(TokenizerError, match="there must be a score for each of 2 pieces, not 1"):
        ScoreTokenizer(pieces=("a", "b"), kinds=(1, 1), scores=(0.0,))


def test_checkpoint_is_immutable_data() -> None:
    found = checkpoints.load(shipped())
    assert isinstance(found, Checkpoint)
    with pytest.raises(AttributeError):
        found.config = SMALL  # pyright: ignore[reportAttributeAccessIssue]
    assert issubclass(CheckpointError, AtriplexError) and llama2c.HEADER == 256


# ------------------------------------------------------------------------ models


ENGLISH = replace(NARROW, vocab=100, gate="silu", sub_norms=False, tied=False, theta=10000.0)


def constants(value: Any) -> list[Any]:
    """All that an integer model consists of."""
    if dataclasses.is_dataclass(value):
        return [constants(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return [[name, constants(each)] for name, each in value.items()]
    if isinstance(value, np.ndarray):
        return [value.dtype.kind, value.shape, value.tolist()]
    return list(map(constants, value)) if isinstance(value, tuple) else [value]


def write_atx(path: Path, config: CheckpointConfig, tensors: dict[str, Any]) -> Path:
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    sizes = ModelConfig(**{name: getattr(config, name) for name in names})
    embedding = Embedding(integer(tensors["token_embd.weight"]).codes, 2.0**-6)
    model = Model.from_tensors(sizes, tensors | {"token_embd.weight": embedding})
    merges = tuple((1 + index, 2 + index) for index in range(config.vocab - 97))
    packed.save(path, packed.ModelFile(model, bpe.Tokenizer(merges)))
    return path


def test_a_model_is_the_same_from_every_format(tmp_path: Path) -> None:
    config, rng = ENGLISH, np.random.default_rng(7)
    tensors: dict[str, Any] = {
        name: np.ones(shape, np.float32) for name, shape in config.shapes().items()
    } | random_ternary(config)
    codes = rng.integers(-127, 128, (config.vocab, config.dim))
    codes[0, 0] = 127
    tensors["token_embd.weight"] = (codes * 2.0**-6).astype(np.float32)
    tensors["output_norm.weight"] = rng.uniform(0.5, 1.5, config.dim).astype(np.float32)
    trits = rng.integers(-1, 2, (config.vocab, config.dim)).astype(np.int8)
    tensors["output.weight"] = Ternary(trits, 0.125)

    def turned(name: str, values: Any) -> Any:
        heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name.split(".")[-2])
        if heads is None:
            return values
        if isinstance(values, Ternary):
            return Ternary(interleave_pairs(values.trits, heads), values.scale)
        return interleave_pairs(values, heads)

    pairs = {name: turned(name, tensor) for name, tensor in tensors.items()}
    floats = {name: quantise_values(tensor) for name, tensor in pairs.items()}
    named = {hf_name(name): tensor for name, tensor in tensors.items()}
    kinds = {
        name: "I2_S" if isinstance(tensor, Ternary) else "F32" for name, tensor in tensors.items()
    }
    low = {"bit_order": "low", "sub_norms": False}
    files: list[tuple[Path, dict[str, Any]]] = [
        (write_gguf(tmp_path / "float.gguf", config, tensors, lambda name: "F16"), {}),
        (write_gguf(tmp_path / "i2s.gguf", config, tensors, kinds.__getitem__), {}),
        (write_safetensors(tmp_path / "m.safetensors", named, hf_config(config)), {}),
        (write_v0(tmp_path / "v0.bin", config, floats), {}),
        (write_v1(tmp_path / "v1.bin", config, pairs, "low"), low),
        (write_atx(tmp_path / "m.atx", config, tensors), {}),
    ]
    models = [
        IntegerModel.compile(of_checkpoint(checkpoints.load(path, **options)))
        for path, options in files
    ]
    wanted = constants(models[-1])
    assert {each.weights.format for each in models[-1].projections.values()} == {"ternary"}
    for (path, _), model in zip(files, models, strict=True):
        assert constants(model) == wanted, path.name
    other = of_checkpoint(checkpoints.load(files[0][0], pairing="half"))
    assert constants(IntegerModel.compile(other)) != wanted


def test_float_matrices_become_integers_and_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    config = replace(SMALL, tied=True)
    path = write_v0(tmp_path / "m.bin", config, random_tensors(config))
    for target, bits in ((None, 8), ("int4", 4), ("ternary", 2)):
        model = of_checkpoint(checkpoints.load(path), target)
        assert {each.ffn_up.bits for each in model.layers} == {bits}
        assert np.array_equal(model.output.codes, model.token_embd.codes)
        assert (model.output.bits, model.output.unit) == (8, model.token_embd.scale)
        assert model.layers[0].attn_sub_norm is None
    with refused(str(path), "tensor blk.0.attn_q.weight", "can be brought to 'int9'"):
        of_checkpoint(checkpoints.load(path), "int9")


SUCCESSOR = CheckpointConfig(
    dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, hidden=32, vocab=32, context=32
)


def write_successor(folder: Path, bit_order: str) -> Path:
    """A model in which each token is followed by the one with the next number."""
    tensors: dict[str, Any] = {
        name: Ternary(np.zeros(shape, np.int8), 0.5) if len(shape) == 2 else np.ones(shape, "f4")
        for name, shape in SUCCESSOR.shapes().items()
    }
    tensors["token_embd.weight"] = np.eye(SUCCESSOR.vocab, dtype=np.float32)
    tensors["output.weight"] = Ternary(np.eye(SUCCESSOR.vocab, k=-1, dtype=np.int8), 2.0)
    letters = [" ", *(chr(ord("a") + at) for at in range(26)), "!", "?"]
    write_tokenizer(folder / "tokenizer.bin", ["<unk>", "<s>", "</s>", *letters], [0.0] * 32)
    return write_v1(folder / f"{bit_order}.bin", SUCCESSOR, tensors, bit_order)


@pytest.mark.parametrize("bit_order", ["high", "low"])
def test_a_text_decides_the_bit_order(bit_order: str, tmp_path: Path) -> None:
    path, text = write_successor(tmp_path, bit_order), tmp_path / "text.txt"
    text.write_text("abcdefghijklmnopqrstuvwxyz")
    found = runnable(path, check_text=text)
    other = "low" if bit_order == "high" else "high"
    assert found.perplexities[bit_order] < 3 < 30 < found.perplexities[other]
    assert found.note is not None and found.note.endswith(f"it is {bit_order}")
    assert "".join(Story("abc", found=found, tokens=5)) == "defgh"
    assert runnable(path, bit_order=bit_order).note is None
    text.write_text("")
    with refused(str(text), "expected a text of some tokens"):
        runnable(path, check_text=text)
    with refused("options bit_order and check_text exclude each other"):
        runnable(path, check_text=text, bit_order="low")
    with refused(str(tmp_path / "none"), "expected a text, found No such file"):
        runnable(path, check_text=tmp_path / "none")
    v0 = write_v0(tmp_path / "v0.bin", SMALL, random_tensors(SMALL))
    with refused(str(v0), "option check_text is for ternary files of llama2.c"):
        runnable(v0, check_text=text)


def test_files_that_cannot_be_run_are_refused(tmp_path: Path) -> None:
    path = write_v0(tmp_path / "m.bin", SMALL, random_tensors(SMALL))
    with refused(str(path), "there is no vocabulary in the file; option tokenizer names one"):
        runnable(path)
    pieces = ["<unk>", "<s>", "</s>", *(f"t{index}" for index in range(17))]
    vocabulary = write_tokenizer(tmp_path / "other.bin", pieces, [0.0] * 20)
    assert len(runnable(path, tokenizer=vocabulary).tokenizer) == 20
    with refused(str(path), "context must be in 1..12, not 13"):
        runnable(path, tokenizer=vocabulary, context=13)
    assert runnable(path, tokenizer=vocabulary, context=5).model.config.context == 5
    with refused("no option 'bit_order'"):
        runnable(path, tokenizer=vocabulary, bit_order="high")
