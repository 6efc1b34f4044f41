# SPDX-License-Identifier: Apache-2.0
"""Waves that a person can read: a simulator's raw VCD, cut to size, with decoded streams.

Beside the signals of the design the new VCD has a scope ``streams``:

``cycle``
    The bench's cycle: 1 from the clock edge at which reset ends and the first transfers are
    offered, one more at every edge, 0 in reset.  Each mode starts anew.  A transfer that the bench
    notes "in cycle 17" is offered and taken while ``cycle`` is 17.
``<stream>.valid``, ``<stream>.ready``, ``<stream>.transfer``
    The handshake; ``transfer`` is both and no reset.
``<stream>.index``
    Transfers taken since reset, so the index of the one that is offered.
``<stream>.<field>[<element>]``
    Every element of a payload field as a vector of its own, the first 64 of each field.

The raw VCD is read line by line, as both simulators write it: pyvcd's reader takes 15 times as
long and refuses the scope ``$rootio`` of Verilator.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

from ..rtl.errors import AtriplexError, Missing, ToolFailed, unknown
from ..rtl.interface import Field, Stream

MOST = 64
"""Elements shown of one field."""

DECODED = "streams"

_NAME = re.compile(r"(?!_\d+_(?:\s|$))[A-Za-z_]\w*(?:\[\d+\])*(?:\s*\[\d+(?::\d+)?\])?")


@dataclass
class _Var:
    """A variable of a VCD: ``path`` is below the top module."""

    path: tuple[str, ...]
    name: str
    width: int
    code: str
    kind: str = "wire"


@dataclass
class _Element:
    """One decoded element: bits ``low`` and up of a port."""

    code: str
    low: int
    width: int


@dataclass
class _Decoded:
    """One stream and its variables: port codes, codes of what is added, and the count so far."""

    stream: Stream
    valid: str
    ready: str
    transfer: str
    index: str
    fields: list[tuple[Field, str, list[_Element]]] = field(default_factory=list)
    count: int = 0


def write(
    raw: Path,
    folder: Path,
    top: str,
    streams: Sequence[Stream],
    *,
    scope: str = "",
    window: tuple[int, int] | None = None,
) -> tuple[Path, Path]:
    """``<top>.vcd`` and ``<top>.gtkw`` in ``folder``, out of the VCD ``raw`` of a bench's run.

    ``scope`` (``core.tree``) keeps the signals below that instance of the design alone, ``window``
    the cycles from the first to the second, both included, of every mode; other times are x.
    Clock, reset and streams are always kept.
    """
    vcd, save = folder / f"{top}.vcd", folder / f"{top}.gtkw"
    with raw.open(errors="replace") as source, vcd.open("w") as sink:
        words = _header(source)
        kept, timescale = _choose(words, top, streams, scope, raw)
        decoder = _Decoder(sink, kept, streams, window)
        decoder.header(timescale, top)
        decoder.body(source)
    with save.open("w") as sink:
        _save(sink, vcd, streams)
    return vcd, save


def _header(source: Iterable[str]) -> Iterator[list[str]]:
    """The commands of a VCD's header, split into words without the closing ``$end``."""
    words: list[str] = []
    for line in source:
        for word in line.split():
            if word != "$end":
                words.append(word)
                continue
            if words[0] == "$enddefinitions":
                return
            yield words
            words = []


def _choose(
    header: Iterable[list[str]], top: str, streams: Sequence[Stream], scope: str, raw: Path
) -> tuple[list[_Var], str]:
    """The variables to keep, and the timescale."""
    path: list[str] = []
    scopes: set[str] = set()
    kept, timescale = [], "1ps"
    wanted = tuple(scope.split(".")) if scope else ()
    edge = {"clk", "rst"} | {
        stream.port(part)
        for stream in streams
        for part in ("valid", "ready", *(each.name for each in stream.fields))
    }
    for command, *words in header:
        if command == "$timescale":
            timescale = "".join(words)
        elif command == "$scope":
            path.append(words[1])
            if top in path:
                scopes.add(".".join(path[path.index(top) + 1 :]))
        elif command == "$upscope":
            path.pop()
        elif command == "$var" and top in path:
            below = tuple(path[path.index(top) + 1 :])
            kind, width, code, *name = words
            var = _Var(below, " ".join(name), int(width), code, kind)
            port = not below and name[0] in edge
            if port or (below[: len(wanted)] == wanted and _NAME.fullmatch(var.name)):
                kept.append(var)
    if not kept:
        raise ToolFailed(f"the waves of the run hold no module {top}", raw)
    if scope and scope not in scopes:
        raise AtriplexError(unknown("scope", scope, scopes - {""}))
    return kept, timescale


class _Decoder:
    """Copies value changes, those of ``kept`` only, and adds the decoded streams."""

    def __init__(
        self,
        sink: IO[str],
        kept: Sequence[_Var],
        streams: Sequence[Stream],
        window: tuple[int, int] | None,
    ):
        self.sink, self.kept, self.window = sink, kept, window
        self.widths = {var.code: var.width for var in kept}
        self.codes = (f"s{number}" for number in itertools.count())
        ports = {var.name.partition(" ")[0]: var.code for var in kept if not var.path}
        self.clk, self.rst = ports["clk"], ports["rst"]
        self.cycle = 0
        self.cycle_code = self._code()
        self.streams = [self._decoded(stream, ports) for stream in streams]
        self.elements = {
            code: elements for each in self.streams for _, code, elements in each.fields
        }
        self.values = dict.fromkeys(self.widths, "x")  # of raw and of added variables, as last seen
        self.added: list[str] = []
        self.inside = False

    def _code(self) -> str:
        return next(code for code in self.codes if code not in self.widths)

    def _decoded(self, stream: Stream, ports: dict[str, str]) -> _Decoded:
        valid, ready = ports[stream.port("valid")], ports[stream.port("ready")]
        decoded = _Decoded(stream, valid, ready, self._code(), self._code())
        for each in stream.fields:
            elements = [
                _Element(self._code(), number * each.width, each.width)
                for number in range(min(prod(each.dims), MOST))
            ]
            decoded.fields.append((each, ports[stream.port(each.name)], elements))
        return decoded

    def header(self, timescale: str, top: str) -> None:
        out = self.sink.write
        for decoded in self.streams:
            for each, _, elements in decoded.fields:
                if prod(each.dims) > len(elements):
                    out(
                        f"$comment {decoded.stream.name}.{each.name}: the first {len(elements)} "
                        f"of {prod(each.dims)} elements are decoded $end\n"
                    )
        out(f"$timescale {timescale} $end\n")
        added = [_Var((), "cycle", 32, self.cycle_code)]
        for decoded in self.streams:
            path = (decoded.stream.name,)
            added += [
                _Var(path, "valid", 1, decoded.valid),
                _Var(path, "ready", 1, decoded.ready),
                _Var(path, "transfer", 1, decoded.transfer),
                _Var(path, "index", 32, decoded.index),
            ]
            for each, _, elements in decoded.fields:
                names = element_names(each)
                for name, element in zip(names, elements, strict=True):
                    added.append(_Var(path, name, element.width, element.code))
        for var in added:
            self.widths.setdefault(var.code, var.width)
        self.added = [var.code for var in added if var.code not in self.values]
        self.values |= dict.fromkeys(self.added, "x")
        _declare(out, top, self.kept)
        _declare(out, DECODED, added)
        out("$enddefinitions $end\n")

    def body(self, source: Iterable[str]) -> None:
        """Copy all changes, grouped by time."""
        time, changes = 0, {}
        for line in source:
            first = line[0]
            if first == "#":
                if changes:
                    self._step(time, changes)
                    changes = {}
                time = int(line[1:])
            elif first in "01xzXZ":
                code = line[1:].rstrip()
                if code in self.widths:
                    changes[code] = first.lower()
            elif first in "bB":
                value, code = line[1:].split()
                if code in self.widths:
                    changes[code] = value.lower()
        self._step(time, changes)
        self.sink.write(f"#{time}\n")

    def _step(self, time: int, changes: dict[str, str]) -> None:
        """What happened at one time: count at a rising edge, then say what is new."""
        values, new = self.values, dict(changes)
        if changes.get(self.clk) == "1" and values[self.clk] == "0":
            self._edge(changes.get(self.rst, values[self.rst]))
        values.update(changes)
        inside = self.window is None or self.window[0] <= self.cycle <= self.window[1]
        if inside:
            # Before the first step inside nothing was decoded.
            for code in changes.keys() & self.elements.keys() if self.inside else self.elements:
                new |= self._split(code, values[code])
            new[self.cycle_code] = f"{self.cycle:b}"
            for decoded in self.streams:
                new[decoded.transfer] = "1" if self._taken(decoded) else "0"
                new[decoded.index] = f"{decoded.count:b}"
            news = [code for code in new if code in changes or new[code] != values[code]]
            values.update(new)
            if self.inside:
                self._say(time, news)
            else:
                self._say(time, list(values), "$dumpvars" if self.window is None else "$dumpon")
        elif self.inside:
            values.update(dict.fromkeys(self.added, "x"))
            self._say(time, list(values), "$dumpoff", undefined=True)
        self.inside = inside

    def _edge(self, rst: str) -> None:
        """A rising clock edge; ``rst`` is the value after it, all others are those before."""
        if rst != "0":
            self.cycle = 0
        elif self.values[self.rst] == "1":
            self.cycle = 1
        elif self.cycle:
            self.cycle += 1
        for decoded in self.streams:
            decoded.count = decoded.count + self._taken(decoded) if self.cycle > 1 else 0

    def _taken(self, decoded: _Decoded) -> bool:
        values = self.values
        return (
            values[decoded.valid] == "1"
            and values[decoded.ready] == "1"
            and values[self.rst] == "0"
        )

    def _split(self, code: str, value: str) -> dict[str, str]:
        """The elements of a port's value."""
        width = self.widths[code]
        bits = value.rjust(width, value[0] if value[0] in "xz" else "0")
        return {
            each.code: bits[width - each.low - each.width : width - each.low]
            for each in self.elements[code]
        }

    def _say(
        self, time: int, codes: Sequence[str], command: str = "", undefined: bool = False
    ) -> None:
        values, widths = self.values, self.widths
        lines = [f"#{time}"]
        if command:
            lines.append(command)
        for code in codes:
            value = "x" if undefined else values[code]
            lines.append(f"{value}{code}" if widths[code] == 1 else f"b{value} {code}")
        if command:
            lines.append("$end")
        if len(lines) > 1:
            self.sink.write("\n".join(lines) + "\n")


def element_names(each: Field) -> list[str]:
    """Names of the elements that are shown: ``acts[0]``, ``acts[1]``; ``sum`` where it is one."""
    indices = itertools.product(*(range(length) for length in each.dims))
    return [
        each.name + "".join(f"[{index}]" for index in place)
        for place in itertools.islice(indices, MOST)
    ]


def _declare(out: Callable[[str], Any], root: str, variables: Iterable[_Var]) -> None:
    """Scopes and variables; a range after the name, which keeps ``acts[3]`` a name."""
    out(f"$scope module {root} $end\n")
    at: tuple[str, ...] = ()
    for var in variables:
        common = 0
        while common < min(len(at), len(var.path)) and at[common] == var.path[common]:
            common += 1
        out("$upscope $end\n" * (len(at) - common))
        for name in var.path[common:]:
            out(f"$scope module {name} $end\n")
        at = var.path
        name = var.name if " [" in var.name or var.width == 1 else f"{var.name} {_range(var.width)}"
        out(f"$var {var.kind} {var.width} {var.code} {name} $end\n")
    out("$upscope $end\n" * (len(at) + 1))


def _range(width: int) -> str:
    return f"[{width - 1}:0]"


def _save(sink: IO[str], vcd: Path, streams: Sequence[Stream]) -> None:
    """A GTKWave save file: streams as groups, elements of long fields in closed ones."""
    try:
        from vcd.gtkw import GTKWSave
    except ImportError:
        raise Missing("pyvcd is not installed; get it with: pip install 'atriplex[sim]'") from None
    save = GTKWSave(sink)
    save.dumpfile(vcd.name, abspath=False)
    save.treeopen(f"{DECODED}.")
    save.trace(f"{DECODED}.cycle{_range(32)}", datafmt="dec")
    for stream in streams:
        prefix = f"{DECODED}.{stream.name}"
        with save.group(stream.name):
            for name in ("valid", "ready", "transfer"):
                save.trace(f"{prefix}.{name}", datafmt="bin")
            save.trace(f"{prefix}.index{_range(32)}", datafmt="dec")
            for each in stream.fields:
                traces = [
                    f"{prefix}.{name}{_range(each.width) if each.width > 1 else ''}"
                    for name in element_names(each)
                ]
                datafmt = "signed" if each.signed else "dec"
                if not each.dims:
                    save.trace(traces[0], datafmt=datafmt)
                    continue
                with save.group(each.name, closed=len(traces) > 8):
                    for trace in traces:
                        save.trace(trace, datafmt=datafmt)
