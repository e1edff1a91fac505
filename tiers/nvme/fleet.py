"""The drives of a tier: opened together, written to in turn, taken out when they fail.

Whole segments lie on one drive, and every drive has a segment of its own that is appended to, so the records of a
prefix, which are written one after the other, lie on all drives and are read from all of them at once. Stripes
inside a segment would make a single record faster, but every record would be gone with any one drive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from kvstore.errors import ConfigError, InvalidArgument, KVStoreError, NotFound, StorageError
from kvstore.record import BLOCK, padded
from kvstore.tiers.base import OnLoss, Tier
from kvstore.tiers.meter import Flow, Meter
from kvstore.tiers.nvme.drive import Drive, Plan, allow_files
from kvstore.tiers.nvme.location import drive_of
from kvstore.tiers.nvme.lock import FolderInUse
from kvstore.tiers.nvme.members import call_roll, check_member, write_members
from kvstore.tiers.nvme.rows import Table, join
from kvstore.tiers.pool import IoPool

_EXAMINE_AGAIN_S = 0.5
_LAST_DELETIONS_S = 10.0  # for records of a drained drive that the index has forgotten and the journal has not yet


class Fleet:
    """`live` are the drives in use, those that are being drained included, `writable` the others of them.

    `notes` says which are not in use and why, `lost` counts those that failed.
    """

    def __init__(
        self, paths: Sequence[Path], plan: Plan, tier: Tier, meter: Meter, pool: IoPool, give_way: Callable[[], None]
    ) -> None:
        """Open every folder. `ConfigError`, `StorageError` unless all that belong together work, or but some of them
        are known to be missing.
        """
        self.notes: list[str] = []
        self.lost = 0
        self.on_loss: OnLoss = lambda note, is_lost: None
        self._meter = meter
        self._open = partial(_open, plan=plan, tier=tier, meter=meter, pool=pool, give_way=give_way)
        self._guard = threading.Lock()
        self._examined: dict[int, float] = {}
        roll = call_roll(paths)
        allow_files(len(paths) * (plan.capacity // plan.segment_bytes))
        opened: list[Drive] = []
        try:
            for path, number in roll.numbers.items():
                try:
                    opened.append(self._open(path, number))
                except FolderInUse:
                    raise
                except (StorageError, ConfigError) as error:
                    if len(paths) == 1 or number not in roll.known:
                        raise
                    roll.missing[path] = str(error)
            if not opened:
                raise StorageError("; ".join(roll.missing.values()))
            if len(paths) > 1 or roll.known:
                write_members(roll, {drive.path: drive.number for drive in opened})
        except KVStoreError:
            for drive in opened:
                drive.close()
            raise
        self._identity = roll.identity if len(paths) > 1 or roll.known else ""
        self.all: Sequence[Drive] = tuple(opened)
        self.live: Sequence[Drive] = tuple(opened)
        self._by_number = {drive.number: drive for drive in opened}
        self.flows = {drive.number: Flow(1e9, 2e-4) for drive in opened}
        self.notes += [f"{path} is left out, what lies there are misses: {why}" for path, why in roll.missing.items()]

    def recover(self, notes: list[str]) -> tuple[Table, bool]:
        """The rows of all drives, and whether all were closed in order."""
        tables, clean = [], True
        for drive in self.all:
            try:
                rows, was_clean = drive.recover(notes)
            except StorageError as error:
                if len(self.live) == 1 or not self.examine(drive):
                    raise
                notes.append(f"{drive.path} is left out: {error}")
                continue
            tables.append(rows)
            clean &= was_clean
        return join(tables), clean

    def of(self, location: int) -> Drive:
        """The drive of a location; `NotFound` if it is gone."""
        number = drive_of(location)
        drive = self._by_number.get(number)
        if drive is None or drive.out:
            raise NotFound(f"{location:#x} lies on drive {number}, which is {drive.out if drive else 'not there'}")
        return drive

    @property
    def writable(self) -> Sequence[Drive]:
        """The drives that records are written to."""
        live = self.live
        return live if not any(drive.draining for drive in live) else [each for each in live if not each.draining]

    def order(self, nbytes: int) -> Sequence[Drive]:
        """The drives to try for a record, each in turn by its measured speed. `StorageError` if there is none."""
        live = self.writable
        if len(live) == 1:
            return live
        if not live:
            raise StorageError(f"no drive is left: {'; '.join(self.notes)}")
        with self._guard:
            order = sorted(live, key=lambda drive: drive.clock)
            order[0].clock += nbytes / self.flows[order[0].number].bytes_per_s
        return order

    def examine(self, drive: Drive) -> bool:
        """After an error: whether the drive is (or was) taken out, since nothing can be written to it any more."""
        with self._guard:
            now = time.monotonic()
            if drive.out or now - self._examined.get(drive.number, -1e9) < _EXAMINE_AGAIN_S:
                return bool(drive.out)
            self._examined[drive.number] = now
        why = drive.trouble(thorough=True)
        if why:
            self.take_out(drive, why)
        return bool(why)

    def look_after(self) -> None:
        """Take out drives that were unmounted or went read-only without anybody having noticed."""
        for drive in self.live:
            why = drive.trouble(thorough=False)
            if why:
                self.take_out(drive, why)

    def take_out(self, drive: Drive, why: str) -> None:
        """Use a drive no more. What lies on it are misses from now on."""
        with self._guard:
            if drive.out:
                return
            drive.out = f"out of use: {why}"
            self.live = tuple(each for each in self.live if each is not drive)
            note = f"{drive.path} (drive {drive.number}) is {drive.out}; its {drive.table.records} records are misses"
            self.notes.append(note)
            self.lost += 1
        self._meter.count("drives_lost")
        self.on_loss(note, lambda location: drive_of(location) == drive.number)

    def drain(self, path: str) -> int:
        """Write nothing more to the drive at `path`; its number. `InvalidArgument` if it is none, or the last one."""
        drive = self._at(path)
        with self._guard:
            if not any(each is not drive for each in self.writable):
                raise InvalidArgument(
                    f"{drive.path} is the only drive left to write to: drain the whole tier, or add another drive"
                )
            drive.draining = True
        return drive.number

    def detach(self, path: str = "") -> None:
        """Close the drive at `path`, or all of them, on which nothing lies any more."""
        for drive in [self._at(path)] if path else self.all:
            if drive.out:
                continue
            deadline = time.monotonic() + _LAST_DELETIONS_S
            while drive.table.records and time.monotonic() < deadline:
                time.sleep(0.01)
            with drive.gate.alone():
                with self._guard:
                    self.live = tuple(each for each in self.live if each is not drive)
                drive.detach()

    def resume(self, path: str = "") -> None:
        """Write to the drive at `path`, or to all, again. `StorageError` where it is not there (any more)."""
        for drive in [self._at(path)] if path else self.all:
            if drive.detached:
                self._attach(drive)
            drive.draining = False

    def _attach(self, before: Drive) -> None:
        """Open a drive that was detached. What should lie on it nobody knows of any more: it goes."""
        check_member(before.path, self._identity, before.number)
        drive = self._open(before.path, before.number)
        try:
            rows, _ = drive.recover(self.notes)
            drive.catalog.load()
            for row in rows:
                nbytes = int(row["header_blocks"]) * BLOCK + padded(int(row["stored"]))
                drive.delete(int(row["location"]), nbytes)
        except BaseException:
            drive.close()
            raise
        with self._guard:
            self.all = tuple(drive if each is before else each for each in self.all)
            self._by_number[drive.number] = drive
            self.live = (*self.live, drive)

    def _at(self, path: str) -> Drive:
        found = next((drive for drive in self.all if drive.path.absolute() == Path(path).absolute()), None)
        if found is None:
            known = ", ".join(str(drive.path) for drive in self.all)
            raise InvalidArgument(f"{path} is no drive of this tier; it has {known}")
        return found

    def each(self, work: Callable[[Drive], None]) -> None:
        """Do something on every drive in use. What fails is raised in the end, unless the drive is out by then."""
        failure: KVStoreError | None = None
        for drive in self.live:
            try:
                with drive.gate.passing():
                    if not drive.detached:
                        work(drive)
            except KVStoreError as error:
                if not (isinstance(error, StorageError) and self.examine(drive) and self.live):
                    failure = error
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close every drive; what the first that fails says is raised in the end."""
        failures: list[Exception] = []
        for drive in self.all:
            if drive.detached:
                continue
            try:
                drive.close()
            except (OSError, KVStoreError) as error:
                if not drive.out:
                    failures.append(error)
        if failures:
            raise failures[0]

    def total(self, count: Callable[[Drive], int]) -> int:
        """A sum over the drives in use."""
        return sum(map(count, self.live))


def _open(
    path: Path, number: int, *, plan: Plan, tier: Tier, meter: Meter, pool: IoPool, give_way: Callable[[], None]
) -> Drive:
    return Drive(path, number, plan, tier, meter, pool, give_way)


def paths_of(path: str | Path | None, paths: Iterable[str | Path]) -> list[Path]:
    """What one path or several come to. `ConfigError` for both, for none, and for one that is there twice."""
    several = [Path(each) for each in paths]
    if (path is None) == (not several):
        raise ConfigError("the nvme tier takes `path`, one folder, or `paths`, one folder on each drive")
    found = several or [Path(str(path))]
    if len({each.resolve() for each in found}) < len(found):
        raise ConfigError(f"a folder is named twice in `paths`: {', '.join(map(str, found))}")
    return found
