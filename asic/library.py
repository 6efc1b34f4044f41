# SPDX-License-Identifier: Apache-2.0
"""Cell libraries: by name, or any Liberty file by path.

A library known by name is a module of this folder that defines ``LIBRARY``; adding one adds a file.
Where its files lie is a list of patterns, after the user's own setting in ``config.yaml``::

    libraries:
      sky130_fd_sc_hd: /somewhere/sky130_fd_sc_hd__tt_025C_1v80.lib
"""

import functools
import glob
import importlib
import os
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from ..rtl.errors import AtriplexError, Missing, unknown
from . import __path__ as HERE
from .liberty import BUFFER, INVERTER, NAND2, Cell, Liberty, read

FILE = re.compile(r"\.lib(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A cell library.

    ``get`` is one sentence on how to get its files.  ``places`` are patterns, the first that finds
    files counts; a leading ``$NAME`` is an environment variable.  ``nand2`` is the gate that areas
    are counted in, ``driver`` the cell that drives the block's inputs, ``load_ff`` the capacitance
    at its outputs in femtofarads; what is not stated is found in the Liberty file.  ``avoid`` are
    patterns of cells that synthesis must not take.
    """

    name: str
    title: str
    get: str
    places: tuple[str, ...] = ()
    nand2: str | None = None
    driver: str | None = None
    load_ff: float | None = None
    avoid: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @functools.cached_property
    def liberty(self) -> Liberty:
        """The cells, read once."""
        return _read(*((path, path.stat().st_mtime_ns) for path in self.files))

    @property
    def nand2_area(self) -> float | None:
        """Square micrometres of the NAND2 that areas are counted in; None if there is none."""
        cell = self._cell(self.nand2) or next(iter(self.liberty.gates(NAND2)), None)
        return cell.area if cell else None

    @property
    def driving_cell(self) -> Cell | None:
        """The cell that drives the inputs: the named one, else a middling inverter or buffer."""
        gates = self.liberty.gates(INVERTER) or self.liberty.gates(BUFFER)
        return self._cell(self.driver) or (gates[min(1, len(gates) - 1)] if gates else None)

    @property
    def load(self) -> float:
        """Femtofarads at every output: as stated, else four inputs of the driving cell."""
        if self.load_ff is not None:
            return self.load_ff
        cell = self.driving_cell
        return 4 * max((pin.capacitance for pin in cell.pins), default=0.0) if cell else 0.0

    @property
    def avoided(self) -> list[str]:
        """Cells that synthesis must not take: by pattern, or because the library says so."""
        return [
            name
            for name, cell in self.liberty.cells.items()
            if cell.dont_use or any(fnmatch(name, pattern) for pattern in self.avoid)
        ]

    def _cell(self, name: str | None) -> Cell | None:
        return self.liberty.cells.get(name) if name else None

    def present(self) -> bool:
        """Whether the files are on this machine."""
        return bool(self.files) and all(path.is_file() for path in self.files)


def libraries() -> dict[str, Library]:
    """All libraries by name, with ``files`` where they are on this machine."""
    own = _own_places()
    found = {}
    for known in _known():
        names = (known.name, *known.aliases)
        mine = next((own[name] for name in names if name in own), None)
        found[known.name] = replace(known, files=mine or _search(known.places))
    for name, files in own.items():
        if not any(name in (known.name, *known.aliases) for known in _known()):
            get = f"mend its path in {config_file()}"
            found[name] = Library(name=name, title="the user's own", get=get, files=files)
    return dict(sorted(found.items()))


def library(wanted: str | Sequence[str]) -> Library:
    """The library of that name, or of those Liberty files: paths, one by one or joined by commas.

    Raises an error of one sentence where the name is unknown or the files are not on this machine.
    """
    parts = [wanted] if isinstance(wanted, str) else list(wanted)
    parts = [part.strip() for entry in parts for part in entry.split(",") if part.strip()]
    if not parts:
        raise AtriplexError("no library named; give a name or the path of a Liberty file")
    if len(parts) > 1 or FILE.search(parts[0]) or os.sep in parts[0]:
        return _of_files(tuple(Path(part).expanduser() for part in parts))
    known = libraries()
    name = next((lib.name for lib in known.values() if parts[0] in lib.aliases), parts[0])
    if name not in known:
        raise AtriplexError(unknown("library", name, known))
    chosen = known[name]
    if chosen.present():
        return chosen if chosen.nand2 else replace(_of_files(chosen.files), name=name)
    if chosen.files:  # only the user's settings name files that may be absent
        absent = next(path for path in chosen.files if not path.is_file())
        raise Missing(f"{config_file()} names {absent} for library {name}, which is not there")
    raise Missing(f"the files of library {name} are not on this machine; {chosen.get}")


@functools.lru_cache(maxsize=4)
def _read(*stamped: tuple[Path, int]) -> Liberty:
    return read(path for path, _ in stamped)


@functools.cache
def _known() -> tuple[Library, ...]:
    names = sorted(info.name for info in pkgutil.iter_modules(HERE))
    modules = [importlib.import_module(f".{name}", __package__) for name in names]
    return tuple(module.LIBRARY for module in modules if hasattr(module, "LIBRARY"))


def _of_files(files: tuple[Path, ...]) -> Library:
    """A library out of files; settings of a known one are taken where the cells are the same."""
    for path in files:
        if not path.is_file():
            raise AtriplexError(f"no Liberty file {path}")
    plain = Library(name=_name_of(files), title="", get="", files=files)
    for known in _known():
        marks = {known.nand2, known.driver} - {None}
        if marks and marks <= plain.liberty.cells.keys():
            return replace(known, files=files)
    return plain


def _name_of(files: tuple[Path, ...]) -> str:
    name = FILE.sub("", files[0].name)
    return name if len(files) == 1 else f"{name}_and_{len(files) - 1}_more"


def _search(places: tuple[str, ...]) -> tuple[Path, ...]:
    for place in places:
        pattern = str(Path(os.path.expandvars(place)).expanduser())
        if "$" in pattern:
            continue
        if hits := sorted(glob.glob(pattern)):  # noqa: PTH207  (pathlib takes no absolute pattern)
            return tuple(Path(hit) for hit in hits)
    return ()


def config_file() -> Path:
    """The user's settings, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "atriplex" / "config.yaml"


def _own_places() -> dict[str, tuple[Path, ...]]:
    """Files by library name, from the user's settings."""
    path = config_file()
    if not path.is_file():
        return {}
    import yaml

    try:
        settings = yaml.safe_load(path.read_text()) or {}
        entries = settings.get("libraries") or {}
        return {str(name): tuple(_paths(value)) for name, value in entries.items()}
    except (yaml.YAMLError, AttributeError, TypeError) as fault:
        reason = " ".join(str(fault).split())
        raise AtriplexError(f"{path}: libraries must map names to paths: {reason}") from None


def _paths(value: object) -> Iterator[Path]:
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str):
            raise TypeError(f"{one!r} is no path")
        yield Path(one).expanduser()
