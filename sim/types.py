# SPDX-License-Identifier: Apache-2.0
"""Names for what passes between stimulus, golden models and benches."""

from typing import Any

from numpy.typing import NDArray

Transfers = dict[str, NDArray[Any]]
"""One stream's transfers by payload field; the leading axis counts transfers."""

Streams = dict[str, Transfers]
"""Transfers of every stream of one direction, by stream."""
