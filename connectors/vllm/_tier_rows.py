"""Copies between rows of vLLM's offload memory and the store, in threads: loads first, stores when none runs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvstore.client import Client
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._loads import GONE, PATIENCE
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._plan import HintJob
from kvstore.connectors.vllm._warn import Warn
from kvstore.errors import KVStoreError, Shed
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec

RowArray = npt.NDArray[np.uint8]


@dataclass(slots=True)
class RowJob:
    """Rows of one job of vLLM's: their chunks, and their numbers in the memory."""

    number: int
    request: str
    refs: list[ChunkRef]
    rows: list[int]


@dataclass(slots=True)
class RowOutcome:
    """How a job ended. `done` says of each row whether its copy is in place; `reason` why one is not."""

    job: RowJob
    done: list[bool]
    seconds: float = 0.0
    reason: str = ""
    gone: bool = False


@dataclass(slots=True)
class _Running:
    outcome: RowOutcome
    left: int
    began: float = field(default_factory=time.monotonic)


class TierRows:
    """Runs jobs and keeps their outcomes until they are taken; no thread touches a job's rows after that.

    What waits to be stored is pinned in vLLM's memory, and bounded by `staging_mib`: what does not fit is dropped.
    """

    def __init__(self, client: Client, spec: KVSpec, rows: RowArray, options: Options, counts: Counts) -> None:
        """`rows` is `[row, byte]`, as many bytes as the spec's part has."""
        self._client, self._spec, self._rows, self._counts = client, spec, rows, counts
        self._limit, self._retry_s = options.staging_bytes, options.retry_s
        self._readers = options.readers
        self._load_pool = ThreadPoolExecutor(options.readers, thread_name_prefix="kvstore-tier-load")
        self._store_pool = ThreadPoolExecutor(options.writers, thread_name_prefix="kvstore-tier-store")
        self._changed = threading.Condition()
        self._loading = self._storing = self._pending = 0
        self._down_until = 0.0
        self._done: list[RowOutcome] = []
        self._stores: list[Future[None]] = []
        self._warn = Warn("tier stores", options.retry_s)
        self._closing = threading.Event()
        self._load_pool.submit(self._prepare)

    def load(self, job: RowJob) -> None:
        """Begin a load, in as many pieces as there are threads."""
        count = len(job.refs)
        step = -(-count // self._readers)
        starts = range(0, count, step)
        running = _Running(RowOutcome(job, [False] * count), len(starts))
        with self._changed:
            self._loading += 1
        for start in starts:
            self._load_pool.submit(self._load, running, start, min(start + step, count))

    def store(self, job: RowJob, *, wanted: bool) -> None:
        """Begin a store, of as many leading rows as there is room for; of none unless `wanted`."""
        nbytes = self._rows.shape[1]
        with self._changed:
            open_ = wanted and time.monotonic() >= self._down_until
            room = (self._limit - self._pending) // nbytes if open_ else 0
            taken = min(len(job.refs), max(room, 0))
            self._pending += taken * nbytes
            self._storing += 1
        if taken < len(job.refs):
            self._counts.add(saves_dropped=len(job.refs) - taken)
        storing = self._store_pool.submit(self._store, RowOutcome(job, [False] * len(job.refs)), taken)
        with self._changed:
            self._stores = [*(each for each in self._stores if not each.done()), storing]

    def tell(self, hint: HintJob) -> None:
        """Tell the store what will become of a prompt, once what was to be stored until now has been."""
        with self._changed:
            before, self._stores = self._stores, []
        self._store_pool.submit(self._tell, hint, before)

    def take(self) -> list[RowOutcome]:
        """Outcomes since the last call."""
        with self._changed:
            done, self._done = self._done, []
            return done

    def drain(self) -> None:
        """Wait until no job runs; each call to the store has its time limit."""
        with self._changed:
            self._changed.wait_for(lambda: not self._loading and not self._storing)

    def close(self) -> None:
        """Wait for what runs, and let go of the memory."""
        self._closing.set()
        self._load_pool.shutdown(wait=True)
        self._store_pool.shutdown(wait=True)
        self._rows = np.empty((0, 0), np.uint8)

    def _load(self, running: _Running, start: int, end: int) -> None:
        outcome, spec = running.outcome, self._spec
        job = outcome.job
        try:
            wants = [self._client.want(spec, job.refs[n], self._rows[job.rows[n]]) for n in range(start, end)]
            for number, failure in self._client.get_each(spec, wants):
                outcome.done[start + number] = failure is None
                if failure is not None:
                    self._failed(outcome, failure)
        except Exception as error:  # noqa: BLE001 - a load that ends without an outcome would hang its request
            self._failed(outcome, error)
        with self._changed:
            running.left -= 1
            if running.left:
                return
            outcome.seconds = time.monotonic() - running.began
            self._loading -= 1
            self._done.append(outcome)
            self._changed.notify_all()

    def _failed(self, outcome: RowOutcome, failure: Exception) -> None:
        outcome.gone |= isinstance(failure, GONE)
        outcome.reason = outcome.reason or f"{type(failure).__name__}: {failure}"

    def _store(self, outcome: RowOutcome, taken: int) -> None:
        began, job = time.monotonic(), outcome.job
        try:
            self._store_missing(outcome, taken)
        except Exception as error:  # noqa: BLE001 - what is not stored is a later miss and nothing else
            self._counts.add(saves_failed=1)
            self._failed(outcome, error)
            if isinstance(error, GONE) or not isinstance(error, KVStoreError):
                self._down_until = time.monotonic() + self._retry_s
            self._warn(f"{len(job.refs) - sum(outcome.done)} rows are not stored: {outcome.reason}")
        with self._changed:
            outcome.seconds = time.monotonic() - began
            self._pending -= taken * self._rows.shape[1]
            self._storing -= 1
            self._done.append(outcome)
            self._changed.notify_all()

    def _store_missing(self, outcome: RowOutcome, taken: int) -> None:
        job = outcome.job
        present = self._client.contains(self._spec, job.refs[:taken]) if taken else []
        for number, there in enumerate(present):
            if there:
                self._counts.add(saves_present=1)
            else:
                with self._changed:
                    self._changed.wait_for(lambda: not self._loading)
                try:
                    self._client.put(self._spec, job.refs[number], self._rows[job.rows[number]])
                except Shed:
                    self._counts.add(saves_shed=1)
                    continue
                self._counts.add(saved=1)
            outcome.done[number] = True

    def _tell(self, hint: HintJob, before: list[Future[None]]) -> None:
        wait(before)  # the other writers have them in hand
        try:
            if time.monotonic() < self._down_until:
                self._counts.add(hints_failed=1)
                return
            if hint.awaited_s:
                self._client.awaited(self._spec, hint.refs, hint.awaited_s)
            else:
                self._client.ended(self._spec, hint.refs)
            self._counts.add(hints=1)
        except Exception as error:  # noqa: BLE001 - advice that does not arrive
            self._counts.add(hints_failed=1)
            self._warn(f"a hint does not reach the store: {type(error).__name__}: {error}")

    def _prepare(self) -> None:
        """Find the way to the server, which may start a little later, before the first load waits for it."""
        for _ in range(PATIENCE):
            try:
                self._client.describe()
            except KVStoreError:
                if self._closing.wait(1.0):
                    return
            else:
                return
