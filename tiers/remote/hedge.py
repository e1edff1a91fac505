"""Hedged reads: where an answer takes longer than usual, a second one is asked for, and the first that comes counts.

After Dean and Barroso, "The Tail at Scale" (2013). Every read of a race has memory of its own, so that a loser that
comes late writes into nothing that the caller still has; the winner's bytes are copied once. For that a race costs
a copy and two changes of thread, which only places with a slow tail are worth.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kvstore import _native
from kvstore.errors import DeadlineExceeded, KVStoreError
from kvstore.tiers.remote.meter import Meter

Read = Callable[[memoryview, float], None]
SHARE = 0.05  # second reads, of all reads at most
_BURST = 8.0
_KEPT_BYTES = 64 << 20
_LEAST_BYTES = 64 << 10


class Hedge:
    """Races between reads, `threads` of which may be under way."""

    def __init__(self, name: str, meter: Meter, threads: int) -> None:
        self._meter = meter
        self._memory = _Memory()
        self._threads = ThreadPoolExecutor(threads, f"kvstore-{name}-hedge")
        self._lock = threading.Lock()
        self._allowed = _BURST

    def read(self, read: Read, out: memoryview, timeout_s: float) -> None:
        """Fill `out` by the first of one or two calls of `read(memory, seconds left)` that succeeds.

        While too few reads of this size were made to know what is usual, there is one, straight into `out`.
        """
        nbytes, start = out.nbytes, time.monotonic()
        usual = self._meter.sizes.p95(nbytes)
        if usual is None:
            read(out, timeout_s)
        else:
            self._race(read, out, start + timeout_s, usual)
        self._meter.sizes.add(nbytes, time.monotonic() - start)

    def _race(self, read: Read, out: memoryview, deadline: float, usual: float) -> None:
        race = _Race(read, out.nbytes, deadline, self._memory)
        with self._lock:
            self._allowed = min(_BURST, self._allowed + SHARE)
        self._threads.submit(race.run, 0)
        if not race.wait(min(deadline, time.monotonic() + usual)) and self._may_hedge():
            self._meter.count("hedges")
            race.enter()
            self._threads.submit(race.run, 1)
        if not race.wait(deadline):
            race.abandon()
            raise DeadlineExceeded("a read ran out of time")
        winner, memory = race.result()
        _native.copy(out, memory[: out.nbytes])
        self._memory.give(memory)
        if winner:
            self._meter.count("hedges_won")

    def _may_hedge(self) -> bool:
        with self._lock:
            if self._allowed < 1:
                return False
            self._allowed -= 1
            return True

    def close(self) -> None:
        """Wait for the reads that are under way, which end with their deadlines."""
        self._threads.shutdown()
        self._memory.close()


class _Race:
    """One or two reads of the same bytes."""

    def __init__(self, read: Read, nbytes: int, deadline: float, memory: _Memory) -> None:
        self._read, self._nbytes, self._deadline, self._memory = read, nbytes, deadline, memory
        self._changed = threading.Condition()
        self._running = 1
        self._won: tuple[int, memoryview] | None = None
        self._error: KVStoreError | None = None
        self._over = False

    def enter(self) -> None:
        """One more is about to run."""
        with self._changed:
            self._running += 1

    def run(self, number: int) -> None:
        """Read, and tell; for a thread of the pool."""
        memory, error = self._memory.take(self._nbytes), None
        try:
            self._read(memory[: self._nbytes], max(0.0, self._deadline - time.monotonic()))
        except KVStoreError as raised:
            error = raised
        with self._changed:
            self._running -= 1
            if error is None and not self._over:
                self._won, self._over = (number, memory), True
                self._changed.notify()
                return
            self._error = self._error or error
            if not self._running:
                self._over = True
                self._changed.notify()
        self._memory.give(memory)

    def wait(self, until: float) -> bool:
        """Whether the race is over by that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over, max(0.0, until - time.monotonic()))

    def abandon(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            if self._won is not None:
                self._memory.give(self._won[1])
            self._won, self._over = None, True

    def result(self) -> tuple[int, memoryview]:
        """The winner's number and memory; raises what the first that failed did, if both have."""
        if self._won is None:
            assert self._error is not None
            raise self._error
        return self._won


class _Memory:
    """Pieces of memory that were touched before, of powers of two bytes; up to 64 MiB are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[memoryview]] = {}
        self._kept = 0

    def take(self, nbytes: int) -> memoryview:
        """At least so many bytes."""
        size = max(_LEAST_BYTES, 1 << (nbytes - 1).bit_length())
        with self._lock:
            free = self._free.get(size)
            if free:
                self._kept -= size
                return free.pop()
        return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))

    def give(self, memory: memoryview) -> None:
        """Take back what `take` gave."""
        with self._lock:
            if self._kept + memory.nbytes <= _KEPT_BYTES:
                self._free.setdefault(memory.nbytes, []).append(memory)
                self._kept += memory.nbytes

    def close(self) -> None:
        """Let go of what is kept."""
        with self._lock:
            self._free.clear()
            self._kept = 0
