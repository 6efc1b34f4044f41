# SPDX-License-Identifier: Apache-2.0
"""Int8 activations as values of another format, where a core multiplies in that."""

import functools

import numpy as np
from numpy.typing import NDArray

from ...rtl.engine.matvec.xr_npe import MODES
from ...rtl.formats._formats import format_named
from ..formats.codec import decode, encode, step_of


@functools.cache
def activation_values(name: str) -> tuple[NDArray[np.int64] | None, float]:
    """What the codes -128 to 127 become, in the format's smallest step, and what 1 stands for.

    A code is divided by a power of two and rounded.  None for ``int8``, which stays as it is.
    """
    if name == "int8":
        return None, 1.0
    format_, shift = format_named(name), MODES[name]
    step = step_of(format_)
    real = decode(format_, encode(format_, np.arange(-128, 128) * 2.0**-shift))
    return (real * 2.0**-step).astype(np.int64), 2.0 ** (-shift - step)
