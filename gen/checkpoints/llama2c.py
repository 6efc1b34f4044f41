# SPDX-License-Identifier: Apache-2.0
"""llama2.c: version 0, version 1, and the ternary variant of version 1.

None of these files has a directory: the header gives the sizes, and the sizes the place of every
tensor. A file whose length is not exactly what its header asks for is refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...sim.engine.model import Ternary
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
)
from .tokenizers import Tokenizer

MAGIC = 0x616B3432
MAGICS = (b"24ka", b"ak42")
"""The magic as llama2.c writes it, a little-endian uint32, and as text."""
HEADER = 256
V0_HEADER = 28
FIELDS = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
BIT_ORDERS = ("high", "low")

Plan = list[tuple[str, tuple[int, ...], str]]
"""Names, shapes and storage, in the order of the file."""


@dataclass(frozen=True)
class _Header:
    config: CheckpointConfig
    start: int


def _config(source: Source, at: int, tied: bool | None, **constants: Any) -> CheckpointConfig:
    """Sizes from seven int32 at ``at``; ``tied`` None: the sign of the vocabulary says so."""
    sizes = dict(zip(FIELDS, source.unpack("<7i", at, "the header"), strict=True))
    positive = sizes["vocab"] > 0
    if tied is None:
        sizes["vocab"] = abs(sizes["vocab"])
    heads = sizes["heads"]
    if heads < 1 or sizes["dim"] < 1 or sizes["dim"] % heads:
        raise source.fail(
            at, f"dim must be a multiple of heads, not {sizes['dim']} with {heads} heads"
        )
    try:
        return CheckpointConfig(
            **sizes,
            head_dim=sizes["dim"] // heads,
            tied=positive if tied is None else tied,
            **constants,
        )
    except ConfigError as error:
        name = str(error).split(maxsplit=1)[0]
        offset = at + 4 * (FIELDS.index(name) if name in FIELDS else FIELDS.index("heads"))
        raise source.fail(offset, str(error)) from None


_KINDS = {
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}


def _matrices(config: CheckpointConfig, kinds: str, storage: str) -> Iterator[tuple]:
    """All layers of one matrix, then of the next."""
    shapes = config.projections()
    for kind in kinds.split():
        name = _KINDS[kind]
        for layer in range(config.layers):
            yield f"blk.{layer}.{name}.weight", shapes[name], storage


def _norms(config: CheckpointConfig, name: str) -> Iterator[tuple]:
    for layer in range(config.layers):
        yield f"blk.{layer}.{name}.weight", (config.dim,), "F32"


def plan_v0(config: CheckpointConfig) -> Plan:
    """Version 0; the two tables of the rotary embedding are in the file and not read."""
    table = (config.context, config.head_dim // 2)
    embedding = (config.vocab, config.dim)
    head = [] if config.tied else [("output.weight", embedding, "F32")]
    return [
        ("token_embd.weight", embedding, "F32"),
        *_norms(config, "attn_norm"),
        *_matrices(config, "wq wk wv wo", "F32"),
        *_norms(config, "ffn_norm"),
        *_matrices(config, "w1 w2 w3", "F32"),
        ("output_norm.weight", (config.dim,), "F32"),
        ("", table, "F32"),
        ("", table, "F32"),
        *head,
    ]


def plan_v1(config: CheckpointConfig) -> Plan:
    """Version 1 in float32."""
    embedding = (config.vocab, config.dim)
    head = [] if config.tied else [("output.weight", embedding, "F32")]
    return [
        *_norms(config, "attn_norm"),
        *_norms(config, "ffn_norm"),
        ("output_norm.weight", (config.dim,), "F32"),
        ("token_embd.weight", embedding, "F32"),
        *_matrices(config, "wq wk wv wo w1 w2 w3", "F32"),
        *head,
    ]


def plan_ternary(config: CheckpointConfig, head: str = "2-bit") -> Plan:
    """The ternary variant; an untied head comes last, 2-bit or float32."""
    embedding = (config.vocab, config.dim)
    last = [] if config.tied else [("output.weight", embedding, head)]
    return [
        ("output_norm.weight", (config.dim,), "F32"),
        ("token_embd.weight", embedding, "F32"),
        *_matrices(config, "wq wk wv wo w1 w2 w3", "2-bit"),
        *last,
    ]


def _bytes(shape: tuple[int, ...], storage: str) -> int:
    count = 1
    for size in shape:
        count *= size
    return 4 * count if storage == "F32" else 4 + -(-count // 4)


def _total(plan: Plan) -> int:
    return sum(_bytes(shape, storage) for _, shape, storage in plan)


def _entries(source: Source, plan: Plan, at: int, bit_order: str) -> dict[str, Entry]:
    entries = {}
    for name, shape, storage in plan:
        size = _bytes(shape, storage)
        if name:
            read = _floats if storage == "F32" else _ternary
            entries[name] = Entry(
                shape, at, storage, read(source, name, shape, at, size, bit_order)
            )
        at += size
    return entries


def _floats(
    source: Source, name: str, shape: tuple[int, ...], at: int, size: int, _: str
) -> Callable[[], Tensor]:
    return lambda: source.decode(codecs.f32, at, size, name).reshape(shape)


def _ternary(
    source: Source, name: str, shape: tuple[int, ...], at: int, size: int, bit_order: str
) -> Callable[[], Tensor]:
    scale, count = source.scale(at, name), shape[0] * shape[1]

    def read() -> Tensor:
        trits = source.decode(
            lambda raw: codecs.ak42(raw, count, bit_order), at + 4, size - 4, name
        )
        return Ternary(trits.reshape(shape), scale)

    return read


def looks_like_v0(source: Source) -> bool:
    """Whether the first 28 bytes are sizes that a model could have."""
    if source.size < V0_HEADER:
        return False
    try:
        _config(source, 0, None)
    except CheckpointError:
        return False
    return True


def load_v0(
    source: Source,
    *,
    theta: float | None = None,
    eps: float | None = None,
    gate: Gate | None = None,
    pairing: Pairing | None = None,
    tokenizer: Tokenizer | None = None,
) -> Checkpoint:
    """Version 0: seven int32 and float32 weights.

    What the file does not say: ``theta`` (10000), ``eps`` (1e-5), ``gate`` (silu), ``pairing``
    (interleaved).
    """
    config = _config(source, 0, None, **_constants(source, theta, eps, gate, pairing))
    plan = plan_v0(config)
    _check_size(source, V0_HEADER, {"version 0": _total(plan)})
    return assemble(
        source,
        config,
        _entries(source, plan, V0_HEADER, ""),
        directory=0,
        format="llama2.c version 0",
        tokenizer=tokenizer,
    )


def load_v1(
    source: Source,
    *,
    bit_order: Literal["high", "low"] | None = None,
    sub_norms: bool | None = None,
    theta: float | None = None,
    eps: float | None = None,
    gate: Gate | None = None,
    pairing: Pairing | None = None,
    tokenizer: Tokenizer | None = None,
) -> Checkpoint:
    """Version 1, float32 or ternary: the length of the file decides.

    ``bit_order`` is where the first weight of a byte is, ``high`` or ``low``; a ternary file cannot
    be read without, as nothing in it says which. It has no gains of the norms within layers, which
    are 1; ``sub_norms`` (default True) says whether the inputs of the output projections are
    normalised as well, as in layers that normalise what each ternary matrix takes.
    """
    version, shared = source.unpack("<i28xB", 4, "the header")
    if version != 1:
        raise source.fail(4, f"the version must be 1, not {version}")
    if shared not in (0, 1):
        raise source.fail(36, f"the byte for a shared classifier must be 0 or 1, not {shared}")
    filling = source.bytes(37, HEADER - 37, "the header")
    if filling.any():
        raise source.fail(37 + int(filling.argmax()), "the header must be filled with zeros")
    constants = _constants(source, theta, eps, gate, pairing)
    config = _config(source, 8, bool(shared), **constants)
    plans = {"float32": plan_v1(config), "ternary": plan_ternary(config)}
    if not config.tied:
        plans["ternary with a float32 head"] = plan_ternary(config, "F32")
    chosen = _check_size(source, HEADER, {name: _total(plan) for name, plan in plans.items()})
    if chosen == "float32":
        for option, value in (("bit_order", bit_order), ("sub_norms", sub_norms)):
            if value is not None:
                raise CheckpointError(
                    f"{source.path}: option {option} is for ternary files, and this is float32"
                )
        entries = _entries(source, plans[chosen], HEADER, "")
    else:
        if bit_order not in BIT_ORDERS:
            raise CheckpointError(
                f"{source.path}: nothing in the file says where the first weight of a byte is: "
                f"option bit_order must be high or low"
                + (" (check_text finds out)" if bit_order is None else f", not {bit_order!r}")
            )
        config = _config(
            source, 8, bool(shared), **constants, sub_norms=sub_norms is None or sub_norms
        )
        entries = _entries(source, plans[chosen], HEADER, bit_order)
        for name, shape in config.shapes().items():
            if name not in entries and len(shape) == 1:
                entries[name] = Entry(shape, 0, "ones", _ones(shape))
    return assemble(
        source,
        config,
        entries,
        directory=8,
        format=f"llama2.c version 1, {chosen}",
        tokenizer=tokenizer,
    )


def _ones(shape: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: np.ones(shape, np.float32)


def _constants(
    source: Source,
    theta: float | None,
    eps: float | None,
    gate: Gate | None,
    pairing: Pairing | None,
) -> dict[str, Any]:
    """Options that a config takes, checked apart so that the sentence names them."""
    given = {"theta": theta, "eps": eps, "gate": gate}
    constants: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    constants["pairing"] = pairing or "interleaved"
    one = dict.fromkeys(("dim", "layers", "heads", "kv_heads", "hidden", "vocab", "context"), 1)
    try:
        CheckpointConfig(**one, head_dim=2, **constants)  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise CheckpointError(f"{source.path}: option {error}") from None
    return constants


def _check_size(source: Source, header: int, totals: dict[str, int]) -> str:
    """The name among ``totals`` whose bytes follow the header exactly."""
    for name, total in totals.items():
        if header + total == source.size:
            return name
    wanted = ", ".join(f"{header + total} ({name})" for name, total in totals.items())
    raise source.fail(
        min(source.size, header + max(totals.values())),
        f"the sizes in the header ask for a file of {wanted} bytes, and it has {source.size}",
    )
