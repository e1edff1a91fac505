"""The Valkey engine against the suite that every engine runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import pytest

from kvstore.bench.redis_server import RedisCluster, RedisServer
from kvstore.tiers.remote import Engine
from kvstore.tiers.remote.valkey import ValkeyEngine

engines = pytest.importorskip("kvstore.testing.engines")


class TestEngine(engines.EngineConformance):  # type: ignore[misc,name-defined]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _place(self, server: RedisServer, prefix: str) -> None:
        self.server, self.urls, self.prefix = server, [server.url()], prefix

    def make_engine(self) -> Engine:
        return self.another()

    def another(self) -> Engine:
        return ValkeyEngine(self.urls, prefix=self.prefix, **self.options)

    def hang(self, engine: Engine) -> AbstractContextManager[None] | None:
        return self._hung()

    @contextmanager
    def _hung(self) -> Iterator[None]:
        self.server.pause()
        try:
            yield
        finally:
            self.server.resume()


class TestEngineWithPieces(TestEngine):
    options: ClassVar[dict[str, Any]] = {"piece_bytes": 64 << 10}


class TestEngineOfACluster(TestEngine):
    options: ClassVar[dict[str, Any]] = {"piece_bytes": 1 << 20}

    @pytest.fixture(autouse=True)
    def _place(self, cluster: RedisCluster, prefix: str) -> None:
        self.server, self.urls, self.prefix = cluster.servers[0], cluster.urls(), prefix
        self.cluster = cluster

    @contextmanager
    def _hung(self) -> Iterator[None]:
        for server in self.cluster.servers:
            server.pause()
        try:
            yield
        finally:
            for server in self.cluster.servers:
                server.resume()
