# SPDX-License-Identifier: Apache-2.0
"""The matrix co-processor behind the masters of cocotbext-axi."""

import importlib.util

import pytest
from atriplex.gen import blocks
from atriplex.gen.verilog import emit
from atriplex.sim.run import simulate

CLIENT = "atriplex.sim.array.axi_client_tb"


@pytest.mark.skipif(
    importlib.util.find_spec("cocotbext") is None, reason="needs cocotbext-axi (the extra [dev])"
)
@pytest.mark.parametrize("preset", ["tiny", pytest.param("default", marks=pytest.mark.long)])
def test_an_axi_master_gets_exact_products(preset: str) -> None:
    block = blocks.find("xr_npe_array")
    design = emit(block, block.config.preset(preset))
    outcome = simulate(design, transfers=100, clients=[CLIENT])
    assert list(outcome.complaints()) == []
    names = {name.rpartition(".")[2].partition("/")[0] for name in outcome.benches}
    assert len(names) >= 4, outcome.benches


def test_ports_have_the_names_of_axi() -> None:
    block = blocks.find("xr_npe_array")
    names = {port.name for port in emit(block, block.config.preset("tiny")).ports}
    lite = {
        *("awaddr", "awvalid", "awready", "wdata", "wstrb", "wvalid", "wready"),
        *("bresp", "bvalid", "bready", "araddr", "arvalid", "arready"),
        *("rdata", "rresp", "rvalid", "rready"),
    }
    data = {"tdata", "tkeep", "tlast", "tvalid", "tready"}
    assert names == {
        *("clk", "rst"),
        *(f"s_axil_{name}" for name in lite),
        *(f"s_axis_{name}" for name in data),
        *(f"m_axis_{name}" for name in {*data, "tid", "tuser"}),
    }


def test_an_array_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 64 engines, not 16 x 8"):
        blocks.find("xr_npe_array").config(rows=16, columns=8)
