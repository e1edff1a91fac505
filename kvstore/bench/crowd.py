"""Many processes on one server at once, against as many plain copies at once in the same processes.

`readers-N`: N processes read chunks that they have leased; the baseline is the same N processes copying out of
memory that they share, as they share the store's. `loads-under-stores`: one process reads while others flood the
store with puts; the baseline is one that copies while as many others copy. Phases of either kind alternate. A row's
`gbps` is the sum over all processes, its `ratio` the median over the pairs of neighbouring phases.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Any

import numpy as np

import kvstore
from kvstore.bench.copies import LEASE_S, all_well, store_corpus
from kvstore.bench.corpus import Bytes, Corpus, chunk_bytes, put_chunk, ref_of, wants_of
from kvstore.bench.cpu import CpuClock
from kvstore.bench.crew import Answer, Crew, processes
from kvstore.bench.measure import Bar, Row, cpu_facts, expect, percentile
from kvstore.bench.processes import TIMEOUT_S, Server, server
from kvstore.errors import Shed
from kvstore.spec import KVSpec

MiB = 1 << 20
READERS_BAR = Bar(ratio=0.9, p99_times=1.3)
LOADS_BAR = Bar(p99_times=2.0)
CHECKED = 4  # of the chunks that a member read last


@dataclass(frozen=True)
class Plan:
    """How much is done at once. `readers` lists how many processes read together, a row for each."""

    readers: Sequence[int] = (8,)
    writers: int = 4
    seconds: float = 1.0
    pairs: int = 5
    working_set: int = 256 * MiB
    targets: int = 64 * MiB
    room: int = 512 * MiB  # DRAM for what is put


def run(spec: KVSpec, plan: Plan, *, mode: str) -> list[Row]:
    """The rows of one chunk size over a server of its own."""
    nbytes = chunk_bytes(spec)
    corpus = Corpus(nbytes, max(4, plan.working_set // nbytes), 1, spec)
    dram = (corpus.count + 8) * (nbytes + 32768) + max(plan.room, 4 * plan.writers * nbytes)
    members = max(*plan.readers, 1 + plan.writers)
    with server(-(-dram // (2 * MiB)) * 2 * MiB) as running, shared(corpus) as descriptor:
        url = running.url(mode)
        with kvstore.connect(url, timeout=TIMEOUT_S, **running.options) as client:
            store_corpus(client, corpus)
        config = {
            "url": url, "spec": spec.to_dict(), "count": corpus.count, "source": descriptor,
            "targets": max(2, plan.targets // nbytes),
        }  # fmt: skip
        with processes("crowd", [{**config, "seed": i} for i in range(members)], share=[descriptor]) as crew:
            rows = [row for readers in plan.readers for row in _readers(crew, readers, plan, corpus, mode, running)]
            return rows + _loads(crew, plan, corpus, mode, running)


def _readers(crew: Crew, readers: int, plan: Plan, corpus: Corpus, mode: str, running: Server) -> list[Row]:
    """`memcpy-N` and `readers-N`."""
    results = _alternate(crew, plan, {"copy": ["copy"] * readers, "get": ["get"] * readers}, running)
    held = f"{corpus.count * corpus.nbytes >> 20} MiB"
    base = results["copy"].row(
        f"memcpy-{readers}", "", corpus, f"baseline: {readers} processes, {held} that they share"
    )
    row = results["get"].row(f"readers-{readers}", mode, corpus, f"{readers} processes, {held} in DRAM, leased before")
    row.update(results["get"].against(results["copy"], base["case"]))
    READERS_BAR.judge(row)
    return [base, row]


def _loads(crew: Crew, plan: Plan, corpus: Corpus, mode: str, running: Server) -> list[Row]:
    """`loads-under-stores` of leased chunks and, as `…-one`, of chunks by key."""
    others = plan.writers
    kinds = {"copy": ["copy"] * (1 + others), "get": ["get"] + ["put"] * others, "one": ["one"] + ["put"] * others}
    results = _alternate(crew, plan, kinds, running, counted=1)
    beside = f"beside {others} processes that put as fast as they can"
    name = f"memcpy-beside-{others}"
    base = results["copy"].row(name, "", corpus, f"baseline: one process beside {others} that copy too")
    rows = [base]
    for kind, case, how in (("get", "", "leased before"), ("one", "-one", "by key, not leased")):
        row = results[kind].row(f"loads-under-stores{case}", mode, corpus, f"one process, chunks {how}, {beside}")
        row.update(results[kind].against(results["copy"], name))
        row.update({"stores_gbps": results[kind].others_gbps, "sheds": results[kind].sheds})
        LOADS_BAR.judge(row)
        rows.append(row)
    return rows


class _Result:
    """The phases of one kind; only the first `counted` members are timed."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.rates: list[float] = []
        self.cpu_s = self.server_cpu_s = 0.0
        self.moved = 0
        self.sheds: dict[str, int] = {}
        self._others: list[float] = []

    @property
    def others_gbps(self) -> float:
        """What the members that are not timed moved in all."""
        return median(self._others) / 1e9

    def add(self, answers: Sequence[Answer], counted: int, server_cpu_s: float) -> None:
        """Take in one phase."""
        timed, others = answers[:counted], answers[counted:]
        self.times += [each for answer in timed for each in answer["times"]]
        self.rates.append(sum(answer["bytes"] / answer["elapsed_s"] for answer in timed))
        self._others.append(sum(answer["bytes"] / answer["elapsed_s"] for answer in others))
        self.cpu_s += sum(answer["cpu_s"] for answer in answers)
        self.server_cpu_s += server_cpu_s
        self.moved += sum(answer["bytes"] for answer in answers)
        for answer in others:
            for reason, number in answer["sheds"].items():
                self.sheds[reason] = self.sheds.get(reason, 0) + number

    def row(self, case: str, mode: str, corpus: Corpus, note: str) -> Row:
        """What is known without a baseline."""
        return {
            "case": case, "mode": mode, "bytes": corpus.nbytes, "p50_s": median(self.times),
            "p99_s": percentile(self.times, 0.99), "gbps": median(self.rates) / 1e9, "baseline": None, "ratio": None,
            "p99_ratio": None, **cpu_facts(self.cpu_s, self.server_cpu_s if mode else None, 1, self.moved),
            "rounds": len(self.times), "note": note, "bar": None, "met": None,
        }  # fmt: skip

    def against(self, base: _Result, name: str) -> Row:
        """The ratios to another kind: of sums over all processes, phase by phase, and of p99 over all phases."""
        ratio = median(mine / theirs for mine, theirs in zip(self.rates, base.rates, strict=True))
        p99 = percentile(base.times, 0.99) / percentile(self.times, 0.99)
        return {"baseline": name, "ratio": ratio, "p99_ratio": p99}


def _alternate(
    crew: Crew, plan: Plan, kinds: Mapping[str, Sequence[str]], running: Server, counted: int = 1 << 16
) -> dict[str, _Result]:
    """Phases of every kind in turn, each round beginning with another one; one short round before does not count."""
    results = {kind: _Result() for kind in kinds}
    clock, names = CpuClock(running.pid), list(kinds)
    for kind in names:
        crew.phase(kinds[kind], plan.seconds / 4)
    for number in range(plan.pairs):
        for offset in range(len(names)):
            kind = names[(number + offset) % len(names)]
            used = clock.seconds()
            answers = crew.phase(kinds[kind], plan.seconds)
            results[kind].add(answers, counted, clock.seconds() - used)
    return results


@contextmanager
def shared(corpus: Corpus) -> Iterator[int]:
    """The corpus's content in memory that processes can share: its descriptor."""
    descriptor = os.memfd_create("kvstore-bench")
    try:
        for source in corpus.sources:
            left = source.data
            while left:
                left = left[os.write(descriptor, left) :]
        yield descriptor
    finally:
        os.close(descriptor)


def role(config: Mapping[str, Any]) -> _Member:
    """What `kvstore.bench.crew` runs in a process of its own."""
    return _Member(config)


class _Member:
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
        self._slots = count(self._seed * self._count // 8)  # members begin at different places
        self._seeds = count((self._seed + 1) << 32)
        self._sheds: dict[str, int] = {}
        self._last: list[tuple[int, int]] = []

    def run(self, do: str, until: float) -> Answer:
        """`copy`, `get` (leased), `one` (by key) or `put`, one chunk after the other."""
        step = {"copy": self._copy, "get": self._get, "one": self._one, "put": self._put}[do]
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
