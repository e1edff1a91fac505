"""Lanes: what copies between host memory and a tier's memory run on.

A lane is a stream. A call takes one and gives it back, so that there are as many as calls at a time; none waits for
what another lane or the engine computes, and copies in and out overlap.

Memory is given by its address: of a slab, of a caller's buffer, of a tensor. Whoever queues a copy keeps both sides
alive until it is done.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from typing import Any, TypeAlias

import torch

from kvstore import _native
from kvstore.errors import KVStoreError
from kvstore.tiers.hbm.driver import Context
from kvstore.tiers.hbm.pinning import Pins, pins_of

Move: TypeAlias = tuple[int, int, int]  # address in the tier's memory, address in host memory, bytes


class Lane:
    """Copies of one call, done in the order in which they were queued. `with lane:` around all use of it.

    This is the lane of the tier's CPU twin, where a copy is done when it is queued; `CudaLane` is that of a GPU.
    """

    def __init__(self, home: Lanes) -> None:
        self._home = home
        self._kept = False

    def __enter__(self) -> Lane:
        self._kept = False
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            # Memory that copies still work on must not be given back by whoever sees the error.
            with suppress(KVStoreError):
                self.wait()
        if error is not None or not self._kept:
            self._home.give_back(self)

    def keep(self) -> None:
        """Hold on to the lane at the end of this `with`, for another one, in any thread."""
        self._kept = True

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Queue one copy between two addresses that both sides reach."""
        copy_host(to, source, nbytes)

    def zero(self, at: int, nbytes: int) -> None:
        """Queue zeros for the tier's memory."""
        ctypes.memset(at, 0, nbytes)

    def wait(self) -> None:
        """Return when all that was queued is done."""

    def mark(self) -> Any:
        """An event that comes when all that was queued until now is done; for another lane's `after`."""

    def after(self, event: Any) -> None:
        """Let what is queued from now on wait for an event of another stream (None: for nothing)."""

    def current(self) -> AbstractContextManager[Any]:
        """Makes the lane's stream torch's current one in this thread."""
        return nullcontext()

    def write(self, moves: Sequence[Move]) -> None:
        """Queue copies from host memory, which may change when `wait` has returned."""
        for to, source, nbytes in moves:
            self.copy(to, source, nbytes)

    def read(self, moves: Sequence[Move]) -> None:
        """Queue copies to host memory. Where that is not registered, this may return only when they are done."""
        for source, to, nbytes in moves:
            self.copy(to, source, nbytes)


class CudaLane(Lane):
    """A lane on a GPU. Host memory may be of any kind: the driver knows how to copy what is not registered."""

    def __init__(self, home: Lanes, device: torch.device, context: Context, pins: Pins) -> None:
        super().__init__(home)
        self._context, self._pins = context, pins
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._handle = int(self.stream.cuda_stream)

    def __enter__(self) -> Lane:
        self._context.__enter__()
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._context.__exit__()

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self._context.copy(to, source, nbytes, self._handle)

    def zero(self, at: int, nbytes: int) -> None:
        self._context.zero(at, nbytes, self._handle)

    def wait(self) -> None:
        self._context.wait(self._handle)

    def mark(self) -> Any:
        return self.stream.record_event()

    def after(self, event: Any) -> None:
        if event is not None:
            self.stream.wait_event(event)

    def current(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream)

    def write(self, moves: Sequence[Move]) -> None:
        super().write(self._cut(moves, writing=False))

    def read(self, moves: Sequence[Move]) -> None:
        super().read(self._cut(moves, writing=True))

    def _cut(self, moves: Sequence[Move], *, writing: bool) -> Sequence[Move]:
        """The moves, none of which crosses the edge of what is registered: the driver refuses a copy that does."""
        if all(self._pins.covers(outside, nbytes, writing=writing) for _, outside, nbytes in moves):
            return moves
        return [
            (inside + at, outside + at, length)
            for inside, outside, nbytes in moves
            for at, length in self._pins.pieces(outside, nbytes, writing=writing)
        ]


class Lanes:
    """The lanes of a device, made when they are needed and kept."""

    def __init__(self, device: torch.device) -> None:
        """`device` is `cpu`, or `cuda` with its number."""
        self.device = device
        self.pins = pins_of(device)
        self.context = Context(device.index) if device.type == "cuda" else None
        self._free: deque[Lane] = deque()

    def take(self) -> Lane:
        """A lane that nobody else uses; it comes back at the end of its `with`."""
        try:
            return self._free.pop()
        except IndexError:
            return self.make()

    def make(self) -> Lane:
        """One more."""
        if self.context is None:
            return Lane(self)
        return CudaLane(self, self.device, self.context, self.pins)

    def give_back(self, lane: Lane) -> None:
        """Nobody uses a lane any more."""
        self._free.append(lane)


def copy_host(to: int, source: int, nbytes: int) -> None:
    """Copy between two places of host memory, without the GIL."""
    array = _array(nbytes)
    _native.copy(array.from_address(to), array.from_address(source))


@lru_cache(256)
def _array(nbytes: int) -> Any:
    """ctypes makes a class for each length, which takes longer than to copy a page."""
    return ctypes.c_ubyte * nbytes
