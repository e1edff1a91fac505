"""The remote tier: records in a place that hosts share, behind deadlines, retries, a circuit breaker and hedged reads.

An object is a whole record, its padding included, under a name that every host derives alike. What a host has
written another finds (`find`); what was there first stays, and the second writer takes it over.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from kvstore.errors import (
    Closed,
    ConfigError,
    DeadlineExceeded,
    InvalidArgument,
    KVStoreError,
    NotFound,
    TooLarge,
    Unavailable,
)
from kvstore.record import BLOCK, Record, padded
from kvstore.spec import KVSpec
from kvstore.tiers.base import Name, Present, Recovered, Speed, Tier, TierFull, check_read
from kvstore.tiers.pool import IoPool
from kvstore.tiers.remote.artefacts import SharedArtefacts
from kvstore.tiers.remote.attempts import Attempts
from kvstore.tiers.remote.breaker import Breaker, Circuit
from kvstore.tiers.remote.catalog import Catalog, heads, recover, verified
from kvstore.tiers.remote.deletions import Deletions
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.hedge import Hedge
from kvstore.tiers.remote.ledger import NO_SLOT, Ledger
from kvstore.tiers.remote.meter import Meter
from kvstore.tiers.remote.misses import RecentMisses
from kvstore.tiers.remote.names import object_name, pack
from kvstore.tiers.remote.owned import recover_owned
from kvstore.tiers.remote.table import LocationTable, is_own

MIB = 1 << 20
PROBE_S = 1.0
ESTIMATE = Speed(1e9, 1e9, 2e-4)  # until it is measured
_ROUNDS = 3  # of writing where another's record was there and went
_ZEROS = memoryview(bytes(BLOCK))
_SAME_FORM = (
    "form", "level", "exact", "artefact", "stored", "logical", "header_bytes", "position", "tokens", "first_valid",
)  # fmt: skip


class RemoteTier(Tier):
    """Records in what an `engine` keeps. The tier closes the engine, and the ledger, with itself.

    `capacity` bounds the bytes that this host has there: what it writes, and what its `ledger` says that it wrote
    before. Without a ledger that is all that lies there when it opens, up to `recover_records` records (0: none; hosts
    that share a place recover nothing, or each counts all of it). What look-ups find of others does not count, and
    `evict` leaves it there.

    A call may take `deadline_s` and besides the time that its bytes need at `least_bytes_per_s`; it is tried `tries`
    times where its connection fails. `io_threads` reads of one `read_many` are in flight. `hedge` sends second reads
    where an answer is late. A name that was not there is not asked for again for `miss_s`. `most_records` bounds the
    locations (96 bytes each). Raises `ConfigError` for numbers that cannot work.
    """

    kind: ClassVar[str] = "remote"
    persistent: bool = True
    shared: ClassVar[bool] = True

    def __init__(
        self, engine: Engine, *, capacity: int, name: str = "remote", deadline_s: float = 5.0,
        least_bytes_per_s: float = 8e6, tries: int = 3, io_threads: int = 4, hedge: bool = False, miss_s: float = 0.5,
        recover_records: int = 1_000_000, most_records: int = 1 << 22, estimate: Speed = ESTIMATE,
        ledger: Ledger | None = None,
    ) -> None:  # fmt: skip
        _check(capacity, deadline_s, least_bytes_per_s, tries, io_threads)
        self.name, self.engine = name, engine
        self._deadline_s, self._least_bytes_per_s = deadline_s, least_bytes_per_s
        self._recover_records, self._ledger = recover_records, ledger
        self._table = LocationTable(capacity, most_records)
        self._misses = RecentMisses(miss_s)
        self._meter = Meter(estimate.read_bytes_per_s, estimate.latency_s)
        self._deletions = Deletions(
            lambda names: engine.delete([object_name(each) for each in names], deadline_s), self._free, self._meter
        )
        self._breaker = Breaker(name, lambda: engine.probe(PROBE_S), self._deletions.do)
        self._attempts = Attempts(self._breaker, self._meter, tries)
        self._catalog = Catalog(engine, self._attempts, deadline_s)
        self._artefacts = SharedArtefacts(engine, self._attempts, deadline_s, least_bytes_per_s)
        self._pool = IoPool(io_threads - 1, f"kvstore-{name}")
        self._hedge = Hedge(name, self._meter, 2 * io_threads) if hedge else None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def capacity(self) -> int:
        return self._table.capacity

    @property
    def used(self) -> int:
        return self._table.used

    @property
    def written_bytes(self) -> int:
        return self._meter.writes.nbytes

    @property
    def speed(self) -> Speed:
        return self._meter.speed

    @property
    def state(self) -> str:
        return self._breaker.state

    def recover(self) -> Recovered:
        """What the ledger has, or else what the place holds, by listing it. Payload is not verified here."""
        self._check_open()
        if self._ledger is not None:
            return recover_owned(self.engine, self._attempts, self._table, self._ledger, self._deadline_s)
        if not self._recover_records:
            return Recovered(notes=(f"what this host writes to {self.name} is not known to it after a restart: no "
                                    "folder is given for its ledger",))  # fmt: skip
        return recover(
            self.engine, self._attempts, self._catalog, self._table, self._meter, self._recover_records,
            self._deadline_s,
        )  # fmt: skip

    def describe(self, namespace: str, spec: KVSpec) -> None:
        self._check_open()
        self._catalog.describe(namespace, spec)
        if self._ledger is not None:
            self._ledger.describe(namespace, spec)

    def keep_artefact(self, digest: bytes, data: bytes) -> None:
        self._check_open()
        self._artefacts.keep(digest, data)

    def fetch_artefact(self, digest: bytes) -> bytes:
        self._check_open()
        return self._artefacts.fetch(digest)

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        """Keep a record and return its location.

        Where a record of its name and form lies there already, that one counts, whose bytes may be others. Raises
        `Present` where its form is another, `TierFull` where this host's share or the place itself is full,
        `Unavailable`, `DeadlineExceeded`, and `TooLarge` for a record longer than `max_record`.
        """
        self._check_open()
        stored, total = record.stored, len(header) + padded(record.stored)
        if payload.nbytes < stored or not payload.c_contiguous:
            raise InvalidArgument(f"a record of {stored} bytes needs as many in one piece, not {payload.nbytes}")
        if total > self.max_record:
            raise TooLarge(f"a record of {total} bytes; tier {self.name} takes {self.max_record} at most")
        name = pack(Name(record.namespace, record.spec, record.key, record.part))
        body = payload.cast("B")[:stored]
        pieces = [memoryview(header), body, _ZEROS[: padded(stored) - stored]]
        self._reserve(total)
        entered = False
        try:
            own, slot = self._put_noted(name, pieces, record, total)
            location = self._table.add(name, total, own=own, reserved=total, tag=slot)
            entered = True
        finally:
            if not entered:
                self._table.unreserve(total)
        self._misses.discard(name)
        self._deletions.written(name, own=own)
        return location

    def _put_noted(self, name: bytes, pieces: Sequence[memoryview], record: Record, total: int) -> tuple[bool, int]:
        """`_put`, noted in the ledger before and after; whether the object is this host's, and its slot there."""
        ledger = self._ledger
        if ledger is None:
            return self._put(name, pieces, record, total), NO_SLOT
        slot = ledger.intend(record, pieces[0])
        try:
            own = self._put(name, pieces, record, total)
        except (Unavailable, DeadlineExceeded):  # it may be there
            ledger.doubt(slot)
            raise
        except BaseException:
            ledger.free(slot)
            raise
        if own:
            ledger.keep(slot)
            return True, slot
        ledger.free(slot)
        return False, NO_SLOT

    def _free(self, slot: int) -> None:
        if self._ledger is not None:
            self._ledger.free(slot)

    def _put(self, name: bytes, pieces: Sequence[memoryview], record: Record, total: int) -> bool:
        """Write an object, or take over what is there: whether it is this host's."""
        called, timeout_s = object_name(name), self._timeout(total)
        for _ in range(_ROUNDS):
            with self._meter.writing(total) as written:
                try:
                    new = self._attempts.run(lambda left: self.engine.put(called, pieces, left), timeout_s)
                except TierFull:
                    self._meter.count("full")
                    raise
                if not new:
                    written.nothing()
            if new:
                return True
            head = heads(self.engine, self._attempts, [name], self._deadline_s)[0]
            if head is None:
                continue  # it went between the two calls
            if head == pieces[0]:
                return True  # an earlier try of this very write, whose answer was lost
            there = verified(head, Name(record.namespace, record.spec, record.key, record.part))
            if there is None:
                self._meter.count("damaged")
                self._attempts.run(lambda left: self.engine.delete([called], left), self._deadline_s)
                continue
            self._meter.count("already_there")
            if any(getattr(there, each) != getattr(record, each) for each in _SAME_FORM):
                raise Present(f"another form of the record of key {record.key.hex()} is in {self.name}", there)
            return False
        raise TierFull(f"others write and delete the record of key {record.key.hex()} in {self.name} all the time")

    def _reserve(self, total: int) -> None:
        try:
            self._table.reserve(total)
        except TierFull:
            self._meter.count("full")
            raise

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        """Fill `out`; `NotFound` where the place has lost the record, `Unavailable` at once while it is down."""
        self._check_open()
        self._read(location, offset, out)

    def read_many(self, requests: Sequence[tuple[int, int, memoryview]]) -> Sequence[Exception | None]:
        self._check_open()
        return self._pool.outcomes(requests, self._read)

    def _read(self, location: int, offset: int, out: memoryview) -> None:
        check_read(offset, out)
        place = self._table.get(location)
        if not out.nbytes:
            return
        read, timeout_s = partial(self._fetch, object_name(place.name), offset), self._timeout(out.nbytes)
        try:
            with self._meter.reading(out.nbytes):
                if self._hedge is None:
                    read(out.cast("B"), timeout_s)
                else:
                    self._hedge.read(read, out.cast("B"), timeout_s)
        except NotFound:
            self._meter.count("lost")
            raise

    def _fetch(self, called: str, offset: int, out: memoryview, within_s: float) -> None:
        self._attempts.run(lambda left: self.engine.read_into(called, offset, out, left), within_s)

    def find(self, names: Sequence[Name], timeout_s: float) -> Sequence[tuple[Record, int] | None]:
        """Of each name the record that is there, whoever wrote it, and a location; None for the rest.

        While the place is down, and for names that were missing a moment ago, that costs no call. Each record found
        has a new location, which is the owner's to `evict`.
        """
        self._check_open()
        found: list[tuple[Record, int] | None] = [None] * len(names)
        if self._breaker.circuit is not Circuit.CLOSED:
            return found
        packed = [pack(name) for name in names]
        asked = [index for index, name in enumerate(packed) if name not in self._misses]
        self._meter.count("not_asked", len(names) - len(asked))
        if not asked:
            return found
        try:
            with self._meter.finding():
                wanted = [packed[index] for index in asked]
                answers = heads(self.engine, self._attempts, wanted, timeout_s, lookup=True)
        except KVStoreError:
            return found
        self._meter.count("asked", len(asked))
        for index, head in zip(asked, answers, strict=True):
            found[index] = self._found(names[index], packed[index], head)
        return found

    def _found(self, name: Name, packed: bytes, head: bytes | None) -> tuple[Record, int] | None:
        record = None if head is None else verified(head, name)
        if record is None:
            self._misses.add(packed)
            if head is not None:
                self._meter.count("damaged")
            return None
        try:
            location = self._table.add(packed, record.total_bytes, own=False)
        except TierFull:
            return None
        self._meter.count("found")
        return record, location

    def delete(self, location: int, record_bytes: int) -> None:
        """Remove a record from the place, whoever wrote it; one that is gone already is no error.

        While the place is down its deletion waits for it, up to 4096 of them; then nothing is raised either.
        """
        del record_bytes
        self._check_open()
        place = self._table.remove(location)
        if place is None:
            return
        called = object_name(place.name)
        try:
            self._attempts.run(lambda left: self.engine.delete([called], left), self._deadline_s)
        except KVStoreError:
            self._deletions.delay(place.name, place.tag)
        else:
            self._free(place.tag)

    def owns(self, location: int) -> bool:
        return is_own(location)

    def evict(self, location: int, record_bytes: int) -> None:
        if is_own(location):
            self.delete(location, record_bytes)
        else:
            self.forget(location, record_bytes)

    def forget(self, location: int, record_bytes: int) -> None:
        del record_bytes
        place = self._table.remove(location)
        if place is not None and self._ledger is not None:
            self._ledger.doubt(place.tag)

    def put_aside(self, name: str, data: bytes) -> None:
        """Beside the ledger, which is not shared; not at all where there is none."""
        if self._ledger is not None:
            self._ledger.catalog.put_aside(name, data)

    def recall(self, name: str) -> Sequence[bytes]:
        return () if self._ledger is None else self._ledger.catalog.recall(name)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._breaker.close()
        self._pool.close()
        if self._hedge is not None:
            self._hedge.close()
        self.engine.close()
        if self._ledger is not None:
            self._ledger.close()

    def stats(self) -> dict[str, float | int | str]:
        """Counters since the tier was opened, what it knows now, and how the place is."""
        return {
            **self._meter.stats(),
            "engine": self.engine.kind,
            "live_bytes": self._table.used,
            "live_records": self._table.own,
            "others_records": self._table.others,
            "breaker": self._breaker.circuit.value,
            "breaker_opened": self._breaker.opened,
            "probes": self._breaker.probes,
            **({} if self._ledger is None else {"ledger": self._ledger.state}),
        }

    def _timeout(self, nbytes: int) -> float:
        return self._deadline_s + nbytes / self._least_bytes_per_s

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"tier {self.name} is closed")


def _check(capacity: int, deadline_s: float, least_bytes_per_s: float, tries: int, io_threads: int) -> None:
    for name, value in (
        ("capacity", capacity), ("deadline_s", deadline_s), ("least_bytes_per_s", least_bytes_per_s), ("tries", tries),
        ("io_threads", io_threads),
    ):  # fmt: skip
        if value <= 0:
            raise ConfigError(f"{name} of a remote tier must be more than 0, not {value}")
