"""Waiting for room: what a store's threads wait on, and native code that ends what they wait for."""

from __future__ import annotations

import threading

from kvstore import _native


class Room(threading.Condition):
    """The condition of the store's lock: readers have gone, or there is memory.

    The lock knows how many wait, so that native code only takes the trouble to wake somebody where there is anybody.
    """

    def __init__(self, lock: _native.Mutex) -> None:
        super().__init__(lock)  # type: ignore[arg-type]
        self._mutex = lock

    def wait(self, timeout: float | None = None) -> bool:
        self._mutex.awaited += 1
        try:
            return super().wait(timeout)
        finally:
            self._mutex.awaited -= 1

    def wake(self) -> None:
        """Wake everybody who waits. Takes the lock."""
        with self._mutex:
            self.notify_all()
