"""Deleting a record and moving it, one at a time.

Without this a record could be deleted, and that acknowledged, while its copy is on the way into the journal: killed
just then, the tier would bring the copy back.
"""

from __future__ import annotations

import threading


class Claims:
    """Locations that are being deleted or switched, and those deleted in the segment that is being emptied."""

    def __init__(self) -> None:
        self._claimed: set[int] = set()
        self._watched: frozenset[int] = frozenset()
        self._dead: set[int] = set()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def watch(self, locations: frozenset[int]) -> None:
        """Remember which of these are deleted from now on."""
        with self._lock:
            self._watched, self._dead = locations, set()

    def claim(self, location: int) -> bool:
        """Wait until nobody else has it. False if it was deleted while it was watched."""
        with self._lock:
            while location in self._claimed:
                self._changed.wait()
            self._claimed.add(location)
            return location not in self._dead

    def release(self, location: int, *, dead: bool = False) -> None:
        """The other end of `claim`, saying whether the record is gone."""
        with self._lock:
            self._claimed.discard(location)
            if dead and location in self._watched:
                self._dead.add(location)
            self._changed.notify_all()
