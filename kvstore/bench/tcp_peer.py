"""The other end of a raw stream: the least that moving chunks to another process costs.

Started as `python -m kvstore.bench.tcp_peer BYTES COUNT [CERT KEY]`. Says its port on standard output and answers,
on every connection (over TLS with a certificate) in a thread of its own, each u32 with the content of that chunk,
straight from memory, until it is stopped.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstore.bench.corpus import Corpus, content
from kvstore.bench.processes import child
from kvstore.errors import Unavailable

SLOT = struct.Struct("<I")
HOST = "127.0.0.1"


class RawStream:
    """The asking end."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection, self.pid = connection, pid
        # An SSL socket takes no flags, and gives at most a TLS record at once.
        self._flags = 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_WAITALL

    @property
    def cipher(self) -> str:
        """What the stream is encrypted with, as `TLSv1.3 TLS_AES_256_GCM_SHA384`; empty for plain TCP."""
        return cipher_of(self._connection) if isinstance(self._connection, ssl.SSLSocket) else ""

    def read(self, slot: int, target: memoryview) -> None:
        """Receive a chunk straight into `target`."""
        self._connection.sendall(SLOT.pack(slot))
        while target:
            received = self._connection.recv_into(target, 0, self._flags)
            if not received:
                raise Unavailable("the raw peer went away")
            target = target[received:]


def cipher_of(connection: ssl.SSLSocket) -> str:
    """Protocol and cipher suite of a connection."""
    suite = connection.cipher()
    return f"{connection.version()} {suite[0] if suite else '?'}"


@contextmanager
def raw_peer(corpus: Corpus, tls: tuple[Path, Path] | None = None) -> Iterator[tuple[int, int]]:
    """A process that holds the corpus's chunks: its port and its number. With a certificate and its key over TLS."""
    command = [sys.executable, "-m", "kvstore.bench.tcp_peer", str(corpus.nbytes), str(corpus.count)]
    with child([*command, *(str(each) for each in tls or ())]) as (port, pid):
        yield int(port), pid


@contextmanager
def raw_stream(corpus: Corpus, tls: tuple[Path, Path] | None = None) -> Iterator[RawStream]:
    """A stream from such a process."""
    with raw_peer(corpus, tls) as (port, pid), connected(port) as plain:
        if tls is None:
            yield RawStream(plain, pid)
            return
        with ssl.create_default_context(cafile=str(tls[0])).wrap_socket(plain, server_hostname=HOST) as secure:
            yield RawStream(secure, pid)


def connected(port: int) -> socket.socket:
    """A connection to a peer of this host."""
    connection = socket.create_connection((HOST, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def serve(listener: socket.socket, nbytes: int, count: int, context: ssl.SSLContext | None) -> None:
    """Answer every connection."""
    chunks = np.empty((count, nbytes), np.uint8)
    for seed in range(count):
        chunks[seed] = content(seed, nbytes)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, chunks, context), daemon=True).start()


def _answer(connection: socket.socket, chunks: npt.NDArray[np.uint8], context: ssl.SSLContext | None) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        connection = context.wrap_socket(connection, server_side=True)
    with connection:
        while asked := connection.recv(SLOT.size):  # four bytes in one segment, one TLS record
            left = memoryview(chunks[SLOT.unpack(asked)[0]])
            if context is not None:
                connection.sendall(left)
                continue
            while left:
                left = left[connection.sendmsg([left]) :]


def main() -> None:
    """Listen on a port of the kernel's choice."""
    nbytes, count, *tls = sys.argv[1:]
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    with socket.create_server((HOST, 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(listener, int(nbytes), int(count), context)


if __name__ == "__main__":
    main()
