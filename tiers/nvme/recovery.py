"""Opening a folder: what snapshot and journal tell, held against the segments that are really there.

That is all after a clean stop and after kill -9, because what the journal does not have was never acknowledged. Where
journal or snapshot is damaged, whatever part of a segment they do not account for is searched for records sealed for
that life of that place: a journal that lost its end, its middle or all of it costs time and nothing that was
persisted. Then, and only then, a fresh snapshot and journal are written.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field, replace

import numpy as np

from kvstore.errors import StorageError
from kvstore.record import BLOCK
from kvstore.tiers.base import RECOVERED_DTYPE
from kvstore.tiers.nvme.io import IoPool, Transfer
from kvstore.tiers.nvme.journal import Entry, JournalContent, Op, load_journal
from kvstore.tiers.nvme.location import BLOCK_BITS, locate
from kvstore.tiers.nvme.log import Log
from kvstore.tiers.nvme.replay import Replayed, gaps, known_rows, offsets, replay
from kvstore.tiers.nvme.rows import Table, join, pack_row, pick, place_row, row_bytes
from kvstore.tiers.nvme.scan import SegmentScan
from kvstore.tiers.nvme.segment import Segment, State, unpack_header
from kvstore.tiers.nvme.segments import SegmentTable
from kvstore.tiers.nvme.snapshot import Life, Snapshot, load_snapshot


@dataclass
class Opening:
    """One opening of a folder."""

    table: SegmentTable
    log: Log
    transfer: Transfer
    pool: IoPool
    notes: list[str] = field(default_factory=list)

    def run(self) -> tuple[Table, bool]:
        """Live rows, and whether the last stop was clean. Fills the table and starts the log."""
        snapshot, problem = load_snapshot(self.log.snapshot_path)
        journals = [j for p in (self.log.journal_path, self.log.next_path) if (j := load_journal(p)) is not None]
        segments = self._find_segments()
        if snapshot is None and not journals and not segments:
            self.log.restart(Snapshot())
            return np.zeros(0, RECOVERED_DTYPE), True
        if snapshot is None:
            self.notes.append(problem)
        told = replay(snapshot or Snapshot(), journals)
        self.notes += told.damage
        clean = told.stopped and snapshot is not None
        rows = self._rows_in_place(told.state.rows, told.state.lives, segments)
        if told.damage:
            rows = self._without_copies(join([rows, self._search(told, segments)]))
        rows = self._fit_capacity(rows, segments)
        self._settle_states(rows, told, segments)
        intact = snapshot is not None and not told.damage and len(journals) == 1
        self._start_log(rows, told, journals[0] if intact else None)
        return rows, clean

    def _find_segments(self) -> dict[int, Segment]:
        found = {}
        for name in sorted(os.listdir(self.table.folder)):
            stem, dot, suffix = name.partition(".")
            if dot and suffix == "seg" and stem.isdigit():
                found[int(stem)] = self._inspect(int(stem))
        return found

    def _inspect(self, number: int) -> Segment:
        path = self.table.path(number)
        segment = Segment(number, self.table.limits.segment_bytes)
        try:
            segment.fd = self.table.open_file(number)
            length = os.fstat(segment.fd).st_size
            with mmap.mmap(-1, BLOCK) as memory, memoryview(memory) as block:
                os.preadv(segment.fd, [block], 0)
                blank = not any(block)
                head = unpack_header(block)
        except StorageError as error:
            raise StorageError(f"{path}: {error}") from error
        except OSError as error:
            return self._lost(segment, f"{path.name} cannot be read ({error.strerror}); its records are dropped")
        if head is not None and head[0] == number and length >= head[2]:
            segment.generation, segment.size = head[1], head[2]
            return segment
        if blank or (head is not None and head[0] == number):
            if not blank:
                self.notes.append(f"{path.name} is cut off at {length} bytes; its records are dropped")
            os.close(segment.fd)
            segment.fd, segment.generation = -1, head[1] if head is not None else 0
            return segment
        segment.size = length
        return self._lost(segment, f"{path.name} has a foreign header; left alone, its records are dropped")

    def _lost(self, segment: Segment, note: str) -> Segment:
        self.notes.append(note)
        segment.state = State.LOST
        if segment.fd >= 0:
            os.close(segment.fd)
            segment.fd = -1
        return segment

    def _rows_in_place(self, rows: Table, lives: dict[int, Life], segments: dict[int, Segment]) -> Table:
        """The rows whose life is the one that their segment's header names, and which end inside it."""
        present = [
            key
            for key, life in lives.items()
            if (s := segments.get(life.segment)) is not None and s.fd >= 0 and s.generation == life.generation
        ]
        for life in lives.values():
            if life.segment not in segments and not life.freed:
                self.notes.append(f"{life.segment:06d}.seg is missing; its records are dropped")
        kept = pick(rows, known_rows(rows, present))
        sizes = np.zeros(max(segments, default=0) + 1, np.int64)
        for number, segment in segments.items():
            sizes[number] = segment.size
        numbers = (kept["location"] >> np.uint64(BLOCK_BITS)) & np.uint64((1 << 20) - 1)
        inside = offsets(kept) + row_bytes(kept).astype(np.int64) <= sizes[numbers.astype(np.int64)]
        if len(rows) > int(inside.sum()):
            self.notes.append(f"{len(rows) - int(inside.sum())} records were dropped with their segments")
        return pick(kept, inside)

    def _search(self, told: Replayed, segments: dict[int, Segment]) -> Table:
        """Rows of the records that no journal accounts for."""
        jobs: list[tuple[Segment, list[tuple[int, int]]]] = []
        for segment in segments.values():
            if segment.fd < 0 or not segment.generation:
                continue
            life = told.state.lives.get(segment.key) or Life(segment.number, segment.generation, BLOCK)
            if not life.closed and not life.freed:
                jobs.append((segment, gaps(life, told.extents.get(segment.key), segment.size)))
        found: list[bytes] = []

        def search(index: int) -> None:
            segment, ranges = jobs[index]
            scan = SegmentScan(
                lambda at, out: self.transfer.read(segment.fd, at, out), segment.number, segment.generation
            )
            try:
                for record, location in scan.find(ranges):
                    found.append(pack_row(record, location, record.created_ms))
            except (OSError, EOFError) as error:
                self.notes.append(f"{self.table.path(segment.number).name} cannot be searched ({error})")

        if jobs:
            self.pool.run(len(jobs), search)
        if found:
            self.notes.append(f"{len(found)} records were found in their segments and not in the journal")
        return np.frombuffer(b"".join(found), RECOVERED_DTYPE)

    def _without_copies(self, rows: Table) -> Table:
        """One row of each record: a move that was interrupted leaves two."""
        mixed = np.zeros(len(rows), np.uint64)
        for name in ("key", "namespace", "spec"):
            mixed += np.ascontiguousarray(rows[name][:, :8]).view("<u8")[:, 0]
        order = np.argsort(mixed, kind="stable")
        if len(rows) < 2 or not (mixed[order][1:] == mixed[order][:-1]).any():
            return rows
        identity = rows.copy()
        identity["location"] = identity["_pad"] = 0
        last = {identity[index].tobytes(): index for index in range(len(rows))}
        return rows[sorted(last.values())]

    def _fit_capacity(self, rows: Table, segments: dict[int, Segment]) -> Table:
        """Drop the emptiest segments of a folder that is larger than the capacity now asked for."""
        limits = self.table.limits
        keys, live = _live_bytes(rows)
        left = dict(zip(keys, live, strict=True))
        order = sorted(segments.values(), key=lambda s: left.get(s.key, 0))
        excess = sum(s.size for s in segments.values()) - limits.total_bytes
        for segment in order:
            if excess <= 0 or segment.state is State.LOST:
                continue
            if segment.key in left:
                self.notes.append(f"{segment.number:06d}.seg is over the capacity; its records are dropped")
                rows = pick(rows, ~known_rows(rows, [segment.key]))
            excess -= segment.size
            self.table.remove(segments.pop(segment.number))
        return rows

    def _settle_states(self, rows: Table, told: Replayed, segments: dict[int, Segment]) -> None:
        """Say of each segment whether it is free, complete, or the one to append to."""
        ends = _ends(rows)
        live = dict(zip(*_live_bytes(rows), strict=True))
        counts = dict(zip(*_counts(rows), strict=True))
        best: Segment | None = None
        for segment in segments.values():
            if segment.state is State.LOST or segment.key not in live:
                continue
            life, extents = told.state.lives.get(segment.key), told.extents.get(segment.key)
            known = int(extents[:, 1].max()) if extents is not None else BLOCK
            segment.head = max(ends[segment.key], known, life.resolved if life is not None else BLOCK)
            segment.live, segment.records = live[segment.key], counts[segment.key]
            segment.state = State.CLOSED
            room = 0 if life is not None and life.closed else segment.size - segment.head
            if room and (best is None or room > best.size - best.head):
                best = segment
        if best is not None:
            best.state = State.OPEN
        for segment in segments.values():
            if segment.state is State.FREE and segment.size != self.table.limits.segment_bytes:
                self.table.remove(segment)
            else:
                self.table.adopt(segment)

    def _start_log(self, rows: Table, told: Replayed, journal: JournalContent | None) -> None:
        """Go on with `journal`, or begin anew if there is none to go on with or rows had to be dropped."""
        lives = {}
        for segment in self.table.segments.values():
            if segment.generation:
                closed, freed = segment.state is State.CLOSED, segment.state is State.FREE
                lives[segment.key] = Life(segment.number, segment.generation, segment.head, closed, freed)
        if journal is None or len(rows) != len(told.state.rows):
            self.log.restart(replace(told.state, rows=rows, lives=lives))
            return
        self.log.resume(journal.first, journal.following)
        for key, life in lives.items():
            before = told.state.lives.get(key)
            row = place_row(locate(key, 0), 0)
            if life.closed and not (before and before.closed):
                self.log.append(Entry(Op.CLOSE, life.generation, row))
            if life.freed and not (before and before.freed):
                self.log.append(Entry(Op.FREE, life.generation, row))


def _live_bytes(rows: Table) -> tuple[list[int], list[int]]:
    keys, inverse = np.unique(rows["location"] >> np.uint64(BLOCK_BITS), return_inverse=True)
    total = np.bincount(inverse, row_bytes(rows).astype(np.float64), len(keys))
    return [int(key) for key in keys], [int(each) for each in total]


def _counts(rows: Table) -> tuple[list[int], list[int]]:
    keys, counts = np.unique(rows["location"] >> np.uint64(BLOCK_BITS), return_counts=True)
    return [int(key) for key in keys], [int(each) for each in counts]


def _ends(rows: Table) -> dict[int, int]:
    keys, inverse = np.unique(rows["location"] >> np.uint64(BLOCK_BITS), return_inverse=True)
    ends = np.zeros(len(keys), np.int64)
    np.maximum.at(ends, inverse, offsets(rows) + row_bytes(rows).astype(np.int64))
    return {int(key): int(end) for key, end in zip(keys, ends, strict=True)}
