# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other programs: readers, vocabularies, quantisation.

:func:`load` knows a file by what is in it. Nothing in a file is trusted: whatever its length fields
claim, a file that breaks a rule is refused in one sentence (:class:`CheckpointError`) before
anything is allocated for it. ``docs/checkpoints.md`` has formats, options and rules.
"""

import inspect
from pathlib import Path
from typing import Any

from ...rtl.errors import unknown
from ...sim.engine.model import Integer
from ..model import packed
from . import atx, gguf, llama2c, safetensors, tokenizers
from ._source import CheckpointError, Source
from .checkpoint import Checkpoint, CheckpointConfig, ConfigError, Tensor
from .quantise import QuantiseError, quantise
from .tokenizers import TextStream, Tokenizer

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "ConfigError",
    "Integer",
    "QuantiseError",
    "Tensor",
    "TextStream",
    "Tokenizer",
    "load",
    "load_tokenizer",
    "quantise",
]

_ZIP = b"PK\x03\x04"


def kind(source: Source) -> str:
    """``atx``, ``gguf``, ``ak42``, ``safetensors`` or ``llama2.c``, by the first bytes."""
    start = source.data[:16].tobytes()
    if start[:4] == packed.MAGIC:
        return "atx"
    if start[:4] == gguf.MAGIC:
        return "gguf"
    if start[:4] in llama2c.MAGICS:
        return "ak42"
    if start[:4] == _ZIP:
        raise source.fail(0, "this is a PyTorch archive: save it as safetensors or GGUF")
    # No llama2.c header has a { there: its number of layers would be above 1024.
    if start[8:9] == b"{" and not llama2c.looks_like_v0(source):
        return "safetensors"
    if source.size < llama2c.V0_HEADER:
        raise source.fail(0, f"no checkpoint has {source.size} bytes, which begin with {start!r}")
    if llama2c.looks_like_v0(source):
        return "llama2.c"
    raise source.fail(
        0,
        f"the file must begin like GGUF, safetensors, llama2.c or atx, not with {start[:8]!r}",
    )


def load(path: Path | str, **options: Any) -> Checkpoint:
    """Read a checkpoint: a file, or a folder with safetensors in it.

    Options that are None count as not given; each format takes those of its reader
    (:func:`.gguf.load`, :func:`.safetensors.load`, :func:`.llama2c.load_v0`,
    :func:`.llama2c.load_v1`), and others are errors. ``tokenizer`` is the path of a vocabulary
    (:func:`load_tokenizer`) in place of the file's own; files of llama2.c take ``tokenizer.bin``
    beside them where there is one.

    Raises :class:`CheckpointError` (for ``.atx``, :class:`.packed.ModelFileError`): for sizes,
    names, shapes and scales here, for the contents of a tensor when it is used.
    """
    path = Path(path)
    given = {name: value for name, value in options.items() if value is not None}
    if path.is_dir():
        sources = [Source(file) for file in safetensors.files(path)]
        for source in sources:
            if source.data[8:9].tobytes() != b"{":
                raise source.fail(0, "the file must begin like safetensors")
        return safetensors.load(sources, **_options(path, safetensors.load, given))
    source = Source(path)
    found = kind(source)
    if found == "safetensors":
        return safetensors.load([source], **_options(path, safetensors.load, given))
    if found == "atx":
        return atx.load(source, **_options(path, atx.load, given))
    if found == "gguf":
        return gguf.load(source, **_options(path, gguf.load, given))
    reader = llama2c.load_v1 if found == "ak42" else llama2c.load_v0
    beside = path.parent / "tokenizer.bin"
    if "tokenizer" not in given and beside.is_file():
        given["tokenizer"] = beside
    return reader(source, **_options(path, reader, given))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The vocabulary of a GGUF file, an .atx file, or a llama2.c ``tokenizer.bin``."""
    source = Source(path)
    start = source.data[:4].tobytes()
    if start == gguf.MAGIC:
        return gguf.read_vocabulary(source)
    if start == packed.MAGIC:
        return packed.decode(source.data.tobytes(), str(path)).tokenizer
    return tokenizers.read_llama2c(source)


def _options(path: Path, reader: Any, given: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(reader).parameters.values()
    known = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    for name in given:
        if name not in known:
            raise CheckpointError(f"{path}: {unknown('option', name, known)}")
    tokenizer = given.get("tokenizer")
    if isinstance(tokenizer, str | Path):
        given = given | {"tokenizer": load_tokenizer(tokenizer)}
    return given
