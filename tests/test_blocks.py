# SPDX-License-Identifier: Apache-2.0
"""What every block must do; the tests run on whatever blocks are found."""

import dataclasses
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
from atriplex.rtl import interface
from atriplex.sim.run import simulate

ROOT = Path(__file__).parents[1]
QUICK = {"tiny": 4000, "default": 1000}
"""Transfers of the presets that ``make test`` simulates; ``make test-all`` does all of them."""
WHOLE = 10_000
"""Transfers that every preset must take."""
FEW = {"engine": 1000}
"""Transfers of blocks that take thousands of cycles for each; tests/test_engine.py has texts."""
SLOW = {("engine", "default"), ("micro_engine", "default")}
CASES = [(name, preset) for name in blocks.names() for preset in blocks.find(name).presets]
FAMILY = {name: block.family for name, block in blocks.found().items()}


@functools.cache
def design_of(name: str, preset: str):
    block = blocks.find(name)
    return emit(block, block.config.preset(preset))


def golden_of(name: str):
    import importlib

    return importlib.import_module(blocks.find(name).module.replace(".rtl.", ".sim."))


def runs() -> Iterator[Any]:
    """Block, preset and transfers of every run, and which of them are long."""
    for name, preset in CASES:
        counts = {FEW.get(name, WHOLE)}
        if preset in QUICK and (name, preset) not in SLOW:
            counts.add(quick := FEW.get(name, QUICK[preset]))
        else:
            quick = None
        for count in sorted(counts):
            yield pytest.param(name, preset, count, marks=[pytest.mark.long] * (count != quick))


@pytest.mark.parametrize(("name", "preset", "transfers"), list(runs()))
def test_rtl_agrees_with_golden_and_cycle_model(name: str, preset: str, transfers: int) -> None:
    outcome = simulate(design_of(name, preset), transfers=transfers)
    assert list(outcome.complaints()) == []
    assert all(mode["transfers"] > 0 and mode["outputs"] > 0 for mode in outcome.modes)


@pytest.mark.skipif(not shutil.which("iverilog"), reason="needs Icarus (apt-get install iverilog)")
@pytest.mark.parametrize("name", blocks.names())
def test_rtl_agrees_with_golden_model_in_icarus(name: str) -> None:
    preset = (
        "tiny" if "tiny" in blocks.find(name).presets else next(iter(blocks.find(name).presets))
    )
    outcome = simulate(design_of(name, preset), transfers=1000, simulator="icarus")
    assert list(outcome.complaints()) == []


@pytest.mark.parametrize("name", blocks.names())
def test_stimulus_has_enough_transfers_and_fits_the_ports(name: str) -> None:
    for preset in blocks.find(name).presets:
        component, config_class = interface.load(blocks.find(name).module)
        config = config_class.preset(preset)
        inputs = golden_of(name).stimulus(config, np.random.default_rng(5), 1000)
        outputs = golden_of(name).golden(config, inputs)
        for stream in interface.streams_of(component, config):
            transfers = (inputs if stream.direction == "in" else outputs)[stream.name]
            assert set(transfers) == {field.name for field in stream.fields}
            for field in stream.fields:
                values = transfers[field.name]
                assert values.shape[1:] == field.dims
                low = -(1 << field.width - 1) if field.signed else 0
                assert values.min(initial=0) >= low
                assert values.max(initial=0) < 1 << field.width - field.signed
        busiest = max(len(next(iter(stream.values()))) for stream in inputs.values())
        assert busiest >= 1000 or config.values().get("resident")


@pytest.mark.parametrize("name", blocks.names())
def test_a_text_names_its_parameters_and_no_paths(name: str) -> None:
    for preset in blocks.find(name).presets:
        design = design_of(name, preset)
        assert str(ROOT) not in design.text
        for parameter, value in design.config.items():
            assert f"//   {parameter} = {value}\n" in design.text


@pytest.mark.parametrize("name", blocks.names())
def test_every_block_has_its_page_and_contract(name: str) -> None:
    block = blocks.find(name)
    page = ROOT / "docs" / "blocks" / f"{name}.md"
    assert page.exists(), f"write {page.relative_to(ROOT)}"
    assert block.summary.endswith(".")
    assert block.papers
    contract = block.component.__doc__ or ""
    for word in ("Latency", "Source", "Members"):
        assert word.lower() in contract.lower(), f"the contract of {name} does not state {word}"
    for field in dataclasses.fields(block.config):
        assert field.metadata["help"]


def test_names_of_shared_modules_tell_configs_apart() -> None:
    from atriplex.rtl._add_select import AddSelect, AddSelectConfig
    from atriplex.rtl._once import module_name

    assert module_name(AddSelect, AddSelectConfig()) == "add_select"
    assert module_name(AddSelect, AddSelectConfig(width=9)) == "add_select__width_9"


@pytest.mark.parametrize("name", blocks.names())
def test_generated_parts_of_the_page_are_up_to_date(name: str) -> None:
    import json

    from atriplex.gen import pages

    path = ROOT / "docs" / "blocks" / f"{name}.md"
    figures = json.loads(pages.FIGURES.read_text())
    assert pages.filled(blocks.find(name), path.read_text(), figures) == path.read_text(), (
        "make docs"
    )


@pytest.mark.parametrize("name", blocks.names())
def test_fusesoc_reads_the_core(name: str, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    block = blocks.find(name)
    design_of(name, next(iter(block.presets))).write(tmp_path / "cores")
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "fusesoc", "--cores-root", tmp_path / "cores"),
            *("run", "--setup", "--target", "lint", "--work-root", tmp_path / "work"),
            f"atriplex:{block.family}:{name}",
        ],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "work").rglob(f"{name}.v"))
