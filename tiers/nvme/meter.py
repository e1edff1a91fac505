"""What the tier has done, and how fast: counters, and moving averages that the cost model reads."""

from __future__ import annotations

import threading
import time
from collections import Counter

from kvstore.tiers.base import Speed

_WEIGHT = 0.1
_BULK_BYTES = 256 << 10
_FOLD_BYTES = 8 << 20


class _Rate:
    """Bytes per second of busy time: time in which at least one transfer was under way."""

    def __init__(self, estimate: float) -> None:
        self.bytes_per_s = estimate
        self._bytes = self._active = 0
        self._busy = self._since = 0.0

    def begin(self, now: float) -> None:
        if self._active == 0:
            self._since = now
        self._active += 1

    def end(self, now: float, nbytes: int) -> None:
        self._active -= 1
        self._bytes += nbytes
        self._busy += now - self._since
        self._since = now
        if self._bytes >= _FOLD_BYTES and self._busy > 0:
            self.bytes_per_s += 3 * _WEIGHT * (self._bytes / self._busy - self.bytes_per_s)
            self._bytes, self._busy = 0, 0.0


class Meter:
    """Thread-safe counters and rates."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates = {"read": _Rate(1e9), "written": _Rate(1e9)}
        self._latency = 2e-4
        self._counts: Counter[str] = Counter()

    def begin(self, way: str) -> float:
        """A transfer starts; `way` is ``read`` or ``written``. Hand the result to `end`."""
        now = time.perf_counter()
        with self._lock:
            self._rates[way].begin(now)
        return now

    def end(self, way: str, start: float, nbytes: int, records: int = 1) -> None:
        """A transfer ended with so many bytes moved (0: it failed)."""
        now = time.perf_counter()
        with self._lock:
            rate = self._rates[way]
            rate.end(now, nbytes)
            self._counts[f"bytes_{way}"] += nbytes
            self._counts[f"records_{way}"] += records if nbytes else 0
            if 0 < nbytes <= _BULK_BYTES and way == "read":
                first_byte = max(0.0, now - start - nbytes / rate.bytes_per_s)
                self._latency += _WEIGHT * (first_byte - self._latency)

    def count(self, name: str, by: int = 1) -> None:
        """Raise a counter."""
        with self._lock:
            self._counts[name] += by

    @property
    def speed(self) -> Speed:
        """Moving averages."""
        with self._lock:
            return Speed(self._rates["read"].bytes_per_s, self._rates["written"].bytes_per_s, self._latency)

    def counts(self) -> Counter[str]:
        """A copy of all counters; one that was never raised reads 0."""
        with self._lock:
            return Counter(self._counts)
