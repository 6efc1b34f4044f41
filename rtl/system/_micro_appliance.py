# SPDX-License-Identifier: Apache-2.0
"""The micro engine with a model in a flash beside it and a serial line outside."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..bus._spi_flash import FlashReader
from ..bus._uart import HIGH, UartReceiver, UartSender
from ..engine.micro_engine import MicroEngine, MicroEngineConfig
from ._host import answer, receive


class MicroAppliance(wiring.Component):
    """A micro engine that reads its model from a flash after reset, on a serial line.

    What host and line say to each other is in ``_host.py``; nothing is answered before the model
    is read.

    Members
    -------
    host_in, host_out : the serial line, ``divisor`` cycles a bit.
    flash_clk, flash_cs, flash_copi, flash_cipo : the flash; the model is at ``address``.
    """

    host_in: Signal
    host_out: Signal
    flash_clk: Signal
    flash_cs: Signal
    flash_copi: Signal
    flash_cipo: Signal

    def __init__(self, config: MicroEngineConfig, divisor: int, address: int):
        self.config, self.divisor, self.address = config, divisor, address
        super().__init__({
            "host_in": In(1, **HIGH),
            "host_out": Out(1, **HIGH),
            "flash_clk": Out(1),
            "flash_cs": Out(1, **HIGH),
            "flash_copi": Out(1),
            "flash_cipo": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = engine = MicroEngine(self.config)
        m.submodules.flash = flash = FlashReader(self.address)
        m.submodules.receiver = receiver = UartReceiver(self.divisor)
        m.submodules.sender = sender = UartSender(self.divisor)
        wiring.connect(m, flash.o, engine.image_i)
        m.d.comb += [
            receiver.line.eq(self.host_in),
            self.host_out.eq(sender.line),
            self.flash_clk.eq(flash.clock),
            self.flash_cs.eq(flash.select),
            self.flash_copi.eq(flash.send),
            flash.heard.eq(self.flash_cipo),
            engine.tap_o.ready.eq(1),
        ]
        receive(m, engine.token_i, receiver)
        answer(m, engine.token_i, engine.token_o, sender)
        return m
