# SPDX-License-Identifier: Apache-2.0
"""What planes of bits with a scale each lose, against evenly spaced levels."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...sim.formats import hlq
from ..checkpoints.quantise import hierarchical, values
from ..compare.accuracy import TWIN, Floats, perplexity_of
from ..model import packed
from ..model.generate import shipped


def planes() -> Iterator[dict[str, Any]]:
    """Hierarchical linear quantisation of the shipped float model against evenly spaced levels.

    Perplexity with projections of 2 and 3 bits in groups, activations as they are.  Scales and
    offsets are float16, in the last columns integers of 8 bits, as in the engine.
    """
    model = packed.load(shipped(TWIN)).model
    floats = perplexity_of(model, values, lambda x: x)

    def of(rounded: Callable[[Floats], Floats]) -> float:
        """With every projection that is not quantised already rounded so."""
        return perplexity_of(
            model,
            lambda weight: rounded(weight) if isinstance(weight, np.ndarray) else values(weight),
            lambda x: x,
        )

    for bits, group in itertools.product((2, 3), (32, 64, 128)):
        even = of(functools.partial(levels, bits=bits, group=group, rounds=0))
        fitted = of(functools.partial(levels, bits=bits, group=group, rounds=10))
        integers = of(lambda weight, b=bits, g=group: values(hierarchical(weight, b, g)))
        yield {
            "bits": bits,
            "group": group,
            "float32": f"{floats:.2f}",
            "even levels": f"{even:.2f}",
            "HLQ": f"{fitted:.2f}",
            "HLQ to even levels": f"{100 * (fitted / even - 1):+.1f} %",
            "HLQ, 8-bit factors": f"{integers:.2f}",
            "what 8 bits cost": f"{100 * (integers / fitted - 1):+.1f} %",
            "bits per weight": bits + 16 * (bits + 1) / group,
            "with 8-bit factors": bits + 8 * (bits + 1) / group,
        }


def levels(weight: Floats, bits: int, group: int, rounds: int) -> Floats:
    """A matrix (outputs, inputs) at the nearest levels; evenly spaced ones without ``rounds``."""
    made = hlq.fit(weight, bits, group, rounds).values()
    return made.reshape(len(weight), -1)[:, : weight.shape[1]].astype(np.float32)
