# SPDX-License-Identifier: Apache-2.0
"""Training of the ternary model and of its float twin.

Needs torch and matplotlib (``pip install 'atriplex[train]'``), both imported when used.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError, unknown
from ...sim.engine.model import Embedding, Model, ModelConfig, Ternary, expected_shapes
from . import bpe, card, packed
from .corpus import Corpus
from .evaluate import evaluate

Progress = Callable[[dict[str, Any]], None]

BETAS = (0.9, 0.95)
CLIP = 1.0


class TrainError(AtriplexError, RuntimeError):
    """Training cannot start or go on; one sentence."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained and how.

    The shipped model had these sizes and steps but was resumed with other plans on the way; its
    card has the rates.

    AdamW; the learning rate rises over ``warmup`` steps, stays, and falls linearly to 0 over the
    last ``decay`` of the steps, and weight decay ends where the fall begins (the two stages of
    BitNet b1.58). Batches are ``batch`` windows of the model's context, worked on in ``threads``
    parts at a time, one thread each (0: one for every processor); that changes the last bits.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    steps: int = 3200
    float_steps: int = 1600
    batch: int = 16
    learning_rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.375
    weight_decay: float = 0.1
    eval_every: int = 200
    threads: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step``, counted from 0, in a run of ``steps``."""
        return self.learning_rate * min(
            1.0, (step + 1) / self.warmup, (steps - step) / self.fall(steps)
        )

    def fall(self, steps: int) -> int:
        """Steps at the end in which the learning rate falls."""
        return max(1, round(steps * self.decay))


def sized(settings: Mapping[str, Any]) -> ModelConfig:
    """The shipped model's sizes but for ``settings``.

    Raises :class:`TrainError` for a name that is none of them, ``ModelError`` for a value.
    """
    known = [each.name for each in fields(ModelConfig) if each.type in ("int", int)]
    for name in settings:
        if name not in known:
            raise TrainError(unknown("size", name, known))
    return ModelConfig(**settings)


def train(
    text: Path,
    out: Path,
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    name: str = "storybook",
    source: str = "",
    float_twin: bool = True,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a ternary model on ``text`` and write everything about it into the folder ``out``.

    ``text`` is ASCII, one paragraph a line; 5 % of it are held out (:func:`.corpus.split`). Written
    are ``<name>.atx``, ``<name>.md`` (the model card), ``<name>-loss.png``, ``log.jsonl`` and the
    checkpoints ``ternary.pt`` and ``float.pt``, from which ``resume`` goes on; what ``seed`` and
    step see is the same then. ``source`` is a sentence on the text's origin for the card.
    ``progress`` gets a record after every step: ``model``, ``step``, ``steps``, ``rate``, and at
    evaluations ``loss``, ``held_out``, ``best`` (nats a token) and ``seconds``.

    Returns the card's figures. Raises :class:`TrainError` without torch, for a folder that already
    holds a run unless ``resume``, and for a checkpoint of another vocabulary;
    :class:`.bpe.TokenizerError` for a text the vocabulary cannot take.
    """
    config = config or TrainConfig()
    _torch()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if not resume and any((out / file).exists() for file in ("ternary.pt", "float.pt")):
        raise TrainError(f"{out} holds a training run: resume it or choose another folder")
    if not resume:
        (out / "log.jsonl").unlink(missing_ok=True)
    corpus = Corpus.load(_read(text), vocab=config.model.vocab)
    for quantise in (True, False) if float_twin else (True,):
        fit(corpus, out, config, quantise=quantise, seed=seed, resume=resume, progress=progress)
    return publish(text, out, config=config, name=name, source=source)


def fit(
    corpus: Corpus,
    out: Path,
    config: TrainConfig,
    *,
    quantise: bool,
    seed: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
) -> None:
    """Train one network, the ternary one or its float twin.

    At every evaluation writes the last state and the best weights by validation loss to
    ``out/ternary.pt`` or ``out/float.pt`` and appends a line to ``out/log.jsonl``. Every step is a
    function of ``(seed, step)``; on resuming, ``steps`` may differ as long as the learning rate
    did not fall yet.
    """
    torch = _torch()
    from ._net import Net

    name = "ternary" if quantise else "float"
    steps = config.steps if quantise else config.float_steps
    torch.manual_seed(seed)
    net = Net(config.model, quantise=quantise)
    optimiser = torch.optim.AdamW(
        [
            {"params": [weight for weight in net.parameters() if weight.ndim == 2]},
            {"params": [weight for weight in net.parameters() if weight.ndim < 2]},
        ],
        lr=config.learning_rate,
        betas=BETAS,
        weight_decay=0.0,
        fused=True,
    )
    file, merges = out / f"{name}.pt", [list(pair) for pair in corpus.tokenizer.merges]
    first, best, weights, seconds = 0, float("inf"), None, 0.0
    if resume and file.exists():
        state = torch.load(file, weights_only=True)
        if state["merges"] != merges:
            raise TrainError(f"{file} was trained with another vocabulary, so it cannot go on")
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        first, best, weights = state["step"], state["best"], state["weights"]
        seconds = state["seconds"]
    length = config.model.context
    inputs, targets = _held_out(torch, corpus, length)
    parameters = list(net.parameters())
    threads = min(config.threads or os.cpu_count() or 1, config.batch)

    def gradients(rows: Any) -> tuple[Any, float]:
        """Gradients of a part of the batch, as its share of the mean loss, and that share."""
        logits = net(rows[:, :-1]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())
        loss = loss * (len(rows) / config.batch)
        return torch.autograd.grad(loss, parameters), loss.item()

    total, last, began = 0.0, first, time.monotonic()
    # Parts of a batch in threads of their own wait for each other once a step, those of an
    # operator at every operator: on a busy machine that is several times slower.
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    for step in range(first, steps):
        rate = config.rate(step, steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        falling = step >= steps - config.fall(steps)
        optimiser.param_groups[0]["weight_decay"] = 0.0 if falling else config.weight_decay
        windows = torch.from_numpy(corpus.batch(seed, step, config.batch, length))
        parts = list(pool.map(gradients, windows.tensor_split(threads)))
        for index, parameter in enumerate(parameters):
            parameter.grad = sum(part[index] for part, _ in parts)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        total += sum(loss for _, loss in parts)
        done = step + 1
        record: dict[str, Any] = {"model": name, "step": done, "steps": steps, "rate": rate}
        if done % config.eval_every == 0 or done == steps:
            held_out = _loss(torch, net, inputs, targets, pool)
            if held_out < best:
                best = held_out
                weights = {key: value.clone() for key, value in net.state_dict().items()}
            record |= {"loss": total / (done - last), "held_out": held_out, "best": best}
            record["seconds"] = seconds + time.monotonic() - began
            total, last = 0.0, done
            state = {
                "name": name,
                "seed": seed,
                "step": done,
                "best": best,
                "seconds": record["seconds"],
                "merges": merges,
                "net": net.state_dict(),
                "weights": weights,
                "optimiser": optimiser.state_dict(),
            }
            part = file.with_suffix(".part")
            torch.save(state, part)
            part.replace(file)
            with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        if progress is not None:
            progress(record)


def publish(
    text: Path,
    out: Path,
    *,
    config: TrainConfig | None = None,
    name: str = "storybook",
    source: str = "",
    units: int = 48,
) -> dict[str, Any]:
    """Write model file, card and loss curve from the checkpoints and the log in ``out``.

    The weights are the best ones by validation loss. Returns the card's figures, which are also
    the file's ``meta``; ``units`` is the number of validation windows on which the cost of each
    unit of the integer engine is measured.
    """
    torch = _torch()
    config = config or TrainConfig()
    state = torch.load(out / "ternary.pt", weights_only=True)
    tokenizer = bpe.Tokenizer(tuple((a, b) for a, b in state["merges"]))
    contents = _read(text)
    corpus = Corpus.load(contents, tokenizer=tokenizer)
    log = card.read_log(out / "log.jsonl")
    settings = {key: value for key, value in asdict(config).items() if key not in _NOT_SETTINGS}
    meta: dict[str, Any] = {
        "name": name,
        "source": source,
        "seed": state["seed"],
        "text": {
            "file": Path(text).name,
            "sha256": hashlib.sha256(contents.encode()).hexdigest(),
            "training_characters": corpus.characters[0],
            "held_out_characters": corpus.characters[1],
            "training_tokens": len(corpus.stream),
        },
        "settings": settings,
        "phases": card.phases(log),
        "ternary": card.summary(log, "ternary", config.batch * config.model.context),
    }
    if (out / "float.pt").exists():
        meta["float_twin"] = card.summary(log, "float", config.batch * config.model.context)
        publish_twin(out, config=config, name=name, source=source)
    weights = {key: value.numpy() for key, value in state["weights"].items()}
    model, path = trained_model(config.model, weights), out / f"{name}.atx"
    packed.save(path, packed.ModelFile(model, tokenizer, meta))
    card.plot(log, out / f"{name}-loss.png")
    return measure(path, text, units=units)


def publish_twin(out: Path, *, config: TrainConfig, name: str, source: str = "") -> Path:
    """Write ``<name>-float.atx``, the float twin, from its checkpoint and the log in ``out``."""
    state = _torch().load(out / "float.pt", weights_only=True)
    weights = {key: value.numpy() for key, value in state["weights"].items()}
    log = card.read_log(out / "log.jsonl")
    meta = {
        "name": f"{name}-float",
        "source": source,
        "seed": state["seed"],
        "float_twin": card.summary(log, "float", config.batch * config.model.context),
    }
    path = out / f"{name}-float.atx"
    model = trained_model(config.model, weights, quantise=False)
    tokenizer = bpe.Tokenizer(tuple((a, b) for a, b in state["merges"]))
    packed.save(path, packed.ModelFile(model, tokenizer, meta))
    return path


def measure(
    path: Path,
    text: Path,
    *,
    units: int = 48,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a published model again, and write the figures into its file and its card.

    ``text`` is the one it was trained on; ``units`` as for :func:`publish`, ``progress`` as for
    :func:`.evaluate.evaluate`. Needs no torch. Returns the card's figures. Raises
    :class:`TrainError` for another text.
    """
    file = packed.load(path)
    if hashlib.sha256(_read(text).encode()).hexdigest() != file.meta["text"]["sha256"]:
        raise TrainError(f"{text} is not the text that {path.name} was trained on")
    figures = evaluate(path, text, units=units, progress=progress)
    meta = dict(file.meta) | {"evaluation": figures}
    packed.save(path, packed.ModelFile(file.model, file.tokenizer, meta))
    path.with_suffix(".md").write_text(card.text(path), encoding="utf-8")
    return meta


_NOT_SETTINGS = ("model", "steps", "float_steps", "learning_rate", "decay", "threads")


def trained_model(
    config: ModelConfig, weights: Mapping[str, NDArray[np.float32]], *, quantise: bool = True
) -> Model:
    """The model that a quantised network computes with: trits, int8 embedding and scales.

    ``weights`` are the latent float weights by the network's own names.  Without ``quantise`` it is
    that of the float twin: projections stay as they are, for whoever quantises them.
    """
    tensors: dict[str, Any] = {}
    for name in expected_shapes(config):
        part = name.removesuffix(".weight")
        _, _, rest = part.partition("blk.")
        weight = weights[f"layers.{rest}" if rest else part]
        if name == "token_embd.weight":
            scale = np.float32(max(np.abs(weight).max(), 1e-5)) / np.float32(127)
            tensors[name] = Embedding(np.rint(weight / scale).astype(np.int8), float(scale))
        elif weight.ndim == 1 or not quantise:
            tensors[name] = weight.astype(np.float32)
        else:
            scale = np.float32(max(np.abs(weight).mean(dtype=np.float32), 1e-5))
            trits = np.clip(np.rint(weight / scale), -1, 1).astype(np.int8)
            tensors[name] = Ternary(trits, float(scale))
    return Model.from_tensors(config, tensors)


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise TrainError("training needs torch: pip install 'atriplex[train]'") from None
    return torch


def _read(text: Path) -> str:
    try:
        return Path(text).read_text(encoding="utf-8")
    except OSError as error:
        raise TrainError(f"{text}: {error.strerror}") from None


def _held_out(torch: Any, corpus: Corpus, length: int) -> tuple[Any, Any]:
    """All validation windows as two arrays; -100 marks targets that do not count."""
    pairs = list(corpus.windows(length))
    inputs = np.zeros((len(pairs), length), np.int64)
    targets = np.full((len(pairs), length), -100, np.int64)
    for row, (tokens, nexts) in enumerate(pairs):
        inputs[row, : len(tokens)] = tokens
        targets[row, : len(nexts)] = nexts
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _loss(torch: Any, net: Any, inputs: Any, targets: Any, pool: ThreadPoolExecutor) -> float:
    """Mean cross entropy over all targets, in nats."""

    def part(rows: tuple[Any, Any]) -> float:
        with torch.no_grad():
            logits = net(rows[0]).flatten(0, 1)
            return torch.nn.functional.cross_entropy(
                logits, rows[1].flatten(), reduction="sum"
            ).item()

    parts = pool.map(part, zip(inputs.split(16), targets.split(16), strict=True))
    return sum(parts) / int((targets >= 0).sum())
