"""A link of a set speed on this host: TCP connections passed on, as fast as it says and no faster."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

PIECE = 64 << 10
BURST_S = 0.002  # so far may a link catch up on what the scheduler of this machine made it miss


class SlowLink:
    """Passes connections to `address` on to `target` (HOST:PORT), `bytes_per_s` in each direction, all together.

    The speed may be set at any time, for what has not been passed on by then.
    """

    def __init__(self, target: str, bytes_per_s: float) -> None:
        host, _, port = target.rpartition(":")
        self._target, self.bytes_per_s = (host, int(port)), bytes_per_s
        self._lock = threading.Lock()
        self._free_at = {"up": 0.0, "down": 0.0}
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name="slow-link", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections."""
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for each in (near, far):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for way, source, sink in (("up", near, far), ("down", far, near)):
                    threading.Thread(target=self._pass_on, args=(way, source, sink), daemon=True).start()

    def _pass_on(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        memory = memoryview(bytearray(PIECE))
        with contextlib.suppress(OSError):
            while count := source.recv_into(memory):
                self._wait_for_turn(way, count)
                sink.sendall(memory[:count])
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _wait_for_turn(self, way: str, nbytes: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free_at[way] = max(now - BURST_S, self._free_at[way]) + nbytes / self.bytes_per_s
            wait = self._free_at[way] - now
        if wait > 0:
            time.sleep(wait)
