"""`KVStoreHiCache`: what SGLang's cache controller calls, from its threads for queries, loads and backups."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
from sglang.srt.observability.metrics_collector import StorageMetrics

from kvstore.connectors.access import Breaker
from kvstore.connectors.sglang._identity import refuse, spec_of
from kvstore.connectors.sglang._options import options_of
from kvstore.connectors.sglang._pages import Page, Pages
from kvstore.connectors.sglang._transfers import Transfers
from kvstore.errors import InvalidArgument

logger = logging.getLogger("kvstore.sglang")


class KVStoreHiCache(HiCacheStorage):
    """HiCache's third level, in the store.

    A page of the host pool is a chunk; its hash, which SGLang chains over the tokens, is made into the chunk's key
    beside the spec. No call raises for what the store does, and after one that failed the store is left alone for a
    while: what cannot be had is a miss.
    """

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        """`storage_config` is a `HiCacheStorageConfig` whose `extra_config` holds our options too.

        Raises `ConfigError` for options that are wrong, and `InvalidArgument` for deployments that are not supported.
        """
        del kwargs  # the factory's, empty in SGLang 0.5
        self._config, self._options = storage_config, options_of(storage_config.extra_config)
        refuse(storage_config, self._options)
        self._client = self._options.open()
        self._breaker = Breaker(logger, self._options.retry_s)
        self._lock = threading.Lock()
        self._metrics = StorageMetrics()
        self._pages: Pages | None = None
        self._transfers: Transfers | None = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Take the host pool, whose shape makes the spec. Raises `InvalidArgument` for pools that are not supported."""
        super().register_mem_pool_host(mem_pool_host)
        pages = Pages(mem_pool_host)
        spec, part = spec_of(self._config, pages, self._options)
        self._pages = pages
        self._transfers = Transfers(self._client, spec, part, self._options.hold_s, self._breaker)
        logger.info(
            "pages of %d tokens, %d bytes, are rank %d of spec %s (%s)",
            pages.tokens,
            spec.part_bytes(part, pages.tokens),
            part.rank,
            spec.digest.hex(),
            spec.revision,
        )

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Pools beside the one for KV hold states or windows, which are not kept: `InvalidArgument`."""
        if str(host_pool_name) != "kv":
            raise InvalidArgument(
                f"models with a host pool of the kind {str(host_pool_name)!r} beside their KV are not supported"
            )

    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """How many pages are there from the first on; for `hold_s` they are not evicted."""
        del extra_info
        return self._ready[1].leading(keys) if keys else 0

    def exists(self, key: str) -> bool:
        """Whether a page is there."""
        return self.batch_exists([key]) == 1

    def batch_get_v1(self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        """Copy pages into the host pool, at `host_indices` (one per token); True for each that has come."""
        del extra_info
        return self._load(keys, self._ready[0].at(host_indices, len(keys)))

    def batch_set_v1(self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        """Store pages of the host pool; True for each that is stored, or that another rank stores."""
        del extra_info
        return self._save(keys, self._ready[0].at(host_indices, len(keys)))

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        """Copy a page into `target_location`, a flat tensor of a page in the pool's order; None on a miss."""
        return self.batch_get([key], [target_location], target_sizes)[0]

    def batch_get(
        self, keys: Sequence[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """`get` for many: None from the first miss on."""
        del target_sizes
        pages = self._ready[0]
        targets = [pages.empty() if each is None else each for each in target_locations or [None] * len(keys)]
        loaded = self._load(keys, [pages.flat(target) for target in targets])
        return [target if good else None for target, good in zip(targets, loaded, strict=True)]

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Store a page given as a tensor in the pool's order."""
        return self.batch_set([key], [value], [target_location], target_sizes)

    def batch_set(
        self, keys: Sequence[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """`set` for many; whether all of them are stored."""
        del target_locations, target_sizes
        if values is None or len(values) != len(keys) or any(value is None for value in values):
            raise InvalidArgument(f"{len(keys)} pages need a tensor each as their values")
        return all(self._save(keys, [self._ready[0].flat(value.contiguous()) for value in values]))

    def clear(self) -> None:
        """Forget the pages of this spec, of all its ranks."""
        self._ready[1].clear()

    def get_stats(self) -> StorageMetrics:
        """Pages and GB/s of each call since the last time, for SGLang's Prometheus metrics."""
        with self._lock:
            taken, self._metrics = self._metrics, StorageMetrics()
        return taken

    def close(self) -> None:
        """Let the store go."""
        self._client.close()

    @property
    def _ready(self) -> tuple[Pages, Transfers]:
        if self._pages is None or self._transfers is None:
            raise InvalidArgument("no host pool yet: call register_mem_pool_host first")
        return self._pages, self._transfers

    def _load(self, keys: Sequence[str], pages: Sequence[Page]) -> list[bool]:
        return self._timed(self._ready[1].load, keys, pages, "prefetch")

    def _save(self, keys: Sequence[str], pages: Sequence[Page]) -> list[bool]:
        if not self._config.is_storage_writer:  # MLA: every rank holds the same, the first one stores it
            return [True] * len(keys)
        return self._timed(self._ready[1].save, keys, pages, "backup")

    def _timed(
        self,
        move: Callable[[Sequence[str], Sequence[Page]], list[bool]],
        keys: Sequence[str],
        pages: Sequence[Page],
        what: str,
    ) -> list[bool]:
        began = time.perf_counter()
        done = move(keys, pages)
        seconds, count = time.perf_counter() - began, int(np.count_nonzero(done))
        if count:
            with self._lock:
                getattr(self._metrics, f"{what}_pgs").append(count)
                getattr(self._metrics, f"{what}_bandwidth").append(count * pages[0].nbytes / seconds / 1e9)
        return done
