"""Making room: segments are emptied whole, the ones with the fewest live bytes first.

A victim's records are shown to the owner; what it keeps is moved to the end of the log, if that is not more than
half of the segment. A segment is used again only when its end is durable in the journal and, if records were
moved out of it, their new copies are durable too, so that power loss never takes back what had been synced.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence

from kvstore.tiers.base import Owner, Tier, Verdict
from kvstore.tiers.nvme.io import Transfer
from kvstore.tiers.nvme.journal import Entry, Op
from kvstore.tiers.nvme.location import locate, offset_of
from kvstore.tiers.nvme.log import Log
from kvstore.tiers.nvme.meter import Meter
from kvstore.tiers.nvme.rows import pack_row, place_row
from kvstore.tiers.nvme.scan import SegmentScan
from kvstore.tiers.nvme.segments import Segment, SegmentTable

from kvstore.errors import KVStoreError
from kvstore.record import Record, seal

_BATCH = 256
_MOST_KEPT = 0.5
Placed = tuple[Record, int]


class Cleaner:
    """Frees segments of one tier, one caller at a time."""

    def __init__(
        self, tier: Tier, table: SegmentTable, log: Log, transfer: Transfer, meter: Meter, log_budget: int,
        flush: Callable[[], None],
    ) -> None:  # fmt: skip
        self._tier, self._table, self._log = tier, table, log
        self._transfer, self._meter, self._flush = transfer, meter, flush
        self._log_budget = log_budget
        self._busy = False
        self._turn = threading.Condition()

    def log_is_full(self) -> bool:
        """Whether journal and snapshot would outgrow their share of the capacity."""
        _, records, _ = self._table.totals()
        return self._log.nbytes + (records + 1) * ROW_ON_DISK > self._log_budget

    def make_room(self, nbytes: int, owner: Owner) -> bool:
        """Free segments until `nbytes` can be appended; False when nothing is left that could be freed."""
        with self._turn:
            while self._busy:
                self._turn.wait()
            self._busy = True
        try:
            return self._clean(nbytes, owner)
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify()

    def _clean(self, nbytes: int, owner: Owner) -> bool:
        tried: set[int] = set()
        while True:
            if self.log_is_full():
                self._log.fold(self._table.keys)
            if self._table.fits(nbytes) and not self.log_is_full():
                return True
            victim = next((s for s in self._table.victims() if s.key not in tried), None)
            if victim is None:
                if not self._table.close_active():
                    return False
                continue
            tried.add(victim.key)
            if self._empty(victim, owner):
                self._free(victim)

    def _empty(self, victim: Segment, owner: Owner) -> bool:
        """Whether nothing in the segment is needed any more, after moving what has to be kept."""
        if victim.records == 0:
            return True
        try:
            placed = list(self._walk(victim))
        except (OSError, EOFError):
            self._meter.count("errors")
            return False
        verdicts: list[Verdict] = []
        for start in range(0, len(placed), _BATCH):
            verdicts += owner.judge(self._tier, placed[start : start + _BATCH])
        kept = [each for each, verdict in zip(placed, verdicts, strict=True) if verdict is Verdict.KEEP]
        gone = [each for each, verdict in zip(placed, verdicts, strict=True) if verdict is Verdict.DROP]
        nbytes = sum(record.total_bytes for record, _ in kept)
        if nbytes <= _MOST_KEPT * victim.size and (not kept or self._table.fits(nbytes, moving=True)):
            moved = self._move_all(victim, kept, owner)
            if len(moved) == len(kept):
                if kept:
                    self._flush()
                return True
            gone += moved
        self._bury(gone)
        return False

    def _walk(self, victim: Segment) -> Sequence[Placed]:
        def read(offset: int, out: memoryview) -> None:
            self._transfer.read(victim.fd, offset, out)

        return list(SegmentScan(read, victim.number, victim.generation).walk(victim.head))

    def _move_all(self, victim: Segment, kept: Sequence[Placed], owner: Owner) -> list[Placed]:
        """The records that were moved; not all of them if the tier filled up or the disk failed meanwhile."""
        if not kept:
            return []
        moved: list[Placed] = []
        with mmap.mmap(-1, max(record.total_bytes for record, _ in kept)) as memory, memoryview(memory) as buffer:
            for record, old in kept:
                try:
                    new = self._move(victim, record, old, buffer)
                except (KVStoreError, OSError, EOFError):
                    self._meter.count("moves_failed")
                    break
                moved.append((record, old))
                self._meter.count("moved_bytes", record.total_bytes)
                if not owner.moved(self._tier, record, old, new):
                    self._bury([(record, new)])
        return moved

    def _move(self, victim: Segment, record: Record, old: int, buffer: memoryview) -> int:
        total = record.total_bytes
        with buffer[:total] as whole:
            self._transfer.read(victim.fd, offset_of(old), whole)
            target, offset = self._table.reserve(total, moving=True)
            new, dead = locate(target.key, offset), total
            try:
                header = seal(bytes(whole[: record.header_bytes]), target.generation, new)
                with whole[record.header_bytes :] as payload:
                    self._transfer.write(target.fd, offset, header, payload, record.stored)
                row = pack_row(record, new, record.created_ms)
                self._log.append(Entry(Op.PUT, target.generation, row))
                dead = 0
            finally:
                self._table.written(target, dead=dead)
        return new

    def _bury(self, placed: Sequence[Placed]) -> None:
        """Journal the deaths of records whose segment is not freed."""
        for record, location in placed:
            generation = self._table.forget(location, record.total_bytes)
            if generation is not None:
                self._log.append(Entry(Op.DELETE, generation, place_row(location, record.total_bytes)))

    def _free(self, victim: Segment) -> None:
        self._log.append(Entry(Op.FREE, victim.generation, place_row(locate(victim.key, 0), 0)))
        self._log.sync()
        self._table.retire(victim)
        self._table.free(victim)
        self._meter.count("segments_cleaned")


ROW_ON_DISK = 176
"""Bytes that a record adds to a snapshot, at most."""
