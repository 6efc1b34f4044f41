# SPDX-License-Identifier: Apache-2.0
"""Training of the ternary model and of its float twin.

Every step is a function of ``(seed, step)``, so that a run that was stopped and resumed sees the
same windows as one that was not. The learning rate rises during ``warmup`` steps, stays, and falls
to zero over the last ``decay`` of the steps; ``steps`` may therefore be changed on resuming as long
as the fall has not begun.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sim.engine.model import Embedding, Model, ModelConfig, Ternary, expected_shapes
from .corpus import Corpus

Progress = Callable[[dict[str, Any]], None]


class TrainError(RuntimeError):
    """Training cannot start or go on; one sentence."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained and how; the defaults are those of the shipped model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    steps: int = 5600
    float_steps: int = 2400
    batch: int = 16
    learning_rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.35
    weight_decay: float = 0.1
    eval_every: int = 200
    threads: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step``, counted from 0, in a run of ``steps``."""
        fall = max(1, round(steps * self.decay))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, (steps - step) / fall)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise TrainError("training needs torch: pip install 'atriplex[train]'") from None
    return torch


def fit(
    data: Corpus,
    out: Path,
    config: TrainConfig,
    *,
    quantise: bool,
    seed: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
    tied: bool = False,
) -> dict[str, Any]:
    """Train one network and return its checkpoint.

    Writes ``out/<ternary|float>.pt`` (last state and best weights by validation loss) at every
    evaluation and appends one line a record to ``out/log.jsonl``. With ``resume`` the run goes on
    from the checkpoint where there is one.
    """
    torch = _torch()
    from ._net import Net

    name = "ternary" if quantise else "float"
    steps = config.steps if quantise else config.float_steps
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    net = Net(config.model, quantise=quantise, tied=tied)
    matrices = [w for w in net.parameters() if w.ndim == 2]
    vectors = [w for w in net.parameters() if w.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    file = out / f"{name}.pt"
    first, best, weights, seconds = 0, float("inf"), None, 0.0
    if resume and file.exists():
        state = torch.load(file, weights_only=True)
        if state["merges"] != [list(pair) for pair in data.tokenizer.merges]:
            raise TrainError(f"{file} was trained with another vocabulary, so it cannot go on")
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        first, best, weights = state["step"], state["best"], state["weights"]
        seconds = state["seconds"]
    length = config.model.context
    inputs, targets = _padded(torch, data, length)
    total, began, last = 0.0, time.monotonic(), first
    state = {}
    for step in range(first, steps):
        rate = config.rate(step, steps)
        falling = step >= steps - round(steps * config.decay)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.param_groups[0]["weight_decay"] = 0.0 if falling else config.weight_decay
        windows = torch.from_numpy(data.batch(seed, step, config.batch, length))
        logits = net(windows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        total += loss.item()
        done = step + 1
        record: dict[str, Any] = {"model": name, "step": done, "steps": steps, "rate": rate}
        if done % config.eval_every == 0 or done == steps:
            held_out = _loss(torch, net, inputs, targets, config.batch)
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
                "merges": [list(pair) for pair in data.tokenizer.merges],
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
    return state or torch.load(file, weights_only=True)


def _padded(torch: Any, data: Corpus, length: int) -> tuple[Any, Any]:
    """All validation windows as two arrays; -100 marks targets that do not count."""
    pairs = list(data.windows(length))
    inputs = np.zeros((len(pairs), length), np.int64)
    targets = np.full((len(pairs), length), -100, np.int64)
    for row, (tokens, nexts) in enumerate(pairs):
        inputs[row, : len(tokens)] = tokens
        targets[row, : len(nexts)] = nexts
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _loss(torch: Any, net: Any, inputs: Any, targets: Any, batch: int) -> float:
    """Mean cross entropy over all targets, in nats."""
    total = 0.0
    with torch.no_grad():
        for at in range(0, len(inputs), batch):
            logits = net(inputs[at : at + batch])
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets[at : at + batch].flatten(), reduction="sum"
            ).item()
    return total / int((targets >= 0).sum())


def ternary_model(config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> Model:
    """The model that a quantised network computes with: trits, int8 embedding and scales.

    ``weights`` are the latent float weights by the network's own names.
    """
    tensors: dict[str, Any] = {}
    for name in expected_shapes(config):
        part = name.removesuffix(".weight")
        _, _, rest = part.partition("blk.")
        weight = weights[f"layers.{rest}" if rest else part]
        if name == "token_embd.weight":
            scale = np.float32(max(np.abs(weight).max(), 1e-5)) / np.float32(127)
            tensors[name] = Embedding(np.rint(weight / scale).astype(np.int8), float(scale))
        elif weight.ndim == 1:
            tensors[name] = weight.astype(np.float32)
        else:
            scale = np.float32(max(np.abs(weight).mean(dtype=np.float32), 1e-5))
            trits = np.clip(np.rint(weight / scale), -1, 1).astype(np.int8)
            tensors[name] = Ternary(trits, float(scale))
    return Model.from_tensors(config, tensors)
