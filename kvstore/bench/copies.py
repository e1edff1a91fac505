"""The cases that move chunks between a store's DRAM and the caller's memory, for every way into the store."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from kvstore.api import Want
from kvstore.bench.corpus import Bytes, Corpus, layout, put_chunk, wants_of
from kvstore.bench.measure import Case, Step, expect
from kvstore.bench.puts import Fresh, Reserved, Staged, ring
from kvstore.client import Client
from kvstore.errors import InvalidArgument, KVStoreError

MiB = 1 << 20
BATCH = 16
LEASE_S = 3600.0
Copy = Callable[[Bytes, Bytes], object]


class Copies:
    """The cases of one chunk size over one store that holds the corpus.

    `leased` is a client whose look-ups lease every chunk, `plain` one without leases. Where they are the same the
    store is in this process, and `put` commits its own memory; else it sends staging memory (`Client.buffer`).
    """

    def __init__(self, leased: Client, plain: Client, corpus: Corpus, mode: str, server_pid: int = 0) -> None:
        self._pid = server_pid
        self._leased, self._plain, self._corpus, self._spec, self._mode = leased, plain, corpus, corpus.spec, mode
        self._wants = [wants_of(leased, self._spec, ref, corpus.target(i)) for i, ref in enumerate(corpus.refs)]
        self._hits = [leased.lookup(self._spec, [ref], lease_s=LEASE_S) for ref in corpus.refs]
        for slot, hit in enumerate(self._hits):
            expect(hit.tokens == self._spec.chunk_tokens, "look-up", slot)
        self._fresh = Fresh(plain, corpus)
        self._putter: Reserved | Staged = (Reserved if leased is plain else Staged)(plain, corpus)
        self._held = f"{corpus.count * corpus.nbytes >> 20} MiB of chunks in the store's DRAM, in rotation"

    def views(self) -> Case:
        """`view`: in a loop of its own, since copies between would empty the caches of what it needs."""
        note = f"{self._held}, not leased; opened and closed, in a loop of its own"
        size = {"bytes": self._corpus.nbytes}
        return Case(
            "view", self._view, mode=self._mode, note=note, check=self._viewed, server_pid=self._pid, facts=size
        )

    def copies(self) -> list[Case]:
        """All cases that move bytes, the baseline first."""
        nbytes, held = self._corpus.nbytes, self._held
        name, copy = best_copy(self._corpus)
        cases = [
            Case("memcpy", self._memcpy(copy), nbytes, note=f"baseline: {name}, one thread, rotating buffers"),
            Case("get", self._get, nbytes, "memcpy", note=f"{held}, leased by the look-up before"),
            Case("get-one", self._get_one, nbytes, "memcpy", note=f"{held}, by key, not leased"),
            Case("get-verified", self._get_verified, nbytes, "memcpy", note=f"{held}, leased, hashed while copied"),
        ]
        for case in cases:
            case.check = self._arrived(case.name)
        if nbytes == MiB:
            cases.append(
                Case("get-batch", self._get_batch, BATCH * nbytes, "memcpy",
                     note=f"{held}, not leased; {BATCH} in one call", check=self._batch_arrived)
            )  # fmt: skip
        cases += [
            Case("put", self._putter.put, nbytes, "memcpy", note=self._putter.note, before=self._putter.before,
                 after=self._putter.after, check=self._stored(self._putter)),
            Case("put-copy", self._put_copy, nbytes, "memcpy",
                 note="the caller's rotating arrays to the acknowledgement (stored)",
                 before=self._fresh.before, after=self._fresh.after, check=self._stored(self._fresh)),
        ]  # fmt: skip
        for case in cases:
            case.mode = self._mode
            case.server_pid = self._pid if case.baseline else 0
        return cases

    def _memcpy(self, copy: Copy) -> Step:
        corpus = self._corpus

        def run(slot: int) -> None:
            copy(corpus.target(slot), corpus.sources[slot])

        return run

    def _get(self, slot: int) -> None:
        all_well(self._leased.get_many(self._spec, self._wants[slot]))

    def _get_one(self, slot: int) -> None:
        read_chunk(self._plain, self._corpus, self._wants[slot], slot)

    def _get_verified(self, slot: int) -> None:
        all_well(self._leased.get_many(self._spec, self._wants[slot], verify=True))

    def _get_batch(self, slot: int) -> None:
        wants = [want for each in batch(slot, self._corpus) for want in self._wants[each]]
        all_well(self._plain.get_many(self._spec, wants))

    def _arrived(self, case: str) -> Step:
        def check(slot: int) -> None:
            expect(self._corpus.arrived(slot), case, slot)

        return check

    def _batch_arrived(self, slot: int) -> None:
        for each in batch(slot, self._corpus):
            expect(self._corpus.arrived(each), "get-batch", each)

    def _view(self, slot: int) -> None:
        for part in self._spec.all_parts:
            self._plain.view(self._spec, self._corpus.refs[slot], part=part).close()

    def _viewed(self, slot: int) -> None:
        for part, at in layout(self._spec):
            with self._plain.view(self._spec, self._corpus.refs[slot], part=part) as view:
                same = np.array_equal(np.frombuffer(view.data, np.uint8), self._corpus.sources[slot][at])
            expect(same, "view", slot)

    def _put_copy(self, slot: int) -> None:
        put_chunk(self._plain, self._spec, self._fresh.ref, self._corpus.sources[slot], self._fresh.parts)

    def _stored(self, put: Fresh) -> Step:
        def check(slot: int) -> None:
            target = self._corpus.target(slot)
            target.fill(0)
            all_well(self._plain.get_many(self._spec, wants_of(self._plain, self._spec, put.ref, target)))
            expect(np.array_equal(target, self._corpus.sources[put.source(slot)]), "put", slot)

        return check


def read_chunk(client: Client, corpus: Corpus, wants: Sequence[Want], slot: int) -> None:
    """One chunk by its key: `get`, or `get_many` for one of several parts."""
    if len(wants) == 1:
        client.get(corpus.spec, corpus.refs[slot], out=corpus.target(slot))
    else:
        all_well(client.get_many(corpus.spec, wants))


def batch(slot: int, corpus: Corpus) -> list[int]:
    """The slots of one batch."""
    return [(slot + i) % corpus.count for i in range(BATCH)]


def all_well(outcomes: Sequence[KVStoreError | Exception | None]) -> None:
    """Raise the first failure."""
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


def best_copy(corpus: Corpus) -> tuple[str, Copy]:
    """The fastest plain single-threaded copy here, and its name."""
    nbytes = corpus.nbytes

    def memmove(target: Bytes, source: Bytes) -> None:
        ctypes.memmove(target.ctypes.data, source.ctypes.data, nbytes)

    candidates: dict[str, Copy] = {"numpy.copyto": np.copyto, "ctypes.memmove": memmove}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for slot in range(min(corpus.count, 16)):
        for name, copy in candidates.items():
            start = time.perf_counter()
            copy(corpus.target(slot), corpus.sources[slot])
            times[name].append(time.perf_counter() - start)
    best = min(times, key=lambda name: median(times[name]))
    return best, candidates[best]


def store_corpus(client: Client, corpus: Corpus) -> None:
    """Put every chunk of the corpus into a new store."""
    for ref, source in zip(corpus.refs, corpus.sources, strict=True):
        if not put_chunk(client, corpus.spec, ref, source):
            raise InvalidArgument("the benchmark's chunks were in a new store already")


def capacity_for(corpus: Corpus) -> int:
    """DRAM for the corpus and for what the put cases write, record headers included."""
    headers = 16384 * len(corpus.spec.all_parts)
    wanted = (corpus.count + 3 * ring(corpus) + 8) * (corpus.nbytes + headers)
    return -(-wanted // (2 * MiB)) * 2 * MiB
