"""Look-ups of a tier: asked once per scheduler step for all rows of a request, answered by a thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from kvstore.client import Client
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._warn import Warn
from kvstore.errors import KVStoreError
from kvstore.hit import Hit
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec


@dataclass(slots=True)
class Question:
    """Rows asked for in one step. `hits` hold the leases of those that are there."""

    groups: list[list[ChunkRef]]
    at: float
    answer: Future[list[Hit]] | None = None


@dataclass(slots=True)
class Request:
    """What a request has asked so far: by a row's key True (there, and leased), False or None (not known yet).

    `spent` are rows whose load was tried: once for each time a request is admitted, so that a row that does not load
    does not keep it waiting for ever. `full` says that vLLM had no room for a row that was `offered`: what else it
    loaded for this request would push out what it has loaded before.
    """

    known: dict[bytes, bool | None] = field(default_factory=dict)
    batch: dict[int, list[ChunkRef]] = field(default_factory=dict)
    open: list[Question] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    offered: set[bytes] = field(default_factory=set)
    spent: set[bytes] = field(default_factory=set)
    full: bool = False
    loads: int = 0
    over: bool = False


class TierLookups:
    """Asks for rows and holds the leases of those found until they are loaded. Used by the scheduler's thread alone."""

    def __init__(self, client: Client, spec: KVSpec, options: Options, counts: Counts) -> None:
        self._client, self._spec, self._options, self._counts = client, spec, options, counts
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kvstore-tier-lookup")
        self._requests: dict[str, Request] = {}
        self._active: set[str] = set()
        self._down_until = 0.0
        self._warn = Warn("tier look-ups", options.retry_s)
        self._pool.submit(self._greet)

    @property
    def down(self) -> bool:
        """Whether the store is being left alone after a failure."""
        return time.monotonic() < self._down_until

    def lost(self, reason: str) -> None:
        """Leave the store alone for a while."""
        self._down_until = time.monotonic() + self._options.retry_s
        self._warn(f"the store is not asked for {self._options.retry_s} s, prompts are computed: {reason}")

    def find(self, name: str, group: int, ref: ChunkRef) -> bool | None:
        """Whether a row is there for a request; None: ask again in a later step."""
        request = self._requests.setdefault(name, Request())
        if ref.key in request.spent or request.full:
            return False
        if request.open:
            self._take(request)
        there = request.known.get(ref.key)
        if there:
            request.offered.add(ref.key)
            self._active.add(name)
        if ref.key in request.known:
            return there
        if self.down:
            return False
        request.known[ref.key] = None
        request.batch.setdefault(group, []).append(ref)
        self._active.add(name)
        return None

    def end_step(self) -> None:
        """Send what this step has asked for, once vLLM has begun the loads of what it was offered."""
        for name in self._active:
            request = self._requests.get(name)
            if request is None:
                continue
            request.full |= not request.offered <= request.spent
            request.offered.clear()
            if request.batch:
                groups, request.batch = list(request.batch.values()), {}
                question = Question(groups, time.monotonic())
                question.answer = self._pool.submit(self._look, groups)
                request.open.append(question)
                self._counts.add(rows_asked=sum(map(len, groups)))
        self._active.clear()

    def loading(self, name: str, keys: Iterable[bytes]) -> None:
        """A load of these rows begins: their leases are kept until `loaded`. A request not known (any more) is over."""
        request = self._requests.setdefault(name, Request(over=True))
        request.spent.update(keys)
        request.loads += 1

    def loaded(self, name: str) -> None:
        """A load of a request has ended, well or not."""
        request = self._requests[name]
        request.loads -= 1
        if not request.loads:
            self._release(request)
            # What was found and not loaded is not held any more: it is asked for anew.
            request.known = {key: there for key, there in request.known.items() if not there}
            if request.over:
                del self._requests[name]

    def admitted_again(self, name: str) -> None:
        """A request was preempted: what was learnt for it is old, and its rows may be loaded once more."""
        request = self._requests.get(name)
        if request is not None and not request.loads:
            self._forget(request)
            self._requests[name] = Request()

    def finished(self, name: str) -> None:
        """Nothing more is asked for this request."""
        request = self._requests.get(name)
        if request is None:
            return
        request.over = True
        if not request.loads:
            self._forget(request)
            del self._requests[name]

    def close(self) -> None:
        """Give every lease back and stop; a call that runs has its time limit."""
        for request in self._requests.values():
            self._forget(request)
        self._requests.clear()
        self._pool.shutdown(wait=True, cancel_futures=self.down)

    def _take(self, request: Request) -> None:
        """Learn from the questions that are answered, or have been open for too long."""
        still = []
        for question in request.open:
            assert question.answer is not None
            if question.answer.done():
                hits = question.answer.result()
            elif time.monotonic() - question.at < self._options.lookup_timeout_s:
                still.append(question)
                continue
            else:
                question.answer.add_done_callback(_give_back)
                self.lost(f"no answer within {self._options.lookup_timeout_s} s")
                hits = []
            request.hits += hits
            found = {ref.key for hit in hits for ref in hit.refs}
            request.known.update({ref.key: ref.key in found for refs in question.groups for ref in refs})
        request.open = still

    def _forget(self, request: Request) -> None:
        for question in request.open:
            assert question.answer is not None
            question.answer.add_done_callback(_give_back)
        self._release(request)

    def _release(self, request: Request) -> None:
        hits, request.hits = request.hits, []
        if hits:
            self._pool.submit(_release_all, hits)

    def _greet(self) -> None:
        """Find the way to the server before the first request waits for it."""
        try:
            self._client.describe()
        except KVStoreError as error:
            self.lost(str(error))

    def _look(self, groups: Sequence[Sequence[ChunkRef]]) -> list[Hit]:
        """Leases for all rows that are there: one for each run of them, since a lease covers what is consecutive."""
        hits: list[Hit] = []
        try:
            for refs in groups:
                ordered = sorted(refs, key=lambda ref: ref.position)
                present = self._client.contains(self._spec, ordered)
                for run in _runs(ref for ref, there in zip(ordered, present, strict=True) if there):
                    hits.append(self._client.lookup(self._spec, run, lease_s=self._options.lease_s))
        except Exception as error:  # noqa: BLE001 - the scheduler takes the answer, and would end with it
            self.lost(f"{type(error).__name__}: {error}")
        return hits


def _runs(refs: Iterable[ChunkRef]) -> list[list[ChunkRef]]:
    """Cut into runs in which each row begins where the one before it ends."""
    runs: list[list[ChunkRef]] = []
    for ref in refs:
        if runs and runs[-1][-1].end == ref.position:
            runs[-1].append(ref)
        else:
            runs.append([ref])
    return runs


def _give_back(answer: Future[list[Hit]]) -> None:
    """Nobody waits for this answer any more (this runs in the look-up's thread, or at once)."""
    if not answer.cancelled() and answer.exception() is None:
        _release_all(answer.result())


def _release_all(hits: Sequence[Hit]) -> None:
    for hit in hits:
        try:
            hit.release()
        except KVStoreError:
            continue  # it ends by itself
