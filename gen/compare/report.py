# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, as a table, JSON and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...rtl import cache
from ...rtl.errors import AtriplexError
from ..describe import markdown

Row = dict[str, Any]
SHOWN = (
    *("block", "weights", "activations", "LUT4", "FF", "DSP", "MHz"),
    *("um2", "NAND2", "cells MHz", "pJ", "bits a weight", "perplexity", "change"),
)


LEAST, MOST = 0.1, 1000.0
"""Losses between which the picture tells them apart, in per cent."""


def shown(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Columns and cells of the table; costs are for a product a cycle."""
    return SHOWN, [[row[name] for name in SHOWN] for row in rows]


def write(rows: Sequence[Row], out: Path, family: str, board: str, library: str) -> str:
    """``report.json``, ``.md`` and ``.png`` in ``out``; a sentence for what is not there.

    ``out`` appears whole or not at all.
    """
    missing = ""
    with cache.write_whole(out) as folder:
        (folder / "report.json").write_text(json.dumps(list(rows), indent=1) + "\n")
        parts = [
            f"# {family}, for a product a cycle",
            (
                f"LUT4, FF, DSP, MHz: {board}, the block alone, routed. um2, NAND2, cells MHz: "
                f"{library}, without wires. pJ: an estimate from how often nets switch. "
                "Perplexity: of the shipped float model on its own texts, with weights and "
                "activations in these formats."
            ),
            markdown([{name: row[name] for name in SHOWN} for row in rows]),
        ]
        (folder / "report.md").write_text("\n\n".join(parts))
        try:
            picture(rows, folder / "report.png", f"{family}: {library}, at the same throughput")
        except AtriplexError as error:
            missing = str(error)
    return missing


def picture(rows: Sequence[Row], path: Path, title: str) -> None:
    """Area against what the model loses, a point for each row; needs matplotlib."""
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise AtriplexError(
            "the picture needs matplotlib; get it with: pip install 'atriplex[train]'"
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(10, 6.5))
    points = [(row["NAND2"] or row["um2"], min(max(_loss(row), LEAST), MOST)) for row in rows]
    markers = "osD^vP*Xdh<>p"
    names = list(dict.fromkeys(row["block"] for row in rows))
    for number, name in enumerate(names):
        mine = [point for row, point in zip(rows, points, strict=True) if row["block"] == name]
        axes.scatter(*zip(*mine, strict=True), label=name, marker=markers[number % len(markers)])
    for number, (row, point) in enumerate(zip(rows, points, strict=True)):
        same = row["weights"] == row["activations"]
        axes.annotate(
            row["weights"] if same else f"{row['weights']} x {row['activations']}",
            point,
            textcoords="offset points",
            xytext=(5, (4, -9)[number % 2]),
            fontsize=6.5,
        )
    best, front = MOST * 2, []
    for area, loss in sorted(points):
        if loss < best:
            best = loss
            front.append((area, loss))
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color="0.6", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("NAND2 equivalents a product a cycle")
    axes.set_ylabel(f"perplexity, % above float32 ({LEAST:g} or less, {MOST:g} or more)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def _loss(row: Row) -> float:
    return float(row["change"].split()[0])
