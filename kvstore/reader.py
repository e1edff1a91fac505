"""Reading: from DRAM where it lies, from a slower tier by way of DRAM.

Bytes that come from a slower tier are verified once, when they arrive in DRAM. A bad copy is taken out, counted
and told as `Corrupt`; the next reader finds another copy or a miss. Requests for the same part in flight share one
load.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.api import Fidelity, Want
from kvstore.catalog import Scope
from kvstore.codecs import Raw, codec
from kvstore.core import DRAM, Copy, Core, Removed
from kvstore.errors import Closed, Corrupt, InvalidArgument, KVStoreError, NotFound, Shed, SpecMismatch, StorageError
from kvstore.keys import ChunkRef
from kvstore.loan import Loan
from kvstore.places import NOWHERE, pack_items, unpack_places
from kvstore.record import Record, header_length, unpack
from kvstore.spec import Part
from kvstore.writer import Writer

LOAD_PATIENCE_S = 0.25
Result = TypeVar("Result")


class Reader:
    """Finds copies, loads them into DRAM and hands out their bytes."""

    def __init__(self, core: Core, writer: Writer, threads: int) -> None:
        self._core = core
        self._writer = writer
        self._loading: dict[int, Future[None]] = {}
        self._bad: set[int] = set()
        self._pool = ThreadPoolExecutor(threads, "kvstore-load")
        self._ahead = ThreadPoolExecutor(1, "kvstore-prefetch")  # never in front of somebody who waits

    def get(self, scope: Scope, wants: Sequence[Want], fidelity: Fidelity, verify: bool) -> Sequence[Exception | None]:
        """Fill every destination; one outcome each, in order."""
        outcomes = list[Exception | None]([None] * len(wants))
        held, cold = self._hold_all(scope, wants, fidelity, outcomes)
        try:
            loads = [(i, self.submit(self._get_cold, scope, wants[i], fidelity)) for i in cold[1:]]
            for each in held.items:
                outcomes[each.number] = self._fill_held(scope, wants[each.number], each, verify)
        finally:
            self._let_go(held)
        for each in held.items:
            if isinstance(outcomes[each.number], Corrupt | SpecMismatch):
                want = wants[each.number]
                self.quarantine(scope, want.ref.key, want.part, each.copy(scope, want.part))
        for i in cold[:1]:
            outcomes[i] = self._get_cold(scope, wants[i], fidelity)
        for i, load in loads:
            try:
                outcomes[i] = load.result()
            except CancelledError:
                outcomes[i] = Closed("the store was closed before the load began")
        return outcomes

    def get_each(
        self, scope: Scope, wants: Sequence[Want], fidelity: Fidelity, verify: bool
    ) -> Iterator[tuple[int, Exception | None]]:
        """Fill every destination and tell each one's outcome: misses and DRAM copies, then loads as they end."""
        outcomes = list[Exception | None]([None] * len(wants))
        held, cold = self._hold_all(scope, wants, fidelity, outcomes)
        copies, bad, loads = {each.number: each for each in held.items}, list[_Held](), dict[Any, int]()
        try:
            for i in cold:
                loads[self.submit(self._get_cold, scope, wants[i], fidelity)] = i
            for i in sorted({*range(len(wants))}.difference(cold)):
                if i in copies:
                    outcomes[i] = self._fill_held(scope, wants[i], copies[i], verify)
                    if isinstance(outcomes[i], Corrupt | SpecMismatch):
                        bad.append(copies[i])
                yield i, outcomes[i]
            for load in as_completed(loads):
                yield loads[load], load.result()
        except CancelledError:
            raise Closed("the store was closed before the load began") from None
        finally:
            self._let_go(held)
            for each in bad:
                want = wants[each.number]
                self.quarantine(scope, want.ref.key, want.part, each.copy(scope, want.part))
            for load in loads:
                load.cancel()
            wait(loads)  # nobody writes to the destinations once this has ended

    def view(self, scope: Scope, ref: ChunkRef, part: Part) -> StoreView:
        """A part where it lies in DRAM, loaded first if need be."""
        copy = self.hold_in_dram(scope, ref, part, Fidelity.EXACT)
        return StoreView(self._core, copy)

    def prefetch(self, scope: Scope, keys: Sequence[bytes]) -> int:
        """Load all parts of chunks in the background; how many chunks were found."""
        found = 0
        for key in keys:
            with self._core.lock:
                chunk = self._core.index.find(scope.number, key)
                parts = [] if chunk < 0 else self._cold_parts(chunk)
            found += chunk >= 0
            for part in parts:
                _submit(self._ahead, self._quietly_load, scope, key, part)
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
            self._bad.add(copy.placement)
            return str(error)
        except StorageError as error:
            return str(error)
        return ""

    def finish(self, scope: Scope, key: bytes, part: Part, source: Copy) -> None:
        """Take the reader off a copy, and the copy out if it was found bad."""
        bad = source.placement in self._bad
        self._bad.discard(source.placement)
        self._core.let_go([source])
        if bad:
            self.quarantine(scope, key, part, source)

    def quarantine(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> None:
        """Take a bad copy out; nobody is given it any more, even while somebody still reads it."""
        core, removed = self._core, Removed()
        with core.lock:
            _, row = core.find_part(scope, key, part)
            here = -1 if row < 0 else core.index.find_placement(row, copy.tier)
            if here == copy.placement and core.index.placement(here).loc == copy.location:
                core.condemn(scope, here, removed)
        core.settle(removed)

    def close(self) -> None:
        """Let running loads end and take no more."""
        for pool in (self._ahead, self._pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Callable[..., Result], *args: Any) -> Future[Result]:
        """Run a load beside others; `Closed` once the store is."""
        return _submit(self._pool, work, *args)

    def _hold_all(
        self, scope: Scope, wants: Sequence[Want], fidelity: Fidelity, outcomes: list[Exception | None]
    ) -> tuple[_HeldItems, list[int]]:
        """The copies in DRAM, each with a reader on it, and the indexes of what has to be loaded."""
        core, held, cold = self._core, list[_Held](), list[int]()
        core.check_open()
        items = pack_items([(want.ref, want.part) for want in wants])
        with core.lock:
            found = core.find_items(scope, items, fidelity)
            placements = found.placements.tolist()
            for i, place in enumerate(unpack_places(found.places)):
                if place[0] != NOWHERE:
                    held.append(_Held(i, placements[i], *place))
                elif placements[i] >= 0:
                    cold.append(i)
                else:
                    scope.spec.check_part(wants[i].part)
                    outcomes[i] = miss(wants[i].ref, wants[i].part)
            readers = found.placements
            if len(held) < len(wants):
                readers = np.array([each.placement for each in held], np.int64)
            core.count_found(scope, found)
            core.index.add_readers(readers)
        return _HeldItems(held, readers), cold

    def _let_go(self, held: _HeldItems) -> None:
        core = self._core
        with core.lock:
            core.index.drop_readers(held.readers)
            core.room.notify_all()

    def _fill_held(self, scope: Scope, want: Want, held: _Held, verify: bool) -> Exception | None:
        """Copy what is wanted out of a DRAM copy; a whole raw part, which nearly all are, by the shortest way."""
        out = want.out
        if verify or want.layers is not None or held.form or out.nbytes != held.stored or out.readonly:
            return self._fill(scope, want, held.copy(scope, want.part), verify)
        try:
            _native.copy(out, self._core.dram.view(held.location, 0, held.stored))
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

    def _fill(self, scope: Scope, want: Want, copy: Copy, verify: bool) -> Exception | None:
        """Copy what is wanted out of a DRAM copy."""
        try:
            memory = self._core.dram.view(copy.location, 0, copy.header + copy.stored)
            _fill_from(memory, scope, want, copy, verify)
        except KVStoreError as error:
            return error
        return None

    def _get_cold(self, scope: Scope, want: Want, fidelity: Fidelity) -> Exception | None:
        try:
            copy = self.hold_in_dram(scope, want.ref, want.part, fidelity)
        except Shed:
            return self._read_around(scope, want, fidelity)
        except KVStoreError as error:
            return error
        try:
            return self._fill(scope, want, copy, verify=False)
        finally:
            self._core.let_go([copy])

    def hold_in_dram(self, scope: Scope, ref: ChunkRef, part: Part, fidelity: Fidelity) -> Copy:
        """A DRAM copy with a reader on it, loaded if need be. `NotFound`, `Corrupt`, `Shed`, `StorageError`."""
        core = self._core
        while True:
            core.check_open()
            with core.lock:
                _, placement = self._find(scope, ref, part, fidelity)
                if placement < 0:
                    raise miss(ref, part)
                row = core.index.placement(placement)
                if row.tier == DRAM:
                    return core.hold(placement, scope, part)
                if core.index.find_placement(row.part, DRAM) >= 0:
                    raise Shed(f"a damaged copy of chunk {ref.key.hex()} is still being read in DRAM", "leased")
                joined = self._loading.get(row.part)
                if joined is None:
                    mine: Future[None] = Future()
                    self._loading[row.part] = mine
                    source = core.hold(placement, scope, part)
                    core.loads += 1
                else:
                    core.counters["loads_joined"] += 1
            if joined is not None:
                joined.result()  # Shed for all who wait; any other end is the loader's to tell: look again
                continue
            loaded = self._load_for_all(scope, ref.key, part, source, row.part, mine)
            if loaded is not None:
                return loaded

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
            memory[: source.header] = record.pack()
            with core.lock:
                core.counters[f"loaded_{tier.name}"] += 1
                core.counters["loaded_bytes"] += record.stored
                placed = core.publish(scope, record, DRAM, location, removed)
                if placed < 0:
                    return None
                core.events.emit("moved", scope.namespace.name, key, scope.spec.digest, part, core.dram.name)
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
        if source.form != Raw.number:
            raise SpecMismatch(f"form {source.form} cannot be read around DRAM")
        tier, layers, start = self._core.tiers[source.tier], *_span(scope, want)
        header = memoryview(bytearray(source.header))

        def read(location: int) -> None:
            for failure in tier.read_many([(location, 0, header), (location, source.header + start, want.out)]):
                if failure is not None:
                    raise failure
            groups = _groups(header, scope, want, layers)
            digests = _native.xxh3_128_many(want.out, groups["offset"] - groups["offset"][0], groups["length"].copy())
            _check_digests(digests, groups, want.ref.key, tier.name)

        self._wherever(source, read)

    def _wherever(self, source: Copy, read: Callable[[int], Result]) -> Result:
        """`read` a record where it lies, again if the tier moves it meanwhile; a bad one is noted to be taken out."""
        location = source.location
        while True:
            try:
                return read(location)
            except KVStoreError as error:
                now = self._location(source)
                if now == location:
                    if isinstance(error, Corrupt | SpecMismatch):
                        self._bad.add(source.placement)
                    raise
                location = now  # the tier has moved it to make room: there is another life in the old place

    def _location(self, source: Copy) -> int:
        """Where a placement with a reader on it lies now."""
        with self._core.lock:
            return int(self._core.index.placement(source.placement).loc)

    def _read_around(self, scope: Scope, want: Want, fidelity: Fidelity) -> Exception | None:
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
                return self._fill(scope, want, copy, verify=False)
            self._fetch_layers(scope, want, copy)
            return None
        except KVStoreError as error:
            return error
        finally:
            self.finish(scope, want.ref.key, want.part, copy)

    def _quietly_load(self, scope: Scope, key: bytes, part: Part) -> None:
        core = self._core
        with core.lock:
            chunk = core.index.find(scope.number, key)
            if chunk < 0:
                return
            row = core.index.chunk(chunk)
        try:
            copy = self.hold_in_dram(scope, ChunkRef(key, row.parent, row.position, row.tokens), part, Fidelity.LOSSY)
        except KVStoreError:
            with core.lock:
                core.counters["prefetch_failed"] += 1
        else:
            core.let_go([copy])

    def _cold_parts(self, chunk: int) -> list[Part]:
        index = self._core.index
        rows = [index.part(row) for row in index.chunk_parts(chunk) if index.find_placement(row, DRAM) < 0]
        return [Part(row.group, row.rank, (row.layer_start, row.layer_end)) for row in rows]


@dataclass(slots=True)
class _HeldItems:
    """Copies in DRAM and their placements, on each of which there is a reader."""

    items: list[_Held]
    readers: npt.NDArray[np.int64]


class _Held(NamedTuple):
    """The DRAM copy of one item: `location` is that of its payload."""

    number: int
    placement: int
    location: int
    stored: int
    form: int
    first_valid: int

    def copy(self, scope: Scope, part: Part) -> Copy:
        """The whole record."""
        header = scope.header_bytes(part)
        return Copy(self.placement, DRAM, self.location - header, self.stored, self.form, header)


def _submit(pool: ThreadPoolExecutor, work: Callable[..., Result], *args: Any) -> Future[Result]:
    try:
        return pool.submit(work, *args)
    except RuntimeError:  # shut down
        raise Closed("the store is closed") from None


def miss(ref: ChunkRef, part: Part) -> NotFound:
    """What a reader is told of a part that is not there."""
    return NotFound(f"no chunk {ref.key.hex()} of {ref.tokens} tokens at {ref.position} with {part} is stored")


def verify_record(memory: memoryview, scope: Scope, key: bytes, part: Part, where: str) -> Record:
    """Check a whole record in memory: header, identity, every layer group."""
    record = unpack(memory[: header_length(memory)])
    _same(record, scope, key, part)
    if record.total_bytes > len(memory):
        raise Corrupt(f"the record of chunk {key.hex()} says {record.total_bytes} bytes but takes {len(memory)}")
    payload = memory[record.header_bytes : record.header_bytes + record.stored]
    digests = _native.xxh3_128_many(payload, record.groups["offset"].copy(), record.groups["length"].copy())
    _check_digests(digests, record.groups, key, where)
    return record


def _same(record: Record, scope: Scope, key: bytes, part: Part) -> None:
    record.check(key=key, spec=scope.spec.digest, namespace=scope.namespace.digest, part=part)


def _span(scope: Scope, want: Want) -> tuple[tuple[int, int], int]:
    """The layer groups that are wanted and where they begin in the payload. `InvalidArgument` if `out` does not fit."""
    geometry = scope.geometry(want.part, want.ref.tokens)
    count = len(geometry.offsets)
    first, end = want.layers or (0, count)
    if not 0 <= first < end <= count:
        raise InvalidArgument(f"layers {want.layers} are outside the part's {count} layer groups")
    start, nbytes = 0, geometry.nbytes
    if want.layers is not None:
        start = int(geometry.offsets[first])
        nbytes = int(geometry.offsets[end - 1] + geometry.lengths[end - 1]) - start
    if want.out.readonly:
        raise InvalidArgument("the destination is read-only")
    if want.out.nbytes != nbytes:
        raise InvalidArgument(f"the destination has {want.out.nbytes} bytes; what was asked for has {nbytes}")
    return (first, end), start


def _fill_from(memory: memoryview, scope: Scope, want: Want, copy: Copy, verify: bool) -> None:
    """Copy the layers that are wanted out of a record in memory, checking them on the way if asked."""
    layers, start = _span(scope, want)
    source = memory[copy.header + start : copy.header + start + want.out.nbytes]
    if not verify:
        codec(copy.form).decode_into(source, want.out)
        return
    groups = _groups(memory[: copy.header], scope, want, layers)
    offsets = groups["offset"] - groups["offset"][0]
    digests = _native.copy_hash_many(want.out, source, offsets, groups["length"].copy())
    _check_digests(digests, groups, want.ref.key, "dram")


def _groups(header: memoryview, scope: Scope, want: Want, layers: tuple[int, int]) -> npt.NDArray[Any]:
    """The entries of some layer groups in a header that is checked first."""
    record = unpack(header)
    _same(record, scope, want.ref.key, want.part)
    return record.groups[layers[0] : layers[1]]


def _check_digests(digests: npt.NDArray[np.uint8], groups: npt.NDArray[Any], key: bytes, where: str) -> None:
    if not np.array_equal(digests, groups["xxh3"]):
        raise Corrupt(f"the payload of chunk {key.hex()} in {where} does not match its checksums")


class StoreView:
    """Read-only bytes of the arena; see `kvstore.api.View`."""

    def __init__(self, core: Core, copy: Copy) -> None:
        self._core = core
        self._copy: Copy | None = copy
        self._header = core.dram.view(copy.location, 0, copy.header)
        self._loan = Loan(core.dram.view(copy.location, copy.header, copy.stored), readonly=True)

    @property
    def data(self) -> memoryview:
        """The part's bytes, until the view is closed."""
        return self._loan.data

    @property
    def record(self) -> Record:
        """The header of what is viewed."""
        if self._copy is None:
            raise Closed("this view was closed already")
        return unpack(self._header)

    def close(self) -> None:
        """Let the bytes go, as soon as no array stands on them. A second call does nothing."""
        copy, self._copy = self._copy, None
        if copy is not None:
            self._core.end_loan(self._loan, partial(self._core.let_go, [copy]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
