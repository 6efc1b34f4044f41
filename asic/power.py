# SPDX-License-Identifier: Apache-2.0
"""Energy of a mapped netlist from how often its nets switch, without wires and without glitches.

The netlist is simulated in numpy, many independent runs side by side, one evaluation a cycle.  A
net that switches costs half of its capacitance (the pins that it drives) times the square of the
supply, and what the Liberty tables say its driver takes besides; a flip-flop costs its clock pin
twice a cycle.  Gates that change several times in a cycle are counted once: that is a lower bound,
and the deeper the logic the further off it is.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gen import tools
from ..rtl.errors import AtriplexError
from .liberty import Group, Liberty, expression, numbers
from .library import Library

Words = NDArray[np.uint64]
Drive = Callable[[int], Mapping[str, NDArray[np.uint8]]]
_ONES = np.array([bin(value).count("1") for value in range(256)], np.uint16)
WARM_UP = 12
"""Cycles before anything is counted, so that pipelines are full."""


@dataclass(frozen=True)
class Energy:
    """Picojoules a cycle: of nets that switch, inside the gates that drive them, and of the clock;
    ``toggles`` is how often a net switches in a cycle, on average."""

    switching: float
    internal: float
    clock: float
    toggles: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.switching + self.internal + self.clock


def estimate(
    netlist: Path,
    top: str,
    library: Library,
    drive: Drive,
    *,
    runs: int = 128,
    cycles: int = 48,
    log: Path,
) -> Energy:
    """Energy of ``top`` in a Verilog ``netlist`` of the library's cells.

    ``drive(cycle)`` gives the bits (runs, width), lowest first, of each input port but the clock;
    those that it leaves out are 0.  Raises :class:`AtriplexError` for cells that it cannot
    simulate.
    """
    found = simulated(netlist, top, library, drive, runs, cycles, log)
    return _energy(found.machine, library.liberty, found.every)


@dataclass(frozen=True, eq=False)
class Simulated:
    """A netlist after its simulation; ``every`` bit's toggles a cycle."""

    machine: "_Machine"
    every: NDArray[np.float64]

    def rates(self, port: str) -> list[float]:
        """Toggles a cycle of a port's bits, lowest first."""
        bits = self.machine.module["ports"][port]["bits"]
        return [float(self.every[self.machine.at[bit]]) for bit in bits]


def simulated(
    netlist: Path,
    top: str,
    library: Library,
    drive: Drive,
    runs: int,
    cycles: int,
    log: Path,
) -> Simulated:
    """``runs`` side by side, for ``cycles`` of which the first ``WARM_UP`` do not count."""
    script = f"read_verilog -sv {netlist.name}; hierarchy -top {top}; write_json netlist.json"
    tools.run(tools.find("yosys"), ["-q", "-p", script], cwd=netlist.parent, log=log)
    module = json.loads((netlist.parent / "netlist.json").read_text())["modules"][top]
    machine = _Machine(module, library.liberty, runs)
    for cycle in range(cycles):
        machine.step(drive(cycle), counts=cycle >= WARM_UP)
    return Simulated(machine, machine.toggles / ((cycles - WARM_UP) * runs))


class _Machine:
    """A netlist of gates and flip-flops; the state of a bit are words with a run in each bit."""

    def __init__(self, module: Mapping[str, Any], liberty: Liberty, runs: int):
        self.module, self.words = module, -(-runs // 64)
        self.liberty = liberty
        bits = {bit for cell in module["cells"].values() for bit in _bits(cell)}
        bits |= {bit for port in module["ports"].values() for bit in port["bits"]}
        numbers = sorted(bit for bit in bits if isinstance(bit, int))
        self.at = {bit: place + 2 for place, bit in enumerate(numbers)}
        self.at |= {"0": 0, "1": 1, "x": 0, "z": 0}
        self.state = np.zeros((len(numbers) + 2, self.words), np.uint64)
        self.state[1] = ~np.uint64(0)
        self.toggles = np.zeros(len(self.state), np.int64)
        self.gates, self.flops = self._split()
        self.levels = self._levelled()

    def _split(self) -> tuple[list[Any], list[tuple["_Flop", list[NDArray], NDArray, bool]]]:
        gates: list[Any] = []
        flops: dict[str, list[dict[str, int]]] = {}
        for cell in self.module["cells"].values():
            kind = self.liberty.cells.get(cell["type"])
            if kind is None:
                raise AtriplexError(f"the energy of {cell['type']} is not known")
            place = {name: self.at[bits[0]] for name, bits in cell["connections"].items() if bits}
            if kind.state == "ff":
                flops.setdefault(cell["type"], []).append(place)
            elif kind.state:
                raise AtriplexError(f"{cell['type']} is a {kind.state}, which is not simulated")
            else:
                for pin in kind.outputs:
                    if pin.name in place and pin.function:
                        ins = [place[name] for name in kind.inputs]
                        gates.append((cell["type"], pin.name, ins, place[pin.name]))
        made = []
        for name, places in flops.items():
            flop = _flop(self.liberty, name)
            for pin, complement in flop.outputs.items():
                used = [place for place in places if pin in place]
                if used:
                    ins = [np.array([place[i] for place in used]) for i in flop.inputs]
                    outs = np.array([place[pin] for place in used])
                    made.append((flop, ins, outs, complement))
        return gates, made

    def _levelled(self) -> list[tuple[Callable[..., Words], list[NDArray], NDArray]]:
        """Gates of a kind whose inputs are known by then, at a time."""
        depth: dict[int, int] = {}
        drivers = {out: (ins, n) for n, (_, _, ins, out) in enumerate(self.gates)}
        for start in drivers:
            stack = [start]
            while stack:
                bit = stack[-1]
                if bit in depth:
                    stack.pop()
                    continue
                missing = [i for i in drivers[bit][0] if i in drivers and i not in depth]
                if missing:
                    stack += missing
                    continue
                depth[bit] = 1 + max((depth.get(i, 0) for i in drivers[bit][0]), default=0)
                stack.pop()
        groups: dict[tuple[int, str, str], list[tuple[list[int], int]]] = {}
        for kind, pin, ins, out in self.gates:
            groups.setdefault((depth[out], kind, pin), []).append((ins, out))
        levels = []
        for (_, kind, pin), members in sorted(groups.items()):
            cell = self.liberty.cells[kind]
            (function,) = (each.function for each in cell.outputs if each.name == pin)
            outs = np.array([out for _, out in members])
            ins = [np.array(each) for each in zip(*(ins for ins, _ in members), strict=True)]
            levels.append((_compiled(function or "", cell.inputs), ins, outs))
        return levels

    def step(self, drive: Mapping[str, NDArray[np.uint8]], *, counts: bool) -> None:
        """A clock edge, then new inputs."""
        before = self.state.copy()
        state = self.state
        for flop, ins, outs, complement in self.flops:
            value = flop.next(*(before[place] for place in ins))
            state[outs] = ~value if complement else value
        for name, bits in drive.items():
            places = [self.at[bit] for bit in self.module["ports"][name]["bits"]]
            state[places] = _packed(bits, self.words)
        for function, ins, outs in self.levels:
            state[outs] = function(*(state[place] for place in ins))
        if counts:
            flips = (state ^ before).view(np.uint8)
            self.toggles += _ONES[flips].sum(axis=1, dtype=np.int64)


def _energy(machine: _Machine, liberty: Liberty, rates: NDArray[np.float64]) -> Energy:
    head = liberty.heads[0]
    volts = float(head.values.get("nom_voltage", 1.8))
    loads, cells = np.zeros(len(machine.state)), machine.module["cells"].values()
    for cell in cells:
        for pin in liberty.cells[cell["type"]].pins:
            bits = cell["connections"].get(pin.name)
            if pin.direction == "input" and bits:
                loads[machine.at[bits[0]]] += pin.capacitance * 1e-3  # pF
    switching = float((rates * loads).sum()) * volts**2 / 2
    internal = clock = 0.0
    tables: dict[tuple[str, str], list[tuple[NDArray, NDArray]]] = {}
    clocks = {name: _clock(liberty, name) for name in {cell["type"] for cell in cells}}
    for cell in cells:
        kind = liberty.cells[cell["type"]]
        for pin in kind.pins:
            bits = cell["connections"].get(pin.name)
            if not bits:
                continue
            key = (kind.name, pin.name)
            if key not in tables:
                tables[key] = _inside(liberty, *key)
            at = machine.at[bits[0]]
            if pin.direction == "output":
                internal += rates[at] * _mean(tables[key], loads[at])
            elif pin.name in clocks[kind.name]:
                clock += pin.capacitance * 1e-3 * volts**2 + 2 * _mean(tables[key], 0.0)
                loads[at] = 0  # the clock's own net
    used = loads > 0
    used[:2] = False
    rate = float(rates[used].mean()) if used.any() else 0.0
    return Energy(switching, float(internal), float(clock), rate)


def _inside(liberty: Liberty, cell: str, pin: str) -> list[tuple[NDArray, NDArray]]:
    """Loads and energies at a middling slew of each table of a pin's internal power."""
    head = liberty.head(cell)
    templates = {
        group.args[0]: group
        for kind in ("power_lut_template", "lu_table_template")
        for group in head.all(kind)
        if group.args
    }
    found = []
    for group in liberty.group(cell).groups:
        if pin not in group.args:
            continue
        for power in group.all("internal_power"):
            for table in power.groups:
                if table.lists.get("values"):
                    found.append(_row(table, templates))
    return found


def _row(table: Group, templates: Mapping[str, Group]) -> tuple[NDArray, NDArray]:
    template = templates.get(table.args[0] if table.args else "", Group("", ()))

    def axis(name: str) -> NDArray:
        return np.array(numbers(table.lists.get(name) or template.lists.get(name, ())))

    values = axis("values")
    first, second = axis("index_1"), axis("index_2")
    if not len(second):
        return np.zeros(1), values[[len(values) // 2]]
    rows = values.reshape(len(first), len(second))
    if "capacitance" in template.values.get("variable_1", ""):
        return first, rows[:, len(second) // 2]
    return second, rows[len(first) // 2]


def _mean(tables: Sequence[tuple[NDArray, NDArray]], load: float) -> float:
    if not tables:
        return 0.0
    return float(np.mean([np.interp(load, loads, energy) for loads, energy in tables]))


def _clock(liberty: Liberty, cell: str) -> set[str]:
    """The pins that a flip-flop is clocked on; none of a gate."""
    if not liberty.cells[cell].state:
        return set()
    found = (group.values.get("clocked_on", "") for group in liberty.group(cell).all("ff"))
    return set(re.findall(r"\w+", next(found, "")))


@dataclass(frozen=True)
class _Flop:
    """``next`` of the pins ``inputs``; ``outputs`` by pin: whether it is the complement."""

    next: Callable[..., Words]
    inputs: tuple[str, ...]
    outputs: dict[str, bool]


def _flop(liberty: Liberty, cell: str) -> _Flop:
    for group in liberty.group(cell).all("ff"):
        if "clear" in group.values or "preset" in group.values:
            break
        text = group.values.get("next_state", "")
        names = tuple(dict.fromkeys(re.findall(r"[A-Za-z_]\w*", text)))
        plain, *other = group.args
        outputs = {}
        for pin in liberty.cells[cell].outputs:
            function = re.sub(r"[\s()]", "", pin.function or "")
            outputs[pin.name] = function in (*other, f"!{plain}", f"{plain}'")
        return _Flop(_compiled(text, names), names, outputs)
    raise AtriplexError(f"{cell} is a flip-flop that is not simulated")


def _compiled(function: str, inputs: Sequence[str]) -> Callable[..., Words]:
    """A Liberty expression as one on words."""

    def value(term: tuple, given: Mapping[str, Words]) -> Words:
        kind, *parts = term
        if kind == "0":
            return np.zeros_like(next(iter(given.values())))
        if kind == "1":
            return ~np.zeros_like(next(iter(given.values())))
        if not parts:
            return given[kind]
        first, *rest = (value(part, given) for part in parts)
        if kind == "!":
            return ~first
        return {"&": np.bitwise_and, "|": np.bitwise_or, "^": np.bitwise_xor}[kind](first, rest[0])

    tree = expression(function)
    return lambda *words: value(tree, dict(zip(inputs, words, strict=True)))


def _bits(cell: Mapping[str, Any]) -> list[Any]:
    return [bit for bits in cell["connections"].values() for bit in bits]


def _packed(bits: NDArray[np.uint8], words: int) -> Words:
    """(runs, width) bits as (width, words)."""
    runs = np.zeros((bits.shape[1], words * 64), np.uint8)
    runs[:, : len(bits)] = bits.T
    return np.packbits(runs, axis=1, bitorder="little").view(np.uint64)
