# SPDX-License-Identifier: Apache-2.0
"""The micro engine with a model in its board's flash, as a design for a board."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...fpga.boards import Board
from ...rtl.bus._spi_flash import MAGIC
from ...rtl.engine.micro_engine import MicroEngineConfig
from ...rtl.errors import AtriplexError
from ...rtl.system._micro_appliance import MicroAppliance
from ...sim.engine.integer import IntegerModel
from ...sim.engine.store import compile_store
from ..checkpoints.models import Runnable
from ..model.generate import shipped
from ..verilog import Design, convert
from .appliance import divisor, shortened

TOP = "micro_appliance"
ADDRESS = 1 << 20
"""Where the model is in the flash, behind the bitstream."""
IMAGE = "model.bin"


def design(config: MicroEngineConfig, words: NDArray[np.uint16], clocks: int) -> Design:
    """The appliance's Verilog and the flash image; ``clocks`` cycles are a bit of the serial line.

    Ports: ``clk``, ``rst``, ``host_in``, ``host_out`` and those of the flash.
    """
    text, ports = convert(MicroAppliance(config, clocks, ADDRESS), TOP)
    module = "atriplex.rtl.engine.micro_engine"
    image = np.concatenate(([MAGIC, len(words)], words)).astype("<u2").tobytes()
    return Design("micro_engine", module, config.values(), TOP, text, ports, beside={IMAGE: image})


def for_board(
    board: Board,
    clock_mhz: float,
    path: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Design, IntegerModel, Runnable]:
    """The appliance of a model for ``board``, the model as it runs there, and its file.

    Unless ``settings`` say what the context is, it is halved until the model fits.
    """
    if not board.flash:
        raise AtriplexError(f"{board.name} has no flash that the micro engine could read")
    given = dict(settings or {})
    context = given.pop("context", None)

    def made(found: Runnable) -> tuple[Design, IntegerModel, Runnable]:
        model = IntegerModel.compile(found.model)
        size = model.config
        longest = max(size.dim, size.hidden, size.q_dim)
        config = MicroEngineConfig.of({"longest": -(-longest // 8) * 8, **given})
        image = compile_store(model, config)
        return design(config, image.words, divisor(clock_mhz)), model, found

    return shortened(path or shipped("storybook-small"), context, made)
