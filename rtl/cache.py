# SPDX-License-Identifier: Apache-2.0
"""Results kept by content: built once under a hash of all that went into them.

The cache lies in ``$ATRIPLEX_CACHE``, else in ``atriplex`` under ``$XDG_CACHE_HOME``, else under
``~/.cache``.  Every entry is a folder that is complete or absent, so it may be removed at any time.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import AtriplexError

MARK = ".atriplex"  # an empty file in every folder that write_whole has made


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
    nothing, and of two processes that want the same entry one builds it while the other waits.
    """
    name = digest(key)
    entry = root() / kind / name
    if entry.is_dir():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _alone(root() / "locks" / f"{kind}-{name}"):
        if not entry.is_dir():
            with tempfile.TemporaryDirectory(
                prefix=f".{name}-", dir=entry.parent, ignore_cleanup_errors=True
            ) as scratch:
                work = Path(scratch) / "work"
                work.mkdir()
                fill(work)
                work.rename(entry)
    return entry


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is here; the lock ends with the process, whatever ends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def log(kind: str, key: Iterable[str | bytes], name: str) -> Path:
    """A file for what a tool says, outside the entry so that it outlives a failure."""
    path = root() / "logs" / kind / digest(key) / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def write_whole(out: Path) -> Iterator[Path]:
    """An empty folder that becomes ``out`` when the body ends well, and vanishes when it does not.

    An ``out`` written this way before is replaced; any other folder with files in it is refused.
    """
    out = out.absolute()
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise AtriplexError(f"{out} holds files that Atriplex did not write; name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new
        (new / MARK).touch()
        if out.exists():
            out.rename(Path(scratch) / "old")
        new.rename(out)


def size() -> int:
    """Bytes in the cache."""
    return sum(path.stat().st_size for path in root().rglob("*") if path.is_file())
