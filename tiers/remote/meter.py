"""What the tier has done and how long it took."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kvstore.tiers import meter
from kvstore.tiers.meter import Flow

_KEPT = 256
_LEAST = 32  # calls before a percentile is told
_CLASSES = 48


class Latencies:
    """Seconds that the last 256 calls of one kind took."""

    def __init__(self) -> None:
        self._seconds = array("d", bytes(8 * _KEPT))
        self._count = 0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """A call took so long."""
        with self._lock:
            self._seconds[self._count % _KEPT] = seconds
            self._count += 1

    def percentile(self, share: float, least: int = 1) -> float | None:
        """What so large a share of them did not exceed; None for fewer than `least` calls."""
        with self._lock:
            if self._count < least:
                return None
            seconds = np.sort(self._seconds[: self._count])
        return float(seconds[min(len(seconds) - 1, int(share * len(seconds)))])


class SizeClasses:
    """`Latencies` of reads, for every power of two of their sizes."""

    def __init__(self) -> None:
        self._classes = [Latencies() for _ in range(_CLASSES)]

    def add(self, nbytes: int, seconds: float) -> None:
        """A read of so many bytes took so long."""
        self._classes[nbytes.bit_length()].add(seconds)

    def p95(self, nbytes: int) -> float | None:
        """What 95% of reads of about that size took at most; None while too few were made."""
        return self._classes[nbytes.bit_length()].percentile(0.95, _LEAST)


class Transfer:
    """A read or a write for as long as a `with` lasts; one that raises counts for nothing."""

    __slots__ = ("_flow", "_nbytes", "_start", "_took")

    def __init__(self, flow: Flow, took: Latencies, nbytes: int) -> None:
        self._flow, self._took, self._nbytes = flow, took, nbytes

    def nothing(self) -> None:
        """It turned out that there was nothing to move."""
        self._nbytes = 0

    def __enter__(self) -> Transfer:
        self._start = self._flow.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        done = self._nbytes if error is None else 0
        seconds = self._flow.end(self._start, done)
        if done:
            self._took.add(seconds)


class Meter(meter.Meter):
    """Besides counters and flows, how long calls took. Thread-safe."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        super().__init__(bytes_per_s, latency_s)
        self.sizes = SizeClasses()
        self._took = {what: Latencies() for what in ("read", "write", "find")}

    def reading(self, nbytes: int) -> Transfer:
        """Around a read of so many bytes."""
        return Transfer(self.reads, self._took["read"], nbytes)

    def writing(self, nbytes: int) -> Transfer:
        """Around a write."""
        return Transfer(self.writes, self._took["write"], nbytes)

    @contextmanager
    def finding(self) -> Iterator[None]:
        """Around a look-up that asks the place."""
        start = time.perf_counter()
        yield
        self._took["find"].add(time.perf_counter() - start)

    def stats(self) -> dict[str, float | int | str]:
        """All of it; a counter that was never raised is 0."""
        counts = self.counts()
        told: dict[str, float | int | str] = {name: counts[name] for name in (*MOVED, *COUNTERS)}
        for what, took in self._took.items():
            for label, share in (("p50", 0.5), ("p99", 0.99)):
                told[f"{what}_{label}_s"] = took.percentile(share) or 0.0
        return told


MOVED = ("bytes_read", "bytes_written", "records_read", "records_written")
COUNTERS = (
    "asked",  # names that look-ups asked the place for
    "found",
    "not_asked",  # names that had just been missing
    "already_there",  # writes that met another writer's record
    "lost",  # records that the place no longer had
    "damaged",  # headers that did not match their checksum or name
    "full",
    "errors",
    "retries",
    "timeouts",
    "hedges",
    "hedges_won",
    "deletes_delayed",  # until the place was back
    "deletes_lost",  # of records that stay there, known to nobody here
)
