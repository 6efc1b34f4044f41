# SPDX-License-Identifier: Apache-2.0
"""A file that is not to be trusted: mapped, bounds-checked, and quick to refuse."""

import math
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...rtl.errors import AtriplexError
from .codecs import BadCode

Bytes = NDArray[np.uint8]
T = TypeVar("T")


class CheckpointError(AtriplexError, ValueError):
    """A checkpoint that cannot be read.

    One sentence: file, tensor where one is meant, offset in bytes, rule.
    """


def _shown(text: str, longest: int) -> str:
    """``text``, which may quote a file, on one line and not too long."""
    if len(text) > longest:
        text = text[:longest] + "..."
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class Source:
    """A regular file, mapped read-only.

    Nothing is allocated for a length that the file merely claims: :meth:`bytes` gives views, after
    a check against the size of the file.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            # Not to wait for a writer, should it be a pipe.
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise self.fail(0, f"expected a file, found {error.strerror}") from None
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise self.fail(0, "expected a regular file, found another kind")
            self.size = status.st_size
            self.data: Bytes = np.zeros(0, np.uint8)
            if self.size:
                self.data = np.memmap(file, np.uint8, "r", shape=(self.size,))
        self.view = memoryview(self.data)  # pyright: ignore[reportArgumentType]
        """All bytes, for :mod:`struct`."""

    def fail(self, offset: int, rule: str, tensor: str | None = None) -> CheckpointError:
        """The error for ``rule``, broken at ``offset``."""
        where = f"tensor {_shown(tensor, 100)}: " if tensor else ""
        return CheckpointError(f"{self.path}: {where}offset {offset}: {_shown(rule, 500)}")

    def bytes(self, offset: int, count: int, what: str, tensor: str | None = None) -> Bytes:
        """A view of ``count`` bytes; an error that says ``what`` when the file ends before."""
        if offset + count > self.size:
            left = max(self.size - offset, 0)
            raise self.fail(
                offset, f"expected {count} bytes of {what}, found {left} to the end", tensor
            )
        return self.data[offset : offset + count]

    def unpack(self, form: str, offset: int, what: str) -> tuple[Any, ...]:
        """Values of a :mod:`struct` format at ``offset``."""
        return struct.unpack(form, self.bytes(offset, struct.calcsize(form), what).tobytes())

    def scale(self, offset: int, tensor: str) -> float:
        """The float32 at ``offset``, which must be finite and above 0."""
        (scale,) = self.unpack("<f", offset, "a scale")
        return self.check_scale(scale, offset, tensor)

    def check_scale(self, scale: float, offset: int, tensor: str) -> float:
        """``scale``, once it is known to be finite and above 0."""
        if not (math.isfinite(scale) and scale > 0):
            raise self.fail(offset, f"a scale must be finite and above 0, not {scale}", tensor)
        return float(scale)

    def decode(self, codec: Callable[[Bytes], T], offset: int, count: int, tensor: str) -> T:
        """What ``codec`` makes of ``count`` bytes; its complaint becomes a sentence."""
        try:
            return codec(self.bytes(offset, count, "data", tensor))
        except BadCode as error:
            raise self.fail(offset + error.offset, error.rule, tensor) from None
