"""Crews: members start together, and what goes wrong in one is raised where its answer is taken."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.bench import crew, crowd, worker
from kvstore.bench.copies import store_corpus
from kvstore.bench.corpus import Corpus
from kvstore.bench.processes import server
from kvstore.errors import Corrupt, DeadlineExceeded, InvalidArgument, NotFound, Unavailable

from .conftest import lying

MiB = 1 << 20


class Worker:
    """A role that notes when it worked, and fails on request."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.done: list[str] = []
        self.closed = False

    def run(self, do: str, until: float) -> crew.Answer:
        self.began.append(time.monotonic())
        self.done.append(do)
        if do == "fail":
            raise NotFound("nothing there")
        while time.monotonic() < until < float("inf"):
            time.sleep(0.001)
        return {"did": do}

    def check(self) -> None:
        if self.done[-1] == "wrong":
            raise Corrupt("wrong bytes")

    def close(self) -> None:
        self.closed = True


def test_members_begin_together_and_do_their_own() -> None:
    workers = [Worker() for _ in range(3)]
    with crew.threads(workers) as made:
        answers = made.phase(["a", "", "c"], 0.02)
    assert [answer["did"] for answer in answers] == ["a", "c"]
    assert all(answer["elapsed_s"] > 0 and answer["cpu_s"] >= 0 for answer in answers)
    assert workers[1].done == []
    assert all(worker.closed for worker in workers)


def test_a_member_never_begins_before_the_moment_named() -> None:
    worker, start = Worker(), time.monotonic() + 0.05
    crew.perform(worker, {"do": "a", "start": start, "until": None}, time.thread_time)
    assert worker.began[0] >= start


def test_failures_and_wrong_bytes_are_raised() -> None:
    with crew.threads([Worker(), Worker()]) as made:
        with pytest.raises(NotFound, match="nothing there"):
            made.phase(["a", "fail"], 0.01)
        with pytest.raises(Corrupt, match="wrong bytes"):
            made.phase(["wrong", "a"], 0.01)


def test_a_thread_that_does_not_finish_is_told() -> None:
    gate = threading.Event()

    class Stuck(Worker):
        def run(self, do: str, until: float) -> crew.Answer:
            gate.wait(30)
            return {}

    member = crew.ThreadMember(Stuck())
    member.order({"do": "a", "start": 0.0, "until": None})
    with pytest.raises(DeadlineExceeded):
        member.answer(0.05)
    gate.set()
    assert member.answer(5)["cpu_s"] >= 0


@pytest.fixture(scope="module")
def stored() -> Any:
    """A server that holds a small corpus, and the configuration of a crowd's member."""
    corpus = Corpus(256 << 10, 4, 1)
    with server(32 * MiB) as running, crowd.shared(corpus) as descriptor:
        with running.connect("grpc") as client:
            store_corpus(client, corpus)
        config = {"url": running.url("grpc"), "spec": corpus.spec.to_dict(), "count": 4, "source": descriptor}
        yield {**config, "targets": 2, "seed": 0}, descriptor


def test_a_process_that_is_killed_is_told_and_the_crew_ends(stored: Any) -> None:
    config, descriptor = stored
    with crew.processes("worker", [config, {**config, "seed": 1}], share=[descriptor]) as made:
        made.phase(["get", "copy"], 0.01)
        victims: list[Any] = list(made.members)
        os.kill(victims[0].pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="a process of the benchmark ended with status -9"):
            made.phase(["get", "copy"], 0.01)
    for victim in victims:
        with pytest.raises(ProcessLookupError):
            os.kill(victim.pid, 0)


def test_an_error_in_a_process_keeps_its_class(stored: Any) -> None:
    config, descriptor = stored
    with (
        pytest.raises(InvalidArgument, match="is no server"),
        crew.processes("worker", [{**config, "url": "nowhere"}], share=[descriptor]),
    ):
        pass


def test_a_reader_of_a_crowd_notices_a_flipped_byte(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = stored
    honest = kvstore.connect
    monkeypatch.setattr(kvstore, "connect", lambda url, **options: lying(honest(url, **options)))
    member = worker.role(config)
    try:
        for kind in ("get", "one"):
            assert member.run(kind, time.monotonic() + 0.02)["bytes"] > 0
            with pytest.raises(Corrupt, match="a reader gave other bytes"):
                member.check()
        member.run("copy", time.monotonic() + 0.01)
        member.check()
    finally:
        member.close()


def test_the_crowds_memory_holds_the_corpus() -> None:
    corpus = Corpus(256 << 10, 2, 1)
    with crowd.shared(corpus) as descriptor:
        assert np.array_equal(
            np.frombuffer(os.pread(descriptor, corpus.nbytes, corpus.nbytes), np.uint8), corpus.sources[1]
        )
