"""Counters as they cross to vLLM's log and Prometheus."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats


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
