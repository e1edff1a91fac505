"""vLLM's tiered offloading on a machine without a GPU: host memory to host memory.

`CPUOffloadingSpec` of vLLM 0.32 refuses CPU devices, because its copies are CUDA's. With this one in its place the rest
of the stack, `OffloadingConnector`, the primary tier and every secondary tier, runs there as it is:

    "kv_connector": "OffloadingConnector",
    "kv_connector_extra_config": {"spec_name": "HostOffloadingSpec", "spec_module_path": "kvstore.bench.vllm_offload",
        "cpu_bytes_to_use": 268435456, "secondary_tiers": [...]}

For tests and benchmarks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class HostOffloadingWorker(OffloadingWorker):
    """Copies pages between a rank's KV cache and its part of every row, at once, on the engine's thread."""

    def __init__(self, caches: Any, blocks_per_chunk: int, region: SharedOffloadRegion) -> None:
        self._region, self._per_row, self._groups = region, blocks_per_chunk, caches.group_data_refs
        # Of each tensor: [block, byte of a page] in the KV cache, [row, block in the row, byte of a page] in a row.
        self._caches, self._rows = [], []
        for each in caches.tensors:
            page = each.page_size_bytes
            self._caches.append(each.tensor.numpy().view(np.uint8))
            rows = region.create_next_worker_view(page * blocks_per_chunk).numpy().view(np.uint8)
            self._rows.append(rows.reshape(rows.shape[0], blocks_per_chunk, page))
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        began, nbytes = time.perf_counter(), 0
        for page, cache, rows, block, row, place in self._pages(src_spec, dst_spec):
            rows[row, place, :page] = cache[block, :page]
            nbytes += page
        return self._finish(job_id, nbytes, began)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        began, nbytes = time.perf_counter(), 0
        for page, cache, rows, block, row, place in self._pages(dst_spec, src_spec):
            cache[block, :page] = rows[row, place, :page]
            nbytes += page
        return self._finish(job_id, nbytes, began)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        return

    def shutdown(self) -> None:
        self._caches.clear()
        self._rows.clear()
        self._region.cleanup()

    def _finish(self, job_id: int, nbytes: int, began: float) -> bool:
        self._finished.append(TransferResult(job_id, True, nbytes, time.perf_counter() - began))
        return True

    def _pages(self, blocks: Any, rows: Any) -> Iterator[tuple[int, Any, Any, int, int, int]]:
        """Bytes of a page, KV cache, rows, block, row and place in the row, for each page to copy.

        A group's first block may stand in the middle of a row: `block_indices` says at which block of its prompt.
        """
        first_block = first_row = 0
        for refs, size, index in zip(self._groups, blocks.group_sizes, blocks.block_indices, strict=True):
            skipped = index % self._per_row if size else 0
            for n in range(size):
                row, place = divmod(skipped + n, self._per_row)
                for ref in refs:
                    yield (
                        ref.page_size_bytes, self._caches[ref.tensor_idx], self._rows[ref.tensor_idx],
                        int(blocks.block_ids[first_block + n]), int(rows.block_ids[first_row + row]), place,
                    )  # fmt: skip
            first_block += size
            first_row += -(-(skipped + size) // self._per_row) if size else 0


class HostOffloadingSpec(TieringOffloadingSpec):
    """`TieringOffloadingSpec` with a worker that copies from host memory to host memory."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        """One rank's worker."""
        region = SharedOffloadRegion(
            engine_id=self.config.engine_id,
            num_chunks=self.num_chunks,
            rank=self.config.parallel.rank,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        return HostOffloadingWorker(kv_caches, self.blocks_per_chunk, region)
