"""`kvstore bench index`: what a million chunks cost before a byte of payload.

Index, policies and the allocator's books are filled exactly as the store fills them when it commits and demotes,
each chunk with a DRAM and an NVMe placement; only the payload is left out. Memory is the process's own, as the
kernel counts it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from kvstore import _native
from kvstore.artefacts import Artefacts
from kvstore.bench.corpus import ref_of
from kvstore.bench.measure import Bar, Row, percentile, rss
from kvstore.catalog import Namespace, Scope
from kvstore.coder import Coder
from kvstore.config import Config, DramConfig
from kvstore.core import DRAM, Core
from kvstore.record import GROUP_DTYPE, Record
from kvstore.removed import Removed
from kvstore.spec import KVSpec
from kvstore.tiers.base import Speed, Tier
from kvstore.tiers.dram import DramTier

MiB = 1 << 20
BYTES_BAR, PAUSE_BAR_S = 400, 0.02
COLLECTIONS = 20
RECORD = 8192
STEP = 10_000


def run(
    *, chunks: int = 1_000_000, soak: int = 1_000_000, advance: Callable[[int], None] = lambda done: None
) -> list[Row]:
    """`metadata-1m` and the soak; `advance` is told how many chunks more are done."""
    books = _Books(chunks)
    try:
        began = rss()
        return [_fill(books, chunks, advance), _soak(books, soak, began, advance)]
    finally:
        books.close()


def _fill(books: _Books, chunks: int, advance: Callable[[int], None]) -> Row:
    """Memory and pauses with every chunk in."""
    gc.collect()
    before, start = rss(), time.perf_counter()
    for first in range(0, chunks, STEP):
        books.insert(range(first, min(first + STEP, chunks)))
        advance(min(STEP, chunks - first))
    insert_s = (time.perf_counter() - start) / chunks
    gc.collect()
    grown = rss() - before
    pauses = _pauses()
    per_chunk, longest = grown / chunks, max(pauses)
    name = "metadata-1m" if chunks == 1_000_000 else f"metadata-{chunks}"
    return {
        "case": name,
        "mode": "dram+nvme",
        "bytes": grown,
        "p50_s": median(pauses),
        "p99_s": percentile(pauses, 0.99),
        "gbps": None,
        "baseline": None,
        "ratio": None,
        "chunks": chunks,
        "placements": books.placements,
        "bytes_per_chunk": per_chunk,
        "longest_pause_s": longest,
        "insert_s": insert_s,
        "bar": f"≤ {BYTES_BAR} bytes a chunk, pause ≤ {PAUSE_BAR_S * 1e3:g} ms",
        "met": per_chunk <= BYTES_BAR and Bar(p50_s=PAUSE_BAR_S).met({"p50_s": longest}),
        "note": f"growth of the resident set; {COLLECTIONS} full garbage collections, their pauses are p50_s",
    }


def _soak(books: _Books, operations: int, began: int, advance: Callable[[int], None]) -> Row:
    """Insert new chunks and evict the coldest, as many as there are: counts stay, memory must not grow.

    Not before so many have gone that policies remember no more of them.
    """
    for first in range(0, books.most, STEP):
        books.churn(min(STEP, books.most - first))
    before, chunks = rss(), books.chunks
    times = []
    for first in range(0, operations, STEP):
        step = min(STEP, operations - first)
        start = time.perf_counter()
        books.churn(step)
        times.append((time.perf_counter() - start) / step)
        advance(step)
    gc.collect()
    growth = rss() - before
    return {
        "case": "soak",
        "mode": "dram+nvme",
        "bytes": growth,
        "p50_s": median(times),
        "p99_s": percentile(times, 0.99),
        "gbps": None,
        "baseline": None,
        "ratio": None,
        "operations": operations,
        "chunks": books.chunks,
        "chunks_before": chunks,
        "growth_bytes": growth,
        "bytes_per_chunk": (before - began) / chunks,
        "bar": "chunks constant, growth ≤ 16 MiB",
        "met": books.chunks == chunks and growth <= 16 * MiB,
        "note": "each operation inserts a chunk in both tiers and evicts the coldest; p50_s: one of them; "
        "bytes_per_chunk with as many that have gone and are remembered",
    }


class _Books:
    """The store's metadata without a store around it."""

    def __init__(self, chunks: int) -> None:
        config = Config(dram=DramConfig(capacity=MiB, extent=MiB), max_chunks=chunks + STEP)
        self._core = Core(config, DramTier(MiB, MiB), [_Weightless()], Coder(config, Artefacts(None, ())))
        self._memory = _native.Allocator((chunks + STEP) * RECORD)
        spec = KVSpec.dense("bench-index", layers=1, kv_heads=1, head_dim=16, chunk_tokens=16)
        namespace = self._core.catalog.add_namespace(Namespace("default"))
        self._scope: Scope = self._core.catalog.scope(namespace, spec)
        self._part = spec.part()
        self._groups: Any = np.zeros(1, GROUP_DTYPE)
        self._next = chunks

    def close(self) -> None:
        """Give the memory back."""
        self._core.dram.close()

    @property
    def most(self) -> int:
        """Chunks that there may be, and that policies remember of those that went."""
        return self._core.config.max_chunks

    @property
    def chunks(self) -> int:
        return self._core.index.counts()[0]

    @property
    def placements(self) -> int:
        return self._core.index.counts()[2]

    def insert(self, seeds: range) -> None:
        """Commit chunks in DRAM, then in NVMe, as a put and a demotion do."""
        core, scope = self._core, self._scope
        for seed in seeds:
            record = self._record(seed)
            with core.lock:
                core.commits.publish(scope, record, DRAM, self._memory.alloc(RECORD), Removed())
            with core.lock:
                core.commits.publish(scope, record, DRAM + 1, seed * RECORD, Removed())

    def churn(self, count: int) -> None:
        """Insert `count` new chunks and evict as many old ones, a few at a time."""
        for first in range(self._next, self._next + count, 100):
            seeds = range(first, min(first + 100, self._next + count))
            self.insert(seeds)
            self._evict(len(seeds))
        self._next += count

    def _evict(self, count: int) -> None:
        core, removed = self._core, Removed()
        with core.lock:
            rows = core.usage.policy(DRAM, self._scope.namespace).victims()
            for _ in range(count):
                core.drop_chunk(next(rows), removed)
        for tier, location, _ in removed.places:
            if tier is core.dram:
                self._memory.free(location, RECORD)

    def _record(self, seed: int) -> Record:
        ref, scope = ref_of(seed, 16), self._scope
        return Record(
            ref.key, ref.parent, scope.spec.digest, scope.namespace.digest, self._part, 0, 16, 1024, 1024,
            self._groups, created_ms=1,
        )  # fmt: skip


class _Weightless(Tier):
    """Stands where the NVMe tier stands and keeps nothing."""

    kind = "nvme"
    persistent = False
    name = "nvme"
    capacity = 1 << 62
    used = 0
    speed = Speed(1e9, 1e9, 1e-4)

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        raise NotImplementedError("this tier keeps no payload")

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        raise NotImplementedError("this tier keeps no payload")

    def delete(self, location: int, record_bytes: int) -> None:
        del location, record_bytes

    def close(self) -> None:
        """Nothing to give back."""


def _pauses() -> list[float]:
    """How long full garbage collections stop everything, with garbage to collect."""
    pauses: list[float] = []
    started = [0.0]

    def watch(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            started[0] = time.perf_counter()
        elif info["generation"] == 2:
            pauses.append(time.perf_counter() - started[0])

    gc.callbacks.append(watch)
    try:
        for _ in range(COLLECTIONS):
            for _ in range(1000):
                cycle: list[Any] = []
                cycle.append(cycle)
            gc.collect()
    finally:
        gc.callbacks.remove(watch)
    return pauses
