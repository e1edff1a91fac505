"""Walking a segment's records by their headers: to find what no journal tells of, and to make room.

Only a header that is sealed for this life of this place counts, so neither records of an earlier life nor bytes
inside a payload are taken for one.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kvstore import _native
from kvstore.errors import Corrupt
from kvstore.record import BLOCK, MAGIC, Record, header_length, sealed_at, unpack
from kvstore.tiers.nvme.location import life_key, locate

_WINDOW = 4 << 20
_SMALL = 256 << 10
_MAGIC = np.frombuffer(MAGIC, "<u4")[0]
Read = Callable[[int, memoryview], None]


class SegmentScan:
    """Records of one life of a segment, found through `read(offset, out)`; offsets are multiples of 4096."""

    def __init__(self, read: Read, number: int, generation: int) -> None:
        self._read, self._generation = read, generation
        self._key = life_key(number, generation)
        self._buffer = memoryview(mmap.mmap(-1, _WINDOW))
        self._start = self._end = 0
        self._ahead = _SMALL

    def find(self, gaps: Sequence[tuple[int, int]]) -> Iterator[tuple[Record, int]]:
        """(record, location) of all whole records in the gaps, their payload verified; searches block by block."""
        for start, end in gaps:
            at = start
            while at < end:
                record = self._record_at(at, end)
                if record is not None and self._payload_matches(record, at):
                    yield record, locate(self._key, at)
                    at += record.total_bytes
                else:
                    at = self._next_magic(at + BLOCK, end)

    def walk(self, end: int) -> Iterator[tuple[Record, int]]:
        """(record, location) of the records up to `end`, payload not looked at; a bad header is searched past."""
        at = BLOCK
        while at < end:
            record = self._record_at(at, end)
            if record is None:
                at = self._next_magic(at + BLOCK, end)
                continue
            yield record, locate(self._key, at)
            at += record.total_bytes
            self._ahead = _SMALL if record.total_bytes < _SMALL // 2 else BLOCK  # others are like it

    def _record_at(self, at: int, end: int) -> Record | None:
        try:
            length = header_length(self._view(at, BLOCK, end))
            if at + length > end or not sealed_at(self._view(at, BLOCK, end), self._generation, locate(self._key, at)):
                return None
            record = unpack(self._view(at, length, end))
        except Corrupt:
            return None
        return record if at + record.total_bytes <= end else None

    def _payload_matches(self, record: Record, at: int) -> bool:
        start, groups = at + record.header_bytes, record.groups
        if start + record.stored <= self._end or record.total_bytes <= _WINDOW:
            payload = self._view(at, record.total_bytes, at + record.total_bytes)[record.header_bytes :]
        else:
            payload = memoryview(mmap.mmap(-1, record.total_bytes - record.header_bytes))
            self._read(start, payload)
        found = _native.xxh3_128_many(payload, groups["offset"].copy(), groups["length"].copy())
        return bool(np.array_equal(found, groups["xxh3"]))

    def _next_magic(self, at: int, end: int) -> int:
        """The first block from `at` on that begins like a header; `end` if there is none."""
        while at < end:
            self._view(at, BLOCK, end, ahead=_WINDOW)
            stop = min(self._end, end)
            blocks = np.frombuffer(self._buffer[at - self._start : stop - self._start], "<u4")[:: BLOCK // 4]
            found = np.flatnonzero(blocks == _MAGIC)
            if len(found):
                return at + int(found[0]) * BLOCK
            at = stop
        return end

    def _view(self, at: int, nbytes: int, end: int, ahead: int = 0) -> memoryview:
        """`nbytes` at `at`, read in a window that reaches at most `end`."""
        if at < self._start or at + nbytes > self._end:
            self._end = min(end, at + max(nbytes, ahead or self._ahead))
            self._start = at
            self._read(at, self._buffer[: self._end - at])
        return self._buffer[at - self._start : at - self._start + nbytes]
