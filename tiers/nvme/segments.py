"""The segments of a tier: appended to by several writers at once, freed whole and used again.

A segment's header is rewritten before a new life's first record. Space is handed out under a short lock and no I/O
happens under it.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kvstore.errors import NotFound
from kvstore.record import BLOCK
from kvstore.tiers.base import TierFull
from kvstore.tiers.nvme.durable import as_storage_error, sync_folder
from kvstore.tiers.nvme.location import SEGMENTS_PER_DRIVE, key_of, next_generation, segment_of
from kvstore.tiers.nvme.segment import Limits, Segment, State, pack_header

_AS_GOOD_AS_EMPTY = 0.25  # live bytes, of the segment's length


class SegmentTable:
    """All segments of a tier: who may append where, who is being read, what is free.

    `live` and `records` count the bytes and the number of all records that are not deleted, `admitted` the bytes of
    all that were ever appended and not just moved; `numbers` are those that
    its segments may have. `wants_care` says that `prepare` would be of use.
    """

    def __init__(self, folder: Path, limits: Limits, direct: bool, first: int = 0) -> None:
        self.folder, self.limits = folder, limits
        self.numbers = range(first, first + SEGMENTS_PER_DRIVE)
        self.wants_care = False
        self.segments: dict[int, Segment] = {}
        self._flags = os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._active: Segment | None = None
        self._ready: Segment | None = None
        self._half_full = -1
        self._free: list[Segment] = []
        self._opening = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.live = self.records = self.admitted = 0
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
        self.live += segment.live
        self.records += segment.records
        if segment.state is State.FREE:
            self._free.append(segment)
        elif segment.state is State.OPEN:
            self._active = segment

    def reserve(self, nbytes: int, *, moving: bool = False) -> tuple[Segment, int]:
        """Space for a record: the segment and the offset in it. `TierFull` or `StorageError` if there is none.

        The last free segment is kept for records that are moved while room is made.
        """
        while True:
            with self._lock:
                segment = self._active
                if segment is not None and segment.head + nbytes <= segment.size:
                    self.admitted += 0 if moving else nbytes
                    return self._take(segment, nbytes)
                if self._ready is not None:
                    complete = self._go_on_with(self._ready)
                    self._ready = fresh = None
                elif self._opening:
                    self._changed.wait()
                    continue
                else:
                    fresh = self._next(0 if moving else self.limits.spare)
                    self._opening = True
            if fresh is None:
                self._tell(complete)
            else:
                self._start(fresh)

    def _take(self, segment: Segment, nbytes: int) -> tuple[Segment, int]:
        offset = segment.head
        segment.head += nbytes
        self._count(segment, nbytes, 1)
        segment.writers += 1
        if 2 * segment.head > segment.size and self._half_full != segment.key:
            self._half_full, self.wants_care = segment.key, True
        return segment, offset

    def _next(self, spare: int) -> Segment:
        """The segment to use after the active one; called with the lock held."""
        creatable = self._creatable()
        if len(self._free) + creatable <= spare:
            raise TierFull(f"all {len(self.segments)} segments in {self.folder} are in use; make room first")
        if self._free:
            return self._free.pop()
        number = next(i for i in self.numbers if i not in self.segments)
        segment = Segment(number, self.limits.segment_bytes)
        self.segments[number] = segment
        return segment

    def _start(self, segment: Segment) -> None:
        """Begin a new life of a free segment and append to it from now on."""
        self._begin_or_give_up(segment)
        with self._lock:
            complete = self._go_on_with(segment)
            self._opening = False
            self._changed.notify_all()
        self._tell(complete)

    def prepare(self) -> None:
        """Have the next segment ready before the one in use is full. `TierFull`, `StorageError`."""
        with self._lock:
            self.wants_care = False
            active = self._active
            if self._ready is not None or self._opening or active is None or 2 * active.head <= active.size:
                return
            if len(self._free) + self._creatable() <= self.limits.spare:
                return
            fresh = self._next(self.limits.spare)
            self._opening = True
        self._begin_or_give_up(fresh)
        with self._lock:
            self._ready, self._opening = fresh, False
            self._changed.notify_all()

    @property
    def spare(self) -> int:
        """Segments that could be opened now."""
        with self._lock:
            return len(self._free) + self._creatable() + (self._ready is not None)

    @property
    def is_short(self) -> bool:
        """Whether a segment ought to be freed ahead of need."""
        return self.spare < self.limits.spare + self.limits.ahead

    def _begin_or_give_up(self, segment: Segment) -> None:
        try:
            self._begin_life(segment)
        except OSError as error:
            with self._lock:
                self._give_up(segment)
            raise as_storage_error(error, f"cannot start {self.path(segment.number)}") from error

    def _go_on_with(self, segment: Segment) -> Segment | None:
        """Append to another segment; the one before, if it is complete. Called with the lock held."""
        previous, self._active = self._active, segment
        segment.state, self.wants_care = State.OPEN, True
        return previous if previous is not None and self._shut(previous) else None

    def _tell(self, complete: Segment | None) -> None:
        if complete is not None:
            self.on_complete(complete)

    def _shut(self, segment: Segment) -> bool:
        segment.state = State.CLOSED
        segment.filled_ms = time.time_ns() // 1_000_000
        return segment.writers == 0

    def close_active(self) -> bool:
        """Append no more to the segment in use; False if there is none."""
        with self._lock:
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
        segment.generation, segment.head = generation, BLOCK
        segment.dirty = True

    def written(self, segment: Segment, *, dead: int = 0) -> None:
        """A writer is done; `dead` is the length of its record if that is to be forgotten."""
        with self._lock:
            segment.writers -= 1
            segment.dirty = True
            if dead:
                self._count(segment, -dead, -1)
            complete = segment.writers == 0 and segment.state is State.CLOSED
        if complete:
            self.on_complete(segment)

    def keys(self) -> list[int]:
        """The lives that the segments are in."""
        with self._lock:
            return [segment.key for segment in self.segments.values()]

    def hold(self, location: int) -> Segment:
        """The segment of a location, kept from being used again until `release`; `NotFound` if it was."""
        key = key_of(location)
        with self._lock:
            segment = self._at(key)
            if segment is None:
                raise NotFound(f"nothing lies at {location:#x} any more: its segment was freed")
            segment.readers += 1
            return segment

    def release(self, segment: Segment) -> None:
        """The other end of `hold`."""
        with self._lock:
            segment.readers -= 1
            if segment.readers == 0 and segment.state is State.FREE:
                self._changed.notify_all()

    def forget(self, location: int, nbytes: int) -> int | None:
        """Count a record as dead. The generation of its segment, None if that was freed already."""
        with self._lock:
            segment = self._at(key_of(location))
            if segment is None:
                return None
            self._count(segment, -nbytes, -1)
            return segment.generation

    def _at(self, key: int) -> Segment | None:
        segment = self.segments.get(segment_of(key))
        if segment is None or segment.key != key or segment.state not in (State.OPEN, State.CLOSED):
            return None
        return segment

    def victims(self) -> list[Segment]:
        """Closed segments that nobody writes to: those that are as good as empty, the emptiest first, then the oldest.

        By age alone a log is a queue, and what was used while it passed through gets another round. Fewest live bytes
        first would take the segments of what has come last, whose records had no time to be used.
        """
        with self._lock:
            found = [s for s in self.segments.values() if s.state is State.CLOSED and s.writers == 0]
            return sorted(found, key=lambda s: (s.live if s.live < _AS_GOOD_AS_EMPTY * s.size else s.size, s.filled_ms))

    def retire(self, segment: Segment) -> None:
        """Take no new readers and wait for those there are."""
        with self._lock:
            segment.state = State.FREE
            while segment.readers:
                self._changed.wait()

    def retire_all(self) -> None:
        """`retire` every segment; nothing is appended any more."""
        for segment in list(self.segments.values()):
            self.retire(segment)
        self._active = self._ready = None

    def free(self, segment: Segment) -> None:
        """Let a retired segment be used again; one of another size than new ones have is removed."""
        with self._lock:
            self._count(segment, -segment.live, -segment.records)
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
        with self._lock:
            self.segments.pop(segment.number, None)

    def room(self, *, moving: bool = False) -> int:
        """Bytes that can be appended right now."""
        with self._lock:
            tail = self._active.size - self._active.head if self._active is not None else 0
            whole = len(self._free) + self._creatable() - (0 if moving else self.limits.spare)
            whole = max(0, whole) + (self._ready is not None)
            return tail + whole * (self.limits.segment_bytes - BLOCK)

    def fits(self, nbytes: int, *, moving: bool = False) -> bool:
        """Whether `nbytes` can be appended, in one piece if a segment can hold that."""
        usable = self.limits.segment_bytes - BLOCK
        room = self.room(moving=moving)
        with self._lock:
            tail = self._active.size - self._active.head if self._active is not None else 0
        return tail >= nbytes or room - tail >= max(nbytes, usable) or room >= nbytes > usable

    def _creatable(self) -> int:
        """How many more files the capacity and the file system's free space allow."""
        taken = sum(segment.size for segment in self.segments.values())
        left = (self.limits.total_bytes - taken) // self.limits.segment_bytes
        if left <= 0:
            return 0
        try:
            system = os.statvfs(self.folder)
        except OSError as error:  # unmounted under our feet: whoever asked finds out what has become of the drive
            raise as_storage_error(error, f"cannot tell how much is free in {self.folder}") from error
        spare_bytes = system.f_bavail * system.f_frsize - self.limits.reserve_bytes
        return max(0, min(left, spare_bytes // self.limits.segment_bytes))

    def _count(self, segment: Segment, nbytes: int, records: int) -> None:
        segment.live += nbytes
        segment.records += records
        self.live += nbytes
        self.records += records

    def file_bytes(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(segment.size for segment in self.segments.values())

    def dirty(self) -> list[Segment]:
        """Segments that were written to since they were flushed, held, no longer counted as dirty; see `flushed`."""
        with self._lock:
            found = [s for s in self.segments.values() if s.dirty and s.fd >= 0]
            for segment in found:
                segment.dirty = False
                segment.readers += 1  # keeps the file while it is flushed
            return found

    def flushed(self, segment: Segment, *, failed: bool = False) -> None:
        """The other end of `dirty`; one that failed is dirty again."""
        segment.dirty |= failed
        self.release(segment)

    def close(self) -> None:
        """Close every file."""
        for segment in self.segments.values():
            if segment.fd >= 0:
                os.close(segment.fd)
                segment.fd = -1
