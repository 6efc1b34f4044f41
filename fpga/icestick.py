# SPDX-License-Identifier: Apache-2.0
"""iCEstick by Lattice."""

from .boards import Board

BOARD = Board(
    name="icestick",
    title="iCEstick",
    family="ice40",
    device="iCE40HX1K-TQ144",
    platform="icestick:ICEStickPlatform",
    host_in="uart.rx",
    host_out="uart.tx",
    clock_mhz=12.0,
    synth=("-device", "hx"),
    place=("--hx1k", "--package", "tq144"),
    lut=1280,
    ff=1280,
    ram=16,
    dsp=0,
)
