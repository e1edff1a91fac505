"""What the demonstration is doing, on standard error: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_console = Console(stderr=True)


@contextmanager
def step(title: str, *, spinner: bool = True) -> Iterator[None]:
    """One step, shown while it runs and, with the time it took, when it is done.

    Without the spinner for what draws progress of its own.
    """
    start = time.perf_counter()
    if spinner and _console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=_console, transient=True) as progress:
            progress.add_task(title, total=None)
            yield
    else:
        _console.print(f"… {title}", markup=False, highlight=False, soft_wrap=True)
        yield
    _console.print(f"✓ {title}: {time.perf_counter() - start:.1f} s", markup=False, highlight=False, soft_wrap=True)
