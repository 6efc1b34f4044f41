# SPDX-License-Identifier: Apache-2.0
"""The errors a user may meet: one clear sentence each, and an exit status."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class AtriplexError(Exception):
    """Something the user can mend.  The message is one sentence; the command line adds nothing."""

    exit_status = 2


class ToolFailed(AtriplexError):
    """A tool underneath failed; ``log`` holds all that it said."""

    exit_status = 1

    def __init__(self, message: str, log: Path | None = None):
        super().__init__(f"{message} (full log: {log})" if log else message)
        self.log = log


class Missing(AtriplexError):
    """A tool or package is not installed; the message says how to get it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``no block 'terny_dot'; is it ternary_dot?`` or, without a near name, all there are."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"is it {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
    return f"no {kind} {name!r}; {hint}"
