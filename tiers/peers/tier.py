"""Other hosts as a tier: what a directory says that they have, read from their own tiers. Nothing is written there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from kvstore.errors import Closed, KVStoreError, NotFound, StorageError
from kvstore.peer_wire import MOST_NAMES, unpack_row
from kvstore.record import Entry, Record
from kvstore.tiers.base import Name, Speed, Tier, TierFull, check_read
from kvstore.tiers.peers.directory import Directory
from kvstore.tiers.peers.peer import Dialer, Peer
from kvstore.tiers.pool import IoPool
from kvstore.tiers.remote.meter import Meter
from kvstore.tiers.remote.names import pack
from kvstore.tiers.remote.table import LocationTable, Place

ESTIMATE = Speed(1e8, 1e8, 5e-4)  # until it is measured
LEAST_BYTES_PER_S = 8e6
_FORM_BITS = 16
_COUNTED = ("asked", "found", "lost", "errors", "retries", "timeouts")
Found = tuple[Record | Entry, int]


class PeersTier(Tier):
    """Records that other hosts hold in tiers of their own, found by `directory` and reached by `dial`.

    A read may take `deadline_s` and besides the time that its bytes need at 8 MB/s; whatever keeps it from its bytes
    is `NotFound`, a miss. `io_threads` hosts, or reads, are asked at a time. The tier closes the directory with itself.
    """

    kind: ClassVar[str] = "peers"
    persistent = False
    shared: ClassVar[bool] = True
    writable: ClassVar[bool] = False

    def __init__(
        self, directory: Directory, dial: Dialer, *, name: str = "peers", deadline_s: float = 2.0, io_threads: int = 4,
        most_records: int = 1 << 22,
    ) -> None:  # fmt: skip
        self.name, self.directory = name, directory
        self._dial, self._deadline_s = dial, deadline_s
        self._table = LocationTable(0, most_records)
        self._meter = Meter(ESTIMATE.read_bytes_per_s, ESTIMATE.latency_s)
        self._pool = IoPool(io_threads - 1, f"kvstore-{name}")
        self._lock = threading.Lock()
        self._peers: dict[bytes, int] = {}  # the number of each life that is known
        self._numbered: dict[int, Peer] = {}
        self._next = 0
        self._closed = False
        self._told: Callable[[], None] = _nothing
        directory.listen(self._forget_the_gone)

    @property
    def capacity(self) -> int:
        return 0

    @property
    def used(self) -> int:
        return 0

    @property
    def speed(self) -> Speed:
        return self._meter.speed

    @property
    def state(self) -> str:
        return self.directory.state

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        """Not to another host's tiers."""
        del header, payload, record
        raise StorageError(f"tier {self.name} is other hosts' memory: nothing is written there")

    def find(self, names: Sequence[Name], timeout_s: float) -> Sequence[Found | None]:
        """Of each name what another host has, and a location; None for the rest. Hosts are asked at the same time.

        Each record found has a new location, which is the owner's to `evict`.
        """
        self._check_open()
        found: list[Found | None] = [None] * len(names)
        if not self.directory.is_open or not names:
            return found
        deadline = time.monotonic() + timeout_s
        packed = [pack(name) for name in names]
        with self._meter.finding():
            try:
                holders = self.directory.look_up(packed, timeout_s)
            except KVStoreError:
                return found
            self._meter.count("asked", len(names))
            shares: dict[int, list[int]] = {}
            for index, holder in enumerate(holders):
                number = None if holder is None else self._number(*holder)
                if number is not None:
                    shares.setdefault(number, []).append(index)
            batches = [
                (number, share[at : at + MOST_NAMES])
                for number, share in shares.items()
                for at in range(0, len(share), MOST_NAMES)
            ]

            def ask(which: int) -> None:
                number, indices = batches[which]
                self._ask(number, indices, names, packed, found, deadline)

            if batches:
                self._pool.run(len(batches), ask)
        return found

    def _ask(
        self, number: int, indices: Sequence[int], names: Sequence[Name], packed: Sequence[bytes],
        found: list[Found | None], deadline: float,
    ) -> None:  # fmt: skip
        """Ask one host for what it is said to have."""
        peer = self._numbered.get(number)
        if peer is None or not peer.is_up:
            return
        try:
            rows = peer.find([packed[index] for index in indices], max(0.001, deadline - time.monotonic()))
            entries = [unpack_row(row, names[i].key, names[i].part) for row, i in zip(rows, indices, strict=True)]
        except KVStoreError:
            return
        for index, entry in zip(indices, entries, strict=True):
            if entry is None:
                self._meter.count("lost")
                self.directory.lost(packed[index], peer.life)
                continue
            try:
                tag = number << _FORM_BITS | entry.form
                found[index] = entry, self._table.add(packed[index], entry.total_bytes, own=False, tag=tag)
            except TierFull:
                return
            self._meter.count("found")

    def watch_hosts(self, told: Callable[[], None]) -> None:
        """Call `told` when hosts have gone, so that what `is_gone` says of some locations has changed."""
        self._told = told

    def is_gone(self, location: int) -> bool:
        """Whether the host that held a record has no lease any more."""
        place = self._place(location)
        return place is None or place.tag >> _FORM_BITS not in self._numbered

    def tell_used(self, locations: Sequence[int]) -> Sequence[int]:
        """Tell the hosts of records, of a prefix root first, that these were used here; those that are lost there."""
        shares: dict[int, list[tuple[int, bytes]]] = {}
        for location in locations:
            place = self._place(location)
            if place is not None:
                shares.setdefault(place.tag >> _FORM_BITS, []).append((location, place.name))
        lost = []
        for number, share in shares.items():
            peer = self._numbered.get(number)
            for at in range(0, len(share), MOST_NAMES):
                batch = share[at : at + MOST_NAMES]
                lost += self._lost_at(peer, batch)
        return lost

    def _lost_at(self, peer: Peer | None, batch: Sequence[tuple[int, bytes]]) -> list[int]:
        if peer is None or peer.life not in self.directory.alive:
            return [location for location, _ in batch]
        try:
            rows = peer.find([name for _, name in batch], self._deadline_s, used=True)
        except KVStoreError:
            return []
        return [location for (location, _), row in zip(batch, rows, strict=True) if not any(row)]

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        """Fill `out`; `NotFound` where the host has lost the record, or cannot be reached."""
        self._check_open()
        self._read(location, offset, out)

    def read_many(self, requests: Sequence[tuple[int, int, memoryview]]) -> Sequence[Exception | None]:
        self._check_open()
        return self._pool.outcomes(requests, self._read)

    def _read(self, location: int, offset: int, out: memoryview) -> None:
        check_read(offset, out)
        place = self._table.get(location)
        peer = self._numbered.get(place.tag >> _FORM_BITS)
        if peer is None:
            self._meter.count("lost")
            raise NotFound("the host that held this record is gone")
        form, timeout_s = place.tag & ((1 << _FORM_BITS) - 1), self._deadline_s + out.nbytes / LEAST_BYTES_PER_S
        try:
            with self._meter.reading(out.nbytes):
                peer.read(place.name, offset, out.cast("B"), timeout_s, form=form, total=place.nbytes)
        except NotFound:
            self._meter.count("lost")
            self.directory.lost(place.name, peer.life)
            raise
        except KVStoreError as error:
            self._meter.count("lost")
            raise NotFound(f"{peer.where} did not give its record: {error}") from error

    def delete(self, location: int, record_bytes: int) -> None:
        """Forget a location: the record stays where it is, its host's own."""
        del record_bytes
        self._table.remove(location)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            peers = list(self._numbered.values())
        self._pool.close()
        for peer in peers:
            peer.close()
        self.directory.close()

    def stats(self) -> dict[str, float | int | str]:
        """Counters since the tier was opened, and how every host is that was asked for something."""
        told, counts = self._meter.stats(), self._meter.counts()
        times = {name: told[name] for name in told if name.endswith("_s") and not name.startswith("write")}
        states = {peer.where: peer.state for peer in self._living()}
        return {
            "bytes_read": told["bytes_read"],
            "records_read": told["records_read"],
            **{name: counts[name] for name in _COUNTED},
            **times,
            **self.directory.stats(),
            "known_records": self._table.others,
            "peers": len(self.directory.alive),
            "peers_down": sum(state != "ok" for state in states.values()),
            **{f"peer {where}": state for where, state in states.items()},
        }

    def _living(self) -> list[Peer]:
        with self._lock:
            return list(self._numbered.values())

    def _place(self, location: int) -> Place | None:
        try:
            return self._table.get(location)
        except NotFound:
            return None

    def _number(self, life: bytes, where: str) -> int | None:
        """The number of a host's life; None where this host will not dial it."""
        with self._lock:
            known = self._peers.get(life)
            if known is not None or self._closed:
                return known
            try:
                peer = Peer(life, where, self._dial(where), self._meter)
            except KVStoreError:
                self._meter.count("errors")
                return None
            number, self._next = self._next, self._next + 1
            self._peers[life], self._numbered[number] = number, peer
            return number

    def _forget_the_gone(self) -> None:
        """Close what leads to hosts without a lease: what is known of them is a miss from now on."""
        alive = self.directory.alive
        with self._lock:
            gone = [life for life in self._peers if life not in alive]
            peers = [self._numbered.pop(self._peers.pop(life)) for life in gone]
        if peers:
            self._told()
        for peer in peers:
            peer.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"tier {self.name} is closed")


def _nothing() -> None:
    """Where nobody wants to know."""
