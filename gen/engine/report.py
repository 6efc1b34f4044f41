# SPDX-License-Identifier: Apache-2.0
"""What a told text took, as numbers and as the rows of a table."""

from collections.abc import Iterator
from typing import Any

from . import machine, place
from .story import Story


def values(story: Story, clock_mhz: float | None = None) -> dict[str, Any]:
    """The report as JSON: averages are over the tokens that were answered.

    The clock is what place and route reached for such an engine, unless given.
    """
    tally, config = story.tally, story.config
    clock_mhz = clock_mhz or place.clock_mhz(config.values())
    estimate = story.teller.estimate(tally)
    tokens = max(tally.tokens, 1)
    cycles = tally.cycles / tokens
    return {
        "tokens": tally.tokens,
        "prompt_tokens": tally.prompt_tokens,
        "lanes": config.lanes,
        "checked": tally.checked,
        "wrong": tally.wrong,
        "cycles_per_token": round(cycles, 1),
        "estimated_cycles_per_token": round(estimate, 1),
        "limit_cycles_per_token": tally.limit / tokens,
        "utilisation": round(tally.utilisation, 4),
        "cycles_by_unit": {
            "ternary weights": round(tally.linear / tokens, 1),
            **{name: round(count / tokens, 1) for name, count in tally.waits.items()},
        },
        "bytes_per_token": {
            name: round(count / tokens) for name, count in tally.bytes_moved.items()
        },
        "prefill": _prefill(story) if tally.prompt_tokens else None,
        "clock_mhz": clock_mhz,
        "tokens_per_second": round(1e6 * clock_mhz / cycles, 1) if clock_mhz and cycles else None,
        "simulated_cycles_per_second": round(tally.all_cycles / tally.seconds)
        if tally.seconds
        else None,
    }


def _prefill(story: Story) -> dict[str, float]:
    """Averages over the prompt's tokens, less one that is answered in a pass of its own."""
    tally, count = story.tally, story.tally.prompt_tokens
    word = machine.word_bytes(story.config)
    return {
        "tokens": count,
        "passes": len(tally.prompt),
        "cycles_per_token": round(tally.prompt_cycles / count, 1),
        "estimated_cycles_per_token": round(story.teller.estimate_prompt(tally), 1),
        "weight_bytes_per_token": round(tally.prompt_words * word / count, 1),
    }


def rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same for people."""
    cycles = report["cycles_per_token"]
    wrong = report["wrong"]
    yield "tokens equal to the golden model", f"{report['checked'] - len(wrong)}"
    estimate = report["estimated_cycles_per_token"]
    yield "cycles per token (estimate)", f"{cycles:,.0f} ({estimate:,.0f})"
    for name, count in report["cycles_by_unit"].items():
        yield f"  {name}", f"{count:,.0f} ({100 * count / max(cycles, 1):.1f} %)"
    limit = report["limit_cycles_per_token"]
    yield (
        f"utilisation, limit {limit:,.0f} cycles at {report['lanes']} lanes",
        f"{100 * report['utilisation']:.2f} %",
    )
    moved = report["bytes_per_token"]
    yield "bytes moved per token", f"{sum(moved.values()):,}"
    for name, count in moved.items():
        yield f"  {name}", f"{count:,}"
    if prompt := report["prefill"]:
        cycles, estimate = prompt["cycles_per_token"], prompt["estimated_cycles_per_token"]
        passes = f"{prompt['tokens']} tokens in {prompt['passes']} passes"
        yield "cycles per token of the prompt (estimate)", f"{cycles:,.0f} ({estimate:,.0f})"
        yield f"  bytes of weights, {passes}", f"{prompt['weight_bytes_per_token']:,.0f}"
    if report["tokens_per_second"]:
        clock = f"{report['clock_mhz']:g} MHz"
        yield f"tokens per second at {clock}", f"{report['tokens_per_second']:,.0f}"
    yield "simulated cycles per second", f"{report['simulated_cycles_per_second'] or 0:,}"
