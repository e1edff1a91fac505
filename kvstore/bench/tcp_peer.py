"""The other end of a raw stream: the least that moving chunks to another process costs.

Started as `python -m kvstore.bench.tcp_peer BYTES COUNT [CERT KEY]`. Says its port on standard output, takes one
connection (over TLS with a certificate), and answers each u32 on it with the content of that chunk, straight from
memory, until the connection ends.
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

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
def raw_stream(corpus: Corpus, tls: tuple[Path, Path] | None = None) -> Iterator[RawStream]:
    """A stream from a process that holds the corpus's chunks, over TLS with a certificate and its key."""
    command = [sys.executable, "-m", "kvstore.bench.tcp_peer", str(corpus.nbytes), str(corpus.count)]
    command += [str(each) for each in tls or ()]
    with child(command) as (port, pid), socket.create_connection((HOST, int(port))) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            yield RawStream(plain, pid)
            return
        with ssl.create_default_context(cafile=str(tls[0])).wrap_socket(plain, server_hostname=HOST) as secure:
            yield RawStream(secure, pid)


def serve(listener: socket.socket, nbytes: int, count: int, context: ssl.SSLContext | None) -> None:
    """Answer one connection."""
    chunks = np.empty((count, nbytes), np.uint8)
    for seed in range(count):
        chunks[seed] = content(seed, nbytes)
    connection, _ = listener.accept()
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
