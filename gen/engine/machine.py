# SPDX-License-Identifier: Apache-2.0
"""The engine's Verilog as a machine that takes a token a call.

Verilator makes a C++ model of it; ``harness.cpp`` gives it memories and a clock, and is called
through ctypes once a token.  Builds are kept by content.
"""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.lib import data
from numpy.typing import NDArray

from ...rtl import cache
from ...rtl.engine.engine import STATUS, EngineConfig, taps_layout
from ...rtl.errors import AtriplexError, ToolFailed
from ...sim import run as simulator
from ...sim.engine.image import Image, packed_words, word_bytes
from ..verilog import Design

HARNESS = Path(__file__).with_name("harness.cpp")
COUNTS = ("cycles", "linear", "starved", "attention", "words", "gains", "rows", "taps", "inputs")
COUNTS += ("gaps", "leads")
FIELDS = ("at", "kind", "when", "waits", "unit", "flag", "fresh", "slot", "rows", "words")
FIELDS += ("address", "value")
FLAGS = ("linear", "starved", "attention", "leads")
WAITS = ("program", "weights", "gains", "embedding", "choice", "taker")
OPTIMISED = "-O1"
"""More makes builds twice as long, and simulations no faster."""
GROUPS = 2
"""Files that the compiler is given side by side, each of them as long to read as the first."""
VALIDS = ("input", "codes", "scale", "element", "head", "peak")


class Stuck(AtriplexError):
    """The engine gave no answer in the cycles it was allowed; says what it waits for."""

    exit_status = 1


@dataclass(frozen=True, eq=False)
class Taps:
    """What passed between the units while one token was made, by the names of ``taps_layout``.

    Every array has one row for each transfer; ``<valid>_cycle`` holds their cycles.
    """

    values: dict[str, NDArray[np.int64]]

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        return self.values[name]


def build(
    design: Design,
    config: EngineConfig,
    sources: Sequence[str] = (),
    progress: Callable[[str], None] = lambda stage: None,
) -> Path:
    """The shared library of ``design``; ``sources`` (texts) replace its Verilog."""
    texts = list(sources) or [design.text]
    return library(design.top, texts, HARNESS, _ports(config), progress=progress)


def library(
    top: str,
    texts: Sequence[str],
    harness: Path,
    ports: str,
    *,
    progress: Callable[[str], None] = lambda stage: None,
) -> Path:
    """Verilator's model of module ``top`` and a harness, as a shared library, from the cache.

    ``harness`` includes ``ports``, which is written as ``engine_ports.h``.
    """
    key = [*texts, ports, harness.read_text(), simulator.version("verilator"), OPTIMISED]

    def fill(work: Path) -> None:
        progress("build of the simulation")
        for index, text in enumerate(texts):
            (work / f"source_{index}.v").write_text(text)
        (work / "engine_ports.h").write_text(ports)
        command = [
            *("verilator", "--cc", "--build", "-j", str(os.cpu_count() or 1), "-O3"),
            *("-Wno-fatal", "-Wno-lint", "-Wno-style", "--no-timing", "--noassert"),
            *("--x-assign", "fast", "--x-initial", "fast", "--top-module", top),
            *("--Mdir", "made", "-CFLAGS", "-fPIC"),
            *("--output-groups", str(GROUPS)),
            # What runs once is not worth the compiler's time.
            *("-MAKEFLAGS", f"OPT_FAST={OPTIMISED} OPT_SLOW=-O0"),
            *(f"source_{index}.v" for index in range(len(texts))),
        ]
        log = cache.log("engine", key, "build")
        (work / "made").mkdir()
        simulator.bring_runtime(work / "made", ("verilated.o", "verilated_threads.o"))
        _run(command, work, log)
        root = Path(os.environ.get("VERILATOR_ROOT", "/usr/share/verilator"))
        objects = [str(path.relative_to(work)) for path in sorted((work / "made").glob("*.o"))]
        compile_ = [
            *("g++", "-shared", "-fPIC", OPTIMISED, "-std=c++17", "-Imade", "-I."),
            *(f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}"),
            *(str(harness), *objects),
            *("-pthread", "-o", "engine.so"),
        ]
        _run(compile_, work, log)
        for path in (work / "made").glob("*"):
            path.unlink()

    return cache.folder("engine", key, fill) / "engine.so"


def _run(command: Sequence[str], work: Path, log: Path) -> None:
    with log.open("a") as out:
        done = subprocess.run(command, cwd=work, stdout=out, stderr=out, check=False)
    if done.returncode:
        lines = [line for line in log.read_text().splitlines() if "rror" in line]
        raise ToolFailed(f"{command[0]}: {lines[0].strip() if lines else 'it failed'}", log)


def _ports(config: EngineConfig) -> str:
    """What the harness must know of the ports."""
    layout = taps_layout(config)
    offsets = {name: field.offset for name, field in layout}
    (field,) = config.socket.word(config).members
    values = {
        "MODEL": "Vengine",
        "WEIGHTS": f"weights_i_payload_{field}",
        "WEIGHT_BYTES": word_bytes(config),
        "GAIN_BYTES": 2 * config.norm_lanes,
        "CODE_BYTES": config.norm_lanes,
        "TABLE_MASK": "0xffff",
        "TAP_BYTES": 4 * -(-layout.size // 32),
        **{f"TAP_{name.upper()}": offsets[f"{name}_valid"] for name in VALIDS},
        **{f"TAP_{name.upper()}": offsets[name] for name in FLAGS},
    }
    lines = [f"#define {name} {value}" for name, value in values.items()]
    return "\n".join(["#pragma once", '#include "Vengine.h"', *lines]) + "\n"


class Machine:
    """One engine with a model's image in its memories."""

    def __init__(self, library: Path, config: EngineConfig, image: Image):
        self.config, self.image = config, image
        self._library = _load(library)
        self._handle = self._library.engine_new()
        self._arrays = [
            np.ascontiguousarray(packed_words(image.weights, config)),
            np.ascontiguousarray(image.gains.astype("<i2")),
            np.ascontiguousarray(image.embedding),
        ]
        for which, array in enumerate(self._arrays):
            self._library.engine_memory(self._handle, which, array.ctypes.data, len(array))
        self._load()

    def _load(self) -> None:
        """Program and rotary table; a reset asks for them again."""
        image = self.image
        rows = [[at, *(op[name] for name in FIELDS[1:])] for at, op in enumerate(image.program)]
        program = np.array(rows, np.uint64)
        self._library.engine_program(self._handle, program.ctypes.data, len(program))
        table = np.ascontiguousarray(image.table)
        self._library.engine_table(self._handle, table.ctypes.data, len(table))

    def close(self) -> None:
        """Free the simulation."""
        if self._handle:
            self._library.engine_free(self._handle)
            self._handle = None

    def reset(self) -> None:
        """Reset the engine, also in the middle of a token."""
        self._library.engine_reset(self._handle)
        self._load()

    def stall(self, density: float, seed: int = 1) -> None:
        """Let every stream pause in that share of cycles, at random."""
        self._library.engine_stalls(self._handle, round(256 * density), seed)

    def sampling(self, keep: int, seed: int) -> None:
        """Draw tokens from the ``keep`` likeliest; a ``keep`` of 0 takes the likeliest."""
        self._library.engine_sampling(self._handle, int(keep > 0), keep, seed, 1)

    def gaps(self) -> NDArray[np.int64]:
        """Cycles of the last token without weights, by the words that were used before."""
        count = self.counts()["gaps"]
        found = np.ctypeslib.as_array(self._library.engine_gaps(self._handle), (count,))
        return found.astype(np.int64)

    def starve(self, memory: str | None) -> None:
        """Let one memory, ``weights``, ``gains`` or ``embedding``, never answer again."""
        names = ("weights", "gains", "embedding")
        self._library.engine_starve(self._handle, -1 if memory is None else names.index(memory))

    def token(self, token: int, *, restart: bool, sample: bool, limit: int = 1 << 24) -> int | None:
        """The answer to one token, or None without ``sample``.  Raises :class:`Stuck`."""
        answer = self._library.engine_token(self._handle, token, restart, sample, limit)
        if answer == -2:
            status = self.status()
            waits = [name for name in WAITS if status[name]]
            where = f"it waits for {' and '.join(waits)}" if waits else "no stream is awaited"
            raise Stuck(f"the engine gave no answer within {limit} cycles; {where}")
        return None if answer < 0 else answer

    def status(self) -> dict[str, int]:
        """The engine's ``status``: streams that it waits for, and whether its watchdog barked."""
        bits = self._library.engine_status(self._handle)
        return {name: bits >> field.offset & 1 for name, field in STATUS}

    def counts(self) -> dict[str, int]:
        """Running totals: cycles, cycles with weights used, missing, with attention, words ..."""
        count = self._library.engine_count
        return {name: count(self._handle, at) for at, name in enumerate(COUNTS)}

    def record(self, taps: bool = False, inputs: bool = False) -> None:
        """Keep what the taps show of each token; keep all inputs for :meth:`replay`."""
        self._library.engine_record(self._handle, taps, inputs)

    def replay(self) -> None:
        """Clock the model with the inputs kept: the speed of the bare model.  Ends its use."""
        self._library.engine_replay(self._handle)

    def taps(self) -> Taps:
        """What the last token's taps showed."""
        layout = taps_layout(self.config)
        size = 4 * -(-layout.size // 32)
        count = self.counts()["taps"]
        if not count:
            return Taps({})
        raw = np.ctypeslib.as_array(self._library.engine_taps(self._handle), (count, size))
        bits = np.unpackbits(raw, axis=1, bitorder="little")
        when = np.ctypeslib.as_array(self._library.engine_when(self._handle), (count,)).copy()
        fields = {name: _decode(bits, field) for name, field in layout}
        groups = {
            "input": ("input",),
            "codes": ("codes",),
            "scale": ("mantissa", "shift"),
            "element": ("sum", "element", "target"),
            "head": ("head",),
            "peak": ("peak",),
        }
        values: dict[str, NDArray[np.int64]] = {}
        for valid, names in groups.items():
            rows = fields[f"{valid}_valid"].astype(bool)
            values |= {name: fields[name][rows] for name in names}
            values[f"{valid}_cycle"] = when[rows].astype(np.int64)
        return Taps(values)


def _decode(bits: NDArray[np.uint8], field: Any) -> NDArray[np.int64]:
    shape, count = field.shape, 1
    if isinstance(shape, data.ArrayLayout):
        shape, count = shape.elem_shape, shape.length
    from amaranth.hdl import Shape

    cast = Shape.cast(shape)
    part = bits[:, field.offset : field.offset + cast.width * count]
    part = part.reshape(len(bits), count, cast.width).astype(np.int64)
    weights = np.int64(1) << np.arange(cast.width)
    if cast.signed:
        weights[-1] = -weights[-1]
    values = part @ weights
    return values if isinstance(field.shape, data.ArrayLayout) else values[:, 0]


def _load(library: Path) -> Any:
    loaded = ctypes.CDLL(str(library))
    pointer, word = ctypes.c_void_p, ctypes.c_uint64
    for name, result, arguments in (
        ("new", pointer, []),
        ("free", None, [pointer]),
        ("reset", None, [pointer]),
        ("memory", None, [pointer, ctypes.c_int, pointer, word]),
        ("program", None, [pointer, pointer, word]),
        ("table", None, [pointer, pointer, word]),
        ("stalls", None, [pointer, ctypes.c_uint32, ctypes.c_uint32]),
        ("starve", None, [pointer, ctypes.c_int]),
        ("record", None, [pointer, ctypes.c_int, ctypes.c_int]),
        ("token", ctypes.c_int, [pointer, *[ctypes.c_int] * 3, word]),
        ("count", word, [pointer, ctypes.c_int]),
        ("taps", ctypes.POINTER(ctypes.c_uint8), [pointer]),
        ("when", ctypes.POINTER(ctypes.c_uint32), [pointer]),
        ("gaps", ctypes.POINTER(ctypes.c_uint32), [pointer]),
        ("sampling", None, [pointer, ctypes.c_int, ctypes.c_int, ctypes.c_uint32, ctypes.c_int]),
        ("replay", None, [pointer]),
        ("status", ctypes.c_uint32, [pointer]),
    ):
        function = getattr(loaded, f"engine_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def speed(machine: Machine, tokens: int = 8) -> dict[str, float]:
    """Simulated cycles a second, alone in the model and with the harness; the best of three.

    The bare model is clocked with the inputs that it had in the harness, which are kept before.
    """

    def told() -> float:
        machine.reset()
        start = time.perf_counter()
        for position in range(tokens):
            machine.token(position, restart=position == 0, sample=True)
        return time.perf_counter() - start

    def bare() -> float:
        machine.reset()
        start = time.perf_counter()
        machine.replay()
        return time.perf_counter() - start

    machine.record(inputs=True)
    told()
    cycles = machine.counts()["inputs"]
    machine.record()
    with_harness, alone = min(told() for _ in range(3)), min(bare() for _ in range(3))
    machine.reset()
    return {
        "cycles_per_second": cycles / with_harness,
        "bare_cycles_per_second": cycles / alone,
        "share": alone / with_harness,
    }
