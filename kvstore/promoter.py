"""The way up to a device: parts that its readers ask for are copied to it from DRAM, beside everything else.

A part comes at once while there is room. Where there is none it comes when it is asked for a second time, in the place
of what its namespace has used least there. Slabs are of one namespace each, so nobody else's chunks would make room.
What goes from a device is dropped. Where it lies nowhere else it is brought into DRAM first, or stays.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kvstore.api import Fidelity, Want
from kvstore.catalog import Namespace, Scope
from kvstore.checked import fill_from
from kvstore.coder import Coded
from kvstore.core import Copy, Core
from kvstore.decoding import raw_record
from kvstore.descent import LOOKED_AT, record_in_dram
from kvstore.errors import Closed, KVStoreError
from kvstore.keys import ChunkRef
from kvstore.loader import Loader
from kvstore.record import RAW
from kvstore.removed import Removed
from kvstore.spec import Part
from kvstore.tiers.base import TierFull

BACKLOG = 4096  # parts that wait; what is asked for on top of that is asked for again when it is used again
REMEMBERED = 65536  # parts that were asked for once
PATIENCE = 4  # times that room is made for one part
GIVE_WAY_S = 0.02


class Ask(NamedTuple):
    """A part that a reader on a device has missed there; `tier` is the device's number among the tiers."""

    tier: int
    scope: Scope
    ref: ChunkRef
    part: Part


class Promoter:
    """One thread for all devices of a store."""

    def __init__(self, core: Core, loader: Loader) -> None:
        self._core, self._loader = core, loader
        self._waiting: deque[Ask] = deque()
        self._known: set[Ask] = set()  # those that wait, or are under way
        self._asked: dict[Ask, None] = {}  # once, the oldest first
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="kvstore-promote", daemon=True)

    def start(self) -> None:
        """Begin copying."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Parts that wait or are under way."""
        return len(self._known)

    def ask(self, asks: Iterable[Ask]) -> None:
        """Note what was missed. Returns at once."""
        with self._changed:
            for ask in asks:
                if ask not in self._known and len(self._known) < BACKLOG:
                    self._known.add(ask)
                    self._waiting.append(ask)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop; what waits is forgotten."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                ask = self._waiting.popleft()
            reason = self._promote(ask)
            with self._changed:
                self._known.discard(ask)
            if reason:
                with self._core.lock:
                    self._core.counters[reason] += 1

    def _promote(self, ask: Ask) -> str:
        """Bring a part to its device; the counter of why it did not come, or nothing."""
        core, (number, scope, ref, part) = self._core, ask
        tier, total = core.tiers[number], scope.geometry(part, ref.tokens).total
        again = ask in self._asked
        if tier.state != "ok":
            return "not_promoted_device_lost"
        if total > tier.max_record:
            return "not_promoted_too_large"
        if not again and tier.capacity - tier.used < total:
            return self._remember(ask)
        with core.lock:
            _, row = core.find_part(scope, ref.key, part)
            if row < 0 or core.index.find_placement(row, number) >= 0 or not core.is_usable(number):
                return ""
            quota = scope.namespace.quota
            if quota and scope.namespace.taken + total > quota:
                return "not_promoted_quota"
        self._give_way()
        try:
            copy = self._loader.hold_in_dram(scope, ref, part, Fidelity.EXACT)
        except Closed:
            return ""
        except KVStoreError:
            return "not_promoted_not_readable"
        try:
            return self._write(ask, copy, again)
        except KVStoreError:
            return f"errors_{tier.name}"
        finally:
            core.let_go([copy])

    def _write(self, ask: Ask, copy: Copy, again: bool) -> str:
        """Write a part, raw as it is used there, making room for it if it was asked for before."""
        core, number = self._core, ask.tier
        tier, coded = core.tiers[number], self._raw(ask, copy)
        for _ in range(PATIENCE):
            try:
                location = tier.write(coded.header, coded.payload, coded.record)
            except TierFull:
                if not again:
                    return self._remember(ask)
                if not self._make_room(ask.scope.namespace, number, coded.record.total_bytes):
                    break
                continue
            self._asked.pop(ask, None)
            self._publish(ask, coded, location)
            return ""
        return "not_promoted_no_space"

    def _publish(self, ask: Ask, coded: Coded, location: int) -> None:
        core, tier, removed, placed = self._core, self._core.tiers[ask.tier], Removed(), -1
        record, namespace = coded.record, ask.scope.namespace
        try:
            with core.lock:
                core.check_open()
                placed = core.commits.publish(ask.scope, record, ask.tier, location, removed)
                if placed >= 0:
                    core.counters["promoted_bytes"] += record.stored
                    core.counters[f"promoted_{tier.name}"] += 1
                    core.events.emit("moved", namespace.name, record.key, record.spec, record.part, tier.name)
        finally:
            if placed < 0:
                removed.places.append((tier, location, record.total_bytes))
            core.settle(removed)

    def _raw(self, ask: Ask, copy: Copy) -> Coded:
        """A copy in DRAM as a raw record: decoded, where it lies encoded."""
        core, scope = self._core, ask.scope
        found = record_in_dram(core, copy.location, copy.header, copy.stored)
        if found.record.form == RAW:
            return found
        data = np.empty(scope.spec.part_bytes(ask.part, ask.ref.tokens), np.uint8).data
        memory = core.dram.view(copy.location, 0, copy.header + copy.stored)
        fill_from(memory, scope, Want(ask.ref, ask.part, data), copy, False, core.coder)
        record = raw_record(found.record, data, scope.spec)
        return Coded(record, record.pack(), data)

    def _remember(self, ask: Ask) -> str:
        """There is no room, for a part that was asked for once."""
        self._asked[ask] = None
        if len(self._asked) > REMEMBERED:
            del self._asked[next(iter(self._asked))]
        return "not_promoted_used_once"

    def _make_room(self, namespace: Namespace, number: int, nbytes: int) -> bool:
        """Let a namespace's coldest chunks on a device go; False if none may."""
        core, tier, removed = self._core, self._core.tiers[number], Removed()
        with core.lock:
            rows = core.usage.policy(number, namespace).victims()
        for _ in range(LOOKED_AT):
            if removed.bytes_in(tier) >= nbytes:
                break
            with core.lock:
                row = next(rows, -1)
                if row < 0:
                    break
                chunk, held = core.index.chunk(row), core.held(namespace)
                may_go = core.may_go(row, held)
                last = self._last_copies(row, number) if may_go else []
            may_go = may_go and all(self._is_brought_to_dram(*each) for each in last)
            with core.lock:
                row = core.index.find(chunk.scope, chunk.key)
                may_go = may_go and row >= 0 and not self._last_copies(row, number)
                if may_go:
                    core.drop_from(row, number, removed, held)
        freed = removed.bytes_in(tier)
        core.settle(removed)
        return freed > 0

    def _last_copies(self, row: int, number: int) -> list[tuple[Scope, ChunkRef, Part]]:
        """The parts of a chunk that lie on a device and nowhere else. Needs the lock."""
        core, index, chunk = self._core, self._core.index, self._core.index.chunk(row)
        ref, scope = ChunkRef(chunk.key, chunk.parent, chunk.position, chunk.tokens), core.catalog.scopes[chunk.scope]
        found = []
        for placement in core.placements(row, number):
            if placement not in core.bad and core.redundancy.only_here(placement):
                part = index.part(index.placement(placement).part)
                found.append((scope, ref, Part(part.group, part.rank, (part.layer_start, part.layer_end))))
        return found

    def _is_brought_to_dram(self, scope: Scope, ref: ChunkRef, part: Part) -> bool:
        try:
            self._core.let_go([self._loader.hold_in_dram(scope, ref, part, Fidelity.EXACT)])
        except KVStoreError:
            return False
        return True

    def _give_way(self) -> None:
        """Loads come first: wait a moment while some are running."""
        deadline = time.monotonic() + GIVE_WAY_S
        while self._core.loads and time.monotonic() < deadline:
            time.sleep(0.001)
