"""The remote tier over a real server, alone and in a cluster, against the suite of every engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import valkey

from kvstore.bench.redis_server import RedisCluster, RedisServer
from kvstore.testing.remote import RemoteConformance
from kvstore.tiers.base import Tier
from kvstore.tiers.remote import Engine
from kvstore.tiers.remote.valkey import ValkeyEngine
from kvstore.tiers.remote.valkey.wire import Wire

if TYPE_CHECKING:
    from kvstore.testing.faults import Fault

MIB = 1 << 20


class ValkeyConformance(RemoteConformance):
    """Over `urls`, under keys that begin with `prefix`."""

    engine_options: ClassVar[dict[str, Any]] = {}
    urls: Sequence[str]
    prefix: str

    def open_engine(self) -> Engine:
        return ValkeyEngine(self.urls, prefix=self.prefix, **self.engine_options)

    def place(self) -> str | None:
        return " ".join([self.prefix, *self.urls])

    def go_to(self, place: str) -> None:
        self.prefix, *self.urls = place.split()


class TestValkey(ValkeyConformance):
    tier_options: ClassVar = {"deadline_s": 2.0}

    @pytest.fixture(autouse=True)
    def _place(self, server: RedisServer, prefix: str) -> None:
        self.server, self.urls, self.prefix = server, [server.url()], prefix

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        """Real ones, but for those of the wire: they strike where answers are received."""
        injected: AbstractContextManager[None] = getattr(self, f"_{fault.name.lower()}")()
        return injected

    @contextmanager
    def _short_read(self) -> Iterator[None]:
        """Values are cut off in the server."""
        client = self._client()
        kept = {key: client.get(key) for key in client.keys(f"{self.prefix}*")}
        for key, value in kept.items():
            client.set(key, value[: len(value) // 2])
        try:
            yield
        finally:
            for key, value in kept.items():
                client.set(key, value)
            client.close()

    @contextmanager
    def _read_error(self) -> Iterator[None]:
        """Something else lies under each key, which the server refuses to read as a value."""
        client = self._client()
        keys = client.keys(f"{self.prefix}*")
        for key in keys:
            client.rename(key, b"aside-" + key)
            client.rpush(key, b"no value")
        try:
            yield
        finally:
            for key in keys:
                client.rename(b"aside-" + key, key)
            client.close()

    @contextmanager
    def _configured(self, name: str, value: str, after: str) -> Iterator[None]:
        self.server.ask("CONFIG", "SET", name, value)
        try:
            yield
        finally:
            self.server.ask("CONFIG", "SET", name, after)

    def _write_error(self) -> AbstractContextManager[None]:
        return self._configured("min-replicas-to-write", "1", "0")

    def _no_space(self) -> AbstractContextManager[None]:
        return self._configured("maxmemory", "1", "0")

    @contextmanager
    def _hung(self) -> Iterator[None]:
        self.server.pause()
        try:
            yield
        finally:
            self.server.resume()

    @contextmanager
    def _slow(self) -> Iterator[None]:
        send = Wire.send

        def late(wire: Wire, *requests: Any) -> None:
            time.sleep(0.02)
            send(wire, *requests)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Wire, "send", late)
            yield

    @contextmanager
    def _bit_flip(self) -> Iterator[None]:
        take, turn, lock = Wire._take, 0, threading.Lock()

        def flipped(wire: Wire, out: memoryview) -> None:
            nonlocal turn
            take(wire, out)
            with lock:
                turn += 1
                at = turn * 7919 % (8 * len(out) or 1)
            if out:
                out[at // 8] ^= 1 << at % 8

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Wire, "_take", flipped)
            yield

    @contextmanager
    def _torn_write(self) -> Iterator[None]:
        """Half of what a process sends arrives before it is killed."""

        def tear(wire: Wire, buffers: list[Any]) -> None:
            data = b"".join(buffers)
            wire._sock.sendall(data[: len(data) // 2])
            if len(data) > 1000:
                os.kill(os.getpid(), signal.SIGKILL)
            wire._sock.sendall(data[len(data) // 2 :])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Wire, "_send_all", tear)
            yield

    def _client(self) -> Any:
        return valkey.Valkey(port=self.server.port)


class TestSplitIntoPieces(TestValkey):
    engine_options: ClassVar = {"piece_bytes": 64 << 10}


class TestHedged(TestValkey):
    tier_options: ClassVar = {"deadline_s": 2.0, "hedge": True}


class TestCluster(ValkeyConformance):
    engine_options: ClassVar = {"piece_bytes": 256 << 10}

    @pytest.fixture(autouse=True)
    def _place(self, cluster: RedisCluster, prefix: str) -> None:
        self.urls, self.prefix = cluster.urls(), prefix
