"""Counters of one side of the connector."""

from __future__ import annotations

import threading


class Counts:
    """Sums since they were last taken. Any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}

    def add(self, **amounts: float) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] = self._sums.get(name, 0) + amount

    def take(self) -> dict[str, float]:
        """All sums; they begin anew."""
        with self._lock:
            sums, self._sums = self._sums, {}
            return sums
