# SPDX-License-Identifier: Apache-2.0
"""Waves: what is decoded is what was sent, and the limits hold.  Read back with pyvcd."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atriplex.gen import blocks, verilog
from atriplex.gen.verilog import Design
from atriplex.rtl.errors import AtriplexError
from atriplex.rtl.interface import Field, Stream
from atriplex.sim import waves
from atriplex.sim.mac import ternary_dot
from atriplex.sim.run import SIMULATORS, simulate
from vcd.reader import TokenKind, tokenize

TRANSFERS, SEED, LANES = 60, 5, 4
Frame = dict[str, Any]


@dataclass
class Run:
    """The raw waves of a small block under one simulator."""

    design: Design
    raw: Path
    cycles: list[int]

    def write(self, folder: Path, **limits: Any) -> Path:
        streams = self.design.streams
        return waves.write(self.raw, folder, self.design.top, streams, **limits)[0]


@pytest.fixture(scope="module", params=SIMULATORS)
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "icarus" and not shutil.which("iverilog"):
        pytest.skip("iverilog is not installed")
    block = blocks.find("ternary_dot")
    design = verilog.emit(block, block.config.preset("tiny"))
    outcome = simulate(
        design,
        seed=SEED,
        transfers=TRANSFERS,
        simulator=request.param,
        waves=True,
    )
    assert outcome.passed
    return Run(design, outcome.folder / "dump.vcd", [mode["cycles"] for mode in outcome.modes])


def frames(vcd: Path) -> list[Frame]:
    """All values, by full name, just before each rising clock edge or end of a window."""
    names, values, path, found, at = {}, {}, [], [], {}
    with vcd.open("rb") as file:
        for token in tokenize(file):
            if token.kind is TokenKind.SCOPE:
                path.append(token.scope.ident)
            elif token.kind is TokenKind.UPSCOPE:
                path.pop()
            elif token.kind is TokenKind.VAR:
                var = token.var
                names.setdefault(var.id_code, []).append(".".join([*path, var.reference]))
            elif token.kind is TokenKind.CHANGE_TIME:
                at = dict(values)
            elif token.kind is TokenKind.CHANGE_VECTOR:
                values[token.vector_change.id_code] = token.vector_change.value
            elif token.kind is TokenKind.CHANGE_SCALAR:
                code, value = token.scalar_change
                rises = value.lower() in "1x" and values.get(code) == "0"
                values[code] = value
                if rises and "ternary_dot.clk" in names[code]:
                    found.append({
                        name: at[key] for key in names if key in at for name in names[key]
                    })
    return found


def scopes(vcd: Path) -> set[str]:
    """Every scope that holds a variable."""
    path, found = [], set()
    with vcd.open("rb") as file:
        for token in tokenize(file):
            if token.kind is TokenKind.SCOPE:
                path.append(token.scope.ident)
            elif token.kind is TokenKind.UPSCOPE:
                path.pop()
            elif token.kind is TokenKind.VAR:
                found.add(".".join(path))
    return found


def test_decoded_lanes_are_the_stimulus_and_the_golden_sums(run: Run, tmp_path: Path):
    taken = {"i": [], "o": []}
    for frame in frames(run.write(tmp_path)):
        for stream, rows in taken.items():
            if frame[f"streams.{stream}.transfer"] == "1":
                assert frame[f"streams.{stream}.index"] == len(rows) % TRANSFERS
                rows.append(frame)

    config = blocks.find("ternary_dot").config.preset("tiny")
    sent = ternary_dot.stimulus(config, np.random.default_rng(SEED), TRANSFERS)
    sums = ternary_dot.golden(config, sent)["o"]["sum"]
    modes = 2
    assert len(taken["i"]) == len(taken["o"]) == modes * TRANSFERS
    for name, width in (("acts", 4), ("weights", 2)):
        lanes = [[row[f"streams.i.{name}[{lane}]"] for lane in range(LANES)] for row in taken["i"]]
        expected = np.tile(sent["i"][name], (modes, 1)) & (1 << width) - 1
        assert lanes == expected.tolist()
    assert [row["streams.o.sum"] for row in taken["o"]] == (np.tile(sums, modes) & 0x7F).tolist()


def test_cycles_are_those_of_the_bench(run: Run, tmp_path: Path):
    last: list[int] = []
    before = 0
    for frame in frames(run.write(tmp_path)):
        cycle = frame["streams.cycle"]
        assert cycle in (0, before + 1), "counts every edge, 0 in reset"
        if frame["streams.o.transfer"] == "1":
            last[-1] = cycle
        elif cycle == 1:
            last.append(0)
        before = cycle
    assert last == run.cycles


def test_window_keeps_its_cycles_of_every_mode_and_their_values(run: Run, tmp_path: Path):
    (tmp_path / "all").mkdir()
    everything = [f for f in frames(run.write(tmp_path / "all")) if 11 <= f["streams.cycle"] <= 14]
    vcd = run.write(tmp_path, window=(11, 14))
    within = [frame for frame in frames(vcd) if frame["streams.cycle"] != "x"]
    assert [frame["streams.cycle"] for frame in within] == [11, 12, 13, 14] * 2
    assert within == everything
    assert vcd.stat().st_size < (tmp_path / "all" / vcd.name).stat().st_size / 3


def test_scope_keeps_what_is_below_it_and_the_streams(run: Run, tmp_path: Path):
    (tmp_path / "all").mkdir()
    own = {"ternary_dot", "streams", "streams.i", "streams.o"}
    everything = scopes(run.write(tmp_path / "all"))
    assert own | {"ternary_dot.core", "ternary_dot.core.pipeline"} < everything
    kept = scopes(run.write(tmp_path, scope="core.tree"))
    assert kept - own == {s for s in everything if s.startswith("ternary_dot.core.tree")} != set()
    with pytest.raises(AtriplexError, match=r"no scope 'core.tre'; is it core.tree\?"):
        run.write(tmp_path, scope="core.tre")


def test_save_file_groups_streams_and_names_signals_of_the_vcd(run: Run, tmp_path: Path):
    vcd = run.write(tmp_path)
    lines = vcd.with_suffix(".gtkw").read_text().splitlines()
    assert lines[0] == f'[dumpfile] "{vcd.name}"'
    assert [line for line in lines if line.startswith("-")] == [
        *("-i", "-acts", "-acts", "-weights", "-weights", "-i", "-o", "-o")
    ]
    signed = lines.index("streams.i.acts[0][3:0]")
    assert lines[signed - 1] == "@420", "decimal, signed, right-justified"
    known = set(frames(vcd)[-1])
    shown = [line for line in lines if line.startswith("streams.")]
    assert len(shown) == 1 + 4 + 2 * LANES + 4 + 1
    for name in shown:
        plain = name.rpartition("[")[0] if name.endswith(":0]") else name
        assert plain in known


def test_of_long_fields_the_first_lanes_are_decoded_and_the_rest_is_said(tmp_path: Path):
    acts = Field("acts", 8, True, (3, 50), 0)
    raw = tmp_path / "raw.vcd"
    value = "".join(f"{number:08b}" for number in reversed(range(150)))
    raw.write_text(
        "$timescale 1ps $end $scope module top $end\n"
        "$var wire 1 c clk $end $var wire 1 r rst $end $var wire 1 v i_valid $end\n"
        "$var wire 1 y i_ready $end $var wire 1200 p i_payload_acts [1199:0] $end\n"
        "$upscope $end $enddefinitions $end\n"
        f"#0\n0c\n0r\n1v\n1y\nb{value} p\n#5\n1c\n"
    )
    vcd, _ = waves.write(raw, tmp_path, "top", [Stream("i", "in", (acts,))])
    text = vcd.read_text()
    assert "$comment i.acts: the first 64 of 150 elements are decoded $end" in text
    assert text.count(" acts[") == waves.MOST == 64
    code = text[text.index(" acts[1][13]") - 4 :].split()[0]
    assert f"b{63:08b} {code}\n" in text
