# SPDX-License-Identifier: Apache-2.0
"""Results kept by content: built once under a hash of all that went into them.

The cache lies in ``$ATRIPLEX_CACHE``, else in ``atriplex`` under ``$XDG_CACHE_HOME``, else under
``~/.cache``.  Every entry is a folder that is complete or absent, so it may be removed at any time.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def root() -> Path:
    """The cache's folder, which need not exist yet."""
    if own := os.environ.get("ATRIPLEX_CACHE"):
        return Path(own).absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).absolute() if shared else Path.home() / ".cache") / "atriplex"


def digest(key: Iterable[str | bytes]) -> str:
    """Twenty hexadecimal digits that name ``key``; parts are kept apart by their lengths."""
    state = hashlib.sha256()
    for part in key:
        raw = part.encode() if isinstance(part, str) else part
        state.update(b"%d:" % len(raw) + raw)
    return state.hexdigest()[:20]


def folder(kind: str, key: Iterable[str | bytes], fill: Callable[[Path], None]) -> Path:
    """The entry of that ``kind`` and ``key``; ``fill(empty_folder)`` makes it where it is absent.

    An entry appears by one rename, after ``fill`` has returned: an interrupt or an error leaves
    nothing, and of two processes that build the same entry the first one's stays.
    """
    entry = root() / kind / digest(key)
    if not entry.is_dir():
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{entry.name}-", dir=entry.parent, ignore_cleanup_errors=True
        ) as scratch:
            work = Path(scratch) / "work"
            work.mkdir()
            fill(work)
            try:
                work.rename(entry)
            except OSError:
                if not entry.is_dir():
                    raise
    return entry


def log(kind: str, key: Iterable[str | bytes], name: str) -> Path:
    """A file for what a tool says, outside the entry so that it outlives a failure."""
    path = root() / "logs" / kind / digest(key) / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def publish(made: Path, out: Path) -> None:
    """Copy the folder ``made`` to ``out``, whole or not at all; an ``out`` from before goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        shutil.copytree(made, Path(scratch) / "new")
        if out.exists():
            out.rename(Path(scratch) / "old")
        (Path(scratch) / "new").rename(out)


def size() -> int:
    """Bytes in the cache."""
    return sum(path.stat().st_size for path in root().rglob("*") if path.is_file())
