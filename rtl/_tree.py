# SPDX-License-Identifier: Apache-2.0
"""Balanced reduction."""

from collections.abc import Callable, Iterable
from typing import Any


def reduce_tree(join: Callable[[Any, Any], Any], items: Iterable[Any]) -> Any:
    """Fold ``items`` pairwise, so that depth and operand growth are logarithmic."""
    level = list(items)
    while len(level) > 1:
        pairs = [join(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]
