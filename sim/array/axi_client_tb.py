# SPDX-License-Identifier: Apache-2.0
"""The matrix co-processor as an AXI master sees it, with the masters of cocotbext-axi."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, with_timeout
from cocotbext.axi import (  # pyright: ignore[reportMissingImports]
    AxiLiteBus,
    AxiLiteMaster,
    AxiResp,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from ...rtl.array.xr_npe_array import (
    DONE,
    ID,
    IDENTITY,
    MODE,
    SHAPE,
    START,
    STATUS,
    SUM,
    VERSION,
    XrNpeArrayConfig,
)
from ...rtl.formats._formats import format_named
from ..formats.codec import decode

FORMATS = (("fp4_e2m1", 1), ("posit4_1", 4), ("posit8_0", 6), ("posit16_1", 28))
"""Formats by mode, and bits of fraction of their values."""
JOBS = 24


class Client:
    """Masters on all three buses, and the reset."""

    def __init__(self, dut: Any):
        self.dut = dut
        self.config = XrNpeArrayConfig.of(
            json.loads(Path(os.environ["ATRIPLEX_PLAN"]).read_text())["config"]
        )
        Clock(dut.clk, 10, unit="ns").start()
        self.registers: Any = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), dut.clk, dut.rst)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), dut.clk, dut.rst)

    async def reset(self) -> None:
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 4)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)

    async def start(self, mode: int, tag: int) -> None:
        await self.registers.write_dword(MODE, mode)
        await self.registers.write_dword(START, tag)


def paused(seed: int, share: float) -> Any:
    rng = np.random.default_rng(seed)
    return (bool(rng.random() < share) for _ in itertools.count())


def job(config: XrNpeArrayConfig, rng: np.random.Generator, mode: int) -> Any:
    """Words of A and B, and the product in whole numbers of the smallest product; None for NaR."""
    name, fraction = FORMATS[mode]
    width = format_named(name).width
    size = int(rng.integers(1, min(40, config.max_k)))
    shapes = ((config.rows, size, 16 // width), (size, config.columns, 16 // width))
    a, b = (rng.integers(0, 1 << width, shape) for shape in shapes)
    if mode and rng.random() < 0.7:  # most jobs are without NaR
        a, b = (np.where(side == 1 << width - 1, 0, side) for side in (a, b))
    real = [decode(format_named(name), side) for side in (a, b)]

    def whole(value: float) -> int | None:
        return None if np.isnan(value) else int(value * 2**fraction)

    wanted: list[int | None] = []
    for row, column in itertools.product(range(config.rows), range(config.columns)):
        x, y = real[0][row].reshape(-1), real[1][:, column].reshape(-1)
        products = [(whole(p), whole(q)) for p, q in zip(x, y, strict=True)]
        bad = any(p is None or q is None for p, q in products)
        wanted.append(None if bad else sum((p or 0) * (q or 0) for p, q in products))
    shifts = width * np.arange(16 // width)
    return (a << shifts).sum(axis=-1), (b << shifts).sum(axis=-1), wanted


def frame(config: XrNpeArrayConfig, a: Any, b: Any) -> bytes:
    """The operands of a job as bytes."""
    words = np.concatenate((a.T, b), axis=1).astype("<u2")
    assert words.shape[1] == config.words
    return words.tobytes()


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(share=[0.0, 0.4])
async def products_are_those_of_whole_numbers(dut: Any, share: float) -> None:
    client, rng = Client(dut), np.random.default_rng(int(10 * share))
    await client.reset()
    config = client.config
    if share:
        client.source.set_pause_generator(paused(1, share))
        client.sink.set_pause_generator(paused(2, share))
    jobs = [job(config, rng, n % 4) for n in range(JOBS)]

    async def begin() -> None:
        for number in range(JOBS):
            await client.start(number % 4, number)

    begun = cocotb.start_soon(begin())
    for a, b, _ in jobs:
        await client.source.send(AxiStreamFrame(frame(config, a, b)))
    for number, (_, _, wanted) in enumerate(jobs):
        got = await client.sink.recv(compact=False)
        assert len(got.tdata) == config.engines * SUM // 8
        for at, value in enumerate(wanted):
            part = slice(at * SUM // 8, (at + 1) * SUM // 8)
            assert set(got.tid[part]) == {number} and all(got.tkeep[part])
            assert set(got.tuser[part]) == {int(value is None)}
            if value is not None:
                assert int.from_bytes(got.tdata[part], "little", signed=True) == value
    await begun
    assert await client.registers.read_dword(DONE) == JOBS
    assert await client.registers.read_dword(STATUS) == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def registers_answer_as_documented(dut: Any) -> None:
    client = Client(dut)
    await client.reset()
    registers, config = client.registers, client.config
    assert await registers.read_dword(ID) == IDENTITY
    shape = config.rows | config.columns << 8 | VERSION << 16
    assert await registers.read_dword(SHAPE) == shape
    for mode in (3, 1, 0, 2):
        await registers.write_dword(MODE, mode)
        assert await registers.read_dword(MODE) == mode
    assert (await registers.write(MODE, b"\x04\0\0\0")).resp == AxiResp.SLVERR
    assert await registers.read_dword(MODE) == 2
    assert (await registers.write(MODE + 1, b"\xff")).resp == AxiResp.OKAY  # another byte
    assert await registers.read_dword(MODE) == 2
    for address in (ID, SHAPE, STATUS, DONE, 0x18, 0x80):
        assert (await registers.write(address, b"\1\0\0\0")).resp == AxiResp.SLVERR
    for address in (START, 0x18, 0xFC):
        assert (await registers.read(address, 4)).resp == AxiResp.SLVERR
    await registers.write_dword(START, 1)
    assert await registers.read_dword(STATUS) == 1


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def data_wait_for_a_job_and_starts_for_a_place(dut: Any) -> None:
    client, rng = Client(dut), np.random.default_rng(3)
    await client.reset()
    a, b, wanted = job(client.config, rng, 0)
    data = frame(client.config, a, b)
    for _ in range(6):
        await client.source.send(AxiStreamFrame(data))
    await ClockCycles(dut.clk, 200)
    assert client.sink.empty()
    client.sink.pause = True
    for tag in range(4):
        await with_timeout(client.start(0, tag), 1, "us")
    client.sink.pause = False
    for tag in range(4):
        got = await client.sink.recv(compact=False)
        assert set(got.tid) == {tag}
        assert int.from_bytes(got.tdata[: SUM // 8], "little", signed=True) == wanted[0]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_reset_forgets_jobs_and_sums(dut: Any) -> None:
    client, rng = Client(dut), np.random.default_rng(4)
    await client.reset()
    await client.start(2, 9)
    a, b, _ = job(client.config, rng, 2)
    await client.source.send(AxiStreamFrame(frame(client.config, a, b) * 20))
    await ClockCycles(dut.clk, 8)
    client.source.clear()
    await client.reset()
    assert await client.registers.read_dword(STATUS) == 0
    a, b, wanted = job(client.config, rng, 2)
    await client.start(2, 5)
    await client.source.send(AxiStreamFrame(frame(client.config, a, b)))
    got = await client.sink.recv(compact=False)
    assert set(got.tid) == {5}
    if wanted[0] is not None:
        assert int.from_bytes(got.tdata[: SUM // 8], "little", signed=True) == wanted[0]
