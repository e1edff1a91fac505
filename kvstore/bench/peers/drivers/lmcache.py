"""LMCache inside the caller's process: `LocalCPUBackend`, without a device."""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import Any

from .driver import EXISTS, Bytes, Driver, need
from .loop import main

LAYERS, TOKENS, HEAD_DIM = 16, 256, 16
GiB = 1 << 30
TRIALS = 64
QUIET = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "ERROR", "LMCACHE_DISABLE_BANNER": "1"}


class LMCache(Driver):
    """Its pool of CPU memory is twice what is stored."""

    mode = "in process"
    does = ("get", "put", "exists")

    def open(self) -> None:
        """Make the backend as the engine's adapter would."""
        os.environ.update(QUIET)
        self._torch = torch = import_module("torch")
        config = import_module("lmcache.v1.config").LMCacheEngineConfig.from_defaults(
            chunk_size=TOKENS, local_cpu=True, max_local_cpu_size=2 * self.job.stored_bytes / GiB
        )
        heads = self.job.nbytes // (LAYERS * 2 * TOKENS * HEAD_DIM * 2)
        shape = (LAYERS, 2, TOKENS, heads, HEAD_DIM)
        metadata = import_module("lmcache.v1.metadata").LMCacheMetadata("bench", 1, 1, 0, 0, torch.bfloat16, shape)
        backend = import_module("lmcache.v1.storage_backend.local_cpu_backend").LocalCPUBackend
        self._backend = backend(config, metadata, dst_device="cpu")
        self._shape = torch.Size([2, LAYERS, TOKENS, heads * HEAD_DIM])
        self._format = import_module("lmcache.v1.memory_management").MemoryFormat.KV_2LTD
        self._key_type = import_module("lmcache.utils").CacheEngineKey

    def ready(self) -> None:
        """Decide how torch copies."""
        how = choose_threads(self._torch, self)
        self.note = f"LocalCPUBackend; allocate, copy, submit_put_task; get_blocking, copy; {how}"

    def store(self, key: str, data: Bytes) -> None:
        """Allocate, copy, publish."""
        held = self._backend.allocate(self._shape, self._torch.bfloat16, fmt=self._format)
        need(held is not None, "LMCache has no memory left")
        held.tensor.copy_(self._tensor(data))
        self._backend.submit_put_task(self._key(key), held)
        held.ref_count_down()

    def load(self, key: str, target: Bytes) -> None:
        """Find and copy."""
        held = self._backend.get_blocking(self._key(key))
        need(held is not None, f"LMCache did not find {key}")
        self._tensor(target).copy_(held.tensor)
        held.ref_count_down()

    def forget(self, key: str) -> None:
        """Remove."""
        need(self._backend.remove(self._key(key)), f"LMCache did not find {key}")

    def prepare_exists(self) -> None:
        """Make the keys."""
        self._names = [self._key(f"k{i}") for i in range(EXISTS)]

    def exists(self) -> int:
        """One `batched_contains`."""
        found: int = self._backend.batched_contains(self._names)
        return found

    def _key(self, key: str) -> Any:
        return self._key_type("bench", 1, 0, number(key), self._torch.bfloat16)

    def _tensor(self, data: Bytes) -> Any:
        return self._torch.from_numpy(data).view(self._torch.bfloat16).view(self._shape)


def number(key: str) -> int:
    """A key's name as the number that LMCache hashes to, or the first token of its prompt."""
    return int(key[1:]) + (1 << 20 if key[0] == "p" else 0)


def choose_threads(torch: Any, driver: Driver) -> str:
    """Let torch copy with one thread or its default of one per core, whichever is faster here; says which.

    On a machine whose cores have other work, threads that wait for each other cost more than they bring.
    """
    default = torch.get_num_threads()
    source, target = torch.from_numpy(driver.sources), torch.from_numpy(driver.targets)
    times: dict[int, list[float]] = {default: [], 1: []}
    for number in range(TRIALS):
        for count, taken in times.items():
            torch.set_num_threads(count)
            start = time.perf_counter()
            target[number % len(target)].copy_(source[number % len(source)])
            taken.append(time.perf_counter() - start)
    # The sum and not the median: a copy that waits for a core now and then is slow now and then.
    chosen = min(times, key=lambda count: sum(times[count]))
    torch.set_num_threads(chosen)
    return f"torch copies with {chosen} of {default} threads, the faster here"


if __name__ == "__main__":
    main(LMCache)
