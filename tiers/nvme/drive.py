"""One drive: a folder with a log of its own, which needs no other drive to be read.

Journal and snapshot of a drive lie on it, so whichever drive is lost, what lies on the others is all there.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import ConfigError, Corrupt, KVStoreError, StorageError
from kvstore.gate import Gate
from kvstore.record import BLOCK, Record, padded, seal
from kvstore.tiers.base import Owner, Tier, TierFull
from kvstore.tiers.flush import GroupFlush
from kvstore.tiers.meter import Meter
from kvstore.tiers.nvme.catalog import Catalog
from kvstore.tiers.nvme.claims import Claims
from kvstore.tiers.nvme.cleaner import Cleaner
from kvstore.tiers.nvme.durable import as_storage_error, why_unusable
from kvstore.tiers.nvme.io import Transfer, probe_direct
from kvstore.tiers.nvme.journal import Entry, Op
from kvstore.tiers.nvme.location import MAX_SEGMENT_BYTES, SEGMENTS_PER_DRIVE, locate, offset_of
from kvstore.tiers.nvme.lock import FolderLock
from kvstore.tiers.nvme.log import Log
from kvstore.tiers.nvme.recovery import Opening
from kvstore.tiers.nvme.rows import Table, created_at, pack_row, place_row
from kvstore.tiers.nvme.segment import Limits, Segment
from kvstore.tiers.nvme.segments import SegmentTable
from kvstore.tiers.pool import IoPool

_LEAST_LOG_BYTES = 384 << 10
_LEAST_SEGMENT_BYTES = 64 << 10


@dataclass(frozen=True)
class Plan:
    """What every drive of a tier is given: its share of the capacity, and how it is used. `ConfigError`."""

    capacity: int
    segment_bytes: int
    reserve_bytes: int
    direct: bool | None

    @property
    def log_budget(self) -> int:
        """What is set aside for journal and snapshot."""
        return max(self.capacity // 32, _LEAST_LOG_BYTES)

    def __post_init__(self) -> None:
        segment = self.segment_bytes
        if segment % BLOCK or not _LEAST_SEGMENT_BYTES <= segment <= MAX_SEGMENT_BYTES:
            raise ConfigError(
                f"[nvme] segment must be a multiple of {BLOCK} from {_LEAST_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES}, "
                f"not {segment}"
            )
        if self.capacity - self.log_budget < 2 * segment:
            raise ConfigError(
                f"[nvme] capacity {self.capacity} is too small for two segments of {segment} bytes on a drive and "
                f"{self.log_budget} bytes of journal; raise capacity or lower segment"
            )
        if self.capacity // segment > SEGMENTS_PER_DRIVE:
            raise ConfigError(
                f"[nvme] capacity {self.capacity} needs more than {SEGMENTS_PER_DRIVE} segments of a drive; "
                "raise segment"
            )


class Drive:
    """The records in one folder. `clock` says how much it was given to write, in seconds of its own speed.

    While `draining` nothing is written to it but what its cleaner moves; once `detached` its files are closed, which
    whoever works on all of it keeps off by passing its `gate`.
    """

    def __init__(
        self, path: Path, number: int, plan: Plan, tier: Tier, meter: Meter, pool: IoPool, give_way: Callable[[], None]
    ) -> None:
        """`ConfigError` for a path that cannot work, `StorageError` for a folder that cannot be used."""
        self.path, self.number = path, number
        self.capacity = plan.capacity
        self.out = ""
        self.draining = self.detached = False
        self.gate = Gate()
        self.clock = 0.0
        _make_folders(path)
        self._lock = FolderLock(path / "LOCK")
        try:
            direct = _choose_direct(path / "segments", plan.direct)
        except KVStoreError:
            self._lock.release()
            raise
        self.transfer = Transfer(direct)
        limits = Limits(plan.segment_bytes, plan.capacity - plan.log_budget, plan.reserve_bytes)
        self.table = SegmentTable(path / "segments", limits, direct, number * SEGMENTS_PER_DRIVE)
        self.table.on_complete = self._complete
        self.log = Log(path)
        self.catalog = Catalog(path / "catalog")
        self._meter, self._pool = meter, pool
        self._group_flush = GroupFlush(self.flush)
        self._claims = Claims()
        self.cleaner = Cleaner(
            tier, self.table, self.log, self.transfer, meter, self._claims, plan.log_budget, self._group_flush, give_way
        )

    @property
    def condition(self) -> str:
        """`ok`, `draining`, `drained`, or why it is out of use."""
        return self.out or ("draining" if self.draining else "ok")

    def recover(self, notes: list[str]) -> tuple[Table, bool]:
        """Live rows, and whether the last stop was clean."""
        opening = Opening(self.table, self.log, self.transfer, self._pool, notes)
        try:
            return opening.run()
        except OSError as error:
            opening.abandon()
            if isinstance(error, KVStoreError):
                raise
            raise as_storage_error(error, f"cannot recover {self.path}") from error

    def write(self, header: bytes, payload: memoryview, record: Record, total: int) -> int:
        """Keep a record of `total` bytes and return its location. `TierFull`, `StorageError`."""
        if self.cleaner.log_is_full():
            raise TierFull(f"the journal of {self.path} has no room for another record; make room first")
        segment, offset = self.table.reserve(total)
        location, done = locate(segment.key, offset), 0
        try:
            if not self._append(segment, offset, header, payload, record.stored):
                sealed = seal(header, segment.generation, location)
                self.transfer.write(segment.fd, offset, sealed, payload, record.stored)
                row = pack_row(record, location, created_at(header))
                self.log.append(Entry(Op.PUT, segment.generation, row))
            done = total
        except OSError as error:
            self._meter.count("errors")
            if isinstance(error, KVStoreError):
                raise
            raise as_storage_error(error, f"cannot write {self.table.path(segment.number)}") from error
        finally:
            if not done:
                self._void(segment, location, total)
            self.table.written(segment, dead=total - done)
        return location

    def _append(self, segment: Segment, offset: int, header: bytes, payload: memoryview, stored: int) -> bool:
        """Write a record and its journal entry together; False, and nothing done, if its memory is not aligned."""
        location, (journal, slot) = locate(segment.key, offset), self.log.take()
        try:
            error = self.transfer.append(
                segment.fd, offset, segment.generation, location, header, payload, stored, slot, Op.PUT
            )
        finally:
            journal.leave()
        if error > 0:
            raise as_storage_error(OSError(error, os.strerror(error)), f"cannot write {journal.path}")
        return error == 0

    def _void(self, segment: Segment, location: int, nbytes: int) -> None:
        """Tell the journal, if it can be told, that nothing lies where a write failed."""
        try:
            self.log.append(Entry(Op.VOID, segment.generation, place_row(location, nbytes)))
        except KVStoreError:
            self._meter.count("errors")

    def read(self, location: int, offset: int, out: memoryview) -> None:
        """Fill `out`. `NotFound`, `Corrupt`, `StorageError`."""
        segment, start = self.hold(location, offset, len(out))
        try:
            self.transfer.read(segment.fd, start, out)
        except EOFError as error:
            self._meter.count("errors")
            raise Corrupt(f"{self.table.path(segment.number)} is cut off: {error}") from error
        except OSError as error:
            self._meter.count("errors")
            raise as_storage_error(error, f"cannot read {self.table.path(segment.number)}") from error
        finally:
            self.table.release(segment)

    def hold(self, location: int, offset: int, nbytes: int) -> tuple[Segment, int]:
        """The segment of a record, kept until `table.release`, and where in it bytes lie. `NotFound`, `Corrupt`."""
        segment = self.table.hold(location)
        start = offset_of(location) + offset
        if offset < 0 or start + nbytes > segment.head:
            self.table.release(segment)
            raise Corrupt(f"{location:#x} is shorter than the {offset + nbytes} bytes asked for")
        return segment, start

    def delete(self, location: int, record_bytes: int) -> None:
        """Forget a record; its death is journaled before this returns."""
        alive = self._claims.claim(location)
        try:
            generation = self.table.forget(location, record_bytes) if alive else None
            if generation is not None:
                self.log.append(Entry(Op.DELETE, generation, place_row(location, record_bytes)))
        finally:
            self._claims.release(location, dead=True)

    def make_room(self, nbytes: int, owner: Owner) -> bool:
        """Free segments until so many bytes can be appended."""
        return nbytes <= self.table.limits.total_bytes and self.cleaner.make_room(nbytes, owner)

    def sync(self) -> None:
        """`flush`, shared by all who ask at the same time."""
        self._group_flush()

    def flush(self) -> None:
        """fdatasync what was written, all files at the same time: so the device flushes once for all of them.

        Only together they say anything: a journal that reached the disk before its records tells of none that
        anybody was promised.
        """
        dirty = self.table.dirty()
        failures: list[KVStoreError] = []

        def sync(index: int) -> None:
            try:
                if index < len(dirty):
                    os.fdatasync(dirty[index].fd)
                else:
                    self.log.sync()
            except KVStoreError as error:
                failures.append(error)
            except OSError as error:
                self._meter.count("errors")
                failures.append(as_storage_error(error, f"cannot flush {self.path}"))

        self._pool.run(len(dirty) + 1, sync)
        for segment in dirty:
            self.table.flushed(segment, failed=bool(failures))
        if failures:
            raise failures[0]

    def checkpoint(self) -> None:
        """Fold the journal into a new snapshot."""
        self.log.fold(self.table.keys)
        self._meter.count("checkpoints")

    def trouble(self, *, thorough: bool) -> str:
        """Why the drive cannot be used any more, after something went wrong with it; nothing if it can."""
        return why_unusable(self.path / "segments", self._lock.is_in_place, write=thorough)

    def close(self) -> None:
        """Say in the journal that this was in order, and give everything back."""
        try:
            if self.log.started and not self.out:
                self.flush()
                self.log.append(Entry(Op.STOP))
                self.log.sync()
        finally:
            with suppress(OSError):
                self.log.close()
            with suppress(OSError):
                self.table.close()
            self._lock.release()

    def detach(self) -> None:
        """Close it in order, when nothing lies on it and nobody passes its gate; readers of segments are waited for."""
        self.table.retire_all()
        try:
            self.close()
        finally:
            self.out, self.detached = "drained", True

    def _complete(self, segment: Segment) -> None:
        """Journal that a segment is full. Without that its end is searched after a crash, no more."""
        try:
            self.log.append(Entry(Op.CLOSE, segment.generation, place_row(locate(segment.key, 0), 0)))
        except KVStoreError:
            self._meter.count("errors")


def record_bytes(header: bytes, record: Record) -> int:
    """Length of a record as it lies in a segment."""
    return len(header) + padded(record.stored)


def allow_files(count: int) -> None:
    """Raise the limit of open files if so many segments need it. `ConfigError` if it cannot be."""
    needed = count + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(f"{count} segments need more open files than {hard}; raise [nvme] segment or `ulimit -n`")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _make_folders(path: Path) -> None:
    try:
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} does not exist; make it, or choose another folder for the nvme tier")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is not a folder; choose another path for the nvme tier")
        for folder in (path, path / "segments", path / "catalog"):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}); mount it read-write and give this process the right"
        ) from error


def _choose_direct(folder: Path, wanted: bool | None) -> bool:
    try:
        found = probe_direct(str(folder))
    except OSError as error:
        raise as_storage_error(error, f"cannot write in {folder}") from error
    if wanted and not found:
        raise ConfigError(f"{folder} is on a file system without O_DIRECT; leave `direct` out or choose another")
    return found if wanted is None else wanted
