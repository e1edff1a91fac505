"""Memory of the arena in somebody's hands, and whether it still is."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np


class Loan:
    """Lends memory out as `data` and knows when nothing stands on it any more.

    Arrays and slices made from `data` (`np.frombuffer(view.data)`) outlive it. Each of them keeps the exporter
    behind it alive, and nothing else does: memory may go to another chunk when the exporter is gone.
    """

    def __init__(self, memory: memoryview, *, readonly: bool = False) -> None:
        exporter = np.frombuffer(memory, np.uint8)
        exporter.flags.writeable = not readonly
        self.data = exporter.data
        self._exporter = weakref.ref(exporter)

    def end(self) -> bool:
        """Take `data` back; False while arrays or slices made from it are still there."""
        with contextlib.suppress(BufferError):
            self.data.release()
        return self._exporter() is None


class Loans:
    """Loans that have ended, of memory that arrays still stand on. `lock` guards them."""

    def __init__(self, lock: AbstractContextManager[Any]) -> None:
        self._lock = lock
        self._lingering: list[tuple[Loan, Callable[[], None]]] = []

    def end(self, loan: Loan, give_back: Callable[[], None]) -> None:
        """Take memory of the arena from whoever it was lent to, then `give_back` it.

        Where an array still stands on it that is put off until the array is gone: it must not see, or write,
        another chunk's bytes.
        """
        if loan.end():
            give_back()
        else:
            with self._lock:
                self._lingering.append((loan, give_back))

    def sweep(self) -> None:
        """Give back memory that arrays have stood on until now."""
        with self._lock:
            lingering, self._lingering = self._lingering, []
        for loan, give_back in lingering:
            self.end(loan, give_back)
