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


def picture(found: Sequence[Row], path: Path, title: str) -> None:
    """Area against what the model loses, a point for each row; needs matplotlib."""
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise AtriplexError(
            "the picture needs matplotlib; get it with: pip install 'atriplex[train]'"
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(9, 6))
    for name in dict.fromkeys(row["block"] for row in found):
        mine = [row for row in found if row["block"] == name]
        axes.scatter(
            [row["NAND2"] or row["um2"] for row in mine], [_loss(row) for row in mine], label=name
        )
    for row in found:
        axes.annotate(
            row["weights"]
            if row["weights"] == row["activations"]
            else f"{row['weights']} x {row['activations']}",
            (row["NAND2"] or row["um2"], _loss(row)),
            textcoords="offset points",
            xytext=(4, 4),
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_xlabel("NAND2 equivalents a product a cycle")
    axes.set_ylabel("perplexity, % above float32")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def _loss(row: Row) -> float:
    return float(row["change"].split()[0])
