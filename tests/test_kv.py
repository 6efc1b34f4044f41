# SPDX-License-Identifier: Apache-2.0
"""Token selection and the store of vectors: their models against choices and writes one by one."""

import numpy as np
import pytest
from atriplex.rtl.config import ConfigError
from atriplex.rtl.kv.kv_store import KvStoreConfig
from atriplex.rtl.kv.lop_select import LopSelectConfig
from atriplex.sim.kv import kv_store, lop_select


def power(code: int, width: int) -> int:
    size = min(abs(code), (1 << width - 1) - 1)
    return (1 << size.bit_length() >> 1) * (1 if code > 0 else -1)


def bucket(score: int, detail: int) -> tuple[int, int]:
    """What two scores of one class have in common, in their order: octave, and bits below it."""
    size = abs(score)
    if not size:
        return 0, 0
    octave = size.bit_length()
    below = (size << detail >> octave - 1) - (1 << detail)
    return (octave, below) if score > 0 else (-octave, -below)


def chosen(query: list[int], keys: list[list[int]], keep: int, recent: int, detail: int) -> list:
    """Indices of the chosen of ``len(keys) + recent`` tokens."""
    scores = [
        sum(power(q, 8) * power(k, 8) for q, k in zip(query, key, strict=True)) for key in keys
    ]
    best = sorted(
        range(len(keys)), key=lambda token: (*(-x for x in bucket(scores[token], detail)), token)
    )
    return sorted(best[: max(keep - recent, 0)]) + list(range(len(keys), len(keys) + recent))


@pytest.mark.parametrize("detail", [0, 1, 3])
@pytest.mark.parametrize("recent", [1, 4])
def test_chosen_tokens_are_those_of_a_choice_one_by_one(recent: int, detail: int) -> None:
    rng = np.random.default_rng(recent)
    config = LopSelectConfig(head_dim=8, lanes=8, context=64, recent=recent, detail=detail)
    count = [recent, recent + 1, 40, 40, 64, 64]
    keep = [3, 1, 12, 0, 64, 7]
    query = rng.integers(-128, 128, (6, 8)) >> rng.integers(0, 7, (6, 1))
    keys = [
        rng.integers(-128, 128, (n - recent, 8)) >> rng.integers(0, 8, (n - recent, 1))
        for n in count
    ]
    inputs = {
        "query_i": {"codes": query},
        "op_i": {"count": np.array(count), "keep": np.array(keep)},
        "key_i": {"leads": lop_select.leading_ones(np.concatenate(keys))},
    }
    expected = [
        chosen(q, k.tolist(), n, recent, detail)
        for q, k, n in zip(query.tolist(), keys, keep, strict=True)
    ]
    out = lop_select.golden(config, inputs)["o"]
    assert out["token"].tolist() == [token for tokens in expected for token in tokens]
    ends = np.cumsum([len(tokens) for tokens in expected]) - 1
    assert np.flatnonzero(out["last"]).tolist() == ends.tolist()


def test_all_codes_have_their_leading_one() -> None:
    codes = np.arange(-128, 128)
    assert lop_select.powers(codes).tolist() == [power(code, 8) for code in codes.tolist()]
    leads = lop_select.leading_ones(codes)
    assert leads[[0, 1, 64, 127, 128, 129, 130, 255]].tolist() == [15, 15, 15, 9, 0, 1, 2, 7]


def test_buckets_keep_the_order_of_scores_and_fit_the_histogram() -> None:
    config = LopSelectConfig(head_dim=4, lanes=4, code_width=6)
    top = 4 * (1 << 4) ** 2
    classes = lop_select.buckets(np.arange(-top, top + 1), config.detail)
    assert np.diff(classes).min() == 0
    assert classes[top] == 0
    assert np.abs(classes).max() <= config.buckets // 2
    assert top.bit_length() == config.score_bits


def test_reads_give_what_was_last_written_before_their_count() -> None:
    config = KvStoreConfig(head_dim=2, lanes=1, slots=1, context=4, order_width=3)
    at = np.array([2, 0, 2, 1, 2, 3, 0])
    codes, scale = np.arange(14), np.arange(7)
    read = {"address": np.array([2, 2, 0, 2, 0]), "after": np.array([1, 4, 4, 5, 7])}
    inputs = {
        "write_i": {"codes": codes[:, None]},
        "scale_i": {"scale": scale},
        "at_i": {"address": at},
        "read_i": read,
    }
    out = kv_store.golden(config, inputs)
    assert out["o"]["scale"].tolist() == [0, 2, 1, 4, 6]
    assert out["o"]["codes"][1].tolist() == [4, 5]
    assert out["written_o"]["address"].tolist() == at.tolist()
    inputs["read_i"] = {"address": np.array([3]), "after": np.array([3])}
    with pytest.raises(ValueError, match="an address that was not written before"):
        kv_store.golden(config, inputs)


def test_rows_that_do_not_fill_a_vector_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"head_dim must be a multiple of lanes"):
        KvStoreConfig(head_dim=30, lanes=4)
    with pytest.raises(ConfigError, match=r"head_dim must be a multiple of lanes \(4\), not 30"):
        LopSelectConfig(head_dim=30, lanes=4)
