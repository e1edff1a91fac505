"""What becomes of the chunks that workers were told to save, and what loads took, on its way back to the scheduler.

vLLM's own hook for events of workers counts equal events of one step only; ranks store in steps of their own, and
a chunk is there once all of them have. So numbers of jobs travel, and the scheduler counts.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

UNASKED = 0  # the number of a job that nobody wants to hear of


class Took(NamedTuple):
    """What a load has brought, from its first read to its last byte in the engine's blocks."""

    nbytes: int
    seconds: float


@dataclass
class Report:
    """How many ranks are done with each job, by its number, and the jobs of which some part was not stored.

    `loads` are those that came as a whole, by request: of several ranks the bytes of all and the slowest one's time.
    """

    done: Counter[int] = field(default_factory=Counter)
    failed: set[int] = field(default_factory=set)
    loads: dict[str, Took] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Another rank's report."""
        self.done.update(other.done)
        self.failed |= other.failed
        for request, took in other.loads.items():
            here = self.loads.get(request, Took(0, 0.0))
            self.loads[request] = Took(here.nbytes + took.nbytes, max(here.seconds, took.seconds))


class Reports:
    """One rank's account of its jobs. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: Counter[int] = Counter()
        self._ended = Report()

    def begin(self, number: int, parts: int) -> None:
        """A job has so many parts on this rank; each has its `end`."""
        if number != UNASKED:
            with self._lock:
                self._left[number] = parts
                self._settle(number)

    def end(self, number: int, *, stored: bool) -> None:
        """A part is in the store, or will not be."""
        if number != UNASKED:
            with self._lock:
                if not stored:
                    self._ended.failed.add(number)
                self._left[number] -= 1
                self._settle(number)

    def take(self) -> Report | None:
        """The jobs that have ended since the last call."""
        with self._lock:
            if not self._ended.done:
                return None
            numbers = self._ended.done.keys()
            taken = Report(self._ended.done, self._ended.failed & numbers)
            self._ended = Report(failed=self._ended.failed - numbers)
            return taken

    def _settle(self, number: int) -> None:
        if self._left[number] == 0:
            del self._left[number]
            self._ended.done[number] += 1
