"""Loading: what only a slower tier has is brought into DRAM, verified when it arrives.

Requests for the same part in flight share one load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from kvstore.api import Fidelity, Want
from kvstore.backlog import Waiting
from kvstore.catalog import Scope
from kvstore.checked import fill_from, miss
from kvstore.copies import Copies
from kvstore.core import DRAM, Copy, Core
from kvstore.errors import Closed, Corrupt, KVStoreError, NotFound, Shed, SpecMismatch
from kvstore.keys import ChunkRef
from kvstore.removed import Removed
from kvstore.spec import Part
from kvstore.writer import Writer

LOAD_PATIENCE_S = 0.25
Result = TypeVar("Result")


class Loader:
    """Brings copies into DRAM, in the caller's thread or beside it."""

    def __init__(self, core: Core, copies: Copies, writer: Writer, threads: int) -> None:
        self._core = core
        self.copies = copies
        self._writer = writer
        self._loading: dict[int, Future[None]] = {}
        self._pool = ThreadPoolExecutor(threads, "kvstore-load")
        self._ahead = ThreadPoolExecutor(1, "kvstore-prefetch")  # never in front of somebody who waits

    def hold_in_dram(self, scope: Scope, ref: ChunkRef, part: Part, fidelity: Fidelity, *, count: bool = False) -> Copy:
        """A DRAM copy with a reader on it, loaded if need be. `NotFound`, `Corrupt`, `Shed`, `StorageError`.

        With `count` it is a hit or a miss; leave it out where the caller has told of that.
        """
        core, told = self._core, not count
        while True:
            core.check_open()
            with core.lock:
                chunk, placement = self._find(scope, ref, part, fidelity)
                if placement < 0:
                    if not told:
                        core.counters["misses"] += 1
                    raise miss(ref, part)
                row = core.index.placement(placement)
                if not told:
                    core.usage.found_one(scope, chunk, in_dram=row.tier == DRAM)
                    told = True
                if row.tier == DRAM:
                    return core.hold(placement, scope, part)
                self._check_way(row.part, ref)
                joined = self._loading.get(row.part)
                if joined is None:
                    mine: Future[None] = Future()
                    self._loading[row.part] = mine
                    source = core.hold(placement, scope, part)
                    core.loads += 1
                    core.forecasts.began(chunk)
                else:
                    core.counters["loads_joined"] += 1
            if joined is not None:
                joined.result()  # Shed for all who wait; any other end is the loader's to tell: look again
                continue
            waiting = core.backlog.enter(source.tier, source.stored)
            try:
                loaded = self._load_for_all(scope, ref.key, part, source, row.part, mine)
            except (NotFound, Corrupt, SpecMismatch):
                if core.tiers[source.tier].writable:
                    raise
                continue  # another host has lost it, or it came damaged, and is taken out; maybe another tier has it
            finally:
                waiting.leave()
            if loaded is not None:
                return loaded

    def prefetch(self, scope: Scope, keys: Sequence[bytes], fidelity: Fidelity) -> int:
        """Load all parts of chunks in the background; how many chunks were found."""
        return self._load_behind(self._ahead, scope, keys, fidelity)

    def probe(self, scope: Scope, keys: Sequence[bytes], fidelity: Fidelity) -> None:
        """Load chunks as somebody who waits for them would, several at once, to see how long that takes."""
        self._load_behind(self._pool, scope, keys, fidelity)

    def _load_behind(self, pool: ThreadPoolExecutor, scope: Scope, keys: Sequence[bytes], fidelity: Fidelity) -> int:
        found = 0
        for key in keys:
            with self._core.lock:
                chunk = self._core.index.find(scope.number, key)
                parts = [] if chunk < 0 else self._cold_parts(chunk)
            found += chunk >= 0
            for part in parts:
                _submit(pool, self._quietly_load, scope, key, part, fidelity)
        return found

    def submit(self, work: Callable[..., Result], *args: Any) -> Future[Result]:
        """Run a load beside others; `Closed` once the store is."""
        return _submit(self._pool, work, *args)

    def submit_load(self, waiting: Waiting, work: Callable[..., Result], *args: Any) -> Future[Result]:
        """`submit`, of a load that is waited for until its turn comes: from then on it counts by itself."""

        def begin() -> Result:
            waiting.leave()
            return work(*args)

        begun = _submit(self._pool, begin)
        begun.add_done_callback(lambda _: waiting.leave())  # where it was cancelled
        return begun

    def close(self) -> None:
        """Let running loads end and take no more."""
        for pool in (self._ahead, self._pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def read_around(self, scope: Scope, want: Want, fidelity: Fidelity) -> Exception | None:
        """Read past a DRAM that has no room, straight into the destination."""
        core = self._core
        with core.lock:
            _, placement = self._find(scope, want.ref, want.part, fidelity)
            if placement < 0:
                return miss(want.ref, want.part)
            copy = core.hold(placement, scope, want.part)
            core.counters["read_around_dram"] += 1
        try:
            if copy.tier == DRAM:
                return self.fill(scope, want, copy, verify=False)
            self.copies.fetch_layers(scope, want, copy)
            return None
        except KVStoreError as error:
            return error
        finally:
            self.copies.finish(scope, want.ref.key, want.part, copy)

    def fill(self, scope: Scope, want: Want, copy: Copy, verify: bool) -> Exception | None:
        """Copy what is wanted out of a DRAM copy."""
        try:
            memory = self._core.dram.view(copy.location, 0, copy.header + copy.stored)
            fill_from(memory, scope, want, copy, verify, self._core.coder)
        except KVStoreError as error:
            return error
        return None

    def _find(self, scope: Scope, ref: ChunkRef, part: Part, fidelity: Fidelity) -> tuple[int, int]:
        """(chunk row, placement) of what a reader may have, -1 for none. Needs the lock."""
        index = self._core.index
        chunk, row = self._core.find_part(scope, ref.key, part)
        if row < 0:
            return chunk, -1
        known = index.chunk(chunk)
        if (known.position, known.tokens) != (ref.position, ref.tokens):
            return chunk, -1
        return chunk, self._core.best(row, fidelity is Fidelity.EXACT)

    def _load_for_all(
        self, scope: Scope, key: bytes, part: Part, source: Copy, part_row: int, mine: Future[None]
    ) -> Copy | None:
        """Load a part for this reader and those who join; None if it must look again."""
        core, shed = self._core, None
        try:
            return self._load(scope, key, part, source)
        except Shed as error:
            shed = error
            raise
        finally:
            with core.lock:
                # Before the reader goes: with it the part's row may go to another part.
                del self._loading[part_row]
                core.loads -= 1
            try:
                self.copies.finish(scope, key, part, source)
            finally:
                mine.set_exception(shed) if shed is not None else mine.set_result(None)

    def _load(self, scope: Scope, key: bytes, part: Part, source: Copy) -> Copy | None:
        """Bring a copy into DRAM, verified, and hold it there; None if another copy has come there meanwhile."""
        core, tier, removed, placed = self._core, self._core.tiers[source.tier], Removed(), -1
        location = self._writer.allocate(scope.namespace, source.total, LOAD_PATIENCE_S, wait_for_leases=False)
        try:
            memory = core.dram.view(location, 0, source.total)
            record = self.copies.fetch(scope, key, part, source, memory)
            self.copies.check_decodable(record, source)
            memory[: source.header] = record.pack()
            speed = tier.speed  # never with the lock held
            with core.lock:
                core.counters[f"loaded_{tier.name}"] += 1
                core.counters["loaded_bytes"] += record.stored
                placed = core.commits.publish(scope, record, DRAM, location, removed)
                if placed < 0:
                    return None
                if not tier.writable:
                    core.usage.spare(scope.namespace, core.chunk_of(placed))
                core.events.emit("moved", scope.namespace.name, key, scope.spec.digest, part, core.dram.name)
                core.forecasts.ended(core.chunk_of(placed), source.stored, source.tier, speed)
                return core.hold(placed, scope, part)
        finally:
            core.settle(removed)
            if placed < 0:
                core.dram.delete(location, source.total)

    def _check_way(self, part_row: int, ref: ChunkRef) -> None:
        """Raise `Shed` while what is in DRAM of a part cannot make way for another copy. Needs the lock.

        That is a damaged one that is still being read, or a lossy one that is.
        """
        core = self._core
        here = core.index.find_placement(part_row, DRAM)
        if here < 0:
            return
        if here in core.bad:
            raise Shed(f"a damaged copy of chunk {ref.key.hex()} is still being read in DRAM", "leased")
        if core.index.placement(here).readers or core.index.chunk(core.chunk_of(here)).leases:
            raise Shed(f"a lossy copy of chunk {ref.key.hex()} is still being read in DRAM", "leased")

    def _quietly_load(self, scope: Scope, key: bytes, part: Part, fidelity: Fidelity) -> None:
        core = self._core
        with core.lock:
            chunk = core.index.find(scope.number, key)
            if chunk < 0:
                return
            row = core.index.chunk(chunk)
        try:
            copy = self.hold_in_dram(scope, ChunkRef(key, row.parent, row.position, row.tokens), part, fidelity)
        except KVStoreError:
            with core.lock:
                core.counters["prefetch_failed"] += 1
        else:
            core.let_go([copy])

    def _cold_parts(self, chunk: int) -> list[Part]:
        index = self._core.index
        rows = [index.part(row) for row in index.chunk_parts(chunk) if index.find_placement(row, DRAM) < 0]
        return [Part(row.group, row.rank, (row.layer_start, row.layer_end)) for row in rows]


def _submit(pool: ThreadPoolExecutor, work: Callable[..., Result], *args: Any) -> Future[Result]:
    try:
        return pool.submit(work, *args)
    except RuntimeError:  # shut down
        raise Closed("the store is closed") from None
