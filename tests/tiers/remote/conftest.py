"""Real servers for the remote tier's tests: one `redis-server` for a whole run, a cluster of three, and single ones; of
S3 moto's, and a Ceph cluster where it is asked for (`-m ceph`)."""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.bench.ceph_server import ceph_server
from kvstore.bench.redis_server import PROGRAM, RedisCluster, RedisServer
from kvstore.bench.s3_server import S3Server, moto_server
from kvstore.tiers.remote import RemoteTier
from kvstore.tiers.remote.valkey import ValkeyEngine

MIB = 1 << 20
TierMaker = Callable[..., RemoteTier]
_prefixes = (f"test-{number}/" for number in itertools.count())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests share, each with a prefix of its own."""
    _need_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters that tests share."""
    _need_redis()
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session", params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def s3_server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """An S3 server that tests share, each with a bucket of its own."""
    if request.param == "ceph":
        with ceph_server() as server:
            yield server
        return
    pytest.importorskip("moto.server")
    with moto_server() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A fresh one."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(name)
    return name


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts servers that a test may harm."""
    _need_redis()
    started: list[RedisServer] = []

    def start(*flags: str, **options: Any) -> RedisServer:
        started.append(RedisServer(tmp_path / f"redis-{len(started)}", *flags, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def prefix() -> str:
    """What the keys of a test begin with."""
    return next(_prefixes)


@pytest.fixture
def open_tier(prefix: str) -> Iterator[TierMaker]:
    """Opens remote tiers over engines, or over a server's URL, and closes what the test left open."""
    opened: list[RemoteTier] = []

    def opening(place: Any, **options: Any) -> RemoteTier:
        engine = ValkeyEngine(place, prefix=prefix) if isinstance(place, str) else place
        opened.append(RemoteTier(engine, **{"capacity": 64 * MIB, **options}))
        return opened[-1]

    yield opening
    for tier in opened:
        tier.close()


def _need_redis() -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"no {PROGRAM}")
