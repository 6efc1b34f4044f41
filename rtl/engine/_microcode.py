# SPDX-License-Identifier: Apache-2.0
"""Instructions of the micro engine, and an assembler for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from amaranth.hdl import Shape, unsigned
from amaranth.lib import data

from ..errors import AtriplexError, unknown


class Op(IntEnum):
    """What an instruction does: ``a`` the accumulator, ``x`` the multiplicand, ``b`` the operand.

    ``n`` is the operand's number where it is one, else the register of shifts.
    """

    LD = 0  # a = b
    ADD = 1  # a += b
    SUB = 2  # a -= b
    MUL = 3  # a = x * b
    MAC = 4  # a += x * b
    MSC = 5  # a -= x * b
    MIN = 6  # a = min(a, b)
    MAX = 7  # a = max(a, b)
    ABS = 8  # a = abs(a)
    SHR = 9  # a >>= n, a floor
    RND = 10  # a = a * 2**-n to the nearest, ties upwards
    DIV = 11  # n times: a = 2 a, and where a >= x << 24 then a -= x << 24 and a += 1
    EVEN = (
        12  # a = the quotient in a[1:24], to nearest, even: a[0] is its half, a[24:] what remains
    )
    LDX = 13  # x = b
    MVX = 14  # x = a
    ST = 15  # the operand's place = a
    JMP = 16
    BRN = 17  # jump where a < 0
    BRZ = 18  # jump where a == 0
    CALL = 19
    RET = 20
    GO = 21  # jump to b
    TAKE = 22  # the token
    OUT = 23  # a is the answer
    CODE = 24  # a is the next code of the vector that projections take, the last one where c0 is 1
    LOOP = 28  # count the counter of so much more than LOOP down, jump unless it gets to 0
    SET = 32  # the register of so much more than SET = b


class Register(IntEnum):
    """Registers other than ``a`` and ``x``."""

    I0 = 0
    I1 = 1
    I2 = 2
    I3 = 3
    C0 = 4
    C1 = 5
    C2 = 6
    C3 = 7
    P0 = 8  # where the thread goes on: an address in words
    P1 = 9  # an address in words, kept in bytes
    P2 = 10
    N = 11  # how far is shifted: what is below 0 becomes 0, above 63 it becomes 63
    PW = 12  # where the weights of the next projection begin: an address in words
    ENDS = 13  # whether the next projection is the last one of its vector
    WORDS = 14  # words of weights; the projection begins


class Source(IntEnum):
    """Where an operand is, and where ``ST`` puts it."""

    NUMBER = 0  # the argument, signed
    LOCAL = 1  # local memory, at the argument
    INDEXED = 2  # local memory, at an index register
    THREAD = 3  # the word of the store at p0, which goes on
    DATA = 4  # what is in the store at p1 or p2
    SUM = 5  # the next sum of the projection
    REGISTER = 6  # a
    TOKEN = 7  # 0: the token, 1: restart, 2: sample; waits for one


ARGUMENT = 12
INSTRUCTION = data.StructLayout({
    "argument": unsigned(ARGUMENT),
    "source": unsigned(3),
    "op": unsigned(6),
    "tap": unsigned(1),
})
INDEXED = data.StructLayout({"index": unsigned(2), "step": unsigned(1)})
"""The argument for ``INDEXED``."""
DATA = data.StructLayout({
    "word": unsigned(1),
    "unsigned": unsigned(1),
    "step": unsigned(1),
    "second": unsigned(1),
})
"""The argument for ``DATA``: a word or a byte, at p2 or p1."""

_PLACES = {
    "thread": (Source.THREAD, 0),
    "uthread": (Source.THREAD, 1),
    "byte+": (Source.DATA, 4),
    "word+": (Source.DATA, 5),
    "uword+": (Source.DATA, 7),
    "table": (Source.DATA, 11),
    "sum": (Source.SUM, 0),
    "a": (Source.REGISTER, 0),
    "token": (Source.TOKEN, 0),
    "restart": (Source.TOKEN, 1),
    "sample": (Source.TOKEN, 2),
}
_BARE = ("abs", "even", "mvx", "ret", "take", "out", "code")
_JUMPS = ("jmp", "brn", "brz", "call")
_SHIFTS = ("shr", "rnd")
_WRITTEN = (Source.LOCAL, Source.INDEXED, Source.DATA)
_NAMES = (
    *("set", "loop", *_BARE, *_JUMPS, *_SHIFTS, "div", "st", "go"),
    *("ld", "add", "sub", "mul", "mac", "msc", "min", "max", "ldx"),
)
_COUNTERS = ("c0", "c1", "c2", "c3")
_INDICES = ("i0", "i1", "i2", "i3")
DIVISIONS = 25
"""Most steps of ``div``: a quotient of as many bits, one of them behind the point."""


class MicrocodeError(AtriplexError, ValueError):
    """A line that is no instruction; one sentence that names it."""


@dataclass(frozen=True)
class Microcode:
    """Words of the instruction memory; labels by name; words of local memory that it takes."""

    words: tuple[int, ...]
    labels: Mapping[str, int]
    local: int

    def blocks(self) -> dict[str, list[dict[str, int]]]:
        """Instructions that are carried out together, as fields.

        A block begins at a label or behind what may jump; the second one behind a label is called
        ``label.1``, and so on.
        """
        names = {at: name for name, at in self.labels.items()}
        found: dict[str, list[dict[str, int]]] = {}
        label, count, block = "", 0, []
        for at, word in enumerate(self.words):
            if at in names:
                label, count = names[at], 0
            if at in names or block is None:
                block = found.setdefault(f"{label}.{count}" if count else label, [])
            fields = {
                name: word >> field.offset & (1 << Shape.cast(field.shape).width) - 1
                for name, field in INSTRUCTION
            }
            block.append(fields)
            if Op.JMP <= fields["op"] <= Op.GO or Op.LOOP <= fields["op"] < Op.SET:
                block, count = None, count + 1
        return found


def assemble(text: str, variables: Sequence[str]) -> Microcode:
    """Microcode from ``text``, an instruction or a ``label:`` a line, comments after ``;``.

    ``variables`` lie at the beginning of local memory.  An operand is ``#3``, a name of these,
    ``[i0]``, ``[i0+]`` or one of ``thread``, ``byte+`` ...; ``!`` behind an instruction shows ``a``
    at the tap.  Raises :class:`MicrocodeError`.
    """
    if twice := [at for at in variables if variables.count(at) > 1 or at in _PLACES]:
        raise MicrocodeError(f"microcode: {twice[0]!r} is the name of two operands")
    places = {name: at for at, name in enumerate(variables)}
    lines: list[tuple[int, list[str], bool]] = []
    labels: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition(";")[0].replace(",", " ").split()
        if words and words[0].endswith(":"):
            label = words.pop(0)[:-1]
            if label in labels:
                raise MicrocodeError(f"microcode, line {number}: label {label!r} is there twice")
            labels[label] = len(lines)
        if words:
            tap = words[-1] == "!"
            lines.append((number, words[:-1] if tap else words, tap))
    found = []
    for number, words, tap in lines:
        try:
            found.append(_word(words, tap, labels, places))
        except MicrocodeError as error:
            raise MicrocodeError(f"microcode, line {number}, {' '.join(words)}: {error}") from None
    return Microcode(tuple(found), labels, len(variables))


def _word(
    line: Sequence[str], tap: bool, labels: Mapping[str, int], places: Mapping[str, int]
) -> int:
    name, *operands = line or [""]
    _known("instruction", name, _NAMES)
    count = 0 if name in _BARE else 2 if name in ("set", "loop") else 1
    if len(operands) != count:
        raise MicrocodeError(f"{name} takes {count} operands, not {len(operands)}")
    source, argument = Source.NUMBER, 0
    if name == "set":
        register = _known("register", operands[0], [each.name.lower() for each in Register])
        op = Op.SET + Register[register.upper()]
        source, argument = _operand(operands[1], places)
    elif name == "loop":
        op = Op.LOOP + _COUNTERS.index(_known("counter", operands[0], _COUNTERS))
        argument = _target(operands[1], labels)
    else:
        op = Op[name.upper()]
        if name in _JUMPS:
            argument = _target(operands[0], labels)
        elif name in _SHIFTS and operands[0] == "n":
            source = Source.REGISTER
        elif name not in _BARE:
            source, argument = _operand(operands[0], places)
    if name in (*_SHIFTS, "div"):
        low, high = (1, DIVISIONS) if name == "div" else (0, 63)
        if operands[0] != "n" and (source != Source.NUMBER or not low <= argument <= high):
            raise MicrocodeError(f"{name} takes a number in {low}..{high}, not {operands[0]}")
    if name == "st" and source not in _WRITTEN:
        raise MicrocodeError(f"nothing is stored in {operands[0]}")
    fields = {"argument": argument, "source": source, "op": int(op), "tap": tap}
    return sum(
        (fields[name] & (1 << Shape.cast(field.shape).width) - 1) << field.offset
        for name, field in INSTRUCTION
    )


def _known(kind: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise MicrocodeError(unknown(kind, name, known))
    return name


def _target(label: str, labels: Mapping[str, int]) -> int:
    return _within("the jump's target", labels[_known("label", label, [*labels])], signed=False)


def _operand(word: str, places: Mapping[str, int]) -> tuple[Source, int]:
    if word.startswith("#"):
        try:
            number = int(word[1:])
        except ValueError:
            raise MicrocodeError(f"{word} is no number") from None
        return Source.NUMBER, _within("the number", number, signed=True)
    if word.startswith("["):
        index = word[1:].removesuffix("]").removesuffix("+")
        step = word.endswith("+]")
        at = _INDICES.index(_known("index register", index, _INDICES))
        if word != f"[{index}{'+' * step}]":
            raise MicrocodeError(f"{word} is no operand")
        return Source.INDEXED, at | step << 2
    if word in _PLACES:
        return _PLACES[word]
    place = places[_known("operand", word, [*_PLACES, *places])]
    return Source.LOCAL, _within("the place in local memory", place, signed=False)


def _within(what: str, value: int, *, signed: bool) -> int:
    """``value`` if the argument of an instruction holds it."""
    low, high = (
        (-(1 << ARGUMENT - 1), (1 << ARGUMENT - 1) - 1) if signed else (0, (1 << ARGUMENT) - 1)
    )
    if not low <= value <= high:
        raise MicrocodeError(f"{what} must be in {low}..{high}, not {value}")
    return value
