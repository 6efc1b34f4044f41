# SPDX-License-Identifier: Apache-2.0
"""Energy of a mapped netlist from how often its nets switch, without wires and without glitches.

The netlist is simulated in numpy, many independent runs side by side, one evaluation a cycle.  A
net that switches costs half of its capacitance (the pins that it drives) times the square of the
supply, and what the Liberty tables say its driver takes besides; a flip-flop costs its clock pin
twice a cycle.  Gates that change several times in a cycle are counted once: that is a lower bound,
and the deeper the logic the further off it is.  Memory macros keep what is written, for the sake of
what they drive; what they take themselves is not known and not counted.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

    Macros of memories are those of ``memories.v`` beside it.  ``drive(cycle)`` gives the bits
    (runs, width), lowest first, of each input port but the clock; those that it leaves out are 0.
    Raises :class:`AtriplexError` for cells that it cannot simulate.
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
    macros = netlist.parent / "memories.v"
    files = [file.name for file in (netlist, macros) if file.exists()]
    script = (
        f"read_verilog -sv {' '.join(files)}; hierarchy -top {top}; proc; opt; memory -nomap; "
        "opt_expr -mux_undef; flatten; opt_clean; write_json netlist.json"
    )
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
        self.memories = [
            _Memory(cell, self.at, 64 * self.words)
            for cell in module["cells"].values()
            if cell["type"] == "$mem_v2"
        ]
        self.gates, self.flops = self._split()
        self.levels = self._levelled()

    def _split(self) -> tuple[list[Any], list[tuple["_Flop", list[NDArray], NDArray, bool]]]:
        gates: list[Any] = []
        flops: dict[str, list[dict[str, int]]] = {}
        for cell in _logic(self.module):
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

    def _levelled(self) -> list[Callable[[Words], None]]:
        """Gates of a kind whose inputs are known by then, at a time; memories read without clock
        among them."""
        depth: dict[int, int] = {}
        drivers = {out: ins for _, _, ins, out in self.gates}
        for memory in self.memories:
            for read in memory.unclocked:
                drivers |= {int(bit): list(map(int, read.address)) for bit in read.data}
        for start in drivers:
            stack = [start]
            while stack:
                bit = stack[-1]
                if bit in depth:
                    stack.pop()
                    continue
                missing = [i for i in drivers[bit] if i in drivers and i not in depth]
                if missing:
                    stack += missing
                    continue
                depth[bit] = 1 + max((depth.get(i, 0) for i in drivers[bit]), default=0)
                stack.pop()
        groups: dict[tuple[int, str, str], list[tuple[list[int], int]]] = {}
        for kind, pin, ins, out in self.gates:
            groups.setdefault((depth[out], kind, pin), []).append((ins, out))
        levels: list[tuple[int, Callable[[Words], None]]] = [
            (depth[int(read.data[0])], partial(memory.read, read))
            for memory in self.memories
            for read in memory.unclocked
        ]
        for (level, kind, pin), members in sorted(groups.items()):
            cell = self.liberty.cells[kind]
            (function,) = (each.function for each in cell.outputs if each.name == pin)
            outs = np.array([out for _, out in members])
            ins = [np.array(each) for each in zip(*(ins for ins, _ in members), strict=True)]
            compiled = _compiled(function or "", cell.inputs)
            levels.append((level, partial(_evaluate, compiled, ins, outs)))
        return [evaluate for _, evaluate in sorted(levels, key=lambda each: each[0])]

    def step(self, drive: Mapping[str, NDArray[np.uint8]], *, counts: bool) -> None:
        """A clock edge, then new inputs."""
        before = self.state.copy()
        state = self.state
        for flop, ins, outs, complement in self.flops:
            value = flop.next(*(before[place] for place in ins))
            state[outs] = ~value if complement else value
        for memory in self.memories:
            memory.clock(before, state)
        for name, bits in drive.items():
            places = [self.at[bit] for bit in self.module["ports"][name]["bits"]]
            state[places] = _packed(bits, self.words)
        for evaluate in self.levels:
            evaluate(state)
        if counts:
            flips = (state ^ before).view(np.uint8)
            self.toggles += _ONES[flips].sum(axis=1, dtype=np.int64)


def _logic(module: Mapping[str, Any]) -> list[Any]:
    """A netlist's gates and flip-flops."""
    return [
        cell for cell in module["cells"].values() if cell["type"] not in ("$mem_v2", "$scopeinfo")
    ]


def _evaluate(
    function: Callable[..., Words], ins: Sequence[NDArray], outs: NDArray, state: Words
) -> None:
    state[outs] = function(*(state[place] for place in ins))


@dataclass(frozen=True, eq=False)
class _Port:
    """Places of a memory port's bits; a read port without clock has no ``enable``.

    ``enable``: of a read port one bit, of a write port one for each bit of the word.  ``sees``: the
    write ports whose words a read port gives in the cycle in which they are written.
    """

    address: NDArray
    data: NDArray
    enable: NDArray
    sees: tuple[int, ...] = ()


class _Memory:
    """A memory cell of yosys (``$mem_v2``), with contents of its own in each run."""

    def __init__(self, cell: Mapping[str, Any], at: Mapping[Any, int], runs: int):
        given, nets = cell["parameters"], cell["connections"]
        size = {
            name: int(given[name], 2)
            for name in ("SIZE", "WIDTH", "ABITS", "RD_PORTS", "WR_PORTS", "OFFSET")
        }
        reads, writes = size["RD_PORTS"], size["WR_PORTS"]
        resets = {bit for pin in ("RD_ARST", "RD_SRST") for bit in nets[pin]}
        if size["OFFSET"] or resets - {"0"}:
            raise AtriplexError("a memory whose outputs are reset is not simulated")

        def places(pin: str, port: int, width: int) -> NDArray:
            return np.array([at[bit] for bit in nets[pin][port * width : (port + 1) * width]])

        def port(kind: str, number: int, enables: int, sees: tuple[int, ...] = ()) -> _Port:
            return _Port(
                places(f"{kind}_ADDR", number, size["ABITS"]),
                places(f"{kind}_DATA", number, size["WIDTH"]),
                places(f"{kind}_EN", number, enables),
                sees,
            )

        mask = given["RD_TRANSPARENCY_MASK"][::-1].ljust(reads * writes, "0")
        self.writes = [port("WR", number, size["WIDTH"]) for number in range(writes)]
        self.clocked, self.unclocked = [], []
        for number in range(reads):
            sees = tuple(w for w in range(writes) if mask[number * writes + w] == "1")
            clocked = given["RD_CLK_ENABLE"][::-1][number] == "1"
            (self.clocked if clocked else self.unclocked).append(port("RD", number, 1, sees))
        shape = (size["SIZE"], size["WIDTH"], runs)
        init = [bit == "1" for bit in reversed(given["INIT"])]
        if len(init) == size["SIZE"] * size["WIDTH"] and "x" not in given["INIT"]:
            first = np.array(init, np.uint8).reshape(*shape[:2], 1)
            self.words = np.broadcast_to(first, shape).copy()
        else:
            self.words = np.random.default_rng(1).integers(0, 2, shape, np.uint8)
        self.runs = np.arange(runs)

    def read(self, port: _Port, state: Words) -> None:
        """Of a port without clock."""
        state[port.data] = _packed(self._at(self._address(port, state)), state.shape[1])

    def clock(self, before: Words, state: Words) -> None:
        """What clocked ports read, and what is written."""
        found = [(port, self._address(port, before)) for port in self.clocked]
        words = [self._at(address) for _, address in found]
        for number, port in enumerate(self.writes):
            address = self._address(port, before)
            enable, data = _bits_of(before[port.enable]), _bits_of(before[port.data])
            for (read, at), word in zip(found, words, strict=True):
                if number in read.sees:
                    same = (at == address)[:, None] & (enable == 1)
                    word[same] = data[same]
            self.words[address, :, self.runs] = np.where(enable, data, self._at(address))
        for (port, _), word in zip(found, words, strict=True):
            kept = _bits_of(before[port.data])
            taken = np.where(_bits_of(before[port.enable]), word, kept)
            state[port.data] = _packed(taken, state.shape[1])

    def _address(self, port: _Port, state: Words) -> NDArray[np.int64]:
        """In each run; what is beyond the last word is the last."""
        bits = _bits_of(state[port.address]).astype(np.int64)
        return np.minimum(bits @ (1 << np.arange(bits.shape[1])), len(self.words) - 1)

    def _at(self, address: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.words[address, :, self.runs]


def _energy(machine: _Machine, liberty: Liberty, rates: NDArray[np.float64]) -> Energy:
    head = liberty.heads[0]
    volts = float(head.values.get("nom_voltage", 1.8))
    loads, cells = np.zeros(len(machine.state)), _logic(machine.module)
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


def _bits_of(words: Words) -> NDArray[np.uint8]:
    """(width, words) as (runs, width) bits."""
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").T


def _packed(bits: NDArray[np.uint8], words: int) -> Words:
    """(runs, width) bits as (width, words)."""
    runs = np.zeros((bits.shape[1], words * 64), np.uint8)
    runs[:, : len(bits)] = bits.T
    return np.packbits(runs, axis=1, bitorder="little").view(np.uint64)
