"""Tasks in threads, whose results wait until they are asked for."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

R = TypeVar("R")
logger = logging.getLogger("kvstore.lmcache")


class Tasks(Generic[R]):
    """One kind of task. Each ends with a result and a signal on the event's descriptor, whatever happens in it."""

    def __init__(self, name: str, threads: int, event: Any, numbers: itertools.count[int]) -> None:
        """`event` is LMCache's `EventNotifier`; `numbers` are shared by all kinds of tasks of an adapter."""
        self.event = event
        self._numbers = numbers
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"kvstore-{name}")
        self._lock = threading.Lock()
        self._results: dict[int, R] = {}

    def submit(self, work: Callable[[R], R], otherwise: R) -> int:
        """Begin a task and return its number. `work` gets `otherwise`, which is the result if it raises."""
        number = next(self._numbers)
        self._pool.submit(self._run, number, work, otherwise)
        return number

    def take(self, number: int) -> R | None:
        """The result of a task, once; None while there is none."""
        with self._lock:
            return self._results.pop(number, None)

    def take_all(self) -> dict[int, R]:
        """All results that have not been taken."""
        with self._lock:
            taken, self._results = self._results, {}
        return taken

    def close(self) -> None:
        """Wait for what runs; each call to the store has its time limit. What waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.event.close()

    def _run(self, number: int, work: Callable[[R], R], otherwise: R) -> None:
        result = otherwise
        try:
            result = work(otherwise)
        except Exception:  # LMCache's own objects are handled there, and nobody else would hear of it
            logger.exception("a task has failed, and what it was to bring is a miss")
        finally:
            with self._lock:
                self._results[number] = result
            self.event.notify()
