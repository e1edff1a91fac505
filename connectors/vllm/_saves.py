"""Saves: blocks are copied out on the engine's thread, and stored by a thread of their own.

The copy is what makes everything else simple: no block has to be kept for a save, whatever vLLM does with it
afterwards (a sliding window that moves on, a preemption, the end of a request).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from kvstore.client import Client
from kvstore.connectors.vllm._blocks import Blocks, Bytes
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._loads import GONE, PATIENCE
from kvstore.connectors.vllm._options import MiB, Options
from kvstore.connectors.vllm._plan import HintJob, SaveJob, first_block
from kvstore.connectors.vllm._reports import Reports
from kvstore.connectors.vllm._warn import Warn
from kvstore.errors import KVStoreError, Shed
from kvstore.spec import KVSpec, Part

_PIECE = 64 * MiB


class Saves:
    """Stores chunks. What does not fit into `staging_mib` is dropped and counted: a miss later, never a wait now."""

    def __init__(
        self, client: Client, spec: KVSpec, rank: int, blocks: Blocks, options: Options, counts: Counts
    ) -> None:
        self._client, self._spec, self._rank, self._blocks = client, spec, rank, blocks
        self._limit, self._retry_s = options.staging_bytes, options.retry_s
        self._counts = counts
        self._pool = ThreadPoolExecutor(options.writers, thread_name_prefix="kvstore-save")
        self._lock = threading.Lock()
        self._staged = 0
        self._down_until = 0.0
        self._puts: set[Future[None]] = set()  # that are not over
        self._warn = Warn("saves", options.retry_s)
        self.reports = Reports()
        self._pool.submit(self._prepare)

    def stage(self, job: SaveJob) -> None:
        """Copy a chunk's blocks out of the KV cache; they may be overwritten when this returns."""
        # Every rank holds the same latents; the first one stores them.
        groups = [n for n, group in enumerate(self._spec.groups) if not (group.latent_dim and self._rank)]
        self.reports.begin(job.number, len(groups))
        for number in groups:
            self._stage(job, number)

    def tell(self, job: HintJob) -> None:
        """Pass a hint on, when all that was staged before it is stored."""
        with self._lock:
            before = tuple(self._puts)
        self._pool.submit(self._tell, job, before)

    def close(self) -> None:
        """Wait until all that was staged is stored; each call to the store has its time limit."""
        self._pool.shutdown(wait=True)

    def _stage(self, job: SaveJob, group: int) -> None:
        table = job.blocks[group]
        gone = first_block(table, windowed=self._spec.groups[group].window > 0)
        if gone is None:
            self._counts.add(saves_outside=1)
            self.reports.end(job.number, stored=True)
            return
        part = self._spec.part(group, self._rank)
        nbytes = self._spec.part_bytes(part, job.ref.tokens)
        with self._lock:
            room = self._staged + nbytes <= self._limit and time.monotonic() >= self._down_until
            self._staged += nbytes if room else 0
        if not room:
            self._counts.add(saves_dropped=1)
            self.reports.end(job.number, stored=False)
            return
        began = time.monotonic()
        buffer = self._client.buffer(nbytes)
        finish = self._blocks.read(group, table, buffer)
        self._counts.add(stage_s=time.monotonic() - began)
        put = self._pool.submit(self._put, job, part, buffer, gone * self._blocks.block_tokens, finish)
        with self._lock:
            self._puts.add(put)
        put.add_done_callback(self._over)

    def _over(self, put: Future[None]) -> None:
        with self._lock:
            self._puts.discard(put)

    def _put(self, job: SaveJob, part: Part, buffer: Bytes, valid: int, finish: Callable[[], None]) -> None:
        nbytes, stored = buffer.nbytes, False
        try:
            finish()
            if time.monotonic() < self._down_until:
                self._counts.add(saves_dropped=1)
            elif self._client.put(self._spec, job.ref, buffer, part=part, first_valid=valid):
                stored = True
                self._counts.add(saved=1, saved_bytes=nbytes)
            else:
                stored = True
                self._counts.add(saves_present=1)
        except Shed:
            self._counts.add(saves_shed=1)
        except Exception as error:  # noqa: BLE001 - a save that fails is a later miss and nothing else
            self._counts.add(saves_failed=1)
            if isinstance(error, GONE) or not isinstance(error, KVStoreError):
                self._down_until = time.monotonic() + self._retry_s
            self._warn(f"a chunk is not stored: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._staged -= nbytes
            self.reports.end(job.number, stored=stored)

    def _tell(self, job: HintJob, before: tuple[Future[None], ...]) -> None:
        wait(before)  # the other writers have them in hand
        try:
            if time.monotonic() < self._down_until:
                self._counts.add(hints_failed=1)
                return
            if job.awaited_s:
                self._client.awaited(self._spec, job.refs, job.awaited_s)
            else:
                self._client.ended(self._spec, job.refs)
            self._counts.add(hints=1)
        except Exception as error:  # noqa: BLE001 - advice that does not arrive
            self._counts.add(hints_failed=1)
            self._warn(f"a hint does not reach the store: {type(error).__name__}: {error}")

    def _prepare(self) -> None:
        """Find the way to the server and have staging memory ready, before the first prompt waits for either."""
        if greet(self._client):
            pieces = [self._client.buffer(_PIECE) for _ in range(max(1, self._limit // _PIECE))]
            pieces.clear()
        else:
            self._warn("the store does not answer")


def greet(client: Client) -> bool:
    """Find the way to the store, which may start a little later than the engine's workers."""
    for _ in range(PATIENCE):
        try:
            client.describe()
        except KVStoreError:
            time.sleep(1.0)
        else:
            return True
    return False
