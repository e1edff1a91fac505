"""A mock of a bad network: a TCP proxy that hangs, or cuts its connections after so many bytes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"


class CuttingProxy:
    """Forwards to a port of this host.

    While `hang` lasts, connections are accepted and nothing is forwarded; `holds` says whether anything came since.
    `cut_requests` and `cut_answers` are how many more bytes go that way before every connection that carries some is
    reset; None: no limit.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._flows = threading.Event()
        self._flows.set()
        self._ended = False
        self.cut_requests: int | None = None
        self.cut_answers: int | None = None
        self.holds = False
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def hang(self) -> Iterator[None]:
        self.holds = False
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def close(self) -> None:
        self._ended = True
        self._flows.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            _reset(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, self._target))
            except OSError:
                _reset(client)
                continue
            self._open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, "cut_requests"), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, "cut_answers"), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, limit: str) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self._flows.is_set():
                    self.holds = True
                self._flows.wait()
                left: int | None = getattr(self, limit)
                if left is not None:
                    data = data[:left]
                    setattr(self, limit, left - len(data))
                target.sendall(data)
                if left is not None and left <= len(data):
                    break
            else:
                target.shutdown(socket.SHUT_WR)
                return
        _reset(source)
        _reset(target)


def _reset(connection: socket.socket) -> None:
    """Close at once, whatever is still unsent."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
