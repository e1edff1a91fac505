"""The process after the restart: it has the model, the prompt and the store's folder, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from kvstore.errors import KVStoreError

if TYPE_CHECKING:
    from kvstore.client import Client
    from kvstore.demo.inference import FirstToken


WARM_UP_TOKENS = 256


@dataclass(frozen=True)
class Job:
    """What to measure: `rounds` times, a restarted store and then the same store once more."""

    model: str
    store: str
    place: str
    ids: Sequence[int]
    generate: int
    rounds: int


@dataclass(frozen=True)
class Case:
    """Loads from one tier.

    Times are medians, `runs_s` all of them. `loaded_bytes` (least, most) is what the store itself read from a slower
    tier meanwhile, `nbytes` what went into the cache.
    """

    ttft_s: float
    runs_s: Sequence[float]
    forward_s: float
    open_s: float
    hit_tokens: int
    nbytes: int
    loaded_bytes: Sequence[int]
    continuation: Sequence[int]
    kv_digests: Sequence[str]
    failures: Sequence[str]


def measure(job: Job) -> dict[str, Case]:
    """Run a job in a fresh process; the cases `nvme` and `dram`."""
    command = [sys.executable, "-m", "kvstore.demo.child"]
    done = subprocess.run(command, input=json.dumps(asdict(job)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise KVStoreError(f"the restarted process ended with status {done.returncode}; see what it said above")
    return {name: Case(**case) for name, case in json.loads(done.stdout).items()}


def run(job: Job) -> dict[str, Case]:
    """Measure in this process. Every round opens the store anew, so that its first load comes from NVMe.

    Between the two the process computes something else, as one does that serves.
    """
    from kvstore.connectors.transformers import spec_of
    from kvstore.demo import inference, models
    from kvstore.demo.places import PLACES

    model, _ = models.load(Path(job.model))
    spec = spec_of(model)
    cases = {"nvme": _Samples(), "dram": _Samples()}
    for _ in range(job.rounds):
        before = time.perf_counter()
        with PLACES[job.place](Path(job.store)) as client:
            opened = time.perf_counter() - before
            inference.warm_up(model, job.ids[:WARM_UP_TOKENS])
            for samples in cases.values():
                loaded = _loaded_bytes(client)
                first = inference.warm(model, job.ids, client, spec)
                samples.add(first, opened, _loaded_bytes(client) - loaded)
                samples.kv_digests.append(inference.kv_digest(first.cache, first.hit_tokens))
                samples.continuation = samples.continuation or inference.continuation(model, first, job.generate)
    return {name: samples.case() for name, samples in cases.items()}


def _loaded_bytes(client: Client) -> int:
    """What the store has read from a slower tier since it was opened."""
    return int(client.stats()["counters"].get("loaded_bytes", 0))


@dataclass
class _Samples:
    """The requests of one case, without their caches."""

    ttft_s: list[float] = field(default_factory=list)
    forward_s: list[float] = field(default_factory=list)
    open_s: list[float] = field(default_factory=list)
    hit_tokens: list[int] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    loaded_bytes: list[int] = field(default_factory=list)
    kv_digests: list[str] = field(default_factory=list)
    continuation: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, first: FirstToken, open_s: float, loaded_bytes: int) -> None:
        self.ttft_s.append(first.ttft_s)
        self.forward_s.append(first.forward_s)
        self.open_s.append(open_s)
        self.hit_tokens.append(first.hit_tokens)
        self.nbytes.append(first.nbytes)
        self.loaded_bytes.append(loaded_bytes)
        self.failures.extend(first.failures)

    def case(self) -> Case:
        return Case(
            ttft_s=median(self.ttft_s),
            runs_s=self.ttft_s,
            forward_s=median(self.forward_s),
            open_s=median(self.open_s),
            hit_tokens=min(self.hit_tokens),
            nbytes=min(self.nbytes),
            loaded_bytes=(min(self.loaded_bytes), max(self.loaded_bytes)),
            continuation=self.continuation,
            kv_digests=self.kv_digests,
            failures=self.failures,
        )
