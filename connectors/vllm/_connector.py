"""`KVStoreConnector`: vLLM's hooks, passed on to the scheduler's or a worker's side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

from vllm.distributed.kv_events import KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvstore.connectors.vllm._events import Events
from kvstore.connectors.vllm._identity import block_tokens, on_device, orders_of, spec_of
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._plan import Plan
from kvstore.connectors.vllm._reports import Report
from kvstore.connectors.vllm._scheduler import Scheduler
from kvstore.connectors.vllm._sources import hit_sources
from kvstore.connectors.vllm._stats import PromMetrics, Stats
from kvstore.connectors.vllm._stores import Place
from kvstore.connectors.vllm._warn import logger
from kvstore.connectors.vllm._worker import Worker
from kvstore.spec import OPAQUE

Hook = TypeVar("Hook", bound=Callable[..., Any])


class Step(Plan, KVConnectorMetadata):
    """A plan, as vLLM carries it."""


class StoredReport(Report, KVConnectorWorkerMetadata):
    """A report, as vLLM carries it and adds it up over ranks."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StoredReport:
        assert isinstance(other, StoredReport)
        self.add(other)
        return self


def counted(hook: Hook) -> Hook:
    """Add what a hook takes of the engine's thread to the statistics."""

    @wraps(hook)
    def timed(self: KVStoreConnector, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return hook(self, *args, **kwargs)
        finally:
            self._spent_s += time.perf_counter() - began

    return cast(Hook, timed)


class KVStoreConnector(KVConnectorBase_V1, SupportsHMA):
    """Keeps KV prefixes in a kvstore. See docs/vllm.md.

    Raises `InvalidArgument` at the start, with the reason, for engines it would not serve right, and `ConfigError`
    for options that are wrong.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._options = Options.of(transfer.kv_connector_extra_config)
        orders = orders_of(vllm_config, kv_cache_config)
        canonical = orders is not None or on_device(vllm_config)
        self._spec = spec_of(vllm_config, kv_cache_config, self._options, canonical=canonical)
        scheduling = role == KVConnectorRole.SCHEDULER
        self._place = Place(self._options, str(transfer.engine_id), owner=scheduling)
        client = self._place.client
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        self._closed = False
        self._spent_s = 0.0
        block = block_tokens(kv_cache_config)
        if scheduling:
            loads, saves = transfer.is_kv_consumer, transfer.is_kv_producer
            self._scheduler = Scheduler(client, self._spec, block, self._options, loads=loads, saves=saves)
            self._announce(transfer)
            if vllm_config.kv_events_config and vllm_config.kv_events_config.enable_kv_cache_events:
                ranks = vllm_config.parallel_config.tensor_parallel_size
                groups, hashed = kv_cache_config.kv_cache_groups, kv_cache_config.hash_block_size
                self._scheduler.events = Events(groups, block, hashed, ranks)
        else:
            groups = kv_cache_config.kv_cache_groups
            self._worker = Worker(client, self._spec, block, self._options, _rank(), groups, orders)

    def _announce(self, transfer: Any) -> None:
        where = self._options.server or self._options.config or f"{self._options.dram_mib} MiB of its own"
        logger.info("kvstore at %s, spec %s (%s)", where, self._spec.digest.hex(), self._spec.revision)
        if self._spec.layout == OPAQUE:
            logger.info("kvstore: blocks are stored as they lie (opaque), so byte codecs alone apply to them")
        if transfer.kv_load_failure_policy != "recompute":
            logger.warning('kvstore: set "kv_load_failure_policy": "recompute", or a failed load fails its request')

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: a save that is dropped is a later miss."""
        return False

    # Worker side

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._the_worker.register(kv_caches)

    @counted
    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        self._the_worker.before(kv_connector_metadata)

    @counted
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._the_worker.load(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        return

    @counted
    def wait_for_save(self) -> None:
        self._the_worker.save(self._get_connector_metadata())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._get_connector_metadata().idle:
            self._the_worker.rest()
        return self._transfer_results()

    @counted
    def _transfer_results(self) -> KVConnectorTransferResults:
        done, failed = self._the_worker.results()
        return KVConnectorTransferResults(finished_recving=done, failed_recving=failed)

    @counted
    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._the_worker.bad_blocks()

    def get_kv_connector_stats(self) -> Stats | None:
        side = self._scheduler or self._the_worker
        spent, self._spent_s = self._spent_s, 0.0
        side.counts.add(hooks_s=spent)
        taken = side.counts.take()
        return Stats(data=taken) if taken else None

    def build_connector_worker_meta(self) -> StoredReport | None:
        report = self._the_worker.report()
        return None if report is None else StoredReport(report.done, report.failed, report.loads)

    # Scheduler side

    @counted
    def on_new_request(self, request: Any) -> None:
        self._the_scheduler.arrived(request)

    @counted
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._the_scheduler.matched(request, num_computed_tokens)

    def get_external_cache_hit_sources(self, request: Any, num_external_tokens: int) -> dict[CacheHitSource, int]:
        return hit_sources(num_external_tokens, self._the_scheduler.cold(request, num_external_tokens))

    @counted
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        tables = blocks.get_block_ids() if num_external_tokens > 0 else ()
        self._the_scheduler.allocated(request, tables, num_external_tokens)

    @counted
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        plan = self._the_scheduler.plan(scheduler_output)
        return Step(plan.loads, plan.saves, plan.final_saves, plan.hints, plan.idle)

    @counted
    def update_connector_output(self, connector_output: Any) -> None:
        side, report = self._the_scheduler, connector_output.kv_connector_worker_meta
        side.worth.completed()
        if report is not None:
            side.worth.measured(report.loads)
        side.loaded(connector_output.finished_recving or set())
        if side.events is not None and report is not None:
            side.events.reported(report)

    def take_events(self) -> Iterable[KVCacheEvent]:
        events = self._the_scheduler.events
        return () if events is None else events.take()

    def has_pending_push_work(self) -> bool:
        """Whether an engine without requests goes on, so that its last events are told before its next request."""
        events = self._the_scheduler.events
        return events is not None and events.awaited

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    @counted
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._the_scheduler.finished(request, block_ids)
        return False, None

    def reset_cache(self) -> bool:
        """Nothing tells whether the weights stay the same: no more is loaded or saved until the engine starts anew."""
        logger.warning("kvstore: vLLM's caches were reset; until its next start nothing is loaded or saved")
        self._the_scheduler.stop()
        return True

    # Both

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> PromMetrics:
        return PromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """Wait for what is being stored, then let the store go. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for side in (self._scheduler, self._worker):
            if side is not None:
                side.close()
        self._place.close()

    @property
    def _the_scheduler(self) -> Scheduler:
        assert self._scheduler is not None, "a hook of the scheduler's side was called in a worker"
        return self._scheduler

    @property
    def _the_worker(self) -> Worker:
        assert self._worker is not None, "a hook of the workers' side was called in the scheduler"
        return self._worker


def _rank() -> int:
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())
