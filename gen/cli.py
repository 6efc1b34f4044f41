# SPDX-License-Identifier: Apache-2.0
"""The command line: one function a command, each as thin as its options allow.

Everything but typer is imported where it is used, so that ``atriplex list`` is quick.  A command
ends with 0 only if what was asked for is true; what a user can mend is one sentence on stderr.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..rtl.errors import AtriplexError, unknown
from ._terminal import interrupt, note, progress, quiet_stdout, say_json, table, usage

if TYPE_CHECKING:
    from .blocks import Block
    from .configs import Choice
    from .verilog import Design


class Failed(AtriplexError):
    """What was asked for is not so."""

    exit_status = 1


class Commands(TyperGroup):
    """Commands in the order of this file; an unknown one is an error with the nearest name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not args[0].startswith("-") and args[0] not in self.commands:
            raise AtriplexError(unknown("command", args[0], self.commands))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="atriplex",
    cls=Commands,
    help="Generate, verify and synthesise hardware for LLM inference.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BlockName = Annotated[str, typer.Argument(metavar="BLOCK", help="a name that `list` shows")]
Preset = Annotated[str | None, typer.Option("--preset", metavar="NAME", help="a preset of it")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="one parameter, the value as YAML; repeat it"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML: parameters, with or without a preset"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else on stdout")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="where to write")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="start of all that is random")]


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        import importlib.metadata

        print(importlib.metadata.version("atriplex"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_blocks(json: Json = False) -> None:
    """All blocks: family, name, what it is, papers, presets."""
    from .blocks import found

    blocks = [
        {
            "name": block.name,
            "family": block.family,
            "summary": block.summary,
            "papers": list(block.papers),
            "presets": list(block.presets),
        }
        for block in found().values()
    ]
    if json:
        return say_json(blocks)
    keys = ("family", "name", "summary", "papers", "presets")
    table(keys, [[block[key] for key in keys] for block in blocks])


@app.command()
def show(
    block: BlockName,
    preset: Preset = None,
    settings: Settings = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Contract, parameters, presets, derived numbers and ports of a block."""
    from . import describe

    found, choice = _choose(block, preset, settings, config)
    design = _emit(found, choice)
    parts = {
        "parameters": describe.parameters(found),
        "presets": describe.presets(found),
        "derived": describe.derived(choice.config),
        "ports": describe.ports(design),
    }
    if json:
        return say_json({
            **{"name": found.name, "family": found.family, "papers": list(found.papers)},
            **{"contract": describe.contract(found), "preset": choice.preset},
            **{"config": choice.config.values(), **parts},
        })
    print(f"{found.name} ({found.family})\n\n{describe.contract(found)}\n")
    for title, rows in parts.items():
        if rows:
            table(list(rows[0]), [list(row.values()) for row in rows], title)


@app.command()
def gen(
    block: BlockName,
    preset: Preset = None,
    settings: Settings = None,
    config: ConfigFile = None,
    out: Out = None,
    force: Annotated[bool, typer.Option("--force", help="replace a folder of other files")] = False,
    json: Json = False,
) -> None:
    """Verilog, manifest and FuseSoC core of a block, into out/BLOCK unless -o says otherwise."""
    from ..rtl import cache

    found, choice = _choose(block, preset, settings, config)
    design = _emit(found, choice)
    folder = out or Path("out", found.name)
    if force and folder.is_dir():
        if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise AtriplexError(f"{folder} holds the folder you are in; name another one")
        (folder / cache.MARK).touch()
    files = design.write(folder)
    if json:
        return say_json({**design.manifest(), "folder": str(folder)})
    for file in files:
        print(file)


@app.command()
def sim(
    block: BlockName,
    preset: Preset = None,
    settings: Settings = None,
    config: ConfigFile = None,
    simulator: Annotated[str, typer.Option(help="verilator or icarus")] = "verilator",
    seed: Seed = 1,
    transfers: Annotated[int, typer.Option(min=1, help="input transfers in each mode")] = 10_000,
    modes: Annotated[str, typer.Option(help="of free and stalled, with a comma")] = "free,stalled",
    netlist: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="simulate a netlist: ice40, ecp5, gowin or a library"),
    ] = None,
    waves: Annotated[bool, typer.Option("--waves", help="write VCD and GTKWave save file")] = False,
    scope: Annotated[str, typer.Option(metavar="PATH", help="waves below core.tree alone")] = "",
    window: Annotated[str, typer.Option(metavar="A:B", help="waves of cycles A to B alone")] = "",
    out: Out = None,
    json: Json = False,
) -> None:
    """Simulate the Verilog against the golden model, bit by bit and cycle by cycle."""
    from ..sim import run
    from . import reports

    kinds = modes.split(",")
    for mode in kinds:
        if mode not in run.MODES:
            raise AtriplexError(unknown("mode", mode, run.MODES))
    if (scope or window) and not waves:
        raise AtriplexError("--scope and --window limit waves; add --waves")
    cycles = reports.window(window)
    found, choice = _choose(block, preset, settings, config)
    with progress(json) as stage:
        design = _emit(found, choice)
        sources = reports.netlist(design, netlist, stage) if netlist else None
        outcome = run.simulate(
            design,
            seed=seed,
            transfers=transfers,
            modes=kinds,
            simulator=simulator,
            sources=sources,
            waves=waves,
            progress=stage,
        )
        drawn = None
        if waves:
            stage("decoding of waves")
            folder = out or Path("out", f"{found.name}-waves")
            drawn = reports.draw(outcome, design, folder, scope, cycles)
    asked = [*choice.arguments, *(["--netlist", netlist] if netlist else [])]
    result = reports.simulation(outcome, choice.preset, transfers, kinds, asked, drawn)
    if json:
        say_json(result)
    else:
        table(*reports.modes(outcome))
        for file in drawn or ():
            print(file)
    for complaint in result["complaints"]:
        note(complaint)
    if not outcome.passed:
        raise Failed(f"{found.name} is wrong; repeat with: {result['repeat']}")


@app.command()
def lint(
    block: BlockName,
    preset: Preset = None,
    settings: Settings = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """All warnings of Verilator on the Verilog, but those waived with a reason in lint.vlt."""
    from .lint import lint as warnings_of

    found, choice = _choose(block, preset, settings, config)
    warnings = warnings_of(_emit(found, choice))
    if json:
        say_json({"block": found.name, "warnings": warnings, "passed": not warnings})
    if warnings:
        raise Failed(f"{found.name} has {len(warnings)} lint warnings; {warnings[0]}")
    if not json:
        print(f"{found.name}: clean")


@app.command()
def fpga(
    block: BlockName,
    board: Annotated[str, typer.Option(metavar="NAME", help="board, as ulx3s-85f")],
    preset: Preset = None,
    settings: Settings = None,
    config: ConfigFile = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="engine, micro_engine: a model inside, as run's"),
    ] = None,
    target: Annotated[float | None, typer.Option(min=1, metavar="MHZ", help="clock wanted")] = None,
    out_of_context: Annotated[
        bool, typer.Option("--out-of-context", help="no shell, no pads, no bitstream")
    ] = False,
    no_dsp: Annotated[bool, typer.Option("--no-dsp", help="products out of LUTs")] = False,
    seed: Seed = 1,
    out: Out = None,
    json: Json = False,
) -> None:
    """Synthesis, place and route and bitstream for a board, and a report."""
    from ..fpga import boards, flow
    from . import reports

    wanted = boards.board(board)
    found, choice = _choose(block, preset, settings, config)
    folder = out or Path("out", f"{found.name}-{wanted.name}")
    with progress(json) as stage:
        if model:
            design = _appliance(found.name, wanted, target, _model_path(model), settings)
        else:
            design = _emit(found, choice)
        report = flow.build(
            design,
            wanted,
            folder,
            target_mhz=target,
            out_of_context=out_of_context,
            seed=seed,
            dsp=not no_dsp,
            progress=stage,
        )
    if json:
        say_json(report.values())
    else:
        table(*reports.placed(report))
        print(f"report: {folder / 'report.md'}")
        for name in design.beside:
            print(f"for the board's flash: {folder / name} (docs/fpga.md says where it goes)")
    if complaint := report.complaint():
        raise Failed(complaint)


def _model_path(model: str) -> Path:
    """The file of a model; those of the package have names."""
    from .model.generate import shipped

    names = {
        "shipped": "storybook",
        "shipped-small": "storybook-small",
        "shipped-float": "storybook-small-float",
    }
    path = shipped(names[model]) if model in names else Path(model)
    if not path.exists():
        raise AtriplexError(
            f"{path}: no such file; the models of the package are called {', '.join(names)}"
        )
    return path


def _appliance(block: str, board: Any, target: float | None, path: Path, settings: Any):
    """An engine with a model inside, for a board."""
    from .configs import settings_of
    from .engine.serial import appliance_for

    clock = float(target or board.clock_mhz)
    return appliance_for(block).for_board(board, clock, path, settings_of(settings or ()))[0]


@app.command()
def asic(
    block: BlockName,
    library: Annotated[
        list[str], typer.Option(metavar="NAME", help="a library, or Liberty files; repeat it")
    ],
    preset: Preset = None,
    settings: Settings = None,
    config: ConfigFile = None,
    target: Annotated[float | None, typer.Option(metavar="MHZ", help="clock wanted")] = None,
    no_gate_sim: Annotated[
        bool, typer.Option("--no-gate-sim", help="do not simulate the netlist")
    ] = False,
    transfers: Annotated[int, typer.Option(min=1, help="of the gate-level simulation")] = 1000,
    seed: Seed = 1,
    out: Out = None,
    json: Json = False,
) -> None:
    """Netlist of standard cells, area, timing and gate-level simulation, and a report."""
    from ..asic import flow
    from ..asic.library import library as find_library
    from ..sim.run import simulate
    from . import reports

    wanted = find_library(library)
    found, choice = _choose(block, preset, settings, config)
    folder = out or Path("out", f"{found.name}-{wanted.name}")
    with progress(json) as stage:
        design = _emit(found, choice)

        def passes(sources: list[Path]) -> bool:
            outcome = simulate(
                design,
                seed=seed,
                transfers=transfers,
                sources=sources,
                progress=stage,
            )
            for complaint in outcome.complaints():
                note(complaint)
            return outcome.passed

        report = flow.build(
            design,
            wanted,
            folder,
            target_mhz=target,
            gate_sim=None if no_gate_sim else passes,
            progress=stage,
        )
    if json:
        say_json(report.json())
    else:
        table(*reports.mapped(report))
        print(f"report: {folder / 'report.md'}")
    if complaints := report.complaints():
        raise Failed("; ".join(complaints))


@app.command()
def compare(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="a family of blocks, as mac")],
    board: Annotated[str, typer.Option(metavar="NAME", help="board, as ulx3s-85f")] = "ulx3s-85f",
    library: Annotated[
        str, typer.Option(metavar="NAME", help="cell library, as osu018")
    ] = "osu018",
    block: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="these blocks alone; repeat it")
    ] = None,
    dsp: Annotated[bool, typer.Option("--dsp", help="the board's multipliers may be used")] = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Blocks of a family at the same throughput: LUTs, area, clock, energy, and what it costs the
    shipped model; table, JSON and a picture."""
    from ..asic.library import library as find_library
    from ..fpga import boards
    from .compare import costs, report

    chosen = costs.entries(family, block or ())
    wanted, cells = boards.board(board), find_library([library])
    folder = out or Path("out", f"compare-{family}")
    with progress(json) as stage:
        rows = list(costs.rows(chosen, wanted, cells, dsp=dsp, progress=stage))
    missing = report.write(rows, folder, family, wanted.name, cells.name)
    if json:
        say_json(rows)
    else:
        table(*report.shown(rows))
        print(f"report: {folder / 'report.md'}")
    if missing:
        note(missing)


@app.command()
def run(
    model: Annotated[
        str,
        typer.Argument(
            help="a model file, or of the package `shipped`, `shipped-small` or `shipped-float`"
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="the text to continue")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="tokens to add")] = 100,
    model_only: Annotated[
        bool, typer.Option("--model-only", help="the numpy model, no hardware")
    ] = False,
    settings: Settings = None,
    config: ConfigFile = None,
    check_activations: Annotated[
        bool, typer.Option("--check-activations", help="compare every vector, not tokens alone")
    ] = False,
    stalls: Annotated[
        float, typer.Option(min=0, max=0.95, help="share of cycles in which streams pause")
    ] = 0.0,
    no_overlap: Annotated[
        bool, typer.Option("--no-overlap", help="attention waits until Q, K and V are done")
    ] = False,
    clock: Annotated[
        float | None, typer.Option(min=0.001, metavar="MHZ", help="for tokens per second")
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="engine or micro_engine; by itself what the board has"),
    ] = None,
    netlist: Annotated[
        str | None,
        typer.Option(metavar="BOARD", help="simulate what synthesis for a board makes of it"),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="draw from so many tokens; 0: all")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="vocabulary instead of the file's own")
    ] = None,
    bit_order: Annotated[
        str | None, typer.Option(metavar="WHERE", help="ternary llama2.c: first weight high or low")
    ] = None,
    check_text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="text that decides the bit order")
    ] = None,
    pairing: Annotated[
        str | None, typer.Option(metavar="HOW", help="rotary pairs: half or interleaved")
    ] = None,
    gate: Annotated[str | None, typer.Option(metavar="NAME", help="relu2 or silu")] = None,
    quantise: Annotated[
        str | None, typer.Option(metavar="TO", help="float matrices: int8, mxfp4, posit8_0 ...")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="most tokens of a text, below the model's own")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="another one of the format; repeat it"),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Text from a model, as the engine's RTL makes it, every token checked."""
    path = _model_path(model)
    from .checkpoints.models import runnable
    from .configs import parameters, settings_of
    from .engine.story import format_for

    changes = parameters(settings or (), config)
    quantise = quantise or format_for(changes)
    given = {
        **settings_of(option or (), "--option"),
        **{"tokenizer": tokenizer, "bit_order": bit_order, "check_text": check_text},
        **{"pairing": pairing, "gate": gate, "quantise": quantise, "context": context},
    }
    found = runnable(path, **given)
    if found.note and not json:
        note(found.note)
    if model_only:
        from .model.generate import Story

        story = Story(
            prompt, found=found, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed
        )
        pieces = _told(prompt, story, json)
        if json:
            return say_json({
                **{"prompt": prompt, "text": "".join(pieces), "tokens": len(pieces)},
                **found.report(),
            })
        if story.note:
            note(story.note)
        return None
    if netlist or block not in (None, "engine"):
        return _run_line(prompt, netlist, block, clock, path, tokens, changes, json)
    from .engine import report
    from .engine.story import Story as Told

    with progress(json) as stage:
        told = Told(
            prompt,
            found=found,
            tokens=tokens,
            settings=changes,
            check_activations=check_activations,
            stalls=stalls,
            overlap=not no_overlap,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            progress=stage,
        )
    pieces = _told(prompt, told, json)
    measured = report.values(told, clock)
    if json:
        text = "".join(pieces)
        say_json({"prompt": prompt, "text": text, **found.report(), **measured})
    else:
        table(("", ""), report.rows(measured), title=f"engine, {measured['lanes']} lanes")
        if told.note:
            note(told.note)
    if measured["wrong"]:
        raise Failed(measured["wrong"][0])
    return None


def _run_line(
    prompt: str,
    netlist: str | None,
    block: str | None,
    clock: float | None,
    path: Path,
    tokens: int,
    settings: dict[str, Any],
    json: bool,
) -> None:
    """Text from an appliance on its serial line: its Verilog, or a netlist for a board."""
    from ..fpga import boards
    from .engine.serial import LineStory

    wanted = boards.board(netlist or "icebreaker")
    block = block or ("micro_engine" if wanted.family == "ice40" else "engine")
    with progress(json) as stage:
        story = LineStory(
            prompt,
            wanted,
            float(clock or wanted.clock_mhz),
            block=block,
            netlist=netlist is not None,
            path=path,
            tokens=tokens,
            settings=settings,
            progress=stage,
        )
    pieces, tally = _told(prompt, story, json), story.tally
    found = {
        "block": block,
        "board": wanted.name,
        "netlist": netlist is not None,
        "tokens": tally.tokens,
        "checked": tally.checked,
        "wrong": tally.wrong,
        "cycles": tally.all_cycles,
    }
    if json:
        say_json({"prompt": prompt, "text": "".join(pieces), **found})
    else:
        equal = tally.checked - len(tally.wrong)
        what = f"netlist of {block}" if netlist else block
        print(f"{what} for {wanted.name}: {equal} tokens equal, {tally.all_cycles:,} cycles")
    if tally.wrong:
        raise Failed(tally.wrong[0])


def _told(prompt: str, story: Any, json: bool) -> list[str]:
    """The pieces of a story, printed as they come unless all is to be JSON."""
    pieces = []
    if not json:
        print(prompt, end="", flush=True)
    for piece in story:
        pieces.append(piece)
        if not json:
            print(piece, end="", flush=True)
    if not json:
        print()
    return pieces


@app.command()
def train(
    text: Annotated[Path, typer.Argument(help="ASCII text, one paragraph a line")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="where to write")],
    name: Annotated[str, typer.Option(help="name of the model file")] = "storybook",
    steps: Annotated[int | None, typer.Option(min=1, help="steps of the ternary model")] = None,
    float_steps: Annotated[int | None, typer.Option(min=1, help="of the float model")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="windows in a step")] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: one a processor")] = 0,
    no_float_twin: Annotated[
        bool, typer.Option("--no-float-twin", help="train no float model to compare with")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in FOLDER")] = False,
    source: Annotated[str, typer.Option(help="where the text is from, for the card")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="a size of the model; repeat it"),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a ternary model on a text: packed file, model card, loss curve, log."""
    from . import reports
    from .configs import settings_of
    from .model.train import TrainConfig, sized
    from .model.train import train as train_model

    given = {"steps": steps, "float_steps": float_steps, "batch": batch, "threads": threads}
    given = {name: value for name, value in given.items() if value is not None}
    config = TrainConfig(model=sized(settings_of(settings or ())), **given)
    if not text.is_file():
        raise AtriplexError(f"{text}: no such file")
    with progress(json) as stage:
        figures = train_model(
            text,
            out,
            config=config,
            seed=seed,
            name=name,
            source=source,
            float_twin=not no_float_twin,
            resume=resume,
            progress=reports.steps(stage, every=sys.stderr.isatty()),
        )
    if json:
        return say_json(figures)
    table(("figure", "value"), figures.items())


@app.command()
def doctor(json: Json = False) -> None:
    """What is installed, what is missing, and how to get it."""
    from . import doctor as checks

    rows = checks.examine()
    works = checks.main_path_works(rows)
    if json:
        say_json({"works": works, "parts": rows})
    else:
        keys = ("part", "for", "version", "origin", "get")
        table(("", *keys), [("ok" if row["found"] else "-", *map(row.get, keys)) for row in rows])
    if not works:
        missing = [row["part"] for row in rows if row["for"] == "sim" and not row["found"]]
        raise Failed(f"simulation needs {', '.join(missing)}")


def _choose(
    block: str, preset: str | None, settings: list[str] | None, config: Path | None
) -> "tuple[Block, Choice]":
    from .blocks import find
    from .configs import choose

    found = find(block)
    return found, choose(found, preset, settings or (), config)


def _emit(block: "Block", choice: "Choice") -> "Design":
    from .verilog import emit

    return emit(block, choice.config)


def main() -> NoReturn:
    """Run the command line and end the process with its status."""
    signal.signal(signal.SIGINT, interrupt)
    try:
        status = app(standalone_mode=False) or 0
        sys.stdout.flush()
        if status == 130:
            raise KeyboardInterrupt
    except AtriplexError as error:
        note(str(error))
        status = error.exit_status
    except BrokenPipeError:
        quiet_stdout()
        status = 1
    except OSError as error:  # a folder that cannot be written, a full disk
        if not error.filename:
            raise
        note(f"{error.filename}: {(error.strerror or 'failed').lower()}")
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        note("interrupted")
        status = 130
    except Exception as error:
        if not isinstance(error, typer.BadParameter.__mro__[2]):  # ClickException, whose ever it is
            raise
        note(usage(error))
        status = 2
    sys.exit(status)
