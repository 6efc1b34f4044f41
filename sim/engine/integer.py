# SPDX-License-Identifier: Apache-2.0
"""The integer golden model of the transformer engine: what the hardware must reproduce.

After :meth:`IntegerModel.compile` no float takes part in the result. ``docs/model.md`` states the
arithmetic in full; in short, with the default :class:`Precision`:

- the residual stream has 24 bits, 12 of them fraction; projections leave 18 bits, 10 of them
  fraction; both saturate symmetrically;
- norm and quantiser are one unit, that of :mod:`..vector.rms_norm`: exact int8 codes, and a scale
  of 16-bit mantissa and shift that goes into the projection's output;
- Q, K and V are int8 per token and head, the scale being the largest magnitude;
- softmax is base 2 with a 256-entry table, its probabilities times the scales of V are int8 again,
  so that scores and mixing are INT8 x INT8 dot products with int32 sums;
- the gate multiplies in 52 bits and is normalised to 15 bits a token;
- greedy choice compares the head's int32 sums; logits have 10 bits of fraction.

Every operation works on rows of tokens and no row depends on how many there are, so a prompt in
one call and token by token give the same bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._fixed import (
    Ints,
    absmax_codes,
    bit_length,
    normalise,
    product,
    quotient,
    requantise,
    round_shift,
    saturate,
    scale_of,
)
from ..vector.rms_norm import norm_quantise
from .model import Embedding, Model, ModelConfig, ModelError, Ternary
from .reference import check_tokens

Scale = tuple[int, int]
Trace = dict[str, NDArray[np.int64]]

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
    values for the ranges that ``__post_init__`` allows.
    """

    residual_bits: int = 24
    residual_fraction: int = 12
    activation_bits: int = 18
    activation_fraction: int = 10
    gain_bits: int = 16
    rope_fraction: int = 15
    kv_bits: int = 8
    score_fraction: int = 8
    probability_bits: int = 8
    hidden_bits: int = 16
    logit_fraction: int = 10

    def __post_init__(self) -> None:
        for name, low, high in (
            ("residual_bits", 12, 28),
            ("residual_fraction", 4, 20),
            ("activation_bits", 8, 19),
            ("activation_fraction", 2, 10),
            ("gain_bits", 4, 16),
            ("rope_fraction", 4, 20),
            ("kv_bits", 2, 12),
            ("score_fraction", 2, 14),
            ("probability_bits", 2, 16),
            ("hidden_bits", 4, 20),
            ("logit_fraction", 0, 16),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ModelError(f"Precision: {name} must be in {low}..{high}, not {value!r}")


@dataclass(frozen=True, eq=False)
class Norm:
    """Gains as integers; ``eps`` is ``eps * width`` in units of the squared input."""

    gain: Ints
    fraction: int
    eps: int


@dataclass(frozen=True, eq=False)
class Projection:
    """Trits, and the scale from ``sum * norm scale`` to the output's fixed point.

    ``columns`` are the trits transposed, in a float type in which every sum is exact.
    """

    trits: NDArray[np.int8]
    columns: NDArray[np.floating]
    scale: Scale


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """Constants of one layer, by the names of :class:`.model.Layer`."""

    norms: Mapping[str, Norm]
    projections: Mapping[str, Projection]


@dataclass(eq=False)
class IntegerState:
    """KV cache: codes (layer, kv head, token, head_dim), peaks (layer, kv head, token).

    Codes are integers held in a float type for the matrix library; a peak is the largest magnitude
    of the vector that the codes stand for, in the activations' fixed point.
    """

    keys: NDArray[np.floating]
    values: NDArray[np.floating]
    key_peaks: Ints
    value_peaks: Ints
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


def exp2_table(fraction: int) -> Ints:
    """``2**15 * 2**(-i / 2**fraction)`` to nearest, for every ``i`` below ``2**fraction``."""
    steps = np.arange(1 << fraction) / (1 << fraction)
    return np.rint(np.exp2(15 - steps)).astype(np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerModel:
    """A :class:`.model.Model` compiled to integers."""

    config: ModelConfig
    precision: Precision
    embedding: NDArray[np.int8]
    embedding_scale: Scale
    layers: tuple[IntegerLayer, ...]
    output_norm: Norm
    output: Projection
    rope: tuple[Ints, Ints]
    exp2: Ints
    score_scale: Scale
    mix_scale: Scale

    @classmethod
    def compile(cls, model: Model, precision: Precision | None = None) -> "IntegerModel":
        """Turn all constants into integers; the only place where floats are used.

        Raises :class:`.model.ModelError` when a constant does not fit its width.
        """
        p, c = precision or Precision(), model.config
        top_kv, top_p = _top(p.kv_bits), _top(p.probability_bits)
        widths = c.norms()
        layers = []
        for index, layer in enumerate(model.layers):
            norms = {}
            for name, width in widths.items():
                fraction = {
                    "attn_sub_norm": p.activation_fraction,
                    "ffn_sub_norm": 3 * p.activation_fraction,
                }.get(name, p.residual_fraction)
                where = f"blk.{index}.{name}"
                norms[name] = _norm(getattr(layer, name), c.eps * width, fraction, p, where)
            projections = {}
            for name in c.projections():
                adds = name in ("attn_output", "ffn_down")
                fraction = p.residual_fraction if adds else p.activation_fraction
                norm, where = norms[NORM_OF[name]], f"blk.{index}.{name}"
                projections[name] = _projection(getattr(layer, name), norm, fraction, where)
            layers.append(IntegerLayer(norms, projections))
        norm = _norm(model.output_norm, c.eps * c.dim, p.residual_fraction, p, "output_norm")
        half = c.head_dim // 2
        angle = np.arange(c.context)[:, None] * c.theta ** -(np.arange(half) / half)
        unit, limit = float(1 << p.rope_fraction), (1 << p.rope_fraction) - 1
        cos, sin = (
            np.clip(np.rint(f(angle) * unit), -limit, limit).astype(np.int64)
            for f in (np.cos, np.sin)
        )
        score = math.log2(math.e) * 2.0 ** (p.score_fraction - 2 * p.activation_fraction)
        return cls(
            config=c,
            precision=p,
            embedding=model.token_embd.codes,
            embedding_scale=_embedding_scale(model.token_embd, p),
            layers=tuple(layers),
            output_norm=norm,
            output=_projection(model.output, norm, p.logit_fraction, "output"),
            rope=(cos, sin),
            exp2=exp2_table(p.score_fraction),
            score_scale=scale_of(score / (top_kv**2 * math.sqrt(c.head_dim))),
            mix_scale=scale_of(1 / (top_kv * top_p)),
        )

    def start(self) -> IntegerState:
        """State before the first token."""
        c, p = self.config, self.precision
        shape = (c.layers, c.kv_heads, c.context)
        dot = _top(p.kv_bits) * max(
            _top(p.kv_bits) * c.head_dim, _top(p.probability_bits) * c.context
        )
        kind = _exact(dot)
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
        x = requantise(self.embedding[tokens].astype(np.int64), *self.embedding_scale)
        x = saturate(x, p.residual_bits)
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
            x = x + project(codes, scale, weights["attn_output"], f"{at}.attn_output", note)
            x = saturate(x, p.residual_bits)

            codes, scale = self._norm(x, norms["ffn_norm"], f"{at}.ffn_norm", note)
            gate, up = (
                self._activation(codes, scale, weights[name], f"{at}.{name}", note)
                for name in ("ffn_gate", "ffn_up")
            )
            hidden, shift = gated(gate, up, p.hidden_bits)
            note[f"{at}.ffn_gated.shift"] = shift
            norm = norms["ffn_sub_norm"]
            eps = np.maximum(norm.eps >> np.minimum(2 * shift, 62), 1)
            codes, scale = self._norm(hidden, norm, f"{at}.ffn_sub_norm", note, eps)
            # The gate's units are 2**-(3 * fraction), shifted; the scale is free of units.
            x = x + project(codes, scale, weights["ffn_down"], f"{at}.ffn_down", note)
            x = saturate(x, p.residual_bits)
            note[f"{at}.out"] = x
        state.length = span.stop
        codes, scale = self._norm(x, self.output_norm, "output_norm", note)
        fixed = project(codes, scale, self.output, "output", note)
        return IntegerLogits(note["output.sums"], fixed, p.logit_fraction)

    def _norm(
        self, x: Ints, norm: Norm, name: str, note: Trace, eps: Ints | None = None
    ) -> tuple[Ints, tuple[Ints, Ints]]:
        codes, scale = norm_quantise(x, norm.gain, norm.eps if eps is None else eps)
        note[f"{name}.input"], note[f"{name}.codes"] = x, codes
        note[f"{name}.mantissa"], note[f"{name}.shift"] = scale
        return codes, scale

    def _activation(
        self, codes: Ints, scale: tuple[Ints, Ints], weight: Projection, name: str, note: Trace
    ) -> Ints:
        return saturate(project(codes, scale, weight, name, note), self.precision.activation_bits)

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
        state.value_peaks[index, :, span] = peaks[2].T
        keys, values = state.keys[index, :, : span.stop], state.values[index, :, : span.stop]
        key_peaks = state.key_peaks[index, :, None, None, : span.stop]
        value_peaks = state.value_peaks[index, :, None, None, : span.stop]

        # (kv head, query head of the group, token, ...); sums exact, see IntegerModel.start
        group = (c.kv_heads, c.heads // c.kv_heads, rows)
        queries = codes[0].swapaxes(0, 1).reshape(*group, c.head_dim).astype(keys.dtype)
        sums = (queries @ keys[:, None].swapaxes(-1, -2)).astype(np.int64)
        peak = peaks[0].T.reshape(group)[..., None]
        scores = requantise(sums * key_peaks, *product(normalise(peak), self.score_scale))
        future = np.arange(span.stop) > np.arange(span.start, span.stop)[:, None]
        scores = np.where(future, np.int64(-1) << 61, scores)
        below = scores.max(axis=-1, keepdims=True) - scores
        index_bits = p.score_fraction
        chances = round_shift(self.exp2[below & (1 << index_bits) - 1], below >> index_bits)
        weights = chances * value_peaks
        largest = weights.max(axis=-1)
        mixing = absmax_codes(weights, largest, _top(p.probability_bits))
        mixed = (mixing.astype(values.dtype) @ values[:, None]).astype(np.int64)
        scale = quotient(normalise(largest), normalise(chances.sum(axis=-1)))
        mantissa, shift = product(scale, self.mix_scale)
        out = requantise(mixed, mantissa[..., None], shift[..., None])
        out = saturate(out, p.activation_bits).reshape(c.heads, rows, c.head_dim)
        if rows == 1:
            note[f"{at}.scores"], note[f"{at}.chances"] = scores[..., 0, :], chances[..., 0, :]
            note[f"{at}.mixing"] = mixing[..., 0, :]
        return out.swapaxes(0, 1).reshape(rows, c.q_dim)

    def _rotate(self, heads: Ints, span: slice) -> Ints:
        """Rotary embedding of (token, head, head_dim)."""
        p = self.precision
        cos, sin = (table[span, None] for table in self.rope)
        half = heads.shape[-1] // 2
        low, high = heads[..., :half], heads[..., half:]
        both = np.concatenate((low * cos - high * sin, low * sin + high * cos), axis=-1)
        return saturate(round_shift(both, p.rope_fraction), p.activation_bits)


def project(
    codes: Ints, scale: tuple[Ints, Ints], weight: Projection, name: str, note: Trace
) -> Ints:
    """Ternary projection: exact sums, then one rounding into the output's fixed point.

    The two scales are multiplied and normalised to 16 bits first, once a token.
    """
    sums = (codes.astype(weight.columns.dtype) @ weight.columns).astype(np.int64)
    mantissa, shift = product(scale, weight.scale)
    out = requantise(sums, mantissa[..., None], shift[..., None])
    note[f"{name}.sums"], note[f"{name}.out"] = sums, out
    return out


def gated(gate: Ints, up: Ints, bits: int) -> tuple[Ints, Ints]:
    """``relu(gate)**2 * up``, exact, then shifted right so that each row fits signed ``bits``.

    Returns the rows and the shift of each; rounding is to nearest, ties upwards, and the shift
    leaves a bit of room, so that rounding up does not overflow.
    """
    positive = np.maximum(gate, 0)
    hidden = positive * positive * up
    shift = np.maximum(bit_length(np.abs(hidden).max(axis=-1)) - (bits - 2), 0)
    return round_shift(hidden, shift[..., None]), shift


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


def _norm(gain: NDArray[np.float32], eps: float, fraction: int, p: Precision, name: str) -> Norm:
    """``fraction`` is that of the input; the gain's is the largest that fits ``gain_bits``."""
    largest = float(np.abs(gain).max())
    if not math.isfinite(largest) or largest == 0:
        raise ModelError(f"the gains of {name} must be finite and not all 0")
    top = _top(p.gain_bits)
    own = min(math.floor(math.log2(top / largest)), 30)
    codes = np.rint(np.asarray(gain, np.float64) * 2.0**own).astype(np.int64)
    return Norm(codes, own, max(1, round(eps * 4.0**fraction)))


def _projection(weight: Ternary, norm: Norm, fraction: int, name: str) -> Projection:
    inputs = weight.trits.shape[1]
    real = weight.scale * math.sqrt(inputs) / 127 * 2.0 ** (fraction - norm.fraction)
    # The norm's scale is at most the largest gain; the product must leave a shift to the right.
    if not real * int(np.abs(norm.gain).max()) < 1 << 14:
        raise ModelError(f"the scale of {name}, {weight.scale}, is too large for its fixed point")
    columns = np.ascontiguousarray(weight.trits.T.astype(_exact(127 * inputs)))
    return Projection(weight.trits, columns, scale_of(real))


def _embedding_scale(table: Embedding, p: Precision) -> Scale:
    real = table.scale * 2.0**p.residual_fraction
    if not real < 1 << 15:
        raise ModelError(
            f"the scale of token_embd, {table.scale}, is too large for its fixed point"
        )
    return scale_of(real)
