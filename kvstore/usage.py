"""What was asked for and found: the counters of a store, and the orders of use that decide what goes.

Everything here needs the store's lock.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.catalog import Catalog, Namespace, Scope
from kvstore.policy import LRU, Policy, Rows

_TALLIED = ("hits_dram", "stored", "stored_bytes", "peer_reads", "peer_bytes")


def now_ms() -> int:
    """Unix time in milliseconds: the index's, which outlives the process."""
    return time.time_ns() // 1_000_000


def steady_ms() -> int:
    """Milliseconds on a clock that nobody sets.

    Policies age chunks by it, and leases are timed by it, whose holders count with it too.
    """
    return time.monotonic_ns() // 1_000_000


class FoundItems(NamedTuple):
    """What the index has of some items: see `kvstore._native.Index.find_items`."""

    chunks: npt.NDArray[np.int64]
    placements: npt.NDArray[np.int64]
    places: bytes
    in_dram: int


class Usage:
    """Hits, misses and orders of use. `counters` are the store's, by name; `uses` is told of every use."""

    def __init__(
        self, index: _native.Index, catalog: Catalog, tiers: int, max_chunks: int, policy: str,
        uses: _native.UseLog | None = None,
    ) -> None:  # fmt: skip
        self.counters: Counter[str] = Counter()
        self._index, self._catalog = index, catalog
        self._tiers, self._max_chunks, self._policy = tiers, max_chunks, policy
        self._spares: dict[bytes, Policy] = {}
        self._uses = [] if uses is None else [uses]
        self._policies: dict[tuple[int, bytes], Policy] = {}
        self._orders: dict[bytes, list[Policy]] = {}
        self._demanding: dict[bytes, list[Policy]] = {}

    def counted(self) -> dict[str, int]:
        """The counters, with what was put and read natively."""
        counters = self.counters.copy()
        for namespace in self._catalog.namespaces.values():
            for name in _TALLIED:
                counters[name] += getattr(namespace.tally, name)
        return {name: count for name, count in counters.items() if count}

    def policy(self, tier: int, namespace: Namespace) -> Policy:
        """The order of one namespace's chunks in one tier."""
        found = self._policies.get((tier, namespace.digest))
        if found is None:
            # The last order is of what others hold, which takes no room that a policy could make better use of.
            name = LRU if tier == self._tiers - 1 else self.policy_name(namespace)
            found = Policy(name, self._max_chunks)
            self._policies[tier, namespace.digest] = found
        return found

    def spare(self, namespace: Namespace, chunk: int) -> None:
        """A chunk in DRAM is another host's as well.

        It is in the policy of DRAM too, but goes before all others: two hosts that share are to hold twice as much.
        """
        order = self._spares.get(namespace.digest)
        if order is None:
            order = self._spares.setdefault(namespace.digest, Policy(LRU, self._max_chunks))
        _native.admit_chunk(self._index, order, chunk, 0, now_ms())

    def no_spare(self, namespace: Namespace, chunk: int) -> None:
        """A chunk is no other host's any more, as far as this one knows, or has left DRAM."""
        order = self._spares.get(namespace.digest)
        if order is not None:
            order.remove(chunk, False, steady_ms())

    def coldest(self, dram: int, namespace: Namespace) -> Iterator[int]:
        """A namespace's chunks in DRAM in the order in which they go: spares, then all. Some may come twice."""
        spares = self._spares.get(namespace.digest)
        if spares is not None:
            yield from spares.victims()
        yield from self.policy(dram, namespace).victims()

    def in_tier(self, tier: int) -> dict[bytes, Policy]:
        """The policies that a tier has so far, by the digests of their namespaces."""
        return {digest: policy for (number, digest), policy in self._policies.items() if number == tier}

    def policy_name(self, namespace: Namespace) -> str:
        """What a namespace's chunks are ordered by."""
        return namespace.policy or self._policy

    def came(self, tier: int, namespace: Namespace, chunk: int) -> None:
        """A part of a chunk has come to a tier."""
        _native.admit_chunk(self._index, self.policy(tier, namespace), chunk, tier, now_ms())

    def restored(self, tier: int, namespace: Namespace, chunks: Rows) -> None:
        """Chunks have outlived the process in a tier: their rows, what was used longest ago first."""
        _native.restore_chunks(self._index, self.policy(tier, namespace), chunks, tier, now_ms())

    def left(self, tier: int, namespace: Namespace, chunk: int, *, evicted: bool) -> None:
        """Nothing of a chunk is in a tier any more: it was evicted to make room, or went for another reason."""
        self.policy(tier, namespace).remove(chunk, evicted, steady_ms())

    def largest(self) -> Policy | None:
        """The policy with most chunks."""
        return max(self._policies.values(), key=len, default=None)

    def orders(self, namespace: Namespace) -> list[Policy]:
        """The policies of every tier, for native code to tell when a chunk is used."""
        found = self._orders.get(namespace.digest)
        if found is None:
            orders = [self.policy(tier, namespace) for tier in range(self._tiers)]
            found = self._orders[namespace.digest] = [*orders, *self._uses]
        return found

    def asked(self, scope: Scope, refs: bytes, rows: npt.NDArray[np.int64]) -> None:
        """A look-up under a lease asked for chunks, of which the index has `rows`; told before `used`."""
        demanding = self._demanding_of(scope.namespace)
        if demanding:
            _native.demand_missing(demanding, scope.number, refs, rows)

    def wants_demand(self, namespace: Namespace) -> bool:
        """Whether what look-ups miss is to be told."""
        return bool(self._demanding_of(namespace))

    def _demanding_of(self, namespace: Namespace) -> list[Policy]:
        found = self._demanding.get(namespace.digest)
        if found is None:
            found = [policy for policy in self.orders(namespace) if policy.wants_demand]
            self._demanding[namespace.digest] = found
        return found

    def hinted(self, rows: Rows, namespace: Namespace, awaited_s: float) -> None:
        """A client says that the prompt of these rows, root first, comes back in about so long (0: never)."""
        now = steady_ms()
        self.counters["hints_awaited" if awaited_s else "hints_ended"] += 1
        for policy in self.orders(namespace):
            if awaited_s:
                policy.awaited(rows, now, now + int(awaited_s * 1000))
            else:
                policy.ended(rows, now)

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
        _native.use_unleased(self._index, self.orders(scope.namespace), chunk, now_ms())

    def _tell(self, rows: Rows, namespace: Namespace) -> None:
        now = steady_ms()
        for policy in self.orders(namespace):
            policy.hit(rows, now)
