# SPDX-License-Identifier: Apache-2.0
"""Cores of the matrix-vector socket: each file holds the ``Core`` of its name."""

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._socket import Socket


@cache
def names() -> tuple[str, ...]:
    """Names of all cores, found in this folder and not imported."""
    found = (each.name for each in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def core(name: str) -> "type[Socket]":
    """The core of a name."""
    return importlib.import_module(f"{__name__}.{name}").Core


def taking(formats: Iterable[str]) -> list[str]:
    """Names of the cores that take weights of all ``formats``, the plainest first."""
    wanted = set(formats)
    plain = dict.fromkeys(("ternary", "booth", *names()))
    return [name for name in plain if wanted <= set(core(name).FORMATS)]
