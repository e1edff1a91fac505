"""Calls under way: closing refuses new ones and waits for these."""

from __future__ import annotations

import threading
from types import TracebackType

from kvstore.errors import Closed, StorageError


class Calls:
    """A context around every public call. Raises `Closed` once closed, `StorageError` before it was opened."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inside = 0
        self._open = self._closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def __enter__(self) -> None:
        with self._lock:
            if not self._open or self._closed:
                raise self._refusal()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._closed and self._inside == 0:
                self._changed.notify_all()

    def check_closed(self) -> None:
        """Raise `Closed` if it is."""
        if self._closed:
            raise self._refusal()

    def open(self) -> None:
        """Let calls in."""
        self._open = True

    def close(self) -> bool:
        """Refuse calls from now on and wait for those inside; False if it was closed before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            while self._inside:
                self._changed.wait()
            return True

    def _refusal(self) -> Closed | StorageError:
        if self._closed:
            return Closed(f"tier {self._name} is closed")
        return StorageError(f"tier {self._name} must recover() before it is used")
