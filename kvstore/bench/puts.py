"""What the put cases put: new keys each time, and memory that was filled so long ago that no cache holds it."""

from __future__ import annotations

from collections import deque
from itertools import count

import numpy as np

from kvstore.api import Reservation
from kvstore.bench.corpus import Corpus, layout, put_chunk, ref_of
from kvstore.client import Client
from kvstore.keys import ChunkRef
from kvstore.spec import Part

MiB = 1 << 20
STAGING = 128 * MiB  # filled memory that waits to be put
_SEEDS = count(1 << 32)  # of keys that nothing is stored under yet


class Fresh:
    """Keys that nothing is stored under yet. What was put is deleted again when enough has been put after it."""

    note = ""

    def __init__(self, client: Client, corpus: Corpus) -> None:
        self._client, self._corpus, self._spec = client, corpus, corpus.spec
        self.parts = layout(corpus.spec)
        self._put: deque[ChunkRef] = deque()
        self._kept = ring(corpus)

    @property
    def ref(self) -> ChunkRef:
        """What is put next, or was put last."""
        return self._put[-1]

    def source(self, slot: int) -> int:
        """Which of the corpus's chunks is put for a slot."""
        return slot

    def before(self, slot: int) -> None:
        """A new key."""
        del slot
        self._put.append(ref_of(next(_SEEDS), self._spec.chunk_tokens))

    def after(self, slot: int) -> None:
        """Make room."""
        del slot
        while len(self._put) > self._kept:
            self._client.delete(self._spec, [self._put.popleft().key])


class Staged(Fresh):
    """`put` of staging memory that was filled long before, under a new key each time."""

    note = f"staging memory filled before, {STAGING >> 20} MiB in rotation, to the acknowledgement (stored)"

    def __init__(self, client: Client, corpus: Corpus) -> None:
        super().__init__(client, corpus)
        self._ring = min(corpus.count, ring(corpus))
        self._staging = [client.buffer(corpus.nbytes) for _ in range(self._ring)]
        for source, memory in zip(corpus.sources, self._staging, strict=False):
            memory[:] = source

    def source(self, slot: int) -> int:
        """The staging memory of a slot holds this chunk."""
        return slot % self._ring

    def put(self, slot: int) -> None:
        """The timed step."""
        put_chunk(self._client, self._spec, self.ref, self._staging[slot % self._ring], self.parts)


class Reserved(Fresh):
    """`put` of the store's own memory: reserved and filled so long before that no cache holds it any more."""

    note = f"arena memory filled {STAGING >> 20} MiB before, to the acknowledgement (stored)"

    def __init__(self, client: Client, corpus: Corpus) -> None:
        super().__init__(client, corpus)
        self._ahead: deque[tuple[ChunkRef, int, list[Reservation]]] = deque()
        self._depth = ring(corpus)
        self._filled = 0
        self._current: tuple[int, list[Reservation]] = (0, [])

    def source(self, slot: int) -> int:
        """The chunk that the memory just committed was filled with."""
        del slot
        return self._current[0]

    def before(self, slot: int) -> None:
        """Fill memory for a put to come, and take what was filled longest ago."""
        while len(self._ahead) < self._depth:
            number = self._filled % self._corpus.count
            ref = ref_of(next(_SEEDS), self._spec.chunk_tokens)
            self._ahead.append((ref, number, [self._reserve(ref, part, number, at) for part, at in self.parts]))
            self._filled += 1
        ref, number, reservations = self._ahead.popleft()
        self._put.append(ref)
        self._current = (number, reservations)

    def put(self, slot: int) -> None:
        """The timed step."""
        del slot
        for reservation in self._current[1]:
            reservation.commit()

    def _reserve(self, ref: ChunkRef, part: Part, number: int, at: slice) -> Reservation:
        reservation = self._client.reserve(self._spec, ref, part=part)
        np.frombuffer(reservation.data, np.uint8)[:] = self._corpus.sources[number][at]
        return reservation


def ring(corpus: Corpus) -> int:
    """How many chunks are put before memory is used again."""
    return max(2, min(corpus.targets_count, STAGING // corpus.nbytes))
