# SPDX-License-Identifier: Apache-2.0
"""iCEBreaker by 1BitSquared."""

from .boards import Board

BOARD = Board(
    name="icebreaker",
    title="iCEBreaker",
    family="ice40",
    device="iCE40UP5K-SG48",
    platform="icebreaker:ICEBreakerPlatform",
    host_in="uart.rx",
    host_out="uart.tx",
    flash="spi_flash_1x",
    clock_mhz=12.0,
    synth=("-device", "u", "-dsp", "-spram"),
    place=("--up5k", "--package", "sg48"),
    lut=5280,
    ff=5280,
    ram=30,
    dsp=8,
)
