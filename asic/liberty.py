# SPDX-License-Identifier: Apache-2.0
"""Reader of Liberty files: what a library's cells compute, how large and how fast they are.

Reads in two steps, because files of tens of megabytes are common and nearly all of them is timing
tables: :func:`read` looks at everything but the tables; :meth:`Liberty.group` reads one cell whole.
"""

import gzip
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..rtl.errors import AtriplexError

GATE_LIMIT = 6  # inputs up to which a function is compared by its truth table

# truth tables by which cells are found, whatever the library calls them
BUFFER = (0, 1)
INVERTER = (1, 0)
NAND2 = (1, 1, 1, 0)


class LibertyError(AtriplexError):
    """A file is not a Liberty file that can be used; the message names the file and the fault."""


@dataclass
class Group:
    """One ``kind (args) { ... }``: values by name, lists by name, and the groups inside."""

    kind: str
    args: tuple[str, ...]
    values: dict[str, str] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: list["Group"] = field(default_factory=list)

    def all(self, kind: str) -> Iterator["Group"]:
        """The groups inside that are of this kind."""
        return (group for group in self.groups if group.kind == kind)


@dataclass(frozen=True)
class Pin:
    """A signal of a cell; ``capacitance`` is in femtofarads, ``function`` as the file writes it."""

    name: str
    direction: str
    capacitance: float
    function: str | None
    tristate: bool


@dataclass(frozen=True)
class Cell:
    """One cell; ``area`` in square micrometres, ``leakage`` as the file gives it (no unit known).

    ``state`` is ``ff``, ``latch``, another state the file declares, or None for a gate.
    """

    name: str
    area: float
    leakage: float
    dont_use: bool
    state: str | None
    pins: tuple[Pin, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input pins, in the order of the file."""
        return tuple(pin.name for pin in self.pins if pin.direction == "input")

    @property
    def outputs(self) -> tuple[Pin, ...]:
        """The output pins, in the order of the file."""
        return tuple(pin for pin in self.pins if pin.direction == "output")

    @property
    def table(self) -> tuple[int, ...] | None:
        """Truth table of a gate with one output and few inputs, first input slowest; else None."""
        if self.state or len(self.outputs) != 1 or len(self.inputs) > GATE_LIMIT:
            return None
        output = self.outputs[0]
        if output.function is None or output.tristate:
            return None
        try:
            return truth_table(output.function, self.inputs)
        except ValueError:
            return None


@dataclass(frozen=True)
class Liberty:
    """What :func:`read` found: ``files`` are plain texts in the order given."""

    names: tuple[str, ...]
    cells: dict[str, Cell]
    heads: tuple[Group, ...]
    bodies: dict[str, tuple[str, int]] = field(repr=False)

    def group(self, name: str) -> Group:
        """The cell whole, with its timing tables."""
        body, _ = self.bodies[name]
        return _parse(body)

    def head(self, name: str) -> Group:
        """What stands before the cells in the file of cell ``name``: units and templates."""
        return self.heads[self.bodies[name][1]]

    def light(self, names: Iterable[str] | None = None) -> str:
        """One Liberty text with these cells (or all) and no tables, for tools that need none."""
        chosen = self.bodies if names is None else sorted(names)
        cells = (_HEAVY.sub("", self.bodies[name][0]) for name in chosen)
        return "library (cells) {\n  " + "\n  ".join(cells) + "\n}\n"

    @property
    def flip_flops(self) -> list[Cell]:
        """Cells with an edge-triggered state."""
        return [cell for cell in self.cells.values() if cell.state == "ff"]

    def gates(self, table: tuple[int, ...]) -> list[Cell]:
        """The usable gates with this truth table, smallest first."""
        fit = [cell for cell in self.cells.values() if not cell.dont_use and cell.table == table]
        return sorted(fit, key=lambda cell: (cell.area, cell.name))

    def tie(self, value: int) -> tuple[str, str] | None:
        """Cell and pin that give a constant 0 or 1; the smallest cell, None if there is none."""
        fit = [
            (cell.area, cell.name, pin.name)
            for cell in self.cells.values()
            if not cell.dont_use and not cell.inputs and not cell.state
            for pin in cell.outputs
            if (pin.function or "").strip(" ()") == str(value)
        ]
        return min(fit)[1:] if fit else None


def text_of(path: Path) -> str:
    """The text of a ``.lib`` or ``.lib.gz`` file, without carriage returns."""
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise LibertyError(f"{path}: {fault.strerror or fault}") from None
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as fault:
            raise LibertyError(f"{path}: damaged gzip file: {fault}") from None
    return raw.decode("utf-8", errors="replace").replace("\r", "")


def read(files: Iterable[Path]) -> Liberty:
    """All cells of the files; of a cell that stands in several, the first counts.

    Anything that is not a whole Liberty file raises :class:`LibertyError`.
    """
    names, heads = [], []
    cells: dict[str, Cell] = {}
    bodies: dict[str, tuple[str, int]] = {}
    for place, path in enumerate(files):
        name, head, here = _split(_uncomment(text_of(path)), path)
        names.append(name)
        heads.append(head)
        farad = _unit_of_capacitance(head)
        for cell, body in here.items():
            if cell not in cells:
                cells[cell] = _cell(_parse(_HEAVY.sub("", body)), farad, path)
                bodies[cell] = (body, place)
    return Liberty(tuple(names), cells, tuple(heads), bodies)


def truth_table(function: str, inputs: tuple[str, ...]) -> tuple[int, ...]:
    """Values of a Liberty expression over all inputs, the first input slowest; or ValueError."""
    term = expression(function)
    rows = itertools.product((0, 1), repeat=len(inputs))
    return tuple(_value(term, dict(zip(inputs, row, strict=True))) for row in rows)


def numbers(items: Iterable[str]) -> tuple[float, ...]:
    """The numbers in the strings of a list, between which are commas or spaces."""
    return tuple(float(part) for part in re.split(r"[\s,]+", " ".join(items)) if part)


def expression(function: str) -> tuple:
    """A Liberty expression as a tree: ``(pin,)``, ``("!", a)``, ``("&", a, b)``; or ValueError."""
    return _Expression(function).tree()


# How groups nest; no recursion in regular expressions, so the depth has an end.
def _balanced(depth: int) -> str:
    inner = "" if depth == 0 else rf"|{_balanced(depth - 1)}"
    return rf"\{{(?:[^{{}}]++{inner})*+\}}"


_BODY = _balanced(8)
_HEAVY = re.compile(
    r"\b(?:timing|internal_power|leakage_power|receiver_capacitance|dynamic_current"
    r"|intrinsic_parasitic|ccsn_\w+|lu_table_template|power_lut_template|output_current_template"
    r"|normalized_driver_waveform|wire_load|hidden_power|minimum_period)\s*\([^()]*\)\s*" + _BODY
)
_CELL = re.compile(r"\bcell\s*\(\s*\"?([^\")]+?)\"?\s*\)\s*" + _BODY)
_LIBRARY = re.compile(r"\s*library\s*\(\s*\"?([^\")]*?)\"?\s*\)\s*\{")
_STATEMENT = re.compile(
    r"\s*(?:"
    r"(?P<end>\})"
    r"|(?P<name>[\w.]+)\s*:\s*(?P<value>\"[^\"]*\"|[^;{}\n]*?)\s*(?:;|\n|(?=\}))"
    r"|(?P<kind>[\w.]+)\s*\((?P<args>(?:\"[^\"]*\"|[^()\"])*)\)\s*(?P<open>\{|;?)"
    r"|(?P<stray>;)"
    r")"
)
_ARGUMENT = re.compile(r"\"([^\"]*)\"|([^\s,\"]+)")


def _uncomment(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S) if "/*" in text else text
    if "//" in text:
        text = re.sub(r"^\s*//.*$", "", text, flags=re.M)
    return text.replace("\\\n", " ")


def _split(text: str, path: Path) -> tuple[str, Group, dict[str, str]]:
    """Name, head and cell texts of one Liberty text."""
    start = _LIBRARY.match(text)
    if not start:
        what = "an empty file" if not text.strip() else "it does not begin with library (NAME) {"
        raise LibertyError(f"{path}: not a Liberty file: {what}")
    left = text.count("{") - text.count("}")
    if left:
        what = f"{left} groups are never closed" if left > 0 else f"{-left} closing braces too many"
        raise LibertyError(f"{path}: not a whole Liberty file: {what}")
    cells = {found.group(1): found.group(0) for found in _CELL.finditer(text)}
    if not cells:
        raise LibertyError(f"{path}: this Liberty file has no cells")
    first = _CELL.search(text)
    return start.group(1), _parse(text[: first.start() if first else None] + "}"), cells


def _parse(text: str) -> Group:
    """The group that ``text`` is."""
    root = Group("", ())
    stack, at = [root], 0
    while at < len(text):
        found = _STATEMENT.match(text, at)
        if not found:
            if text[at:].strip():
                at += 1  # a stray character; the tools that follow judge the file in full
                continue
            break
        at = found.end()
        if found["end"]:
            if len(stack) == 1:
                break
            stack.pop()
        elif found["name"]:
            stack[-1].values[found["name"]] = found["value"].strip('"')
        elif found["kind"]:
            args = tuple(quoted or bare for quoted, bare in _ARGUMENT.findall(found["args"]))
            if found["open"] == "{":
                group = Group(found["kind"], args)
                stack[-1].groups.append(group)
                stack.append(group)
            else:
                stack[-1].lists[found["kind"]] = args
    return root.groups[0] if root.groups else root


def _unit_of_capacitance(head: Group) -> float:
    """Femtofarads of one capacitance unit of the file."""
    number, unit = (*head.lists.get("capacitive_load_unit", ()), "1", "pf")[:2]
    return float(number) * {"ff": 1.0, "pf": 1e3, "nf": 1e6}.get(unit.lower(), 1e3)


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _cell(group: Group, farad: float, path: Path) -> Cell:
    name = group.args[0] if group.args else ""
    pins = []
    for pin in group.groups:
        if pin.kind in {"pin", "bus", "bundle"} and pin.args:
            for one in pin.args:
                pins.append(
                    Pin(
                        one,
                        pin.values.get("direction", ""),
                        _number(pin.values.get("capacitance")) * farad,
                        pin.values.get("function"),
                        "three_state" in pin.values,
                    )
                )
    kinds = [inner.kind for inner in group.groups]
    known = ("ff", "latch", "ff_bank", "latch_bank", "statetable")
    state = next((kind for kind in known if kind in kinds), None)
    try:
        area = float(group.values["area"])
    except KeyError:
        raise LibertyError(f"{path}: cell {name} has no area") from None
    except ValueError as fault:
        raise LibertyError(f"{path}: cell {name}: area: {fault}") from None
    return Cell(
        name,
        area,
        _number(group.values.get("cell_leakage_power")),
        group.values.get("dont_use", "").lower() == "true",
        state,
        tuple(pins),
    )


class _Expression:
    """A Boolean expression of Liberty: ``!a``, ``a'``, ``a & b``, ``a b``, ``a ^ b``, ``a | b``."""

    def __init__(self, text: str):
        self.tokens = re.findall(r"[A-Za-z_][\w\[\]]*|[01]|[!'&*|+^()]|\S", text)
        self.at = 0

    def tree(self) -> tuple:
        term = self._either()
        if self._next() is not None:
            raise ValueError(f"unexpected {self._next()!r}")
        return term

    def _next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _either(self) -> tuple:
        term = self._differ()
        while self._next() in {"|", "+"}:
            self.at += 1
            term = ("|", term, self._differ())
        return term

    def _differ(self) -> tuple:
        term = self._both()
        while self._next() == "^":
            self.at += 1
            term = ("^", term, self._both())
        return term

    def _both(self) -> tuple:
        term = self._not()
        while (token := self._next()) is not None and token not in {"|", "+", "^", ")"}:
            if token in {"&", "*"}:
                self.at += 1
            term = ("&", term, self._not())
        return term

    def _not(self) -> tuple:
        token = self._next()
        if token is None:
            raise ValueError("the expression ends too early")
        self.at += 1
        if token == "!":
            return ("!", self._not())
        if token == "(":
            term = self._either()
            if self._next() != ")":
                raise ValueError("a parenthesis is not closed")
            self.at += 1
        elif re.fullmatch(r"[A-Za-z_][\w\[\]]*|[01]", token):
            term = (token,)
        else:
            raise ValueError(f"unexpected {token!r}")
        while self._next() == "'":
            self.at += 1
            term = ("!", term)
        return term


def _value(term: tuple, row: dict[str, int]) -> int:
    operator = term[0]
    if len(term) == 1:
        if operator in {"0", "1"}:
            return int(operator)
        if operator not in row:
            raise ValueError(f"{operator} is no input")
        return row[operator]
    values = [_value(inner, row) for inner in term[1:]]
    if operator == "!":
        return 1 - values[0]
    if operator == "&":
        return values[0] & values[1]
    return values[0] | values[1] if operator == "|" else values[0] ^ values[1]
