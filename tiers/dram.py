"""DRAM: the arena as a tier. What lies here can be read in place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from kvstore import _native
from kvstore.arena import Arena
from kvstore.errors import Closed, Corrupt
from kvstore.hazards import Hazards
from kvstore.record import Record
from kvstore.tiers.base import Speed, Tier, TierFull


class DramTier(Tier):
    """Records in memory that is populated ahead of use, extent by extent, in the background.

    Beyond the interface of a tier it offers `reserve` and `view`, so that bytes are written where they stay and
    read where they lie. `nodes`, `pages` and `lock_memory` are those of `kvstore.arena.Arena`.
    """

    kind: ClassVar[str] = "dram"
    persistent: bool = False

    def __init__(
        self, capacity: int, extent_bytes: int, name: str = "dram", *, nodes: Sequence[int] | None = None,
        pages: str = "auto", lock_memory: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self._arena = Arena(capacity, extent_bytes, nodes=nodes, pages=pages, lock_memory=lock_memory)
        self._lock = self._arena.lock
        self._closed = self._ending = False
        self._speed = Speed(8e9, 8e9, 1e-6)
        self._waiting: list[tuple[int, int]] = []
        self.hazards = Hazards()

    @property
    def capacity(self) -> int:
        return self._arena.capacity

    @property
    def used(self) -> int:
        with self._lock:
            return self._arena.used

    @property
    def speed(self) -> Speed:
        return self._speed

    @property
    def max_record(self) -> int:
        return self._arena.extent_bytes

    def owned(self, namespace: bytes) -> int:
        """Bytes of the extents that belong to a namespace."""
        with self._lock:
            return self._arena.owned(namespace)

    def reserve(self, namespace: bytes, nbytes: int) -> int:
        """Location of `nbytes` bytes of memory for a namespace (its digest), or -1 if there is no room now."""
        with self._lock:
            if self._ending:
                raise Closed("the DRAM tier is closed")
            location = self._arena.alloc(namespace, nbytes)
            if location < 0 and self._waiting:
                self._free_waiting()
                location = self._arena.alloc(namespace, nbytes)
            return location

    def holdings(self, namespace: bytes) -> _native.Holdings:
        """What native code allocates a namespace's memory from."""
        with self._lock:
            return self._arena.holdings(namespace)

    def stop_reserving(self) -> None:
        """From now on memory is given back and no longer handed out: leases end, their readers may not know yet."""
        with self._lock:
            self._ending = True
            self._arena.end()

    def open_extent(self, number: int, namespace: bytes) -> tuple[int, int]:
        """A descriptor of a namespace's extent, which the caller closes, and its size; else `PermissionDenied`."""
        with self._lock:
            return self._arena.open(number, namespace)

    def extents(self, namespace: bytes) -> frozenset[int]:
        """Numbers of the extents that belong to a namespace."""
        with self._lock:
            return self._arena.numbers(namespace)

    def all_extents(self) -> frozenset[int]:
        """Numbers of all extents that there are."""
        with self._lock:
            return self._arena.all_numbers()

    def extent_memory(self, number: int) -> memoryview | None:
        """An extent's memory, which is given back when nothing stands on it any more; None if it is gone."""
        with self._lock:
            return self._arena.memory(number)

    @property
    def extents_epoch(self) -> int:
        """Grows whenever an extent was handed out or destroyed."""
        return self._arena.epoch

    @property
    def is_growing(self) -> bool:
        """Whether extents are still being made."""
        return self._arena.pending

    def wait_for_memory(self, namespace: bytes, seconds: float) -> bool:
        """True if there is an extent for a namespace to take; waits for one that is being made."""
        return self._arena.wait(namespace, seconds)

    def view(self, location: int, start: int, nbytes: int) -> memoryview:
        """Memory of a reserved record, `start` bytes after its beginning."""
        return self._arena.view(location, start, nbytes)

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        location = self.reserve(record.namespace, record.total_bytes)
        if location < 0:
            raise TierFull(f"no room for {record.total_bytes} bytes in {self.name}")
        start = time.perf_counter()
        self.view(location, 0, len(header))[:] = header
        _native.copy(self.view(location, len(header), record.stored), payload[: record.stored])
        zero_padding(self.view(location, 0, record.total_bytes), len(header) + record.stored)
        self._learn(record.stored, time.perf_counter() - start)
        return location

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        if self._closed:
            raise Closed("the DRAM tier is closed")
        source = self.view(location, offset, out.nbytes)
        if len(source) != out.nbytes:
            raise Corrupt(f"{location:#x} is shorter than the {offset + out.nbytes} bytes asked for")
        start = time.perf_counter()
        _native.copy(out, source)
        self._learn(out.nbytes, time.perf_counter() - start)

    def delete(self, location: int, record_bytes: int) -> None:
        """Give a record's memory back, or as soon as nobody reads it any more without having told (`hazards`)."""
        with self._lock:
            if self._closed:
                return
            if self.hazards.holds(self._arena.owner(location), location):
                self._waiting.append((location, record_bytes))
            else:
                self._arena.free(location, record_bytes)

    def free_waiting(self) -> None:
        """Give back the memory of deleted records that is not read any more."""
        if self._waiting:
            with self._lock:
                self._free_waiting()

    def _free_waiting(self) -> None:
        waiting, self._waiting = ([] if self._closed else self._waiting), []
        owners = {self._arena.owner(location) for location, _ in waiting}
        held = frozenset().union(*map(self.hazards.held, owners))
        for location, record_bytes in waiting:
            if location in held:
                self._waiting.append((location, record_bytes))
            else:
                self._arena.free(location, record_bytes)

    @property
    def waiting(self) -> int:
        """Bytes of deleted records that are still being read."""
        return sum(nbytes for _, nbytes in list(self._waiting))

    def donor(self, namespace: bytes) -> int | None:
        """The extent to empty so that a namespace with less memory gets some; None if all have their share."""
        with self._lock:
            return self._arena.donor(namespace)

    def holds(self, extent: int, location: int) -> bool:
        """Whether a record lies in an extent."""
        return self._arena.holds(extent, location)

    def replace_extent(self, extent: int, taker: bytes) -> bool:
        """Destroy an emptied extent and make another for `taker` in the background; False while it is in use."""
        with self._lock:
            return self._arena.replace(extent, taker)

    def stats(self) -> dict[str, float | int | str]:
        """What extents there are, their pages and nodes, and what is still being populated."""
        with self._lock:
            return {**self._arena.stats(), "waiting_bytes": self.waiting}

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = self._ending = True
            self._arena.end()
        self._arena.close()

    def _learn(self, nbytes: int, seconds: float) -> None:
        if nbytes >= 1 << 20 and seconds > 0:
            rate = 0.9 * self._speed.read_bytes_per_s + 0.1 * nbytes / seconds
            self._speed = Speed(rate, rate, self._speed.latency_s)


def zero_padding(record: memoryview, used: int) -> None:
    """Zero what follows the first `used` bytes of a record, so that no old bytes reach a disk or a reader."""
    if used < len(record):
        record[used:] = bytes(len(record) - used)
