"""Fetching artefacts: what a record of another host was encoded with is brought here from the tier that they share.

Beside the look-up that has met it, in one thread: that look-up misses, and a later one hits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kvstore.artefacts import Artefacts
from kvstore.errors import KVStoreError
from kvstore.tiers.base import Tier

MOST = 64  # that are waited for, or were not to be had of late; beyond that nothing is fetched
AGAIN_S = 10.0  # before one that could not be had is asked for again


class Fetcher:
    """Fetches artefacts by digest from shared tiers. Any thread may call."""

    def __init__(self, tiers: Sequence[Tier], artefacts: Artefacts, count: Callable[[str], None]) -> None:
        """`count` adds one to a counter of the store."""
        self._tiers = [tier for tier in tiers if tier.shared]
        self._artefacts, self._count = artefacts, count
        self._lock = threading.Lock()
        self._asked: dict[bytes, float] = {}  # until when not to be asked for again
        self._pool = ThreadPoolExecutor(1, "kvstore-artefacts")
        self._closed = False

    def want(self, digest: bytes) -> None:
        """Somebody has met a record that names this artefact, which is not here."""
        now = time.monotonic()
        with self._lock:
            if self._closed or not self._tiers:
                return
            self._asked = {each: until for each, until in self._asked.items() if until > now}
            if digest in self._asked or len(self._asked) >= MOST:
                return
            self._asked[digest] = float("inf")
            self._pool.submit(self._fetch, digest)

    def close(self) -> None:
        """Fetch no more, and wait for what is under way."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, digest: bytes) -> None:
        there, outcome = False, "artefacts_not_found"
        try:
            for tier in self._tiers:
                try:
                    self._artefacts.take(tier.fetch_artefact(digest), digest)
                except KVStoreError:  # not there, damaged or foreign, or the place is down: another may have it
                    continue
                there, outcome = True, "artefacts_fetched"
                break
        finally:
            with self._lock:
                self._asked[digest] = 0.0 if there else time.monotonic() + AGAIN_S
            self._count(outcome)
