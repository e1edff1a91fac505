"""Deletions in a place that is down: they wait for it, up to so many."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from kvstore.errors import DeadlineExceeded, KVStoreError, Unavailable
from kvstore.tiers.remote.meter import Meter

MOST = 4096
_AT_ONCE = 256


class Deletions:
    """Packed names of records that are to be deleted, each with what it is known by in the ledger."""

    def __init__(self, delete: Callable[[Sequence[bytes]], None], deleted: Callable[[int], None], meter: Meter) -> None:
        """`delete` removes objects by packed name; `deleted` is told of each tag of which nothing is there any more."""
        self._delete, self._deleted, self._meter = delete, deleted, meter
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._lock = threading.Lock()

    def delay(self, name: bytes, tag: int) -> None:
        """A record could not be deleted just now."""
        with self._lock:
            if len(self._waiting) >= MOST:
                self._meter.count("deletes_lost")
            else:
                self._meter.count("deletes_delayed")
                self._waiting.append((name, tag))

    def written(self, name: bytes, *, own: bool) -> None:
        """A record of this name is wanted again; one that this host has just written takes the place of the old."""
        if not self._waiting:
            return
        with self._lock:
            gone = [tag for each, tag in self._waiting if each == name]
            self._waiting = deque(each for each in self._waiting if each[0] != name)
        for tag in gone if own else ():
            self._deleted(tag)

    def do(self) -> None:
        """The place is back, and the breaker still open: so nothing is written meanwhile that is deleted here."""
        while True:
            with self._lock:
                batch = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            if not batch:
                return
            try:
                self._delete([name for name, _ in batch])
            except (Unavailable, DeadlineExceeded):
                with self._lock:
                    self._waiting.extendleft(reversed(batch))
                raise
            except KVStoreError:  # asking again will not help
                self._meter.count("deletes_lost", len(batch))
            else:
                for _, tag in batch:
                    self._deleted(tag)
