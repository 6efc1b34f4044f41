# SPDX-License-Identifier: Apache-2.0
"""The ternary blocks: models against plain numpy, bars on lanes and area."""

from pathlib import Path

import numpy as np
import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
from atriplex.rtl.mac.ternary_dot import TernaryDotConfig
from atriplex.rtl.mac.ternary_gemv import TernaryGemvConfig
from atriplex.sim.mac import ternary_dot, ternary_gemv
from atriplex.sim.run import simulate


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 8), (5, 9), (17, 40)])
@pytest.mark.parametrize("lanes", [(4, 1), (4, 2), (8, 3)])
def test_gemv_model_is_the_matrix_product(shape: tuple[int, int], lanes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    config = TernaryGemvConfig(k_lanes=lanes[0], n_lanes=lanes[1], max_k=40)
    trits, acts = rng.integers(-1, 2, shape), rng.integers(-128, 128, shape[1])
    out = ternary_gemv.golden(config, ternary_gemv.product(config, acts, trits))["o"]
    np.testing.assert_array_equal(out["sums"].reshape(-1)[: shape[0]], trits @ acts)
    assert not out["sums"].reshape(-1)[shape[0] :].any()
    assert out["last"].tolist() == [0] * (len(out["last"]) - 1) + [1]


def test_gemv_restart_drops_only_what_is_unfinished() -> None:
    config = TernaryGemvConfig(k_lanes=2, n_lanes=1, max_k=4)
    acts = {"acts": [[9, 9], [1, 2], [3, 4]], "first": [1, 1, 0], "last": [0, 0, 1]}
    rows = [[1, 1], [1, 1], [3, 0], [1, 0], [0, 1]]  # a finished group, one word more, a restart
    weights = {
        "weights": [[row] for row in rows],
        "first": [1, 0, 0, 1, 0],
        "last": [0, 0, 0, 0, 1],
    }
    inputs = {
        "acts_i": {name: np.array(values) for name, values in acts.items()},
        "weights_i": {name: np.array(values) for name, values in weights.items()},
    }
    out = ternary_gemv.golden(config, inputs)["o"]
    assert out["sums"].tolist() == [[1 + 2 + 3 + 4], [1 + 4]]
    assert out["last"].tolist() == [0, 1]


def test_stimulus_reaches_the_largest_sums_there_are() -> None:
    for preset in TernaryDotConfig.presets:
        config = TernaryDotConfig.preset(preset)
        inputs = ternary_dot.stimulus(config, np.random.default_rng(1), 100)
        sums = ternary_dot.golden(config, inputs)["o"]["sum"]
        limit = config.lanes << config.act_width - 1
        assert (sums.min(), sums.max()) == (-limit, limit)
        assert limit < 1 << config.sum_width - 1


def test_gemv_refuses_lengths_whose_sums_could_overflow() -> None:
    with pytest.raises(ValueError, match="sums of 1048576 activations of 16 bits need 37 bits"):
        TernaryGemvConfig(max_k=1 << 20, act_width=16)


def test_gemv_keeps_its_lanes_busy_for_the_shapes_of_bitnet_2b() -> None:
    block, config = blocks.find("ternary_gemv"), TernaryGemvConfig()
    rng = np.random.default_rng(1)
    acts, trits = rng.integers(-128, 128, 2560), rng.integers(-1, 2, (640, 2560))
    inputs = ternary_gemv.product(config, acts, trits)
    outcome = simulate(emit(block, config), inputs=inputs, modes=["free"])
    assert list(outcome.complaints()) == []
    assert trits.size / config.lanes / outcome.cycles >= 0.99


def test_dot_of_64_lanes_meets_its_bars_on_ecp5(tmp_path: Path) -> None:
    from atriplex.fpga.boards import board
    from atriplex.fpga.flow import build

    block = blocks.find("ternary_dot")
    design = emit(block, block.config(lanes=64, act_width=8))
    report = build(design, board("ulx3s"), tmp_path / "out", target_mhz=100)
    assert report.lut <= 16 * 64
    assert report.dsp == 0
    assert report.met, report.complaint()
