"""What a log-structured tier asks while it makes room: which records are dead, which may go, which must move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TypeAlias

from kvstore.catalog import Scope
from kvstore.core import Core
from kvstore.policy import LRU
from kvstore.record import Record
from kvstore.removed import Removed
from kvstore.tiers.base import Tier, Verdict

WALKED_FOR_EACH = 4  # chunks looked at for each record, when some are held
ROOMY = 0.5  # of the capacity; a segment that is at most half live can be moved
_Place: TypeAlias = tuple[Scope, int, int]


class Reclaimer:
    """The store as a tier sees it; see `kvstore.tiers.base.Owner`.

    While less than half of the tier is live, its trouble is dead records and nothing else: all that live are moved.
    Beyond that a chunk is kept when it is leased, pinned or being read, and else when it is worth it and among the
    `most` bytes that were used last; the rest goes. Under LRU it is worth it when it was used since its segment was
    filled: what was not is what LRU would let go. Any other policy is asked: what it would let go to make as much room
    as is looked at is not worth it.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Sequence[Verdict]:
        """A verdict on each (record, location). Nobody is between a write and its entry meanwhile."""
        core, removed = self._core, Removed()
        number, roomy = core.tiers.index(tier), tier.used <= ROOMY * tier.capacity
        verdicts, held = [Verdict.DEAD] * len(records), dict[bytes, frozenset[int]]()
        with core.gates[number].alone(), core.lock:
            first_to_go = self._first_to_go(number, records)
            for i in self._best_first(number, records):
                record, location = records[i]
                place = self._placement(number, record, location)
                if place is None:  # it went with another part of its chunk
                    verdicts[i] = Verdict.DROP
                    continue
                if record.namespace not in held:
                    held[record.namespace] = core.held(place[0].namespace)
                goes = first_to_go.get(record.namespace)
                worth = core.index.chunk(place[2]).last_use > since_ms if goes is None else place[2] not in goes
                may_go = core.may_go(place[2], held[record.namespace])
                if may_go and not roomy and not (worth and record.total_bytes <= most):
                    self._drop(number, place, removed)
                    core.admissions.was_full(number)
                    verdicts[i] = Verdict.DROP
                else:
                    verdicts[i] = Verdict.KEEP
                    most -= record.total_bytes if may_go else 0
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

    def _best_first(self, tier: int, records: Sequence[tuple[Record, int]]) -> Sequence[int]:
        """Which of the records are live: those used last first, and of one prefix its head. Needs the lock."""
        index, order = self._core.index, list[tuple[int, int, int]]()
        for i, (record, location) in enumerate(records):
            place = self._placement(tier, record, location)
            if place is not None:
                order.append((-index.chunk(place[2]).last_use, record.position, i))
        return [i for _, _, i in sorted(order)]

    def _first_to_go(self, tier: int, records: Sequence[tuple[Record, int]]) -> Mapping[bytes, set[int]]:
        """By namespace the chunks that its policy would let go to make room for its records; none for LRU.

        Needs the lock.
        """
        core, bytes_of, found = self._core, Counter[bytes](), dict[bytes, set[int]]()
        for record, _ in records:
            bytes_of[record.namespace] += record.stored
        for digest, most in bytes_of.items():
            namespace = core.catalog.by_digest(digest)
            if namespace is None or core.usage.policy_name(namespace) == LRU:
                continue
            goes = found[digest] = set[int]()
            held, freed = core.held(namespace), 0
            for row in islice(core.usage.policy(tier, namespace).victims(), WALKED_FOR_EACH * len(records)):
                if freed >= most:
                    break
                if core.may_go(row, held):
                    goes.add(row)
                    freed += sum(core.index.placement(each).stored for each in core.placements(row, tier))
        return found

    def _drop(self, tier: int, place: _Place, removed: Removed) -> None:
        """Take a record out, and its whole chunk if it was the last copy: half of one is of no use. Needs the lock."""
        core, (scope, placement, chunk) = self._core, place
        core.admissions.let_go(chunk, tier, [placement])
        for each in list(core.placements(chunk)) if core.redundancy.only_here(placement) else [placement]:
            core.withdraw(scope, each, removed)

    def _placement(self, tier: int, record: Record, location: int) -> _Place | None:
        """Scope, placement and chunk of a record, None where the index does not point at it. Needs the lock."""
        core = self._core
        scope = core.catalog.find(record.namespace, record.spec)
        if scope is None:
            return None
        chunk, row = core.find_part(scope, record.key, record.part)
        placement = -1 if row < 0 else core.index.find_placement(row, tier)
        if placement < 0 or core.index.placement(placement).loc != location:
            return None
        return scope, placement, chunk
