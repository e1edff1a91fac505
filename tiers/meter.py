"""What a tier has done, and how fast: counters, and moving averages that the cost model reads."""

from __future__ import annotations

import threading
import time
from collections import Counter

from kvstore.tiers.base import Speed

_WEIGHT = 0.1
_LATENCY_BYTES = 256 << 10
_FOLD_BYTES = 8 << 20
_MOST_FOLD_BYTES = 64 << 20
_FOLD_WEIGHT = 0.3


class Flow:
    """Transfers in one direction: how many, and bytes per second of the time in which any was under way.

    Of each 8 MiB or more the time of a byte counts, and goes into a moving average: of rates it would be too high, as
    what came quickly takes no longer to count. They are counted when nothing is under way, so that bytes and time are
    those of the same transfers, or after 64 MiB. `active` are under way now.
    """

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self.bytes_per_s, self.latency_s = bytes_per_s, latency_s
        self.nbytes = self.records = 0
        self._lock = threading.Lock()
        self.active = self._folded = self._folds = 0
        self._busy = self._since = 0.0

    def begin(self) -> float:
        """A transfer starts. Hand the result to `end`."""
        now = time.perf_counter()
        with self._lock:
            if self.active == 0:
                self._since = now
            self.active += 1
        return now

    def end(self, start: float, nbytes: int, records: int = 1) -> float:
        """A transfer of so many records ended with so many bytes moved (0: it failed); the seconds that it took."""
        now = time.perf_counter()
        took = now - start
        with self._lock:
            self.active -= 1
            self._busy += now - self._since
            self._since = now
            if nbytes:
                self._moved(took, nbytes, records)
            self._fold()
        return took

    def _moved(self, took: float, nbytes: int, records: int) -> None:
        """Needs the lock."""
        self.nbytes += nbytes
        self.records += records
        if nbytes <= _LATENCY_BYTES:
            first_byte = max(0.0, took - nbytes / self.bytes_per_s)
            self.latency_s += _WEIGHT * (first_byte - self.latency_s)

    def _fold(self) -> None:
        """Learn from what has been moved since the last time, if it is enough. Needs the lock."""
        moved = self.nbytes - self._folded
        if moved < _FOLD_BYTES or self._busy <= 0 or (self.active and moved < _MOST_FOLD_BYTES):
            return
        self._folds += 1
        weight = max(_FOLD_WEIGHT, 1 / self._folds)  # the first takes the place of the estimate
        self.bytes_per_s = 1 / (1 / self.bytes_per_s + weight * (self._busy / moved - 1 / self.bytes_per_s))
        self._folded, self._busy = self.nbytes, 0.0


class Meter:
    """Thread-safe counters, and the flow either way (estimates until 8 MiB were moved)."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self.reads, self.writes = Flow(bytes_per_s, latency_s), Flow(bytes_per_s, latency_s)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, name: str, by: int = 1) -> None:
        """Raise a counter."""
        with self._lock:
            self._counts[name] += by

    @property
    def speed(self) -> Speed:
        """Moving averages."""
        return Speed(self.reads.bytes_per_s, self.writes.bytes_per_s, self.reads.latency_s)

    def counts(self) -> Counter[str]:
        """A copy of all counters; one that was never raised reads 0."""
        with self._lock:
            counts = Counter(self._counts)
        for name, flow in (("read", self.reads), ("written", self.writes)):
            counts[f"bytes_{name}"], counts[f"records_{name}"] = flow.nbytes, flow.records
        return counts
