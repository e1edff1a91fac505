"""Redis without persistence, its protocol spoken on a plain socket."""

from __future__ import annotations

import shutil
import socket
from typing import Any

from .children import free_port, spawn, wait_for
from .driver import EXISTS, Bytes, Driver, Skip, need
from .loop import main


class Redis(Driver):
    """`redis-server` in a process of its own, asked over a Unix socket or TCP (`options["over"]`)."""

    does = ("get", "put", "exists")

    def open(self) -> None:
        """Start the server and connect."""
        server = shutil.which("redis-server")
        if server is None:
            raise Skip("no redis-server on the PATH (apt-get install redis-server)")
        unix = self.job.options["over"] == "unix"
        port, path = (0, f"{self.job.folder}/redis.sock") if unix else (free_port(), "")
        command = [server, "--save", "", "--appendonly", "no", "--loglevel", "warning", "--bind", "127.0.0.1"]
        command += ["--port", str(port), *(["--unixsocket", path] if unix else []), "--dir", self.job.folder]
        process = spawn(self.stack, command)
        self.pids = [process.pid]
        address: str | tuple[str, int] = path if unix else ("127.0.0.1", port)
        wait_for(process, address)
        self._connection = self._connect(address)
        self.mode = "Unix socket" if unix else "TCP loopback"

    def _connect(self, address: str | tuple[str, int]) -> Any:
        self.note = "no persistence; its protocol on a plain socket, received straight into the caller's memory"
        connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        connection.connect(address)
        if not isinstance(address, str):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stack.enter_context(connection)
        return connection

    def store(self, key: str, data: Bytes) -> None:
        """SET."""
        name = key.encode()
        head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (len(name), name, data.nbytes)
        self._connection.sendall(head)
        self._connection.sendall(data.data)
        self._connection.sendall(b"\r\n")
        need(self._line() == b"+OK", "SET was refused")

    def load(self, key: str, target: Bytes) -> None:
        """GET, received into `target`."""
        self._connection.sendall(b"GET %s\r\n" % key.encode())
        need(self._line() == b"$%d" % target.nbytes, f"GET did not find {key}")
        left = target.data
        while left:
            received = self._connection.recv_into(left, 0, socket.MSG_WAITALL)
            need(received > 0, "redis-server went away")
            left = left[received:]
        need(self._line() == b"", "GET ended with something else than its value")

    def forget(self, key: str) -> None:
        """DEL."""
        self._connection.sendall(b"DEL %s\r\n" % key.encode())
        need(self._line() == b":1", f"DEL did not find {key}")

    def prepare_exists(self) -> None:
        """Write the request."""
        self._question = b"EXISTS " + b" ".join(b"k%d" % i for i in range(EXISTS)) + b"\r\n"

    def exists(self) -> int:
        """One EXISTS of all keys."""
        self._connection.sendall(self._question)
        return int(self._line()[1:])

    def _line(self) -> bytes:
        """One line, without what follows it: a value must be left for `recv_into`."""
        ahead: bytes = self._connection.recv(32, socket.MSG_PEEK)
        end = ahead.find(b"\r\n")
        while end < 0:
            need(0 < len(ahead) < 32, f"no reply of Redis: {ahead!r}")
            ahead = self._connection.recv(32, socket.MSG_PEEK)
            end = ahead.find(b"\r\n")
        self._connection.recv(end + 2, socket.MSG_WAITALL)
        return ahead[:end]


if __name__ == "__main__":
    main(Redis)
