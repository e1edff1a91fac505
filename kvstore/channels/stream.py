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
import select
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Literal

from kvstore import _native
from kvstore.channels.tls_frames import TlsFrames
from kvstore.errors import DeadlineExceeded, InvalidArgument, KVStoreError, Unavailable

Frame = _native.Frame
HEAD = struct.Struct("<QIHHQQ")
ONE_WAY, FAILED, MORE = 1, 2, 4
PROTOCOL = 1
MAX_MESSAGE = 4 << 20
MAX_PAYLOAD = _native.MAX_PAYLOAD
MAX_DESCRIPTORS = _native.MAX_DESCRIPTORS
_SKIP_BYTES = 256 << 10
_Buffer = bytes | memoryview


class BadFrame(InvalidArgument):
    """The other side does not keep to the protocol."""


class DamagedFrame(Unavailable):
    """What came is no frame, or somebody has changed it on its way. On another connection it may go well."""


def encode(method: int, message: bytes = b"", flags: int = 0, payload: int = 0) -> bytes:
    """Head and message of a frame that `payload` bytes follow."""
    return _native.encode_frame(method, message, flags, payload)


class Stream:
    """Frames over one socket.

    `deadline` (on the clock of `time.monotonic`; None: `patience` seconds for every single wait) bounds all waiting.
    `in_step` is true while no answer is outstanding: whoever asks clears it, whoever has read the answer sets it.
    `asked` is the method of the last frame sent. `unread` bytes of payload are still to come before the next frame,
    and nothing else may be read before them. `broken` tells that the connection has failed and is of no more use.
    `instance` is the life of the server that it leads to.
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
        self._unix = sock.family == socket.AF_UNIX
        sock.setblocking(True)
        self._frames: _native.FrameSocket | TlsFrames = (
            TlsFrames(sock) if isinstance(sock, ssl.SSLSocket) else _native.FrameSocket(sock.fileno(), self._unix)
        )

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
        try:
            told = self._frames.send(method, message, flags, payload, descriptors, self.deadline, self.patience)
        except OSError as error:
            raise self._failed(error) from None
        if told:
            raise self._problem(told)

    def send_raw(self, pieces: Sequence[_Buffer], descriptors: Sequence[int] = ()) -> None:
        """Send encoded frames, or parts of them, in one go."""
        try:
            told = self._frames.send_raw(pieces, descriptors, self.deadline, self.patience)
        except OSError as error:
            raise self._failed(error) from None
        if told:
            raise self._problem(told)

    def exchange(self, method: int, message: bytes, ahead: bytes = b"") -> Frame | None:
        """Send a frame, behind encoded ones that are `ahead` of it, and receive the next: `send` and `receive` in one.

        `sent` tells where it failed.
        """
        self.asked = method
        try:
            found = self._frames.exchange(method, message, ahead, self.deadline, self.patience, MAX_MESSAGE)
        except OSError as error:
            raise self._failed(error) from None
        return self._taken(found, MAX_MESSAGE)

    @property
    def sent(self) -> bool:
        """Whether the last `exchange` came as far as waiting for the answer."""
        return self._frames.sent

    def receive(self, *, idle: bool = False, longest: int = MAX_MESSAGE) -> Frame | None:
        """The next frame; None where the other side has ended the stream. With `idle` wait for it without limit.

        `longest` bounds its message, in bytes.
        """
        try:
            found = self._frames.receive(self.deadline, self.patience, idle, longest)
        except OSError as error:
            raise self._failed(error) from None
        return self._taken(found, longest)

    def fill(self, method: int, message: bytes, out: memoryview) -> Literal[True] | Frame | None:
        """`exchange` for an answer whose payload fills `out` (contiguous bytes): True where it has.

        What is not announced with just as many bytes is not read: its frame is given, as `exchange` does.
        """
        self.asked = method
        try:
            found = self._frames.fill(method, message, out, self.deadline, self.patience, MAX_MESSAGE)
        except OSError as error:
            raise self._failed(error) from None
        return True if found == _native.FRAME_SENT else self._taken(found, MAX_MESSAGE)

    def fetch(
        self, method: int, message: bytes, part: _native.RawPart, item: bytes, out: memoryview
    ) -> list[int] | Frame | None:
        """`exchange` for a get of one whole raw part, whose payload goes to `out` while it is checked.

        Gives the numbers of the layer groups that came damaged. What is not announced as just that part of `item`
        (packed, `kvstore.places`) is not read: its frame is given, as `exchange` does.
        """
        self.asked = method
        try:
            found = self._frames.fetch(method, message, part, item, out, self.deadline, self.patience, MAX_MESSAGE)
        except OSError as error:
            raise self._failed(error) from None
        return found if isinstance(found, list) else self._taken(found, MAX_MESSAGE)

    def next_question(self, puts: _native.StagedPuts | None, gets: _native.PartSource | None) -> Frame | None:
        """`receive` with `idle`. What `puts` and `gets` can answer natively is answered meanwhile."""
        if isinstance(self._frames, TlsFrames) or (puts is None and gets is None):
            return self.receive(idle=True)
        try:
            found = self._frames.serve(puts, gets, self.patience, MAX_MESSAGE)
        except OSError as error:
            raise self._failed(error) from None
        return self._taken(found, MAX_MESSAGE)

    def read_into(self, out: memoryview) -> None:
        """Read exactly as many bytes of the payload as `out` has."""
        if len(out) > self.unread:
            raise BadFrame(f"{self.unread} bytes of payload are left, not {len(out)}")
        try:
            told = self._frames.read(out, self.deadline, self.patience)
        except OSError as error:
            raise self._failed(error) from None
        if told:
            raise self._problem(told)
        self.unread -= len(out)

    def skip(self) -> None:
        """Read what is left of the payload and forget it."""
        if not self.unread:
            return
        scratch = memoryview(bytearray(min(self.unread, _SKIP_BYTES)))
        while self.unread:
            self.read_into(scratch[: min(self.unread, len(scratch))])

    def take_descriptor(self) -> int:
        """The next descriptor that came; the caller closes it. `BadFrame` if there is none."""
        found = self._frames.take_descriptor()
        if found < 0:
            raise BadFrame("this message carries no descriptor")
        return found

    def drop_untaken(self) -> None:
        """Close the descriptors of the frames that came, unless there is more that they may belong to."""
        if not self._frames.held:
            self._frames.drop_descriptors()

    def drop_descriptors(self) -> None:
        """Close the descriptors that came and that nobody has taken."""
        self._frames.drop_descriptors()

    def wait_for_end(self) -> None:
        """Return when the other side ends the stream or says anything more."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLHUP)
        poll.poll()

    def ended(self) -> bool:
        """Whether the other side has closed the connection, by now."""
        return _native.peer_has_ended(self._sock.fileno())

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def shut(self) -> None:
        """End the stream from another thread: whoever waits on it wakes up."""
        shut(self._sock)

    def close(self) -> None:
        """Close the socket and the descriptors that nobody has taken."""
        self._frames.drop_descriptors()
        self._frames.forget()
        self._sock.close()

    def peer_uid(self) -> int | None:
        """The user on the other end of a Unix socket; None over a network."""
        if not self._unix:
            return None
        _, uid, _ = struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(uid)

    def _taken(self, found: Frame | int, longest: int) -> Frame | None:
        if not isinstance(found, int):
            self.unread = found.payload
            return found
        if found == _native.FRAME_ENDED:
            return None
        raise self._problem(found, longest)

    def _problem(self, told: int, longest: int = 0) -> KVStoreError:
        """The error that an outcome stands for."""
        self.broken = True
        if told == _native.FRAME_LATE:
            return DeadlineExceeded(f"{self._name} did not finish in time")
        if told == _native.FRAME_TOO_LARGE:
            length, payload = self._frames.announced
            return BadFrame(f"a frame of {length} + {payload} bytes is more than may come: {longest} + {MAX_PAYLOAD}")
        if told == _native.FRAME_TOO_MANY_DESCRIPTORS:
            return BadFrame(f"more than {MAX_DESCRIPTORS} descriptors were sent without a message that takes them")
        if told == _native.FRAME_NONE:
            return DamagedFrame(f"{self._name} sent something that is no frame")
        if told == _native.FRAME_DAMAGED:
            return DamagedFrame(f"{self._name} sent a message that was damaged on its way")
        return Unavailable(f"{self._name}: the connection ended in the middle of a frame")

    def _failed(self, error: OSError) -> Unavailable:
        self.broken = True
        return Unavailable(f"{self._name}: {error.strerror or error}")


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
