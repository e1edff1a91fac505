"""Loads: from the store into vLLM's blocks, in threads of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstore.api import ChunkInfo, Fidelity
from kvstore.client import Client
from kvstore.connectors.vllm._blocks import Blocks, Bytes
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._in_place import InPlace, InPlaceParts
from kvstore.connectors.vllm._plan import NULL_BLOCK, LoadJob
from kvstore.errors import DeadlineExceeded, InvalidArgument, KVStoreError, NotFound, Shed, Unavailable
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part

# The store as a whole is not to be reached: what else was asked of it is not waited for.
GONE = (Unavailable, DeadlineExceeded)
PATIENCE = 20  # seconds in which a store may start
EXTENTS = 16  # of the store's memory that are mapped before they are needed


@dataclass(slots=True)
class Outcome:
    """How a load went: `failed_at` is the first token that did not come (None: all came)."""

    job: LoadJob
    nbytes: int
    seconds: float
    failed_at: int | None
    reason: str


@dataclass(slots=True)
class _Running:
    job: LoadJob
    left: int
    after: Any
    began: float = field(default_factory=time.monotonic)
    nbytes: int = 0
    failed_at: int | None = None
    gone: bool = False
    reason: str = ""
    in_place: InPlaceParts = field(default_factory=InPlaceParts)


class Loads:
    """Loads jobs and keeps their outcomes until they are taken.

    Nothing is reported before every thread is done with the job's blocks, since vLLM may give them to others then.
    """

    def __init__(
        self, client: Client, spec: KVSpec, rank: int, blocks: Blocks, readers: int, counts: Counts | None = None
    ) -> None:
        self._counts = Counts() if counts is None else counts
        self._in_place = None
        if blocks.device is not None:
            self._in_place = InPlace(client, spec, rank, blocks.device, self._counts)
        self._client, self._spec, self._rank, self._blocks = client, spec, rank, blocks
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="kvstore-load")
        self._changed = threading.Condition()
        self._running = 0
        self._done: list[Outcome] = []
        self._closing = threading.Event()
        self._pool.submit(self._prepare)

    def start(self, job: LoadJob) -> None:
        """Begin a load."""
        pieces = [(ref, group) for ref in job.refs for group in range(len(self._spec.groups))]
        running = _Running(job, len(pieces), self._blocks.fence())
        with self._changed:
            self._running += 1
            if not pieces:
                running.failed_at, running.reason = job.start, "nothing to load"
                self._end(running)
        if pieces and self._in_place is not None:
            self._pool.submit(self._begin, self._in_place, running, pieces)
        else:
            self._submit(running, pieces)

    def wait(self, at_most_s: float) -> None:
        """While loads run and none has ended, wait for one."""
        with self._changed:
            if self._running and not self._done:
                self._changed.wait(at_most_s)

    def take(self) -> list[Outcome]:
        """Outcomes since the last call."""
        with self._changed:
            done, self._done = self._done, []
            return done

    def close(self) -> None:
        """Wait for what runs; each call to the store has its time limit."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self) -> None:
        """Map the memory in which the store keeps chunks of this spec, which takes tens of milliseconds per GiB."""
        part = self._part(0)
        for _ in range(PATIENCE):
            try:
                page = self._client.page(limit=1000)
                ours = [each for each in page.chunks if each.spec == self._spec.digest and _in_dram(each)]
                for each in ours[:: max(1, len(ours) // EXTENTS)]:
                    self._client.view(
                        self._spec, ChunkRef(each.key, each.parent, each.position, each.tokens), part=part
                    ).close()
            except GONE:
                if self._closing.wait(1.0):
                    return
            except (KVStoreError, ValueError):
                return  # it was worth a try
            else:
                return

    def _begin(self, in_place: InPlace, running: _Running, pieces: Sequence[tuple[ChunkRef, int]]) -> None:
        """See what of a load lies on the device, and begin with its pieces."""
        try:
            running.in_place = in_place.open(running.job)
        finally:
            self._submit(running, pieces)

    def _submit(self, running: _Running, pieces: Sequence[tuple[ChunkRef, int]]) -> None:
        for ref, group in pieces:
            self._pool.submit(self._piece, running, ref, group)

    def _piece(self, running: _Running, ref: ChunkRef, group: int) -> None:
        failure: Exception | None = None
        nbytes = 0
        try:
            if running.gone:
                raise Unavailable("the store was not to be reached a moment ago")
            if running.failed_at is None or ref.position < running.failed_at:
                nbytes = self._load(running, ref, group)
        except Exception as error:  # noqa: BLE001 - a load that ends without an outcome would hang its request
            failure = error
        with self._changed:
            running.nbytes += nbytes
            if failure is not None:
                at = max(ref.position, running.job.start)
                running.failed_at = at if running.failed_at is None else min(at, running.failed_at)
                running.gone |= isinstance(failure, GONE)
                running.reason = running.reason or f"{type(failure).__name__}: {failure}"
            running.left -= 1
            left = running.left
        if not left:
            if self._in_place is not None:
                self._in_place.close(running.in_place)
            with self._changed:
                self._end(running)

    def _end(self, running: _Running) -> None:
        seconds = time.monotonic() - running.began
        self._running -= 1
        self._done.append(Outcome(running.job, running.nbytes, seconds, running.failed_at, running.reason))
        self._changed.notify_all()

    def _load(self, running: _Running, ref: ChunkRef, group: int) -> int:
        """Copy what a KV group needs of a chunk; how many bytes were read."""
        job, after = running.job, running.after
        size = self._blocks.block_tokens
        needed = self._spec.groups[group].first_needed(job.end) // size * size
        first, end = max(job.start, ref.position, needed), min(job.end, ref.end)
        if first >= end:
            return 0
        table = job.blocks[group][first // size : end // size]
        if len(table) != (end - first) // size or NULL_BLOCK in table:
            raise InvalidArgument(f"no blocks for tokens {first} to {end} of KV group {group}")
        at = (first - ref.position) // size
        if self._copied_in_place(running, ref, group, at, table):
            return self._spec.part_bytes(self._part(group), ref.tokens)
        fidelity = Fidelity.EXACT if ref.end <= job.exact else Fidelity.LOSSY
        return self._copy(ref, group, fidelity, lambda source: self._blocks.write(group, source, at, table, after))

    def _copied_in_place(self, running: _Running, ref: ChunkRef, group: int, at: int, table: Sequence[int]) -> bool:
        """Scatter a part from where it lies on the device; False where it has to be loaded."""
        found = running.in_place.find(ref, group)
        if found is None or self._in_place is None:
            return False
        try:
            self._blocks.write_from(group, found, at, table, running.after)
        except (KVStoreError, RuntimeError) as error:  # torch raises the latter
            self._in_place.failed(error)
            return False
        if running.in_place.is_over(ref, group):
            return False
        self._counts.add(in_place=1)
        return True

    def _part(self, group: int) -> Part:
        return self._spec.part(group, 0 if self._spec.groups[group].latent_dim else self._rank)

    def _copy(self, ref: ChunkRef, group: int, fidelity: Fidelity, use: Callable[[Bytes], None]) -> int:
        part = self._part(group)
        nbytes = self._spec.part_bytes(part, ref.tokens)
        try:
            view = self._client.view(self._spec, ref, part=part, fidelity=fidelity)
        except (InvalidArgument, Shed):  # this way in has no views, or DRAM has no room to load it into
            buffer = np.empty(nbytes, np.uint8)
            self._client.get(self._spec, ref, part=part, out=buffer, fidelity=fidelity)
            use(buffer)
            return nbytes
        with view:
            source = np.frombuffer(view.data, np.uint8)
            if source.nbytes != nbytes:
                raise NotFound(f"chunk {ref.key.hex()} has {source.nbytes} bytes, not {nbytes}")
            use(source)
            del source
        return nbytes


def _in_dram(info: ChunkInfo) -> bool:
    return all(each.tier == "dram" for each in info.placements)


def failure_text(outcome: Outcome) -> str:
    """One line for the log."""
    job = outcome.job
    return f"tokens {outcome.failed_at} to {job.end} of a prompt are recomputed: {outcome.reason}"
