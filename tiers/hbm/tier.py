"""The HBM tier: records in slabs of device memory.

A record lies as it does everywhere: its header, then its payload, padded. The header is in the slab, too, so that the
tier keeps nothing for a record on the host, a whole record is one copy over the bus, and who opens one by IPC can
check whose it is.

A call has a lane of its own, with a stream; what returns is done on the device. Host memory that is registered
(`register`) is copied to and from by the device; all other is the driver's work.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from kvstore import _native
from kvstore.errors import (
    Closed,
    ConfigError,
    Corrupt,
    InvalidArgument,
    KVStoreError,
    NotFound,
    PermissionDenied,
    StorageError,
    TooLarge,
    Unavailable,
)
from kvstore.record import Record, padded
from kvstore.tiers.base import OnLoss, Speed, Tier, TierFull, check_read
from kvstore.tiers.hbm.ipc import SharedSlab, check_alone, describe, device_id, handle
from kvstore.tiers.hbm.lanes import Lanes, Move
from kvstore.tiers.hbm.pinning import Pin
from kvstore.tiers.hbm.slabs import Slab, Slabs

_ANYBODY = b""  # the owner of slabs that nobody else opens
_WEIGHT = 0.1
_RATE_BYTES = 1 << 20
_LATENCY_BYTES = 64 << 10


@dataclass(slots=True)
class _Flow:
    """What was copied one way, and how fast lately (an estimate before that)."""

    nbytes: int = 0
    records: int = 0
    bytes_per_s: float = 2e10


class HbmTier(Tier):
    """Records in the memory of one device; a host with several GPUs has a tier for each.

    `capacity` bytes are allocated now, in slabs of `slab_bytes` (the longest record). `device` is `cuda:N`, or `cpu`
    for the same in host memory. With `ipc` records may be handed to other processes; each slab is of one namespace
    then, one is left for each of so many `namespaces`, and who finds none left is told `TierFull` until one becomes
    empty.

    Raises `ConfigError` for a device that is not there, or has less free memory, and with `ipc` for slabs that cannot
    be handed out alone; `StorageError` where no memory is given.
    """

    kind: ClassVar[str] = "hbm"
    persistent: bool = False

    def __init__(
        self, capacity: int, device: str = "cuda:0", *, slab_bytes: int = 1 << 30, ipc: bool = False,
        namespaces: int = 1, name: str = "hbm",
    ) -> None:  # fmt: skip
        self.name, self.ipc = name, ipc
        self.device = _device(device)
        _check_free(self.device, capacity)
        self._lanes = Lanes(self.device)
        if self.device.type == "cuda" and ipc:
            torch.cuda.empty_cache()  # slabs are to be allocations of their own
        self._slabs = Slabs(capacity, slab_bytes, self.device, self._clear, namespaces)
        if self._lanes.context is not None:
            # Memory that torch has used before is ready in the order of its stream, and ours is another.
            torch.cuda.current_stream(self.device).synchronize()
            for slab in self._slabs.all if ipc else ():
                check_alone(slab, self._lanes.context)
        self._reads, self._writes, self._latency_s = _Flow(), _Flow(), 2e-5
        self._errors = 0
        self._lost = ""
        self._told: OnLoss = lambda note, is_lost: None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def capacity(self) -> int:
        return self._slabs.capacity

    @property
    def used(self) -> int:
        return self._slabs.used

    @property
    def speed(self) -> Speed:
        return Speed(self._reads.bytes_per_s, self._writes.bytes_per_s, self._latency_s)

    @property
    def state(self) -> str:
        return self._lost or "ok"

    @property
    def max_record(self) -> int:
        return self._slabs.slab_bytes

    def register(self, memory: memoryview) -> Pin:
        """Let the device copy to and from a long-lived mapping of host memory by itself, until the pin is closed.

        Raises `StorageError` where the device does not take it; it is copied all the same, more slowly.
        """
        return self._lanes.pins.register(memory)

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        if payload.nbytes < record.stored or not payload.c_contiguous:
            raise InvalidArgument(f"a record of {record.stored} bytes needs as many in one piece, not {payload.nbytes}")
        return self._write(header, record, _native.address_of(payload))

    def write_tensor(self, header: bytes, payload: torch.Tensor, record: Record) -> int:
        """`write` for a payload in device memory, as it is when all that is queued on torch's current stream is done.

        `payload` is contiguous, of any dtype, on any device, and has `record.stored` bytes at least.
        """
        if payload.nbytes < record.stored or not payload.is_contiguous():
            raise InvalidArgument(f"a record of {record.stored} bytes needs as many in one piece, not {payload.nbytes}")
        ready, on_device = _queued(payload), payload.device.type != "cpu"
        return self._write(header, record, payload.data_ptr(), ready, on_device=on_device)

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        move = self._move(location, offset, out)
        self._read([move], 1)

    def read_many(self, requests: Sequence[tuple[int, int, memoryview]]) -> Sequence[Exception | None]:
        """`read_into` for each (location, offset, out): all queued at once, waited for once."""
        outcomes: list[Exception | None] = [None] * len(requests)
        moves: list[Move] = []
        for number, request in enumerate(requests):
            try:
                moves.append(self._move(*request))
            except KVStoreError as error:
                outcomes[number] = error
        try:
            if moves:
                self._read(moves, len(moves))
        except KVStoreError as error:
            # Which of the copies failed is not told, so none counts.
            outcomes = [each or error for each in outcomes]
        return outcomes

    def read_into_tensor(self, location: int, offset: int, out: torch.Tensor) -> None:
        """`read_into` for a contiguous tensor on any device, which is filled when this returns.

        What is queued on torch's current stream may still use it: that comes first.
        """
        if not out.is_contiguous():
            raise InvalidArgument("what is read into must be a tensor in one piece")
        nbytes, ready = out.nbytes, _queued(out)
        slab, at = self._range(location, offset, nbytes)
        start = time.perf_counter()
        with self._lanes.take() as lane:
            lane.after(ready)
            if out.device.type == "cpu":
                lane.read([(slab.address + at, out.data_ptr(), nbytes)])
            else:
                lane.copy(out.data_ptr(), slab.address + at, nbytes)
            lane.wait()
        self._learn(self._reads, nbytes, 1, time.perf_counter() - start)

    def view(self, location: int, offset: int, nbytes: int) -> torch.Tensor:
        """A record's bytes in place, as a uint8 tensor of this process. Good for as long as the record is leased."""
        slab, at = self._range(location, offset, nbytes)
        return slab.memory[at : at + nbytes]

    def export(self, location: int, offset: int, nbytes: int) -> bytes:
        """A handle with which an `Importer` in another process of this host has the same view.

        The whole slab can be opened with it, and written to; it is of the record's namespace alone and stays so from
        now on. Raises `Unavailable` where the memory cannot be shared, and without `ipc`.
        """
        if not self.ipc:
            raise Unavailable(f"tier {self.name} shares its memory with no other process: open it with ipc")
        slab, at = self._range(location, offset, nbytes)
        return handle(slab, self._slabs.export(slab, describe), at, nbytes)

    @property
    def device_id(self) -> str:
        """What the device is called in every process of the host: a GPU's UUID, or `cpu`."""
        return device_id(self.device)

    def share(self, number: int, namespace: bytes) -> SharedSlab:
        """How another process opens a slab of a namespace's, as `export`; the caller closes its descriptor.

        `PermissionDenied` for any other number, whether there is such a slab or not.
        """
        if not self.ipc:
            raise Unavailable(f"tier {self.name} shares its memory with no other process: open it with ipc")
        slab = self._slabs.owned(number, namespace)
        if slab is None:
            raise PermissionDenied(f"this namespace has no slab {number} in {self.name}")
        opening = self._slabs.export(slab, describe)
        return SharedSlab(number, slab.identity, slab.nbytes, opening, os.dup(slab.file) if slab.file >= 0 else -1)

    def watch_losses(self, told: OnLoss) -> None:
        self._told = told

    def delete(self, location: int, record_bytes: int) -> None:
        if not self._closed:
            self._slabs.free(location, record_bytes)

    def close(self) -> None:
        """Give the memory back. Other processes have let go of what was handed out to them before."""
        self._closed = True
        self._slabs.close()

    def stats(self) -> dict[str, float | int | str]:
        """Counters since the tier was opened, and what it holds now."""
        reads, writes = self._reads, self._writes
        return {
            "bytes_read": reads.nbytes,
            "bytes_written": writes.nbytes,
            "records_read": reads.records,
            "records_written": writes.records,
            "errors": self._errors,
            "device": str(self.device),
            "live_bytes": self.used,
            "exported_slabs": self._slabs.exported,
            "registered_bytes": self._lanes.pins.nbytes,
        }

    def _write(self, header: bytes, record: Record, source: int, ready: Any = None, *, on_device: bool = False) -> int:
        """Write a record whose payload is at an address; on a device, as it is when the event `ready` has come."""
        stored, total = record.stored, len(header) + padded(record.stored)
        if self._closed:
            raise Closed(f"tier {self.name} is closed")
        if self._lost:
            raise StorageError(f"tier {self.name}: {self._lost}")
        if total > self.max_record:
            raise TooLarge(f"a record of {total} bytes; tier {self.name} takes {self.max_record} at most")
        location = self._slabs.alloc(record.namespace if self.ipc else _ANYBODY, total)
        if location < 0:
            raise TierFull(f"no room for {total} bytes in {self.name}")
        start = time.perf_counter()
        try:
            slab, offset = self._range(location, 0, total)
            at = slab.address + offset
            head, body = (at, _native.address_of(header), len(header)), at + len(header)
            with self._lanes.take() as lane:
                lane.after(ready)
                if on_device:
                    lane.copy(body, source, stored)
                lane.write([head] if on_device else [head, (body, source, stored)])
                if body + stored < at + total:
                    lane.zero(body + stored, at + total - body - stored)
                lane.wait()
        except KVStoreError:
            self._fail()
            self.delete(location, total)
            raise
        self._learn(self._writes, total, 1, time.perf_counter() - start)
        return location

    def _fail(self) -> None:
        """Count a failed copy, and see whether more than that copy has failed: all that lay there is lost then."""
        answers = self._answers()
        with self._lock:
            self._errors += 1
            if answers or self._lost:
                return
            self._lost = f"{self.device} answers no more"
        self._told(
            f"tier {self.name}: {self._lost}: what lay there is lost until the next start", lambda location: True
        )

    def _answers(self) -> bool:
        """Whether the device does anything: after some errors a process can use it no more."""
        try:
            with self._lanes.take() as lane:
                lane.wait()
        except KVStoreError:
            return False
        return True

    def _read(self, moves: Sequence[Move], records: int) -> None:
        start = time.perf_counter()
        try:
            with self._lanes.take() as lane:
                lane.read(moves)
                lane.wait()
        except KVStoreError:
            self._fail()
            raise
        nbytes = sum(move[2] for move in moves)
        self._learn(self._reads, nbytes, records, time.perf_counter() - start)

    def _move(self, location: int, offset: int, out: memoryview) -> Move:
        check_read(offset, out)
        nbytes = out.nbytes
        slab, at = self._range(location, offset, nbytes)
        return slab.address + at, _native.address_of(out), nbytes

    def _range(self, location: int, offset: int, nbytes: int) -> tuple[Slab, int]:
        """The slab of a location, and where in it a range of its record begins."""
        found = None if self._closed else self._slabs.at(location)
        if found is None:
            if self._closed:
                raise Closed(f"tier {self.name} is closed")
            raise NotFound(f"tier {self.name} has no slab for location {location:#x}")
        slab, at = found
        if offset < 0 or at + offset + nbytes > slab.nbytes:
            raise Corrupt(f"{location:#x} is shorter than the {offset + nbytes} bytes asked for")
        return slab, at + offset

    def _clear(self, slab: Slab) -> None:
        with self._lanes.take() as lane:
            lane.zero(slab.address, slab.nbytes)
            lane.wait()

    def _learn(self, flow: _Flow, nbytes: int, records: int, seconds: float) -> None:
        with self._lock:
            flow.nbytes += nbytes
            flow.records += records
            if nbytes >= _RATE_BYTES:
                flow.bytes_per_s = 1 / (1 / flow.bytes_per_s + _WEIGHT * (seconds / nbytes - 1 / flow.bytes_per_s))
            elif nbytes <= _LATENCY_BYTES:
                self._latency_s += _WEIGHT * (seconds - self._latency_s)


def _queued(tensor: torch.Tensor) -> Any:
    """What is queued on torch's current stream for a tensor's device until now, to wait for."""
    if tensor.device.type != "cuda":
        return None
    return torch.cuda.current_stream(tensor.device).record_event()


def _device(name: str) -> torch.device:
    """A device that is there. `ConfigError` says what is."""
    if name == "cpu":
        return torch.device("cpu")
    # torch would take the number for 8 bits.
    named = re.fullmatch(r"cuda(?::([0-9]+))?", name)
    if named is None:
        raise ConfigError(f"[hbm] device must be cuda:N or cpu, not {name!r}")
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        raise ConfigError(
            f"[hbm] device {name!r}: no GPU is usable here (torch is built with {built}); leave the hbm tier out"
        )
    number, count = int(named[1] or 0), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(f"[hbm] device {name!r}: this process sees {count} GPUs, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", number)


def _check_free(device: torch.device, capacity: int) -> None:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if capacity > free:
            raise ConfigError(
                f"[hbm] capacity of {capacity} bytes: {device} has {free} of {total} bytes free; lower the capacity, "
                "or stop what uses the device"
            )
