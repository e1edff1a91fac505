"""Group commit: callers who want a flush at the same time share one that began after all of them asked."""

from __future__ import annotations

import threading
from collections.abc import Callable


class GroupFlush:
    """Runs `flush` on behalf of everybody who waits for it."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._begun = self._done = 0
        self._running = False
        self._changed = threading.Condition()

    def __call__(self) -> None:
        """Return once a flush that began after this call has ended well; what it raises goes to its runner, and
        the others run it again."""
        with self._changed:
            wanted = self._begun + 1
            while self._done < wanted:
                if not self._running:
                    break
                self._changed.wait()
            else:
                return
            self._running = True
            self._begun += 1
            number = self._begun
        done = 0
        try:
            self._flush()
            done = number
        finally:
            with self._changed:
                self._running = False
                self._done = max(self._done, done)
                self._changed.notify_all()
