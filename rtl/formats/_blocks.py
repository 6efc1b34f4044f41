# SPDX-License-Identifier: Apache-2.0
"""Block formats: elements that share a scale.

Sources: OCP Microscaling Formats v1.0 (MX), arXiv 2510.25602 (symmetric clipping, scales rounded
up, NVINT4), NVIDIA's NVFP4 as that paper states it; arXiv 2403.20137 (block floating point).
"""

import functools
import re
from dataclasses import dataclass
from enum import Enum

from ..errors import unknown
from ._formats import Format, FormatError, IntegerFormat, format_named


class Rule(Enum):
    """Which power of two a block's scale is."""

    FLOOR = "that of the largest magnitude, over that of the largest element; larger ones saturate"
    CEIL = "the smallest with which no element saturates"
    ROUND = "that of FLOOR, doubled where the largest element would be rounded up beyond the last"


@dataclass(frozen=True)
class BlockFormat:
    """``block`` elements and the scale before them.

    ``unit``: an element's value is its code's times ``2**unit``.  With an E8M0 ``scale`` the rule
    says which it is; otherwise it is the largest magnitude over the largest element's, rounded in
    its format, after all of a tensor is divided by one number that gives the largest block the
    largest scale.
    """

    name: str
    element: Format
    block: int
    scale: Format
    rule: Rule
    unit: int = 0

    @property
    def bits_per_element(self) -> float:
        """Storage, less the tensor's own number."""
        return self.element.width + self.scale.width / self.block


_MX = {
    "mxfp8": "fp8_e4m3",
    "mxfp8_e5m2": "fp8_e5m2",
    "mxfp6": "fp6_e2m3",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp4": "fp4_e2m1",
}
_NV = {"nvfp4": "fp4_e2m1", "nvint4": "int4"}
_SHOWN = (*_MX, "mxint8", "mxint6", "mxint4", *_NV, "bfp4", "bfp8")


@functools.cache
def block_format_named(name: str, rule: Rule = Rule.CEIL, block: int = 0) -> BlockFormat:
    """The block format of a name; ``block`` 0 is 32 elements, 16 for those of NVIDIA.

    ``bfp4`` and so on are block floating point: mantissas of so many bits, two's complement, and a
    common exponent.

    Raises :class:`.FormatError`.
    """
    if not 0 <= block <= 1024:
        raise FormatError(f"a block has 1 to 1024 elements, not {block}")
    scale, unit = format_named("e8m0"), 0
    if name in _MX:
        element = format_named(_MX[name])
    elif found := re.fullmatch(r"mxint([4-8])", name):
        element = format_named(f"int{found[1]}")
        unit = 2 - element.width  # the largest is just below 2
    elif found := re.fullmatch(r"bfp([2-8])", name):  # mantissas, all their codes
        element = IntegerFormat(f"int{found[1]}", int(found[1]), symmetric=False)
        unit = 2 - element.width
    elif name in _NV:
        element, scale = format_named(_NV[name]), format_named("fp8_e4m3")
    else:
        raise FormatError(unknown("block format", name, _SHOWN))
    return BlockFormat(name, element, block or (16 if name in _NV else 32), scale, rule, unit)
