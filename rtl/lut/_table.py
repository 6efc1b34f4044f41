# SPDX-License-Identifier: Apache-2.0
"""Tables of the signed sums of a group of activations: entries, shared adders, order of building.

An entry is a pattern of weights, one for each activation of the group, and holds their dot product.

==========  =========  ==========================================================================
code        weights    index of a pattern
==========  =========  ==========================================================================
``binary``  -1, 1      bit ``k`` is set where activation ``k`` is added
``bits``    0, 1       bit ``k`` is set where activation ``k`` is added
``ternary`` -1, 0, 1   ``v + (3**group - 1) / 2`` with ``v = sum(w[k] * 3**(group - 1 - k))``
==========  =========  ==========================================================================

A half table leaves out what is another entry negated.  It keeps the patterns whose leading weight
is positive: the last activation is always added (``binary``, the index without its top bit), or
the index is ``v`` itself, which is not negative then (``ternary``; for groups of 3 the table of
TL2).  Its entries are at most ``group * 2**(act_width - 1) - 1``, so they need a bit less than
those of the whole table where ``group`` is a power of two.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from amaranth.hdl import Array, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from .._add_select import AddSelect, AddSelectConfig
from .._once import place
from .._streams import bits_for

WEIGHTS = {"binary": (-1, 1), "bits": (0, 1), "ternary": (-1, 0, 1)}
CODES = tuple(WEIGHTS)

Pattern = tuple[int, ...]


@cache
def patterns(group: int, code: str, half: bool) -> tuple[Pattern, ...]:
    """The pattern of every entry of the table, in the order of their indices."""
    every = [_ordered(each, code) for each in itertools.product(WEIGHTS[code], repeat=group)]
    return tuple(every[len(every) // 2 :] if half else every)


def size(group: int, code: str, half: bool) -> int:
    """Entries of the table."""
    whole = (3 if code == "ternary" else 2) ** group
    return (whole + 1) // 2 if half else whole


def entry_width(group: int, code: str, half: bool, act_width: int) -> int:
    """Bits of an entry: ``group`` activations down to ``-2**(act_width - 1)``, some negated."""
    widest = act_width + ceil_log2(group)
    negated = not half and code != "bits"
    return widest + (negated and group == 1 << ceil_log2(group))


def _ordered(pattern: Pattern, code: str) -> Pattern:
    """Between the order of activations and that of significance, which is there and back."""
    return pattern if code == "ternary" else pattern[::-1]


class Step(NamedTuple):
    """A node of a plan: ``a + b``, ``a - b``, or ``-a`` with ``b`` None."""

    a: int
    b: int | None
    subtract: bool


class Plan(NamedTuple):
    """How all entries are made at once.  Nodes are numbered: activations, then ``steps``.

    ``entries`` are the nodes of the entries, None for the pattern of zeros; ``depths`` of all
    nodes, in adders.
    """

    group: int
    steps: tuple[Step, ...]
    entries: tuple[int | None, ...]
    depths: tuple[int, ...]

    @property
    def adds(self) -> int:
        """Adders with two operands."""
        return sum(step.b is not None for step in self.steps)

    @property
    def negations(self) -> int:
        """Of whole tables only."""
        return len(self.steps) - self.adds

    @property
    def levels(self) -> int:
        return max(self.depths)

    def registers(self, stage: int) -> tuple[int, ...]:
        """Levels with registers behind them: every ``stage`` of them, 0 for none, and the last."""
        inner = range(stage, self.levels, stage) if stage else ()
        return (*inner, self.levels)


@cache
def plan(group: int, code: str, half: bool) -> Plan:
    """Sums of both halves of the group, shared, then an adder for every entry.

    A node's leading weight is positive, so every adder adds or subtracts a node and none needs a
    negated one; what the whole table has besides is negated.
    """
    nodes: dict[Pattern, int] = {}
    steps: list[Step] = []
    depths = [0] * group
    units = [_ordered(tuple(int(at == k) for at in range(group)), code) for k in range(group)]
    nodes.update({unit: k for k, unit in enumerate(units)})

    def node(pattern: Pattern, at: int, count: int) -> int | None:
        """Of a pattern, by significance, that is zero but for ``count`` weights from ``at`` on."""
        leading = next((weight for weight in pattern if weight), 0)
        if leading <= 0:
            return None if not leading else negated(pattern, at, count)
        if pattern not in nodes:
            split = at + (count + 1) // 2
            high = tuple(w if n < split else 0 for n, w in enumerate(pattern))
            low = tuple(w if n >= split else 0 for n, w in enumerate(pattern))
            if not any(high) or not any(low):
                whole = (split, count - split + at) if any(low) else (at, split - at)
                found = node(pattern, *whole)
                assert found is not None
                return found
            subtract = next(w for w in low if w) < 0
            positive = tuple(-w for w in low) if subtract else low
            a, b = node(high, at, split - at), node(positive, split, count - split + at)
            assert a is not None and b is not None
            nodes[pattern] = step(Step(a, b, subtract))
        return nodes[pattern]

    def negated(pattern: Pattern, at: int, count: int) -> int:
        if pattern not in nodes:
            positive = node(tuple(-w for w in pattern), at, count)
            assert positive is not None
            nodes[pattern] = step(Step(positive, None, True))
        return nodes[pattern]

    def step(one: Step) -> int:
        steps.append(one)
        depths.append(1 + max(depths[one.a], 0 if one.b is None else depths[one.b]))
        return len(depths) - 1

    entries = [node(_ordered(pattern, code), 0, group) for pattern in patterns(group, code, half)]
    return Plan(group, tuple(steps), tuple(entries), tuple(depths))


def build(
    m: Module, made: Plan, acts: Sequence[Any], width: int, enable: Any, stage: int, name: str = ""
) -> list[Any]:
    """All entries, ``width`` bits each, ``len(made.registers(stage))`` registers after ``acts``."""
    values: dict[int, Any] = dict(enumerate(acts))
    terms = [1] * made.group
    for level in range(made.levels + 1):
        for number, one in enumerate(made.steps, made.group):
            if level == 0:
                terms.append(terms[one.a] + (0 if one.b is None else terms[one.b]))
            if made.depths[number] != level:
                continue
            bits = width if one.b is None else len(acts[0]) + ceil_log2(terms[number])
            values[number] = Signal(signed(bits), name=f"sum{name}_{number}")
            a = values[one.a]
            total = (
                -a if one.b is None else a - values[one.b] if one.subtract else a + values[one.b]
            )
            m.d.comb += values[number].eq(total)
        if level in made.registers(stage):
            values = _kept(m, made, values, level, enable, name)
    return [Const(0, signed(width)) if at is None else values[at] for at in made.entries]


def _kept(
    m: Module, made: Plan, values: dict[int, Any], level: int, enable: Any, name: str
) -> dict[int, Any]:
    """Registers of the ``values`` that are used behind a level."""
    later = {entry for entry in made.entries if entry is not None}
    for number, one in enumerate(made.steps, made.group):
        if made.depths[number] > level:
            later |= {one.a} if one.b is None else {one.a, one.b}
    kept: dict[int, Any] = {}
    for number in sorted(later & values.keys()):
        kept[number] = Signal(
            signed(len(values[number])), name=f"x_sum{name}_{level}_{number}", reset_less=True
        )
        with m.If(enable):
            m.d.sync += kept[number].eq(values[number])
    return kept


class Move(NamedTuple):
    """What one adder does in a cycle: the sum so far plus or minus an activation, or twice it.

    ``act`` None adds nothing; ``entry`` is the index of the entry that is there then, if any.
    """

    act: int | None
    subtract: bool
    double: bool
    entry: int | None


@cache
def moves(group: int, code: str, half: bool) -> tuple[Move, ...]:
    """All entries one after the other, from a sum of zero: one weight changes at a time.

    A reflected Gray code, in which the least significant weight changes most often and last.
    """
    weights = WEIGHTS[code]
    if not half:
        path = _path((weights[0],) * group, weights)
    elif code == "ternary":
        path = _half_path(group)
    else:
        path = [(1, *rest) for rest in _path((-1,) * (group - 1), weights)]
    index = {each: at for at, each in enumerate(patterns(group, code, half))}
    made = []
    before = (0,) * group
    first = path[0]
    starts = [(*first[:n], *before[n:]) for n in range(1, group + 1)] if any(first) else [first]
    for number, pattern in enumerate((*starts[:-1], *path)):
        changed = [n for n in range(group) if pattern[n] != before[n]]
        entry = index[_ordered(pattern, code)] if number >= len(starts) - 1 else None
        if changed:
            (digit,) = changed
            change = pattern[digit] - before[digit]
            act = digit if code == "ternary" else group - 1 - digit
            made.append(Move(act, change < 0, abs(change) == 2, entry))
        else:
            made.append(Move(None, False, False, entry))
        before = pattern
    return tuple(made)


def _path(start: Pattern, weights: tuple[int, ...]) -> list[Pattern]:
    """All patterns by significance from a corner on, one weight changing at a time."""
    if not start:
        return [()]
    path: list[Pattern] = []
    at = start[1:]
    for weight in weights if start[0] == weights[0] else weights[::-1]:
        rest = _path(at, weights)
        path += [(weight, *each) for each in rest]
        at = rest[-1]
    return path


def _half_path(group: int) -> list[Pattern]:
    """As ``_path``, of the ternary patterns that begin with 1 after zeros, from the zeros on."""
    if group == 1:
        return [(0,), (1,)]
    few = _half_path(group - 1)
    return [
        *((0, *each) for each in few),
        *((1, *each) for each in _path(few[-1], WEIGHTS["ternary"])),
    ]


class Walk(wiring.Component):
    """Walks through the ``moves`` of tables: one with every ``enable``, again and again.

    Members
    -------
    act, used, subtract, double : the move of this cycle; nothing is added unless ``used``.
    ends : it is the last.
    shows, entry : the entry that is there after it, if any.
    """

    enable: Signal
    act: Signal
    used: Signal
    subtract: Signal
    double: Signal
    ends: Signal
    shows: Signal
    entry: Signal

    def __init__(self, group: int, code: str, half: bool):
        self.moves = made = moves(group, code, half)
        self.columns = {
            "act": [move.act or 0 for move in made],
            "used": [move.act is not None for move in made],
            "subtract": [move.subtract for move in made],
            "double": [move.double for move in made],
            "ends": [at == len(made) - 1 for at in range(len(made))],
            "shows": [move.entry is not None for move in made],
            "entry": [move.entry or 0 for move in made],
        }
        super().__init__({
            "enable": In(1),
            **{
                name: Out(bits_for(max(values) + 1), init=int(values[0]))  # pyright: ignore  # no stub
                for name, values in self.columns.items()
            },
        })

    def elaborate(self, platform):
        m = Module()
        count = len(self.moves)
        step = Signal(range(max(count, 2)))
        with m.If(self.enable):
            m.d.sync += step.eq(Mux(self.ends, 0, step + 1))
            for name, values in self.columns.items():  # registers of the move to come
                to_come = [
                    Const(int(v), len(getattr(self, name))) for v in (*values[1:], values[0])
                ]
                m.d.sync += getattr(self, name).eq(Array(to_come)[step])
        return m


def summed(
    m: Module, platform: Any, move: Any, act: Any, width: int, enable: Any, double: Any = 0, name=""
) -> Any:
    """The entry that is there after a ``move``, as ``Walk`` gives it, with its activation ``act``.

    One adder; its sum starts at zero for every table.
    """
    total = Signal(signed(width), name=f"total{name}")
    if isinstance(double, Signal):
        act = Mux(double, act << 1, act)
    add = place(
        m,
        platform,
        f"add{name}",
        AddSelect(AddSelectConfig(width=width)),
        a=total,
        b=act,
        enable=move.used,
        invert=move.subtract,
        carry=move.subtract,
    )
    y = add.y[:width].as_signed()
    with m.If(enable):
        m.d.sync += total.eq(y)
        with m.If(move.ends):
            m.d.sync += total.eq(0)
    return y
