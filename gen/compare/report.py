# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, as a table, JSON and pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...rtl import cache
from ...rtl.errors import AtriplexError
from ..describe import markdown
from . import pictures

Row = dict[str, Any]
SOMETIMES = {"label": "", "rows": 1, "RAM": 0, "memory bits": 0}
"""Columns that are shown where a row has another value."""
ORDER = (
    *("block", "label", "weights", "activations", "rows", "LUT4", "FF", "RAM", "DSP", "MHz"),
    *("um2", "NAND2", "cells MHz", "memory bits", "pJ", "cycles a token", "bits a weight"),
    *("perplexity", "change"),
)


def columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the columns that say something of these rows."""
    silent = {name for name, plain in SOMETIMES.items() if all(row[name] == plain for row in rows)}
    if "rows" in silent:
        silent.add("cycles a token")
    return tuple(name for name in ORDER if name not in silent)


def shown(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Columns and cells of the table; costs are for a product a cycle."""
    names = columns(rows)
    return names, [[row[name] for name in names] for row in rows]


def write(rows: Sequence[Row], out: Path, family: str, board: str, library: str) -> str:
    """``report.json``, ``.md`` and pictures in ``out``; a sentence for what is not there.

    ``out`` appears whole or not at all.
    """
    missing, names = "", columns(rows)
    with cache.write_whole(out) as folder:
        (folder / "report.json").write_text(json.dumps(list(rows), indent=1) + "\n")
        parts = [
            f"# {family}, for a product a cycle",
            (
                f"LUT4, FF, DSP, MHz: {board}, the block alone, routed. um2, NAND2, cells MHz: "
                f"{library}, without wires and without memories, whose bits are given. pJ: an "
                "estimate from how often nets switch. "
                "Perplexity: of the shipped float model on its own texts, with weights and "
                "activations in these formats."
            ),
            markdown([{name: row[name] for name in names} for row in rows]),
        ]
        (folder / "report.md").write_text("\n\n".join(parts))
        try:
            pictures.draw(rows, folder, f"{family}: {library}, at the same throughput")
        except AtriplexError as error:
            missing = str(error)
    return missing
