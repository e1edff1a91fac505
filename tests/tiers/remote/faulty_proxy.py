"""A real HTTP proxy in front of a server, which answers in its place or spoils what it answers."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
_OWN = frozenset({"content-length", "transfer-encoding", "connection"})


@dataclass(frozen=True)
class Spoiled:
    """What happens to requests of some methods, or of all if none is named.

    While `over` is not set nothing is answered. With a `status` the proxy answers itself, with S3's error `code`.
    Otherwise the server does, `delay_s` later: `change` makes another body of its answer's, of which `cut` bytes are
    sent before the connection ends, in order or by a `reset`; with `lost` the server has done what it was asked, and
    nothing is answered at all. `torn` is called when half of a request's body has been passed on.
    """

    methods: tuple[str, ...] = ()
    over: threading.Event | None = None
    status: int = 0
    code: str = ""
    delay_s: float = 0.0
    change: Callable[[bytes], bytes] | None = None
    cut: int | None = None
    reset: bool = False
    lost: bool = False
    torn: Callable[[], object] | None = None


class FaultyProxy:
    """Forwards to a port of this host, while `spoiling` not quite."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.spoiled: Spoiled | None = None
        self.answered = 0  # by the proxy itself
        self._server = _Server((HOST, 0), _Handler)
        self._server.proxy = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @contextmanager
    def spoiling(self, **how: Any) -> Iterator[None]:
        self.spoiled = Spoiled(**how)
        try:
            yield
        finally:
            self.spoiled = None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    proxy: FaultyProxy
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_request(self) -> None:
        how = self.server.proxy.spoiled
        if how is None or (how.methods and self.command not in how.methods):
            how = Spoiled()
        if how.over is not None:
            how.over.wait()
        if how.status:
            self.rfile.read(self._length())
            self.server.proxy.answered += 1
            self._send(how.status, [], _error(how.code) if self.command != "HEAD" else b"", how)
            return
        time.sleep(how.delay_s)
        connection = HTTPConnection(HOST, self.server.proxy.target)
        try:
            answer = self._ask(connection, how)
            body = answer.read()
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OWN]
        finally:
            connection.close()
        if how.change is not None and answer.status < 300:
            body = how.change(body)
        if how.lost:
            self._reset()
        else:
            self._send(answer.status, headers, body, how, length)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _ask(self, connection: HTTPConnection, how: Spoiled) -> HTTPResponse:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        first = self._length() // 2
        connection.send(self.rfile.read(first))
        if how.torn is not None and first:
            how.torn()
        connection.send(self.rfile.read(self._length() - first))
        return connection.getresponse()

    def _send(
        self, status: int, headers: list[tuple[str, str]], body: bytes, how: Spoiled, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if how.cut is None else body[: how.cut])
        if how.cut is not None:
            self.close_connection = True
            if how.reset:
                self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _error(code: str) -> bytes:
    if not code:
        return b"<html><body>This is no S3 server.</body></html>"
    return b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>m</Message></Error>' % code.encode()
