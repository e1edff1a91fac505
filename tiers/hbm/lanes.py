"""Lanes: what copies between host memory and a tier's memory run on.

A lane is a stream and two halves of a pinned buffer. A call takes one and gives it back, so that there are as many as
calls at a time; none waits for what another lane or the engine computes, and copies in and out overlap.

Memory is given by its address: of a slab, of a caller's buffer, of a tensor. Whoever queues a copy keeps both sides
alive until it is done.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from typing import Any, TypeAlias

import torch

from kvstore import _native
from kvstore.errors import KVStoreError
from kvstore.tiers.hbm.driver import Context
from kvstore.tiers.hbm.pinning import Pins, pins_of

Move: TypeAlias = tuple[int, int, int]  # address in the tier's memory, address in host memory, bytes
BOUNCE_BYTES = 2 << 20  # of a half: copying one takes longer than what is said about it


class Lane:
    """Copies of one call, done in the order in which they were queued. `with lane:` around all use of it.

    This is the lane of the tier's CPU twin, where a copy is done when it is queued; `CudaLane` is that of a GPU.
    """

    def __init__(self, home: Lanes, bounce: torch.Tensor) -> None:
        self._home, self._bounce = home, bounce
        self._room = bounce.nbytes // 2
        self._halves = (bounce.data_ptr(), bounce.data_ptr() + self._room)
        self._lent = False  # whether copies out of the pinned buffer are queued

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            # Memory that copies still work on must not be given back by whoever sees the error.
            with suppress(KVStoreError):
                self.wait()
        self._home.give_back(self)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Queue one copy between two addresses that both sides reach."""
        copy_host(to, source, nbytes)

    def zero(self, at: int, nbytes: int) -> None:
        """Queue zeros for the tier's memory."""
        ctypes.memset(at, 0, nbytes)

    def wait(self) -> None:
        """Return when all that was queued is done."""
        self._lent = False

    def after(self, event: Any) -> None:
        """Let what is queued from now on wait for an event of another stream (None: for nothing)."""

    def current(self) -> AbstractContextManager[Any]:
        """Makes the lane's stream torch's current one in this thread."""
        return nullcontext()

    def write(self, moves: Sequence[Move]) -> None:
        """Queue copies from host memory, which may change when `wait` has returned."""
        loads = self._bounced(moves, writing=False)
        for number, load in enumerate(loads):
            if number > 1:
                self._reached(number % 2)
            at = self._halves[number % 2]
            for to, source, nbytes in load:
                copy_host(at, source, nbytes)
                self.copy(to, at, nbytes)
                at += nbytes
            if number + 2 < len(loads):
                self._mark(number % 2)
        self._lent = self._lent or bool(loads)

    def read(self, moves: Sequence[Move]) -> None:
        """Copy to host memory; done when this returns."""
        loads = self._bounced(moves, writing=True)
        before: list[Move] = []
        half = 0
        for load in loads:
            at = self._halves[half]
            for source, _, nbytes in load:
                self.copy(at, source, nbytes)
                at += nbytes
            self._mark(half)
            half = 1 - half
            self._drain(half, before)
            before = load
        if loads:
            self._drain(1 - half, before)
        self.wait()

    def reaches(self, address: int, nbytes: int, *, writing: bool) -> bool:
        """Whether host memory can be copied from (`writing`: to) without the pinned buffer."""
        del address, nbytes, writing
        return True

    def _bounced(self, moves: Sequence[Move], *, writing: bool) -> Sequence[list[Move]]:
        """Queue the moves that need no pinned buffer; of the others, what goes through a half of it at a time."""
        bounced = []
        for move in moves:
            inside, outside, nbytes = move
            if not self.reaches(outside, nbytes, writing=writing):
                bounced.append(move)
            elif writing:
                self.copy(outside, inside, nbytes)
            else:
                self.copy(inside, outside, nbytes)
        if not bounced:
            return ()
        if self._lent:
            self.wait()
        return list(_loads(bounced, self._room))

    def _drain(self, half: int, load: Sequence[Move]) -> None:
        """Copy what has come into a half of the pinned buffer to where it belongs."""
        if load:
            self._reached(half)
        at = self._halves[half]
        for _, to, nbytes in load:
            copy_host(to, at, nbytes)
            at += nbytes

    def _mark(self, half: int) -> None:
        """Remember what was queued until now, of which a half of the pinned buffer is a part."""

    def _reached(self, half: int) -> None:
        """Return when what was queued until a half's mark is done."""


class CudaLane(Lane):
    """A lane on a GPU."""

    def __init__(self, home: Lanes, device: torch.device, context: Context, pins: Pins) -> None:
        with torch.cuda.device(device):
            super().__init__(home, torch.empty(2 * BOUNCE_BYTES, dtype=torch.uint8, pin_memory=True))
        self._context, self._pins = context, pins
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._handle = int(self.stream.cuda_stream)
        self._marks = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]

    def __enter__(self) -> Lane:
        self._context.__enter__()
        return self

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
        self._lent = False

    def after(self, event: Any) -> None:
        if event is not None:
            self.stream.wait_event(event)

    def current(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream)

    def reaches(self, address: int, nbytes: int, *, writing: bool) -> bool:
        return self._pins.covers(address, nbytes, writing=writing)

    def _mark(self, half: int) -> None:
        self._marks[half].record(self.stream)

    def _reached(self, half: int) -> None:
        self._marks[half].synchronize()


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
            return Lane(self, torch.empty(2 * BOUNCE_BYTES, dtype=torch.uint8))
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


def _loads(moves: Sequence[Move], room: int) -> Iterator[list[Move]]:
    """The moves, cut where they are too long, in groups of at most `room` bytes."""
    load: list[Move] = []
    left = room
    for inside, outside, nbytes in moves:
        done = 0
        while done < nbytes:
            part = min(left, nbytes - done)
            load.append((inside + done, outside + done, part))
            done, left = done + part, left - part
            if not left:
                yield load
                load, left = [], room
    if load:
        yield load
