"""Locations: which record a number of the tier stands for, 96 bytes a record and no Python object for any."""

from __future__ import annotations

import struct
import threading
from typing import NamedTuple

from kvstore.errors import NotFound
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.names import PACKED_BYTES

_ROW = struct.Struct(f"<{PACKED_BYTES}sQQIB3x")  # name, bytes, tag (if free: next free row + 1), generation, state
_SEGMENT_ROWS = 1 << 14
_ROW_BITS = 32
_GENERATIONS = 1 << 30
_OWN_BIT = 1 << 62
_FREE, _OTHERS, _OWN = 0, 1, 2


class Place(NamedTuple):
    """What is known of a location. `own`: this host wrote it, or opened the place with it, so it counts as used.

    `tag` is the tier's own.
    """

    name: bytes
    nbytes: int
    own: bool
    tag: int = 0


def is_own(location: int) -> bool:
    """Whether a location is of a record that this host wrote, or opened the place with."""
    return bool(location & _OWN_BIT)


class LocationTable:
    """Numbers for packed names. A number is never handed out twice in 2³⁰ lives of its row, and says whose it is.

    `capacity` bounds the bytes of own records, those that are being written (`reserve`) included, and `most` the rows.
    """

    def __init__(self, capacity: int, most: int) -> None:
        self.capacity, self._most = capacity, most
        self._lock = threading.Lock()
        self._segments: list[bytearray] = []
        self._rows = self._free = 0  # rows ever made; the first free one + 1
        self._reserved = 0
        self.used = self.own = self.others = 0

    def reserve(self, nbytes: int) -> None:
        """Set room aside for a record that is about to be written. `TierFull`."""
        with self._lock:
            if self.used + self._reserved + nbytes > self.capacity:
                raise TierFull(f"no room for {nbytes} bytes: {self.used} of {self.capacity} are used")
            self._reserved += nbytes

    def unreserve(self, nbytes: int) -> None:
        """Give back what `reserve` set aside for a record that was not entered."""
        with self._lock:
            self._reserved -= nbytes

    def add(self, name: bytes, nbytes: int, *, own: bool, reserved: int = 0, tag: int = 0) -> int:
        """A location for a record, for which so many bytes were set aside. `TierFull` if no row is left."""
        with self._lock:
            row = self._take_row()
            self._reserved -= reserved
            segment, at = self._where(row)
            _, _, _, generation, _ = _ROW.unpack_from(segment, at)
            _ROW.pack_into(segment, at, name, nbytes, tag, generation, _OWN if own else _OTHERS)
            if own:
                self.used += nbytes
                self.own += 1
            else:
                self.others += 1
            return (_OWN_BIT if own else 0) | int(generation) << _ROW_BITS | row

    def get(self, location: int) -> Place:
        """What lies at a location; `NotFound` if it was removed."""
        with self._lock:
            place = self._at(location)
        if place is None:
            raise NotFound(f"nothing is known of location {location:#x} (any more)")
        return place

    def remove(self, location: int) -> Place | None:
        """Forget a location; what it was, None if nothing."""
        with self._lock:
            place = self._at(location)
            if place is None:
                return None
            row = location & ((1 << _ROW_BITS) - 1)
            segment, at = self._where(row)
            generation = _generation(location) + 1
            _ROW.pack_into(segment, at, b"", 0, self._free, generation % _GENERATIONS, _FREE)
            self._free = row + 1
            if place.own:
                self.used -= place.nbytes
                self.own -= 1
            else:
                self.others -= 1
            return place

    def _at(self, location: int) -> Place | None:
        row = location & ((1 << _ROW_BITS) - 1)
        if location < 0 or row >= self._rows:
            return None
        segment, at = self._where(row)
        name, nbytes, tag, generation, state = _ROW.unpack_from(segment, at)
        if state == _FREE or generation != _generation(location):
            return None
        return Place(name, nbytes, state == _OWN, tag)

    def _take_row(self) -> int:
        if self._free:
            row = self._free - 1
            segment, at = self._where(row)
            self._free = _ROW.unpack_from(segment, at)[2]
            return row
        if self._rows >= self._most:
            raise TierFull(f"{self._most} records are known, and that is as many as there may be")
        if self._rows == len(self._segments) * _SEGMENT_ROWS:
            self._segments.append(bytearray(_SEGMENT_ROWS * _ROW.size))
        self._rows += 1
        return self._rows - 1

    def _where(self, row: int) -> tuple[bytearray, int]:
        number, index = divmod(row, _SEGMENT_ROWS)
        return self._segments[number], index * _ROW.size


def _generation(location: int) -> int:
    return (location & ~_OWN_BIT) >> _ROW_BITS
