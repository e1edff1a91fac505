"""Finding: what other hosts have stored is entered into the index when it is looked up.

What this host's own tiers lack the other hosts are asked for, then the shared places for what nobody has. A shared
place keeps what it has until somebody deletes it; a host lets go of what it holds at any time, so that it is asked
anew in every look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.catalog import Scope
from kvstore.core import Core
from kvstore.decoding import check_known
from kvstore.errors import KVStoreError, NotFound
from kvstore.record import NO_ARTEFACT, RAW, Entry, Record
from kvstore.removed import Removed
from kvstore.rows import PART_DTYPE, REF_DTYPE
from kvstore.spec import Part
from kvstore.tiers.base import Name, Tier

MOST = 2048  # names asked for in one look-up
_ITEM = np.dtype([("ref", REF_DTYPE), ("part", PART_DTYPE)])
Missing = npt.NDArray[np.intp]


class Finder:
    """Asks the shared tiers for what the index lacks."""

    def __init__(self, core: Core, wait_s: float, peers_wait_s: float) -> None:
        """`wait_s` is the longest that a look-up waits for a shared tier, `peers_wait_s` for other hosts."""
        self._core = core
        self._wait_s, self._peers_wait_s = wait_s, peers_wait_s
        self._places = [n for n, tier in enumerate(core.tiers) if tier.shared and tier.writable]
        self._own = bytes(n for n, tier in enumerate(core.tiers) if not tier.shared)

    def complete(self, scope: Scope, refs: bytes, parts: Sequence[Part], packed: bytes, exact: bool) -> None:
        """Enter what shared tiers have of packed look-up records, as far as the index lacks it."""
        core = self._core
        rows = np.frombuffer(refs, REF_DTYPE)
        if core.peers is not None and core.is_usable(core.peers):
            missing = self._elsewhere(scope, rows, parts, packed, exact)
            if len(missing):
                left = self._ask(scope, core.peers, rows, parts, missing, self._peers_wait_s)
                self._forget(scope, core.peers, rows, parts, left)
        usable = [number for number in self._places if core.is_usable(number)]
        if not usable:
            return
        with core.lock:
            _, present, _ = core.index.lookup(scope.number, refs, packed, exact, 0)
        missing = np.argwhere(present.T == 0)[:MOST]
        for number in usable:
            if not len(missing):
                return
            missing = self._ask(scope, number, rows, parts, missing, self._wait_s)

    def _elsewhere(
        self, scope: Scope, refs: npt.NDArray[np.void], parts: Sequence[Part], packed: bytes, exact: bool
    ) -> Missing:
        """The (reference, part) pairs that no tier of this host's own has."""
        core = self._core
        items = np.empty((len(refs), len(parts)), _ITEM)
        items["ref"] = refs[:, None]
        items["part"] = np.frombuffer(packed, PART_DTYPE)
        headers = scope.packed_headers if packed == scope.packed_parts else scope.table(parts)[1]
        with core.lock:
            _, placements, _, _ = core.index.find_items(
                scope.number, items.tobytes(), packed, headers, exact, self._own, core.bad_rows()
            )
        found: Missing = np.argwhere(placements.reshape(items.shape) < 0)[:MOST]
        return found

    def _ask(
        self, scope: Scope, number: int, refs: npt.NDArray[np.void], parts: Sequence[Part], missing: Missing,
        wait_s: float,
    ) -> Missing:  # fmt: skip
        """Ask one tier for missing (reference, part) pairs; those that it has not either."""
        tier, namespace, spec = self._core.tiers[number], scope.namespace.digest, scope.spec.digest
        wanted = [Name(namespace, spec, refs[ref]["key"].tobytes(), parts[part]) for ref, part in missing.tolist()]
        found = tier.find(wanted, wait_s)
        entered = [
            each is not None and self._enter(scope, number, tier, refs[ref], *each)
            for each, ref in zip(found, missing[:, 0].tolist(), strict=True)
        ]
        left: Missing = missing[~np.array(entered, bool)]
        return left

    def _enter(self, scope: Scope, number: int, tier: Tier, ref: Any, record: Record | Entry, location: int) -> bool:
        """Enter one record; False if it is not what was asked for, or nobody here can decode it."""
        core, removed, placed = self._core, Removed(), -1
        same = (record.position, record.tokens) == (int(ref["position"]), int(ref["tokens"]))
        if same and record.form != RAW and isinstance(record, Record):
            try:
                check_known(record.form, record.artefact, core.coder.artefacts.get, record.key)
            except NotFound:
                same = False
                if record.artefact != NO_ARTEFACT:
                    core.fetcher.want(record.artefact)
        try:
            if same:
                with core.lock:
                    placed = self._renewed(scope, number, record, location, removed)
                    if placed < 0:
                        placed = core.commits.publish(scope, record, number, location, removed)
                    core.counters[f"found_{tier.name}"] += placed >= 0
        except KVStoreError:  # no row for it, or one with other figures: it is found again when there is
            same = False
        finally:
            core.settle(removed)
            if placed < 0:
                tier.evict(location, record.total_bytes)
        return same

    def _renewed(self, scope: Scope, number: int, record: Record | Entry, location: int, removed: Removed) -> int:
        """The placement of what another host was known to have already, pointed at its new location; -1 if none.

        Needs the lock.
        """
        core, index = self._core, self._core.index
        here = -1 if core.tiers[number].writable else self._placement(scope, number, record.key, record.part)
        if here < 0 or index.placement(here).readers:
            return -1
        old = index.placement(here)
        if (old.codec, old.level, old.exact, old.stored) != (record.form, record.level, record.exact, record.stored):
            core.withdraw(scope, here, removed)
            return -1
        removed.evicted.append((core.tiers[number], old.loc, record.total_bytes))
        index.set_loc(here, location, record.stored)
        return here

    def _forget(
        self, scope: Scope, number: int, refs: npt.NDArray[np.void], parts: Sequence[Part], left: Missing
    ) -> None:
        """What other hosts had, as far as this one knew, and have no more, or nobody can say."""
        core, removed = self._core, Removed()
        with core.lock:
            known = len(core.usage.policy(core.found, scope.namespace)) > 0
            for ref, part in left.tolist() if known else ():
                self._withdraw(scope, number, refs[ref]["key"].tobytes(), parts[part], removed)
        core.settle(removed)

    def _withdraw(self, scope: Scope, number: int, key: bytes, part: Part, removed: Removed) -> None:
        """Take out what the index has of a tier, unless it is being read. Needs the lock."""
        core, here = self._core, self._placement(scope, number, key, part)
        if here >= 0 and not core.index.placement(here).readers:
            core.withdraw(scope, here, removed)

    def _placement(self, scope: Scope, number: int, key: bytes, part: Part) -> int:
        """What the index has of a tier, -1 for nothing. Needs the lock."""
        _, row = self._core.find_part(scope, key, part)
        return -1 if row < 0 else self._core.index.find_placement(row, number)
