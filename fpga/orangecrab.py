# SPDX-License-Identifier: Apache-2.0
"""OrangeCrab r0.2 by Good Stuff Department, with the 25F part."""

from .boards import Board

BOARD = Board(
    name="orangecrab",
    title="OrangeCrab r0.2 25F",
    aliases=("orangecrab-25f",),
    family="ecp5",
    device="LFE5U-25F-8MG285C",
    platform="orangecrab_r0_2:OrangeCrabR0_2_25FPlatform",
    host_in="io:0",
    host_out="io:1",
    clock_mhz=48.0,
    place=("--25k", "--package", "CSFBGA285", "--speed", "8"),
    pack=("--compress", "--freq", "38.8"),
    lut=24288,
    ff=24288,
    ram=56,
    dsp=28,
)
