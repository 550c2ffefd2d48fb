"""What every command prints with: JSON or a table on stdout, progress and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgegen.spec import Report


# What a terminal of another encoding gets instead; anything else becomes a question mark.
ASCII = {"±": "~", "≤": "<", "≥": ">", "×": "x", "◆": "+", "–": "-", "…": "~"}  # as wide


def any_encoding() -> None:
    """Let every text be printed, by whatever encoding stdout and stderr have."""
    import codecs
    import io

    codecs.register_error("edgegen", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="edgegen")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(ASCII.get(mark, "?") for mark in text), error.end


def print_json(record: Any) -> None:
    """A record as JSON on stdout."""
    from edgegen.records import encode

    sys.stdout.write(encode(record).decode())


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str = "") -> None:
    """A table on stdout; numbers should come formatted, with their unit in the column name."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a plain string would lose its [brackets], taken for markup

    heading = Text(title) if title else None
    table = Table(title=heading, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    # A pipe has no width: never fold what another program is going to read.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def command() -> str:
    """What was typed."""
    import shlex

    return shlex.join(["edgegen", *sys.argv[1:]])


def canvas() -> dict[str, Any]:
    """How wide a drawing on stdout may be, and whether it has to keep to ASCII."""
    import shutil

    try:
        "█".encode(sys.stdout.encoding or "ascii")
        plain = False
    except (UnicodeEncodeError, LookupError):
        plain = True
    # A pipe has no width of its own.
    width = min(shutil.get_terminal_size().columns, 120) if sys.stdout.isatty() else 100
    return {"width": width, "plain": plain}


def note(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """A bar on stderr for as long as the block runs; in a log, one line for each new task."""
    from rich.console import Console

    # The stream of now: exporters send away what their libraries print to a later sys.stderr.
    console = Console(file=sys.stderr)
    if quiet:
        yield lambda *_: None
    elif console.is_terminal:
        yield from _bars(console)
    else:
        yield _lines()


def _bars(console: Any) -> Iterator[Report]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for shown in tasks.values():  # a long run has dozens: only the newest stays
                    bars.update(shown, visible=False)
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def _lines() -> Report:
    seen: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        if what not in seen:
            seen.add(what)
            note(f"{what} ({total})" if total > 1 else what)

    return report
