# SPDX-License-Identifier: Apache-2.0
"""Which of several formats a SIMD word has now, as signals that fold away where there is one."""

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from amaranth.hdl import Const, Module, Signal

LANES = {"fp4": 4, "posit4_1": 4, "posit8_0": 2, "posit16_1": 1}
"""Lanes of a word of 16 bits by format, in the order of the modes."""


class Modes:
    """Says in which of some formats a word is: of ``formats`` it is in one, or in none.

    A format that is not among ``formats`` is a constant 0, and the only one a constant 1, so that
    whatever is written for all formats shrinks to what the given ones need.  What is asked for
    behind a register is made in front of it and registered: it costs no LUT there.
    """

    def __init__(self, m: Module, formats: Sequence[str], mode: Any):
        """``mode`` counts the ``formats``."""
        self.m, self.formats, self.stage = m, tuple(formats), 0
        self.before: Modes | None = None
        self.enable: Any = None
        self.made: dict[frozenset[str], Any] = {
            frozenset([f]): mode == n for n, f in enumerate(self.formats)
        }

    def later(self, enable: Any) -> "Modes":
        """The same, behind registers that advance with ``enable``."""
        late = copy.copy(self)
        late.before, late.enable, late.made, late.stage = self, enable, {}, self.stage + 1
        return late

    def is_(self, format_: str) -> Any:
        """High in the mode of a format."""
        return self.any_of(format_)

    def any_of(self, *formats: str) -> Any:
        """High in the modes of ``formats``."""
        wanted = frozenset(formats) & frozenset(self.formats)
        if wanted == frozenset(self.formats):
            return Const(1, 1)
        if not wanted:
            return Const(0, 1)
        others = frozenset(self.formats) - wanted
        if others in self.made and wanted not in self.made and len(self.formats) in (2, 4):
            return ~self.made[others]
        if wanted not in self.made:
            signal = Signal(name=f"is_{'_or_'.join(sorted(wanted))}_{self.stage}", reset_less=True)
            self.made[wanted] = signal
            if self.before is None:
                self.m.d.comb += signal.eq(
                    any_bit(self.any_of(f) for f in self.formats if f in wanted)
                )
            else:
                with self.m.If(self.enable):
                    self.m.d.sync += signal.eq(self.before.any_of(*wanted))
        return self.made[wanted]

    def chosen(
        self, wires: Any, wanted: Mapping[str, int | None], live: Callable[[str, int], bool]
    ) -> Any:
        """One bit of ``wires`` by mode: the index that is ``wanted``, or 0 for None.

        Formats that are not ``wanted`` do not care.  ``live(f, i)`` is false where bit ``i`` is 0
        anyway in mode ``f``, which spares a mask.
        """
        wanted = {f: i for f, i in wanted.items() if f in self.formats}
        indices = {i for f, i in wanted.items() if i is not None and live(f, i)}
        terms: list[Any] = []
        for index in sorted(indices):
            takes = [f for f in wanted if wanted[f] == index]
            harmed = [f for f in wanted if wanted[f] != index and live(f, index)]
            rest = [f for f in self.formats if f not in harmed]
            mask = Const(1, 1) if not harmed else self.fewest(takes, rest)
            terms.append(wires[index] & mask if harmed else wires[index])
        return any_bit(terms)

    def fewest(self, needed: Iterable[str], allowed: Iterable[str]) -> Any:
        """A signal that is high in the modes ``needed`` and low in those not ``allowed``."""
        needed = tuple(needed)
        made = [x for x in self.made if set(needed) <= x <= set(allowed)]
        return self.made[made[0]] if made else self.any_of(*needed)


def any_bit(terms: Iterable[Any]) -> Any:
    """Whether any of some bits is set; none of none is."""
    return functools.reduce(operator.or_, terms, Const(0, 1))
