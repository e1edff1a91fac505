"""Leases that are over, told to the server one way and on the way of other calls."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence

from kvstore.channels.lines import Lines
from kvstore.channels.stream import ONE_WAY, encode
from kvstore.errors import Unavailable
from kvstore.v1 import kvstore_pb2 as pb

RELEASE_AT = 16


class Releases:
    """What one client has to release and has not told yet. Any thread may call."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._ended: deque[bytes] = deque()

    def add(self, lease: bytes) -> None:
        """A lease is over, and the server hears of it with the next call."""
        self._ended.append(lease)

    def over(self) -> bytes:
        """What tells the server, ahead of a call, which leases are over."""
        released = self._drain() if self._ended else ()
        return _frame(released) if released else b""

    def send(self, leases: Sequence[bytes]) -> None:
        """Tell the server that leases are over. One that is gone has ended them already."""
        frame = _frame([*leases, *self._drain()])
        with contextlib.suppress(Unavailable):
            self._lines.run(lambda line: line.send_raw([frame]))

    def send_if_many(self) -> None:
        """Tell the server now, where no call has for long."""
        if len(self._ended) >= RELEASE_AT:
            self.send(())

    def _drain(self) -> list[bytes]:
        found = []
        while self._ended:
            try:
                found.append(self._ended.popleft())
            except IndexError:  # another thread took it
                break
        return found


def _frame(leases: Sequence[bytes]) -> bytes:
    return encode(pb.METHOD_RELEASE, pb.ReleaseRequest(leases=b"".join(leases)).SerializeToString(), ONE_WAY)
