"""The NVMe tier: a log of records in preallocated segments, with a journal and a snapshot of what is in them.

Every record has its header and checksums with it, so the log can be read without either. Follows the
log-structured file system (Rosenblum and Ousterhout, 1992) in appending and in cleaning whole segments.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from kvstore.errors import ConfigError, Corrupt, InvalidArgument, KVStoreError, StorageError, TooLarge
from kvstore.record import BLOCK, Record, padded, seal
from kvstore.spec import KVSpec
from kvstore.tiers.base import Owner, Recovered, Speed, Tier, TierFull
from kvstore.tiers.nvme.calls import Calls
from kvstore.tiers.nvme.catalog import Catalog
from kvstore.tiers.nvme.claims import Claims
from kvstore.tiers.nvme.cleaner import Cleaner
from kvstore.tiers.nvme.durable import as_storage_error
from kvstore.tiers.nvme.flush import GroupFlush
from kvstore.tiers.nvme.io import IoPool, Transfer, probe_direct
from kvstore.tiers.nvme.journal import Entry, Op
from kvstore.tiers.nvme.location import MAX_SEGMENT_BYTES, MAX_SEGMENTS, locate, offset_of
from kvstore.tiers.nvme.lock import FolderLock
from kvstore.tiers.nvme.log import Log
from kvstore.tiers.nvme.meter import Meter
from kvstore.tiers.nvme.recovery import Opening
from kvstore.tiers.nvme.rows import created_at, pack_row, place_row
from kvstore.tiers.nvme.segment import Limits, Segment
from kvstore.tiers.nvme.segments import SegmentTable

MIB = 1 << 20
_LEAST_LOG_BYTES = 384 << 10
_LEAST_SEGMENT_BYTES = 64 << 10


class NvmeTier(Tier):
    """Records in the folder `path`, which is made if it is not there (its parent must be).

    `capacity` bounds all files of the folder in bytes; a 32nd of it is set aside for journal and snapshot.
    Segments have `segment_bytes` each and no new one is made when less than `reserve_bytes` would stay free on the
    file system. `io_threads` reads of one `read_many` are in flight. `direct` asks for O_DIRECT (True), forbids it
    (False) or takes it where the file system has it (None).

    Raises `ConfigError` for numbers or a path that cannot work, `StorageError` for a folder that is in use or
    cannot be written.
    """

    kind: ClassVar[str] = "nvme"
    persistent: ClassVar[bool] = True
    evicts: ClassVar[bool] = True

    def __init__(
        self, path: str | Path, *, capacity: int, segment_bytes: int = 256 * MIB, reserve_bytes: int = 1024 * MIB,
        io_threads: int = 4, name: str = "nvme", direct: bool | None = None,
    ) -> None:  # fmt: skip
        self.name, self.path = name, Path(path)
        self._capacity = capacity
        log_budget = max(capacity // 32, _LEAST_LOG_BYTES)
        _check_sizes(capacity, segment_bytes, log_budget, io_threads)
        _make_folders(self.path)
        self._lock = FolderLock(self.path / "LOCK")
        try:
            use_direct = _choose_direct(self.path / "segments", direct)
            _allow_files(capacity // segment_bytes)
        except KVStoreError:
            self._lock.release()
            raise
        self._transfer = Transfer(use_direct)
        limits = Limits(segment_bytes, capacity - log_budget, reserve_bytes)
        self._table = SegmentTable(self.path / "segments", limits, use_direct)
        self._table.on_complete = self._complete
        self._log = Log(self.path)
        self._catalog = Catalog(self.path / "catalog")
        self._pool = IoPool(io_threads, f"kvstore-{name}")
        self._meter = Meter()
        self._calls = Calls(name)
        self._group_flush = GroupFlush(self._flush)
        self._claims = Claims()
        self._cleaner = Cleaner(
            self, self._table, self._log, self._transfer, self._meter, self._claims, log_budget, self._group_flush
        )

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def used(self) -> int:
        return self._table.live

    @property
    def speed(self) -> Speed:
        return self._meter.speed

    @property
    def max_record(self) -> int:
        return self._table.limits.segment_bytes - BLOCK

    @property
    def journal_bytes(self) -> int:
        """Length of the journal: what would be replayed if the tier died now."""
        return self._log.journal_bytes

    @property
    def wants_checkpoint(self) -> bool:
        """Whether it is time for a `checkpoint`."""
        return self._log.wants_checkpoint

    def recover(self) -> Recovered:
        """What the folder held: a row for every record that was written and not deleted since.

        Payload is not verified here. After power loss rows may be among them whose payload never reached the disk,
        if it was not synced. Where the journal was damaged, deleted records may be back.
        """
        self._calls.check_unopened()
        names, specs, notes = self._catalog.load()
        opening = Opening(self._table, self._log, self._transfer, self._pool, notes)
        try:
            rows, clean = opening.run()
        except OSError as error:
            opening.abandon()
            if isinstance(error, KVStoreError):
                raise
            raise as_storage_error(error, f"cannot recover {self.path}") from error
        self._calls.open()
        return Recovered(names, specs, rows, clean, tuple(opening.notes))

    def describe(self, namespace: str, spec: KVSpec) -> None:
        with self._calls:
            self._catalog.describe(namespace, spec)

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        """Keep a record and return its location. It survives kill -9 from then on, and power loss after `sync`.

        Memory that begins on a 4 KiB boundary is written as it is. Raises `TierFull`, `StorageError`, and
        `TooLarge` for a record longer than `max_record`.
        """
        stored = record.stored
        if payload.nbytes < stored or not payload.c_contiguous:
            raise InvalidArgument(f"a record of {stored} bytes needs as many in one piece, not {payload.nbytes}")
        total = len(header) + padded(stored)
        if total > self.max_record:
            raise TooLarge(f"a record of {total} bytes; tier {self.name} takes {self.max_record} at most")
        with self._calls:
            if self._cleaner.log_is_full():
                self._meter.count("full")
                raise TierFull(f"the journal of {self.path} has no room for another record; make room first")
            try:
                segment, offset = self._table.reserve(total)
            except TierFull:
                self._meter.count("full")
                raise
            if payload.itemsize != 1:
                payload = payload.cast("B")
            return self._write_at(segment, offset, header, payload, record)

    def _write_at(self, segment: Segment, offset: int, header: bytes, payload: memoryview, record: Record) -> int:
        location, total = locate(segment.key, offset), len(header) + padded(record.stored)
        start, done = self._meter.writes.begin(), 0
        try:
            sealed = seal(header, segment.generation, location)
            self._transfer.write(segment.fd, offset, sealed, payload, record.stored)
            row = pack_row(record, location, created_at(header))
            self._log.append(Entry(Op.PUT, segment.generation, row))
            done = total
        except OSError as error:
            self._meter.count("errors")
            if isinstance(error, KVStoreError):
                raise
            raise as_storage_error(error, f"cannot write {self._table.path(segment.number)}") from error
        finally:
            self._meter.writes.end(start, done)
            if not done:
                self._void(segment, location, total)
            self._table.written(segment, dead=total - done)
        return location

    def _void(self, segment: Segment, location: int, nbytes: int) -> None:
        """Tell the journal, if it can be told, that nothing lies where a write failed."""
        try:
            self._log.append(Entry(Op.VOID, segment.generation, place_row(location, nbytes)))
        except KVStoreError:
            self._meter.count("errors")

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        """Fill `out` from the record at `location`; `NotFound` if its segment has been freed since."""
        with self._calls:
            start, done = self._meter.reads.begin(), 0
            try:
                self._read(location, offset, out)
                done = len(out)
            finally:
                self._meter.reads.end(start, done)

    def read_many(self, requests: Sequence[tuple[int, int, memoryview]]) -> Sequence[Exception | None]:
        outcomes: list[Exception | None] = [None] * len(requests)

        def read(index: int) -> None:
            try:
                self._read(*requests[index])
            except KVStoreError as error:
                outcomes[index] = error

        if not requests:
            return outcomes
        with self._calls:
            start = self._meter.reads.begin()
            self._pool.run(len(requests), read, sum(len(out) for _, _, out in requests))
            done = [len(out) for (_, _, out), error in zip(requests, outcomes, strict=True) if error is None]
            self._meter.reads.end(start, sum(done), len(done))
        return outcomes

    def _read(self, location: int, offset: int, out: memoryview) -> None:
        if out.readonly or not out.c_contiguous:
            raise InvalidArgument("what is read into must be writable memory in one piece")
        if out.itemsize != 1:
            out = out.cast("B")
        segment = self._table.hold(location)
        try:
            start = offset_of(location) + offset
            if offset < 0 or start + len(out) > segment.head:
                raise Corrupt(f"{location:#x} is shorter than the {offset + len(out)} bytes asked for")
            self._transfer.read(segment.fd, start, out)
        except EOFError as error:
            self._meter.count("errors")
            raise Corrupt(f"{self._table.path(segment.number)} is cut off: {error}") from error
        except OSError as error:
            self._meter.count("errors")
            raise as_storage_error(error, f"cannot read {self._table.path(segment.number)}") from error
        finally:
            self._table.release(segment)

    def delete(self, location: int, record_bytes: int) -> None:
        """Forget a record. Its death is journaled before this returns; one that is gone already is no error."""
        with self._calls:
            alive = self._claims.claim(location)
            try:
                generation = self._table.forget(location, record_bytes) if alive else None
                if generation is not None:
                    self._log.append(Entry(Op.DELETE, generation, place_row(location, record_bytes)))
            finally:
                self._claims.release(location, dead=True)

    def make_room(self, nbytes: int, owner: Owner) -> bool:
        if nbytes > self._table.limits.total_bytes:
            return False
        with self._calls:
            return self._cleaner.make_room(nbytes, owner)

    def sync(self) -> None:
        with self._calls:
            self._group_flush()

    def checkpoint(self) -> None:
        """Fold the journal into a new snapshot, while writers go on. Raises `TierFull`, `StorageError`.

        Snapshot and journal say it all. The store's index would not do as a source: a record is journaled before
        the index has it, so a list taken from there may lack one that was acknowledged.
        """
        with self._calls:
            self._log.fold(self._table.keys)
            self._meter.count("checkpoints")

    def close(self) -> None:
        if not self._calls.close():
            return
        self._pool.close()
        try:
            if self._log.started:
                self._flush()
                self._log.append(Entry(Op.STOP))
                self._log.sync()
        finally:
            self._log.close()
            self._table.close()
            self._lock.release()

    def stats(self) -> dict[str, float | int | str]:
        """Counters since the tier was opened, and what it holds now."""
        counts = self._meter.counts()
        written, moved = counts["bytes_written"], counts["moved_bytes"]
        names = (
            "bytes_read", "bytes_written", "records_read", "records_written", "moved_bytes", "segments_cleaned",
            "errors", "full", "moves_failed", "checkpoints",
        )  # fmt: skip
        return {
            **{each: counts[each] for each in names},
            "live_bytes": self._table.live,
            "live_records": self._table.records,
            "segments": len(self._table.segments),
            "file_bytes": self._table.file_bytes() + self._log.nbytes,
            "journal_bytes": self.journal_bytes,
            "write_amplification": (written + moved) / written if written else 1.0,
            "direct": "yes" if self._transfer.direct else "no",
        }

    def _flush(self) -> None:
        """fdatasync what was written: records before the journal that tells of them."""
        try:
            self._table.flush()
        except OSError as error:
            self._meter.count("errors")
            raise as_storage_error(error, f"cannot flush {self.path}") from error
        self._log.sync()

    def _complete(self, segment: Segment) -> None:
        """Journal that a segment is full. Without that its end is searched after a crash, no more."""
        try:
            self._log.append(Entry(Op.CLOSE, segment.generation, place_row(locate(segment.key, 0), 0)))
        except KVStoreError:
            self._meter.count("errors")


def _check_sizes(capacity: int, segment_bytes: int, log_budget: int, io_threads: int) -> None:
    if segment_bytes % BLOCK or not _LEAST_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES:
        raise ConfigError(
            f"segment_bytes must be a multiple of {BLOCK} from {_LEAST_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES}, "
            f"not {segment_bytes}"
        )
    if capacity - log_budget < 2 * segment_bytes:
        raise ConfigError(
            f"capacity {capacity} is too small for two segments of {segment_bytes} bytes and {log_budget} bytes of "
            "journal; raise capacity or lower segment_bytes"
        )
    if capacity // segment_bytes > MAX_SEGMENTS:
        raise ConfigError(f"capacity {capacity} needs more than {MAX_SEGMENTS} segments; raise segment_bytes")
    if io_threads < 1:
        raise ConfigError(f"io_threads must be at least 1, not {io_threads}")


def _make_folders(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} does not exist; make it, or choose another folder for the nvme tier")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is not a folder; choose another path for the nvme tier")
    try:
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


def _allow_files(count: int) -> None:
    """Raise the limit of open files if so many segments need it."""
    needed = count + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConfigError(f"{count} segments need more open files than {hard}; raise segment_bytes or `ulimit -n`")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
