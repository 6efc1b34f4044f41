# SPDX-License-Identifier: Apache-2.0
"""Activations that wait for the rows that they are multiplied with."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class Vectors(wiring.Component):
    """Two banks of activation tiles: one loads while the other is multiplied.

    A vector of more than ``tiles`` transfers keeps its first ``tiles - 1`` and its last one.
    ``valid``: the bank to multiply holds a vector, until ``release``.  ``acts``: the tile that was
    ``tile`` when ``enable`` was last high.
    """

    acts_i: stream.Interface
    enable: Signal
    tile: Signal
    release: Signal
    valid: Signal
    last_tile: Signal
    load: Signal
    acts: Signal

    def __init__(self, layout: data.StructLayout, tiles: int):
        """``layout``: of ``acts_i``; ``tiles``: most transfers of a vector."""
        self.tiles = tiles
        self.loads = "load" in layout.members
        super().__init__({
            "acts_i": In(stream.Signature(layout)),
            "enable": In(1),
            "tile": In(range(tiles)),
            "release": In(1),
            "valid": Out(1),
            "last_tile": Out(1),
            "load": Out(1),
            "acts": Out(layout["acts"].width),
        })

    def elaborate(self, platform):
        m = Module()
        width = len(self.acts)
        depth = 2 << len(self.tile)
        m.submodules.tiles = tiles = Memory(shape=unsigned(width), depth=depth, init=[])
        write, read = tiles.write_port(), tiles.read_port()

        full = Array(Signal(name=f"full_{bank}") for bank in (0, 1))
        ends = Array(Signal.like(self.tile, name=f"end_{bank}", reset_less=True) for bank in (0, 1))
        loads = Array(Signal(name=f"load_{bank}", reset_less=True) for bank in (0, 1))
        loading, reading = Signal(name="loading"), Signal(name="reading")
        count = Signal.like(self.tile, name="count")
        at = Signal.like(self.tile, name="at")
        payload = self.acts_i.p
        m.d.comb += [
            self.acts_i.ready.eq(~full[loading]),
            at.eq(Mux(payload.first, 0, count)),
            write.addr.eq(Cat(at, loading)),
            write.data.eq(payload.acts.as_value()),
            write.en.eq(self.acts_i.valid & self.acts_i.ready),
        ]
        with m.If(write.en):
            with m.If(payload.last):
                m.d.sync += [
                    count.eq(0),
                    full[loading].eq(1),
                    ends[loading].eq(at),
                    loads[loading].eq(payload.load if self.loads else 1),
                    loading.eq(~loading),
                ]
            with m.Elif(at != self.tiles - 1):
                m.d.sync += count.eq(at + 1)

        m.d.comb += [
            self.valid.eq(full[reading]),
            self.last_tile.eq(self.tile == ends[reading]),
            self.load.eq(loads[reading]),
            read.addr.eq(Cat(self.tile, reading)),
            # Reads and writes are of other banks: said so, no logic is made for the case.
            read.en.eq(self.enable & full[reading]),
            self.acts.eq(read.data),
        ]
        with m.If(self.release):
            m.d.sync += [full[reading].eq(0), reading.eq(~reading)]

        return m


def walk_tiles(m: Module, tile: Signal, moves, first, last, last_tile) -> None:
    """Drives ``tile`` through a vector's tiles, again for every group of rows, with ``moves``."""
    count = Signal.like(tile)
    m.d.comb += tile.eq(Mux(first, 0, count))
    with m.If(moves):
        m.d.sync += count.eq(Mux(last | last_tile, 0, tile + 1))
