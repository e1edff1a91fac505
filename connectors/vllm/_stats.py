"""Counters as they cross to vLLM's log and Prometheus."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

# name: what it counts. The names are those of `Counts.add` in this package.
COUNTERS = {
    "lookups": "look-ups begun",
    "retries": "times the scheduler was told to ask again",
    "asked_tokens": "tokens looked up",
    "hit_tokens": "tokens whose load was begun",
    "lossy_tokens": "tokens whose load was begun from lossy copies",
    "prefetched_chunks": "chunks that the store was asked to load ahead, for requests that waited",
    "lookups_cut": "look-ups of which something is computed although it is stored, since loading it would take longer",
    "left_out_tokens": "tokens of these",
    "loads_weighed": "loads that ended and were compared with the time of computing the same tokens",
    "loads_slower": "loads of these that took longer",
    "loads": "loads that ended",
    "loads_failed": "loads that ended early and were recomputed",
    "loaded_bytes": "bytes loaded",
    "in_place": "parts scattered from where the store keeps them in the GPU's memory",
    "in_place_failed": "times that this memory could not be used, and parts were loaded over the bus",
    "load_s": "seconds from the start to the end of loads, summed",
    "saved": "parts stored",
    "saved_bytes": "bytes stored",
    "saves_present": "parts that were stored already",
    "saves_dropped": "parts dropped, for want of staging memory or of a store that answers",
    "saves_shed": "parts that the store refused under pressure",
    "saves_failed": "parts that could not be stored",
    "saves_tainted": "requests of which something was not stored because it was computed after lossy copies",
    "hints": "prompts of which the store was told that they have ended or come back",
    "hints_failed": "prompts of which it could not be told, or of which something was said that cannot be",
    "saves_outside": "parts that had left their sliding window",
    "hooks_s": "seconds of the engine's threads spent in the connector, waits in steps without work left out",
    "stage_s": "seconds of the engine's thread spent on copies for saves",
}


class Stats(KVConnectorStats):
    """A flat mapping of sums."""

    def reset(self) -> None:
        """Begin anew."""
        self.data: dict[str, Any] = {}

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


class PromMetrics(KVConnectorPromMetrics):
    """`vllm:kvstore_<name>_total` for every counter."""

    def __init__(self, config: Any, types: Any, labels: list[str], engines: dict[int, list[object]]) -> None:
        from prometheus_client import Counter

        super().__init__(config, types, labels, engines)
        kind = types[Counter]
        made = {
            name: kind(name=f"vllm:kvstore_{name}", documentation=f"kvstore: {what}.", labelnames=labels)
            for name, what in COUNTERS.items()
        }
        self._counters = {
            number: {name: counter.labels(*values) for name, counter in made.items()}
            for number, values in engines.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add an interval's sums."""
        for name, amount in transfer_stats_data.items():
            self._counters[engine_idx][name].inc(amount)
