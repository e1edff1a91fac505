"""A gate: many may pass at once, or one holds it alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets writers of a tier pass together, and whoever makes room in it alone.

    Between the write of a record and its entry in the index nobody may judge it dead.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._passing = 0
        self._held = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Pass with others."""
        with self._change:
            self._change.wait_for(lambda: not self._held)
            self._passing += 1
        try:
            yield
        finally:
            with self._change:
                self._passing -= 1
                self._change.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody passes, and keep everybody out."""
        with self._change:
            self._change.wait_for(lambda: not self._held)
            self._held = True
            self._change.wait_for(lambda: not self._passing)
        try:
            yield
        finally:
            with self._change:
                self._held = False
                self._change.notify_all()
