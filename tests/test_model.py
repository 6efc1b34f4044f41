# SPDX-License-Identifier: Apache-2.0
"""The language model: vocabulary, packed file, golden models, generation, training."""

import hashlib
import json
import math
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atriplex.gen.model import bpe, card, corpus, evaluate, packed
from atriplex.gen.model import generate as text_generate
from atriplex.gen.model import train as training
from atriplex.sim import _fixed as fixed
from atriplex.sim.engine.generate import choose, generate, layer_activations
from atriplex.sim.engine.integer import IntegerModel, Precision
from atriplex.sim.engine.model import (
    Embedding,
    Integer,
    Model,
    ModelConfig,
    ModelError,
    Ternary,
    expected_shapes,
)
from atriplex.sim.engine.reference import Reference
from atriplex.sim.vector.gate import gated
from atriplex.sim.vector.softmax import CHANCE_BITS, Softmax, exp2_table, log2

# Written for this test; no training text is part of the project.
TALE = """\
There was once a young miller who had a mill and no corn to grind in it. Every morning he went down
to the river, and every morning the water said, "Wait a little longer, and you shall see." So he
waited, and his coat grew thin, and the mice in the mill grew thinner.
One day an old woman came over the bridge with a sack upon her back. "Good day, grandmother," said
the miller, "what have you in your sack?" "Nothing but wind," said she, "but if you will grind it
for me I will give you half." The miller laughed, but he took the sack and poured the wind between
the stones, and out came the whitest flour that ever was seen in the kingdom.
Then the king heard of it, and sent his three daughters to fetch a loaf. The eldest came in a coach
of gold, the second came upon a horse, but the youngest walked all the way, and she was the first to
find the door.
"""

TINY = ModelConfig(
    dim=12, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=18, vocab=97, context=10
)


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for name, shape in expected_shapes(config).items():
        if name == "token_embd.weight":
            tensors[name] = Embedding(rng.integers(-127, 128, shape).astype(np.int8), 0.011)
        elif len(shape) == 1:
            tensors[name] = (1 + 0.4 * rng.normal(size=shape)).astype(np.float32)
        else:
            tensors[name] = Ternary(rng.integers(-1, 2, shape).astype(np.int8), 0.06)
    return Model.from_tensors(config, tensors)


@pytest.fixture(scope="module")
def shipped() -> packed.ModelFile:
    return packed.load(text_generate.shipped())


@pytest.fixture(scope="module")
def compiled(shipped: packed.ModelFile) -> IntegerModel:
    return IntegerModel.compile(shipped.model)


# Fixed point ---------------------------------------------------------------------------------


def numbers(rng: np.random.Generator, bits: int, count: int = 400) -> list[int]:
    """Non-negative numbers of all lengths, and the neighbours of all powers of two."""
    powers = [(1 << bit) + step for bit in range(1, bits) for step in (-1, 0, 1)]
    return [0, *powers, *(int(rng.integers(1 << rng.integers(1, bits))) for _ in range(count))]


def nearest(value: Fraction, ties: str) -> int:
    return round(value) if ties == "even" else math.floor(value + Fraction(1, 2))


def test_division_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    tops, bottoms = numbers(rng, 61), [1, 2, 3, 4, 6, 127, 254, 1 << 40, (1 << 60) + 2]
    for bottom in bottoms:
        for sign in (1, -1):
            got = fixed.round_half_even_div(np.array(tops) * sign, bottom)
            assert got.tolist() == [nearest(Fraction(sign * top, bottom), "even") for top in tops]


def test_shift_rounds_ties_upwards_and_far_shifts_give_zero() -> None:
    values = np.array([-7, -6, -5, -2, 0, 2, 5, 6, 7, 1 << 60])
    for shift in (0, 1, 2, 3, 60, 61):
        expected = [nearest(Fraction(int(v), 1 << shift), "up") for v in values]
        assert fixed.round_shift(values, shift).tolist() == expected
    assert fixed.round_shift(values, 500).tolist() == [0] * len(values)


def test_lengths_and_roots_are_exact() -> None:
    values = numbers(np.random.default_rng(1), 61)
    assert fixed.bit_length(np.array(values)).tolist() == [v.bit_length() for v in values]
    squares = [root * root + step for root in range(1, 3000, 7) for step in (-1, 0, 1)]
    for some in (values, squares, [v * v for v in range(1 << 30, (1 << 30) + 9)]):
        assert fixed.isqrt(np.array(some)).tolist() == [math.isqrt(v) for v in some]


def test_normalised_scales_are_within_half_a_unit() -> None:
    values = numbers(np.random.default_rng(2), 61)
    mantissas, shifts = fixed.normalise(np.array(values))
    for value, mantissa, shift in zip(values, mantissas.tolist(), shifts.tolist(), strict=True):
        if not value:
            assert mantissa == 0
            continue
        assert 1 << 15 <= mantissa < 1 << 16
        assert abs(Fraction(mantissa) / Fraction(2) ** shift - value) <= Fraction(value, 1 << 16)


def test_scale_arithmetic_is_close_to_real_arithmetic() -> None:
    rng = np.random.default_rng(3)
    ones = fixed.normalise(rng.integers(1, 1 << 50, 500))
    others = fixed.normalise(rng.integers(1, 1 << 20, 500))
    real = [s[0] * 2.0 ** -s[1] for s in (ones, others)]
    for got, expected in (
        (fixed.product(ones, others), real[0] * real[1]),
        (fixed.quotient(ones, others), real[0] / real[1]),
    ):
        assert ((got[0] >= 1 << 15) & (got[0] < 1 << 16)).all()
        np.testing.assert_allclose(got[0] * 2.0 ** -got[1], expected, rtol=2.0**-15)
    values = np.array([value for value in numbers(rng, 60) if value])
    roots, shifts = fixed.root(values)
    assert ((roots >= 1 << 15) & (roots < 1 << 16)).all()
    np.testing.assert_allclose(roots * 2.0**-shifts, np.sqrt(values), rtol=2.0**-14)
    for value in (1e-9, 0.3, 0.99999999, 1.0, 77.7):
        mantissa, shift = fixed.scale_of(value)
        assert 1 << 15 <= mantissa < 1 << 16
        assert abs(mantissa * 2.0**-shift - value) <= value * 2.0**-16


def test_exponential_table_error_is_within_the_stated_bound() -> None:
    below = np.arange(0, 20 << 8)
    for bits, top in ((15, 1 << 15), (7, 128), (7, 127)):
        table = exp2_table(8, bits, top)
        got = fixed.round_shift(table[below & 255], below >> 8)
        assert np.abs(got - 2.0 ** (bits - below / 256)).max() <= (1 if top == 127 else 0.75)
        assert got[0] == top


def test_logarithms_are_within_a_unit() -> None:
    values = [value for value in numbers(np.random.default_rng(5), 60) if value]
    for fraction in (4, 8, 13):
        got = log2(np.array(values), fraction) / 2**fraction
        # Half a unit of the table, and half a unit of the mantissa, which weighs log2(e) at most.
        bound = (0.5 + 0.5 * math.log2(math.e)) / 2**fraction
        assert np.abs(got - np.log2(np.array(values, np.float64))).max() <= bound
        assert log2(np.array([0, 1, 2, 1 << 40]), fraction).tolist() == [
            bits << fraction for bits in (0, 0, 1, 40)
        ]


@pytest.mark.parametrize(("bits", "found"), [(7, 2.0**-7), (14, 2.0**-13)])
def test_softmax_error_is_within_the_stated_bound(bits: int, found: float) -> None:
    rng = np.random.default_rng(6)
    softmax = Softmax.of(8, bits)
    top, worst = (1 << 17) - 1, 0.0
    for count in (1, 2, 3, 10, 64, 256):
        scores = rng.integers(-2000, 2000, (1, 1, 40, count))
        scores[..., 5:10, :] = rng.integers(-top, top + 1, (5, count))
        scores[..., 10:20, :].sort(axis=-1)
        scores[..., 20:25, :] = rng.integers(-256, 257, (5, count))
        # All equal; just above and just below an octave; rising octave by octave; far apart.
        scores[..., 25:30, :] = np.arange(-2, 3)[:, None]
        scores[..., 30, :] = np.arange(count) % 2 * 255 - 255
        scores[..., 31, :] = np.arange(count) * 256 + 1
        scores[..., 32, :] = np.arange(count)[::-1] * 256 - 1
        scores[..., 33, :] = np.where(np.arange(count) % 2, top, -top)
        scores[..., 34, :] = np.sort(rng.choice([-top, 0, top], count))
        scores[..., 35:, :] = 1 - 128 * rng.integers(0, 3, (5, count))
        seen = np.ones((40, count), bool)
        values = np.eye(count, dtype=np.int64)[None] * 127
        mixed = softmax.mix(scores, scores, values, seen)
        shares = mixed.sums / 127 * 2.0 ** (mixed.octave - bits)[..., None]
        shares /= (mixed.total * 2.0 ** (mixed.total_octave - CHANCE_BITS))[..., None]
        real = np.exp2((scores - scores.max(axis=-1, keepdims=True)) / 256)
        real /= real.sum(axis=-1, keepdims=True)
        e = 0.75 * (count + 1) / 2**14
        bound = (real.max(axis=-1, keepdims=True) * 2.0 ** (1 - bits) + real * e) / (1 - e)
        assert (np.abs(shares - real) <= bound).all()
        worst = max(worst, float(np.abs(shares - real).max()))
    assert found / 2 < worst <= found


def test_gate_is_exact_up_to_one_rounding() -> None:
    rng = np.random.default_rng(4)
    gate, up = (rng.integers(-(1 << 17) + 1, 1 << 17, (50, 30)) for _ in range(2))
    gate[0], up[0] = (1 << 17) - 1, -(1 << 17) + 1
    gate[1] = -1
    gate[2:20] >>= 6
    for shift, bits in ((26, 18), (16, 28), (36, 18)):
        got, limit = gated(gate, up, shift, bits), (1 << bits - 1) - 1
        least = nearest(Fraction(-(((1 << 17) - 1) ** 3), 1 << shift), "up")
        assert (got[0] == max(-limit, least)).all()
        assert not got[1].any()
        for row in range(50):
            exact = [max(int(g), 0) ** 2 * int(u) for g, u in zip(gate[row], up[row], strict=True)]
            rounded = [nearest(Fraction(value, 1 << shift), "up") for value in exact]
            assert got[row].tolist() == [max(-limit, min(limit, value)) for value in rounded]


# Vocabulary ----------------------------------------------------------------------------------


def test_every_ascii_text_comes_back(shipped: packed.ModelFile) -> None:
    rng = np.random.default_rng(0)
    noise = "".join(rng.choice(list(bpe.ALPHABET), 5000))
    for text in ("", " ", "\n\n  \n", bpe.ALPHABET, TALE, noise):
        ids = shipped.tokenizer.encode(text)
        assert shipped.tokenizer.decode(ids) == text
        assert 0 not in ids
    assert len(shipped.tokenizer.encode(TALE)) < len(TALE) / 2


def test_characters_outside_the_vocabulary_are_named_with_their_position() -> None:
    tokenizer = bpe.Tokenizer(())
    for text, place in (("caf\u00e9", "'\u00e9' at position 3"), ("\t", "'\\t' at position 0")):
        with pytest.raises(bpe.TokenizerError) as error:
            tokenizer.encode(text)
        assert place in str(error.value)
    with pytest.raises(bpe.TokenizerError, match=r"token 97 at position 1 is not in 0\.\.96"):
        tokenizer.decode([1, 97])


def test_vocabulary_training_is_deterministic_and_keeps_to_words() -> None:
    one, other = bpe.train(TALE, 160), bpe.train(TALE, 160)
    assert one == other and len(one) == 160
    for piece in one.pieces[97:]:
        assert len(bpe.WORDS.findall(piece)) == 1
    # "the" is by far the most frequent word: its pairs come first
    assert " the" in one.pieces[97:105]
    with pytest.raises(bpe.TokenizerError, match="repeats too few pairs"):
        bpe.train("ab ab", 120)


def test_merges_apply_in_the_order_they_were_learnt() -> None:
    a, b, c = (1 + bpe.ALPHABET.index(char) for char in "abc")
    first_right = bpe.Tokenizer(((b, c), (a, b), (a, 97)))
    assert first_right.encode("abc") == [99]
    first_left = bpe.Tokenizer(((a, b), (b, c)))
    assert first_left.encode("abc") == [97, c]
    with pytest.raises(bpe.TokenizerError, match="merge 0 joins"):
        bpe.Tokenizer(((1, 97),))


# Packed file ---------------------------------------------------------------------------------


def test_all_codes_and_all_lengths_of_trits_come_back() -> None:
    codes = np.arange(243, dtype=np.uint8)
    trits = packed.unpack_trits(codes, 5 * 243)
    assert packed.pack_trits(trits).tolist() == codes.tolist()
    for code in range(243):
        digits = (trits[5 * code : 5 * code + 5] + 1).tolist()
        assert sum(digit * 3**place for place, digit in enumerate(digits)) == code
    rng = np.random.default_rng(0)
    for count in range(25):
        some = rng.integers(-1, 2, count).astype(np.int8)
        assert packed.unpack_trits(packed.pack_trits(some), count).tolist() == some.tolist()


def test_what_is_no_trit_is_refused_with_its_index() -> None:
    with pytest.raises(ValueError, match="value 2 at index 3 is not a trit"):
        packed.pack_trits(np.array([0, 1, -1, 2], np.int8))
    for code in range(243, 256):
        with pytest.raises(ValueError, match=f"code {code} at index 1 is above 242"):
            packed.unpack_trits(np.array([0, code], np.uint8), 10)
    with pytest.raises(ValueError, match="not filled with zeros"):
        packed.unpack_trits(np.array([0], np.uint8), 4)


def tiny_file() -> packed.ModelFile:
    return packed.ModelFile(random_model(TINY), bpe.Tokenizer(()), {"name": "tiny"})


def equal(one: Model, other: Model) -> bool:
    def parts(model: Model) -> list[bytes]:
        kept = []
        for tensor in model.tensors().values():
            values: Any = tensor
            if isinstance(tensor, Ternary):
                values = tensor.trits
            elif isinstance(tensor, Embedding):
                values = tensor.codes
            scale = np.float32(getattr(tensor, "scale", 0)).tobytes()
            kept.append(scale + str(values.shape).encode() + values.tobytes())
        return kept

    return one.config == other.config and parts(one) == parts(other)


def test_a_saved_model_comes_back_and_saving_is_deterministic(tmp_path: Path) -> None:
    path = tmp_path / "tiny.atx"
    packed.save(path, tiny_file())
    first = path.read_bytes()
    back = packed.load(path)
    assert equal(back.model, tiny_file().model)
    assert back.tokenizer == tiny_file().tokenizer and back.meta == {"name": "tiny"}
    packed.save(path, back)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def sign(text: bytes, body: bytes, **fields: Any) -> bytes:
    """A file with a right checksum, so that only the fault under test is met."""
    text += b" " * (-(packed.PREAMBLE.size + len(text)) % 4)
    values = {
        "magic": packed.MAGIC,
        "version": packed.VERSION,
        "zero": 0,
        "header": len(text),
        "payload": len(body),
        "digest": hashlib.sha256(text + body).digest(),
    } | fields
    return packed.PREAMBLE.pack(*values.values()) + text + body


def parts(contents: bytes) -> tuple[dict[str, Any], bytearray]:
    size = packed.PREAMBLE.unpack_from(contents)[3]
    at = packed.PREAMBLE.size
    return json.loads(contents[at : at + size]), bytearray(contents[at + size :])


def resign(change: Callable[[dict[str, Any], bytearray], Any], **fields: Any) -> bytes:
    header, payload = parts(packed.encode(tiny_file()))
    change(header, payload)
    return sign(json.dumps(header).encode(), bytes(payload), **fields)


def offset(header: dict[str, Any], name: str) -> int:
    return next(entry["offset"] for entry in header["tensors"] if entry["name"] == name)


def set_float(name: str, value: float) -> Callable[[dict[str, Any], bytearray], None]:
    return lambda header, payload: struct.pack_into("<f", payload, offset(header, name), value)


def set_code(header: dict[str, Any], payload: bytearray) -> None:
    payload[offset(header, "blk.1.attn_v.weight") + 4 + 6] = 250


def set_padding(header: dict[str, Any], payload: bytearray) -> None:
    entry = header["tensors"][2]
    payload[entry["offset"] + entry["bytes"]] = 1


def set_tensor(**fields: Any) -> Callable[[dict[str, Any], bytearray], None]:
    return lambda header, payload: header["tensors"][2].update(fields)


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"", "offset 0: expected the magic"),
        (b"GGUF" + bytes(100), "offset 0: expected the magic b'ATX\\x00', found b'GGUF'"),
        (packed.MAGIC, "offset 4: expected 52 bytes of preamble"),
        (resign(lambda h, p: None, version=7), "offset 4: expected version 1, found 7"),
        (resign(lambda h, p: None, zero=1), "offset 6: expected 0, found 1"),
        (resign(lambda h, p: None, header=1 << 31), "bytes of header, found 2147483648"),
        (resign(lambda h, p: None, payload=1 << 60), "all that is left, found 1152921504606846976"),
        (packed.encode(tiny_file())[:-1], "offset 12: expected"),
        (packed.encode(tiny_file()) + b"\0", "offset 12: expected"),
        (resign(lambda h, p: None, digest=bytes(32)), "offset 20: expected the SHA-256"),
        (sign(b"{", b""), "offset 52: expected a JSON header"),
        (sign(b"[]", b""), "a header with 'config' as dict"),
        (sign(b"[" * 100000, b""), "offset 52: expected a JSON header"),
        (resign(lambda h, p: h.pop("merges")), "a header with 'merges' as list"),
        (resign(lambda h, p: h["config"].update(dim="12")), "dim must be a whole number"),
        (resign(lambda h, p: h["config"].update(color=1)), "expected a model configuration"),
        (resign(lambda h, p: h["config"].update(layers=1 << 20)), "tensors for 1048576 layers"),
        (resign(lambda h, p: h["config"].update(hidden=1 << 20)), "found"),
        (resign(lambda h, p: h["config"].update(vocab=98)), "expected 98 pieces"),
        (resign(lambda h, p: h["merges"].append([1])), "expected pairs of pieces"),
        (resign(lambda h, p: h["merges"].append([1, 500])), "expected pairs of pieces"),
        (resign(set_tensor(name="x")), "tensor blk.0.attn_q.weight with {'name': "),
        (resign(set_tensor(shape=[12, 12])), "'shape': [16, 12]}, found {'shape': [12, 12]}"),
        (resign(set_tensor(offset=1 << 40)), "found {'offset': 1099511627776}"),
        (resign(set_tensor(encoding="int8")), "found {'encoding': 'int8'}"),
        (resign(set_tensor(extra=1)), "tensor blk.0.attn_q.weight"),
        (resign(lambda h, p: h["tensors"].pop()), "expected 25 tensors for 2 layers, found 24"),
        (resign(lambda h, p: p.extend(bytes(4))), "the end of the file, found 4 more bytes"),
        (resign(lambda h, p: p.__delitem__(slice(-9, None))), "bytes of tensor output.weight"),
        (resign(set_float("token_embd.weight", math.nan)), "above 0 for tensor token_embd"),
        (
            resign(set_float("blk.0.attn_k.weight", math.inf)),
            "above 0 for tensor blk.0.attn_k",
        ),
        (resign(set_float("output.weight", -1.0)), "scale above 0 for tensor output"),
        (resign(set_float("output_norm.weight", math.nan)), "finite values in tensor output_norm"),
        (resign(set_padding), "zero bytes before tensor blk.0.attn_k.weight"),
        (resign(set_code), "blk.1.attn_v.weight, found code 250 at index 6 is above 242"),
    ],
)
def test_a_corrupt_file_is_refused_in_one_sentence(contents: bytes, sentence: str) -> None:
    began = time.perf_counter()
    with pytest.raises(packed.ModelFileError) as error:
        packed.decode(contents, "bad.atx")
    assert time.perf_counter() - began < 1
    message = str(error.value)
    assert sentence in message
    assert message.startswith("bad.atx: offset ") and "expected" in message and "\n" not in message


def test_every_truncation_and_every_flipped_bit_is_noticed() -> None:
    contents = packed.encode(tiny_file())
    for size in range(0, len(contents), 13):
        with pytest.raises(packed.ModelFileError):
            packed.decode(contents[:size])
    for place in range(0, len(contents), 7):
        flipped = bytearray(contents)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(packed.ModelFileError):
            packed.decode(bytes(flipped))


def test_contents_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    file = tiny_file()
    with pytest.raises(ValueError, match="the vocabulary has 98 pieces, the model 97"):
        packed.encode(replace(file, tokenizer=bpe.Tokenizer(((1, 2),))))
    ffn_up = file.model.layers[1].ffn_up
    assert isinstance(ffn_up, Ternary)
    ffn_up.trits[2, 3] = 2
    with pytest.raises(ValueError, match=r"tensor blk\.1\.ffn_up\.weight: value 2 at index 27"):
        packed.save(tmp_path / "bad.atx", file)
    assert not list(tmp_path.iterdir())
    with pytest.raises(packed.ModelFileError, match="offset 0: expected a file"):
        packed.load(tmp_path / "none.atx")
    with pytest.raises(ModelError, match=r"tensor output_norm\.weight has shape"):
        replace(file.model, output_norm=np.ones(3, np.float32))


# Golden models -------------------------------------------------------------------------------


Scale = tuple[int, int]
Norm = tuple[list[int], int, int]


class ByHand:
    """The integer model from docs/model.md alone, in Python integers, one number at a time.

    Default widths; shares no code with the golden model, its constants included.
    """

    def __init__(
        self, model: Model, *, temperature: float = 0.0, keep: int = 0, recent: int = 1
    ) -> None:
        c = self.config = model.config
        self.keep, self.recent = keep, recent
        self.embedding = model.token_embd.codes.tolist()
        self.shift = min(max(round(math.log2(model.token_embd.scale) + 9), 0), 10)
        unit = model.token_embd.scale / 2**self.shift
        self.norms: list[dict[str, Norm | None]] = []
        self.weights: list[dict[str, tuple[list[list[int]], Scale]]] = []
        for layer in model.layers:
            gate, up = layer.ffn_gate.scale, layer.ffn_up.scale
            units = {
                "attn_norm": unit,
                "attn_sub_norm": 2.0**-10,
                "ffn_norm": unit,
                "ffn_sub_norm": 2.0 ** (-4 if c.gate == "relu2" else -8) * up / gate,
            }
            norms = {name: self.norm(getattr(layer, name), d) for name, d in units.items()}
            weights = {}
            for name, norm in (
                ("attn_q", "attn_norm"),
                ("attn_k", "attn_norm"),
                ("attn_v", "attn_norm"),
                ("attn_output", "attn_sub_norm"),
                ("ffn_gate", "ffn_norm"),
                ("ffn_up", "ffn_norm"),
                ("ffn_down", "ffn_sub_norm"),
            ):
                weight = getattr(layer, name)
                scale = gate if name == "ffn_up" else weight.scale
                d = unit if name in ("attn_output", "ffn_down") else 2.0**-10
                norm_unit = units[norm]
                if norms[norm] is None:
                    scale *= norm_unit * 2**15
                weights[name] = self.projection(weight.codes, scale / d, norms[norm])
            self.norms.append(norms)
            self.weights.append(weights)
        self.output_norm = self.norm(model.output_norm, unit)
        rows, head = self.projection(
            model.output.codes, model.output.scale * 1024, self.output_norm
        )
        if temperature:
            head = self.scale_of(head[0] / 2 ** head[1] * math.log2(math.e) / temperature / 4)
        self.output = rows, head
        pair = math.sqrt(c.head_dim)
        self.score_scale = self.scale_of(math.log2(math.e) / 2**12 / (127**2 * pair))
        self.mix_scale = self.scale_of(256 / 127)
        self.keys: list[list[Any]] = [[] for _ in model.layers]
        self.values: list[list[Any]] = [[] for _ in model.layers]
        self.place = 0

    # Constants

    @staticmethod
    def scale_of(real: float) -> Scale:
        fraction, exponent = math.frexp(real)
        mantissa = round(fraction * 65536)
        return (32768, 15 - exponent) if mantissa == 65536 else (mantissa, 16 - exponent)

    def norm(self, gain: Any, unit: float) -> Norm | None:
        if gain is None:
            return None
        gains = [float(g) for g in gain]
        bits = min(30, math.floor(math.log2(32767 / max(map(abs, gains)))))
        eps = max(1, round(self.config.eps * len(gains) / unit**2))
        return [round(g * 2.0**bits) for g in gains], bits, eps

    def projection(self, trits: Any, scale: float, norm: Any) -> tuple[list[list[int]], Scale]:
        rows = trits.tolist()
        real = scale / 127
        if norm is not None:
            real *= math.sqrt(len(rows[0])) * 2.0 ** (15 - norm[1])
        return rows, self.scale_of(real)

    def angle(self, pair: int) -> tuple[int, int]:
        half = self.config.head_dim // 2
        angle = self.place * self.config.theta ** (-pair / half)
        cos, sin = (round(f(angle) * 32768) for f in (math.cos, math.sin))
        return max(-32767, min(32767, cos)), max(-32767, min(32767, sin))

    # Arithmetic

    @staticmethod
    def up(value: int, shift: int) -> int:
        return (value + (1 << shift - 1)) >> shift if shift > 0 else value

    @staticmethod
    def even(top: int, bottom: int) -> int:
        whole, rest = divmod(top, bottom)
        return whole + (2 * rest > bottom or (2 * rest == bottom and whole % 2))

    @staticmethod
    def sat(value: int, bits: int = 18) -> int:
        top = (1 << bits - 1) - 1
        return max(-top, min(top, value))

    def normalise(self, value: int) -> Scale:
        shift = 16 - value.bit_length()
        mantissa = value << shift if shift >= 0 else self.up(value, -shift)
        return (mantissa // 2, shift - 1) if mantissa == 65536 else (mantissa, shift)

    def product(self, one: Scale, other: Scale) -> Scale:
        mantissa, shift = self.normalise(one[0] * other[0])
        return mantissa, shift + one[1] + other[1]

    def quotient(self, one: Scale, other: Scale) -> Scale:
        mantissa, shift = self.normalise(self.even(one[0] << 16, other[0]))
        return mantissa, shift + 16 + one[1] - other[1]

    def requantise(self, value: int, scale: Scale) -> int:
        assert scale[1] >= 0 or not value * scale[0]
        return self.up(value * scale[0], scale[1])

    def codes(self, values: list[int]) -> tuple[list[int], int]:
        peak = max(map(abs, values))
        return [self.even(127 * v, peak) if peak else 0 for v in values], peak

    @staticmethod
    def dot(one: list[int], other: list[int]) -> int:
        return sum(map(int.__mul__, one, other))

    # Units

    def normed(self, x: list[int], norm: Norm | None) -> tuple[list[int], Scale]:
        if norm is None:
            q, peak = self.codes([self.up(v * 32767, 15) for v in x])
            return q, self.quotient(self.normalise(peak), (2**15, 0))
        gains, _, eps = norm
        q, peak = self.codes([self.up(v * g, 15) for v, g in zip(x, gains, strict=True)])
        square = self.dot(x, x) + eps
        even = 32 - square.bit_length() & ~1
        root = math.isqrt(square << even if even >= 0 else square >> -even)
        return q, self.quotient(self.normalise(peak), (root, even // 2))

    def linear(self, q: list[int], scale: Scale, weight: Any) -> tuple[list[int], list[int]]:
        rows, own = weight
        factor = self.product(scale, own)
        sums = [self.dot(row, q) for row in rows]
        return [self.sat(self.requantise(total, factor)) for total in sums], sums

    def squared(self, gate: int, up: int) -> int:
        return self.up(max(gate, 0) ** 2 * up, 26)

    def silu(self, gate: int, up: int) -> int:
        """The sigmoid is a line between nodes 1/16 apart, and 0 or 1 from 16 on."""
        left, between = divmod(abs(gate), 64)
        node = [round(2**16 / (1 + math.exp(at / 16))) for at in (left, left + 1)]
        falling = node[0] - self.up((node[0] - node[1]) * between, 6) if left < 256 else 0
        sigmoid = falling if gate < 0 else 2**16 - falling
        return self.up(self.up(gate * sigmoid, 16) * up, 12)

    def rotate(self, x: list[int]) -> list[int]:
        half = len(x) // 2
        out = [0] * len(x)
        for pair in range(half):
            cos, sin = self.angle(pair)
            low, high = x[pair], x[pair + half]
            out[pair] = self.sat(self.up(low * cos - high * sin, 15))
            out[pair + half] = self.sat(self.up(low * sin + high * cos, 15))
        return out

    def log(self, peak: int) -> int:
        if not peak:
            return 0
        bits = peak.bit_length()
        mantissa = self.up(peak, bits - 9) if bits > 9 else peak << 9 - bits
        if mantissa == 512:
            mantissa, bits = 256, bits + 1
        return 256 * (bits - 1) + round(256 * math.log2(mantissa / 256))

    def selected(self, query: list[int], keys: list[list[int]]) -> list[int]:
        def power(code: int) -> int:
            size = 1 << abs(code).bit_length() >> 1
            return size if code >= 0 else -size

        def bucket(token: int) -> int:
            score = self.dot([power(a) for a in query], [power(b) for b in keys[token]])
            lead = abs(score).bit_length() - 1
            below = abs(score) >> lead - 1 & 1 if lead > 0 else 0
            size = 2 * lead + below + 1 if score else 0
            return size if score > 0 else -size

        count = len(keys)
        if not self.keep:
            return list(range(count))
        old = range(max(count - self.recent, 0))
        chosen = sorted(old, key=lambda token: (-bucket(token), token))
        chosen = chosen[: max(self.keep - self.recent, 0)]
        return sorted([*chosen, *range(len(old), count)])

    def attend(self, query: list[int], peak: int, keys: list[Any], values: list[Any]) -> list[int]:
        def octave(x: int) -> tuple[int, int]:
            whole = -(-x // 256)
            return whole, 256 * whole - x

        factor = self.product(self.normalise(peak), self.score_scale)
        total, sums = 0, [0] * len(query)
        most: list[int] | None = None
        for token in self.selected(query, [key for key, _ in keys]):
            (key, key_peak), (value, log) = keys[token], values[token]
            score = self.sat(self.requantise(self.dot(query, key) * key_peak, factor))
            (m, below), (n, under) = octave(score), octave(score + log)
            before = most or [m, n]
            most = [max(before[0], m), max(before[1], n)]
            chance = self.up(round(2 ** (15 - below / 256)), most[0] - m)
            total = (total >> most[0] - before[0]) + chance
            weight = self.up(min(127, round(2 ** (7 - under / 256))), most[1] - n)
            sums = [
                (held >> most[1] - before[1]) + weight * v
                for held, v in zip(sums, value, strict=True)
            ]
        assert most is not None
        mantissa, shift = self.quotient(self.mix_scale, self.normalise(total))
        shift += most[0] - most[1]
        return [self.sat(self.requantise(held, (mantissa, shift))) for held in sums]

    def step(self, token: int) -> tuple[list[int], list[int]]:
        """The head's sums and logits after one more token."""
        c = self.config
        x = [code << self.shift for code in self.embedding[token]]
        for index, (norms, weights) in enumerate(zip(self.norms, self.weights, strict=True)):
            q, scale = self.normed(x, norms["attn_norm"])
            queries, keys, values = (
                [out[at : at + c.head_dim] for at in range(0, len(out), c.head_dim)]
                for out, _ in (self.linear(q, scale, weights[f"attn_{name}"]) for name in "qkv")
            )
            self.keys[index].append([self.codes(self.rotate(key)) for key in keys])
            coded = [self.codes(value) for value in values]
            self.values[index].append([(codes, self.log(peak)) for codes, peak in coded])
            mixed: list[int] = []
            for head, query in enumerate(queries):
                own = head // (c.heads // c.kv_heads)
                past = [[each[own] for each in kept[index]] for kept in (self.keys, self.values)]
                mixed += self.attend(*self.codes(self.rotate(query)), *past)
            added, _ = self.linear(
                *self.normed(mixed, norms["attn_sub_norm"]), weights["attn_output"]
            )
            x = [self.sat(a + b) for a, b in zip(x, added, strict=True)]
            q, scale = self.normed(x, norms["ffn_norm"])
            gate, up = (self.linear(q, scale, weights[f"ffn_{name}"])[0] for name in ("gate", "up"))
            gated = self.squared if c.gate == "relu2" else self.silu
            hidden = [self.sat(gated(g, u)) for g, u in zip(gate, up, strict=True)]
            added, _ = self.linear(*self.normed(hidden, norms["ffn_sub_norm"]), weights["ffn_down"])
            x = [self.sat(a + b) for a, b in zip(x, added, strict=True)]
        self.place += 1
        logits, sums = self.linear(*self.normed(x, self.output_norm), self.output)
        return sums, logits


def assert_as_by_hand(model: IntegerModel, hand: ByHand, tokens: Any) -> None:
    out = model.forward(np.array(tokens), model.start())
    sums, logits = zip(*(hand.step(int(token)) for token in tokens), strict=True)
    assert out.sums.tolist() == list(sums)
    assert out.fixed.tolist() == list(logits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes",
    [
        {"gate": "silu"},
        {"sub_norms": False, "gate": "silu"},
        {"sub_norms": False, "gate": "silu", "tied": True, "head_dim": 6},
        {"sub_norms": False, "hidden": 6},
    ],
)
def test_other_architectures_do_what_the_specification_says(
    changes: dict[str, Any], seed: int
) -> None:
    config = replace(TINY, **changes)
    model = random_model(config, seed)
    rng = np.random.default_rng(seed)

    def integers(weight: Any, bits: int) -> Integer:
        codes = rng.integers(-(1 << bits - 1), 1 << bits - 1, weight.codes.shape)
        return Integer(codes.astype(np.int8), 0.12 / (1 << bits - 1), bits)

    layers = tuple(
        replace(
            layer,
            attn_k=integers(layer.attn_k, 8),
            attn_output=integers(layer.attn_output, 4),
            ffn_up=integers(layer.ffn_up, 8),
            ffn_down=integers(layer.ffn_down, 8),
        )
        for layer in model.layers
    )
    model = replace(model, layers=layers)
    tokens = rng.integers(0, config.vocab, config.context)
    assert_as_by_hand(IntegerModel.compile(model), ByHand(model), tokens)


@pytest.mark.parametrize("seed", range(6))
def test_integer_model_does_what_the_specification_says(seed: int) -> None:
    model = random_model(TINY, seed)
    tokens = np.random.default_rng(seed).integers(0, TINY.vocab, TINY.context)
    assert_as_by_hand(IntegerModel.compile(model), ByHand(model), tokens)


def test_the_shipped_model_does_what_the_specification_says(
    compiled: IntegerModel, shipped: packed.ModelFile
) -> None:
    tokens = shipped.tokenizer.encode(TALE, bos=True)[:24]
    assert_as_by_hand(compiled, ByHand(shipped.model), tokens)


def test_logits_for_drawing_are_what_the_specification_says() -> None:
    model = random_model(TINY, 7)
    compiled = IntegerModel.compile(model)
    for temperature in (0.3, 1.0, 1.7):
        hand = ByHand(model, temperature=temperature)
        assert_as_by_hand(compiled.at_temperature(temperature), hand, range(TINY.context))
    with pytest.raises(ModelError, match="a temperature of 1e-09 is too low"):
        compiled.at_temperature(1e-9)


@pytest.mark.parametrize(("keep", "recent"), [(1, 1), (4, 1), (5, 3), (2, 4), (10, 1)])
def test_attention_to_selected_tokens_is_what_the_specification_says(
    keep: int, recent: int
) -> None:
    model = random_model(TINY, 8)
    compiled = IntegerModel.compile(model, Precision(select_k=keep, select_recent=recent))
    hand = ByHand(model, keep=keep, recent=recent)
    assert_as_by_hand(compiled, hand, range(20, 20 + TINY.context))


@pytest.mark.parametrize("cuts", [range(1, 60), (7, 8, 31), (59,)])
def test_any_division_into_calls_gives_the_same_bits(
    compiled: IntegerModel, shipped: packed.ModelFile, cuts: Any
) -> None:
    tokens = np.array(shipped.tokenizer.encode(TALE, bos=True)[:60])
    at_once: dict[str, Any] = {}
    whole = compiled.forward(tokens, compiled.start(), at_once)
    state, pieces = compiled.start(), []
    for run in np.split(tokens, list(cuts)):
        trace: dict[str, Any] = {}
        pieces.append((compiled.forward(run, state, trace), trace))
    assert (np.concatenate([out.sums for out, _ in pieces]) == whole.sums).all()
    assert (np.concatenate([out.fixed for out, _ in pieces]) == whole.fixed).all()
    for name, rows in at_once.items():
        assert (np.concatenate([trace[name] for _, trace in pieces]) == rows).all(), name


def test_integer_model_is_within_a_percent_of_the_float_reference(
    compiled: IntegerModel, shipped: packed.ModelFile
) -> None:
    ids = shipped.tokenizer.encode(TALE, bos=True)
    own = list(generate(compiled, [0], 250, temperature=1.0, seed=5))
    windows = [(np.array(run[:-1]), np.array(run[1:])) for run in (ids[:256], [0, *own])]
    exact = evaluate.loss(Reference(shipped.model), windows)
    assert abs(math.exp(evaluate.loss(compiled, windows) - exact) - 1) < 0.01
    # A model that knows the language of fairy tales: chance would be the size of the vocabulary.
    assert math.exp(evaluate.loss(compiled, windows[:1])) < 40
    coarse = IntegerModel.compile(shipped.model, Precision(kv_bits=3, weight_bits=3))
    assert evaluate.loss(coarse, windows) > exact + 0.01


@pytest.mark.long
def test_ten_thousand_tokens_take_less_than_a_minute_and_cost_less_than_a_percent(
    compiled: IntegerModel, shipped: packed.ModelFile
) -> None:
    reference = Reference(shipped.model)
    texts = [[0, *generate(reference, [0], 256, temperature=1.0, seed=seed)] for seed in range(40)]
    windows = [(np.array(ids[:-1]), np.array(ids[1:])) for ids in texts]
    assert sum(len(targets) for _, targets in windows) > 10_000
    began = time.process_time()
    rise = math.exp(evaluate.loss(compiled, windows) - evaluate.loss(reference, windows)) - 1
    assert time.process_time() - began < 60
    assert abs(rise) < 0.005


@pytest.mark.parametrize("name", evaluate.WIDER)
def test_wider_units_change_the_integer_model_a_little(
    name: str, shipped: packed.ModelFile
) -> None:
    tokens = np.array(shipped.tokenizer.encode(TALE, bos=True)[:48])
    real = Reference(shipped.model).forward(tokens, Reference(shipped.model).start()).real
    wider = replace(Precision(), **evaluate.WIDER[name])
    default, other = (
        (model := IntegerModel.compile(shipped.model, precision)).forward(tokens, model.start())
        for precision in (Precision(), wider)
    )
    assert (default.fixed != other.fixed).any()
    assert np.abs(other.real - real).mean() < 0.1


def test_float_reference_follows_the_published_order_of_operations() -> None:
    model = random_model(TINY)
    x = np.random.default_rng(0).normal(size=(3, TINY.dim)).astype(np.float32)
    x[1] = 0
    weight = model.layers[0].attn_q
    assert isinstance(weight, Ternary)
    got = Reference(model)._project(x, weight)
    for row, expected in zip(x, got, strict=True):
        scale = np.float32(127) / max(np.float32(1e-5), np.abs(row).max())
        codes = np.clip(np.rint(row * scale), -128, 127).astype(int)
        sums = weight.trits.astype(int) @ codes
        assert (sums.astype(np.float32) / scale * np.float32(weight.scale) == expected).all()


def test_float_reference_is_the_same_token_by_token(shipped: packed.ModelFile) -> None:
    reference = Reference(shipped.model, quantise=False)
    tokens = np.array(shipped.tokenizer.encode(TALE, bos=True)[:40])
    state = reference.start()
    single = np.concatenate([reference.forward(t, state).real for t in np.split(tokens, 40)])
    whole = reference.forward(tokens, reference.start()).real
    np.testing.assert_allclose(single, whole, atol=2e-3)


def test_silence_gives_zeros_not_faults() -> None:
    model = random_model(TINY)
    model.token_embd.codes[:] = 0
    logits = IntegerModel.compile(model)
    out = logits.forward(np.arange(TINY.context), logits.start())
    assert not out.sums.any() and not out.fixed.any()
    assert out.greedy().tolist() == [0] * TINY.context


def test_loud_models_saturate_and_do_not_wrap() -> None:
    model = random_model(TINY)
    scale = 7.9 / 127
    layers = []
    for layer in model.layers:
        norm = np.full(TINY.dim, 300, np.float32)
        loud: dict[str, Any] = {"attn_norm": norm, "ffn_norm": norm}
        for name in TINY.projections():
            own = 40 if name in ("attn_output", "ffn_down") else 1.5
            loud[name] = Ternary(getattr(layer, name).trits, own)
        layers.append(replace(layer, **loud))
    model = replace(
        model, layers=tuple(layers), token_embd=Embedding(model.token_embd.codes, scale)
    )
    compiled = IntegerModel.compile(model)
    tokens = np.arange(TINY.context)
    trace: dict[str, Any] = {}
    compiled.forward(tokens, compiled.start(), trace)
    top = (1 << 17) - 1
    for name in ("blk.0.attn_q.out", "blk.0.ffn_sub_norm.input", "blk.0.out"):
        assert np.abs(trace[name]).max() == top, name
    assert_as_by_hand(compiled, ByHand(model), tokens)


def test_constants_that_do_not_fit_are_refused_by_name() -> None:
    model = random_model(TINY)
    for name, scale, rule in (
        ("attn_k", 1e9, r"the scale of blk\.1\.attn_k is too large"),
        ("ffn_gate", 1e6, r"the scale of blk\.1\.ffn_gate is too large"),
        ("ffn_down", 1e9, r"the scale of blk\.1\.ffn_down is too large"),
        ("ffn_up", 1e-14, r"eps of blk\.1\.ffn_sub_norm is too large"),
    ):
        trits = getattr(model.layers[1], name).trits
        odd = replace(model.layers[1], **{name: Ternary(trits, scale)})
        with pytest.raises(ModelError, match=rule):
            IntegerModel.compile(replace(model, layers=(model.layers[0], odd)))
    with pytest.raises(ModelError, match=r"eps of blk\.0\.attn_norm is too large"):
        IntegerModel.compile(replace(model, token_embd=Embedding(model.token_embd.codes, 1e-12)))
    with pytest.raises(ModelError, match="output_norm"):
        IntegerModel.compile(replace(model, output_norm=np.zeros(TINY.dim, np.float32)))
    with pytest.raises(ModelError, match=r"kv_bits must be in 2\.\.12, not 13"):
        Precision(kv_bits=13)
    with pytest.raises(ModelError, match="2 kv_bits and activation_bits are at most 43 together"):
        Precision(kv_bits=12, activation_bits=20)
    with pytest.raises(ModelError, match="heads must be a multiple of kv_heads"):
        replace(TINY, kv_heads=3)


def test_a_token_takes_far_less_than_fifty_milliseconds(compiled: IntegerModel) -> None:
    state, times = compiled.start(), []
    for token in range(100, 160):
        began = time.process_time()
        compiled.forward(np.array([token]), state)
        times.append(time.process_time() - began)
    assert min(times) < 0.05


def test_projections_of_a_layer_are_exact_products(
    compiled: IntegerModel, shipped: packed.ModelFile
) -> None:
    prompt = shipped.tokenizer.encode("The king said", bos=True)
    for layer in range(compiled.config.layers):
        runs = layer_activations(compiled, prompt, layer)
        assert list(runs) == list(compiled.config.projections())
        for name, run in runs.items():
            assert run.trits.shape == compiled.config.projections()[name]
            assert run.codes.dtype == np.int8 and run.sums.dtype == np.int32
            assert (run.sums == run.codes.astype(int) @ run.trits.T.astype(int)).all()
            assert len(run.codes) == len(prompt) and np.abs(run.codes).max() == 127
    with pytest.raises(ModelError, match=r"layer must be in 0\.\.2, not 3"):
        layer_activations(compiled, prompt, 3)
    first = text_generate.first_layer("The king said")
    assert list(first) == list(compiled.config.projections())


# Generation ----------------------------------------------------------------------------------


def test_sampling_is_seeded_and_greedy_takes_the_lowest_of_equals(compiled: IntegerModel) -> None:
    def drawn(**how: Any) -> list[int]:
        return list(generate(compiled, [0, 50], 20, **how))

    assert drawn(temperature=0.9, seed=3) == drawn(temperature=0.9, seed=3)
    assert drawn(temperature=0.9, seed=3) != drawn(temperature=0.9, seed=4)
    assert drawn(temperature=0.9, top_k=1, seed=3) == drawn()
    rng = np.random.default_rng(0)
    level = np.array([1.0, 5.0, 2.0, 5.0])
    assert {choose(level, 1.0, 1, rng) for _ in range(20)} == {1}
    assert {choose(level, 1.0, 2, rng) for _ in range(50)} == {1, 3}
    counts = np.bincount([choose(level, 2.0, 0, rng) for _ in range(4000)], minlength=4) / 4000
    chances = np.exp(level / 2) / np.exp(level / 2).sum()
    assert np.abs(counts - chances).max() < 0.03


def test_stories_stream_and_stop_at_the_context_with_a_sentence() -> None:
    story = text_generate.Story("Once upon a time", tokens=8)
    pieces = list(story)
    assert len(pieces) == 8 and story.note is None
    assert story.tokenizer.decode(story.ids) == "Once upon a time" + "".join(pieces)
    full = text_generate.Story(TALE[:500], tokens=1000, temperature=0.8)
    came = len(list(full))
    assert full.note == (f"stopped after {came} of 1000 tokens: the context of 256 tokens is full")
    assert len(full.ids) == 257
    assert list(text_generate.Story("", tokens=5)) == list(text_generate.Story("", tokens=5))
    assert "".join(text_generate.Story("The king", tokens=3, arithmetic="float"))


def test_prompts_that_cannot_be_are_refused(compiled: IntegerModel) -> None:
    with pytest.raises(ModelError, match="do not fit the context of 256"):
        text_generate.Story("tick tock " * 100)
    with pytest.raises(bpe.TokenizerError, match="at position 1"):
        text_generate.Story("A\u00df")
    cases: list[tuple[list[int], dict[str, Any], str]] = [
        ([], {}, "at least one token"),
        ([0] * 257, {}, "does not fit the context"),
        ([512], {}, r"token 512 at position 0 is not in 0\.\.511"),
        ([0], {"temperature": -1}, "temperature must be at least 0"),
        ([0], {"temperature": math.nan}, "temperature must be at least 0"),
        ([0], {"top_k": -1}, "top_k must be at least 0"),
    ]
    for prompt, how, rule in cases:
        with pytest.raises(ModelError, match=rule):
            list(generate(compiled, prompt, 1, **how))


# Shipped model and training ------------------------------------------------------------------


def test_the_shipped_model_has_the_promised_shape(shipped: packed.ModelFile) -> None:
    path = text_generate.shipped()
    assert path.stat().st_size < 1_000_000
    assert shipped.model.config == ModelConfig()
    assert 1_000_000 < shipped.model.config.ternary_weights < 1_100_000
    assert packed.encode(shipped) == path.read_bytes()
    times = []
    for _ in range(5):
        began = time.process_time()
        packed.load(path)
        times.append(time.process_time() - began)
    assert min(times) < 0.03


def test_the_model_card_is_the_one_of_the_shipped_model(shipped: packed.ModelFile) -> None:
    path = text_generate.shipped()
    assert path.with_suffix(".md").read_text(encoding="utf-8") == card.text(path)
    measured = shipped.meta["evaluation"]
    assert abs(measured["integer"] / measured["reference"] - 1) < 0.01
    assert (path.parent / "storybook-loss.png").stat().st_size < 60_000


def test_a_published_model_can_be_measured_again(tmp_path: Path, shipped: packed.ModelFile) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "tiny.atx"
    text.write_text(TALE * 60)
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    meta = {**shipped.meta, "text": {**shipped.meta["text"], "sha256": digest}}
    model = random_model(replace(TINY, context=32))
    packed.save(path, packed.ModelFile(model, bpe.Tokenizer(()), meta))
    figures = training.measure(path, text, units=1)["evaluation"]
    back = packed.load(path)
    assert equal(back.model, model)
    assert back.meta["evaluation"] == figures != meta["evaluation"]
    assert {**back.meta, "evaluation": 0} == {**meta, "evaluation": 0}
    assert list(figures["units"]) == ["all together", *evaluate.WIDER]
    written = path.with_suffix(".md").read_text()
    assert written == card.text(path)
    for name in ("reference", "integer", "float_activations"):
        assert f"{figures[name]:.3f}" in written
    for name, cost in figures["units"].items():
        assert f"| {name} | {100 * cost:+.3f} % |" in written
    text.write_text(TALE * 61)
    with pytest.raises(training.TrainError, match=r"is not the text that tiny\.atx was trained"):
        training.measure(path, text)


def test_held_out_paragraphs_are_spread_and_never_trained_on() -> None:
    lines = [f"Paragraph number {index} of the text." for index in range(1000)]
    seen, held_out = corpus.split("\n\n".join(lines))
    hidden = "".join(held_out).splitlines()
    assert hidden == lines[200:220] + lines[600:620]
    assert [p.removesuffix("\n") for p in seen] == lines[:200] + lines[220:600] + lines[620:]
    data = corpus.Corpus.load("\n".join(lines), tokenizer=bpe.Tokenizer(()))
    batch = data.batch(0, 5, 8, 30)
    assert (batch == data.batch(0, 5, 8, 30)).all()
    assert (batch != data.batch(0, 6, 8, 30)).any()
    assert (batch[::2, 0] == 0).all() and (batch[1::2] != 0).all()
    for row in batch[::2]:
        assert data.tokenizer.decode(row).startswith("Paragraph number ")
    targets = np.concatenate([nexts for _, nexts in data.windows(50)])
    assert data.tokenizer.decode(targets.tolist()) == "".join(held_out)


def test_training_without_torch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(training.TrainError, match=r"pip install 'atriplex\[train\]'"):
        training.train(tmp_path / "text.txt", tmp_path / "out")


def test_the_learning_rate_does_not_depend_on_the_end_before_it_falls() -> None:
    config = training.TrainConfig(warmup=10, decay=0.5)
    assert [config.rate(step, 100) for step in range(50)] == [
        config.rate(step, 900) for step in range(50)
    ]
    assert config.rate(99, 100) == pytest.approx(config.learning_rate / 50)


def test_a_small_training_run_resumes_and_publishes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text(TALE * 60)
    model = replace(TINY, vocab=140, context=32, dim=16, hidden=24)
    config = training.TrainConfig(
        model=model, steps=12, float_steps=6, batch=4, warmup=2, eval_every=6, threads=2
    )
    seen: list[dict[str, Any]] = []
    out = tmp_path / "out"
    meta = training.train(text, out, config=config, progress=seen.append)
    assert [record["step"] for record in seen] == [*range(1, 13), *range(1, 7)]
    assert meta["ternary"]["perplexity"] < 140
    file = packed.load(out / "storybook.atx")
    assert file.meta == json.loads(json.dumps(meta))
    measured = meta["evaluation"]
    assert measured["reference"] == pytest.approx(meta["ternary"]["perplexity"], rel=0.02)
    assert (out / "storybook.md").read_text() == card.text(out / "storybook.atx")
    with pytest.raises(training.TrainError, match="holds a training run"):
        training.train(text, out, config=config)
    seen.clear()
    training.train(text, out, config=replace(config, steps=14), resume=True, progress=seen.append)
    assert [record["step"] for record in seen] == [13, 14]
