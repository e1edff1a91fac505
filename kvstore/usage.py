"""What was asked for and found: the counters of a store, and the orders of use that decide what goes.

Everything here needs the store's lock.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.catalog import Catalog, Namespace, Scope
from kvstore.policy import Lru, Policy, Rows


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class FoundItems(NamedTuple):
    """What the index has of some items: see `kvstore._native.Index.find_items`."""

    chunks: npt.NDArray[np.int64]
    placements: npt.NDArray[np.int64]
    places: bytes
    in_dram: int


class Usage:
    """Hits, misses and orders of use. `counters` are the store's, by name."""

    def __init__(self, index: _native.Index, catalog: Catalog, tiers: int, max_chunks: int) -> None:
        self.counters: Counter[str] = Counter()
        self._index, self._catalog = index, catalog
        self._tiers, self._max_chunks = tiers, max_chunks
        self._spares: dict[bytes, Lru] = {}
        self.told: Callable[[Rows], None] = _nobody  # of rows that were used, root first
        self._policies: dict[tuple[int, bytes], Policy] = {}
        self._orders: dict[bytes, list[_native.LruList] | None] = {}

    def counted(self) -> dict[str, int]:
        """The counters, with what was put and read natively."""
        counters = self.counters.copy()
        for namespace in self._catalog.namespaces.values():
            counters["hits_dram"] += namespace.tally.hits_dram
            counters["stored"] += namespace.tally.stored
            counters["stored_bytes"] += namespace.tally.stored_bytes
        return {name: count for name, count in counters.items() if count}

    def policy(self, tier: int, namespace: Namespace) -> Policy:
        """The order of one namespace's chunks in one tier."""
        found = self._policies.get((tier, namespace.digest))
        if found is None:
            found = self._policies.setdefault((tier, namespace.digest), Lru(self._max_chunks))
        return found

    def spares(self, namespace: Namespace) -> Lru:
        """One namespace's chunks in DRAM that another host has as well, those first that came first.

        They are in the policy of DRAM too, but go before all others: two hosts that share are to hold twice as much.
        """
        found = self._spares.get(namespace.digest)
        if found is None:
            found = self._spares.setdefault(namespace.digest, Lru(self._max_chunks))
        return found

    def coldest(self, dram: int, namespace: Namespace) -> Iterator[int]:
        """A namespace's chunks in DRAM in the order in which they go: spares, then all. Some may come twice."""
        spares = self._spares.get(namespace.digest)
        if spares is not None:
            yield from spares.victims()
        yield from self.policy(dram, namespace).victims()

    def largest(self) -> Policy | None:
        """The policy with most chunks."""
        return max(self._policies.values(), key=len, default=None)

    def orders(self, namespace: Namespace) -> list[_native.LruList] | None:
        """What native code may touch when a chunk is used, of every tier; None where a policy does more."""
        if namespace.digest not in self._orders:
            found = [self.policy(tier, namespace).order for tier in range(self._tiers)]
            known = [order for order in found if order is not None]
            self._orders[namespace.digest] = known if len(known) == len(found) else None
        return self._orders[namespace.digest]

    def used(self, rows: Rows, namespace: Namespace) -> None:
        """Chunks of one prefix, root first, were used."""
        self._index.touch(rows, now_ms())
        self._tell(rows, namespace)

    def used_unleased(self, rows: Rows, namespace: Namespace) -> None:
        """`used`, but for chunks under a lease: its look-up has told of these."""
        touched = self._index.touch_unleased(rows, now_ms())
        if len(touched):
            self._tell(touched, namespace)

    def found(self, scope: Scope, found: FoundItems) -> None:
        """Count hits and misses of items that a reader asked for, and tell of their use."""
        count = len(found.chunks)
        if found.in_dram:
            self.counters["hits_dram"] += found.in_dram
        if found.in_dram == count:
            self.used_unleased(found.chunks, scope.namespace)
            return
        there = found.chunks[found.chunks >= 0]
        if len(there) < count:
            self.counters["misses"] += count - len(there)
        self.used_unleased(there, scope.namespace)

    def found_one(self, scope: Scope, chunk: int, *, in_dram: bool) -> None:
        """`found` of one item that is there, in the chunk of this row. Native code does the same where it answers."""
        if in_dram:
            self.counters["hits_dram"] += 1
        orders = self.orders(scope.namespace)
        if orders is None:
            self.used_unleased(np.array([chunk], np.int64), scope.namespace)
        else:
            _native.use_unleased(self._index, orders, chunk, now_ms())

    def _tell(self, rows: Rows, namespace: Namespace) -> None:
        self.told(rows)
        for tier in range(self._tiers):
            self.policy(tier, namespace).hit(rows)


def _nobody(rows: Rows) -> None:
    """Where no other host wants to know."""
    del rows
