# SPDX-License-Identifier: Apache-2.0
"""What papers claim, measured: in each file a function of its name gives the rows of a table."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

Study = Callable[[], Iterator[dict[str, Any]]]


def names() -> tuple[str, ...]:
    """Names of all studies, found in this folder and not imported."""
    return tuple(sorted(each.name for each in pkgutil.iter_modules(__path__)))


def study(name: str) -> Study:
    """The function; its docstring says what the rows are."""
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)
