"""`kvstore bench local`: the embedded store in DRAM against a plain copy of the same bytes."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median

import numpy as np

import kvstore
from kvstore.api import Reservation
from kvstore.bench.corpus import Bytes, Corpus, ref_of, spec_of
from kvstore.bench.measure import Bar, Case, Row, Step, expect, measure
from kvstore.client import Client, Hit
from kvstore.config import Config, DramConfig
from kvstore.errors import InvalidArgument
from kvstore.keys import ChunkRef

MiB = 1 << 20
MODE = "embedded"
SIZES = (1 * MiB, 16 * MiB)
WORKING_SET = 512 * MiB
TARGETS = 256 * MiB
BATCH = 16
LEASE_S = 3600.0
PUT_WAIT_S = 60.0  # the first put waits until its extent is populated
BARS = {
    ("get", 1 * MiB): Bar(ratio=0.8),
    ("get", 16 * MiB): Bar(ratio=0.9),
    ("put-copy", 16 * MiB): Bar(ratio=0.5),
    ("view", 1 * MiB): Bar(p50_s=20e-6),
    ("view", 16 * MiB): Bar(p50_s=20e-6),
    ("lookup-100", 0): Bar(p50_s=50e-6),
}
Copy = Callable[[Bytes, Bytes], object]


def run(
    *,
    rounds: int = 60,
    sizes: tuple[int, ...] = SIZES,
    working_set: int = WORKING_SET,
    targets: int = TARGETS,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All rows. `working_set` bytes are stored, `targets` bytes are read into, both in rotation."""
    rows: list[Row] = []
    for nbytes in sizes:
        corpus = Corpus(nbytes, max(BATCH, working_set // nbytes), max(BATCH, targets // nbytes))
        with _open(corpus) as client:
            group = _Group(client, corpus)
            rows += measure(group.copies(), rounds=rounds, slots=corpus.count, advance=advance)
            rows += measure([group.view()], rounds=rounds * 5, slots=corpus.count)
    rows += lookups(rounds=rounds * 5)
    for row in rows:
        bar = BARS.get((row["case"], row["bytes"]))
        row["bar"], row["met"] = (str(bar), bar.met(row)) if bar else (None, None)
    return rows


def lookups(*, rounds: int, chunks: int = 100) -> list[Row]:
    """`lookup-100` and `lookup-100-leased`: one prompt of 100 chunks, all there."""
    spec = spec_of(256 << 10)
    block = np.zeros(spec.part_shape(spec.part(), spec.chunk_tokens), np.uint16)
    config = Config(dram=DramConfig(capacity=64 * MiB, extent=64 * MiB), lease_limit_s=LEASE_S, put_wait_s=PUT_WAIT_S)
    with kvstore.open(config) as client:
        chain = client.chain(spec, range(chunks * spec.chunk_tokens))
        for ref in chain.refs:
            client.put(spec, ref, block)
        hits: deque[Hit] = deque(maxlen=1)

        def look(lease_s: float) -> Step:
            def run(slot: int) -> None:
                hits.append(client.lookup(spec, chain, lease_s=lease_s))

            return run

        def check(slot: int) -> None:
            expect(hits[0].refs == chain.refs, "look-up", slot)

        def release(slot: int) -> None:
            hits[0].release()

        note = f"{chunks} chunks of one prompt, all in DRAM; keys hashed before"
        cases = [
            Case(f"lookup-{chunks}", look(0.0), mode=MODE, note=note, check=check),
            Case(f"lookup-{chunks}-leased", look(10.0), mode=MODE, note=note, check=check, after=release),
        ]
        return measure(cases, rounds=rounds, slots=1)


class _Group:
    """The cases of one size over one store."""

    def __init__(self, client: Client, corpus: Corpus) -> None:
        self._client, self._corpus, self._spec = client, corpus, corpus.spec
        self._wants = [client.want(self._spec, ref, corpus.target(i)) for i, ref in enumerate(corpus.refs)]
        self._hits = [client.lookup(self._spec, [ref], lease_s=LEASE_S) for ref in corpus.refs]
        # What was put is deleted again when so many bytes have been put after it.
        self._put: deque[ChunkRef] = deque()
        self._ring = corpus.targets_count
        self._seeds = count(1 << 32)
        self._reservation: Reservation | None = None
        self._arena = f"{corpus.count * corpus.nbytes >> 20} MiB of chunks in DRAM, in rotation"

    def view(self) -> Case:
        """`view`: in a loop of its own, since copies between would empty the caches of what it needs."""
        note = f"{self._arena}; opened and closed, in a loop of its own"
        size = {"bytes": self._corpus.nbytes}
        return Case("view", self._view, mode=MODE, note=note, check=self._viewed, facts=size)

    def copies(self) -> list[Case]:
        """All cases that move bytes, the baseline first."""
        nbytes = self._corpus.nbytes
        name, copy = best_copy(self._corpus)
        arena = self._arena
        cases = [
            Case("memcpy", self._memcpy(copy), nbytes, note=f"baseline: {name}, one thread, rotating buffers"),
            Case("get", self._get, nbytes, "memcpy", note=arena + ", leased before"),
            Case("get-one", self._get_one, nbytes, "memcpy", note=arena),
            Case("get-verified", self._get_verified, nbytes, "memcpy", note=arena),
        ]
        for case in cases:
            case.check = self._arrived(case.name)
        if nbytes == MiB:
            cases.append(
                Case("get-batch", self._get_batch, BATCH * nbytes, "memcpy", note=f"{arena}; {BATCH} in one call",
                     check=self._batch_arrived)
            )  # fmt: skip
        cases += [
            Case("put", self._commit, nbytes, "memcpy", note="filled arena memory to the acknowledgement (stored)",
                 before=self._reserve, after=self._forget_old, check=self._stored),
            Case("put-copy", self._put_copy, nbytes, "memcpy", note="the caller's rotating arrays into DRAM",
                 before=self._next, after=self._forget_old, check=self._stored),
        ]  # fmt: skip
        for case in cases:
            case.mode = MODE
        return cases

    def _memcpy(self, copy: Copy) -> Step:
        corpus = self._corpus

        def run(slot: int) -> None:
            copy(corpus.target(slot), corpus.sources[slot])

        return run

    def _get(self, slot: int) -> None:
        _all_well(self._client.get_many(self._spec, (self._wants[slot],)))

    def _get_one(self, slot: int) -> None:
        self._client.get(self._spec, self._corpus.refs[slot], out=self._corpus.target(slot))

    def _get_verified(self, slot: int) -> None:
        self._client.get(self._spec, self._corpus.refs[slot], out=self._corpus.target(slot), verify=True)

    def _get_batch(self, slot: int) -> None:
        _all_well(self._client.get_many(self._spec, [self._wants[each] for each in self._batch(slot)]))

    def _batch(self, slot: int) -> list[int]:
        return [(slot + i) % self._corpus.count for i in range(BATCH)]

    def _arrived(self, case: str) -> Step:
        def check(slot: int) -> None:
            expect(self._corpus.arrived(slot), case, slot)

        return check

    def _batch_arrived(self, slot: int) -> None:
        for each in self._batch(slot):
            expect(self._corpus.arrived(each), "get-batch", each)

    def _view(self, slot: int) -> None:
        self._client.view(self._spec, self._corpus.refs[slot]).close()

    def _viewed(self, slot: int) -> None:
        with self._client.view(self._spec, self._corpus.refs[slot]) as view:
            same = np.array_equal(np.frombuffer(view.data, np.uint8), self._corpus.sources[slot])
        expect(same, "view", slot)

    def _next(self, slot: int) -> None:
        self._put.append(ref_of(next(self._seeds)))

    def _reserve(self, slot: int) -> None:
        self._next(slot)
        self._reservation = self._client.reserve(self._spec, self._put[-1])
        np.frombuffer(self._reservation.data, np.uint8)[:] = self._corpus.sources[slot]

    def _commit(self, slot: int) -> None:
        if self._reservation is not None:
            self._reservation.commit()

    def _put_copy(self, slot: int) -> None:
        self._client.put(self._spec, self._put[-1], self._corpus.sources[slot])

    def _stored(self, slot: int) -> None:
        array = self._client.get(self._spec, self._put[-1]).reshape(-1).view(np.uint8)
        expect(np.array_equal(array, self._corpus.sources[slot]), "put", slot)

    def _forget_old(self, slot: int) -> None:
        self._reservation = None
        while len(self._put) > self._ring:
            self._client.delete(self._spec, [self._put.popleft().key])


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


def _open(corpus: Corpus) -> Client:
    """A store in DRAM that holds the corpus and leaves room for what the put cases write."""
    record = corpus.nbytes + 8192
    capacity = (corpus.count + corpus.targets_count + 8) * record
    config = Config(dram=DramConfig(capacity=capacity, extent=capacity), lease_limit_s=LEASE_S, put_wait_s=PUT_WAIT_S)
    client = kvstore.open(config)
    for ref, source in zip(corpus.refs, corpus.sources, strict=True):
        if not client.put(corpus.spec, ref, source):
            raise InvalidArgument("the benchmark's chunks were in a new store already")
    return client


def _all_well(outcomes: Sequence[Exception | None]) -> None:
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
