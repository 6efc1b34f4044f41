# SPDX-License-Identifier: Apache-2.0
"""ULX3S by Radiona, with the largest of its parts."""

from .boards import Board

BOARD = Board(
    name="ulx3s-85f",
    title="ULX3S 85F",
    aliases=("ulx3s", "ulx3s_85f"),
    family="ecp5",
    device="LFE5U-85F-6BG381C",
    platform="ulx3s:ULX3S_85F_Platform",
    host_in="uart.rx",
    host_out="uart.tx",
    clock_mhz=25.0,
    place=("--85k", "--package", "CABGA381", "--speed", "6"),
    pack=("--compress",),
    lut=83640,
    ff=83640,
    ram=208,
    dsp=156,
)
