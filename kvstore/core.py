"""The state that the store's reader, writer and mover share, and the small steps that keep it consistent.

`lock` guards the index, the catalogue, the policies, the leases and the counters. It is held for microseconds and
never across I/O, a codec or a callback. A placement with a reader is not removed, so bytes are read and written
outside the lock.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kvstore import _native
from kvstore.admission import Admissions
from kvstore.api import Fidelity
from kvstore.backlog import Backlog
from kvstore.catalog import Catalog, Namespace, Scope
from kvstore.coder import Coder
from kvstore.commits import Commits
from kvstore.config import Config
from kvstore.errors import Closed
from kvstore.events import EventHub
from kvstore.fetching import Fetcher
from kvstore.forecasts import Forecasts
from kvstore.gate import Gate
from kvstore.leases import Leases
from kvstore.loan import Loans
from kvstore.policy import Rows
from kvstore.prefills import Prefills
from kvstore.record import padded
from kvstore.redundancy import Redundancy
from kvstore.removed import Removed
from kvstore.room import Room
from kvstore.shared_tables import SharedTables
from kvstore.spec import Part
from kvstore.tiers.base import Tier
from kvstore.tiers.dram import DramTier
from kvstore.usage import FoundItems, Usage, now_ms

if TYPE_CHECKING:
    from kvstore.tiers.hbm import HbmTier

DRAM = 0  # the number of the arena among the tiers; slower ones follow, and then those of devices
CHUNK_GONE = 2  # flag of Index.remove_placement
ROWS_AT_ONCE = 64  # looked at under the lock
USES = 4096  # of what other hosts hold that they are told of together; of more than these the last
_NO_ROWS = np.empty(0, np.uint32)


class Copy(NamedTuple):
    """A placement as it was found, with a reader on it that keeps it where it is."""

    placement: int
    tier: int
    location: int
    stored: int
    form: int
    header: int

    @property
    def total(self) -> int:
        """Length of the whole record."""
        return self.header + padded(self.stored)


class Core:
    """Index, tiers, policies, leases, counters. Methods say whether the caller holds `lock`."""

    def __init__(
        self, config: Config, dram: DramTier, below: Sequence[Tier], coder: Coder, devices: Sequence[HbmTier] = ()
    ) -> None:
        """`below` are the tiers below DRAM, the fastest first; `devices` stand beside it, for readers on them."""
        self.config = config
        self.dram = dram
        self.below = tuple(below)
        self.devices = tuple(devices)
        self.coder = coder
        self.tiers: tuple[Tier, ...] = (dram, *below, *devices)
        self.down = range(1 + len(below))  # the way down: nothing is demoted to a device
        self.on_devices = range(self.down.stop, len(self.tiers))
        # Fastest first, for a reader on the host: what lies on a device crosses a bus.
        self.order = bytes([DRAM, *self.on_devices, *self.down[1:]])
        self.writable = bytes(n for n in self.order if self.tiers[n].writable)
        self.drained: set[int] = set()  # tiers that nothing is written to any more; see `kvstore.drains`
        self.peers = next((n for n, tier in enumerate(self.tiers) if not tier.writable), None)
        self.lock = _native.Mutex()
        self.room = Room(self.lock)
        self.loans = Loans(self.lock)
        self.index = _native.Index(config.max_chunks, secrets.randbits(64))
        self.catalog = Catalog()
        self.shared = SharedTables(self.index, self.catalog, self.lock, config.max_chunks, lambda: dram.extents_epoch)
        self.leases = Leases(self.index)
        self.hazards = dram.hazards
        self.intake = _native.Intake(self.index, self.lock)
        self.events = EventHub(
            lambda watched: setattr(self.intake, "watched", watched), self.shared.withhold, config.may_operate
        )
        # What others wrote to shared tiers has an order of its own, since letting go of it makes no room in them.
        self.found = len(self.tiers)
        # What was used of what other hosts hold: their stores are told.
        self.uses = None if self.peers is None else _native.UseLog(self.index, self.peers, USES)
        self.usage = Usage(self.index, self.catalog, len(self.tiers) + 1, config.max_chunks, config.policy, self.uses)
        self.counters = self.usage.counters
        self.admissions = Admissions(self)
        self.commits = Commits(self)
        self.redundancy = Redundancy(self.index, self.catalog, self.tiers, self.order)
        self.fetcher = Fetcher(self.tiers, coder.artefacts, self.count)
        self.doomed: set[int] = set()  # chunks that go when their leases and readers have
        self.bad: set[int] = set()  # placements that go when readers and leases have, and that nobody is given
        self.loads = 0
        self.backlog = Backlog(len(self.tiers))
        self.forecasts = Forecasts(len(self.tiers), self.counters)
        self.prefills = Prefills(config.prefill_tokens_per_s)
        self.gates = [Gate() for _ in self.tiers]
        self.closed = False

    @property
    def persistent(self) -> int | None:
        """The tier that what is acknowledged as persisted goes to."""
        return next((n for n, tier in enumerate(self.tiers) if tier.persistent and n not in self.drained), None)

    def is_usable(self, tier: int) -> bool:
        """Whether records may be written to a tier just now."""
        return tier not in self.drained and self.tiers[tier].state == "ok"

    def next_below(self, tier: int) -> int | None:
        """The tier that what grows cold in this one goes to: the next one that is not being drained."""
        left = (n for n in self.down if n > tier and n not in self.drained)
        return next((n for n in left if self.tiers[n].writable), None)

    def check_open(self) -> None:
        """Raise `Closed` once the store is."""
        if self.closed:
            raise Closed("the store is closed")

    def count(self, counter: str) -> None:
        """Add one to a counter."""
        with self.lock:
            self.counters[counter] += 1

    def close(self) -> None:
        """From now on nothing is taken in. Needs the lock."""
        self.closed = True
        self.intake.close()
        self.room.notify_all()

    def find_part(self, scope: Scope, key: bytes, part: Part) -> tuple[int, int]:
        """(chunk row, part row), -1 for what is not there. Needs the lock."""
        chunk = self.index.find(scope.number, key)
        if chunk < 0:
            return -1, -1
        return chunk, self.index.find_part(chunk, part.group, part.rank, *part.layers)

    def find_items(self, scope: Scope, items: bytes, fidelity: Fidelity) -> FoundItems:
        """The best placements of packed items (`kvstore.places`), and where those in DRAM lie. Needs the lock."""
        exact = fidelity is Fidelity.EXACT
        return FoundItems(
            *self.index.find_items(
                scope.number, items, scope.packed_parts, scope.packed_headers, exact, self.order, self.bad_rows()
            )
        )

    def bad_rows(self) -> Rows:
        """The bad placements, for the index to pass over. Needs the lock."""
        return np.fromiter(self.bad, np.uint32) if self.bad else _NO_ROWS

    def hold(self, placement: int, scope: Scope, part: Part) -> Copy:
        """Put a reader on a placement. Needs the lock."""
        row = self.index.placement(placement)
        self.index.add_reader(placement)
        header = scope.header_bytes(part)
        return Copy(placement, row.tier, row.loc, row.stored, row.codec, header)

    def hold_part(self, chunk: _native.Chunk, placement: int) -> tuple[Scope, bytes, Part, Copy]:
        """Put a reader on a placement of a chunk; what a move of it needs. Needs the lock."""
        row = self.index.part(self.index.placement(placement).part)
        part, scope = Part(row.group, row.rank, (row.layer_start, row.layer_end)), self.catalog.scopes[chunk.scope]
        return scope, chunk.key, part, self.hold(placement, scope, part)

    def let_go(self, copies: Iterable[Copy]) -> None:
        """Take readers off."""
        with self.lock:
            for copy in copies:
                self.index.drop_reader(copy.placement)
            self.room.notify_all()

    def held(self, namespace: Namespace) -> frozenset[int]:
        """Locations in DRAM that clients hold without having told: for `may_go`, read once for a round of choosing."""
        return self.hazards.held(namespace.digest)

    def may_go(self, chunk: int, held: frozenset[int]) -> bool:
        """Whether nobody holds a chunk, with a lease, a pin, a reader or a hazard. Needs the lock.

        That of a hazard is a wish: memory that it names is not given back before it goes, whatever is said here.
        """
        index = self.index
        if not index.chunk_evictable(chunk, now_ms()):
            return False
        return not held or held.isdisjoint(index.placement(each).loc for each in self.placements(chunk, DRAM))

    def is_read_in_place(self, tier: int) -> bool:
        """Whether who holds a lease may be reading what lies in a tier there, without a reader that says so."""
        return tier == DRAM or tier in self.on_devices

    def withdraw(self, scope: Scope, placement: int, removed: Removed, kind: str = "evicted") -> None:
        """Take a placement without readers out of the index. Needs the lock; `removed` is settled without it."""
        index = self.index
        place = index.placement(placement)
        part_row = index.part(place.part)
        chunk = index.chunk(part_row.chunk)
        part = Part(part_row.group, part_row.rank, (part_row.layer_start, part_row.layer_end))
        total = scope.header_bytes(part) + padded(place.stored)
        gone = index.remove_placement(placement)
        self.bad.discard(placement)
        tier = self.tiers[place.tier]
        own = tier.owns(place.loc)
        if own:
            scope.namespace.used -= total
            self.admissions.left(place.tier, total)
        if gone & CHUNK_GONE and kind == "evicted":
            self.admissions.gone(scope, chunk.key, total)
        removed.list_for(tier, kind).append((tier, place.loc, total))
        if gone & CHUNK_GONE or not self._is_ordered(part_row.chunk, place.tier, own):
            order = place.tier if own else self.found
            self.usage.left(order, scope.namespace, part_row.chunk, evicted=kind == "evicted")
        shared_no_more = gone & CHUNK_GONE or not self.chunk_in_tier(part_row.chunk, place.tier)
        if self.peers is not None and place.tier in (DRAM, self.peers) and shared_no_more:
            self.usage.no_spare(scope.namespace, part_row.chunk)
        if gone & CHUNK_GONE or not self.index.chunk_parts(part_row.chunk):
            self.doomed.discard(part_row.chunk)
        if chunk.flags and not gone & CHUNK_GONE:
            self._veil(part_row.chunk)
        self.counters[f"{kind}_{tier.name}"] += 1
        self.events.emit(kind, scope.namespace.name, chunk.key, scope.spec.digest, part, tier.name)

    def chunk_in_tier(self, chunk: int, tier: int) -> bool:
        """Whether any part of a chunk has a placement in a tier. Needs the lock."""
        index = self.index
        return any(index.find_placement(part, tier) >= 0 for part in index.chunk_parts(chunk))

    def owns(self, placement: int) -> bool:
        """Whether a placement is this host's own, and counts for its namespace. Needs the lock."""
        place = self.index.placement(placement)
        return self.tiers[place.tier].owns(place.loc)

    def _is_ordered(self, chunk: int, tier: int, own: bool) -> bool:
        """Whether a placement keeps a chunk in the order of a tier, or of what was found. Needs the lock."""
        if not self.tiers[tier].shared:
            return self.chunk_in_tier(chunk, tier)
        return any(self.owns(each) == own for each in self.placements(chunk, tier if own else None))

    def placements(self, chunk: int, tier: int | None = None) -> Iterator[int]:
        """Placements of all parts of a chunk (in one tier). Needs the lock."""
        for part in self.index.chunk_parts(chunk):
            for placement in self.index.part_placements(part):
                if tier is None or self.index.placement(placement).tier == tier:
                    yield placement

    def settle(self, removed: Removed) -> None:
        """Give back what was evicted. Where a disk cannot note that, the chunk is back after a crash, no worse."""
        failures = removed.settle()
        if failures:
            with self.lock:
                self.counters["evictions_not_journaled"] += len(failures)

    def best(self, part_row: int, exact: bool) -> int:
        """The placement of a part to read from, -1 if there is none that is good. Needs the lock."""
        found = self.index.best_placement(part_row, exact, self.order)
        if found not in self.bad:
            return found
        copies = (self.index.best_placement(part_row, exact, bytes([tier])) for tier in self.order)
        return next((each for each in copies if each >= 0 and each not in self.bad), -1)

    def bad_chunks(self) -> set[int]:
        """Chunks with a bad placement, which look-ups pass over. Needs the lock."""
        return {self.chunk_of(each) for each in self.bad}

    def chunk_of(self, placement: int) -> int:
        """The row of the chunk that a placement belongs to. Needs the lock."""
        return self.index.part(self.index.placement(placement).part).chunk

    def condemn(self, scope: Scope, placement: int, removed: Removed, kind: str = "quarantined") -> None:
        """Take a bad placement out, at once or when its readers have gone. Needs the lock.

        Whoever holds a lease on the chunk may be reading it in place as well.
        """
        place = self.index.placement(placement)
        if place.readers or (self.is_read_in_place(place.tier) and self.index.chunk(self.chunk_of(placement)).leases):
            self.bad.add(placement)
            self._veil(self.chunk_of(placement))
        else:
            self.withdraw(scope, placement, removed, kind)

    def drop_chunk(self, chunk: int, removed: Removed, kind: str = "evicted") -> bool:
        """Withdraw every placement of a chunk, or mark it to go when its leases and readers have.

        Needs the lock.
        """
        scope = self.catalog.scopes[self.index.chunk(chunk).scope]
        self.index.pin(chunk, 0)
        if not self.index.chunk_evictable(chunk, now_ms()):
            self._doom(chunk)
            return False
        for placement in list(self.placements(chunk)):
            self.withdraw(scope, placement, removed, kind)
        return True

    def drop_own(self, chunk: int, removed: Removed) -> None:
        """Withdraw what of a chunk (that may go) counts for its namespace; what others wrote stays, if it is whole.

        Needs the lock.
        """
        places = list(self.placements(chunk))
        own = [each for each in places if self.owns(each)]
        parts = {self.index.placement(each).part for each in places if each not in own}
        whole = set(self.index.chunk_parts(chunk)) <= parts
        scope = self.catalog.scopes[self.index.chunk(chunk).scope]
        for each in own if whole else places:
            self.withdraw(scope, each, removed)

    def _doom(self, chunk: int) -> None:
        """Mark a chunk to go; look-ups pass it over from now on. Needs the lock.

        One of which nothing but a lease is left goes with that, and its row must not be remembered here.
        """
        if self.index.chunk_parts(chunk):
            self.doomed.add(chunk)
            self._veil(chunk)

    def spare(self, chunk: int) -> None:
        """Let a chunk that is marked to go stay after all. Needs the lock."""
        if chunk in self.doomed:
            self.doomed.discard(chunk)
            self._veil(chunk)

    def _veil(self, chunk: int) -> None:
        """Tell the index whether look-ups pass a chunk over. Needs the lock."""
        hidden = chunk in self.doomed or any(each in self.bad for each in self.placements(chunk))
        self.index.set_flags(chunk, _native.HIDDEN if hidden else 0)

    def drop_from(self, chunk: int, tier: int, removed: Removed, held: frozenset[int] = frozenset()) -> bool:
        """Withdraw a chunk from a tier; all of it from everywhere if a part of it is nowhere else.

        Half a chunk is of no use to anyone. False, and nothing done, unless the chunk may go. Needs the lock.
        """
        if not self.may_go(chunk, held):
            return False
        scope = self.catalog.scopes[self.index.chunk(chunk).scope]
        places = list(self.placements(chunk, tier))
        self.admissions.let_go(chunk, tier, places)
        if any(self.redundancy.only_here(each) for each in places):
            places = list(self.placements(chunk))
        for each in places:
            self.withdraw(scope, each, removed)
        return True
