# SPDX-License-Identifier: Apache-2.0
"""The family of multiply-accumulate units side by side."""

from collections.abc import Iterator

from ..compare.costs import Row, section


def multipliers() -> Iterator[Row]:
    """All that multiplies and accumulates, for a product a cycle: `atriplex compare mac`.

    ULX3S without multipliers, the block alone, routed; osu018 without wires; pJ from how often nets
    switch; perplexity of the shipped float model on its own texts, weights and activations in these
    formats.
    """
    yield from section("mac")
