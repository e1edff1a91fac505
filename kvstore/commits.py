"""How a written record becomes visible: its placement enters the index, and what stood in its way goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.catalog import Scope
from kvstore.errors import InvalidArgument, Shed
from kvstore.record import Entry, Record
from kvstore.removed import REPLACED, Removed
from kvstore.usage import now_ms

if TYPE_CHECKING:
    from kvstore.core import Core

ROWS_LET_GO = 64  # at once, when the index is full


class Commits:
    """Placements that enter the index. Every method needs the store's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def publish(self, scope: Scope, record: Record | Entry, tier: int, location: int, removed: Removed) -> int:
        """Make a written record visible and return its placement, or -1 if one at least as good is there.

        A full index lets go of its coldest chunks. `Shed` when it cannot, or when a copy that lacks
        more of its first tokens cannot be replaced just now.
        """
        core = self._core
        try:
            chunk, placement = self._insert(scope, record, tier, location)
        except OverflowError:
            try:
                self._make_rows(removed)
                chunk, placement = self._insert(scope, record, tier, location)
            except OverflowError:
                core.counters["shed_index_full"] += 1
                raise Shed(f"the index holds its {core.config.max_chunks} chunks", "index_full") from None
        if placement < 0 and record.exact and self._make_way(scope, record, tier, removed):
            chunk, placement = self._insert(scope, record, tier, location)
        if placement >= 0:
            if core.tiers[tier].owns(location):
                core.usage.came(tier, scope.namespace, chunk)
                core.admissions.came(tier, record.total_bytes)
                scope.namespace.used += record.total_bytes
            else:
                core.usage.came(core.found, scope.namespace, chunk)
        return placement

    def _make_way(self, scope: Scope, record: Record | Entry, tier: int, removed: Removed) -> bool:
        """Withdraw the lossy copy that is where an exact one comes; False if an exact one is.

        `Shed` while somebody holds it.
        """
        core = self._core
        chunk, row = core.find_part(scope, record.key, record.part)
        here = -1 if row < 0 else core.index.find_placement(row, tier)
        if here < 0 or core.index.placement(here).exact:
            return False
        if core.index.placement(here).readers or (core.is_read_in_place(tier) and core.index.chunk(chunk).leases):
            core.counters["shed_leased"] += 1
            raise Shed(f"a lossy copy of chunk {record.key.hex()} is still being read: put it again later", "leased")
        core.withdraw(scope, here, removed, REPLACED)
        return True

    def _insert(self, scope: Scope, record: Record | Entry, tier: int, location: int) -> tuple[int, int]:
        """(chunk row, placement), the placement -1 if one at least as good is there."""
        core, part = self._core, record.part
        try:
            chunk, first_valid, placement = core.index.insert(
                scope.number, record.key, record.parent, record.position, record.tokens, now_ms(),
                part.group, part.rank, *part.layers, record.first_valid, record.logical,
                tier, record.form, record.level, record.exact, location, record.stored,
            )  # fmt: skip
        except ValueError as error:  # known with another position or length
            raise InvalidArgument(f"key {record.key.hex()}: {error}") from None
        if first_valid > record.first_valid:
            core.counters["shed_leased"] += 1
            raise Shed(
                f"chunk {record.key.hex()} is stored from its token {first_valid} on and is leased, pinned or "
                f"being read: it cannot be replaced just now by one from token {record.first_valid} on",
                "leased",
            )
        return chunk, placement

    def _make_rows(self, removed: Removed) -> None:
        """Let go of some of the coldest chunks of whoever has most of them."""
        core = self._core
        policy, dropped = core.usage.largest(), 0
        held: frozenset[int] | None = None
        for row in () if policy is None else policy.victims():
            if dropped >= ROWS_LET_GO:
                break
            if held is None:  # all of one policy are of one namespace
                held = core.held(core.catalog.scopes[core.index.chunk(row).scope].namespace)
            if core.may_go(row, held):
                dropped += core.drop_chunk(row, removed)
