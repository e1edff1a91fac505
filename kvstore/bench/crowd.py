"""Many processes on one server at once, against as many plain copies at once in the same processes.

`readers-N`: N processes read chunks that they have leased; the baseline is the same N processes copying out of
memory that they share, as they share the store's. `loads-under-stores`: one process reads while others flood the
store with puts; the baseline is one that copies while as many others copy. Phases of either kind alternate. A row's
`gbps` is the sum over all processes, its `ratio` the median over the pairs of neighbouring phases.

Over a network channel (`run_remote`) N processes read by key, against N raw streams.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from kvstore.bench.copies import store_corpus
from kvstore.bench.corpus import Corpus, chunk_bytes
from kvstore.bench.cpu import CpuClock
from kvstore.bench.crew import Answer, Crew, processes
from kvstore.bench.measure import Bar, Row, cpu_facts, percentile
from kvstore.bench.processes import Server, server
from kvstore.bench.tcp_peer import raw_peer
from kvstore.spec import KVSpec

MiB = 1 << 20
READERS_BAR = Bar(ratio=0.9, p99_times=1.3)
LOADS_BAR = Bar(p99_times=2.0)


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
        config = _stored(running, corpus, plan, mode, descriptor)
        with processes("worker", [{**config, "seed": i} for i in range(members)], share=[descriptor]) as crew:
            rows = [row for readers in plan.readers for row in _readers(crew, readers, plan, corpus, mode, running)]
            return rows + _loads(crew, plan, corpus, mode, running)


def run_remote(spec: KVSpec, plan: Plan, *, mode: str) -> list[Row]:
    """`tcp-raw-N` and `get-N` of one chunk size, for each of the plan's numbers of readers."""
    nbytes = chunk_bytes(spec)
    corpus = Corpus(nbytes, max(4, plan.working_set // nbytes), 1, spec)
    dram = (corpus.count + 8) * (nbytes + 32768)
    rows: list[Row] = []
    with (
        server(-(-dram // (2 * MiB)) * 2 * MiB) as running,
        shared(corpus) as descriptor,
        raw_peer(corpus) as (port, _),
    ):
        config = _stored(running, corpus, plan, mode, descriptor) | {"raw": port}
        with processes("worker", [{**config, "seed": i} for i in range(max(plan.readers))], share=[descriptor]) as crew:
            for readers in plan.readers:
                kinds = {"raw": ["raw"] * readers, "one": ["one"] * readers}
                results = _alternate(crew, plan, kinds, running)
                base = results["raw"].row(f"tcp-raw-{readers}", "", corpus, f"baseline: {readers} streams at once")
                row = results["one"].row(f"get-{readers}", mode, corpus, f"{readers} processes, by key, verified")
                row.update(results["one"].against(results["raw"], base["case"]))
                rows += [base, row]
    return rows


def _stored(running: Server, corpus: Corpus, plan: Plan, mode: str, descriptor: int) -> dict[str, Any]:
    """Put the corpus into a server; what members are told."""
    with running.connect(mode) as client:
        store_corpus(client, corpus)
    return {
        "url": running.url(mode), "spec": corpus.spec.to_dict(), "count": corpus.count, "source": descriptor,
        "targets": max(2, plan.targets // corpus.nbytes),
    }  # fmt: skip


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
