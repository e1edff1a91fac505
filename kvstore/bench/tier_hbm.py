"""`kvstore bench tier hbm`: the tier in device memory against one copy of the same bytes over the bus.

On a GPU the host memory is registered with CUDA, as the arena is, and the baseline is torch's copy between it and
memory of the device (`registered`, which must reach the bar); and it is ordinary memory, and the baseline is what the
driver makes of that (`pageable`). On the CPU twin both sides are host memory and the baseline is a copy. Records are
gone through in turn, so that no cache holds the next one; the twin has no bar. What blocks cost is in
`tier_hbm_blocks`.
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
from kvstore.bench.contest import check_sizes
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
    check_sizes(sizes)
    import torch

    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    modes = ("registered", "pageable") if device.startswith("cuda") else ("host",)
    rows: list[Row] = []
    for mode in modes:
        for size in sizes:
            with closing(_Contest(device, mode, size, max(8, working_set // size))) as contest:
                rows += measure(contest.cases(), rounds=rounds, slots=contest.slots, advance=advance)
    for row in rows:
        if row["baseline"] and row["mode"] == "registered":
            BAR.judge(row)
    return rows


class _Contest:
    """A tier and plain memory of its device, and two pieces of host memory, for so many records of one size."""

    def __init__(self, device: str, mode: str, size: int, slots: int) -> None:
        import torch

        from kvstore.tiers.hbm import HbmTier

        self.slots, self._size, self._mode = slots, size, mode
        source, target = (memoryview(mmap.mmap(-1, slots * size)) for _ in range(2))
        words = np.frombuffer(source, np.uint64)
        words[:] = np.random.default_rng(0).integers(0, 1 << 63, len(words), dtype=np.uint64)
        np.frombuffer(target, np.uint8)[::4096] = 1
        self._sources, self._targets = _cut(source, size), _cut(target, size)
        self._records = [_record(n, size) for n in range(slots)]
        self._headers = [record.pack() for record in self._records]
        need = (slots + 1) * self._records[0].total_bytes
        self._tier = HbmTier(need, device, slab_bytes=need)
        self._pins = []
        if mode == "registered":
            self._pins = [self._tier.register(each) for each in (source, target)]
        self._raw = _Raw(torch, self._tier.device, source, target, size)
        self._locations = [self._put(n) for n in range(slots)]

    def cases(self) -> list[Case]:
        """Interleaved by `measure`."""
        make = partial(Case, nbytes=self._size, mode=self._mode, note=f"{self.slots} records in turn")
        return [
            make("raw-write", self._raw.write, check=self._check_raw),
            make("write", self._write, before=self._forget, check=self._check_write, baseline="raw-write"),
            make("raw-read", self._raw.read, before=self._wipe, check=self._check_read),
            make("read", self._read, before=self._wipe, check=self._check_read, baseline="raw-read"),
        ]

    def close(self) -> None:
        """Give all memory back."""
        for pin in self._pins:
            pin.close()
        self._tier.close()

    def _put(self, slot: int) -> int:
        return self._tier.write(self._headers[slot], self._sources[slot], self._records[slot])

    def _write(self, slot: int) -> None:
        self._locations[slot] = self._put(slot)

    def _read(self, slot: int) -> None:
        self._tier.read_into(self._locations[slot], self._records[slot].header_bytes, self._targets[slot])

    def _forget(self, slot: int) -> None:
        self._tier.delete(self._locations[slot], self._records[slot].total_bytes)

    def _wipe(self, slot: int) -> None:
        self._targets[slot][::65536] = bytes(self._size // 65536)
        self._raw.write(slot)

    def _check_raw(self, slot: int) -> None:
        self._raw.read(slot)
        self._check_read(slot)

    def _check_write(self, slot: int) -> None:
        self._read(slot)
        self._check_read(slot)

    def _check_read(self, slot: int) -> None:
        found, due = (np.frombuffer(each[slot], np.uint64) for each in (self._targets, self._sources))
        expect(np.array_equal(found, due), "the hbm tier", slot)


class _Raw:
    """Memory of a device and torch's bare copies; on the CPU, those of native code."""

    def __init__(self, torch: Any, device: Any, source: memoryview, target: memoryview, size: int) -> None:
        memory = torch.empty(source.nbytes, dtype=torch.uint8, device=device).zero_()
        self._stream = None
        if device.type == "cpu":
            self._pieces = [_cut(each, size) for each in (memory.numpy().data, source, target)]
        else:
            host = [torch.frombuffer(each, dtype=torch.uint8) for each in (source, target)]
            self._pieces = [each.split(size) for each in (memory, *host)]
            self._stream = torch.cuda.current_stream(device)

    def write(self, slot: int) -> None:
        """Copy from the source to the device, and wait for that."""
        memory, source, _ = self._pieces
        self._copy(memory[slot], source[slot])

    def read(self, slot: int) -> None:
        """Copy from the device to the target, and wait for that."""
        memory, _, target = self._pieces
        self._copy(target[slot], memory[slot])

    def _copy(self, to: Any, source: Any) -> None:
        if self._stream is None:
            _native.copy(to, source)
        else:
            to.copy_(source, non_blocking=True)
            self._stream.synchronize()


def _cut(memory: memoryview, size: int) -> list[memoryview]:
    return [memory[at : at + size] for at in range(0, memory.nbytes, size)]


def _record(number: int, size: int) -> Record:
    digest = np.zeros((1, 16), np.uint8)  # the tier verifies nothing
    key = hashlib.sha256(b"%d" % number).digest()
    groups = group_table([(0, size)], digest)
    return Record(key, bytes(32), _SPEC.digest, namespace_digest("bench"), Part(), 0, 256, size, size, groups)
