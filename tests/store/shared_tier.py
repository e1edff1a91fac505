"""A stand-in for a place that several hosts share: records in a dictionary, counted, and down on demand."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.errors import NotFound, Unavailable
from kvstore.record import Record, unpack
from kvstore.tiers.base import Name, Speed, Tier


@dataclass
class Place:
    """What all hosts see."""

    records: dict[Name, bytes] = field(default_factory=dict)
    down: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class SharedTier(Tier):
    """One host's way to a `Place`."""

    kind, persistent, shared = "stand-in", True, True

    def __init__(self, place: Place, name: str = "remote", capacity: int = 1 << 30) -> None:
        self.place, self.name, self._capacity = place, name, capacity
        self._numbers = itertools.count()
        self._names: dict[int, Name] = {}
        self.asked = 0
        self.tripped = False

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def used(self) -> int:
        return sum(len(self.place.records.get(name, b"")) for name in self._names.values())

    @property
    def speed(self) -> Speed:
        return Speed(1e8, 1e8, 1e-3)

    @property
    def state(self) -> str:
        if self.tripped and not self.place.down:
            self.tripped = False
        return "down" if self.tripped else "ok"

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        self._reach()
        name = Name(record.namespace, record.spec, record.key, record.part)
        with self.place.lock:
            self.place.records.setdefault(name, header + payload[: record.total_bytes - len(header)])
        return self._number(name)

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        self._reach()
        found = self.place.records.get(self._names[location])
        if found is None:
            raise NotFound("it was evicted there")
        out[:] = found[offset : offset + out.nbytes]

    def find(self, names: Sequence[Name], timeout_s: float) -> Sequence[tuple[Record, int] | None]:
        self.asked += 1
        if self.place.down:
            self.tripped = True
            return [None] * len(names)
        found = [self.place.records.get(name) for name in names]
        return [
            None if each is None else (unpack(memoryview(each)), self._number(name))
            for name, each in zip(names, found, strict=True)
        ]

    def delete(self, location: int, record_bytes: int) -> None:
        self.place.records.pop(self._names.pop(location), None)

    def evict(self, location: int, record_bytes: int) -> None:
        del self._names[location]

    def forget(self, location: int, record_bytes: int) -> None:
        del self._names[location]

    def close(self) -> None:
        self.tripped = True

    def _number(self, name: Name) -> int:
        number = next(self._numbers)
        self._names[number] = name
        return number

    def _reach(self) -> None:
        if self.place.down:
            self.tripped = True
            raise Unavailable("the place is down")


def until(true: object, seconds: float = 30.0) -> None:
    """Wait until a callable says so."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
