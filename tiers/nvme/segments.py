"""Segment files: preallocated, appended to by several writers at once, freed whole and used again.

The first 4 KiB block of a segment says whose life it is in; it is rewritten before a new life's first record.
Space is handed out under a short lock and no I/O happens under it.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from kvstore import _native
from kvstore.errors import NotFound, StorageError
from kvstore.record import BLOCK
from kvstore.tiers.base import TierFull
from kvstore.tiers.nvme.durable import as_storage_error, sync_folder
from kvstore.tiers.nvme.location import key_of, life_key, next_generation, segment_of

MAGIC = b"KVS1"
VERSION = 1
_HEADER = struct.Struct("<4sHxxIIQQ")
_CHECKSUM = struct.Struct("<Q")


class State(Enum):
    """What a segment is good for."""

    FREE = "free"
    OPEN = "open"
    CLOSED = "closed"
    LOST = "lost"  # not ours, or unreadable: left alone


@dataclass(eq=False, slots=True)
class Segment:
    """One file. `head` is the end of what was handed out, `live` the bytes of records not deleted."""

    number: int
    size: int
    fd: int = -1
    generation: int = 0
    state: State = State.FREE
    head: int = BLOCK
    live: int = 0
    records: int = 0
    readers: int = 0
    writers: int = 0
    dirty: bool = False

    @property
    def key(self) -> int:
        """The segment's present life."""
        return life_key(self.number, self.generation)


@dataclass(slots=True)
class Limits:
    """How far the segments may grow: bytes of all files, and bytes left free on their file system."""

    segment_bytes: int
    total_bytes: int
    reserve_bytes: int
    spare: int = field(init=False)

    def __post_init__(self) -> None:
        self.spare = 1 if self.total_bytes // self.segment_bytes >= 4 else 0


def pack_header(number: int, generation: int, size: int) -> bytes:
    """A segment's first block without the zeros that follow."""
    head = _HEADER.pack(MAGIC, VERSION, number, 0, generation, size)
    return head + _CHECKSUM.pack(_native.xxh3_64(head))


def unpack_header(block: memoryview) -> tuple[int, int, int] | None:
    """(segment number, generation, size), or None if this is no segment's header.

    `StorageError` for a version from the future.
    """
    magic, version, number, _, generation, size = _HEADER.unpack_from(block)
    if magic != MAGIC:
        return None
    if version > VERSION:
        raise StorageError(f"version {version} of a segment; this build knows {VERSION}: use a newer kvstore")
    (checksum,) = _CHECKSUM.unpack_from(block, _HEADER.size)
    return (number, generation, size) if checksum == _native.xxh3_64(block[: _HEADER.size]) else None


class SegmentTable:
    """All segments of a tier: who may append where, who is being read, what is free."""

    def __init__(self, folder: Path, limits: Limits, direct: bool) -> None:
        self.folder, self.limits = folder, limits
        self.segments: dict[int, Segment] = {}
        self._flags = os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._active: Segment | None = None
        self._free: list[Segment] = []
        self._opening = False
        self._changed = threading.Condition()
        self.on_complete: Callable[[Segment], None] = lambda segment: None

    def path(self, number: int) -> Path:
        """The file of a segment."""
        return self.folder / f"{number:06d}.seg"

    def open_file(self, number: int, *, create: bool = False) -> int:
        """A descriptor of a segment's file, as the tier reads and writes it."""
        return os.open(self.path(number), self._flags | (os.O_CREAT if create else 0), 0o600)

    def adopt(self, segment: Segment) -> None:
        """Take in a segment found when the tier is opened; one that is OPEN becomes the one to append to."""
        self.segments[segment.number] = segment
        if segment.state is State.FREE:
            self._free.append(segment)
        elif segment.state is State.OPEN:
            self._active = segment

    def reserve(self, nbytes: int, *, moving: bool = False) -> tuple[Segment, int]:
        """Space for a record: the segment and the offset in it. `TierFull` or `StorageError` if there is none.

        The last free segment is kept for records that are moved while room is made.
        """
        while True:
            with self._changed:
                segment = self._active
                if segment is not None and segment.head + nbytes <= segment.size:
                    return self._take(segment, nbytes)
                if self._opening:
                    self._changed.wait()
                    continue
                fresh = self._next(0 if moving else self.limits.spare)
                self._opening = True
            self._start(fresh)

    def _take(self, segment: Segment, nbytes: int) -> tuple[Segment, int]:
        offset = segment.head
        segment.head += nbytes
        segment.live += nbytes
        segment.records += 1
        segment.writers += 1
        return segment, offset

    def _next(self, spare: int) -> Segment:
        """The segment to use after the active one; called with the lock held."""
        creatable = self._creatable()
        if len(self._free) + creatable <= spare:
            raise TierFull(f"all {len(self.segments)} segments in {self.folder} are in use; make room first")
        if self._free:
            return self._free.pop()
        number = next(i for i in range(len(self.segments) + 1) if i not in self.segments)
        segment = Segment(number, self.limits.segment_bytes)
        self.segments[number] = segment
        return segment

    def _start(self, segment: Segment) -> None:
        """Begin a new life of a free segment and append to it from now on."""
        try:
            self._begin_life(segment)
        except OSError as error:
            with self._changed:
                self._give_up(segment)
            raise as_storage_error(error, f"cannot start {self.path(segment.number)}") from error
        with self._changed:
            previous, self._active, self._opening = self._active, segment, False
            segment.state = State.OPEN
            self._changed.notify_all()
            complete = previous is not None and self._shut(previous)
        if previous is not None and complete:
            self.on_complete(previous)

    def _shut(self, segment: Segment) -> bool:
        segment.state = State.CLOSED
        return segment.writers == 0

    def close_active(self) -> bool:
        """Append no more to the segment in use; False if there is none."""
        with self._changed:
            segment = self._active
            if segment is None or self._opening:
                return False
            self._active = None
            complete = self._shut(segment)
        if complete:
            self.on_complete(segment)
        return True

    def _give_up(self, segment: Segment) -> None:
        if segment.generation:
            self._free.append(segment)
        else:
            del self.segments[segment.number]
            if segment.fd >= 0:
                os.close(segment.fd)
            self.path(segment.number).unlink(missing_ok=True)
        self._opening = False
        self._changed.notify_all()

    def _begin_life(self, segment: Segment) -> None:
        if segment.fd < 0:
            segment.fd = self.open_file(segment.number, create=True)
            os.posix_fallocate(segment.fd, 0, segment.size)
            sync_folder(self.folder)
        generation = next_generation(segment.generation)
        with mmap.mmap(-1, BLOCK) as block:
            block.write(pack_header(segment.number, generation, segment.size))
            os.pwrite(segment.fd, block, 0)
        segment.generation, segment.head, segment.live, segment.records = generation, BLOCK, 0, 0
        segment.dirty = True

    def written(self, segment: Segment, *, dead: int = 0) -> None:
        """A writer is done; `dead` is the length of its record if that is to be forgotten."""
        with self._changed:
            segment.writers -= 1
            segment.dirty = True
            if dead:
                segment.live -= dead
                segment.records -= 1
            complete = segment.writers == 0 and segment.state is State.CLOSED
        if complete:
            self.on_complete(segment)

    def keys(self) -> list[int]:
        """The lives that the segments are in."""
        with self._changed:
            return [segment.key for segment in self.segments.values()]

    def hold(self, location: int) -> Segment:
        """The segment of a location, kept from being used again until `release`; `NotFound` if it was."""
        key = key_of(location)
        with self._changed:
            segment = self._at(key)
            if segment is None:
                raise NotFound(f"nothing lies at {location:#x} any more: its segment was freed")
            segment.readers += 1
            return segment

    def release(self, segment: Segment) -> None:
        """The other end of `hold`."""
        with self._changed:
            segment.readers -= 1
            if segment.readers == 0 and segment.state is State.FREE:
                self._changed.notify_all()

    def forget(self, location: int, nbytes: int) -> int | None:
        """Count a record as dead. The generation of its segment, None if that was freed already."""
        with self._changed:
            segment = self._at(key_of(location))
            if segment is None:
                return None
            segment.live -= nbytes
            segment.records -= 1
            return segment.generation

    def _at(self, key: int) -> Segment | None:
        segment = self.segments.get(segment_of(key))
        if segment is None or segment.key != key or segment.state not in (State.OPEN, State.CLOSED):
            return None
        return segment

    def victims(self) -> list[Segment]:
        """Closed segments that nobody writes to, those with the fewest live bytes first, then the oldest."""
        with self._changed:
            found = [s for s in self.segments.values() if s.state is State.CLOSED and s.writers == 0]
            return sorted(found, key=lambda s: (s.live, s.generation & 0xFFFFF, s.number))

    def retire(self, segment: Segment) -> None:
        """Take no new readers and wait for those there are."""
        with self._changed:
            segment.state = State.FREE
            while segment.readers:
                self._changed.wait()

    def free(self, segment: Segment) -> None:
        """Let a retired segment be used again; one of another size than new ones have is removed."""
        with self._changed:
            segment.live = segment.records = 0
            segment.head = BLOCK
            if segment.size == self.limits.segment_bytes:
                self._free.append(segment)
                return
        self.remove(segment)

    def remove(self, segment: Segment) -> None:
        """Delete the file of a segment that nobody uses."""
        if segment.fd >= 0:
            os.close(segment.fd)
        self.path(segment.number).unlink(missing_ok=True)
        with self._changed:
            self.segments.pop(segment.number, None)

    def room(self, *, moving: bool = False) -> int:
        """Bytes that can be appended right now."""
        with self._changed:
            tail = self._active.size - self._active.head if self._active is not None else 0
            whole = len(self._free) + self._creatable() - (0 if moving else self.limits.spare)
            return tail + max(0, whole) * (self.limits.segment_bytes - BLOCK)

    def fits(self, nbytes: int, *, moving: bool = False) -> bool:
        """Whether `nbytes` can be appended, in one piece if a segment can hold that."""
        usable = self.limits.segment_bytes - BLOCK
        room = self.room(moving=moving)
        with self._changed:
            tail = self._active.size - self._active.head if self._active is not None else 0
        return tail >= nbytes or room - tail >= max(nbytes, usable) or room >= nbytes > usable

    def _creatable(self) -> int:
        """How many more files the capacity and the file system's free space allow."""
        taken = sum(segment.size for segment in self.segments.values())
        left = (self.limits.total_bytes - taken) // self.limits.segment_bytes
        if left <= 0:
            return 0
        system = os.statvfs(self.folder)
        spare_bytes = system.f_bavail * system.f_frsize - self.limits.reserve_bytes
        return max(0, min(left, spare_bytes // self.limits.segment_bytes))

    def totals(self) -> tuple[int, int, int]:
        """Live bytes, live records, bytes of all files."""
        with self._changed:
            every = self.segments.values()
            return sum(s.live for s in every), sum(s.records for s in every), sum(s.size for s in every)

    def flush(self) -> None:
        """fdatasync every segment that was written to since the last time. `OSError` from the system."""
        with self._changed:
            dirty = [s for s in self.segments.values() if s.dirty and s.fd >= 0]
            for segment in dirty:
                segment.dirty = False
                segment.readers += 1  # keeps the file while it is flushed
        try:
            for segment in dirty:
                os.fdatasync(segment.fd)
        except OSError:
            for segment in dirty:
                segment.dirty = True
            raise
        finally:
            for segment in dirty:
                self.release(segment)

    def close(self) -> None:
        """Close every file."""
        for segment in self.segments.values():
            if segment.fd >= 0:
                os.close(segment.fd)
                segment.fd = -1
