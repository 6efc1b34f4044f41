# SPDX-License-Identifier: Apache-2.0
"""Block parameters: one frozen dataclass per block, checked where it is made.

A config builds the component, its golden model, its cycle model, its documentation and its cache
key.  It is all that these share.
"""

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from .errors import AtriplexError, unknown


class ConfigError(AtriplexError, ValueError):
    """A parameter breaks a rule; the message names the parameter, the rule and the value."""


def param(
    default: Any,
    help: str,
    *,
    ge: int | None = None,
    le: int | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a :class:`Config`: default, one line of help, and its bounds or choices."""
    return dataclasses.field(
        default=default, metadata={"help": help, "ge": ge, "le": le, "choices": choices}
    )


@dataclasses.dataclass(frozen=True)
class Rate:
    """Parameters with which a block is compared with others, and what it multiplies then.

    ``weights`` and ``activations`` are names of formats; ``products`` multiply-accumulates a cycle,
    on average over a long run; ``fields`` are values of input fields that choose this rate among
    others of the same parameters.  ``rows`` outputs are computed at a time from the same
    activations.  ``label`` tells it from rates of the same formats, and is the same for those that
    differ in rows alone.  ``bits`` are those that a weight is stored in, unasked those of its
    format.  ``family`` is the comparison it belongs to, unasked that of the block.
    """

    weights: str
    activations: str
    products: float
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rows: int = 1
    label: str = ""
    bits: float = 0.0
    family: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all block parameters; fields are made with :func:`param`.

    ``presets`` names sets of values that differ from the defaults; ``papers`` names the sources.
    Both are literals, so that listing blocks need not import them.  ``rates`` are what
    ``atriplex compare`` sets side by side.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    papers: ClassVar[tuple[str, ...]] = ()
    rates: ClassVar[tuple[Rate, ...]] = ()

    def __post_init__(self) -> None:
        types, wrong = typing.get_type_hints(type(self)), []
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), types[field.name]
            rule = field.metadata
            if type(value) is not kind:
                wrong.append(f"{field.name} must be {kind.__name__}, not {value!r}")
            elif rule["choices"] is not None and value not in rule["choices"]:
                choices = ", ".join(rule["choices"])
                wrong.append(f"{field.name} must be one of {choices}, not {value!r}")
            elif (rule["ge"] is not None and value < rule["ge"]) or (
                rule["le"] is not None and value > rule["le"]
            ):
                wrong.append(f"{field.name} must be in {bounds(field)}, not {value!r}")
        wrong = wrong or list(self.faults())
        if wrong:
            raise ConfigError(f"{type(self).__name__}: " + "; ".join(wrong))

    def faults(self) -> Iterator[str]:
        """A sentence for each rule between parameters that does not hold."""
        return iter(())

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The named preset, with ``changes`` on top."""
        if name not in cls.presets:
            raise ConfigError(unknown("preset", name, cls.presets))
        return cls.of({**cls.presets[name], **changes})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """A config from a mapping; an unknown name is an error with the nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"{cls.__name__}: {unknown('parameter', name, known)}")
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """All parameters, in the order of their definition."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def digest(self) -> str:
        """Twelve hexadecimal digits that name the class and every parameter."""
        text = json.dumps([type(self).__name__, self.values()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def bounds(field: "dataclasses.Field[Any]") -> str:
    """``1..1024``, ``mux, invert`` or nothing: what a parameter may be."""
    rule = field.metadata
    if rule["choices"] is not None:
        return ", ".join(rule["choices"])
    if rule["ge"] is None and rule["le"] is None:
        return ""
    low, high = ("" if rule[end] is None else rule[end] for end in ("ge", "le"))
    return f"{low}..{high}"


def snake(name: str) -> str:
    """``TernaryDot`` becomes ``ternary_dot``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
