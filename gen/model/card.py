# SPDX-License-Identifier: Apache-2.0
"""The model card and the loss curve, from the measured data alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import corpus, packed
from .generate import Story

PROMPTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Once upon a time", {}),
    ("", {"temperature": 0.7, "top_k": 40, "seed": 1}),
    ("The little fox", {"temperature": 0.7, "top_k": 40, "seed": 2}),
)
"""Prompts and sampling of the card's examples."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a training log; of several with one model and step the last counts."""
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        records[record["model"], record["step"]] = record
    return [records[key] for key in sorted(records)]


def summary(log: Sequence[dict[str, Any]], model: str, tokens_per_step: int) -> dict[str, Any]:
    """Steps, time, and best validation result of one network."""
    records = [record for record in log if record["model"] == model]
    best = min(records, key=lambda record: record["held_out"])
    return {
        "steps": records[-1]["step"],
        "tokens": records[-1]["step"] * tokens_per_step,
        "seconds": round(records[-1]["seconds"]),
        "best_step": best["step"],
        "perplexity": math.exp(best["held_out"]),
        "training_perplexity": math.exp(records[-1]["loss"]),
    }


def phases(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stretches of a log that were planned together: a resumed run may have had a new plan."""
    found: list[dict[str, Any]] = []
    for record in log:
        last = found[-1] if found else {}
        if (last.get("network"), last.get("planned")) != (record["model"], record["steps"]):
            same = last.get("network") == record["model"]
            last = {
                "network": record["model"],
                "after_step": last["to_step"] if same else 0,
                "planned": record["steps"],
                "highest_rate": 0.0,
            }
            found.append(last)
        last["to_step"] = record["step"]
        last["highest_rate"] = max(last["highest_rate"], record["rate"])
        last["last_rate"] = record["rate"]
    return found


def plot(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss against steps, training and validation, of all networks in the log, as PNG."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for colour, model in enumerate(sorted({record["model"] for record in log}, reverse=True)):
        records = [record for record in log if record["model"] == model]
        steps = [record["step"] for record in records]
        for key, style, label in (("held_out", "-", "held out"), ("loss", ":", "training")):
            axes.plot(
                steps,
                [record[key] for record in records],
                style,
                color=f"C{colour}",
                label=f"{model}, {label}",
            )
    axes.set(xlabel="step", ylabel="cross entropy, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def text(path: Path) -> str:
    """The card of a packed file whose ``meta`` came from :func:`.train.publish`."""
    file = packed.load(path)
    meta, config = file.meta, file.model.config
    source, measured, ternary = meta["text"], meta["evaluation"], meta["ternary"]
    twin = meta.get("float_twin")
    bits = measured["tokens_per_character"] / math.log(2)

    def row(label: str, perplexity: float) -> str:
        return f"| {label} | {perplexity:.3f} | {math.log(perplexity) * bits:.3f} |"

    rows = [
        row("quantised float reference (the arithmetic of BitNet b1.58)", measured["reference"]),
        row("the same with float32 activations", measured["float_activations"]),
        row("integer golden model (what the hardware computes)", measured["integer"]),
    ]
    if twin:
        rows.insert(0, row(f"float twin, {twin['steps']} steps", twin["perplexity"]))
    costs = sorted(measured.get("units", {}).items(), key=lambda item: item[0] != "all together")
    units = "\n".join(f"| {name} | {100 * cost:+.3f} % |" for name, cost in costs)
    settings = "\n".join(f"| {key} | {value} |" for key, value in meta["settings"].items())
    sizes = "\n".join(f"| {key} | {value} |" for key, value in packed.sizes(config).items())
    runs = [f"| ternary | {_run(ternary)} |"] + ([f"| float twin | {_run(twin)} |"] if twin else [])
    phases = "\n".join(
        f"| {part['network']} | {part['after_step']} | {part['to_step']} | {part['planned']} | "
        f"{part['highest_rate']:.2g} | {part['last_rate']:.2g} |"
        for part in meta["phases"]
    )
    examples = "\n\n".join(_example(path, prompt, how) for prompt, how in PROMPTS)
    return f"""\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `atriplex train`; every figure is measured. -->
# Model card: {meta["name"]}

A decoder-only language model with ternary weights (BitNet b1.58) and a vocabulary of
{config.vocab} byte pairs, small enough to run in a simulated circuit: {config.ternary_weights:,}
ternary weights (output head included) and {config.vocab * config.dim:,} int8 embedding values. It
writes short texts in the style of old fairy tales. It knows nothing, and means nothing by what it
writes.

## Data

{meta["source"]}

`{source["file"]}`, SHA-256 `{source["sha256"]}`: {source["training_characters"]:,} characters
({source["training_tokens"]:,} tokens) for training, {source["held_out_characters"]:,} held out,
in runs of {corpus.RUN} paragraphs out of every {corpus.RUN * corpus.PERIOD}. The vocabulary was
learnt from the training part alone.
Tales that the text tells twice, in two translations, may be on both sides of the split.

## Training

| network | steps | tokens | best at step | seconds | training perplexity at the end |
|---|---|---|---|---|---|
{chr(10).join(runs)}

Of each network the weights with the best validation loss are kept; looking for them on the held-out
text makes its perplexity very slightly too good.

![loss curve]({meta["name"]}-loss.png)

The learning rate stays at its highest value and then falls linearly; a run that was resumed with
another plan has several rows. Rates are those at evaluations.

| network | after step | to step | of planned | highest rate | last rate |
|---|---|---|---|---|---|
{phases}

| setting | value |
|---|---|
| seed | {meta["seed"]} |
{settings}

## Quality

Perplexity a token and bits a character on {measured["tokens"]:,} held-out tokens, in windows of at
most {config.context} tokens, each without what came before it:

| model | perplexity | bits a character |
|---|---|---|
{chr(10).join(rows)}

What each unit of the integer engine costs: the rise of perplexity against an engine in which that
unit alone is nearly exact (first row: against the float reference). Costs below 0 are chance.

| unit | cost |
|---|---|
{units}

## Sizes

| parameter | value |
|---|---|
{sizes}

## Examples

Written by the integer golden model.

{examples}
"""


def _run(run: dict[str, Any]) -> str:
    return (
        f"{run['steps']:,} | {run['tokens']:,} | {run['best_step']:,} | {run['seconds']:,} | "
        f"{run['training_perplexity']:.2f}"
    )


def _example(path: Path, prompt: str, how: dict[str, Any]) -> str:
    written = "".join(Story(prompt, path=path, tokens=120, **how))
    manner = ", ".join(f"{key} {value}" for key, value in how.items()) or "greedy"
    whole = f"**{prompt}**{written}" if prompt else written
    quoted = "\n".join(f"> {line}".rstrip() for line in whole.split("\n"))
    return f"{manner}:\n\n{quoted}"
