"""Loading: what only a slower tier has is brought into DRAM, verified when it arrives.

Requests for the same part in flight share one load. A bad copy is taken out, counted and told as `Corrupt`; the
next reader finds another copy or a miss.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from kvstore import _native
from kvstore.api import Fidelity, Want
from kvstore.backlog import Waiting
from kvstore.catalog import Scope
from kvstore.checked import check_digests, fill_from, groups_of, miss, span, verify_record
from kvstore.core import DRAM, Copy, Core
from kvstore.decoding import check_known
from kvstore.errors import Closed, Corrupt, KVStoreError, NotFound, Shed, SpecMismatch, StorageError
from kvstore.keys import ChunkRef
from kvstore.record import NO_ARTEFACT, RAW, Record, unpack
from kvstore.removed import Removed
from kvstore.spec import Part
from kvstore.writer import Writer

LOAD_PATIENCE_S = 0.25
BAD, GONE = "quarantined", "evicted"  # damaged; lost by a shared tier, or of no use to this host
Result = TypeVar("Result")


class Loader:
    """Brings copies into DRAM, in the caller's thread or beside it, and takes bad ones out."""

    def __init__(self, core: Core, writer: Writer, threads: int) -> None:
        self._core = core
        self._writer = writer
        self._loading: dict[int, Future[None]] = {}
        self._bad: dict[int, str] = {}  # placements to be taken out when their readers let go, and as what
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

    def check(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> str:
        """Read a copy (with a reader on it) against its checksums; what is wrong with it, or nothing.

        One whose bytes are bad is quarantined when its reader lets go.
        """
        core = self._core
        try:
            if copy.tier == DRAM:
                verify_record(core.dram.view(copy.location, 0, copy.total), scope, key, part, core.dram.name)
            else:
                self._fetch(scope, key, part, copy, memoryview(mmap.mmap(-1, copy.total)))
        except (Corrupt, SpecMismatch) as error:
            self._bad[copy.placement] = BAD
            return str(error)
        except StorageError as error:
            return str(error)
        return ""

    def read_whole(self, scope: Scope, key: bytes, part: Part, copy: Copy, memory: memoryview) -> None:
        """Read a whole record (with a reader on it) from a slower tier, verified, as it lies in memory."""
        memory[: copy.header] = self._fetch(scope, key, part, copy, memory).pack()

    def header(self, copy: Copy) -> Record:
        """The header of a copy (with a reader on it), wherever it lies."""
        block, tier = memoryview(bytearray(copy.header)), self._core.tiers[copy.tier]

        def read(location: int) -> Record:
            tier.read_into(location, 0, block)
            return unpack(block)

        return self._wherever(copy, read)

    def finish(self, scope: Scope, key: bytes, part: Part, source: Copy) -> None:
        """Take the reader off a copy, and the copy out if it was found bad."""
        kind = self._bad.pop(source.placement, "")
        self._core.let_go([source])
        if kind:
            self.quarantine(scope, key, part, source, kind)

    def quarantine(self, scope: Scope, key: bytes, part: Part, copy: Copy, kind: str = BAD) -> None:
        """Take a bad copy out; nobody is given it any more, even while somebody still reads it."""
        core, removed = self._core, Removed()
        with core.lock:
            _, row = core.find_part(scope, key, part)
            here = -1 if row < 0 else core.index.find_placement(row, copy.tier)
            if here == copy.placement and core.index.placement(here).loc == copy.location:
                core.condemn(scope, here, removed, kind)
        core.settle(removed)

    def reject(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> None:
        """Take out a copy in DRAM (that nobody holds any more for the caller) which was found bad while it was read.

        Where its bytes are those that were stored, and still cannot be decoded, the other copies cannot be either.
        """
        core, removed = self._core, Removed()
        if copy.form == RAW or self._is_damaged(scope, key, part, copy):
            self.quarantine(scope, key, part, copy)
            return
        with core.lock:
            _, row = core.find_part(scope, key, part)
            for placement in core.index.part_placements(row) if row >= 0 else ():
                if core.index.placement(placement).codec == copy.form:
                    core.condemn(scope, placement, removed)
            core.counters["undecodable"] += 1
        core.settle(removed)

    def _is_damaged(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> bool:
        """Whether a copy in DRAM is not what its checksums say, or is there no more."""
        core = self._core
        with core.lock:
            _, row = core.find_part(scope, key, part)
            here = -1 if row < 0 else core.index.find_placement(row, DRAM)
            if here != copy.placement or core.index.placement(here).loc != copy.location:
                return True
            core.hold(here, scope, part)
        try:
            verify_record(core.dram.view(copy.location, 0, copy.total), scope, key, part, core.dram.name)
        except (Corrupt, SpecMismatch):
            return True
        finally:
            core.let_go([copy])
        return False

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
            self._fetch_layers(scope, want, copy)
            return None
        except KVStoreError as error:
            return error
        finally:
            self.finish(scope, want.ref.key, want.part, copy)

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
                self.finish(scope, key, part, source)
            finally:
                mine.set_exception(shed) if shed is not None else mine.set_result(None)

    def _load(self, scope: Scope, key: bytes, part: Part, source: Copy) -> Copy | None:
        """Bring a copy into DRAM, verified, and hold it there; None if another copy has come there meanwhile."""
        core, tier, removed, placed = self._core, self._core.tiers[source.tier], Removed(), -1
        location = self._writer.allocate(scope.namespace, source.total, LOAD_PATIENCE_S, wait_for_leases=False)
        try:
            memory = core.dram.view(location, 0, source.total)
            record = self._fetch(scope, key, part, source, memory)
            self._check_decodable(record, source)
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

    def _fetch(self, scope: Scope, key: bytes, part: Part, source: Copy, memory: memoryview) -> Record:
        """Read a whole record from a slower tier and verify it; a bad one is noted to be taken out."""
        tier = self._core.tiers[source.tier]

        def read(location: int) -> Record:
            tier.read_into(location, 0, memory)
            return verify_record(memory, scope, key, part, tier.name)

        return self._wherever(source, read)

    def _fetch_layers(self, scope: Scope, want: Want, source: Copy) -> None:
        """Read the layers that are wanted from a slower tier into their destination, and verify them there."""
        if source.form != RAW:
            memory = memoryview(mmap.mmap(-1, source.total))
            self._check_decodable(self._fetch(scope, want.ref.key, want.part, source, memory), source)
            try:
                fill_from(memory, scope, want, source, False, self._core.coder)
            except (Corrupt, SpecMismatch):
                self._bad[source.placement] = BAD
                raise
            return
        tier, layers, start = self._core.tiers[source.tier], *span(scope, want)
        header = memoryview(bytearray(source.header))

        def read(location: int) -> None:
            for failure in tier.read_many([(location, 0, header), (location, source.header + start, want.out)]):
                if failure is not None:
                    raise failure
            groups = groups_of(header, scope, want, layers)
            digests = _native.xxh3_128_many(want.out, groups["offset"] - groups["offset"][0], groups["length"].copy())
            check_digests(digests, groups, want.ref.key, tier.name)

        self._wherever(source, read)

    def _check_decodable(self, record: Record, source: Copy) -> None:
        """Raise `NotFound` for a copy that nobody here can decode, and note it to be taken out: it is a miss.

        In a shared tier it stays for hosts that can.
        """
        try:
            check_known(record.form, record.artefact, self._core.coder.artefacts.get, record.key)
        except NotFound:
            shared = self._core.tiers[source.tier].shared
            self._bad[source.placement] = GONE if shared else BAD
            if shared and record.artefact != NO_ARTEFACT:
                self._core.fetcher.want(record.artefact)
            with self._core.lock:
                self._core.counters["undecodable"] += 1
            raise

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

    def _wherever(self, source: Copy, read: Callable[[int], Result]) -> Result:
        """`read` a record where it lies, again if the tier moves it meanwhile; a bad one is noted to be taken out."""
        location = source.location
        while True:
            try:
                return read(location)
            except KVStoreError as error:
                now = self._location(source)
                if now == location:
                    if isinstance(error, Corrupt | SpecMismatch | NotFound):
                        self._bad[source.placement] = GONE if isinstance(error, NotFound) else BAD
                    with self._core.lock:
                        self._core.counters[f"errors_{self._core.tiers[source.tier].name}"] += 1
                    raise
                location = now  # the tier has moved it to make room: there is another life in the old place

    def _location(self, source: Copy) -> int:
        """Where a placement with a reader on it lies now."""
        with self._core.lock:
            return int(self._core.index.placement(source.placement).loc)

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
