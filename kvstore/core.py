"""The state that the store's reader, writer and mover share, and the small steps that keep it consistent.

`lock` guards the index, the catalogue, the policies, the leases and the counters. It is held for microseconds and
never across I/O, a codec or a callback. A placement with a reader is not removed, so bytes are read and written
outside the lock.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.catalog import Catalog, Namespace, Scope
from kvstore.config import Config
from kvstore.errors import Closed, Shed
from kvstore.events import EventHub
from kvstore.gate import Gate
from kvstore.leases import Leases
from kvstore.policy import Lru, Policy
from kvstore.record import Record, header_bytes, padded
from kvstore.spec import Part
from kvstore.tiers.base import Tier
from kvstore.tiers.dram import DramTier

DRAM, NVME = 0, 1
ANY_TIER = bytes([DRAM, NVME])
CHUNK_GONE = 2  # flag of Index.remove_placement


@dataclass(frozen=True, slots=True)
class Copy:
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


@dataclass
class Removed:
    """Bytes to give back to a tier once the lock is no longer held."""

    places: list[tuple[Tier, int, int]] = field(default_factory=list)

    def settle(self) -> None:
        """Tell the tiers."""
        for tier, location, nbytes in self.places:
            tier.delete(location, nbytes)
        self.places.clear()


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class Core:
    """Index, tiers, policies, leases, counters. Methods say whether the caller holds `lock`."""

    def __init__(self, config: Config, dram: DramTier, nvme: Tier | None) -> None:
        self.config = config
        self.dram = dram
        self.nvme = nvme
        self.tiers: tuple[Tier, ...] = (dram,) if nvme is None else (dram, nvme)
        self.lock = threading.Lock()
        self.room = threading.Condition(self.lock)
        self.index = _native.Index(config.max_chunks, secrets.randbits(64))
        self.catalog = Catalog()
        self.leases = Leases(self.index)
        self.events = EventHub()
        self.counters: Counter[str] = Counter()
        self.doomed: set[int] = set()
        self.loads = 0
        self.gate = Gate()
        self.closed = False
        self._policies: dict[tuple[int, bytes], Policy] = {}

    def check_open(self) -> None:
        """Raise `Closed` once the store is."""
        if self.closed:
            raise Closed("the store is closed")

    def policy(self, tier: int, namespace: Namespace) -> Policy:
        """The order of one namespace's chunks in one tier. Needs the lock."""
        found = self._policies.get((tier, namespace.digest))
        if found is None:
            found = self._policies[tier, namespace.digest] = Lru(self.config.max_chunks)
        return found

    def find_part(self, scope: Scope, key: bytes, part: Part) -> tuple[int, int]:
        """(chunk row, part row), -1 for what is not there. Needs the lock."""
        chunk = self.index.find(scope.number, key)
        if chunk < 0:
            return -1, -1
        return chunk, self.index.find_part(chunk, part.group, part.rank, *part.layers)

    def hold(self, placement: int, scope: Scope, part: Part) -> Copy:
        """Put a reader on a placement. Needs the lock."""
        row = self.index.placement(placement)
        self.index.add_reader(placement)
        header = header_bytes(scope.layer_groups(part))
        return Copy(placement, row.tier, row.loc, row.stored, row.codec, header)

    def let_go(self, copies: Sequence[Copy]) -> None:
        """Take readers off."""
        with self.lock:
            for copy in copies:
                self.index.drop_reader(copy.placement)
            self.room.notify_all()

    def publish(self, scope: Scope, record: Record, tier: int, location: int) -> int:
        """Make a written record visible and return its placement, or -1 if one at least as good is there.

        Needs the lock. `Shed` when the index is full.
        """
        index, part = self.index, record.part
        try:
            chunk = index.insert_chunk(
                scope.number, record.key, record.parent, record.position, record.tokens, now_ms()
            )
            row = index.add_part(chunk, part.group, part.rank, *part.layers, record.first_valid, record.logical)
            if index.find_placement(row, tier) >= 0:
                return -1
            placement = index.add_placement(row, tier, record.form, record.level, record.exact, location, record.stored)
        except OverflowError:
            self.counters["shed_index_full"] += 1
            raise Shed(f"the index holds its {self.config.max_chunks} chunks", "index_full") from None
        self.policy(tier, scope.namespace).admit(chunk)
        scope.namespace.used += record.total_bytes
        return placement

    def withdraw(self, scope: Scope, placement: int, removed: Removed, kind: str = "evicted") -> None:
        """Take a placement without readers out of the index. Needs the lock; `removed` is settled without it."""
        index = self.index
        place = index.placement(placement)
        part_row = index.part(place.part)
        chunk = index.chunk(part_row.chunk)
        part = Part(part_row.group, part_row.rank, (part_row.layer_start, part_row.layer_end))
        total = header_bytes(scope.layer_groups(part)) + padded(place.stored)
        gone = index.remove_placement(placement)
        scope.namespace.used -= total
        tier = self.tiers[place.tier]
        removed.places.append((tier, place.loc, total))
        if gone & CHUNK_GONE or not self.chunk_in_tier(part_row.chunk, place.tier):
            self.policy(place.tier, scope.namespace).remove(part_row.chunk)
        if gone & CHUNK_GONE or not self.index.chunk_parts(part_row.chunk):
            self.doomed.discard(part_row.chunk)
        self.counters[f"{kind}_{tier.name}"] += 1
        self.events.emit(kind, scope.namespace.name, chunk.key, scope.spec.digest, part, tier.name)

    def chunk_in_tier(self, chunk: int, tier: int) -> bool:
        """Whether any part of a chunk has a placement in a tier. Needs the lock."""
        index = self.index
        return any(index.find_placement(part, tier) >= 0 for part in index.chunk_parts(chunk))

    def placements(self, chunk: int, tier: int | None = None) -> Iterator[int]:
        """Placements of all parts of a chunk (in one tier). Needs the lock."""
        for part in self.index.chunk_parts(chunk):
            for placement in self.index.part_placements(part):
                if tier is None or self.index.placement(placement).tier == tier:
                    yield placement

    def drop_chunk(self, chunk: int, removed: Removed, kind: str = "evicted") -> bool:
        """Withdraw every placement of a chunk, or mark it to go when its leases and readers have.

        Needs the lock.
        """
        scope = self.catalog.scopes[self.index.chunk(chunk).scope]
        self.index.pin(chunk, 0)
        if not self.index.chunk_evictable(chunk, now_ms()):
            self.doomed.add(chunk)
            return False
        for placement in list(self.placements(chunk)):
            self.withdraw(scope, placement, removed, kind)
        return True

    def used_rows(self, rows: npt.NDArray[np.uint32], namespace: Namespace) -> None:
        """Tell index and policies that chunks of one prefix, root first, were used. Needs the lock."""
        self.index.touch(rows, now_ms())
        for tier in range(len(self.tiers)):
            self.policy(tier, namespace).hit(rows)
