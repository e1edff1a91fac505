"""The other end of a raw TCP stream: the least that moving chunks to another process costs.

Started as `python -m kvstore.bench.tcp_peer BYTES COUNT`. Says its port on standard output, takes one connection,
and answers each u32 on it with the content of that chunk, straight from memory, until the connection ends.
"""

from __future__ import annotations

import socket
import struct
import sys

import numpy as np

from kvstore.bench.corpus import content

SLOT = struct.Struct("<I")


def serve(listener: socket.socket, nbytes: int, count: int) -> None:
    """Answer one connection."""
    chunks = np.empty((count, nbytes), np.uint8)
    for seed in range(count):
        chunks[seed] = content(seed, nbytes)
    connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while asked := connection.recv(SLOT.size, socket.MSG_WAITALL):
            left = memoryview(chunks[SLOT.unpack(asked)[0]])
            while left:
                left = left[connection.sendmsg([left]) :]


def main() -> None:
    """Listen on a port of the kernel's choice."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(listener, int(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
