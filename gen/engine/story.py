# SPDX-License-Identifier: Apache-2.0
"""A text told by the engine's RTL, every token checked against the golden model."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...rtl.engine._program import Kind, Target
from ...rtl.engine.engine import EngineConfig
from ...rtl.engine.matvec import core, names, taking
from ...sim.engine.image import (
    Image,
    compile_image,
    cycles_of,
    operations,
    precision_of,
    turns_of,
)
from ...sim.engine.integer import IntegerLogits, IntegerModel, Trace
from ...sim.engine.matvec import socket
from ...sim.engine.model import Embedding, Model, ModelConfig, ModelError
from ...sim.engine.taps import differences, expected
from ...sim.engine.timing import estimate
from ...sim.vector.sampler import Sampler
from .. import blocks
from ..checkpoints import TextStream
from ..checkpoints.models import Runnable, runnable
from ..model.generate import shipped
from ..verilog import Design, emit
from . import machine as machines

Progress = Callable[[str], None]


@dataclass
class Tally:
    """What a text took; cycles are sums over its ``tokens``.

    A token that is answered counts there if it has a pass over the weights to itself.  All before
    it are the prompt's, in ``prompt`` by passes: positions, and whether the last one is answered.
    """

    tokens: int = 0
    prompt_tokens: int = 0
    prompt_cycles: int = 0
    prompt_words: int = 0
    prompt: list[tuple[range, bool]] = field(default_factory=list)
    cycles: int = 0
    linear: int = 0
    limit: int = 0
    waits: dict[str, int] = field(default_factory=dict)
    bytes_moved: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    all_cycles: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def utilisation(self) -> float:
        """Share of cycles in which ternary weights were used, of the tokens that were answered."""
        return self.linear / self.cycles if self.cycles else 0.0


def config_for(model: ModelConfig, **changes: Any) -> EngineConfig:
    """The default engine, grown or shrunk to ``model``'s sizes, with ``changes`` on top."""
    default = EngineConfig()
    lanes = changes.get("lanes", default.lanes)
    widths = (model.dim, model.hidden, model.q_dim)
    rows = math.gcd(*widths, default.norm_lanes, lanes if type(lanes) is int else 0)
    sizes = {
        "norm_lanes": rows,
        "head_lanes": math.gcd(model.head_dim, rows, default.head_lanes),
        "dim": model.dim,
        "hidden": max(model.hidden, model.q_dim),
        "heads": model.heads,
        "head_dim": model.head_dim,
        "slots": model.layers * model.kv_heads,
        "context": 1 << (model.context - 1).bit_length(),
        "vocab": model.vocab,
        "program": 1 << (operations(model.layers) - 1).bit_length(),
        "gate": model.gate,
    }
    return EngineConfig.of({**default.values(), **sizes, **changes})


def matvec_for(model: Model) -> str:
    """The plainest core of the matvec socket that takes the formats of a model's projections."""
    formats = {model.output.format}
    for tensor in model.tensors().values():
        if not isinstance(tensor, np.ndarray | Embedding):
            formats.add(tensor.format)
    found = taking(formats)
    if not found:
        raise ModelError(f"no core takes projections of {' and '.join(sorted(formats))}")
    return found[0]


def format_for(settings: Mapping[str, Any]) -> str | None:
    """What float projections become for an engine with these parameters; None: nothing is said."""
    name = settings.get("matvec")
    if name not in names():
        return None
    return settings.get("weights") or core(name).FORMATS[0]


@functools.lru_cache(4)
def design_for(config: EngineConfig) -> Design:
    """The engine's Verilog."""
    return emit(blocks.find("engine"), config)


class Teller:
    """One engine with one model; tells texts."""

    def __init__(
        self,
        model: IntegerModel,
        config: EngineConfig,
        *,
        overlap: bool = True,
        progress: Progress = lambda stage: None,
    ):
        self.model, self.config, self.overlap = model, config, overlap
        self.image: Image = compile_image(model, config, overlap)
        progress("Verilog of the engine")
        design = design_for(config)
        library = machines.build(design, config, progress=progress)
        self.machine = machines.Machine(library, config, self.image)
        self._names = list(_waits(config, self.image))
        self._sampler: Sampler | None = None
        self._keep = 0

    def close(self) -> None:
        """Free the simulation."""
        self.machine.close()

    def draw(self, keep: int, seed: int) -> None:
        """Draw tokens from the ``keep`` likeliest; the model must be compiled for it."""
        self.machine.sampling(keep, seed)
        self._keep, self._sampler = keep, Sampler()
        self._sampler.seed(seed)

    def tell(
        self,
        prompt: list[int],
        tokens: int,
        *,
        check_activations: bool = False,
        tally: Tally | None = None,
    ) -> Iterator[int]:
        """Tokens that follow ``prompt``, each checked; what it took goes into ``tally``.

        Stops at the first token that is wrong, and when the context is full.
        """
        check_prompt(self.model.config, prompt)
        tally = Tally() if tally is None else tally
        state = self.model.start()
        given = list(prompt)
        total = min(len(prompt) + tokens - 1, self.model.config.context)
        position, end = 0, 0
        while end < total:
            # The last token of a group has the work of all.
            position, end = end, min(end + self.config.rows, max(len(prompt), end + 1))
            sample = end >= len(prompt)
            self.machine.record(taps=check_activations)
            before, start = self.machine.counts(), time.perf_counter()
            answer = None
            for at in range(position, end):
                answer = self.machine.token(
                    given[at], restart=at == 0, sample=sample and at == end - 1
                )
            seconds = time.perf_counter() - start
            traces: list[Trace] = []
            logits = None
            for token in given[position:end]:
                trace: Trace | None = {} if check_activations else None
                logits = self.model.forward(np.array([token]), state, trace)
                traces += [trace] if trace is not None else []
            wanted = self._choice(logits) if sample and logits else None
            if traces:
                found = differences(
                    self.machine.taps().values, expected(self.model, self.config, traces, sample)
                )
                tally.wrong += [f"token {position}: {one}" for one in found]
            if answer != wanted:
                tally.wrong.append(f"token {end - 1}: expected {wanted}, got {answer}")
            self._count(tally, before, seconds, range(position, end), sample)
            if answer is not None:
                given.append(answer)
                yield answer
            if tally.wrong:
                return

    def estimate(self, tally: Tally) -> float:
        """Estimated cycles a token, over the tokens that were answered."""
        first = tally.prompt_tokens
        answered = range(first, first + tally.tokens)
        total = self._estimated((range(at, at + 1), True) for at in answered)
        return total / max(tally.tokens, 1)

    def estimate_prompt(self, tally: Tally) -> float:
        """Estimated cycles a token, over those of the prompt that have no pass to themselves."""
        return self._estimated(tally.prompt) / max(tally.prompt_tokens, 1)

    def _estimated(self, passes: Iterable[tuple[range, bool]]) -> int:
        """Estimated cycles of passes: positions, and whether the last one is answered."""
        turns = turns_of(self.config, self.image.program)
        return sum(
            estimate(
                self.model.config,
                self.config,
                group.start,
                count=len(group),
                sample=sample,
                overlap=self.overlap,
                turns=turns,
            ).cycles
            for group, sample in passes
        )

    def _choice(self, logits: IntegerLogits) -> int:
        """The token that the golden model chooses."""
        if self._sampler is None:
            return int(logits.greedy()[0])
        return self._sampler.draw(logits.fixed[0], self._keep)

    def _count(
        self, tally: Tally, before: dict[str, int], seconds: float, group: range, sample: bool
    ) -> None:
        after = self.machine.counts()
        moved = {name: after[name] - before[name] for name in after}
        tally.seconds += seconds
        tally.all_cycles += moved["cycles"]
        tally.checked += len(group)
        if not sample or len(group) > 1:
            tally.prompt_tokens += len(group)
            tally.prompt_cycles += moved["cycles"]
            tally.prompt_words += moved["words"]
            tally.prompt.append((group, sample))
            return
        tally.tokens += 1
        tally.cycles += moved["cycles"]
        tally.linear += moved["linear"]
        tally.limit += self.image.sampled_cycles
        gaps = self.machine.gaps()
        at = 0
        for name, words in self._names:
            count = int(gaps[at : at + words].sum()) if words else int(gaps[at:].sum())
            tally.waits[name] = tally.waits.get(name, 0) + count
            at += words
        config = self.config
        word = machines.word_bytes(config)
        for name, bits, count in (
            ("weights", 8 * word, moved["words"]),
            ("gains", 16 * config.norm_lanes, moved["gains"]),
            ("embedding", 8 * config.norm_lanes, moved["rows"]),
            ("keys and values", config.pair_bits, moved["attention"]),
            ("leading ones of keys", config.lead_bits, moved["leads"]),
        ):
            if bits:
                tally.bytes_moved[name] = tally.bytes_moved.get(name, 0) + bits * count // 8


class Story:
    """A text that grows while it is iterated over, told by the engine.

    Iterating yields the text of each new token, not the prompt; an empty prompt starts from
    ``<bos>`` alone.  ``tally`` is what it took so far, ``note`` a sentence when fewer than
    ``tokens`` came.  ``settings`` change parameters of the engine that fits the model; ``found``
    is a model that was read already.

    Raises, on construction, what the file, the prompt and the settings give cause for.
    """

    def __init__(
        self,
        prompt: str = "",
        *,
        path: Path | None = None,
        tokens: int = 100,
        settings: Mapping[str, Any] | None = None,
        check_activations: bool = False,
        stalls: float = 0.0,
        overlap: bool = True,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        found: Runnable | None = None,
        progress: Progress = lambda stage: None,
    ):
        file = found or runnable(path or shipped())
        self.tokenizer = file.tokenizer
        self.ids = file.tokenizer.encode(prompt, bos=True)
        self.tally, self.note = Tally(), None
        self.tokens, self.check = tokens, check_activations
        chosen = {"matvec": matvec_for(file.model), **(settings or {})}
        self.config = config_for(file.model.config, **chosen)
        made = socket(self.config).model(file.model)
        model = IntegerModel.compile(made, precision_of(self.config))
        check_prompt(model.config, self.ids)
        if temperature:
            model, most = model.at_temperature(temperature), self.config.sampler.top_k
            if top_k > most:
                raise ModelError(f"the engine draws from at most {most} tokens, not {top_k}")
        self.teller = Teller(model, self.config, overlap=overlap, progress=progress)
        self.teller.machine.stall(stalls, seed + 1)
        if temperature:
            self.teller.draw(top_k or self.config.sampler.top_k, seed)

    def __iter__(self) -> Iterator[str]:
        came, text = 0, TextStream(self.tokenizer, self.ids)
        told = self.teller.tell(
            list(self.ids), self.tokens, check_activations=self.check, tally=self.tally
        )
        for token in told:
            came += 1
            self.ids.append(token)
            yield text.feed(token)
        if rest := text.end():
            yield rest
        if came < self.tokens and not self.tally.wrong:
            self.note = (
                f"stopped after {came} of {self.tokens} tokens: the context of "
                f"{self.teller.model.config.context} tokens is full"
            )


def check_prompt(model: ModelConfig, prompt: list[int]) -> None:
    """Raise :class:`ModelError` for a prompt that no answer can follow."""
    if not prompt:
        raise ModelError("a prompt must hold at least one token")
    if len(prompt) > model.context:
        raise ModelError(
            f"a prompt of {len(prompt)} tokens does not fit the context of {model.context}"
        )


def _waits(config: EngineConfig, image: Image) -> Iterator[tuple[str, int]]:
    """What each linear operation's vector comes from, and how many cycles of weights; the end."""
    before = {
        Target.QUERY: "norm before Q, K and V",
        Target.KEY: "K and V",
        Target.VALUE: "K and V",
        Target.GATE: "norm before gate and up",
        Target.HEAD: "norm before the head",
    }
    adds = itertools.cycle(["attention and its norm", "gate and its norm"])
    first = True
    for op in image.program:
        if op["kind"] == Kind.LINEAR:
            name = next(adds) if op["unit"] == Target.ADD else before[Target(op["unit"])]
            yield "embedding and its norm" if first else name, cycles_of(config, op)
            first = False
    yield "choice of the token", 0
