"""The NVMe tier: logs of records in preallocated segments, with a journal and a snapshot of what is in them.

Every record has its header and checksums with it, so a log can be read without either. Follows the log-structured
file system (Rosenblum and Ousterhout, 1992) in appending and in cleaning whole segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from kvstore.errors import ConfigError, InvalidArgument, KVStoreError, NotFound, StorageError, TooLarge
from kvstore.record import BLOCK, Record
from kvstore.spec import KVSpec
from kvstore.tiers.base import OnLoss, Owner, Recovered, Speed, Tier, TierFull, check_read
from kvstore.tiers.meter import Meter
from kvstore.tiers.nvme.calls import Calls
from kvstore.tiers.nvme.drive import Drive, Plan, record_bytes
from kvstore.tiers.nvme.fleet import Fleet, paths_of
from kvstore.tiers.nvme.keeper import Keeper
from kvstore.tiers.nvme.location import drive_of
from kvstore.tiers.nvme.precedence import Precedence
from kvstore.tiers.pool import IoPool

MIB = 1 << 20
_COUNTED = (
    "bytes_read", "bytes_written", "records_read", "records_written", "moved_bytes", "segments_cleaned", "errors",
    "full", "moves_failed", "checkpoints", "drives_lost", "gave_way",
)  # fmt: skip


class Borrowed(NamedTuple):
    """An open file and where in it a record's bytes lie."""

    path: str
    fd: int
    offset: int
    give_back: Callable[[], None]


class NvmeTier(Tier):
    """Records in the folder `path`, or in one folder on each of several drives (`paths`).

    A folder is made if it is not there (its parent must be). `capacity` bounds all files of all folders in bytes,
    the same share for each; a 32nd of it is set aside for journal and snapshot. Segments have `segment_bytes` each and
    no new one is made when less than `reserve_bytes` would stay free on the file system. `io_threads` reads of one
    `read_many` are in flight. `direct` asks for O_DIRECT (True), forbids it (False) or takes it where the file system
    has it (None).

    A drive that fails is taken out: who `watch_losses` is told in words, with a function that says of a location
    whether it is lost; reading one is `NotFound` from then on. A tier of several drives opens without those missing.

    Raises `ConfigError` for numbers or a path that cannot work, `StorageError` for a folder that is in use or
    cannot be written.
    """

    kind: ClassVar[str] = "nvme"
    persistent: bool = True
    evicts: ClassVar[bool] = True

    def __init__(
        self, path: str | Path | None = None, *, paths: Iterable[str | Path] = (), capacity: int,
        segment_bytes: int = 256 * MIB, reserve_bytes: int = 1024 * MIB, io_threads: int = 4, name: str = "nvme",
        direct: bool | None = None,
    ) -> None:  # fmt: skip
        if io_threads < 1:
            raise ConfigError(f"io_threads must be at least 1, not {io_threads}")
        self.name = name
        self.gpudirect = "off: not asked for"
        self.paths = paths_of(path, paths)
        self._meter = Meter(bytes_per_s=1e9, latency_s=2e-4)
        self._precedence = Precedence(self._meter)
        plan = Plan(capacity // len(self.paths), segment_bytes, reserve_bytes, direct)
        self._pool = IoPool(io_threads, f"kvstore-{name}", len(self.paths))
        try:
            self._fleet = Fleet(self.paths, plan, self, self._meter, self._pool, self._precedence.give_way)
        except KVStoreError:
            self._pool.close()
            raise
        self._segment_bytes = segment_bytes
        self._calls = Calls(name)
        self._keeper = Keeper(self._fleet, self._calls, f"kvstore-{name}-keeper")

    @property
    def path(self) -> Path:
        """The first folder."""
        return self.paths[0]

    @property
    def capacity(self) -> int:
        return self._fleet.total(lambda drive: drive.capacity)

    @property
    def used(self) -> int:
        return self._fleet.total(lambda drive: drive.table.live)

    @property
    def written_bytes(self) -> int:
        counts = self._meter.counts()
        logged = self._fleet.total(lambda drive: drive.log.written)
        return counts["bytes_written"] + counts["moved_bytes"] + logged

    @property
    def speed(self) -> Speed:
        return self._meter.speed

    @property
    def state(self) -> str:
        """`ok` as long as any drive is in use; what has become of the others is in `stats`."""
        if self._fleet.live:
            return "ok"
        if all(drive.detached for drive in self._fleet.all):
            return "drained"
        return f"no drive is left: {'; '.join(self._fleet.notes)}"

    @property
    def max_record(self) -> int:
        return self._segment_bytes - BLOCK

    @property
    def journal_bytes(self) -> int:
        """Length of the journals: what would be replayed if the tier died now."""
        return self._fleet.total(lambda drive: drive.log.journal_bytes)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether it is time for a `checkpoint`."""
        return any(drive.log.wants_checkpoint for drive in self._fleet.live)

    def watch_losses(self, told: OnLoss) -> None:
        self._fleet.on_loss = told

    def recover(self) -> Recovered:
        """What the folders held: a row for every record that was written and not deleted since.

        Payload is not verified here. After power loss rows may be among them whose payload never reached the disk,
        if it was not synced. Where a journal was damaged, or a drive was away, deleted records may be back.
        """
        self._calls.check_unopened()
        notes = list(self._fleet.notes)
        rows, clean = self._fleet.recover(notes)
        names: dict[bytes, str] = {}
        specs: dict[bytes, KVSpec] = {}
        for drive in self._fleet.live:
            more_names, more_specs, said = drive.catalog.load()
            names, specs = names | more_names, specs | more_specs
            notes += said
        self._calls.open()
        self._keeper.start()
        return Recovered(names, specs, rows, clean, tuple(notes))

    def tend(self, owner: Owner) -> None:
        """Free segments ahead of need from now on, in a thread of the tier's own that asks `owner`."""
        self._keeper.owner = owner
        self._keeper.wake()

    def drain(self, path: str = "") -> Callable[[int], bool]:
        if not path:
            return super().drain()
        number = self._fleet.drain(path)
        return lambda location: drive_of(location) == number

    def detach(self, path: str = "") -> None:
        with self._calls:
            self._fleet.detach(path)

    def resume(self, path: str = "") -> None:
        with self._calls:
            self._fleet.resume(path)

    def describe(self, namespace: str, spec: KVSpec) -> None:
        with self._calls:
            self._fleet.each(lambda drive: drive.catalog.describe(namespace, spec))

    def put_aside(self, name: str, data: bytes) -> None:
        with self._calls:
            self._fleet.each(lambda drive: drive.catalog.put_aside(name, data))

    def recall(self, name: str) -> Sequence[bytes]:
        with self._calls:
            return [data for drive in self._fleet.live for data in drive.catalog.recall(name)]

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        """Keep a record and return its location. It survives kill -9 from then on, and power loss after `sync`.

        Memory that begins on a 4 KiB boundary is written as it is. Raises `TierFull`, `StorageError`, and
        `TooLarge` for a record longer than `max_record`.
        """
        stored = record.stored
        if payload.nbytes < stored or not payload.c_contiguous:
            raise InvalidArgument(f"a record of {stored} bytes needs as many in one piece, not {payload.nbytes}")
        total = record_bytes(header, record)
        if total > self.max_record:
            raise TooLarge(f"a record of {total} bytes; tier {self.name} takes {self.max_record} at most")
        if payload.itemsize != 1:
            payload = payload.cast("B")
        with self._calls:
            self._precedence.give_way()
            start, done = self._meter.writes.begin(), 0
            try:
                location = self._write(header, payload, record, total)
                done = total
            finally:
                self._meter.writes.end(start, done)
        return location

    def _write(self, header: bytes, payload: memoryview, record: Record, total: int) -> int:
        """Write to the drive whose turn it is, or to the next where that is full or fails for good."""
        failure: KVStoreError | None = None
        for drive in self._fleet.order(total):
            try:
                location = drive.write(header, payload, record, total)
                if drive.table.wants_care:
                    self._keeper.wake()
                return location
            except TierFull as error:
                failure = failure or error
            except StorageError as error:
                if not self._fleet.examine(drive):
                    raise
                failure = error
        assert failure is not None
        if isinstance(failure, TierFull):
            self._meter.count("full")
        raise failure

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        """Fill `out` from the record at `location`; `NotFound` if its segment was freed or its drive lost."""
        with self._calls:
            start, done = self._meter.reads.begin(), 0
            try:
                self._read(location, offset, out)
                done = len(out)
            finally:
                self._meter.reads.end(start, done)

    def read_many(self, requests: Sequence[tuple[int, int, memoryview]]) -> Sequence[Exception | None]:
        if not requests:
            return []
        with self._calls:
            start = self._meter.reads.begin()
            outcomes = self._pool.outcomes(requests, self._read, sum(len(out) for _, _, out in requests))
            done = [len(out) for (_, _, out), error in zip(requests, outcomes, strict=True) if error is None]
            self._meter.reads.end(start, sum(done), len(done))
        return outcomes

    def _read(self, location: int, offset: int, out: memoryview) -> None:
        check_read(offset, out)
        if out.itemsize != 1:
            out = out.cast("B")
        drive = self._fleet.of(location)
        try:
            if len(self._fleet.all) == 1:
                drive.read(location, offset, out)
            else:
                self._read_timed(drive, location, offset, out)
        except StorageError as error:
            if self._fleet.examine(drive):
                raise NotFound(f"{location:#x} lies on drive {drive.number}, which is {drive.out}") from error
            raise

    def _read_timed(self, drive: Drive, location: int, offset: int, out: memoryview) -> None:
        """Read, and learn how fast this drive is beside the others."""
        flow = self._fleet.flows[drive.number]
        start, done = flow.begin(), 0
        try:
            drive.read(location, offset, out)
            done = len(out)
        finally:
            flow.end(start, done)

    def borrow(self, location: int, offset: int, nbytes: int) -> Borrowed:
        """The file of a record, kept as it is until it is given back, for who reads it by other means.

        `NotFound`, `Corrupt` as `read_into`.
        """
        self._calls.__enter__()
        try:
            drive = self._fleet.of(location)
            segment, start = drive.hold(location, offset, nbytes)
        except BaseException:
            self._calls.__exit__(None, None, None)
            raise

        def give_back() -> None:
            drive.table.release(segment)
            self._calls.__exit__(None, None, None)

        return Borrowed(str(drive.table.path(segment.number)), segment.fd, start, give_back)

    def probe_files(self) -> Sequence[str]:
        """A file on every drive that can be read, for trying whether some means of reading works there."""
        return [str(drive.log.journal_path) for drive in self._fleet.live]

    def delete(self, location: int, record_bytes: int) -> None:
        """Forget a record. Its death is journaled before this returns; one that is gone already is no error."""
        with self._calls:
            try:
                drive = self._fleet.of(location)
            except NotFound:
                return
            try:
                with drive.gate.passing():
                    if not drive.detached:
                        drive.delete(location, record_bytes)
            except StorageError:
                if not self._fleet.examine(drive):
                    raise

    def make_room(self, nbytes: int, owner: Owner) -> bool:
        """Free segments on every drive, so that the next writes are spread over all of them."""
        with self._calls:
            live = self._fleet.writable
            if nbytes > sum(drive.table.limits.total_bytes for drive in live):
                return False
            share = nbytes if nbytes <= self.max_record else -(-nbytes // len(live))
            made = []
            for drive in live:
                try:
                    with drive.gate.passing():
                        made.append(not drive.detached and drive.make_room(share, owner))
                except StorageError:
                    if not self._fleet.examine(drive):
                        raise
            return any(made) if share == nbytes else bool(made) and all(made)

    def sync(self) -> None:
        with self._calls:
            self._fleet.each(Drive.sync)

    def checkpoint(self) -> None:
        """Fold the journals into new snapshots, while writers go on. Raises `TierFull`, `StorageError`.

        Snapshot and journal say it all. The store's index would not do as a source: a record is journaled before
        the index has it, so a list taken from there may lack one that was acknowledged.
        """
        with self._calls:
            self._fleet.each(Drive.checkpoint)

    def close(self) -> None:
        self._keeper.stop()
        if not self._calls.close():
            return
        self._keeper.join()
        self._fleet.close()
        self._pool.close()

    def stats(self) -> dict[str, float | int | str]:
        """Counters since the tier was opened, and what it holds now.

        `stored_bytes` were admitted, `written_bytes` went to the drives for that: records, those that were moved,
        journals and snapshots.
        """
        counts, fleet = self._meter.counts(), self._fleet
        stored = counts["bytes_written"]
        written = self.written_bytes
        drives = {f"drive_{drive.number}": f"{drive.path}: {drive.condition}" for drive in fleet.all}
        return {
            **{each: counts[each] for each in _COUNTED},
            "live_bytes": self.used,
            "live_records": fleet.total(lambda drive: drive.table.records),
            "segments": fleet.total(lambda drive: len(drive.table.segments)),
            "file_bytes": fleet.total(lambda drive: drive.table.file_bytes() + drive.log.nbytes),
            "journal_bytes": self.journal_bytes,
            "stored_bytes": stored,
            "written_bytes": written,
            "write_amplification": written / stored if stored else 1.0,
            "direct": "yes" if all(drive.transfer.direct for drive in fleet.all) else "no",
            "gpudirect": self.gpudirect,
            "drives": len(fleet.live),
            "drives_missing": len(self.paths) - len(fleet.live),
            **(drives if len(self.paths) > 1 or fleet.lost else {}),
        }
