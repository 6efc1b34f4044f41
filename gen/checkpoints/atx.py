# SPDX-License-Identifier: Apache-2.0
"""The project's own packed file, as a checkpoint."""

import dataclasses

from ...sim.engine.model import Embedding, Integer, Model
from ..model import bpe, packed
from ._source import Source
from .checkpoint import Checkpoint, CheckpointConfig, Tensor
from .tokenizers import Tokenizer


def of_model(
    model: Model, tokenizer: bpe.Tokenizer | Tokenizer | None, source: Source | None = None
) -> Checkpoint:
    """A model of the engine as a checkpoint; the embedding becomes an 8-bit :class:`Integer`."""
    config = CheckpointConfig(**dataclasses.asdict(model.config))
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors().items():
        if isinstance(tensor, Embedding):
            tensors[name] = Integer(tensor.codes, tensor.scale, 8)
        else:
            tensors[name] = tensor
    return Checkpoint(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        path=source.path if source else None,
        format="atx",
    )


def load(source: Source) -> Checkpoint:
    """The checkpoint of a packed file; :class:`.packed.ModelFileError` for anything wrong."""
    header, payload = source.unpack("<8xIQ", 0, "the preamble")
    if packed.PREAMBLE.size + header + payload != source.size:
        raise source.fail(
            8,
            f"the lengths of preamble, header and payload, {packed.PREAMBLE.size}, {header} and "
            f"{payload}, must add up to those of the file, {source.size}",
        )
    file = packed.decode(source.data.tobytes(), str(source.path))
    checkpoint = of_model(file.model, file.tokenizer, source)
    return dataclasses.replace(checkpoint, meta=file.meta)
