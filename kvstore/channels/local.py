"""The local channel: bytes are read where they lie, in the arena's extents; messages go over a Unix socket."""

from __future__ import annotations

import socket

from kvstore.channels.bulk import BulkBackend
from kvstore.channels.options import Options
from kvstore.channels.stream import Stream
from kvstore.errors import Unavailable


class LocalBackend(BulkBackend):
    """A `Backend` on the server's host."""

    def __init__(self, path: str, options: Options) -> None:
        from kvstore.channels.choose import open_lines

        self._path = path
        super().__init__(open_lines(self._dial, options, f"local:{path}"))

    def _dial(self, deadline: float) -> Stream:
        del deadline
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise Unavailable(f"local:{self._path}: {error.strerror}; is the server running?") from None
        return Stream(sock, 10.0, f"local:{self._path}")
