"""What a log-structured tier asks while it makes room: which records are dead, which may go, which must move."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.catalog import Scope
from kvstore.core import Core
from kvstore.record import Record
from kvstore.removed import Removed
from kvstore.tiers.base import Tier, Verdict
from kvstore.usage import now_ms

ROOMY = 0.5  # of the capacity; a segment that is at most half live can be moved


class Reclaimer:
    """The store as a tier sees it; see `kvstore.tiers.base.Owner`.

    While less than half of the tier is live, its trouble is dead records and nothing else: all that live are moved.
    Beyond that a chunk is kept when it is leased, pinned or being read, or when it was used in the newer half of
    the time between the least recently used chunk and now; the rest goes.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]]) -> Sequence[Verdict]:
        """A verdict on each (record, location)."""
        core, removed, verdicts = self._core, Removed(), []
        number = core.tiers.index(tier)
        tight, held = tier.used > ROOMY * tier.capacity, dict[bytes, frozenset[int]]()
        with core.lock:
            for record, location in records:
                verdicts.append(self._judge(number, record, location, tight, held, removed))
        # The tier sees to what it is told to drop; parts elsewhere that went with it are deleted here.
        told = {at for (_, at), verdict in zip(records, verdicts, strict=True) if verdict is Verdict.DROP}
        removed.places = [each for each in removed.places if each[0] is not tier or each[1] not in told]
        core.settle(removed)
        return verdicts

    def moved(self, tier: Tier, record: Record, old: int, new: int) -> bool:
        """Point the index at the new copy."""
        core = self._core
        with core.lock:
            placement = self._placement(core.tiers.index(tier), record, old)
            if placement is None:
                return False
            core.index.set_loc(placement[1], new, record.stored)
            return True

    def _judge(
        self,
        tier: int,
        record: Record,
        location: int,
        tight: bool,
        held: dict[bytes, frozenset[int]],
        removed: Removed,
    ) -> Verdict:
        core = self._core
        found = self._placement(tier, record, location)
        if found is None:
            return Verdict.DEAD
        scope, placement, chunk = found
        if record.namespace not in held:
            held[record.namespace] = core.held(scope.namespace)
        if not core.may_go(chunk, held[record.namespace]):
            return Verdict.KEEP
        if not tight or core.index.chunk(chunk).last_use > self._middle(tier, scope):
            return Verdict.KEEP
        for each in list(core.placements(chunk)) if core.only_here(placement) else [placement]:
            core.withdraw(scope, each, removed)  # half a chunk is of no use to anyone
        return Verdict.DROP

    def _placement(self, tier: int, record: Record, location: int) -> tuple[Scope, int, int] | None:
        core = self._core
        scope = core.catalog.find(record.namespace, record.spec)
        if scope is None:
            return None
        chunk, row = core.find_part(scope, record.key, record.part)
        placement = -1 if row < 0 else core.index.find_placement(row, tier)
        if placement < 0 or core.index.placement(placement).loc != location:
            return None
        return scope, placement, chunk

    def _middle(self, tier: int, scope: Scope) -> int:
        core, now = self._core, now_ms()
        oldest = next(core.usage.policy(tier, scope.namespace).victims(), None)
        return now if oldest is None else (core.index.chunk(oldest).last_use + now) // 2
