"""The mover: keeps the cold end of every tier clean, so that room is made by dropping and not by waiting for a disk.

One thread walks the victims of every namespace in a tier that is filling and writes what the next one lacks there, a
few parts at a time, giving way to loads. It also ends what is past its time: leases, pins by their own clock, chunks by
their namespace's time-to-live; and tells policies now and then what they may fill and what loading costs.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from kvstore.appraisal import appraise
from kvstore.catalog import Namespace, Scope
from kvstore.core import DRAM, Copy, Core
from kvstore.descent import Descent
from kvstore.errors import Corrupt, DeadlineExceeded, KVStoreError, Shed, StorageError, Unavailable
from kvstore.marks import drain_marks
from kvstore.removed import Removed
from kvstore.spec import Part
from kvstore.usage import now_ms, steady_ms

TICK_S = 0.25
APPRAISE_S = 15.0
ROWS_AT_ONCE = 256  # looked at under the lock
CLEAN_SHARE = 0.25  # of a tier is kept clean at its cold end
START_SHARE = 0.5  # of a tier is in use before that begins
ROWS_SCANNED = 8192  # under the lock, some 0.1 ms, for what has not been used for too long
SCANS_A_ROUND = 16
BATCH = 16
GIVE_WAY_S = 0.02
_UNREACHED = "not_demoted_unreachable"
_FAILURES = (
    (Unavailable, _UNREACHED),
    (DeadlineExceeded, _UNREACHED),
    (Shed, "dropped_no_space"),
    (StorageError, "dropped_disk_error"),
    (Corrupt, "dropped_corrupt"),
    (KVStoreError, "dropped_not_writable"),
)
_Dirty: TypeAlias = tuple[Scope, bytes, Part, Copy]


@dataclass
class _Sweep:
    """How far one pass over the cold end of a namespace's chunks in a tier has come.

    `target` is the tier that they are written to.
    """

    tier: int
    target: int
    limit: float
    flush: bool = False
    passed: int = 0
    rows: Iterator[int] | None = None
    done: bool = False


class Mover:
    """Demotes on pressure and ahead of it."""

    def __init__(self, core: Core, descent: Descent, threads: int) -> None:
        self._core = core
        self._descent = descent
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._pressed: set[bytes] = set()
        self._scanned = 0  # the row of the index from which the search for what is too old goes on
        self._appraise_at = 0.0
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
        """Stop; with `flush`, first write down everything that would end with the process, coldest first."""
        core = self._core
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        core.dram.stop_reserving()
        with core.lock:
            core.leases.end_all()
        self._expire()
        if flush and core.persistent is not None:
            volatile = [n for n, tier in enumerate(core.tiers) if tier.writable and not tier.persistent]
            for tier, namespace in itertools.product(volatile, list(core.catalog.namespaces.values())):
                self._demote(namespace, _Sweep(tier, core.persistent, math.inf, flush=True))
        self._pool.shutdown(wait=True)
        self._forget_doomed()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            self._core.shared.beat()
            pressed, self._pressed = self._pressed, set()
            try:
                self._round(pressed)
            except KVStoreError:  # a tier that fails is asked again; nobody else would ever make room
                with self._core.lock:
                    self._core.counters["mover_failures"] += 1
            with self._core.lock:
                self._core.room.notify_all()

    def _round(self, pressed: set[bytes]) -> None:
        core = self._core
        core.loans.sweep()
        core.dram.free_waiting()
        core.admissions.settle()
        self._expire()
        if time.monotonic() >= self._appraise_at:
            appraise(core)
            core.admissions.put_aside()
            self._appraise_at = time.monotonic() + APPRAISE_S
        for namespace in list(core.catalog.namespaces.values()):
            drain_marks(core, namespace)
            waiting = namespace.digest in pressed
            for number in core.down[:-1]:
                tier, target = core.tiers[number], core.next_below(number)
                if not tier.writable or target is None or not core.is_usable(target):
                    continue
                if (waiting and number == DRAM) or self._is_filling(number, namespace):
                    self._demote(namespace, _Sweep(number, target, CLEAN_SHARE * tier.capacity))
            if waiting and not core.dram.owned(namespace.digest):
                self._give_extent(namespace)
        for tier in core.below:
            if tier.wants_checkpoint:
                tier.checkpoint()

    def _is_filling(self, tier: int, namespace: Namespace) -> bool:
        core, there = self._core, self._core.tiers[tier]
        return there.used > START_SHARE * there.capacity and len(core.usage.policy(tier, namespace)) > 0

    def _demote(self, namespace: Namespace, sweep: _Sweep) -> None:
        """Write down what the target lacks of the coldest bytes, once, a batch at a time."""
        while not sweep.done and (sweep.flush or not self._stop.is_set()):
            dirty = self._next_dirty(namespace, sweep)
            if dirty:
                self._give_way()
                self._write_all(dirty, sweep.target)
            with self._core.lock:
                self._core.room.notify_all()

    def _next_dirty(self, namespace: Namespace, sweep: _Sweep) -> list[_Dirty]:
        """Up to a batch of parts that the target lacks, each with a reader on it; looks at some rows and no more.

        One that is being read is left for later (it may be on its way down already), but not by the last flush.
        """
        core, found = self._core, list[_Dirty]()
        with core.lock:
            if sweep.rows is None:
                sweep.rows = core.usage.policy(sweep.tier, namespace).victims()
            for _ in range(ROWS_AT_ONCE):
                sweep.done = sweep.passed > sweep.limit
                if sweep.done or len(found) >= BATCH:
                    break
                row = next(sweep.rows, None)
                if row is None:
                    sweep.done = True
                    break
                if row not in core.doomed:
                    found.extend(self._dirty_parts(row, sweep))
        return found

    def _dirty_parts(self, row: int, sweep: _Sweep) -> Iterator[_Dirty]:
        core, index = self._core, self._core.index
        chunk = index.chunk(row)
        for placement in list(core.placements(row, sweep.tier)):
            place = index.placement(placement)
            sweep.passed += place.stored
            if placement in core.bad or (place.readers and not sweep.flush):
                continue
            if sweep.flush:
                there = core.redundancy.is_kept(place.part, exact=place.exact)
            else:
                there = core.redundancy.has(sweep.target, place.part, exact=place.exact)
            if there or core.redundancy.at_peers([placement]):
                continue
            if sweep.flush or core.admissions.admits(sweep.target, row):
                yield core.hold_part(chunk, placement)

    def _write_all(self, dirty: list[_Dirty], target: int) -> None:
        self._core.shared.beat()  # a round may take long
        for move in [self._pool.submit(self._write_down, *each, target) for each in dirty]:
            move.result()

    def _write_down(self, scope: Scope, key: bytes, part: Part, copy: Copy, target: int) -> None:
        core, failure = self._core, ""
        try:
            if self._worth_keeping(scope, key, copy, target):
                self._descent.write(scope, key, part, copy, target, patience=2)
            else:
                failure = "dropped_cheaper_to_recompute"
        except KVStoreError as error:
            failure = next(reason for kind, reason in _FAILURES if isinstance(error, kind))
        finally:
            self._descent.let_go(scope, key, part, copy)
        if failure == _UNREACHED:
            core.counters[failure] += 1
        elif failure and copy.tier == DRAM:  # it would be in the way for ever; other tiers let go of what is cold
            self._drop(scope, key, part, copy, failure)

    def _worth_keeping(self, scope: Scope, key: bytes, copy: Copy, target: int) -> bool:
        """Whether loading a part back, and decoding it, takes less time than prefilling its tokens again."""
        core = self._core
        with core.lock:
            prefill, row = core.prefills.of(scope), core.index.find(scope.number, key)
            chunk = core.index.chunk(row) if row >= 0 else None
        if prefill is None or chunk is None:
            return True
        recompute_s = prefill.seconds(chunk.position, chunk.position + chunk.tokens)
        speed = core.tiers[target].speed
        share, decode_s = core.coder.cost_in(scope, target)
        byte_s = share / speed.read_bytes_per_s + decode_s
        return bool(speed.latency_s + copy.stored * len(scope.parts) * byte_s < recompute_s)

    def _drop(self, scope: Scope, key: bytes, part: Part, copy: Copy, reason: str) -> None:
        core, removed = self._core, Removed()
        with core.lock:
            chunk, row = core.find_part(scope, key, part)
            here = -1 if row < 0 else core.index.find_placement(row, copy.tier)
            held = core.held(scope.namespace)
            if here == copy.placement:
                last = core.redundancy.only_here(here)
                if core.drop_from(chunk, copy.tier, removed, held) and last:
                    core.counters[reason] += 1
        core.settle(removed)

    def _give_way(self) -> None:
        """Loads come before stores: wait a moment while some are running."""
        deadline = time.monotonic() + GIVE_WAY_S
        while self._core.loads and time.monotonic() < deadline:
            time.sleep(0.001)

    def _give_extent(self, namespace: Namespace) -> None:
        """Empty the richest namespace's emptiest extent for one that waits and has none."""
        core, removed, target = self._core, Removed(), self._core.next_below(DRAM)
        extent = core.dram.donor(namespace.digest)
        if extent is None:
            return
        start = -1 if target is None else 0
        while start >= 0:
            with core.lock:
                rows, start = core.index.chunks(start, ROWS_AT_ONCE)
                inside = [(row, each) for row in rows.tolist() for each in self._inside(row, extent)]
                dirty = [
                    core.hold_part(core.index.chunk(row), each)
                    for row, each in inside
                    if core.redundancy.only_here(each)
                    and each not in core.bad
                    and (target is None or core.admissions.admits(target, row))
                ]
            if target is not None:
                self._write_all(dirty, target)
        start = 0
        while start >= 0:
            with core.lock:
                rows, start = core.index.chunks(start, ROWS_AT_ONCE)
                for row in rows.tolist():
                    if self._inside(row, extent):
                        held = core.held(core.catalog.scopes[core.index.chunk(row).scope].namespace)
                        core.drop_from(row, DRAM, removed, held)
        core.settle(removed)
        if core.dram.replace_extent(extent, namespace.digest):
            core.shared.beat()  # who has it mapped holds its memory

    def _inside(self, row: int, extent: int) -> list[int]:
        """A chunk's placements that lie in an extent. Needs the lock."""
        core = self._core
        return [each for each in core.placements(row, DRAM) if core.dram.holds(extent, core.index.placement(each).loc)]

    def _forget_doomed(self) -> None:
        """At the end: what was deleted under a reader must not come back when the store is opened again."""
        core, removed = self._core, Removed()
        with core.lock:
            for row in list(core.doomed):
                scope = core.catalog.scopes[core.index.chunk(row).scope]
                for placement in list(core.placements(row)):
                    place = core.index.placement(placement)
                    if core.tiers[place.tier].persistent and not place.readers:
                        core.withdraw(scope, placement, removed, "deleted")
        core.settle(removed)

    def _expire(self) -> None:
        core, removed, now = self._core, Removed(), now_ms()
        with core.lock:
            core.counters["leases_expired"] += core.leases.expire(steady_ms())
            for placement in list(core.bad):
                scope = core.catalog.scopes[core.index.chunk(core.chunk_of(placement)).scope]
                core.condemn(scope, placement, removed)
            for row in list(core.doomed):
                core.drop_chunk(row, removed, "deleted")
            limits = [
                int(now - scope.namespace.ttl_s * 1000) if scope.namespace.ttl_s else 0 for scope in core.catalog.scopes
            ]
        for _ in range(SCANS_A_ROUND if any(limits) else 0):
            self._expire_chunks(limits, removed)
            if not self._scanned:
                break
        core.settle(removed)

    def _expire_chunks(self, limits: list[int], removed: Removed) -> None:
        """Let go of what was not used since the limit of its scope (0: none), of some rows of the index."""
        core = self._core
        with core.lock:
            rows, following = core.index.idle_chunks(self._scanned, ROWS_SCANNED, ROWS_AT_ONCE, limits)
            self._scanned = max(following, 0)
            held: dict[Namespace, frozenset[int]] = {}
            for row in rows.tolist():
                namespace = core.catalog.scopes[core.index.chunk(row).scope].namespace
                if namespace not in held:
                    held[namespace] = core.held(namespace)
                if core.may_go(row, held[namespace]):
                    core.drop_chunk(row, removed, "expired")
