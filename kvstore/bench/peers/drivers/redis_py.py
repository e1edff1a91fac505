"""Redis through the client that Python programs use, `redis[hiredis]`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from .driver import EXISTS, Bytes, need
from .loop import main
from .redis import Redis

READ_SIZE = 1 << 20


class RedisPy(Redis):
    """`redis-server` through that client."""

    def _connect(self, address: str | tuple[str, int]) -> Any:
        client = import_module("redis")
        connection = import_module("redis.connection")
        encode = connection.Encoder("utf-8", "strict", False).encode
        # hiredis packs values of this size an eighth as fast as the packer in Python.
        pool = client.ConnectionPool(
            connection_class=client.UnixDomainSocketConnection, path=address, socket_read_size=READ_SIZE,
            command_packer=connection.PythonRespSerializer(6000, encode),
        )  # fmt: skip
        self.note = "no persistence; redis-py with hiredis reading and Python packing, the faster way for each"
        self._names = [f"k{i}" for i in range(EXISTS)]
        return client.Redis(connection_pool=pool)

    def store(self, key: str, data: Bytes) -> None:
        """SET."""
        need(bool(self._connection.set(key, data.data)), "SET was refused")

    def load(self, key: str, target: Bytes) -> None:
        """GET, and a copy of the bytes that the client made."""
        np.copyto(target, np.frombuffer(self._connection.get(key), np.uint8))

    def forget(self, key: str) -> None:
        """DEL."""
        need(self._connection.delete(key) == 1, f"DEL did not find {key}")

    def prepare_exists(self) -> None:
        """Nothing: the client writes its requests itself."""

    def exists(self) -> int:
        """One EXISTS of all keys."""
        found: int = self._connection.exists(*self._names)
        return found


if __name__ == "__main__":
    main(RedisPy)
