"""Background verification: what lies in this host's persistent tiers is read against its checksums, at a set rate.

A bad copy is found before it is needed, while another host or tier may still have a good one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kvstore.catalog import Namespace
from kvstore.errors import KVStoreError

if TYPE_CHECKING:
    from kvstore.store import Store

PAGE = 64
REST_S = 60.0  # after a round over everything


class Scrubber:
    """Reads `bytes_per_s` all the time, round after round."""

    def __init__(self, store: Store, bytes_per_s: float) -> None:
        self._store, self._rate = store, bytes_per_s
        self._core = store.core
        self._tiers = {tier.name for tier in self._core.tiers if tier.persistent and not tier.shared}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvstore-scrub", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop, after the record that is being read."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for namespace in list(self._core.catalog.namespaces.values()):
                try:
                    self._round(namespace)
                except KVStoreError:  # a tier that cannot be read: the next round tries again
                    with self._core.lock:
                        self._core.counters["scrub_failures"] += 1
            with self._core.lock:
                self._core.counters["scrub_rounds"] += 1
            self._stop.wait(REST_S)

    def _round(self, namespace: Namespace) -> None:
        cursor = 0
        while not self._stop.is_set():
            page = self._store.chunks(namespace, cursor, PAGE)
            for info in page.chunks:
                for place in info.placements:
                    if place.tier in self._tiers and not self._stop.is_set():
                        problem = self._store.check_copy(namespace, info, place)
                        with self._core.lock:
                            self._core.counters["scrubbed_bytes"] += place.stored
                            self._core.counters["scrubbed_bad"] += bool(problem)
                        self._stop.wait(place.stored / self._rate)
            cursor = page.cursor
            if not cursor:
                return
