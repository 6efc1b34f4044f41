# SPDX-License-Identifier: Apache-2.0
"""Instructions of the micro engine, and an assembler for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from amaranth.hdl import Shape, unsigned
from amaranth.lib import data


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


@dataclass(frozen=True)
class Microcode:
    """Words of the instruction memory; labels by name; what local memory holds after reset."""

    words: tuple[int, ...]
    labels: Mapping[str, int]
    local: tuple[int, ...]

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


def assemble(text: str, constants: Mapping[str, int], variables: Sequence[str]) -> Microcode:
    """Microcode from ``text``, an instruction or a ``label:`` a line, comments after ``;``.

    ``constants`` and ``variables`` lie at the beginning of local memory.  An operand is ``#3``, a
    name of these, ``[i0]``, ``[i0+]`` or one of ``thread``, ``byte+`` ...; ``!`` behind an
    instruction shows ``a`` at the tap.
    """
    places = {name: at for at, name in enumerate([*constants, *variables])}
    lines: list[tuple[list[str], bool]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        words = line.partition(";")[0].replace(",", " ").split()
        if words and words[0].endswith(":"):
            labels[words.pop(0)[:-1]] = len(lines)
        if words:
            tap = words[-1] == "!"
            lines.append((words[:-1] if tap else words, tap))
    words = tuple(_word(line, tap, labels, places) for line, tap in lines)
    return Microcode(words, labels, (*constants.values(), *([0] * len(variables))))


def _word(
    line: Sequence[str], tap: bool, labels: Mapping[str, int], places: Mapping[str, int]
) -> int:
    name, *operands = line
    source, argument = Source.NUMBER, 0
    if name == "set":
        op = Op.SET + Register[operands[0].upper()]
        source, argument = _operand(operands[1], places)
    elif name == "loop":
        op, argument = Op.LOOP + int(operands[0][1]), labels[operands[1]]
    elif name in _JUMPS:
        op, argument = Op[name.upper()], labels[operands[0]]
    elif name in _BARE:
        op = Op[name.upper()]
    else:
        op = Op[name.upper()]
        source, argument = (
            (Source.REGISTER, 0) if operands[0] == "n" else _operand(operands[0], places)
        )
    fields = {"argument": argument, "source": source, "op": int(op), "tap": tap}
    return sum(
        (fields[name] & (1 << Shape.cast(field.shape).width) - 1) << field.offset
        for name, field in INSTRUCTION
    )


def _operand(word: str, places: Mapping[str, int]) -> tuple[Source, int]:
    if word.startswith("#"):
        return Source.NUMBER, int(word[1:])
    if word.startswith("[i"):
        return Source.INDEXED, int(word[2]) | ("+" in word) << 2
    return _PLACES[word] if word in _PLACES else (Source.LOCAL, places[word])
