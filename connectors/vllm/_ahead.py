"""Loading ahead: what waiting requests will need is brought into the store's DRAM before their turn comes.

A request that waits in vLLM's queue has been looked up, and what it will load may lie on a disk or in a shared place.
The store is asked to load it then, so that the request's own load finds DRAM.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from kvstore.api import Fidelity
from kvstore.client import Client
from kvstore.connectors.vllm._counts import Counts
from kvstore.errors import KVStoreError
from kvstore.hit import Hit
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec


class Ahead:
    """At most `limit` bytes (0: none) are asked for and not taken yet; requests that come later wait, the first first.

    What is asked for stays, under the request's lease. `submit` runs a call to the store in some other thread.
    """

    def __init__(
        self, client: Client, spec: KVSpec, limit: int, fidelity: Fidelity, counts: Counts,
        submit: Callable[[Callable[[], None]], None],
    ) -> None:  # fmt: skip
        self._client, self._spec, self._limit, self._fidelity = client, spec, limit, fidelity
        self._counts, self._submit = counts, submit
        self._lock = threading.Lock()
        self._expected: set[str] = set()
        self._asked: dict[str, int] = {}  # bytes
        self._waiting: OrderedDict[str, tuple[tuple[ChunkRef, ...], int]] = OrderedDict()

    def expect(self, request: str) -> None:
        """A request is looked up, and waits."""
        with self._lock:
            self._expected.add(request)

    def begin(self, request: str, hit: Hit) -> None:
        """What a request that is expected has been found to need, in a thread that may wait for the store."""
        nbytes = sum(self._bytes(ref) for ref in hit.cold)
        with self._lock:
            if not nbytes or not self._limit or request not in self._expected:
                return
            self._waiting[request] = (hit.cold, nbytes)
        self._ask()

    def end(self, request: str) -> None:
        """A request's turn has come, or it is gone."""
        with self._lock:
            self._expected.discard(request)
            self._waiting.pop(request, None)
            taken = self._asked.pop(request, None)
            more = taken is not None and bool(self._waiting)
        if more:
            self._submit(self._ask)

    def _ask(self) -> None:
        """Ask for what there is room for; one request that is larger than all of it goes alone."""
        while True:
            with self._lock:
                request, (cold, nbytes) = next(iter(self._waiting.items()), ("", ((), 0)))
                before = sum(self._asked.values())
                if not cold or (before and before + nbytes > self._limit):
                    return
                del self._waiting[request]
                self._asked[request] = nbytes
            # Of what is too much for the bound the beginning: it is loaded first.
            keys, left = list[bytes](), self._limit
            for ref in cold:
                left -= self._bytes(ref)
                if left < 0:
                    break
                keys.append(ref.key)
            try:
                if keys:
                    self._client.prefetch(self._spec, keys, fidelity=self._fidelity)
                    self._counts.add(prefetched_chunks=len(keys))
            except KVStoreError:
                return  # the load itself finds out, and says so

    def _bytes(self, ref: ChunkRef) -> int:
        return sum(self._spec.part_bytes(part, ref.tokens) for part in self._spec.all_parts)
