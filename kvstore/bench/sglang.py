"""A batch of 128 pages between SGLang's host pool and its storage: this store beside SGLang's own file backend.

    python -m kvstore.bench.sglang [--layout page_first] [--rounds 9] [--json]

Needs an environment with SGLang (`make test-sglang` sets one up). Both are driven as SGLang's cache controller does:
the store through its v1 calls, which take the pool's slots, the file backend through flat pages that are copied into
the pool and out of it. Pages are those of SmolLM2-135M, 32 tokens each. The files stay in the page cache, the chunks in
the DRAM of a server on this host.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kvstore.bench.measure import Case, Row, expect, measure, report
from kvstore.bench.processes import server

BATCH = 128
SHAPE: dict[str, Any] = {"page_size": 32, "layers": 30, "heads": 3, "dim": 64}


class Batches:
    """Pages `0…127` of a pool, and what moves them: `128…255` are where they are loaded to."""

    def __init__(self, layout: str, address: str, folder: Path) -> None:
        from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig
        from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

        from kvstore.bench.sglang_pools import pool

        self.pool = pool("mha", layout, 2 * BATCH, **SHAPE)
        extra = {"backend_name": "kvstore", "module_path": "kvstore.connectors.sglang", "interface_v1": 1,
                 "class_name": "KVStoreHiCache", "server": address, "revision": layout}  # fmt: skip
        config = HiCacheStorageConfig(
            tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False,
            enable_storage_metrics=False, is_page_first_layout=layout == "page_first", model_name="smollm2",
            extra_config=extra,
        )  # fmt: skip
        self.store = StorageBackendFactory.create_backend("dynamic", config, self.pool)
        self.store.register_mem_pool_host(self.pool)
        self.file = HiCacheFile(config, str(folder))
        size = self.pool.page_size
        self.saved = torch.arange(BATCH * size)
        self.loaded = self.saved + BATCH * size
        raw = self.pool.kv_buffer.view(torch.uint8)
        raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
        self.stored = _hashes("stored")
        self.fresh: list[str] = []
        self.round = 0

    def renew(self, slot: int) -> None:
        """New hashes, for a batch that nothing holds yet."""
        del slot
        self.round += 1
        self.fresh = _hashes(f"fresh {self.round}")

    def forget(self, slot: int) -> None:
        """What the last `set` stored goes, so that neither side runs full."""
        del slot
        for name in self.fresh:
            path = Path(self.file.file_path) / f"{self.file._get_suffixed_key(name)}.bin"
            path.unlink(missing_ok=True)

    def file_set(self, hashes: Sequence[str]) -> None:
        """As SGLang's `_generic_page_set`."""
        size = self.pool.page_size
        data = [self.pool.get_data_page(int(self.saved[n * size])) for n in range(BATCH)]
        expect(self.file.batch_set(list(hashes), data), "file-set", 0)

    def file_get(self, slot: int) -> None:
        """As SGLang's `_generic_page_get`."""
        del slot
        targets = [self.pool.get_dummy_flat_data_page() for _ in range(BATCH)]
        for n, data in enumerate(self.file.batch_get(self.stored, targets)):
            self.pool.set_from_flat_data_page(int(self.loaded[n * self.pool.page_size]), data)

    def store_set(self, hashes: Sequence[str]) -> None:
        """As SGLang's `_page_set_zero_copy`."""
        expect(all(self.store.batch_set_v1(list(hashes), self.saved)), "set", 0)

    def store_get(self, slot: int) -> None:
        """As SGLang's `_page_get_zero_copy`."""
        expect(all(self.store.batch_get_v1(self.stored, self.loaded)), "get", slot)

    def check(self, slot: int) -> None:
        """The pages loaded are those saved; they are wiped, so that the next case has to load them again."""
        size, same = self.pool.page_size, True
        for n in range(BATCH):
            mine, its = (
                self.pool.get_data_page(int(at[n * size])).view(torch.uint8) for at in (self.saved, self.loaded)
            )
            same &= torch.equal(mine, its)
            self.pool.set_from_flat_data_page(int(self.loaded[n * size]), self.pool.get_dummy_flat_data_page())
        expect(same, "a load", slot)


def run(layout: str, rounds: int) -> list[Row]:
    """Rows of loads, saves and look-ups, each beside the file backend's."""
    with _batches(layout) as batches:
        nbytes = BATCH * batches.pool.get_size_per_token() * batches.pool.page_size
        batches.file_set(batches.stored)
        batches.store_set(batches.stored)
        loads = [
            Case("file-get", batches.file_get, nbytes, mode=layout, check=batches.check, note="in the page cache"),
            Case("get", batches.store_get, nbytes, "file-get", layout, check=batches.check, note="in a server's DRAM"),
        ]
        saves = [
            Case("file-set", lambda _: batches.file_set(batches.fresh), nbytes, mode=layout, before=batches.renew,
                 after=batches.forget, note="no fsync"),
            Case("set", lambda _: batches.store_set(batches.fresh), nbytes, "file-set", layout, before=batches.renew,
                 note="stored, not persisted"),
        ]  # fmt: skip
        exists = [
            Case("file-exists", lambda _: expect(batches.file.batch_exists(batches.stored) == BATCH, "exists", 0)),
            Case("exists", lambda _: expect(batches.store.batch_exists(batches.stored) == BATCH, "exists", 0),
                 baseline="file-exists", note="and pinned"),
        ]  # fmt: skip
        rows = [*measure(loads, rounds=rounds, slots=1), *measure(saves, rounds=rounds, slots=1)]
        return rows + measure(exists, rounds=rounds * 5, slots=1)


@contextmanager
def _batches(layout: str) -> Iterator[Batches]:
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-sglang-") as folder, server(2 << 30) as running:
        batches = Batches(layout, running.url("local"), Path(folder))
        try:
            yield batches
        finally:
            batches.store.close()


def _hashes(name: str) -> list[str]:
    return [hashlib.sha256(f"{name} {n}".encode()).hexdigest() for n in range(BATCH)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", action="append", choices=("layer_first", "page_first", "page_first_direct"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)  # kinder to the file backend: with few cores its many small copies wait for each other
    warnings.simplefilter("ignore")  # SGLang has much to say about hardware that is not here
    rows = [row for layout in args.layout or ("layer_first", "page_first") for row in run(layout, args.rounds)]
    told: dict[str, Any] = report("sglang", rows, pages=BATCH, **SHAPE)
    if args.json:
        print(json.dumps(told))
        return
    for row in rows:
        ratio = f"{row['ratio']:6.2f} x {row['baseline']}" if row["baseline"] else ""
        speed = f"{row['gbps']:6.2f} GB/s" if row["gbps"] else " " * 11
        print(f"{row['case']:>12} {row['mode']:<12} {row['p50_s'] * 1e3:9.2f} ms {speed}  {ratio}")


if __name__ == "__main__":
    main()
