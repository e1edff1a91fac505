"""Counters that cross from workers and scheduler to vLLM's log and Prometheus."""

from __future__ import annotations

import threading
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats


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


class Stats(KVConnectorStats):
    """A flat mapping of sums."""

    def reset(self) -> None:
        """Begin anew."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Add up by name."""
        for name, amount in other.data.items():
            self.data[name] = self.data.get(name, 0) + amount
        return self

    def reduce(self) -> dict[str, Any]:
        """What the log says of an interval."""
        return {name: round(amount, 4) for name, amount in sorted(self.data.items())}

    def is_empty(self) -> bool:
        """Whether there is nothing to say."""
        return not any(self.data.values())
