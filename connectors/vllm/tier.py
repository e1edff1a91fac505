"""`KVStoreTier`: a secondary tier behind vLLM's `OffloadingConnector`. See docs/vllm.md.

    "kv_connector": "OffloadingConnector",
    "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 8589934592,
        "secondary_tiers": [{"type": "KVStoreTier", "server": "127.0.0.1:7420"}]}

vLLM moves KV between the engine and its own host memory; this moves rows of that memory to a store and back. It lives
in the scheduler's process, whose calls it never makes wait: look-ups and copies run in threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._stores import Place
from kvstore.connectors.vllm._tier_hints import TierHints
from kvstore.connectors.vllm._tier_identity import connector_above, identity_of, tier_options
from kvstore.connectors.vllm._tier_lookups import TierLookups
from kvstore.connectors.vllm._tier_rows import RowJob, RowOutcome, TierRows
from kvstore.connectors.vllm._warn import Warn, logger
from kvstore.errors import InvalidArgument

# What vLLM does not count for every tier by itself; the names are those of `Counts.add`.
COUNTERS = {
    "rows_asked": "rows looked up",
    "rows_failed": "rows that were found and did not load, to be recomputed",
    "saved": "rows stored",
    "saves_present": "rows that were stored already",
    "saves_dropped": "rows dropped, for want of staging memory or of a store that answers",
    "saves_shed": "rows that the store refused under pressure",
    "saves_failed": "jobs that ended before all their rows were stored",
    "hints": "requests that said what will become of their prompt",
    "hints_failed": "hints that could not be, or that did not reach the store",
}
_PREFIX = "vllm:kvstore_tier_"
# vLLM asks for every row of a waiting request in every step; a key is hashed once while it is remembered.
_REMEMBERED = 1 << 15


class KVStoreTier(SecondaryTierManager):
    """Keeps rows of the primary tier in a kvstore; every method is for the scheduler's thread.

    Raises `InvalidArgument` at the start, with the reason, for engines it would not serve right, and `ConfigError`
    for options that are wrong.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        enable_kv_events: bool = False,
        locality: str | None = None,
        **given: Any,
    ) -> None:
        """`primary_kv_view` is `[row, byte]`; `given` are the tier's options, those of `Options`."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = None if locality is None else Locality(locality)
        options = tier_options(given)
        config, cache = connector_above()
        self._identity = identity_of(config, cache, offloading_spec.config, options)
        self._ref = lru_cache(_REMEMBERED)(self._identity.ref)
        spec, nbytes = self._identity.spec, self._identity.nbytes
        if self.block_size_bytes < nbytes:
            raise InvalidArgument(f"a row of {self.block_size_bytes} bytes does not hold the {nbytes} of its KV")
        events = offloading_spec.kv_events_config.enable_kv_cache_events
        self._events: list[OffloadingEvent] | None = [] if enable_kv_events and events else None
        if enable_kv_events and not events:
            logger.warning("kvstore tier: enable_kv_events does nothing while vLLM's own kv_events_config is off")
        self._counts = Counts()
        self._warn = Warn("tier loads", options.retry_s)
        self._jobs: dict[int, TransferJob] = {}
        self._isolated = self._closed = False
        self._place = Place(options, f"{offloading_spec.config.engine_id}/{tier_type}", owner=True)
        client, rows = self._place.client, np.asarray(primary_kv_view).view(np.uint8)[:, :nbytes]
        self._lookups = TierLookups(client, spec, options, self._counts)
        self._rows = TierRows(client, spec, rows, options, self._counts)
        self._hints = TierHints(self._counts, options.retry_s)
        where = options.server or options.config or f"{options.dram_mib} MiB of its own"
        logger.info("kvstore tier at %s, spec %s (%s)", where, spec.digest.hex(), spec.revision)

    def lookup(self, key: Any, req_context: Any) -> LookupResult:
        """Whether a row is stored: RETRY while it is not known."""
        end = req_context.get_offload_key_position(key)
        if self._isolated or end is None:  # vLLM does not say where a row stands that another host asks for
            return LookupResult.MISS
        ref = self._ref(key, end)
        self._hints.seen(req_context.req_id, (ref,))
        there = self._lookups.find(req_context.req_id, get_offload_group_idx(key), ref)
        if there is None:
            return LookupResult.RETRY
        return LookupResult.HIT if there else LookupResult.MISS

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Begin to fill rows from the store."""
        job = self._job(job_metadata)
        self._lookups.loading(job.request, [ref.key for ref in job.refs])
        self._rows.load(job)

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Begin to store rows; what there is no room for is dropped."""
        self._rows.store(self._job(job_metadata), wanted=not self._isolated)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Jobs that have ended since the last call, with the rows of a load that came."""
        return [self._result(outcome) for outcome in self._rows.take()]

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        """Note what a request says of its prompt's future."""
        self._hints.begin(req_context)
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        """Forget a request; leases that its loads need are kept until they end. What it said goes after its stores."""
        self._lookups.finished(req_context.req_id)
        hint = self._hints.end(req_context.req_id)
        if hint is not None and not self._isolated:
            self._rows.tell(hint)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Send this step's look-ups, all at once."""
        for name in context.preempted_req_ids:
            self._lookups.admitted_again(name)
        self._lookups.end_step()

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Rows stored since the last call, if events are on; what the store evicts later is not told."""
        if self._events:
            yield from self._events
            self._events.clear()

    def drain_jobs(self) -> None:
        """Wait for every job. vLLM asks for this when its caches are reset, as it does when weights change.

        The store's rows belong to the weights that were loaded at the start, and nothing tells whether these still
        are: from here on this engine neither reads nor writes any.
        """
        self._rows.drain()
        if not self._isolated:
            self._isolated = True
            logger.warning("kvstore tier: the caches were reset; the store is not used any more until the next start")

    def shutdown(self) -> None:
        """Wait for what is being stored, then let the store go. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._lookups.close()
        self._rows.close()
        self._place.close()

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        """Counters besides those that vLLM keeps for every tier."""
        return {
            _PREFIX + name: OffloadingCounterMetadata(documentation=f"kvstore tier: {what}.")
            for name, what in COUNTERS.items()
        }

    def get_stats(self) -> OffloadingConnectorStats | None:
        """Counters since the last call."""
        taken = self._counts.take()
        if not taken:
            return None
        stats = OffloadingConnectorStats()
        for name, amount in taken.items():
            stats.increase_counter(_PREFIX + name, amount)
        return stats

    def _job(self, given: TransferJob) -> RowJob:
        """A job of the engine's requests, for whose rows vLLM has noted where in their prompts they end."""
        self._jobs[given.job_id] = given
        context = given.req_context
        refs = [self._ref(key, context.get_offload_key_position(key)) for key in given.keys]
        self._hints.seen(context.req_id, refs)
        return RowJob(given.job_id, context.req_id, refs, [int(row) for row in given.chunk_ids])

    def _result(self, outcome: RowOutcome) -> JobResult:
        given = self._jobs.pop(outcome.job.number)
        keys = tuple(key for key, there in zip(given.keys, outcome.done, strict=True) if there)
        failed = len(outcome.done) - len(keys)
        if given.is_promotion:
            self._lookups.loaded(outcome.job.request)
            if failed:
                self._counts.add(rows_failed=failed)
                self._warn(f"{failed} of {len(outcome.done)} rows are recomputed: {outcome.reason}")
            if outcome.gone:
                self._lookups.lost(outcome.reason)
        elif self._events is not None and keys:
            self._events.append(OffloadingEvent(list(keys), self.medium, removed=False, locality=self.locality))
        return JobResult(
            given.job_id,
            success=not failed,
            successful_keys=keys if given.is_promotion and failed else None,
            transfer_time=outcome.seconds,
            transfer_bytes=len(keys) * self._identity.nbytes,
        )
