"""The journal: a file of fixed slots, one entry each, which no writer waits for another to fill.

An entry's sequence number is its slot, so every writer puts its entries where they belong with one `pwrite` and
without a lock. A slot left empty by a writer that died was never acknowledged; one that is neither empty nor
matches its checksum is damage. Integers are little-endian:

    header (4096 bytes): "KVJ1", u16 version, u64 first sequence number, checksum of what is before it
    entry (192 bytes): checksum of the rest, u64 sequence, u64 generation, u8 op, 7 zeros, a row of
    `RECOVERED_DTYPE` (156 bytes), 4 zeros

A checksum is the first 8 bytes of an xxh3-128, which is verified for all slots in one call. The file grows by whole
64 KiB, allocated ahead of the entries, so one of another length was cut off, be it between two entries.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import StorageError
from kvstore.record import BLOCK
from kvstore.tiers.base import RECOVERED_DTYPE
from kvstore.tiers.nvme.durable import as_storage_error, replace_file, write_all
from kvstore.tiers.nvme.rows import NO_ROW, pick

MAGIC = b"KVJ1"
VERSION = 1
ENTRY_BYTES = 192
GROWTH_BYTES = 64 << 10
ENTRY_DTYPE = np.dtype(
    [("checksum", "u1", (8,)), ("sequence", "<u8"), ("generation", "<u8"), ("op", "u1"), ("_zeros", "u1", (7,)),
     ("row", RECOVERED_DTYPE), ("_end", "u1", (4,))]
)  # fmt: skip
_HEADER = struct.Struct("<4sHxxQ")
_BODY = struct.Struct("<QQB7x156s4x")
_CHECKSUM_BYTES = 8
assert ENTRY_DTYPE.itemsize == ENTRY_BYTES == _CHECKSUM_BYTES + _BODY.size


class Op(IntEnum):
    """What an entry says."""

    PUT = 1  # the row's record is complete
    DELETE = 2  # the record at the row's location is dead
    VOID = 3  # a write failed: `stored` bytes at the row's location hold nothing
    CLOSE = 4  # nothing more is appended to this life of the location's segment, all it holds is journaled
    FREE = 5  # this life of the location's segment is over
    STOP = 6  # the tier was closed in order


class Entry(NamedTuple):
    """An entry before it has its number."""

    op: Op
    generation: int = 0
    row: bytes = NO_ROW


class Journal:
    """The file that is appended to."""

    def __init__(self, path: Path, first: int, fd: int, following: int) -> None:
        self.path, self.first, self._fd = path, first, fd
        self._next = following
        self._end: int | None = None
        self._allocated = os.fstat(fd).st_size
        self._closed = False
        self._users = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    @classmethod
    def create(cls, path: Path, first: int) -> Journal:
        """A new file whose first entry will have the number `first`; it appears whole, so a short one is damage."""
        head = _HEADER.pack(MAGIC, VERSION, first)
        replace_file(path, [(head + _checksum(head)).ljust(GROWTH_BYTES, b"\0")])
        return cls.resume(path, first, first)

    @classmethod
    def resume(cls, path: Path, first: int, following: int) -> Journal:
        """Go on with a file that holds entries up to `following`, exclusive."""
        return cls(path, first, os.open(path, os.O_RDWR | os.O_CLOEXEC), following)

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return self._allocated

    @property
    def following(self) -> int:
        """The number that the next entry gets."""
        return self._next

    def append(self, entries: Sequence[Entry]) -> bool:
        """Write entries; they survive kill -9 when this returns. `TierFull`, `StorageError`.

        False, and nothing written, if the file has come to the end that `limit` or `seal` gave it.
        """
        with self._lock:
            number = self._next
            following = number + len(entries)
            if self._end is not None and following > self._end:
                return False
            self._next = following
            self._users += 1
        try:
            if self._offset(following) > self._allocated:
                self._allocate(following)
            data = b"".join([_pack(number + i, entry) for i, entry in enumerate(entries)])
            write_all(self._fd, data, self._offset(number))
        except OSError as error:
            raise as_storage_error(error, f"cannot write {self.path}") from error
        finally:
            self.leave()
        return True

    def take(self) -> tuple[int, int, int] | None:
        """A slot for one entry: descriptor, offset, number; `leave` when it is written. `TierFull`, `StorageError`.

        None if the file has come to its end, as with `append`. One that is left empty is as if it had never been.
        """
        with self._lock:
            number = self._next
            if self._end is not None and number + 1 > self._end:
                return None
            self._next = number + 1
            self._users += 1
        if self._offset(number + 1) > self._allocated:
            try:
                self._allocate(number + 1)
            except OSError as error:
                self.leave()
                raise as_storage_error(error, f"cannot write {self.path}") from error
        return self._fd, self._offset(number), number

    def limit(self, more: int) -> int:
        """Let the file end `more` entries from now; the number after its last slot. The slots exist from now on."""
        with self._lock:
            self._end = end = self._next + more
        self._allocate(end)
        return end

    def unlimit(self) -> None:
        """Take back what `limit` said."""
        with self._lock:
            self._end = None

    def seal(self) -> None:
        """Take no more entries and return when all that were begun are written."""
        with self._lock:
            self._end = self._next
            while self._users:
                self._idle.wait()

    def sync(self) -> None:
        """fdatasync; nothing to do once closed. `StorageError` if the disk refuses."""
        with self._lock:
            if self._closed:
                return
            self._users += 1
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise as_storage_error(error, f"cannot flush {self.path}") from error
        finally:
            self.leave()

    def close(self) -> None:
        """Close the file when nobody uses it any more."""
        with self._lock:
            self._closed = True
            while self._users:
                self._idle.wait()
        os.close(self._fd)

    def _offset(self, number: int) -> int:
        return BLOCK + (number - self.first) * ENTRY_BYTES

    def _allocate(self, end: int) -> None:
        """Grow the file to hold the slots before `end`. Several threads may: fallocate never shrinks it."""
        wanted = -(-self._offset(end) // GROWTH_BYTES) * GROWTH_BYTES
        if wanted > self._allocated:
            os.posix_fallocate(self._fd, 0, wanted)
            self._allocated = max(self._allocated, wanted)

    def leave(self) -> None:
        """The other end of `take`."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._idle.notify_all()


def _pack(number: int, entry: Entry) -> bytes:
    body = _BODY.pack(number, entry.generation, entry.op, entry.row)
    return _checksum(body) + body


def _checksum(data: bytes) -> bytes:
    return _native.xxh3_128(data)[:_CHECKSUM_BYTES]


@dataclass(frozen=True)
class JournalContent:
    """What a journal file says: its good entries in order, the number after them, that after the last slot, and
    what damage it has.
    """

    first: int
    following: int
    end: int
    entries: npt.NDArray[Any]
    damage: str = ""


def load_journal(path: Path) -> JournalContent | None:
    """Read and verify a journal; None if there is no file. `StorageError` for a version from the future."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    head = data[: _HEADER.size + _CHECKSUM_BYTES]
    if data[:4] == MAGIC and len(head) >= 6 and struct.unpack_from("<H", head, 4)[0] > VERSION:
        raise StorageError(f"{path} is of version {struct.unpack_from('<H', head, 4)[0]}; use a newer kvstore")
    none = np.zeros(0, ENTRY_DTYPE)
    if len(data) < BLOCK or head[:4] != MAGIC or head[-8:] != _checksum(head[:-8]):
        return JournalContent(0, 0, 0, none, f"{path.name} has no readable header")
    first = _HEADER.unpack_from(head)[2]
    count = (len(data) - BLOCK) // ENTRY_BYTES
    slots = np.frombuffer(data, ENTRY_DTYPE, count, BLOCK)
    good = _verified(data, slots, first)
    empty = ~good & (slots["op"] == 0) & (slots["sequence"] == 0) & ~slots["checksum"].any(axis=1)
    bad = count - int(good.sum()) - int(empty.sum())
    damage = f"{path.name} has {bad} damaged entries" if bad else ""
    if len(data) % GROWTH_BYTES:
        damage = damage or f"{path.name} is cut off at {len(data)} bytes"
    entries = pick(slots, good)
    following = int(entries["sequence"][-1]) + 1 if len(entries) else first
    return JournalContent(first, following, first + count, entries, damage)


def _verified(data: bytes, slots: npt.NDArray[Any], first: int) -> npt.NDArray[np.bool_]:
    """Which slots hold the entry that belongs there."""
    if not len(slots):
        return np.zeros(0, np.bool_)
    starts = np.arange(len(slots), dtype=np.uint64) * np.uint64(ENTRY_BYTES) + np.uint64(BLOCK + _CHECKSUM_BYTES)
    lengths = np.full(len(slots), _BODY.size, np.uint64)
    found = _native.xxh3_128_many(data, starts, lengths)[:, :_CHECKSUM_BYTES]
    numbers = np.arange(first, first + len(slots), dtype=np.uint64)
    good: npt.NDArray[np.bool_] = (found == slots["checksum"]).all(axis=1) & (numbers == slots["sequence"])
    return good
