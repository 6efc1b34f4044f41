# SPDX-License-Identifier: Apache-2.0
"""Pictures of a comparison, with matplotlib: what a row costs against what it gives."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...rtl.errors import AtriplexError
from ..measure import BIT_UM2

Row = dict[str, Any]
Point = tuple[float, float]
Series = dict[str, list[Point]]
LEAST, MOST = 0.1, 1000.0
"""Losses between which the picture tells them apart, in per cent."""
MARKERS = "osD^vP*Xdh<>p"
AREA = f"NAND2 equivalents a product a cycle, memories at {BIT_UM2:g} um2 a bit"


def draw(rows: Sequence[Row], folder: Path, title: str) -> None:
    """``report.png``, and ``rows.png`` and ``density.png`` where rows share tables."""
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise AtriplexError(
            "the picture needs matplotlib; get it with: pip install 'atriplex[train]'"
        ) from None
    matplotlib.use("agg")
    loss(rows, folder / "report.png", title)
    if any(len(points) > 1 for points in area_by_rows(rows).values()):
        sharing(rows, folder / "rows.png", title)
        density(rows, folder / "density.png", title)


def area(row: Row) -> float:
    """For a product a cycle: NAND2 equivalents, or um2 where the library has no NAND2."""
    return um2(row) * row["NAND2"] / row["um2"] if row["NAND2"] else um2(row)


def um2(row: Row) -> float:
    """For a product a cycle, with memories, which the table's areas leave out."""
    return row["um2"] + BIT_UM2 * row["memory bits"]


def loss(rows: Sequence[Row], path: Path, title: str) -> None:
    """Area against what the model loses, a point for each row."""
    figure, axes = _axes((10, 6.5))
    points = [(area(row), min(max(_loss(row), LEAST), MOST)) for row in rows]
    names = list(dict.fromkeys(row["block"] for row in rows))
    for name, marker in zip(names, itertools.cycle(MARKERS), strict=False):
        mine = [point for row, point in zip(rows, points, strict=True) if row["block"] == name]
        axes.scatter(*zip(*mine, strict=True), label=name, marker=marker)
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
    for cost, lost in sorted(points):
        if lost < best:
            best = lost
            front.append((cost, lost))
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color="0.6", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(AREA)
    axes.set_ylabel(f"perplexity, % above float32 ({LEAST:g} or less, {MOST:g} or more)")
    _save(figure, axes, path, title)


def sharing(rows: Sequence[Row], path: Path, title: str) -> None:
    """Area against the rows that share a table; where tables become the smaller is marked."""
    figure, axes = _axes((9, 6))
    series = area_by_rows(rows)
    for (name, points), marker in zip(series.items(), itertools.cycle(MARKERS), strict=False):
        axes.plot(*zip(*points, strict=True), label=name, marker=marker, linewidth=1)
    found = list(crossovers(series))
    if not found:
        axes.annotate("no curve falls below another", (0.02, 0.02), xycoords="axes fraction")
    for name, other, (at, cost) in found:
        axes.plot([at], [cost], marker="x", color="black", markersize=9)
        axes.annotate(
            f"{at:.1f} rows: {name} below {other}",
            (at, cost),
            textcoords="offset points",
            xytext=(6, 6),
            fontsize=6.5,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("rows that share a table")
    axes.set_ylabel(AREA)
    _save(figure, axes, path, title)


def area_by_rows(rows: Sequence[Row]) -> Series:
    """Area at each number of rows, by block, label and formats."""
    found: Series = {}
    for row in rows:
        found.setdefault(_series(row), []).append((float(row["rows"]), float(area(row))))
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}


def crossovers(series: Series) -> Iterator[tuple[str, str, Point]]:
    """Where one curve falls below another on the way to more rows, on logarithmic axes."""
    import numpy as np

    for name, other in itertools.permutations(series, 2):
        mine, its = (dict(series[each]) for each in (name, other))
        at = sorted(mine.keys() & its.keys())
        for low, high in itertools.pairwise(at):
            before = np.log(mine[low] / its[low])
            after = np.log(mine[high] / its[high])
            if before > 0 >= after:
                part = before / (before - after)
                x = np.exp((1 - part) * np.log(low) + part * np.log(high))
                y = np.exp((1 - part) * np.log(mine[low]) + part * np.log(mine[high]))
                yield name, other, (float(x), float(y))


def density(rows: Sequence[Row], path: Path, title: str) -> None:
    """Products a second and area against bits of a weight, by block, label and activations."""
    figure, axes = _axes((9, 6))
    best: dict[str, dict[float, float]] = {}
    for row in rows:
        if not row["cells MHz"]:
            continue
        name = " ".join(filter(None, (row["block"], row["label"], f"x {row['activations']}")))
        points, bits = best.setdefault(name, {}), float(row["bits a weight"])
        points[bits] = max(points.get(bits, 0.0), row["cells MHz"] / um2(row))
    for (name, points), marker in zip(best.items(), itertools.cycle(MARKERS), strict=False):
        axes.plot(
            *zip(*sorted(points.items()), strict=True), label=name, marker=marker, linewidth=1
        )
    axes.set_yscale("log")
    axes.set_xlabel("bits of a weight")
    axes.set_ylabel("tera products a second and mm2 of cells")
    _save(figure, axes, path, title)


def _series(row: Row) -> str:
    formats = f"{row['weights']} x {row['activations']}"
    return " ".join(filter(None, (row["block"], row["label"], formats)))


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    return pyplot.subplots(figsize=size)


def _save(figure: Any, axes: Any, path: Path, title: str) -> None:
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def _loss(row: Row) -> float:
    return float(row["change"].split()[0])
