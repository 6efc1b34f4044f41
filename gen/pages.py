# SPDX-License-Identifier: Apache-2.0
"""Fill the generated parts of the blocks' pages: ``make docs``.

A page is written by hand around two marked places; what stands between the marks is replaced:

``<!-- generated:parameters -->`` ... ``<!-- end -->``
    parameters, presets, derived numbers and ports, from the config and the component
``<!-- generated:figures -->`` ... ``<!-- end -->``
    the block's rows of ``docs/benchmarks.json``, which ``make bench`` writes
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..rtl.errors import AtriplexError
from . import blocks
from .blocks import Block
from .describe import markdown, page
from .verilog import emit

FIGURES = Path(__file__).parents[1] / "docs" / "benchmarks.json"


def filled(block: Block, text: str, figures: Mapping[str, list[dict[str, Any]]]) -> str:
    """The page ``text`` of ``block`` with its generated parts brought up to date."""
    config = block.config()
    parts = {
        "parameters": page(block, config, emit(block, config)),
        "figures": _figures(block, figures),
    }
    for name, part in parts.items():
        marked = re.compile(rf"(<!-- generated:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(text):
            raise AtriplexError(f"the page of {block.name} has no place <!-- generated:{name} -->")
        text = marked.sub(lambda m, part=part: f"{m[1]}\n{part}\n{m[2]}", text)
    return text


def _figures(block: Block, figures: Mapping[str, list[dict[str, Any]]]) -> str:
    tables = []
    for name in (
        "correctness",
        "fpga",
        "asic",
        "sharing",
        "selection",
        "simd",
        "lookup",
        "weight_bits",
    ):
        rows = [
            {key: value for key, value in row.items() if key != "block"}
            for row in figures.get(name, [])
            if row["block"] == block.name
        ]
        if rows:
            tables.append(f"`python -m atriplex.gen.bench --only {name}`:\n\n{markdown(rows)}")
    return "\n".join(tables) or "Not measured yet: run `make bench`.\n"


def main() -> None:
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for folder in map(Path, sys.argv[1:]):
        for block in blocks.found().values():
            path = folder / f"{block.name}.md"
            path.write_text(filled(block, path.read_text(), figures))


if __name__ == "__main__":
    main()
