"""RESP2, the protocol of Valkey and Redis, on a connection that the client library has opened.

The library connects, negotiates TLS and authenticates. Its own reading makes a `bytes` of every value by way of
another buffer, which costs more than the transfer; here a value is received straight into the memory it is meant for,
and requests are sent from where they lie.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from kvstore.errors import Corrupt, DeadlineExceeded, Unavailable

CRLF = b"\r\n"
_BUFFER_BYTES = 64 << 10
_LINE_BYTES = 32  # enough for the line before a value, so that little of the value comes with it
_MOST_BUFFERS = 512  # of one sendmsg; the system takes 1024
_TIMEVAL = struct.Struct("@ll")


class Refusal(NamedTuple):
    """An error that the server answered with: its first word and the whole of it."""

    code: str
    text: str


Answer: TypeAlias = "bytes | int | Refusal | list[Answer] | None"
Words: TypeAlias = Sequence[bytes | memoryview]


def command(*words: bytes | memoryview) -> list[bytes | memoryview]:
    """A request as it is sent: short words joined, long ones as they are."""
    out: list[bytes | memoryview] = []
    head = bytearray(b"*%d\r\n" % len(words))
    for word in words:
        head += b"$%d\r\n" % len(word)
        if isinstance(word, memoryview):
            out += [bytes(head), word]
            head = bytearray(CRLF)
        else:
            head += word + CRLF
    return [*out, bytes(head)]


def gathered(words: Words, pieces: Sequence[memoryview], rest: Words) -> list[bytes | memoryview]:
    """A request of which one word consists of `pieces`."""
    nbytes = sum(piece.nbytes for piece in pieces)
    head = b"*%d\r\n" % (len(words) + 1 + len(rest)) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)
    tail = b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in rest)
    return [head + b"$%d\r\n" % nbytes, *pieces, CRLF + tail]


class Wire:
    """One connection, for one thread at a time. `owed` answers are still to come.

    Raises `DeadlineExceeded` and `Unavailable`; either leaves a connection that can only be closed.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._sock: socket.socket = connection._sock  # what every parser of the library takes as well
        self._tls = isinstance(self._sock, ssl.SSLSocket)
        if not self._tls:
            # A blocking socket with times of its own needs one system call where Python's timeouts need two.
            self._sock.settimeout(None)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._deadline = 0.0
        self._patient = {socket.SO_RCVTIMEO: 0.0, socket.SO_SNDTIMEO: 0.0}  # seconds that the socket waits at a time
        self.owed = 0
        self.asking = False

    def begin(self, deadline: float, *, asking: bool = False) -> None:
        """The next exchange must end by `deadline` (monotonic); `asking` prefixes each request with ASKING."""
        self._deadline, self.asking = deadline, asking

    def send(self, *requests: Sequence[bytes | memoryview]) -> None:
        """Send requests, each as `command` made it."""
        buffers: list[bytes | memoryview] = []
        for request in requests:
            if self.asking:
                buffers += command(b"ASKING")
            buffers += request
        self.owed += len(requests)
        try:
            if self._tls:
                self._send_each(buffers)
            else:
                self._send_all(buffers)
        except TimeoutError:
            raise DeadlineExceeded("the server did not take a request in time") from None
        except OSError as error:
            raise Unavailable(f"the connection was lost while a request was sent ({error})") from error

    def answer(self, out: memoryview | None = None) -> Answer:
        """The next answer. A value goes into `out` if that is given, and the answer is how long it is."""
        if self.asking:
            self._one(None)
        found = self._one(out)
        self.owed -= 1
        return found

    def close(self) -> None:
        """Give the connection up."""
        self._connection.disconnect()

    def _one(self, out: memoryview | None) -> Answer:
        line = self._line(_BUFFER_BYTES if out is None else _LINE_BYTES)
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return self._bulk(int(rest), out)
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"-":
            text = rest.decode(errors="replace")
            return Refusal(text.partition(" ")[0], text)
        if kind == b"*":
            count = int(rest)
            return None if count < 0 else [self._one(None) for _ in range(count)]
        raise Unavailable(f"what answers is no server of Valkey's or Redis's kind: {line[:40]!r}")

    def _bulk(self, length: int, out: memoryview | None) -> Answer:
        if length < 0:
            return None
        if out is None:
            data = memoryview(bytearray(length))
            self._take(data)
            self._skip_end(_BUFFER_BYTES)
            return bytes(data)
        if length > len(out):
            raise Corrupt(f"the server sent {length} bytes where {len(out)} were asked for")
        self._take(out[:length])
        self._skip_end(_LINE_BYTES)
        return length

    def _take(self, out: memoryview) -> None:
        """Fill `out` with what comes next."""
        early = min(self._end - self._start, len(out))
        out[:early] = self._view[self._start : self._start + early]
        self._start += early
        rest = out[early:]
        while rest:
            rest = rest[self._receive(rest, 0 if self._tls else socket.MSG_WAITALL) :]

    def _skip_end(self, most: int) -> None:
        while self._end - self._start < 2:
            self._fill(most)
        self._start += 2

    def _line(self, most: int) -> bytes:
        while (end := self._buffer.find(CRLF, self._start, self._end)) < 0:
            self._fill(most)
        line = bytes(self._view[self._start : end])
        self._start = end + 2
        return line

    def _fill(self, most: int) -> None:
        """Receive up to so many bytes behind those that are in the buffer."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
            if left == len(self._buffer):
                raise Unavailable("the server sent a line without an end")
        self._end += self._receive(self._view[self._end : self._end + most], 0)

    def _receive(self, into: memoryview, flags: int) -> int:
        while True:
            self._patience(socket.SO_RCVTIMEO)
            try:
                received = self._sock.recv_into(into, len(into), flags)
                break
            except BlockingIOError:
                continue  # the socket's time is over, maybe not yet ours
            except TimeoutError:
                raise DeadlineExceeded("the server did not answer in time") from None
            except OSError as error:
                raise Unavailable(f"the connection was lost while an answer was awaited ({error})") from error
        if not received:
            raise Unavailable("the server closed the connection")
        return received

    def _send_all(self, buffers: list[bytes | memoryview]) -> None:
        while buffers:
            self._patience(socket.SO_SNDTIMEO)
            try:
                sent = self._sock.sendmsg(buffers[:_MOST_BUFFERS])
            except BlockingIOError:
                continue  # the socket's time is over, maybe not yet ours
            done = 0
            while done < len(buffers) and sent >= len(buffers[done]):
                sent -= len(buffers[done])
                done += 1
            buffers = buffers[done:]
            if sent:
                buffers[0] = memoryview(buffers[0])[sent:]

    def _send_each(self, buffers: Sequence[bytes | memoryview]) -> None:
        short = bytearray()
        for buffer in buffers:
            if len(buffer) < _BUFFER_BYTES:
                short += buffer
                continue
            for piece in (short, buffer):
                self._patience(0)
                self._sock.sendall(piece)
            short = bytearray()
        self._patience(0)
        self._sock.sendall(short)

    def _patience(self, option: int) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time of an exchange with the server is over")
        if self._tls:
            self._sock.settimeout(left)
        elif not left / 2 <= self._patient[option] <= left:
            # Shorter than what is left, so that the next exchanges need not set it again.
            seconds, part = divmod(left * 0.75, 1.0)
            self._sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(seconds), int(part * 1e6) or 1))
            self._patient[option] = left * 0.75
