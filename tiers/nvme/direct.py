"""From segments straight into device memory, in the order of the layers, so that computing starts on the first.

How is chosen once: through kvikio where a CUDA device and kvikio are there (`on` with GPUDirect, `compat` where kvikio
goes by way of host memory itself), else by plain reads (`off: why`), by way of pinned memory if the target is on a
device. The same code reads into memory of the CPU, which is what tests without a device run.

What arrives is checked against the record's checksums like any other bytes from a drive. Those that went straight to
the device are copied back for that, which costs a fraction of what a drive takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import Corrupt, InvalidArgument, KVStoreError, StorageError
from kvstore.tiers.nvme.tier import NvmeTier

BATCH_BYTES = 16 << 20  # of consecutive layers of all records; the first batch is a single layer
AHEAD = 2  # batches that are read while the one before is used


@dataclass(frozen=True)
class DeviceRead:
    """One record's payload and where it goes.

    `groups` are the layer groups of its header (`kvstore.record.GROUP_DTYPE`), `target` a contiguous `uint8` tensor
    of `stored` bytes.
    """

    location: int
    header_bytes: int
    groups: npt.NDArray[Any]
    target: Any


class Arrived(NamedTuple):
    """Layer groups `first` to `end` of all records are there, but of those whose outcome is an error."""

    first: int
    end: int
    outcomes: Sequence[KVStoreError | None]


class _Span(NamedTuple):
    """Consecutive layer groups of one record."""

    record: int
    read: DeviceRead
    first: int
    end: int

    @property
    def start(self) -> int:
        return int(self.read.groups["offset"][self.first])

    @property
    def nbytes(self) -> int:
        lengths = self.read.groups["length"]
        return int(lengths[self.first : self.end].sum())


class DeviceReader(ABC):
    """Reads records of one tier. `mode` is `on`, `compat` or `off: why`."""

    mode: str

    @abstractmethod
    def _submit(self, span: _Span) -> Any:
        """Begin to read a span."""

    @abstractmethod
    def _finish(self, span: _Span, begun: Any) -> None:
        """Return when a span is at its target, checked. `Corrupt`, `StorageError`, `NotFound`."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; reads under way are waited for."""

    def layers(self, reads: Sequence[DeviceRead]) -> Iterator[Arrived]:
        """The layers of some records, as they arrive, from the first to the last.

        One iteration at a time; all records must have as many layer groups. Work that is queued on the device's current
        stream after an `Arrived` sees its bytes. Ending the iteration early waits for what is under way.
        `InvalidArgument` for a target that does not fit.
        """
        outcomes: list[KVStoreError | None] = [None] * len(reads)
        pending: deque[tuple[int, int, list[tuple[_Span, Any]]]] = deque()
        try:
            for first, end in _batches(reads):
                spans = [_Span(i, read, first, end) for i, read in enumerate(reads) if outcomes[i] is None]
                pending.append((first, end, [(span, self._begin(span, outcomes)) for span in spans]))
                if len(pending) > AHEAD:
                    yield self._settle(*pending.popleft(), outcomes)
            while pending:
                yield self._settle(*pending.popleft(), outcomes)
        finally:
            for left in pending:
                self._settle(*left, outcomes)

    def _begin(self, span: _Span, outcomes: list[KVStoreError | None]) -> Any:
        try:
            return self._submit(span)
        except KVStoreError as error:
            outcomes[span.record] = error
            return None

    def _settle(
        self, first: int, end: int, spans: list[tuple[_Span, Any]], outcomes: list[KVStoreError | None]
    ) -> Arrived:
        for span, begun in spans:
            if begun is None:
                continue
            try:
                self._finish(span, begun)
            except KVStoreError as error:
                outcomes[span.record] = outcomes[span.record] or error
        return Arrived(first, end, tuple(outcomes))


class PosixReader(DeviceReader):
    """Plain reads by threads: into the target where that is the CPU's memory, by way of pinned memory where not."""

    def __init__(self, tier: NvmeTier, threads: int, mode: str) -> None:
        self.mode = mode
        self._tier = tier
        self._pool = ThreadPoolExecutor(threads, "kvstore-nvme-device")
        self._pinned: deque[Any] = deque()

    def _submit(self, span: _Span) -> Future[Any]:
        return self._pool.submit(self._read, span)

    def _read(self, span: _Span) -> Any:
        """Read and check a span; the pinned memory that it is in, None if it is where it belongs."""
        staging = self._take(span) if span.read.target.is_cuda else None
        target = span.read.target[span.start : span.start + span.nbytes] if staging is None else staging[: span.nbytes]
        memory = memoryview(target.numpy())
        self._tier.read_into(span.read.location, span.read.header_bytes + span.start, memory)
        _check(memory, span)
        return staging

    def _finish(self, span: _Span, begun: Future[Any]) -> None:
        staging = begun.result()
        if staging is None:
            return
        import torch

        target = span.read.target[span.start : span.start + span.nbytes]
        target.copy_(staging[: span.nbytes], non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._pinned.append((staging, copied))

    def _take(self, span: _Span) -> Any:
        """Pinned memory that no copy reads from any more."""
        import torch

        for _ in range(len(self._pinned)):
            try:
                staging, copied = self._pinned.popleft()
            except IndexError:
                break
            if len(staging) >= span.nbytes and copied.query():
                return staging
            self._pinned.append((staging, copied))
        return torch.empty(-(-span.nbytes // BATCH_BYTES) * BATCH_BYTES, dtype=torch.uint8, pin_memory=True)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self._pinned.clear()


class KvikioReader(DeviceReader):
    """Through cuFile, or what kvikio does in its place."""

    def __init__(self, tier: NvmeTier, threads: int, mode: str) -> None:
        import kvikio.defaults

        kvikio.defaults.set({"num_threads": threads})
        self.mode = mode
        self._tier = tier
        self._files: dict[str, Any] = {}
        self._host: Any = None

    def _submit(self, span: _Span) -> tuple[Any, Any]:
        held = self._tier.borrow(span.read.location, span.read.header_bytes + span.start, span.nbytes)
        try:
            target = span.read.target[span.start : span.start + span.nbytes]
            return held, self._file(held.path, held.fd).pread(target, span.nbytes, held.offset)
        except (OSError, RuntimeError, ValueError) as error:
            held.give_back()
            raise StorageError(f"cannot read {held.path} through kvikio: {error}") from error

    def _finish(self, span: _Span, begun: tuple[Any, Any]) -> None:
        held, future = begun
        try:
            done = future.get()
        except (OSError, RuntimeError) as error:
            raise StorageError(f"cannot read {held.path} through kvikio: {error}") from error
        finally:
            held.give_back()
        if done != span.nbytes:
            raise Corrupt(f"{held.path} is cut off: {done} of {span.nbytes} bytes")
        _check(self._copied_back(span), span)

    def _copied_back(self, span: _Span) -> memoryview:
        """What arrived on the device, in pinned memory that is used again for the next span."""
        import torch

        if self._host is None or len(self._host) < span.nbytes:
            self._host = torch.empty(-(-span.nbytes // BATCH_BYTES) * BATCH_BYTES, dtype=torch.uint8, pin_memory=True)
        host = self._host[: span.nbytes]
        host.copy_(span.read.target[span.start : span.start + span.nbytes], non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return memoryview(host.numpy())

    def _file(self, path: str, fd: int) -> Any:
        """kvikio's handle of a segment, opened again where another file has taken its name."""
        import os

        import kvikio

        known = self._files.get(path)
        if known is None or not os.path.samestat(os.fstat(known.fileno()), os.fstat(fd)):
            if known is not None:
                known.close()
            known = self._files[path] = kvikio.CuFile(path, "r")
        return known

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def open_reader(tier: NvmeTier, device: str = "cuda", *, threads: int = 8, kvikio: bool = True) -> DeviceReader:
    """The best way from a tier's drives to a device, found out once and told in the tier's `stats`.

    `device` is a torch device; `cpu` reads into memory of the CPU. `kvikio=False` forbids it.
    """
    mode = _mode(tier, device) if kvikio else "off: kvikio was not wanted"
    kind = PosixReader if mode.startswith("off") else KvikioReader
    reader = kind(tier, threads, mode)
    tier.gpudirect = mode
    return reader


def _mode(tier: NvmeTier, device: str) -> str:
    """`on`, `compat`, or why neither."""
    if device.startswith("cpu"):
        return "off: no CUDA"
    try:
        import torch
    except ImportError:
        return "off: torch is not installed"
    if not torch.cuda.is_available():
        return "off: no CUDA"
    try:
        import kvikio
        import kvikio.cufile_driver
    except ImportError:
        return "off: kvikio is not installed (pip install tiered-kvstore[gds])"
    try:
        probe = torch.zeros(4096, dtype=torch.uint8, device=device)
        for path in tier.probe_files():
            with kvikio.CuFile(path, "r") as file:
                file.pread(probe).get()
        return "on" if kvikio.cufile_driver.get("is_gds_available") else "compat"
    except (OSError, RuntimeError, ValueError) as error:
        return f"off: {error}"


def _batches(reads: Sequence[DeviceRead]) -> Iterator[tuple[int, int]]:
    """(first, end) of consecutive layer groups: one alone, then as many as make up a batch."""
    if not reads:
        return
    count = len(reads[0].groups)
    for read in reads:
        if len(read.groups) != count:
            raise InvalidArgument(f"records of {count} and of {len(read.groups)} layer groups cannot be read in step")
        if read.target.numel() != int(read.groups["length"].sum()) or read.target.element_size() != 1:
            raise InvalidArgument(f"a target of {read.target.numel()} elements does not fit its record")
    sizes = np.sum([read.groups["length"] for read in reads], axis=0)
    first, total = 0, 0
    for group in range(count):
        total += int(sizes[group])
        if first == 0 or total >= BATCH_BYTES or group == count - 1:
            yield first, group + 1
            first, total = group + 1, 0


def _check(memory: memoryview, span: _Span) -> None:
    """Raise `Corrupt` unless these bytes are the span's."""
    groups = span.read.groups[span.first : span.end]
    found = _native.xxh3_128_many(memory, groups["offset"] - groups["offset"][0], groups["length"].copy())
    if not np.array_equal(found, groups["xxh3"]):
        raise Corrupt(f"what lies at {span.read.location:#x} does not match its checksums")
