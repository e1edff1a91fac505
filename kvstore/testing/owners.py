"""An owner of a tier that keeps the books and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from kvstore.record import Record
from kvstore.testing.records import Sample
from kvstore.tiers.base import Tier, Verdict


class BookOwner:
    """Knows which sample lies where. `keeps` says of a record whether it must be moved rather than dropped."""

    def __init__(self, keeps: Callable[[Record], bool] = lambda record: False) -> None:
        self.keeps = keeps
        self.book: dict[int, Sample] = {}
        self.dropped: list[Sample] = []
        self.moves = 0
        self._lock = threading.Lock()

    def enter(self, location: int, sample: Sample) -> None:
        """A sample was written."""
        with self._lock:
            if location in self.book:
                raise AssertionError(f"the tier gave out {location:#x} twice")
            self.book[location] = sample

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Sequence[Verdict]:
        """DEAD for what is not in the book; a record that is not the one in the book is an error of the tier."""
        del tier, since_ms, most
        verdicts = []
        with self._lock:
            for record, location in records:
                sample = self.book.get(location)
                if sample is None:
                    verdicts.append(Verdict.DEAD)
                    continue
                if sample.record.key != record.key:
                    raise AssertionError(f"the tier shows another record at {location:#x}")
                if self.keeps(record):
                    verdicts.append(Verdict.KEEP)
                else:
                    self.dropped.append(self.book.pop(location))
                    verdicts.append(Verdict.DROP)
        return verdicts

    def moved(self, tier: Tier, record: Record, old: int, new: int) -> bool:
        """Follow a record to its new place."""
        del tier, record
        with self._lock:
            sample = self.book.pop(old, None)
            if sample is None:
                return False
            self.book[new] = sample
            self.moves += 1
            return True

    def check(self, tier: Tier) -> None:
        """Assert that everything in the book reads back."""
        for location, sample in list(self.book.items()):
            sample.check_in(tier, location)
