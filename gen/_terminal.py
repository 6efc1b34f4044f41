# SPDX-License-Identifier: Apache-2.0
"""What the command line says: results on stdout, everything else on stderr."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..rtl.errors import unknown

Progress = Callable[[str], None]


def note(sentence: str) -> None:
    """One line on stderr."""
    print(f"atriplex: {sentence}", file=sys.stderr, flush=True)


def say_json(value: Any) -> None:
    """The result for machines: all that stands on stdout then."""
    print(json.dumps(value, indent=2, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """The result for people: drawn and wrapped on a terminal, plain columns into a pipe."""
    texts = [[_text(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
        if title:
            print(title)
        for row in (columns, *texts):
            cells = zip(row, widths, strict=True)
            print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
        return print()

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in texts:
        grid.add_row(*map(Text, row))
    Console().print(grid)


def _text(cell: Any) -> str:
    if isinstance(cell, Mapping):
        return ", ".join(f"{name}={value}" for name, value in cell.items())
    if isinstance(cell, list | tuple):
        return "; ".join(map(str, cell))
    return "" if cell is None else str(cell)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A callback that shows what is at work: on a terminal a line with a clock, else one line each.

    The clock starts anew with each stage; ``training: step 5`` and ``training: step 6`` are one.
    Nothing is shown if ``quiet``.
    """
    if quiet:
        yield lambda stage: None
    elif not sys.stderr.isatty():
        yield note
    else:
        from rich.console import Console
        from rich.progress import Progress as Bars
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task, shown = bars.add_task("", total=None), ""

            def stage(name: str) -> None:
                nonlocal shown
                if name.partition(":")[0] != shown.partition(":")[0]:
                    bars.reset(task)
                bars.update(task, description=name)
                shown = name

            yield stage


def usage(error: Any) -> str:
    """What typer says of a wrong command line, in our words."""
    if name := getattr(error, "option_name", None):
        known = [word for each in error.ctx.command.params for word in each.opts]
        if name not in known:
            return unknown("option", name, known)
    message = error.format_message().rstrip(".")
    return message[:1].lower() + message[1:]


def interrupt(*_: Any) -> NoReturn:
    """On Ctrl-C: end all processes below this one, the children of children too, then go."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    below = children.get(os.getpid(), [])
    for child in below:  # grows as it goes
        below += children.get(child, [])
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    raise KeyboardInterrupt


def quiet_stdout() -> None:
    """Send what is still to be printed nowhere: the reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
