# SPDX-License-Identifier: Apache-2.0
"""Tang Nano 9K by Sipeed."""

from .boards import Board

BOARD = Board(
    name="tang_nano_9k",
    title="Tang Nano 9K",
    aliases=("tang-nano-9k",),
    family="gowin",
    device="GW1NR-LV9QN88PC6/I5",
    platform="tang_nano_9k:TangNano9kPlatform",
    host_in="uart.rx",
    host_out="uart.tx",
    clock_mhz=27.0,
    place=("--device", "GW1NR-LV9QN88PC6/I5", "--vopt", "family=GW1N-9C"),
    pack=("-d", "GW1N-9C"),
    lut=8640,
    ff=6480,
    ram=26,
    dsp=20,
)
