"""A connected socket as frames: the messages of the service with a head before them, payload behind them.

    head (32 bytes, little-endian)
        u64  xxh3-64 of the message
        u32  bytes of the message
        u16  method
        u16  flags
        u64  bytes of payload
        u64  xxh3-64 of the 24 bytes before
    message (protobuf, of `Method`'s kind; a `Failure` where the flag FAILED is set)
    payload (as many bytes as the head says; checked by the xxh3-128 of its layer groups, which the message carries)

So no bit that the network flips changes what is asked or answered. The head has a checksum of its own because it says
how much more to wait for. Plain TCP, TLS and Unix sockets alike; over a Unix socket a frame can carry descriptors. A
stream belongs to one thread at a time. Whatever goes wrong raises an error of ours.
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

from kvstore import _native
from kvstore.errors import DeadlineExceeded, InvalidArgument, Unavailable

T = TypeVar("T")
HEAD = struct.Struct("<QIHHQQ")
ONE_WAY, FAILED, MORE = 1, 2, 4
PROTOCOL = 1
MAX_MESSAGE = 4 << 20
MAX_PAYLOAD = 1 << 40
MAX_DESCRIPTORS = 16
_HEAD_SUM = struct.Struct("<Q")
_SUMMED = HEAD.size - _HEAD_SUM.size
_BUFFER = 16 << 10
_SKIP_BYTES = 256 << 10
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
_TIMEVAL = struct.Struct("ll")
_OVERSHOOT_S = 0.05  # by how much a wait may end late: less would cost two system calls before most waits
_Buffer = bytes | memoryview


class BadFrame(InvalidArgument):
    """The other side does not keep to the protocol."""


class DamagedFrame(Unavailable):
    """What came is no frame, or somebody has changed it on its way. On another connection it may go well."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What came: `payload` bytes follow it on the stream and must be read before the next frame."""

    method: int
    flags: int
    message: bytes
    payload: int


def encode(method: int, message: bytes = b"", flags: int = 0, payload: int = 0) -> bytes:
    """Head and message of a frame that `payload` bytes follow."""
    head = HEAD.pack(_native.xxh3_64(message), len(message), method, flags, payload, 0)[:_SUMMED]
    return head + _HEAD_SUM.pack(_native.xxh3_64(head)) + message


class Stream:
    """Frames over one socket.

    `deadline` (on the clock of `time.monotonic`; None: `patience` seconds for every single wait) bounds all waiting.
    `in_step` is true while no answer is outstanding: whoever asks clears it, whoever has read the answer sets it.
    `asked` is the method of the last frame sent. `unread` bytes of payload are still to come before the next frame.
    `broken` tells that the connection has failed and is of no more use. `instance` is the life of the
    server that it leads to.
    """

    def __init__(self, sock: socket.socket, patience: float, name: str = "the other side") -> None:
        self.deadline: float | None = None
        self.patience = patience
        self.in_step = True
        self.broken = False
        self.asked = 0
        self.unread = 0
        self.instance = b""
        self._sock = sock
        self._name = name
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._unix = sock.family == socket.AF_UNIX
        self._wait_all = 0 if self._tls else socket.MSG_WAITALL  # which OpenSSL does not have
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
        if self._tls:
            for piece in pieces:
                self._send_all(piece)
            return
        ancillary = []
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
        sent = self._within(self._sock.sendmsg, pieces, ancillary)
        for piece in pieces:
            if sent < len(piece):
                self._send_all(memoryview(piece)[sent:])
            sent = max(0, sent - len(piece))

    def receive(self, *, idle: bool = False, longest: int = MAX_MESSAGE) -> Frame | None:
        """The next frame; None where the other side has ended the stream. With `idle` wait for it without limit.

        `longest` bounds its message, in bytes.
        """
        while self._end - self._start < HEAD.size:
            if not self._fill(idle and self._end == self._start):
                if self._end == self._start:
                    return None
                raise self._cut_off()
        summed = self._memory[self._start : self._start + _SUMMED]
        message_sum, length, method, flags, payload, head_sum = HEAD.unpack_from(self._memory, self._start)
        if head_sum != _native.xxh3_64(summed):
            raise self._damaged("sent something that is no frame")
        if length > longest or payload > MAX_PAYLOAD:
            self.broken = True
            raise BadFrame(f"a frame of {length} + {payload} bytes is more than may come: {longest} + {MAX_PAYLOAD}")
        self._start += HEAD.size
        message = self._message(length)
        if _native.xxh3_64(message) != message_sum:
            raise self._damaged("sent a message that was damaged on its way")
        self.unread = payload
        return Frame(method, flags, message, payload)

    def read_into(self, out: memoryview) -> None:
        """Read exactly as many bytes of the payload as `out` has."""
        if len(out) > self.unread:
            raise BadFrame(f"{self.unread} bytes of payload are left, not {len(out)}")
        self._read_exactly(out)
        self.unread -= len(out)

    def skip(self) -> None:
        """Read what is left of the payload and forget it."""
        scratch = memoryview(bytearray(min(self.unread, _SKIP_BYTES)))
        while self.unread:
            self.read_into(scratch[: min(self.unread, len(scratch))])

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

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def shut(self) -> None:
        """End the stream from another thread: whoever waits on it wakes up."""
        shut(self._sock)

    def close(self) -> None:
        """Close the socket and the descriptors that nobody has taken."""
        self.drop_descriptors()
        self._sock.close()

    def peer_uid(self) -> int | None:
        """The user on the other end of a Unix socket; None over a network."""
        if not self._unix:
            return None
        _, uid, _ = struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(uid)

    def _message(self, length: int) -> bytes:
        if self._end - self._start >= length:
            self._start += length
            return bytes(self._memory[self._start - length : self._start])
        whole = bytearray(length)
        self._read_exactly(memoryview(whole))
        return bytes(whole)

    def _read_exactly(self, out: memoryview) -> None:
        have = min(len(out), self._end - self._start)
        if have:
            out[:have] = self._memory[self._start : self._start + have]
            self._start += have
        while have < len(out):
            read = self._read(out[have:], self._wait_all)
            if not read:
                raise self._cut_off()
            have += read

    def _fill(self, idle: bool) -> int:
        """Read more into the buffer."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start > _BUFFER - HEAD.size:  # what is there is less than a head: move it to the front
            left = self._end - self._start
            self._memory[:left] = bytes(self._memory[self._start : self._end])
            self._start, self._end = 0, left
        read = self._read(self._memory[self._end :], idle=idle)
        self._end += read
        return read

    def _read(self, out: memoryview, flags: int = 0, *, idle: bool = False) -> int:
        """Read some bytes; 0 at the end of the stream."""
        act = self._read_with_descriptors if self._unix else self._sock.recv_into
        return self._within(act, out, 0, flags, idle=idle)

    def _read_with_descriptors(self, out: memoryview, nbytes: int, flags: int) -> int:
        del nbytes
        flags |= socket.MSG_CMSG_CLOEXEC
        read, ancillary, _, _ = self._sock.recvmsg_into((out,), _DESCRIPTOR_SPACE, flags)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
        if len(self._descriptors) > MAX_DESCRIPTORS:
            self.broken = True
            raise BadFrame(f"more than {MAX_DESCRIPTORS} descriptors were sent without a message that takes them")
        return read

    def _send_all(self, piece: _Buffer) -> None:
        left = memoryview(piece)
        while left:
            left = left[self._within(self._sock.send, left) :]

    def _within(self, act: Callable[..., T], *args: Any, idle: bool = False) -> T:
        """One call of the socket, its failure as an error of ours, and no waiting past the deadline."""
        while True:
            self._set_limit()
            try:
                return act(*args)
            except (BlockingIOError, TimeoutError):  # the limit of one wait, which may be less than what is left
                if idle and self.deadline is None:
                    continue
                if self.deadline is not None and time.monotonic() < self.deadline:
                    self._armed = 0.0
                    continue
                raise self._late() from None
            except OSError as error:
                raise self._broken(_reason(error)) from None

    def _set_limit(self) -> None:
        """Have the kernel end the next wait when the time is over: cheaper than a poll before each call."""
        if self.deadline is None:
            if self._armed != self.patience:
                self._arm(self.patience)
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        if not 0 < self._armed < left + _OVERSHOOT_S:
            self._arm(left)

    def _arm(self, seconds: float) -> None:
        try:
            if self._tls:  # OpenSSL takes the kernel's limit for a reason to try again, and never comes back
                self._sock.settimeout(max(seconds, 0.001))
            else:
                whole, part = divmod(max(seconds, 0.001), 1.0)
                value = _TIMEVAL.pack(int(whole), int(part * 1e6))
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        except OSError as error:
            raise self._broken(_reason(error)) from None
        self._armed = seconds

    def _late(self) -> DeadlineExceeded:
        self.broken = True
        return DeadlineExceeded(f"{self._name} did not finish in time")

    def _cut_off(self) -> Unavailable:
        return self._broken("the connection ended in the middle of a frame")

    def _damaged(self, what: str) -> DamagedFrame:
        self.broken = True
        return DamagedFrame(f"{self._name} {what}")

    def _broken(self, what: str) -> Unavailable:
        self.broken = True
        return Unavailable(f"{self._name}: {what}")


def shut(sock: socket.socket) -> None:
    """End a connection that another thread may be using, which wakes up.

    Not by `SSLSocket.shutdown`: that turns the socket into a plain one under whoever reads from it.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out within a minute that a TCP peer's host is gone, also where nobody waits for it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
