"""A Redis server beside us: SET and GET over TCP, spoken here in plain RESP, received straight into its destination."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kvstore.bench.corpus import Corpus
from kvstore.bench.processes import stop
from kvstore.errors import Unavailable

PROGRAM = "redis-server"
START_S = 10.0


class RedisPeer:
    """One connection."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection, self.pid = connection, pid

    def set(self, slot: int, value: memoryview) -> None:
        """Store a chunk under its number."""
        head = f"*3\r\n$3\r\nSET\r\n{_bulk(slot)}${value.nbytes}\r\n".encode()
        self._connection.sendall(head)
        self._connection.sendall(value)
        self._connection.sendall(b"\r\n")
        answer = self._line(b"")[0]
        if answer != b"+OK":
            raise Unavailable(f"redis refused a chunk: {answer.decode(errors='replace')}")

    def get(self, slot: int, target: memoryview) -> None:
        """Read a chunk into `target`, which has its length."""
        self._connection.sendall(f"*2\r\n$3\r\nGET\r\n{_bulk(slot)}".encode())
        length, early = self._line(b"")
        if length != b"$%d" % target.nbytes:
            raise Unavailable(f"redis does not hold chunk {slot}: {length.decode(errors='replace')}")
        taken = min(len(early), target.nbytes)
        target[:taken] = early[:taken]
        rest, end = target[taken:], early[taken:]
        while rest:
            received = self._connection.recv_into(rest, 0, socket.MSG_WAITALL)
            if not received:
                raise Unavailable("redis closed the connection")
            rest = rest[received:]
        while len(end) < 2:
            end += self._connection.recv(2 - len(end))

    def _line(self, data: bytes) -> tuple[bytes, bytes]:
        """The first line of an answer and what came behind it."""
        while b"\r\n" not in data:
            block = self._connection.recv(64)
            if not block:
                raise Unavailable("redis closed the connection")
            data += block
        line, _, behind = data.partition(b"\r\n")
        return line, behind


@contextmanager
def redis_peer(corpus: Corpus) -> Iterator[RedisPeer | None]:
    """A Redis server of its own that holds the corpus; None where none is installed."""
    program = shutil.which(PROGRAM)
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="kvstore-redis-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", folder, "--maxmemory", "0"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with _connected(process, port) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer = RedisPeer(connection, process.pid)
                for slot, source in enumerate(corpus.sources):
                    peer.set(slot, source.data)
                yield peer
        finally:
            stop(process)


def _connected(process: subprocess.Popen[bytes], port: int) -> socket.socket:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.02)
    raise Unavailable(f"{PROGRAM} did not listen within {START_S:g} s (exit status {process.poll()})")


def _bulk(slot: int) -> str:
    name = f"chunk-{slot}"
    return f"${len(name)}\r\n{name}\r\n"
