# SPDX-License-Identifier: Apache-2.0
"""The engine's program: what an operation says."""

from enum import IntEnum, IntFlag

from amaranth.hdl import unsigned
from amaranth.lib import data


class Kind(IntEnum):
    """Which unit an operation is for."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    ATTEND = 3
    END = 4


class When(IntEnum):
    """For which tokens an operation is done."""

    ALWAYS = 0
    SAMPLE = 1
    PREFILL = 2


class Wait(IntFlag):
    """Units that must have finished all they were given before an operation is handed out."""

    NORM = 1
    LINEAR = 2
    ATTEND = 4


class Target(IntEnum):
    """Where the results of a linear operation go."""

    QUERY = 0
    KEY = 1
    VALUE = 2
    GATE = 3
    ADD = 4
    HEAD = 5


MODE = 4
"""Bits of a linear operation's mode, which means to the core in the socket what the core says."""


class Mode(IntEnum):
    """What the weights of a linear operation are, to the core ``booth``."""

    TERNARY = 0
    INT4 = 1
    INT8 = 2


class Source(IntEnum):
    """Where the rows of a norm come from; those of ``DISCARD`` are the residual's and are lost."""

    RESIDUAL = 0
    ATTENTION = 1
    GATE = 2
    DISCARD = 3


OPERATION = data.StructLayout({
    "kind": unsigned(3),
    "when": unsigned(2),
    "waits": unsigned(3),
    "unit": unsigned(3),  # Target, Source, or 1 for the newest token in attention
    "flag": unsigned(1),  # LINEAR: the vector's last operation; NORM: without norm
    "fresh": unsigned(1),  # LINEAR: the vector's first operation
    "slot": unsigned(12),  # KEY, VALUE, ATTEND: of the layer's first K and V head
    "rows": unsigned(20),  # LINEAR: sums; NORM, EMBED: rows; ATTEND: query heads
    "words": unsigned(28),  # LINEAR: words of weights; ATTEND: query heads a K and V head
    "address": unsigned(32),  # LINEAR, NORM: of the first word or row
    "value": unsigned(32),  # LINEAR: mantissa, shift << 16, mode << 24; NORM: eps; EMBED: shift
})
"""One operation of the program; what a field means depends on the kind."""
