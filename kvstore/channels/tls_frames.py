"""Frames over TLS: what `kvstore._native.FrameSocket` does over plain sockets, through OpenSSL."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from kvstore import _native
from kvstore._native import Frame

T = TypeVar("T")
_RECORD_BYTES = 16 << 10  # the most that one TLS record holds, and one read gives

_HASHED_BYTES = 512 << 10  # what is read before it is hashed: it stays in the cache until then


class _Late(Exception):
    """The time is over."""


class TlsFrames:
    """See `kvstore._native.FrameSocket` for what each method does."""

    sent = False

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._buffer = _native.FrameBuffer()
        self._scratch = memoryview(bytearray(_RECORD_BYTES))
        self._armed = 0.0

    def send(
        self,
        method: int,
        message: bytes,
        flags: int,
        payload: Sequence[memoryview],
        descriptors: Sequence[int],
        deadline: float | None,
        patience: float,
    ) -> int:
        first = _native.encode_frame(method, message, flags, sum(map(len, payload)))
        return self.send_raw([first, *payload], descriptors, deadline, patience)

    def send_raw(
        self, pieces: Sequence[bytes | memoryview], descriptors: Sequence[int], deadline: float | None, patience: float
    ) -> int:
        del descriptors  # only Unix sockets carry them
        try:
            for piece in _writes(pieces):
                left = memoryview(piece)
                while left:
                    left = left[self._within(deadline, patience, False, self._sock.send, left) :]
        except _Late:
            return _native.FRAME_LATE
        return _native.FRAME_SENT

    def exchange(
        self, method: int, message: bytes, ahead: bytes, deadline: float | None, patience: float, longest: int
    ) -> Frame | int:
        self.sent = False
        told = self.send_raw([ahead + _native.encode_frame(method, message, 0, 0)], (), deadline, patience)
        if told:
            return told
        self.sent = True
        return self.receive(deadline, patience, False, longest)

    def fill(
        self, method: int, message: bytes, out: memoryview, deadline: float | None, patience: float, longest: int
    ) -> Frame | int:
        found = self.exchange(method, message, b"", deadline, patience, longest)
        if isinstance(found, int) or found.method != method or found.flags or found.payload != len(out):
            return found
        return self.read(out, deadline, patience)

    def fetch(
        self,
        method: int,
        message: bytes,
        part: _native.RawPart,
        item: bytes,
        out: memoryview,
        deadline: float | None,
        patience: float,
        longest: int,
    ) -> list[int] | Frame | int:
        found = self.exchange(method, message, b"", deadline, patience, longest)
        if isinstance(found, int) or found.method != method or found.flags or found.payload != part.nbytes:
            return found
        digests = part.digests(found.message, item)
        if digests is None:
            return found
        arrival = _native.Arrival(part, digests)
        for start in range(0, len(out), _HASHED_BYTES):
            piece = out[start : start + _HASHED_BYTES]
            told = self.read(piece, deadline, patience)
            if told:
                return told
            arrival.take(piece)
        return arrival.damaged

    def receive(self, deadline: float | None, patience: float, idle: bool, longest: int) -> Frame | int:
        while (found := self._buffer.next(longest)) == _native.FRAME_PARTIAL:
            between = not self._buffer.held
            try:
                room = self._scratch[: self._buffer.room]
                read = self._within(deadline, patience, idle and between, self._sock.recv_into, room)
            except _Late:
                return _native.FRAME_LATE
            if not read:
                return _native.FRAME_ENDED if between else _native.FRAME_CUT_OFF
            self._buffer.feed(room[:read])
        return found

    def read(self, out: memoryview, deadline: float | None, patience: float) -> int:
        left = out[self._buffer.take(out) :]
        receive: Callable[[int, memoryview], int] = self._sock.read  # type: ignore[assignment]
        now = time.monotonic
        while left:
            try:
                self._set_limit(deadline, patience)
                # As long as the socket's own limit is no more than what is left, and a little.
                good_until = (
                    math.inf if deadline is None else deadline + min(_native.FRAME_OVERSHOOT_S - self._armed, 0)
                )
                while left and (deadline is None or now() < good_until):  # a record at a time: all of this counts
                    read = receive(len(left), left)
                    if not read:
                        return _native.FRAME_CUT_OFF
                    left = left[read:]
            except (BlockingIOError, TimeoutError):
                if deadline is None or now() >= deadline:
                    return _native.FRAME_LATE
                self._armed = 0.0
            except _Late:
                return _native.FRAME_LATE
        return _native.FRAME_SENT

    def take_descriptor(self) -> int:
        return -1

    def drop_descriptors(self) -> None:
        """There are none."""

    def forget(self) -> None:
        """The socket itself knows that it is closed."""

    @property
    def held(self) -> int:
        return self._buffer.held

    @property
    def announced(self) -> tuple[int, int]:
        return self._buffer.announced

    def _within(self, deadline: float | None, patience: float, idle: bool, act: Callable[..., T], *args: Any) -> T:
        """One call of the socket, again where its time was cut short."""
        while True:
            self._set_limit(deadline, patience)
            try:
                return act(*args)
            except (BlockingIOError, TimeoutError):
                if not (idle if deadline is None else time.monotonic() < deadline):
                    raise _Late from None
                self._armed = 0.0

    def _set_limit(self, deadline: float | None, patience: float) -> None:
        """Bound the next wait by Python's own timeouts: OpenSSL takes the kernel's for a reason to try again."""
        left = patience
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Late
            if 0 < self._armed < left + _native.FRAME_OVERSHOOT_S:
                return
        if self._armed != left:
            self._sock.settimeout(max(left, 0.001))
            self._armed = left


def _writes(pieces: Sequence[bytes | memoryview]) -> Iterator[bytes | bytearray | memoryview]:
    """The same bytes, small pieces together with the beginning of what follows.

    Every write makes a record of its own and wakes the other side.
    """
    pending = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            if not pending and len(view) >= _RECORD_BYTES:
                yield view
                break
            taken = _RECORD_BYTES - len(pending)
            pending += view[:taken]
            view = view[taken:]
            if len(pending) == _RECORD_BYTES:
                yield pending
                pending = bytearray()
    if pending:
        yield pending
