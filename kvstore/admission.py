"""What may go down to a slow or wearing tier: a filter for each that has `admit` or `write_bytes_per_day`.

The filter is `codecs/native/admission.hpp`, the simulator's as well. It is asked again and again while a chunk grows
cold, and what it refuses stays where it is: the policy lets go of it there, and that is when a refusal counts. What a
client was promised to be on disk, what a drain moves and what the store's end writes down is not asked about, but paid
for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore import _native
from kvstore.catalog import Scope
from kvstore.config import ALL, SECOND_TOUCH
from kvstore.errors import KVStoreError
from kvstore.usage import now_ms

if TYPE_CHECKING:
    from kvstore.core import Core

OPEN, *WHYS = _native.entry_names()
SPENT = "budget_spent"
FILE = "budget"  # on every tier that survives the process and has a place for it
VERSION = 1


class Admissions:
    """The filters of one store's tiers. Methods need the store's lock, unless they take it or say otherwise."""

    def __init__(self, core: Core) -> None:
        self._core = core
        below = enumerate(core.config.below, 1)
        self._rules = {number: each for number, each in below if each.admit != ALL or each.write_bytes_per_day}
        self._filters = {
            number: _native.Admission(
                each.admit == SECOND_TOUCH, each.write_bytes_per_day, core.tiers[number].capacity,
                core.config.max_chunks,
            )
            for number, each in self._rules.items()
        }  # fmt: skip
        self._budgeted = [number for number, each in self._rules.items() if each.write_bytes_per_day]
        self._announced: set[int] = set()

    def admits(self, tier: int, chunk: int) -> bool:
        """Whether a chunk may be written to a tier just now."""
        found = self._filters.get(tier)
        return found is None or found.judge_chunk(self._core.index, chunk) == OPEN

    def let_go(self, chunk: int, tier: int, placements: Sequence[int]) -> None:
        """What a chunk has in a tier is about to go to make room: count it as refused where that is why it is lost.

        Called before the placements are withdrawn.
        """
        core, below = self._core, self._core.next_below(tier)
        if below is None or below not in self._filters or not core.is_usable(below):
            return
        if core.redundancy.all_in(below, placements) or core.redundancy.at_peers(placements):
            return
        found = self._filters[below]
        why = found.judge_chunk(core.index, chunk)
        if why != OPEN:
            found.refuse(why, sum(core.index.placement(each).stored for each in placements))
            core.counters[f"refused_{core.tiers[below].name}_{why}"] += 1

    def gone(self, scope: Scope, key: bytes, nbytes: int) -> None:
        """A chunk was evicted from the last tier that had it, a part of so many bytes last."""
        for found in self._filters.values():
            found.remember_chunk(scope.number, key, nbytes * len(scope.parts))

    def came(self, tier: int, nbytes: int) -> None:
        """A record of this length has come to a tier."""
        if tier in self._filters:
            self._filters[tier].came(nbytes)

    def left(self, tier: int, nbytes: int) -> None:
        """A record of this length has left a tier, for whatever reason."""
        if tier in self._filters:
            self._filters[tier].left(nbytes)

    def was_full(self, tier: int) -> None:
        """Something in a tier had to go to make room, and went."""
        if tier in self._filters:
            self._filters[tier].was_full()

    def set_capacity(self, tier: int, nbytes: int) -> None:
        """What a tier may hold now: a drive may have gone."""
        if tier in self._filters:
            self._filters[tier].set_capacity(nbytes)

    @contextmanager
    def writing(self, tier: int, nbytes: int) -> Iterator[None]:
        """A record of this length is written to a tier as long as a `with` lasts. Takes the lock."""
        found, core = self._filters.get(tier), self._core
        if found is None:
            yield
            return
        with core.lock:
            found.begin(nbytes)
        try:
            yield
        finally:
            written = core.tiers[tier].written_bytes
            with core.lock:
                found.end(nbytes)
                found.settle(written, now_ms())

    def settle(self) -> None:
        """Pay for what tiers have written, by themselves as well, and take in what the time brought. Takes the lock."""
        core = self._core
        for number in self._budgeted:
            written = core.tiers[number].written_bytes
            with core.lock:
                self._filters[number].settle(written, now_ms())
                spent = self._filters[number].state == SPENT
            if spent and number not in self._announced:
                self._announced.add(number)
                name = core.tiers[number].name
                core.events.announce(
                    f"{name} has used up write_bytes_per_day: until some is left only what has to be on disk is "
                    "written there (said once; `kvstore tiers` tells more)",
                    name,
                )

    def put_aside(self) -> None:
        """Have what is left of budgets on the tiers that survive the process. Takes the lock.

        One that cannot keep it is counted, and goes on later with what it kept last.
        """
        core = self._core
        if not self._budgeted:
            return
        with core.lock:
            left = {core.tiers[number].name: self._filters[number].budget_left for number in self._budgeted}
        data = json.dumps({"version": VERSION, "at_ms": now_ms(), "left_bytes": left}).encode()
        for tier in core.below:
            if tier.persistent and tier.state == "ok":
                try:
                    tier.put_aside(FILE, data)
                except KVStoreError:
                    core.count("budgets_not_kept")

    def recall(self) -> Sequence[str]:
        """Go on with the budgets of the store that was here before; what was wrong with them, in words.

        Takes the lock. Where nobody knows what was left, as of a tier that is new, a budget is whole; where that cannot
        be read it is spent.
        """
        core = self._core
        if not self._budgeted:
            return ()
        kept = [data for tier in core.below if tier.persistent for data in tier.recall(FILE)]
        known = [told for told in map(_parsed, kept) if told is not None]
        left: Mapping[str, float] = {}
        at_ms = now_ms()
        if known:
            latest = max(known, key=lambda told: told.at_ms)
            left, at_ms = latest.left, min(latest.at_ms, at_ms)
        elif kept:
            left = {core.tiers[number].name: 0.0 for number in self._budgeted}
        with core.lock:
            for number in self._budgeted:
                name = core.tiers[number].name
                if name in left:
                    self._filters[number].restore(left[name], at_ms)
                    self._filters[number].settle(0, now_ms())
        return () if known or not kept else ("what was left of write_bytes_per_day cannot be read: nothing is",)

    def stats(self, tier: int) -> dict[str, Any]:
        """What a tier's filter does, for `kvstore stats`; nothing where there is none. Needs no lock."""
        if tier not in self._filters:
            return {}
        core, found, rule = self._core, self._filters[tier], self._rules[tier]
        told: dict[str, Any] = {
            "admit": rule.admit,
            "write_bytes_per_day": rule.write_bytes_per_day,
            "refused": {why: core.counters[f"refused_{core.tiers[tier].name}_{why}"] for why in WHYS},
            "has_room": found.has_room,
            "remembered": found.ghosts,
        }
        if rule.write_bytes_per_day:
            told["budget"], told["budget_left"] = found.state, int(found.budget_left)
            told["budget_most"] = int(found.budget_most)
        return told


class _Kept(NamedTuple):
    """What was left of budgets, by their tiers' names, at some time."""

    at_ms: int
    left: Mapping[str, float]


def _parsed(data: bytes) -> _Kept | None:
    """What `put_aside` wrote; None for anything else."""
    try:
        told = json.loads(data)
        kept = _Kept(int(told["at_ms"]), {str(name): float(left) for name, left in told["left_bytes"].items()})
        good = told["version"] == VERSION and kept.at_ms >= 0 and all(map(isfinite, kept.left.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return kept if good else None
