"""The bulk channel between servers: what another one holds, and its records as they lie there.

Each call has one try within its own time; whoever calls decides what a failure means.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Sequence
from typing import Any

from kvstore import wire
from kvstore.channels.bulk import dial_tcp
from kvstore.channels.lines import Lines, hello_message
from kvstore.channels.stream import BadFrame, Stream
from kvstore.peer_wire import MOST_HEAD_BYTES, NO_ROW, ROW_BYTES
from kvstore.v1 import kvstore_pb2 as pb

_SESSION_BYTES = 16


class PeerLines:
    """Connections to one other server, opened with the token of peers."""

    def __init__(self, host: str, port: int, *, token: str, context: ssl.SSLContext | None, name: str) -> None:
        """Connects when it is first asked. `context` is the TLS to use, None for none."""
        hello = hello_message(secrets.token_bytes(_SESSION_BYTES), token, "", peer=True)
        dial = dial_tcp(host, port, context, name)
        self._lines = Lines(dial, hello, name=name, timeout=1.0, retries=0)

    def find(self, names: Sequence[bytes], timeout_s: float, *, used: bool = False) -> Sequence[bytes]:
        """A packed row (`kvstore.peer_wire`) for each of `MOST_NAMES` packed names at most; zeros: it is not there."""
        request = pb.FindRequest(names=b"".join(names), used=used)
        rows = self.call(pb.METHOD_FIND, request, pb.FindResponse, timeout_s).rows
        if len(rows) != len(names) * ROW_BYTES:
            raise BadFrame(f"{self._lines.name} answered {len(names)} names with {len(rows)} bytes of rows")
        return [rows[at : at + ROW_BYTES] for at in range(0, len(rows), ROW_BYTES)]

    def read_record(
        self, name: bytes, offset: int, out: memoryview, timeout_s: float, *, form: int, total: int
    ) -> None:
        """Fill `out` from a record that was found in this form and length. Not verified here. `NotFound`."""
        request = pb.RecordRequest(name=name, offset=offset, bytes=out.nbytes, form=form, total=total)
        self.receive(pb.METHOD_RECORD, request, out, timeout_s)

    def probe(self, timeout_s: float) -> None:
        """Return if it answers."""
        row = self.find([bytes(72)], timeout_s)[0]
        if row != NO_ROW:
            raise BadFrame(f"{self._lines.name} has a record that nobody can have")

    def call(self, method: int, request: Any, response: Any, timeout_s: float) -> Any:
        """One message and its answer."""
        data = request.SerializeToString()
        answer = self._lines.once(lambda line: self._lines.ask(line, method, data), time.monotonic() + timeout_s)
        return wire.parse(response, answer)

    def send(self, method: int, message: bytes, payload: Sequence[memoryview], timeout_s: float) -> bytes:
        """One encoded message with a payload, and the answer's."""

        def attempt(line: Stream) -> bytes:
            return self._lines.ask(line, method, message, payload)

        return self._lines.once(attempt, time.monotonic() + timeout_s)

    def collect(self, method: int, request: Any, timeout_s: float) -> tuple[bytes, memoryview]:
        """One message; the answer's and its payload, of `MOST_HEAD_BYTES` at most."""
        data = request.SerializeToString()

        def attempt(line: Stream) -> tuple[bytes, memoryview]:
            message = self._lines.exchange(line, method, data)
            if line.unread > MOST_HEAD_BYTES:
                line.in_step = False
                raise BadFrame(f"{self._lines.name} sends {line.unread} bytes of payload, more than was asked for")
            out = memoryview(bytearray(line.unread))
            if out.nbytes:
                line.read_into(out)
            line.in_step = True
            return message, out

        return self._lines.once(attempt, time.monotonic() + timeout_s)

    def receive(self, method: int, request: Any, out: memoryview, timeout_s: float) -> None:
        """One message, and an answer whose payload fills `out`."""
        data = request.SerializeToString()
        self._lines.once(lambda line: self._lines.fill(line, method, data, out), time.monotonic() + timeout_s)

    def close(self) -> None:
        """End every connection; calls under way end with `Closed`."""
        self._lines.close()


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`. `ValueError` for anything else."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host, int(port)
