"""One process of a crowd: copies, reads or puts a corpus's chunks for as long as it is told, then checks some."""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np

import kvstore
from kvstore.bench.copies import LEASE_S, all_well
from kvstore.bench.corpus import Bytes, chunk_bytes, put_chunk, ref_of, wants_of
from kvstore.bench.crew import Answer
from kvstore.bench.measure import expect
from kvstore.bench.processes import TIMEOUT_S
from kvstore.bench.tcp_peer import RawStream, connected
from kvstore.errors import Shed
from kvstore.spec import KVSpec

CHECKED = 4  # of the chunks that were read last


def role(config: Mapping[str, Any]) -> Worker:
    """What `kvstore.bench.crew` runs in a process of its own."""
    return Worker(config)


class Worker:
    """Copies, reads and puts the corpus's chunks."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._spec = KVSpec.from_dict(config["spec"])
        nbytes = chunk_bytes(self._spec)
        self._nbytes, self._count, self._seed = nbytes, config["count"], config["seed"]
        self._memory = mmap.mmap(config["source"], nbytes * self._count, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._sources: list[Bytes] = np.split(np.frombuffer(self._memory, np.uint8), self._count)
        self._targets: list[Bytes] = np.split(np.ones(nbytes * config["targets"], np.uint8), config["targets"])
        self._leased, self._plain = (kvstore.connect(config["url"], timeout=TIMEOUT_S) for _ in range(2))
        self._refs = [ref_of(slot, self._spec.chunk_tokens) for slot in range(self._count)]
        self._hits = [self._leased.lookup(self._spec, [ref], lease_s=LEASE_S) for ref in self._refs]
        for slot, hit in enumerate(self._hits):
            expect(hit.tokens == self._spec.chunk_tokens, "look-up", slot)
        self._wants = [
            wants_of(self._plain, self._spec, ref, self._targets[slot % len(self._targets)])
            for slot, ref in enumerate(self._refs)
        ]
        self._raw = RawStream(connected(config["raw"]), 0) if "raw" in config else None
        self._slots = count(self._seed * self._count // 8)  # members begin at different places
        self._seeds = count((self._seed + 1) << 32)
        self._sheds: dict[str, int] = {}
        self._last: list[tuple[int, int]] = []

    def run(self, do: str, until: float) -> Answer:
        """`copy`, `raw`, `get` (leased), `one` (by key) or `put`, one chunk after the other."""
        steps = {"copy": self._copy, "raw": self._stream, "get": self._get, "one": self._one, "put": self._put}
        step = steps[do]
        times: list[float] = []
        self._last, self._sheds = [], {}
        moved = 0
        while (start := time.monotonic()) < until:
            slot = next(self._slots) % self._count
            target = slot % len(self._targets)
            moved += step(slot)
            times.append(time.monotonic() - start)
            if do != "put":
                self._last.append((slot, target))
        return {"times": times, "bytes": moved, "sheds": self._sheds}

    def check(self) -> None:
        """Compare the last targets with what they should hold, then forget them."""
        newest = {target: slot for slot, target in self._last}
        for target, slot in list(newest.items())[-CHECKED:]:
            expect(np.array_equal(self._targets[target], self._sources[slot]), "a reader", slot)
            self._targets[target].fill(0)

    def close(self) -> None:
        """End both connections."""
        self._leased.close()
        self._plain.close()

    def _copy(self, slot: int) -> int:
        np.copyto(self._targets[slot % len(self._targets)], self._sources[slot])
        return self._nbytes

    def _stream(self, slot: int) -> int:
        assert self._raw is not None
        self._raw.read(slot, self._targets[slot % len(self._targets)].data)
        return self._nbytes

    def _get(self, slot: int) -> int:
        all_well(self._leased.get_many(self._spec, self._wants[slot]))
        return self._nbytes

    def _one(self, slot: int) -> int:
        all_well(self._plain.get_many(self._spec, self._wants[slot]))
        return self._nbytes

    def _put(self, slot: int) -> int:
        try:
            ref = ref_of(next(self._seeds), self._spec.chunk_tokens)
            put_chunk(self._plain, self._spec, ref, self._sources[slot])
        except Shed as error:
            self._sheds[error.reason] = self._sheds.get(error.reason, 0) + 1
            return 0
        return self._nbytes
