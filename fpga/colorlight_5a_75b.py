# SPDX-License-Identifier: Apache-2.0
"""Colorlight 5A-75B 7.0, a LED panel receiver."""

from .boards import Board

BOARD = Board(
    name="colorlight-5a-75b",
    title="Colorlight 5A-75B 7.0",
    aliases=("colorlight_5a_75b",),
    family="ecp5",
    device="LFE5U-25F-6BG256C",
    platform="colorlight_5a75b_r7_0:Colorlight_5A75B_R70Platform",
    host_in="uart.rx",
    host_out="uart.tx",
    clock_mhz=25.0,
    place=("--25k", "--package", "CABGA256", "--speed", "6"),
    pack=("--compress",),
    lut=24288,
    ff=24288,
    ram=56,
    dsp=28,
)
