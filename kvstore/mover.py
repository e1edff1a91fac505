"""The mover: keeps the cold end of DRAM clean, so that room is made by dropping and not by waiting for a disk.

One thread walks the victims of every namespace and writes what only DRAM holds to the NVMe tier, a few at a time,
giving way to loads. It also ends what is past its time: leases, pins by their own clock, chunks by their
namespace's time-to-live.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from kvstore.catalog import Namespace, Scope
from kvstore.core import DRAM, NVME, Copy, Core, Removed, now_ms
from kvstore.errors import Corrupt, Shed, StorageError
from kvstore.spec import Part
from kvstore.tiers.base import TierFull
from kvstore.writer import Writer

TICK_S = 0.25
CLEAN_SHARE = 0.25  # of a namespace's memory is kept clean at its cold end
START_SHARE = 0.5  # of a namespace's memory is in use before that begins
BATCH = 16
GIVE_WAY_S = 0.02


class Mover:
    """Demotes on pressure and ahead of it."""

    def __init__(self, core: Core, writer: Writer, threads: int) -> None:
        self._core = core
        self._writer = writer
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._pressed: set[bytes] = set()
        self._pool = ThreadPoolExecutor(threads, "kvstore-move")
        self._thread = threading.Thread(target=self._run, name="kvstore-mover", daemon=True)

    def start(self) -> None:
        """Begin moving."""
        self._thread.start()

    def wake(self, namespace: Namespace) -> None:
        """Somebody waits for room in a namespace."""
        self._pressed.add(namespace.digest)
        self._wake.set()

    def close(self, flush: bool) -> None:
        """Stop; with `flush`, first write down everything that only DRAM holds, coldest first."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if flush and self._core.nvme is not None:
            for namespace in list(self._core.catalog.namespaces.values()):
                while self._demote(namespace, share=1.0):
                    pass
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            pressed, self._pressed = self._pressed, set()
            self._expire()
            for namespace in list(self._core.catalog.namespaces.values()):
                waiting = namespace.digest in pressed
                if self._core.nvme is not None and (waiting or self._is_filling(namespace)):
                    while not self._stop.is_set() and self._demote(namespace, CLEAN_SHARE):
                        pass
                if waiting and not self._core.dram.owned(namespace.digest):
                    self._give_extent(namespace)
            self._checkpoint()
            with self._core.lock:
                self._core.room.notify_all()

    def _checkpoint(self) -> None:
        nvme = self._core.nvme
        if nvme is not None and nvme.wants_checkpoint:
            try:
                nvme.checkpoint()
            except (StorageError, TierFull):
                with self._core.lock:
                    self._core.counters["checkpoints_failed"] += 1

    def _is_filling(self, namespace: Namespace) -> bool:
        core = self._core
        return core.dram.used > START_SHARE * core.dram.capacity and len(core.policy(DRAM, namespace)) > 0

    def _demote(self, namespace: Namespace, share: float) -> bool:
        """Write down one batch of the coldest dirty parts; whether there was any."""
        dirty = self._coldest_dirty(namespace, share)
        self._give_way()
        moves: list[Future[None]] = [self._pool.submit(self._write_down, *each) for each in dirty]
        for move in moves:
            move.result()
        with self._core.lock:
            self._core.room.notify_all()
        return bool(moves)

    def _coldest_dirty(self, namespace: Namespace, share: float) -> list[tuple[Scope, bytes, Part, Copy]]:
        """Up to a batch of parts that only DRAM holds, each with a reader on it, from the cold `share` of memory."""
        core, found = self._core, list[tuple[Scope, bytes, Part, Copy]]()
        with core.lock:
            index, passed = core.index, 0
            limit = share * core.dram.capacity
            for row in core.policy(DRAM, namespace).victims():
                if passed > limit or len(found) >= BATCH:
                    break
                chunk = index.chunk(row)
                scope = core.catalog.scopes[chunk.scope]
                for placement in core.placements(row, DRAM):
                    place = index.placement(placement)
                    passed += place.stored
                    if index.find_placement(place.part, NVME) >= 0 or place.readers:
                        continue
                    part = index.part(place.part)
                    which = Part(part.group, part.rank, (part.layer_start, part.layer_end))
                    found.append((scope, chunk.key, which, core.hold(placement, scope, which)))
        return found

    def _write_down(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> None:
        core, failure = self._core, ""
        try:
            if self._worth_keeping(scope, key, copy):
                self._writer.persist(scope, copy, patience=2)
            else:
                failure = "dropped_cheaper_to_recompute"
        except (Shed, StorageError):
            failure = "dropped_no_space"
        except Corrupt:
            failure = "dropped_corrupt"
        finally:
            core.let_go([copy])
        if failure:
            self._drop(scope, key, part, copy, failure)

    def _worth_keeping(self, scope: Scope, key: bytes, copy: Copy) -> bool:
        """Whether loading a part back takes less time than prefilling its tokens again."""
        core = self._core
        rate = core.config.prefill_tokens_per_s
        if rate <= 0 or core.nvme is None:
            return True
        with core.lock:
            row = core.index.find(scope.number, key)
            tokens = core.index.chunk(row).tokens if row >= 0 else 0
        speed = core.nvme.speed
        load_s = speed.latency_s + copy.stored * len(scope.parts) / speed.read_bytes_per_s
        return load_s < tokens / rate

    def _drop(self, scope: Scope, key: bytes, part: Part, copy: Copy, reason: str) -> None:
        core, removed = self._core, Removed()
        with core.lock:
            chunk, row = core.find_part(scope, key, part)
            here = -1 if row < 0 else core.index.find_placement(row, DRAM)
            if here == copy.placement and core.index.chunk_evictable(chunk, now_ms()):
                core.counters[reason] += 1
                for placement in list(core.placements(chunk, DRAM)):
                    core.withdraw(scope, placement, removed)
        removed.settle()

    def _give_way(self) -> None:
        """Loads come before stores: wait a moment while some are running."""
        deadline = time.monotonic() + GIVE_WAY_S
        while self._core.loads and time.monotonic() < deadline:
            time.sleep(0.001)

    def _give_extent(self, namespace: Namespace) -> None:
        """Empty the richest namespace's emptiest extent for one that waits and has none."""
        core, removed = self._core, Removed()
        extent = core.dram.donor(namespace.digest)
        if extent is None:
            return
        for move in [self._pool.submit(self._write_down, *each) for each in self._dirty_in(extent)]:
            move.result()
        with core.lock:
            for placement, scope in self._inside(extent):
                if core.index.chunk_evictable(core.index.part(core.index.placement(placement).part).chunk, now_ms()):
                    core.withdraw(scope, placement, removed)
        removed.settle()
        core.dram.replace_extent(extent)

    def _dirty_in(self, extent: int) -> list[tuple[Scope, bytes, Part, Copy]]:
        core, found = self._core, list[tuple[Scope, bytes, Part, Copy]]()
        if core.nvme is None:
            return found
        with core.lock:
            for placement, scope in self._inside(extent):
                place = core.index.placement(placement)
                if core.index.find_placement(place.part, NVME) < 0:
                    part = core.index.part(place.part)
                    which = Part(part.group, part.rank, (part.layer_start, part.layer_end))
                    key = core.index.chunk(part.chunk).key
                    found.append((scope, key, which, core.hold(placement, scope, which)))
        return found

    def _inside(self, extent: int) -> list[tuple[int, Scope]]:
        """Placements that lie in an extent. Needs the lock."""
        core, start, found = self._core, 0, list[tuple[int, Scope]]()
        while start >= 0:
            rows, start = core.index.chunks(start, 10_000)
            for row in rows.tolist():
                scope = core.catalog.scopes[core.index.chunk(row).scope]
                for placement in core.placements(row, DRAM):
                    if core.dram.holds(extent, core.index.placement(placement).loc):
                        found.append((placement, scope))
        return found

    def _expire(self) -> None:
        core, removed, now = self._core, Removed(), now_ms()
        with core.lock:
            core.counters["leases_expired"] += core.leases.expire(now)
            for row in list(core.doomed):
                core.doomed.discard(row)
                core.drop_chunk(row, removed)
            for namespace in core.catalog.namespaces.values():
                if namespace.ttl_s:
                    self._expire_chunks(namespace, now - int(namespace.ttl_s * 1000), removed)
        removed.settle()

    def _expire_chunks(self, namespace: Namespace, before_ms: int, removed: Removed) -> None:
        core = self._core
        for tier in range(len(core.tiers)):
            for row in core.policy(tier, namespace).victims():
                if core.index.chunk(row).last_use >= before_ms:
                    break
                if core.index.chunk_evictable(row, now_ms()):
                    core.drop_chunk(row, removed, "expired")
