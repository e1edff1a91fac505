"""A connected socket as frames: the messages of the service with a length prefix, payload behind them.

    frame = head (16 bytes, little-endian: u32 bytes of the message, u16 method, u16 flags, u64 bytes of payload)
            message (protobuf, of `Method`'s kind; a `Failure` where the flag FAILED is set)
            payload (as many bytes as the head says)

Plain TCP, TLS and Unix sockets alike; over a Unix socket a frame can carry descriptors. A stream belongs to one
thread at a time. Whatever goes wrong raises an error of ours, after which the stream is of no more use.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kvstore.errors import DeadlineExceeded, InvalidArgument, Unavailable

T = TypeVar("T")
HEAD = struct.Struct("<IHHQ")
ONE_WAY, FAILED, MORE = 1, 2, 4
PROTOCOL = 1
MAX_MESSAGE = 4 << 20
MAX_PAYLOAD = 1 << 40
MAX_DESCRIPTORS = 16
_BUFFER = 16 << 10
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
_TIMEVAL = struct.Struct("ll")
_Buffer = bytes | memoryview


class BadFrame(InvalidArgument):
    """The other side does not speak this protocol, or somebody has changed its bytes."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What came: `payload` bytes follow it on the stream and must be read before the next frame."""

    method: int
    flags: int
    message: bytes
    payload: int


def encode(method: int, message: bytes, flags: int = 0, payload: int = 0) -> bytes:
    """Head and message of a frame that `payload` bytes follow."""
    return HEAD.pack(len(message), method, flags, payload) + message


class Stream:
    """Frames over one socket.

    `deadline` (on the clock of `time.monotonic`; None: `patience` seconds for every single wait) bounds all waiting.
    `in_step` is true while no answer is outstanding: whoever asks clears it, whoever has read the answer sets it.
    `broken` tells that the connection has failed. `asked` is the method of the last frame sent, `instance` the life
    of the server that it leads to.
    """

    def __init__(self, sock: socket.socket, patience: float, name: str = "the other side") -> None:
        self.deadline: float | None = None
        self.in_step = True
        self.broken = False
        self.asked = 0
        self.instance = b""
        self._sock = sock
        self._name = name
        self.patience = patience
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._unix = sock.family == socket.AF_UNIX
        self._memory = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0
        self._descriptors: list[int] = []
        self._armed = 0.0
        sock.setblocking(True)
        self._arm(patience)

    def send(
        self,
        method: int,
        message: bytes = b"",
        *,
        flags: int = 0,
        payload: Sequence[memoryview] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        """Send one frame."""
        self.asked = method
        first = encode(method, message, flags, sum(map(len, payload)))
        self.send_raw([first, *payload], descriptors)

    def send_raw(self, pieces: Sequence[_Buffer], descriptors: Sequence[int] = ()) -> None:
        """Send encoded frames, or parts of them, in one go."""
        ancillary = []
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
        if self._tls:
            for piece in pieces:
                self._send_tls(memoryview(piece))
            return
        sent = self._within(self._sock.sendmsg, pieces, ancillary)
        if sent < sum(len(each) for each in pieces):
            self._send_rest(pieces, sent)

    def receive(self, *, idle: bool = False) -> Frame | None:
        """The next frame; None where the other side has ended the stream. With `idle` wait for it without limit."""
        while self._end - self._start < HEAD.size:
            if not self._fill(idle and self._end == self._start):
                if self._end == self._start:
                    return None
                raise self._broken("the connection ended in the middle of a frame")
        length, method, flags, payload = HEAD.unpack_from(self._memory, self._start)
        if length > MAX_MESSAGE or payload > MAX_PAYLOAD:
            raise BadFrame(
                f"a frame of {length} + {payload} bytes is more than this protocol has: {MAX_MESSAGE} + {MAX_PAYLOAD}"
            )
        self._start += HEAD.size
        if self._end - self._start >= length:
            message = bytes(self._memory[self._start : self._start + length])
            self._start += length
        else:
            whole = bytearray(length)
            self.read_into(memoryview(whole))
            message = bytes(whole)
        return Frame(method, flags, message, payload)

    def read_into(self, out: memoryview) -> None:
        """Read exactly as many bytes as `out` has."""
        have = min(len(out), self._end - self._start)
        out[:have] = self._memory[self._start : self._start + have]
        self._start += have
        while have < len(out):
            read = self._read(out[have:])
            if not read:
                raise self._broken("the connection ended in the middle of its payload")
            have += read

    def skip(self, nbytes: int) -> None:
        """Read so many bytes and forget them."""
        scratch = memoryview(bytearray(min(nbytes, 1 << 20)))
        while nbytes:
            piece = scratch[: min(nbytes, len(scratch))]
            self.read_into(piece)
            nbytes -= len(piece)

    def take_descriptor(self) -> int:
        """The next descriptor that came; the caller closes it. `BadFrame` if there is none."""
        if not self._descriptors:
            raise BadFrame("this message carries no descriptor")
        return self._descriptors.pop(0)

    def drop_untaken(self) -> None:
        """Close the descriptors of the frames that came, unless there is more that they may belong to."""
        if self._start == self._end:
            self.drop_descriptors()

    def drop_descriptors(self) -> None:
        """Close the descriptors that came and that nobody has taken."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def wait_for_end(self) -> None:
        """Return when the other side ends the stream or says anything more."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLHUP)
        poll.poll()

    def ended(self) -> bool:
        """Whether the other side has closed the connection, by now."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def shut(self) -> None:
        """End the stream from another thread: whoever waits on it wakes up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and the descriptors that nobody has taken."""
        self.drop_descriptors()
        self._sock.close()

    def peer_uid(self) -> int:
        """The user on the other end of a Unix socket."""
        _, uid, _ = struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(uid)

    def _fill(self, idle: bool) -> int:
        """Read more into the buffer."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end > _BUFFER - HEAD.size:  # what is there is less than a head: move it to the front
            left = self._end - self._start
            self._memory[:left] = bytes(self._memory[self._start : self._end])
            self._start, self._end = 0, left
        read = self._read(self._memory[self._end :], idle)
        self._end += read
        return read

    def _read(self, out: memoryview, idle: bool = False) -> int:
        while True:
            try:
                return self._within(self._read_once, out)
            except DeadlineExceeded:
                if not idle:
                    raise

    def _read_once(self, out: memoryview) -> int:
        if not self._unix:
            return self._sock.recv_into(out)
        read, ancillary, _, _ = self._sock.recvmsg_into((out,), _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
        if len(self._descriptors) > MAX_DESCRIPTORS:
            raise BadFrame(f"more than {MAX_DESCRIPTORS} descriptors were sent without a message that takes them")
        return read

    def _send_tls(self, left: memoryview) -> None:
        while left:
            left = left[self._within(self._sock.send, left) :]

    def _send_rest(self, pieces: Sequence[_Buffer], sent: int) -> None:
        for piece in pieces:
            left = memoryview(piece)[min(sent, len(piece)) :]
            sent = max(0, sent - len(piece))
            while left:
                left = left[self._within(self._sock.send, left) :]

    def _within(self, act: Callable[..., T], *args: Any) -> T:
        """One call of the socket, its failure as an error of ours, and no waiting past the deadline."""
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"{self._name} did not finish in time")
            if left < 0.8 * self._armed or left > 1.25 * self._armed:
                self._arm(left)
        elif self._armed != self.patience:
            self._arm(self.patience)
        try:
            return act(*args)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, TimeoutError):
            self.broken = self.broken or self.deadline is not None
            raise DeadlineExceeded(f"{self._name} did not finish in time") from None
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None

    def _arm(self, seconds: float) -> None:
        """Have the kernel end every wait after so long: cheaper than a poll before each call."""
        whole, part = divmod(max(seconds, 0.001), 1.0)
        value = _TIMEVAL.pack(int(whole), int(part * 1e6))
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None
        self._armed = seconds

    def _broken(self, what: str) -> Unavailable:
        self.broken = True
        return Unavailable(f"{self._name}: {what}")
