"""`kvstore bench tier hbm`: the tier in device memory against one copy of the same bytes over the bus.

On a GPU the host memory is registered with CUDA, as the arena is, and the baseline is torch's copy between it and
memory of the device (`registered`, which must reach the bar); and it is ordinary memory, and the baseline is what the
driver makes of that (`pageable`). On the CPU twin both sides are host memory and the baseline is a copy. Records are
gone through in turn, so that no cache holds the next one. What blocks cost is in `tier_hbm_blocks`.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np

from kvstore import _native
from kvstore.bench.measure import Bar, Case, Row, expect, measure
from kvstore.namespace import namespace_digest
from kvstore.record import Record, group_table
from kvstore.spec import KVSpec, Part

MIB = 1 << 20
SIZES = (256 << 10, MIB, 4 * MIB, 16 * MIB)
BAR = Bar(ratio=0.9)
_WORKING_SET = 256 * MIB
_SPEC = KVSpec.dense("bench", layers=1, kv_heads=1, head_dim=64)


def run(
    *,
    device: str = "",
    sizes: Sequence[int] = SIZES,
    rounds: int = 200,
    working_set: int = _WORKING_SET,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows for `raw-write`, `write`, `raw-read` and `read` at each of `sizes` (bytes).

    `device` is `cuda:N` or `cpu`; empty for a GPU where there is one. Raises as `HbmTier`.
    """
    import torch

    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    modes = ("registered", "pageable") if device.startswith("cuda") else ("host",)
    rows: list[Row] = []
    for mode in modes:
        for size in sizes:
            with closing(_Contest(device, mode, size, max(8, working_set // size))) as contest:
                rows += measure(contest.cases(), rounds=rounds, slots=contest.slots, advance=advance)
    for row in rows:
        if row["baseline"] and row["mode"] != "pageable":
            BAR.judge(row)
    return rows


class _Contest:
    """A tier and plain memory of its device, and two pieces of host memory, for so many records of one size."""

    def __init__(self, device: str, mode: str, size: int, slots: int) -> None:
        import torch

        from kvstore.tiers.hbm import HbmTier

        self.slots, self._size, self._mode = slots, size, mode
        self._source, self._target = (memoryview(mmap.mmap(-1, slots * size)) for _ in range(2))
        words = np.frombuffer(self._source, np.uint64)
        words[:] = np.random.default_rng(0).integers(0, 1 << 63, len(words), dtype=np.uint64)
        np.frombuffer(self._target, np.uint8)[::4096] = 1
        self._records = [_record(n, size) for n in range(slots)]
        self._headers = [record.pack() for record in self._records]
        need = (slots + 1) * self._records[0].total_bytes
        self._tier = HbmTier(need, device, slab_bytes=need)
        self._pins = []
        if mode == "registered":
            self._pins = [self._tier.register(each) for each in (self._source, self._target)]
        self._raw = _Raw(torch, self._tier.device, slots * size)
        self._locations = [self._put(n) for n in range(slots)]

    def cases(self) -> list[Case]:
        """Interleaved by `measure`."""
        make = partial(Case, nbytes=self._size, mode=self._mode, note=f"{self.slots} records in turn")
        return [
            make("raw-write", self._raw_write, check=self._check_raw),
            make("write", self._write, before=self._forget, check=self._check_write, baseline="raw-write"),
            make("raw-read", self._raw_read, before=self._wipe, check=self._check_read),
            make("read", self._read, before=self._wipe, check=self._check_read, baseline="raw-read"),
        ]

    def close(self) -> None:
        """Give all memory back."""
        for pin in self._pins:
            pin.close()
        self._tier.close()

    def _piece(self, memory: memoryview, slot: int) -> memoryview:
        return memory[slot * self._size : (slot + 1) * self._size]

    def _put(self, slot: int) -> int:
        return self._tier.write(self._headers[slot], self._piece(self._source, slot), self._records[slot])

    def _raw_write(self, slot: int) -> None:
        self._raw.write(slot * self._size, self._piece(self._source, slot))

    def _raw_read(self, slot: int) -> None:
        self._raw.read(slot * self._size, self._piece(self._target, slot))

    def _write(self, slot: int) -> None:
        self._locations[slot] = self._put(slot)

    def _read(self, slot: int) -> None:
        header = self._records[slot].header_bytes
        self._tier.read_into(self._locations[slot], header, self._piece(self._target, slot))

    def _forget(self, slot: int) -> None:
        self._tier.delete(self._locations[slot], self._records[slot].total_bytes)

    def _wipe(self, slot: int) -> None:
        self._piece(self._target, slot)[::65536] = bytes(self._size // 65536)
        self._raw_write(slot)

    def _check_raw(self, slot: int) -> None:
        self._raw_read(slot)
        self._check_read(slot)

    def _check_write(self, slot: int) -> None:
        self._read(slot)
        self._check_read(slot)

    def _check_read(self, slot: int) -> None:
        found, due = (np.frombuffer(self._piece(each, slot), np.uint64) for each in (self._target, self._source))
        expect(np.array_equal(found, due), "the hbm tier", slot)


class _Raw:
    """One piece of memory of a device, and the copy that torch makes; on the CPU, that of native code."""

    def __init__(self, torch: Any, device: Any, nbytes: int) -> None:
        self._torch, self._memory = torch, torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._memory.zero_()
        self._host = self._memory.numpy().data if device.type == "cpu" else None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            torch.cuda.synchronize(device)

    def write(self, at: int, source: memoryview) -> None:
        """Copy to the device, and wait for that."""
        if self._host is not None:
            _native.copy(self._host[at : at + source.nbytes], source)
            return
        self._copy(self._memory[at : at + source.nbytes], self._torch.frombuffer(source, dtype=self._torch.uint8))

    def read(self, at: int, out: memoryview) -> None:
        """Copy from the device, and wait for that."""
        if self._host is not None:
            _native.copy(out, self._host[at : at + out.nbytes])
            return
        self._copy(self._torch.frombuffer(out, dtype=self._torch.uint8), self._memory[at : at + out.nbytes])

    def _copy(self, to: Any, source: Any) -> None:
        with self._torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
        self._stream.synchronize()


def _record(number: int, size: int) -> Record:
    digest = np.zeros((1, 16), np.uint8)  # the tier verifies nothing
    key = hashlib.sha256(b"%d" % number).digest()
    groups = group_table([(0, size)], digest)
    return Record(key, bytes(32), _SPEC.digest, namespace_digest("bench"), Part(), 0, 256, size, size, groups)
