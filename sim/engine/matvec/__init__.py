# SPDX-License-Identifier: Apache-2.0
"""What the compiler must know of each core of the matvec socket: the file of its name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._socket import Socket

if TYPE_CHECKING:
    from ....rtl.engine.engine import EngineConfig


def socket(config: EngineConfig) -> Socket:
    """The socket of an engine."""
    module = importlib.import_module(f"{__name__}.{config.matvec}")
    return module.Packing(config)
