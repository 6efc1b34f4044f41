# SPDX-License-Identifier: Apache-2.0
"""safetensors, with the ``config.json`` of Hugging Face beside it: one file or a folder.

F32, F16 and BF16; U8 packed BitNet weights and I8 weights, each with its ``<name>_scale``.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...sim.engine.model import Integer, Ternary
from . import codecs
from ._source import CheckpointError, Source
from .checkpoint import (
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
from .tokenizers import Tokenizer

HEADER = 2 << 20
"""Bytes of the longest header."""
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
SCALES = ("multiply", "divide")

_FLOATS = {"F32": codecs.f32, "F16": codecs.f16, "BF16": codecs.bf16}
_IGNORED = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")
_CONFIG = 1 << 20


@dataclass(frozen=True)
class _Info:
    source: Source
    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int

    def fail(self, rule: str, offset: int | None = None) -> CheckpointError:
        return self.source.fail(self.start if offset is None else offset, rule, self.name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r:.60} is there twice")
    return found


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _directory(source: Source) -> list[_Info]:
    """Every tensor of one file; their data are the rest of the file, without holes."""
    (length,) = source.unpack("<Q", 0, "the length of the header")
    if length > HEADER:
        raise source.fail(0, f"the header may have at most {HEADER} bytes, not {length}")
    text = source.bytes(8, length, "the header").tobytes()
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise source.fail(8, f"the header must be JSON: {error}") from None
    if not isinstance(header, dict):
        raise source.fail(8, "the header must be a JSON object")
    base, infos = 8 + length, []
    room = source.size - base
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise source.fail(8, "its entry must hold dtype, shape and data_offsets", name)
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in WIDTHS:
            raise source.fail(
                8, f"dtype must be one of {', '.join(WIDTHS)}, not {dtype!r:.60}", name
            )
        if not isinstance(shape, list) or len(shape) > 4 or not all(map(_whole, shape)):
            raise source.fail(8, f"shape must be up to 4 whole numbers, not {shape!r:.60}", name)
        good = isinstance(offsets, list) and len(offsets) == 2 and all(map(_whole, offsets))
        if not good or not offsets[0] <= offsets[1] <= room:
            raise source.fail(
                8, f"data_offsets must be two of 0..{room} in order, not {offsets!r:.60}", name
            )
        size = math.prod(shape) * WIDTHS[dtype]
        if offsets[1] - offsets[0] != size:
            raise source.fail(
                8,
                f"{dtype} of shape {tuple(shape)} takes {size} bytes, "
                f"not {offsets[1] - offsets[0]}",
                name,
            )
        infos.append(_Info(source, name, tuple(shape), dtype, base + offsets[0], size))
    end, last = base, "the header"
    for info in sorted(infos, key=lambda info: (info.start, info.size)):
        if info.start != end:
            raise info.fail(f"its data must begin at offset {end}, after {last}")
        end, last = info.start + info.size, info.name
    if end != source.size:
        raise source.fail(end, f"the file must end here, not after {source.size - end} more bytes")
    return infos


def _json(path: Path) -> dict[str, Any]:
    source = Source(path)
    if source.size > _CONFIG:
        raise source.fail(0, f"the file may have at most {_CONFIG} bytes, not {source.size}")
    try:
        value = json.loads(source.data.tobytes().decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise source.fail(0, f"the file must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise source.fail(0, "the file must hold a JSON object")
    return value


def files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, or ``model.safetensors``."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    weights = _json(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{index}: offset 0: weight_map must be an object with tensors")
    names = dict.fromkeys(weights.values())
    for name in names:
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{index}: offset 0: weight_map must name safetensors files beside it, "
                f"not {name!r:.60}"
            )
    return [folder / name for name in names]


def load(
    sources: list[Source],
    *,
    config: Path | str | Mapping[str, Any] | None = None,
    scale: Literal["multiply", "divide"] | None = None,
    pairing: Pairing | None = None,
    gate: Gate | None = None,
    tokenizer: Tokenizer | None = None,
) -> Checkpoint:
    """The checkpoint of one or more safetensors files.

    ``config`` is a Hugging Face configuration or its path, by default ``config.json`` beside the
    first file. ``scale`` says what a ``<name>_scale`` does to the integer result: by default it
    multiplies, unless the configuration names the layer class ``bitlinear``, which divides.
    ``pairing`` is that of the rows of Q and K, by default ``half``; ``gate`` overrides
    ``hidden_act``.
    """
    first = sources[0]
    place: Path | None = None
    if config is None or isinstance(config, str | Path):
        place = Path(config) if config is not None else first.path.parent / "config.json"
        if config is None and not place.exists():
            raise CheckpointError(
                f"{first.path}: offset 0: sizes must be in {place} or given by option config"
            )
        settings = _json(place)
    else:
        settings = dict(config)
    where = str(place or "option config")
    if scale is None:
        scale = _scale_rule(settings)
    elif scale not in SCALES:
        raise CheckpointError(
            f"{first.path}: option scale must be one of {', '.join(SCALES)}, not {scale!r}"
        )
    infos: dict[str, _Info] = {}
    for source in sources:
        for info in _directory(source):
            if info.name in infos:
                raise info.fail(f"the tensor is in {infos[info.name].source.path} as well")
            infos[info.name] = info
    entries: dict[str, Entry] = {}
    for info in infos.values():
        if info.name.endswith("_scale") and info.name.removesuffix("_scale") in infos:
            continue
        if info.name.endswith(_IGNORED):
            continue
        name = gguf_name(info.name)
        if name is None:
            raise info.fail("no such tensor is part of a Llama or BitNet model")
        if name in entries:
            raise info.fail(f"there are two tensors for {name}")
        entries[name] = _entry(info, infos.get(info.name + "_scale"), scale)
    found = _config(settings, where, entries, pairing, gate)
    if found.tied and "output.weight" in entries:
        _same(entries.pop("output.weight"), entries.get("token_embd.weight"), infos)
    return assemble(
        first,
        found,
        entries,
        directory=8,
        format="safetensors",
        tokenizer=tokenizer,
    )


def _same(head: Entry, embedding: Entry | None, infos: Mapping[str, _Info]) -> None:
    """A tied head that is in the file all the same must be the embedding, bit for bit."""
    info = infos[head.label]
    other = infos[embedding.label] if embedding else info
    equal = (info.dtype, info.shape) == (other.dtype, other.shape) and np.array_equal(
        info.source.bytes(info.start, info.size, "data"),
        other.source.bytes(other.start, other.size, "data"),
    )
    if not equal:
        raise info.fail("the head is tied and must hold what the embedding does")


def _entry(info: _Info, scale: _Info | None, rule: str) -> Entry:
    source = info.source
    if info.dtype in _FLOATS:
        if scale is not None:
            raise scale.fail(f"a scale goes with U8 or I8, not with {info.dtype}")
        codec = _FLOATS[info.dtype]

        def floats() -> Tensor:
            return source.decode(codec, info.start, info.size, info.name).reshape(info.shape)

        return Entry(info.shape, info.start, info.dtype, floats, info.name)
    if scale is None:
        raise info.fail(f"{info.dtype} must come with {info.name}_scale")
    if len(info.shape) != 2:
        raise info.fail(f"{info.dtype} must have two dimensions, not {len(info.shape)}")
    factor = _factor(scale, rule)
    if info.dtype == "I8":
        return Entry(info.shape, info.start, "I8", _int8(info, factor), info.name)
    shape = (4 * info.shape[0], info.shape[1])

    def packed() -> Tensor:
        trits = source.decode(
            lambda raw: codecs.packed_rows(raw, shape[0]), info.start, info.size, info.name
        )
        return Ternary(trits.reshape(shape), factor)

    return Entry(shape, info.start, "U8", packed, info.name)


def _int8(info: _Info, factor: float) -> Callable[[], Tensor]:
    """I8: ternary where no code is larger than 1, else integers of 8 bits."""

    def codes() -> Tensor:
        raw = info.source.bytes(info.start, info.size, "data", info.name)
        values = raw.copy().view(np.int8).reshape(info.shape)
        if values.size and values.min() >= -1 and values.max() <= 1:
            return Ternary(values, factor)
        return Integer(values, factor, 8)

    return codes


def _factor(scale: _Info, rule: str) -> float:
    if scale.dtype not in _FLOATS or math.prod(scale.shape) != 1:
        raise scale.fail(f"a scale must be one float, not {scale.dtype} of shape {scale.shape}")
    source = scale.source
    try:
        value = float(source.decode(_FLOATS[scale.dtype], scale.start, scale.size, scale.name)[0])
    except CheckpointError:
        raise scale.fail("a scale must be finite and above 0") from None
    source.check_scale(value, scale.start, scale.name)
    if rule == "multiply":
        return value
    return source.check_scale(float(1 / np.float64(value)), scale.start, scale.name)


def _scale_rule(settings: Mapping[str, Any]) -> Literal["multiply", "divide"]:
    quantisation = settings.get("quantization_config")
    if isinstance(quantisation, dict) and quantisation.get("linear_class") == "bitlinear":
        return "divide"
    return "multiply"


def _config(
    settings: Mapping[str, Any],
    where: str,
    entries: Mapping[str, Entry],
    pairing: Pairing | None,
    gate: Gate | None,
) -> CheckpointConfig:
    def fail(rule: str) -> CheckpointError:
        return CheckpointError(f"{where}: offset 0: {rule}")

    def size(key: str, default: object = None) -> Any:
        value = settings.get(key)
        if value is None:
            value = default
        if type(value) is not int:
            raise fail(f"{key} must be a whole number, not {value!r:.60}")
        return value

    kind = settings.get("model_type")
    if kind not in ("llama", "bitnet"):
        raise fail(f"model_type must be llama or bitnet, not {kind!r:.60}")
    for key in ("attention_bias", "mlp_bias"):
        if settings.get(key):
            raise fail(f"{key} must be false: biases are not read")
    rope = settings.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    scaling = settings.get("rope_scaling") or {}
    kinds = {
        part.get("rope_type", part.get("type"))
        for part in (rope, scaling)
        if isinstance(part, dict)
    }
    if not isinstance(scaling, dict) or kinds - {None, "default"}:
        raise fail("rope_scaling must be null: scaled positions are not read")
    act = settings.get("hidden_act", "relu2" if kind == "bitnet" else "silu")
    if gate is None and act not in ("silu", "relu2"):
        raise fail(f"hidden_act must be silu or relu2, not {act!r:.60}")
    heads, dim = size("num_attention_heads"), size("hidden_size")
    theta = settings.get("rope_theta", rope.get("rope_theta"))
    if theta is None:
        theta = 500000.0 if kind == "bitnet" else 10000.0
    try:
        return CheckpointConfig(
            dim=dim,
            layers=size("num_hidden_layers"),
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head_dim=size("head_dim", dim // heads if heads else 0),
            hidden=size("intermediate_size"),
            vocab=size("vocab_size"),
            context=size("max_position_embeddings"),
            theta=theta,
            eps=settings.get("rms_norm_eps", 1e-5 if kind == "bitnet" else 1e-6),
            gate=gate or act,
            sub_norms="blk.0.attn_sub_norm.weight" in entries,
            tied=settings.get("tie_word_embeddings") is True,
            pairing=pairing or "half",
        )
    except ConfigError as error:
        raise fail(f"the configuration makes no model: {error}") from None
