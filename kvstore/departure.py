"""How chunks leave a tier, or one drive of it, that is being drained: where each part goes, and when it is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TypeAlias

from kvstore.catalog import Scope
from kvstore.core import DRAM, ROWS_AT_ONCE, Copy, Core
from kvstore.descent import Descent
from kvstore.errors import Corrupt, DeadlineExceeded, KVStoreError, NotFound, SpecMismatch, StorageError, Unavailable
from kvstore.record import padded
from kvstore.removed import Removed
from kvstore.spec import Part
from kvstore.tiers.base import Owner, TierFull

Held: TypeAlias = tuple[Scope, bytes, Part, Copy]


class Fate(Enum):
    """What has become of a chunk."""

    SAFE = "safe"  # all of it is elsewhere
    LATER = "later"  # a tier that may take it does not answer just now
    STUCK = "stuck"  # no tier that was asked has room


Move: TypeAlias = Callable[[int], Fate]


class Departure:
    """The way out of tier `number`, of what lies where `covers` says. For one thread.

    `within`: the tier has other drives, to which records go first.
    """

    def __init__(
        self, core: Core, descent: Descent, owner: Owner, number: int, covers: Callable[[int], bool], *, within: bool
    ) -> None:
        self._core, self._descent, self._owner = core, descent, owner
        self._number, self._covers, self._within = number, covers, within
        self._written: set[int] = set()  # tiers to be flushed
        self._left: list[tuple[int, int]] = []  # of this tier: locations that records were moved away from, and bytes
        self.left_bytes = self.moved_parts = self.moved_bytes = self.dropped_chunks = self.dropped_bytes = 0
        self.waiting = ""

    def rows(self) -> list[int]:
        """The chunks that are there, those first that were used least lately; `left_bytes` is counted anew."""
        core, cursor, found, nbytes = self._core, 0, list[tuple[int, int]](), 0
        while cursor >= 0:
            with core.lock:
                rows, cursor = core.index.chunks(cursor, ROWS_AT_ONCE)
                for row in rows.tolist():
                    here = [self._bytes(each) for each in self._here(row)]
                    if here:
                        found.append((core.index.chunk(row).last_use, row))
                        nbytes += sum(here)
        self.left_bytes = nbytes
        return [row for _, row in sorted(found)]

    def is_here(self, row: int) -> bool:
        """Whether any part of a chunk is still there."""
        with self._core.lock:
            return bool(self._here(row))

    def move_on(self, row: int) -> Fate:
        """Copy what would not survive elsewhere to the other drives or to the tiers below, which make room."""
        order = self._core.order
        return self._move(row, self._on_the_way(order[order.index(self._number) + 1 :]), last=False)

    def move_up(self, row: int) -> Fate:
        """Copy what would be nowhere else to the tiers above, as far as they have room."""
        order = self._core.order
        return self._move(row, self._on_the_way(order[: order.index(self._number)][::-1]), last=True)

    def _on_the_way(self, tiers: Iterable[int]) -> Sequence[int]:
        """Those of some tiers that records are written down to: to a device they come by use alone."""
        return [tier for tier in tiers if tier in self._core.down]

    def leave(self, rows: Iterable[int]) -> None:
        """Flush what was written, and take these chunks out, which are safe; what is being read stays."""
        core, removed = self._core, Removed()
        for number in self._written:
            core.tiers[number].sync()
        self._written.clear()
        tier = core.tiers[self._number]
        removed.places += [(tier, location, nbytes) for location, nbytes in self._left]
        self._left.clear()
        for row in rows:
            with core.lock:
                for placement in self._here(row):
                    may_go = self._is_elsewhere(placement) or not self._core.owns(placement)
                    if may_go and not core.index.placement(placement).readers:
                        self._take_out(placement, removed)
        core.settle(removed)

    def drop(self, row: int, removed: Removed) -> None:
        """Let go of a chunk that fits nowhere, unless it is leased, pinned or being read: then it waits."""
        core = self._core
        with core.lock:
            here = self._here(row)
            if not here or not core.may_go(row, core.held(self._scope(row).namespace)):
                return
            nbytes = sum(map(self._bytes, here))
            core.drop_chunk(row, removed)
            core.counters["dropped_drained"] += 1
        self.dropped_chunks += 1
        self.dropped_bytes += nbytes
        self.left_bytes -= nbytes

    def _move(self, row: int, targets: Sequence[int], *, last: bool) -> Fate:
        core, fate = self._core, Fate.SAFE
        self.waiting = ""
        with core.lock:
            going = [each for each in self._here(row) if each not in core.bad and not self._is_safe(each)]
            held = [core.hold_part(core.index.chunk(row), each) for each in going]
        for each in held:
            try:
                outcome = self._move_part(each, targets, last)
            finally:
                self._descent.let_go(*each)
            fate = max(fate, outcome, key=list(Fate).index)
        return fate

    def _move_part(self, held: Held, targets: Sequence[int], last: bool) -> Fate:
        """Copy one part to the first place that takes it. At `last` any copy will do, and nothing else makes room."""
        copy, growing = held[3], self._core.dram.is_growing
        try:
            if self._within and not last and self._move_within(*held):
                return Fate.SAFE
            for target in targets:
                if target in self._core.drained or not self._wants(copy, target):
                    continue
                if not self._core.is_usable(target):
                    self.waiting = f"{self._core.tiers[target].name} is {self._core.tiers[target].state}"
                    return Fate.LATER
                if self._write(held, target, 0 if last else 2):
                    return Fate.SAFE
        except (Corrupt, SpecMismatch, NotFound):
            return Fate.SAFE  # it is no copy: it is taken out when the reader on it goes
        except (Unavailable, DeadlineExceeded) as error:
            self.waiting = str(error)
            return Fate.LATER
        except StorageError:  # it cannot be read
            return Fate.STUCK
        with self._core.lock:
            if last and self._is_elsewhere(copy.placement):
                return Fate.SAFE
        if last and growing:  # as after a restart in mid-drain; it may be there by now
            self.waiting = "memory is still being populated"
            return Fate.LATER
        return Fate.STUCK

    def _write(self, held: Held, target: int, patience: int) -> bool:
        """Write a part to another tier; False if that has no room, or fails."""
        copy = held[3]
        try:
            if target == DRAM:
                if not self._descent.lift(*held):
                    return False
            else:
                self._descent.write(*held, target, patience=patience)
        except (Corrupt, SpecMismatch, NotFound, Unavailable, DeadlineExceeded):
            raise
        except KVStoreError:
            return False
        self._count(copy)
        self._written.add(target)
        return True

    def _move_within(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> bool:
        """Write a record again to another drive of its tier, and point the index there; False if there is no room."""
        core, tier = self._core, self._core.tiers[self._number]
        coded = self._descent.read(scope, key, part, copy)
        for last in (False, True):
            try:
                with core.gates[self._number].passing():
                    location = tier.write(coded.header, coded.payload, coded.record)
                    with core.lock:
                        before = core.index.placement(copy.placement).loc  # the tier may have moved it meanwhile
                        core.index.set_loc(copy.placement, location, coded.record.stored)
                break
            except TierFull:
                if last or not tier.make_room(coded.record.total_bytes, self._owner):
                    return False
        self._left.append((before, copy.total))
        self._written.add(self._number)
        self._count(copy)
        self.left_bytes -= copy.total
        return True

    def _count(self, copy: Copy) -> None:
        self.moved_parts += 1
        self.moved_bytes += copy.total
        with self._core.lock:
            self._core.counters["drained_parts"] += 1

    def _here(self, row: int) -> list[int]:
        """A chunk's placements that are to go; none of a chunk that is gone. Needs the lock."""
        core = self._core
        try:
            found = list(core.placements(row, self._number))
        except IndexError:
            return []
        return [each for each in found if self._covers(core.index.placement(each).loc)]

    def _is_elsewhere(self, placement: int, *, surviving: bool = False) -> bool:
        """Whether another tier that stays has what a placement holds (and keeps it when the process ends)."""
        core = self._core
        place = core.index.placement(placement)
        others = (n for n in core.order if n != self._number and n not in core.drained)
        return any(
            core.redundancy.has(n, place.part, exact=place.exact)
            and core.index.find_placement(place.part, n) not in core.bad
            for n in others
            if core.tiers[n].persistent or not surviving
        )

    def _is_safe(self, placement: int) -> bool:
        """Whether a placement can go without another copy first. Needs the lock.

        What others wrote to a shared tier stays there for them, and is none of this host's.
        """
        surviving = self._core.tiers[self._number].persistent
        return self._is_elsewhere(placement, surviving=surviving) or not self._core.owns(placement)

    def _wants(self, copy: Copy, target: int) -> bool:
        """Whether a copy in `target` is needed: one that survives the process, or the only one."""
        core = self._core
        with core.lock:
            return core.tiers[target].persistent or not self._is_elsewhere(copy.placement)

    def _take_out(self, placement: int, removed: Removed) -> None:
        self.left_bytes -= self._bytes(placement)
        core = self._core
        core.withdraw(self._scope(core.chunk_of(placement)), placement, removed)

    def _scope(self, row: int) -> Scope:
        return self._core.catalog.scopes[self._core.index.chunk(row).scope]

    def _bytes(self, placement: int) -> int:
        core = self._core
        place = core.index.placement(placement)
        row = core.index.part(place.part)
        part = Part(row.group, row.rank, (row.layer_start, row.layer_end))
        return self._scope(core.chunk_of(placement)).header_bytes(part) + padded(place.stored)
