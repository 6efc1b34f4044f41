# SPDX-License-Identifier: Apache-2.0
"""The integer golden model of the transformer engine: what the hardware must reproduce.

After :meth:`IntegerModel.compile` no float takes part in the result. ``docs/model.md`` states the
arithmetic in full; in short, with the default :class:`Precision`:

- the residual stream has 18 bits in units of the embedding's scale over a power of two, about
  2**-9; projections leave 18 bits, 10 of them fraction; both saturate symmetrically;
- norm and quantiser are one unit, that of :mod:`..vector.rms_norm`: products with gains of 18 bits,
  int8 codes, and a scale of 16-bit mantissa and shift that goes into the projection's output;
- Q, K and V are int8 per token and head, the scale being the largest magnitude;
- softmax is base 2, online, token by token with the newest last: running maxima are whole octaves,
  so that what was summed before moves by shifts; scores and mixing are INT8 x INT8 products;
- the gate multiplies in 52 bits and keeps 18 of them;
- greedy choice compares the head's int32 sums; logits have 10 bits of fraction.

Every operation works on rows of tokens and no row depends on how many there are, so a prompt in
one call and token by token give the same bits.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...rtl.engine._constants import mix_scale, score_scale
from .._fixed import (
    Ints,
    absmax_codes,
    normalise,
    product,
    quotient,
    requantise,
    saturate,
    scale_of,
)
from ..kv import lop_select
from ..vector import rope
from ..vector.gate import gated, silu_gated
from ..vector.rescale import rescale
from ..vector.residual import added
from ..vector.rms_norm import norm_quantise
from ..vector.softmax import CHANCE_BITS, Softmax, log2
from .activations import activation_values
from .model import Embedding, Matrix, Model, ModelConfig, ModelError
from .reference import check_tokens

Scale = tuple[int, int]
Trace = dict[str, NDArray[np.int64]]

BLOCK = 32
"""Tokens whose attention is worked out at a time, so that the intermediate values stay in cache."""

NORM_OF: Mapping[str, str] = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "attn_output": "attn_sub_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
    "ffn_down": "ffn_sub_norm",
}
"""The norm whose codes each projection of a layer takes."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Widths of the integer engine; fractions are counted in bits.

    Other values than the defaults serve to measure what a unit costs; int64 holds all intermediate
    values for the ranges that ``__post_init__`` allows, at their ends for heads of up to 32
    elements. With ``select_k`` each head attends only to as many tokens, the ``select_recent``
    newest among them, chosen as by :mod:`..kv.lop_select`.
    """

    residual_bits: int = 18
    residual_fraction: int = 9
    activation_bits: int = 18
    activation_fraction: int = 10
    gain_bits: int = 16
    rope_fraction: int = 15
    kv_bits: int = 8
    score_fraction: int = 8
    score_bits: int = 18
    weight_bits: int = 7
    hidden_bits: int = 18
    hidden_fraction: int = 4
    silu_fraction: int = 8
    product_bits: int = 18
    logit_fraction: int = 10
    select_k: int = 0
    select_recent: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("residual_bits", 12, 28),
            ("residual_fraction", 4, 20),
            ("activation_bits", 8, 20),
            ("activation_fraction", 2, 12),
            ("gain_bits", 4, 16),
            ("rope_fraction", 4, 20),
            ("kv_bits", 2, 12),
            ("score_fraction", 2, 14),
            ("score_bits", 12, 24),
            ("weight_bits", 2, 14),
            ("hidden_bits", 8, 28),
            ("hidden_fraction", 0, 20),
            ("silu_fraction", 0, 20),
            ("product_bits", 8, 40),
            ("logit_fraction", 0, 16),
            ("select_k", 0, 1 << 16),
            ("select_recent", 1, 1024),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ModelError(f"Precision: {name} must be in {low}..{high}, not {value!r}")
        if 2 * self.kv_bits + self.activation_bits > 43:
            raise ModelError("Precision: 2 kv_bits and activation_bits are at most 43 together")


@dataclass(frozen=True, eq=False)
class Norm:
    """Gains as integers; ``eps`` is ``eps * width`` in units of the squared input.

    Products with gains lose ``drop`` bits. ``plain``: no norm, the vector is quantised as it is;
    the gains are as good as 1, and ``eps`` is the square that the scale is divided by.
    """

    gain: Ints
    fraction: int
    eps: int
    drop: int
    plain: bool = False


@dataclass(frozen=True, eq=False)
class Projection:
    """Weights, and the scale from ``sum * norm scale`` to the output's fixed point.

    ``columns`` are the codes transposed, in a float type in which every sum is exact;
    ``activations`` is what int8 codes become before they are multiplied, from -128 on, or None.
    """

    weights: Matrix
    columns: NDArray[np.floating]
    scale: Scale
    activations: Ints | None = None

    @property
    def codes(self) -> NDArray[np.integer]:
        """The weights as integers (outputs, inputs)."""
        return self.weights.codes


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """Constants of one layer, by the names of :class:`.model.Layer`."""

    norms: Mapping[str, Norm]
    projections: Mapping[str, Projection]


@dataclass(eq=False)
class IntegerState:
    """KV cache: codes (layer, kv head, token, head_dim); peaks of keys and logarithms of
    peaks of values (layer, kv head, token).

    Codes are integers held in a float type for the matrix library; a peak is the largest magnitude
    of the vector that the codes stand for, in the activations' fixed point.
    """

    keys: NDArray[np.floating]
    values: NDArray[np.floating]
    key_peaks: Ints
    value_logs: Ints
    length: int = 0


@dataclass(frozen=True, eq=False)
class IntegerLogits:
    """Result of the head for a run of tokens."""

    sums: Ints
    fixed: Ints
    fraction: int

    def greedy(self) -> Ints:
        """Token of the largest sum of each row, the lowest among equals."""
        return self.sums.argmax(axis=-1)

    @property
    def real(self) -> NDArray[np.floating]:
        """Logits as floats, for evaluation and sampling outside the model."""
        return self.fixed * 2.0**-self.fraction


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerModel:
    """A :class:`.model.Model` compiled to integers."""

    config: ModelConfig
    precision: Precision
    embedding: NDArray[np.int8]
    embedding_shift: int
    layers: tuple[IntegerLayer, ...]
    output_norm: Norm
    output: Projection
    rope: tuple[Ints, Ints]
    softmax: Softmax
    score_scale: Scale
    mix_scale: Scale

    @classmethod
    def compile(cls, model: Model, precision: Precision | None = None) -> "IntegerModel":
        """Turn all constants into integers; the only place where floats are used.

        Raises :class:`.model.ModelError` when a constant does not fit its width.
        """
        p, c = precision or Precision(), model.config
        embedding_shift, unit = _residual_unit(model.token_embd, p)
        hidden = p.hidden_fraction if c.gate == "relu2" else p.silu_fraction
        fractions = {"attn_sub_norm": p.activation_fraction, "ffn_sub_norm": hidden}
        layers = []
        for index, layer in enumerate(model.layers):
            # The gate's other factor keeps the gate's scale; its unit takes account of the ratio.
            ratio = layer.ffn_gate.unit / layer.ffn_up.unit
            norms, scales = {}, {}
            for name, width in c.norms().items():
                units = 2.0 ** -fractions[name] if name in fractions else unit
                units /= ratio if name == "ffn_sub_norm" else 1
                where, gain = f"blk.{index}.{name}", getattr(layer, name)
                if gain is None:
                    norms[name] = _plain(width, p)
                    scales[name] = units * math.sqrt(norms[name].eps / width)
                else:
                    norms[name] = _norm(gain, c.eps * width / units**2, p, where)
            projections = {}
            for name in c.projections():
                weight, where = getattr(layer, name), f"blk.{index}.{name}"
                scale = layer.ffn_gate.unit if name == "ffn_up" else weight.unit
                units = unit if name in ("attn_output", "ffn_down") else 2.0**-p.activation_fraction
                norm = norms[NORM_OF[name]]
                scale *= scales.get(NORM_OF[name], 1.0)
                projections[name] = _projection(weight, scale / units, norm, where)
            layers.append(IntegerLayer(norms, projections))
        norm = _norm(model.output_norm, c.eps * c.dim / unit**2, p, "output_norm")
        output = _projection(
            model.output, model.output.unit * 2.0**p.logit_fraction, norm, "output"
        )
        top = _top(p.kv_bits)
        return cls(
            config=c,
            precision=p,
            embedding=model.token_embd.codes,
            embedding_shift=embedding_shift,
            layers=tuple(layers),
            output_norm=norm,
            output=output,
            rope=rope.table(c.context, c.head_dim // 2, c.theta, p.rope_fraction),
            softmax=Softmax.of(p.score_fraction, p.weight_bits),
            score_scale=score_scale(c.head_dim, top, p.score_fraction, p.activation_fraction),
            mix_scale=mix_scale(top, p.weight_bits, CHANCE_BITS),
        )

    @property
    def projections(self) -> dict[str, Projection]:
        """All of them, by their names in the file."""
        layers = {
            f"blk.{at}.{name}": each
            for at, layer in enumerate(self.layers)
            for name, each in layer.projections.items()
        }
        return {**layers, "output": self.output}

    def at_temperature(self, temperature: float) -> "IntegerModel":
        """The same with logits for drawing: base 2, over the temperature, 8 bits of fraction."""
        mantissa, shift = self.output.scale
        unit = 2.0 ** (self.precision.score_fraction - self.precision.logit_fraction)
        scale = mantissa * 2.0**-shift * math.log2(math.e) / temperature * unit
        if not scale < 1 << 14:
            raise ModelError(f"a temperature of {temperature} is too low for the logits' range")
        return dataclasses.replace(
            self, output=dataclasses.replace(self.output, scale=scale_of(scale))
        )

    def start(self) -> IntegerState:
        """State before the first token."""
        c, p = self.config, self.precision
        shape = (c.layers, c.kv_heads, c.context)
        kind = _exact(_top(p.kv_bits) ** 2 * c.head_dim)
        return IntegerState(
            np.zeros((*shape, c.head_dim), kind),
            np.zeros((*shape, c.head_dim), kind),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
        )

    def forward(
        self, tokens: NDArray[np.integer], state: IntegerState, trace: Trace | None = None
    ) -> IntegerLogits:
        """Logits of ``tokens``, which follow those already in ``state``.

        ``trace`` is filled with every named intermediate, one row a token: ``<norm>.input``,
        ``<norm>.codes``, ``<norm>.mantissa``, ``<norm>.shift``, ``<projection>.sums``,
        ``<projection>.out``, and those of attention, with names as in the packed file
        (``blk.0.attn_q``). Raises :class:`.model.ModelError` when the context is full.
        """
        c, p = self.config, self.precision
        tokens = check_tokens(tokens, state.length, c)
        note = {} if trace is None else trace
        span = slice(state.length, state.length + len(tokens))
        x = self.embedding[tokens].astype(np.int64) << self.embedding_shift
        note["token_embd.out"] = x
        for index, layer in enumerate(self.layers):
            at = f"blk.{index}"
            norms, weights = layer.norms, layer.projections

            codes, scale = self._norm(x, norms["attn_norm"], f"{at}.attn_norm", note)
            q, k, v = (
                self._activation(codes, scale, weights[name], f"{at}.{name}", note)
                for name in ("attn_q", "attn_k", "attn_v")
            )
            mixed = self._attend(q, k, v, state, index, span, note)
            codes, scale = self._norm(mixed, norms["attn_sub_norm"], f"{at}.attn_sub_norm", note)
            x = self._add(x, codes, scale, weights["attn_output"], f"{at}.attn_output", note)

            codes, scale = self._norm(x, norms["ffn_norm"], f"{at}.ffn_norm", note)
            gate, up = (
                self._activation(codes, scale, weights[name], f"{at}.{name}", note)
                for name in ("ffn_gate", "ffn_up")
            )
            hidden = self._gate(gate, up)
            codes, scale = self._norm(hidden, norms["ffn_sub_norm"], f"{at}.ffn_sub_norm", note)
            x = self._add(x, codes, scale, weights["ffn_down"], f"{at}.ffn_down", note)
            note[f"{at}.out"] = x
        state.length = span.stop
        codes, scale = self._norm(x, self.output_norm, "output_norm", note)
        fixed = project(codes, scale, self.output, p.residual_bits, "output", note)
        return IntegerLogits(note["output.sums"], fixed, p.logit_fraction)

    def _norm(self, x: Ints, norm: Norm, name: str, note: Trace) -> tuple[Ints, tuple[Ints, Ints]]:
        codes, scale = norm_quantise(x, norm.gain, norm.eps, drop=norm.drop, plain=norm.plain)
        note[f"{name}.input"], note[f"{name}.codes"] = x, codes
        note[f"{name}.mantissa"], note[f"{name}.shift"] = scale
        return codes, scale

    def _gate(self, gate: Ints, up: Ints) -> Ints:
        p = self.precision
        if self.config.gate == "relu2":
            return gated(gate, up, 3 * p.activation_fraction - p.hidden_fraction, p.hidden_bits)
        shift = 2 * p.activation_fraction - p.silu_fraction
        return silu_gated(gate, up, shift, p.hidden_bits, p.activation_fraction)

    def _activation(
        self, codes: Ints, scale: tuple[Ints, Ints], weight: Projection, name: str, note: Trace
    ) -> Ints:
        return project(codes, scale, weight, self.precision.activation_bits, name, note)

    def _add(
        self,
        x: Ints,
        codes: Ints,
        scale: tuple[Ints, Ints],
        weight: Projection,
        name: str,
        note: Trace,
    ) -> Ints:
        """The residual stream ``x`` with a projection's result added."""
        bits = self.precision.residual_bits
        return added(x, project(codes, scale, weight, bits, name, note), bits)

    def _attend(
        self, q: Ints, k: Ints, v: Ints, state: IntegerState, index: int, span: slice, note: Trace
    ) -> Ints:
        """Attention of the tokens in ``span`` over all tokens up to each; writes the KV cache."""
        c, p, at = self.config, self.precision, f"blk.{index}"
        top, rows = _top(p.kv_bits), len(q)
        heads = [part.reshape(rows, -1, c.head_dim) for part in (q, k, v)]
        heads[:2] = [self._rotate(part, span) for part in heads[:2]]
        peaks = [np.abs(part).max(axis=-1) for part in heads]
        codes = [absmax_codes(part, peak, top) for part, peak in zip(heads, peaks, strict=True)]
        for name, part, peak in zip("qkv", codes, peaks, strict=True):
            note[f"{at}.{name}.codes"], note[f"{at}.{name}.peaks"] = part, peak
        state.keys[index, :, span] = codes[1].swapaxes(0, 1)
        state.values[index, :, span] = codes[2].swapaxes(0, 1)
        state.key_peaks[index, :, span] = peaks[1].T
        state.value_logs[index, :, span] = log2(peaks[2], p.score_fraction).T
        blocks = [
            self._mix(codes[0][row : row + BLOCK], peaks[0][row : row + BLOCK], state, index, at)
            for row, at in zip(
                range(0, rows, BLOCK), range(span.start, span.stop, BLOCK), strict=True
            )
        ]
        mixed = np.concatenate(blocks, axis=2)
        return mixed.reshape(c.heads, rows, c.head_dim).swapaxes(0, 1).reshape(rows, c.q_dim)

    def _mix(self, codes: Ints, peaks: Ints, state: IntegerState, index: int, start: int) -> Ints:
        """Values mixed (kv head, query head of the group, token, head_dim) for queries (token,
        head, head_dim) and their peaks, the first token being ``start``."""
        c, p, rows = self.config, self.precision, len(codes)
        stop = start + rows
        keys, values = state.keys[index, :, :stop], state.values[index, :, :stop]
        # (kv head, query head of the group, token, ...); sums exact, see IntegerModel.start
        group = (c.kv_heads, c.heads // c.kv_heads, rows)
        queries = codes.swapaxes(0, 1).reshape(*group, c.head_dim).astype(keys.dtype)
        sums = (queries @ keys[:, None].swapaxes(-1, -2)).astype(np.int64)
        peak = peaks.T.reshape(group)[..., None]
        key_peaks = state.key_peaks[index, :, None, None, :stop]
        scores = requantise(sums * key_peaks, *product(normalise(peak), self.score_scale))
        scores = saturate(scores, p.score_bits)
        newest = np.arange(start, stop)
        seen = np.arange(stop) <= newest[:, None]
        if p.select_k:
            seen = lop_select.select(
                queries.astype(np.int64),
                keys[:, None].astype(np.int64),
                p.select_k,
                p.select_recent,
                newest,
                code_width=p.kv_bits,
            )
        logs = state.value_logs[index, :, None, None, :stop]
        mixed = self.softmax.mix(scores, scores + logs, values.astype(np.int64), seen)
        scale = quotient(self.mix_scale, normalise(mixed.total))
        shift = scale[1] + mixed.total_octave - mixed.octave
        out = requantise(mixed.sums, scale[0][..., None], shift[..., None])
        return saturate(out, p.activation_bits)

    def _rotate(self, heads: Ints, span: slice) -> Ints:
        """Rotary embedding of (token, head, head_dim)."""
        p = self.precision
        cos, sin = (table[span, None] for table in self.rope)
        half = heads.shape[-1] // 2
        low, high = heads[..., :half], heads[..., half:]
        turned = rope.rotate(low, high, cos, sin, p.rope_fraction, p.activation_bits)
        return np.concatenate(turned, axis=-1)


def project(
    codes: Ints, scale: tuple[Ints, Ints], weight: Projection, bits: int, name: str, note: Trace
) -> Ints:
    """A projection: exact sums, then one rounding into the output's fixed point.

    The two scales are multiplied and normalised to 16 bits first, once a token.
    """
    if weight.activations is not None:
        codes = weight.activations[codes + 128]
    sums = (codes.astype(weight.columns.dtype) @ weight.columns).astype(np.int64)
    out = rescale(sums, scale, weight.scale, bits)
    note[f"{name}.sums"], note[f"{name}.out"] = sums, out
    return out


def _top(bits: int) -> int:
    """Largest code of a signed format that is symmetric."""
    return (1 << bits - 1) - 1


def _exact(largest: int) -> type[np.floating]:
    """The fastest float type that holds every integer up to ``largest``, and so every sum."""
    if largest < 1 << 24:
        return np.float32
    if largest < 1 << 53:
        return np.float64
    raise ModelError(f"sums of up to {largest} do not fit the 53 bits of the golden model")


def _norm(gain: NDArray[np.float32], eps: float, p: Precision, name: str) -> Norm:
    """``eps`` is in units of the squared input; the gain's fraction is the largest that fits."""
    largest = float(np.abs(gain).max())
    if not math.isfinite(largest) or largest == 0:
        raise ModelError(f"the gains of {name} must be finite and not all 0")
    if not eps < 1 << 59:
        raise ModelError(f"the eps of {name} is too large for its fixed point")
    top = _top(p.gain_bits)
    own = min(math.floor(math.log2(top / largest)), 30)
    codes = np.rint(np.asarray(gain, np.float64) * 2.0**own).astype(np.int64)
    drop = max(p.residual_bits + p.gain_bits - 1 - p.product_bits, 0)
    return Norm(codes, own, max(1, round(eps)), drop)


def _plain(width: int, p: Precision) -> Norm:
    """What quantises a vector without a norm: its scale is the peak over ``2**15``.

    A gain of 1 would need 17 bits; one of ``1 - 2**-15`` changes no element below ``2**14``.
    """
    drop = max(p.residual_bits + p.gain_bits - 1 - p.product_bits, 0)
    gain = np.full(width, _top(p.gain_bits), np.int64)
    return Norm(gain, p.gain_bits - 1, 1 << 30, drop, plain=True)


def _projection(weight: Matrix, scale: float, norm: Norm, name: str) -> Projection:
    """``scale`` is that of the weights over the unit of the outputs."""
    inputs = weight.codes.shape[1]
    values, gain = activation_values(getattr(weight, "activations", "int8"))
    scale /= gain
    real = scale * math.sqrt(inputs) / 127 * 2.0 ** (norm.drop - norm.fraction)
    # The norm's scale is at most the largest gain, that of a plain vector at most 4; the product
    # must leave a shift to the right, and the hardware has 6 bits for each.
    largest_scale = 4.0 if norm.plain else int(np.abs(norm.gain).max()) * 2.0**-norm.drop
    if not real * largest_scale < 1 << 14:
        raise ModelError(f"the scale of {name} is too large for its fixed point")
    if real and not real >= 2.0**-47:
        raise ModelError(f"the scale of {name} is too small for its fixed point")
    most = 127 if values is None else int(np.abs(values).max())
    largest = most * int(np.abs(weight.codes.astype(np.int64)).sum(axis=1).max(initial=0))
    if largest >= 1 << 31:
        raise ModelError(f"sums of {name} reach {largest}, which int32 does not hold")
    columns = np.ascontiguousarray(weight.codes.T.astype(_exact(largest)))
    return Projection(weight, columns, scale_of(real), values)


def _residual_unit(table: Embedding, p: Precision) -> tuple[int, float]:
    """How far embedding codes are shifted, and what 1 of the residual stream then stands for."""
    shift = round(math.log2(table.scale) + p.residual_fraction)
    shift = min(max(shift, 0), p.residual_bits - 8)
    return shift, table.scale * 2.0**-shift
