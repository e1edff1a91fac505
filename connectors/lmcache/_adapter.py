"""`KVStoreL2Adapter`: what LMCache's store and prefetch controllers call."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.platform import create_event_notifier

from kvstore.connectors.access import Breaker, HoldOptions, hold
from kvstore.connectors.lmcache._objects import layout_of, ref_of, spec_of
from kvstore.connectors.lmcache._tasks import Tasks
from kvstore.errors import Corrupt, NotFound
from kvstore.spec import KVSpec

logger = logging.getLogger("kvstore.lmcache")
LOADERS = 2  # threads


class KVStoreL2Adapter(L2AdapterInterface):
    """LMCache's second level, in the store.

    An object is a chunk of opaque bytes. Tasks run in threads; each ends with a result and a signal, and what the store
    cannot do is a miss or a store that failed. The store evicts by itself, so that LMCache is told of no capacity.
    """

    def __init__(self, config: Mapping[str, Any], l1_memory_desc: Any = None) -> None:
        """`config` is `adapter_params`. Raises `ConfigError` for options that are wrong."""
        super().__init__()
        del l1_memory_desc  # objects bring their memory along
        self._options = HoldOptions.of(config, "adapter_params")
        self._client = self._options.open()
        self._breaker = Breaker(logger, self._options.retry_s)
        self._specs: set[KVSpec] = set()
        self._specs_lock = threading.Lock()
        numbers = itertools.count()
        self._stores = Tasks[L2StoreResult]("store", 1, create_event_notifier(), numbers)
        self._lookups = Tasks[Bitmap]("lookup", 1, create_event_notifier(), numbers)
        self._loads = Tasks[Bitmap]("load", LOADERS, create_event_notifier(), numbers)

    def get_store_event_fd(self) -> int:
        """Readable when a store has ended."""
        return int(self._stores.event.fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        """Readable when a look-up has ended."""
        return int(self._lookups.event.fileno())

    def get_load_event_fd(self) -> int:
        """Readable when a load has ended."""
        return int(self._loads.event.fileno())

    def submit_store_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        """Begin to store `MemoryObj`s under `ObjectKey`s; objects that are there already count as stored."""
        return self._stores.submit(lambda _: self._store(keys, objects), L2StoreResult(False, 0))

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        """Results of all stores that have ended since the last call."""
        return self._stores.take_all()

    def submit_lookup_and_lock_task(self, keys: Sequence[Any], group_layout_descs: Mapping[int, Any]) -> int:
        """Begin to look for objects. Those found are not evicted for `hold_s`. The layouts are part of what they are
        found by: an object of a group without one is a miss."""
        return self._lookups.submit(lambda found: self._look(keys, group_layout_descs, found), Bitmap(len(keys)))

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        """A bit per key, once; None while the look-up runs."""
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: Sequence[Any]) -> None:
        """Nothing: what a look-up holds ends by itself, since another request may have found the same."""

    def submit_load_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        """Begin to copy objects into the memory of `objects`."""
        return self._loads.submit(lambda loaded: self._load(keys, objects, loaded), Bitmap(len(keys)))

    def query_load_result(self, task_id: int) -> Bitmap | None:
        """A bit per key, once; None while the load runs."""
        return self._loads.take(task_id)

    def delete(self, keys: Sequence[Any]) -> None:
        """Forget objects of any layout that this adapter has seen."""
        with self._specs_lock:
            specs = list(self._specs)

        def forget() -> None:
            for spec in specs:
                gone = [key for key in keys if self._client.delete(spec, [ref_of(key).key])]
                self._notify_keys_deleted(gone, [spec.part_bytes(spec.part(), 1)] * len(gone))

        self._breaker.run(forget, None)

    def report_status(self) -> dict[str, Any]:
        """Whether the store answers, and how often it did not."""
        return {"is_healthy": not self._breaker.down, "type": type(self).__name__, "failures": self._breaker.failures}

    def close(self) -> None:
        """Wait for the tasks that run, and let the store go."""
        for tasks in (self._stores, self._lookups, self._loads):
            tasks.close()
        self._client.close()

    def _store(self, keys: Sequence[Any], objects: Sequence[Any]) -> L2StoreResult:
        stored: list[Any] = []
        sizes: list[int] = []

        def store() -> bool:
            for key, each in zip(keys, objects, strict=True):
                data = np.frombuffer(each.byte_array, np.uint8)
                if self._client.put(self._spec(key, each), ref_of(key), data):
                    stored.append(key)
                    sizes.append(data.nbytes)
            return True

        good = self._breaker.run(store, False)
        if stored:
            self._notify_keys_stored(stored, sizes)
        return L2StoreResult(good, sum(sizes))

    def _look(self, keys: Sequence[Any], descs: Mapping[int, Any], found: Bitmap) -> Bitmap:
        by_spec: dict[KVSpec, list[int]] = {}
        for n, key in enumerate(keys):
            desc = descs.get(key.object_group_id)
            if desc is not None:
                spec = self._known(key, layout_of(desc.shapes, desc.dtypes))
                by_spec.setdefault(spec, []).append(n)

        def look() -> None:
            for spec, numbers in by_spec.items():
                there = self._client.contains(spec, [ref_of(keys[n]) for n in numbers])
                present = [n for n, good in zip(numbers, there, strict=True) if good]
                if hold(self._client, spec, [ref_of(keys[n]).key for n in present], self._options.hold_s):
                    for n in present:
                        found.set(n)

        self._breaker.run(look, None)
        return found

    def _load(self, keys: Sequence[Any], objects: Sequence[Any], loaded: Bitmap) -> Bitmap:
        by_spec: dict[KVSpec, list[int]] = {}
        for n, (key, each) in enumerate(zip(keys, objects, strict=True)):
            by_spec.setdefault(self._spec(key, each), []).append(n)
        came: list[int] = []

        def load() -> None:
            for spec, numbers in by_spec.items():
                wants = [
                    self._client.want(spec, ref_of(keys[n]), np.frombuffer(objects[n].byte_array, np.uint8))
                    for n in numbers
                ]
                for at, outcome in self._client.get_each(spec, wants):
                    if outcome is None:
                        came.append(numbers[at])
                    elif not isinstance(outcome, NotFound | Corrupt):
                        raise outcome

        self._breaker.run(load, None)
        for n in came:
            loaded.set(n)
        if came:
            self._notify_keys_accessed([keys[n] for n in came])
        return loaded

    def _spec(self, key: Any, memory: Any) -> KVSpec:
        return self._known(key, layout_of(memory.get_shapes(), memory.get_dtypes()))

    def _known(self, key: Any, layout: Any) -> KVSpec:
        spec = spec_of(key.model_name, key.object_group_id, layout, self._options.revision)
        with self._specs_lock:
            self._specs.add(spec)
        return spec
