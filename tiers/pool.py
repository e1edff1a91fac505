"""Threads that a tier keeps for its own I/O."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from kvstore.errors import KVStoreError

IN_FLIGHT_BYTES = 8 << 20  # of one batch, for each drive; two transfers at least


class IoPool:
    """Threads that keep several requests of one batch in flight; the caller works along with them."""

    def __init__(self, threads: int, name: str, drives: int = 1) -> None:
        self._in_flight = IN_FLIGHT_BYTES * max(1, drives)
        self._batches: SimpleQueue[_Batch | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-io-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, count: int, work: Callable[[int], None], nbytes: int = 0) -> None:
        """Call `work`, which must not raise, with 0 … count-1; return when all calls have.

        `nbytes` is what all calls transfer together: large transfers, which the kernel splits by itself, are given
        fewer threads, since more of them only stand in each other's way.
        """
        if count == 1:
            work(0)
            return
        batch = _Batch(count, work)
        helpers = max(1, self._in_flight * count // nbytes - 1) if nbytes else count - 1
        for _ in range(min(len(self._threads), count - 1, helpers)):
            self._batches.put(batch)
        batch.drain()
        batch.done.wait()

    def outcomes(
        self, requests: Sequence[tuple[Any, ...]], work: Callable[..., None], nbytes: int = 0
    ) -> list[Exception | None]:
        """`run` of `work(*request)` for each request: the `KVStoreError` that it raised, or None, in their order."""
        found: list[Exception | None] = [None] * len(requests)

        def one(index: int) -> None:
            try:
                work(*requests[index])
            except KVStoreError as error:
                found[index] = error

        if requests:
            self.run(len(requests), one, nbytes)
        return found

    def close(self) -> None:
        """End the threads; batches that are under way are finished by their callers."""
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while (batch := self._batches.get()) is not None:
            batch.drain()


class _Batch:
    """Numbers that several threads take from one iterator, each exactly once."""

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        self._count, self._work = count, work
        self._next: Iterator[int] = iter(range(count))
        self._finished: deque[int] = deque()
        self.done = threading.Event()

    def drain(self) -> None:
        for index in self._next:
            try:
                self._work(index)
            finally:
                self._finished.append(index)
                if len(self._finished) == self._count:
                    self.done.set()
