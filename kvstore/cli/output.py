"""Where results go: one JSON object, a rich table on a terminal, plain columns into a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO


class Advance(Protocol):
    """Tells a progress bar that so much more is done."""

    def __call__(self, done: float = 1) -> None: ...


def print_json(value: Any, file: TextIO | None = None) -> None:
    """One object on standard output, or into a file."""
    print(json.dumps(value, default=_plain), file=file)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", caption: str = ""
) -> None:
    """Rows under headings. Numbers, and what starts with a digit, are set right on a terminal."""
    texts = [[_text(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _plain_table([list(columns), *texts], caption)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, caption=caption or None, title_justify="left", caption_justify="left")
    for number, name in enumerate(columns):
        right = bool(texts) and all(row[number][:1].isdigit() or not row[number] for row in texts)
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in texts:
        table.add_row(*row)
    Console().print(table, markup=False)


@contextmanager
def progress(title: str, total: float | None) -> Iterator[Advance]:
    """A progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: float = 1) -> None:
            bar.advance(task, done)

        yield advance


def size(nbytes: float) -> str:
    """Bytes for people: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} TiB"


def _plain_table(rows: Sequence[Sequence[str]], caption: str) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if caption:
        print(caption)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _plain(value: object) -> Any:
    """What JSON has no form for: bytes as hexadecimal digits, NumPy numbers as numbers."""
    if isinstance(value, bytes):
        return value.hex()
    item = getattr(value, "item", None)
    if item is not None:
        return item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _ignore(done: float = 1) -> None:
    del done
