"""Placing: parts brought into DRAM and put under a lease, for readers who copy them out of the extents themselves."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import TypeAlias

import numpy as np

from kvstore.api import Fidelity, Placed
from kvstore.backlog import Waiting
from kvstore.catalog import Scope
from kvstore.checked import miss, verify_record
from kvstore.core import Copy, Core
from kvstore.errors import Closed, Corrupt, KVStoreError, SpecMismatch
from kvstore.loader import Loader
from kvstore.places import ITEM_BYTES, NOWHERE, places_of, unpack_item, unpack_places
from kvstore.policy import Rows
from kvstore.usage import FoundItems

Hold: TypeAlias = Callable[[Rows], None]


class Placer:
    """Answers where parts lie."""

    def __init__(self, core: Core, loader: Loader) -> None:
        self._core = core
        self._loader = loader

    def place(self, scope: Scope, items: bytes, fidelity: Fidelity, verify: bool, hold: Hold) -> Placed:
        """Where packed items lie in DRAM, once they do; `hold` is called under the lock to put chunks under a lease.

        What cannot be brought there has the failure that a get would tell. A get reads past a DRAM without room;
        here that is `Shed`.
        """
        core = self._core
        with core.lock:
            core.check_open()
            found = core.find_items(scope, items, fidelity)
            if found.in_dram == len(found.chunks) and not verify:
                core.usage.found(scope, found)
                hold(found.chunks)
                return Placed(found.places, {})
            work = _Placing(core, self._loader, scope, items, fidelity)
            work.begin(found)
        try:
            work.load()
            if verify:
                work.verify()
            return work.finish(hold)
        finally:
            core.let_go(work.held.values())


class _Placing:
    """One call that has to load or to verify. Readers hold what is in DRAM until the lease does."""

    def __init__(self, core: Core, loader: Loader, scope: Scope, items: bytes, fidelity: Fidelity) -> None:
        self._core, self._loader, self._scope, self._fidelity = core, loader, scope, fidelity
        self._items = [unpack_item(items, i) for i in range(len(items) // ITEM_BYTES)]
        self._warm: list[int] = []
        self._cold: dict[int, Waiting] = {}
        self._failures: dict[int, KVStoreError] = {}
        self.held: dict[int, Copy] = {}

    def begin(self, found: FoundItems) -> None:
        """Hold what is in DRAM and sort out the rest. Needs the lock."""
        for ref_part, placement in zip(self._items, found.placements.tolist(), strict=True):
            if placement < 0:
                self._scope.spec.check_part(ref_part[1])
        self._core.usage.found(self._scope, found)
        for i, place in enumerate(unpack_places(found.places)):
            placement = int(found.placements[i])
            if place[0] != NOWHERE:
                self.held[i] = self._core.hold(placement, self._scope, self._items[i][1])
                self._warm.append(i)
            elif placement >= 0:
                row = self._core.index.placement(placement)
                self._cold[i] = self._core.backlog.enter(row.tier, row.stored)
            else:
                self._failures[i] = miss(*self._items[i])

    def load(self) -> None:
        """Bring what is elsewhere into DRAM, several at once, the first of them in this thread."""
        loads, load = [], self._loader.hold_in_dram
        for i in list(self._cold)[1:]:
            try:
                begun = self._loader.submit_load(self._cold[i], load, self._scope, *self._items[i], self._fidelity)
                loads.append((i, begun.result))
            except Closed as error:
                self._failures[i] = error
        for i in list(self._cold)[:1]:
            self._cold[i].leave()  # its turn has come
            self._keep(i, partial(load, self._scope, *self._items[i], self._fidelity))
        for i, result in loads:
            self._keep(i, result)

    def _keep(self, i: int, load: Callable[[], Copy]) -> None:
        try:
            self.held[i] = load()
        except CancelledError:
            self._failures[i] = Closed("the store was closed before the load began")
        except KVStoreError as error:
            self._failures[i] = error

    def verify(self) -> None:
        """Check what was in DRAM before (the rest was checked when it came), and quarantine what is bad."""
        for i in self._warm:
            (ref, part), copy = self._items[i], self.held[i]
            try:
                memory = self._core.dram.view(copy.location, 0, copy.total)
                verify_record(memory, self._scope, ref.key, part, self._core.dram.name)
            except (Corrupt, SpecMismatch) as error:
                self._failures[i] = error
                self._core.let_go([self.held.pop(i)])
                self._loader.copies.quarantine(self._scope, ref.key, part, copy)

    def finish(self, hold: Hold) -> Placed:
        """Put what is in DRAM under the lease and say where it lies."""
        index, known = self._core.index, {}
        with self._core.lock:
            hold(np.array([self._core.chunk_of(copy.placement) for copy in self.held.values()], np.int64))
            for i, copy in self.held.items():
                first_valid = index.part(index.placement(copy.placement).part).first_valid
                known[i] = (copy.location + copy.header, copy.stored, copy.form, first_valid)
        return Placed(places_of(len(self._items), known), self._failures)
