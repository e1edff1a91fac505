"""Making room: segments are emptied whole, the oldest first.

A victim's records are shown to the owner; what it keeps (what was used since the segment was filled) is moved to the
end of the log: up to nine tenths of one segment less its longest record, but in the long run no more than is admitted,
so that the drive is never written to more than twice as much. Segments differ: a popular prefix may fill one, and a
limit of half of each costs a chat trace half a point of its hits. It comes within a point of LRU's, with 1.2 bytes
written for each that is admitted (`kvstore.bench.nvme_trace`). New copies are durable before the journal calls the old
ones dead, and a segment is used again only when its end is durable in the journal: power loss never takes back what had
been synced.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from kvstore.errors import KVStoreError
from kvstore.record import Record, seal
from kvstore.tiers.base import Owner, Tier, Verdict
from kvstore.tiers.meter import Meter
from kvstore.tiers.nvme.claims import Claims
from kvstore.tiers.nvme.io import Transfer
from kvstore.tiers.nvme.journal import GROWTH_BYTES, Entry, Op
from kvstore.tiers.nvme.location import locate, offset_of
from kvstore.tiers.nvme.log import Log
from kvstore.tiers.nvme.rows import pack_row, place_row
from kvstore.tiers.nvme.scan import SegmentScan
from kvstore.tiers.nvme.segment import Segment
from kvstore.tiers.nvme.segments import SegmentTable

ROW_ON_DISK = 176
SNAPSHOT_HEAD = 16 << 10
_BATCH = 256
_MOST_KEPT = 0.9
_LEAST_ALLOWED = 0.25  # of a segment: what may be moved of it however much was moved before
_SAVED_UP = 8  # segments that may be moved beyond what was admitted meanwhile
_LIKELIEST = 8  # victims that are tried where nobody waits
Placed = tuple[Record, int]


class _Copy(NamedTuple):
    """A record that was written a second time, before anybody was told."""

    record: Record
    old: int
    new: int
    target: Segment


class Cleaner:
    """Frees segments of one tier, one caller at a time."""

    def __init__(
        self, tier: Tier, table: SegmentTable, log: Log, transfer: Transfer, meter: Meter, claims: Claims,
        log_budget: int, flush: Callable[[], None], give_way: Callable[[], None],
    ) -> None:  # fmt: skip
        self._tier, self._table, self._log = tier, table, log
        self._transfer, self._meter, self._claims, self._flush = transfer, meter, claims, flush
        self._log_budget, self._give_way = log_budget, give_way
        self._allowance, self._admitted = _SAVED_UP * table.limits.segment_bytes, 0
        self._busy, self._waiting = False, 0
        self._turn = threading.Condition()

    def log_is_full(self) -> bool:
        """Whether journal and snapshot would outgrow their share of the capacity."""
        snapshot = (self._table.records + 1) * ROW_ON_DISK + SNAPSHOT_HEAD
        return self._log.nbytes + snapshot + GROWTH_BYTES > self._log_budget

    def make_room(self, nbytes: int, owner: Owner) -> bool:
        """Free segments until `nbytes` can be appended; False when nothing is left that could be freed."""
        with self._in_turn():
            return self._clean(nbytes, owner)

    def free_one(self, owner: Owner) -> bool:
        """Free one segment ahead of need; False if none of the likeliest can be freed, or somebody waits for room."""
        if self._waiting:
            return False
        with self._in_turn():
            if self.log_is_full():
                self._log.fold(self._table.keys)
            for victim in self._table.victims()[:_LIKELIEST]:
                if self._empty(victim, owner):
                    self._free(victim)
                    return True
            return False

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._turn:
            self._waiting += 1
            while self._busy:
                self._turn.wait()
            self._waiting -= 1
            self._busy = True
        try:
            yield
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify()

    def _clean(self, nbytes: int, owner: Owner) -> bool:
        tried: set[int] = set()
        may_close = True
        most = 2 * len(self._table.victims()) + 4  # what is moved fills segments that would be victims again, for ever
        for _ in range(most):
            if self.log_is_full():
                self._log.fold(self._table.keys)
            if self._table.fits(nbytes) and not self.log_is_full():
                return True
            victim = next((s for s in self._table.victims() if s.key not in tried), None)
            if victim is None:
                if not may_close or not self._table.close_active():
                    return False
                may_close = False  # once: others may open the next one and go on
                continue
            tried.add(victim.key)
            if self._empty(victim, owner):
                self._free(victim)
        return False

    def _empty(self, victim: Segment, owner: Owner) -> bool:
        """Whether nothing in the segment is needed any more, after moving what has to be kept."""
        if victim.records == 0:
            return True
        try:
            placed = list(self._walk(victim))
        except (OSError, EOFError):
            self._meter.count("errors")
            return False
        self._claims.watch(frozenset(location for _, location in placed))
        # The end of a segment that the longest record does not fit is lost: moving as much as that frees gains nothing.
        bound = int(_MOST_KEPT * victim.size) - max((record.total_bytes for record, _ in placed), default=0)
        share = max(0, min(bound, self._movable(victim))) / victim.size
        verdicts: list[Verdict] = []
        for start in range(0, len(placed), _BATCH):
            batch = placed[start : start + _BATCH]
            most = int(share * sum(record.total_bytes for record, _ in batch))
            verdicts += owner.judge(self._tier, batch, victim.filled_ms, most)
        kept = [each for each, verdict in zip(placed, verdicts, strict=True) if verdict is Verdict.KEEP]
        gone = [each for each, verdict in zip(placed, verdicts, strict=True) if verdict is Verdict.DROP]
        nbytes = sum(record.total_bytes for record, _ in kept)
        movable = not kept or (nbytes <= bound and self._table.fits(nbytes, moving=True))
        self._allowance -= nbytes if movable else 0
        if movable and self._move(victim, kept, owner):
            return True
        self._bury(gone)
        return False

    def _movable(self, victim: Segment) -> int:
        """How many bytes of a segment may be kept: what was admitted adds to it, what was moved takes from it."""
        admitted, self._admitted = self._table.admitted - self._admitted, self._table.admitted
        self._allowance = min(self._allowance + admitted, _SAVED_UP * victim.size)
        return int(min(_MOST_KEPT * victim.size, max(self._allowance, _LEAST_ALLOWED * victim.size)))

    def _walk(self, victim: Segment) -> Sequence[Placed]:
        def read(offset: int, out: memoryview) -> None:
            self._transfer.read(victim.fd, offset, out)

        return list(SegmentScan(read, victim.number, victim.generation).walk(victim.head))

    def _move(self, victim: Segment, kept: Sequence[Placed], owner: Owner) -> bool:
        """Move records to the end of the log; False if the tier filled up or the disk failed before all were."""
        if not kept:
            return True
        copies: list[_Copy] = []
        try:
            buffer = memoryview(mmap.mmap(-1, max(record.total_bytes for record, _ in kept)))
            for record, old in kept:
                self._give_way()
                copies.append(self._copy(victim, record, old, buffer))
        except (KVStoreError, OSError, EOFError):
            self._meter.count("moves_failed")
        try:
            self._flush()  # before the journal says that the old places are dead
        except KVStoreError:
            for copy in copies:
                self._discard(copy)
            return False
        switched = [self._switch(victim, copy, owner) for copy in copies]
        return len(copies) == len(kept) and all(switched)

    def _copy(self, victim: Segment, record: Record, old: int, buffer: memoryview) -> _Copy:
        total = record.total_bytes
        self._transfer.read(victim.fd, offset_of(old), buffer[:total])
        target, offset = self._table.reserve(total, moving=True)
        new = locate(target.key, offset)
        try:
            header = seal(bytes(buffer[: record.header_bytes]), target.generation, new)
            self._transfer.write(target.fd, offset, header, buffer[record.header_bytes : total], record.stored)
        except OSError:
            self._table.written(target, dead=total)
            raise
        return _Copy(record, old, new, target)

    def _switch(self, victim: Segment, copy: _Copy, owner: Owner) -> bool:
        """From now on the record is where its copy is, for the journal, the books and the owner."""
        total = copy.record.total_bytes
        row = pack_row(copy.record, copy.new, copy.record.created_ms)
        alive = self._claims.claim(copy.old)
        try:
            if not alive:
                self._discard(copy)
                return True
            try:
                self._log.append(
                    Entry(Op.PUT, copy.target.generation, row),
                    Entry(Op.DELETE, victim.generation, place_row(copy.old, total)),
                )
            except KVStoreError:
                self._discard(copy)
                return False
            self._table.written(copy.target)
            self._table.forget(copy.old, total)
            self._meter.count("moved_bytes", total)
            if not owner.moved(self._tier, copy.record, copy.old, copy.new):
                self._bury([(copy.record, copy.new)])
            return True
        finally:
            self._claims.release(copy.old)

    def _discard(self, copy: _Copy) -> None:
        """Forget a copy that nobody was told of, if possible also in the journal."""
        total = copy.record.total_bytes
        self._table.written(copy.target, dead=total)
        self._meter.count("moves_failed")
        with suppress(KVStoreError):
            self._log.append(Entry(Op.VOID, copy.target.generation, place_row(copy.new, total)))

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
