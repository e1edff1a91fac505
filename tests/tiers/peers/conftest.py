"""Directories in a real Redis."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.bench.redis_server import PROGRAM, RedisServer
from kvstore.tiers.peers import Directory

_groups = (f"group-{number}" for number in itertools.count())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that tests share, each with a group of its own."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"no {PROGRAM}")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts servers that a test may harm."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"no {PROGRAM}")
    started: list[RedisServer] = []

    def start(*flags: str, **options: Any) -> RedisServer:
        started.append(RedisServer(tmp_path / f"redis-{len(started)}", *flags, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def open_directory(server: RedisServer) -> Iterator[Callable[..., Directory]]:
    """Opens directories of one new group, and closes them."""
    opened: list[Directory] = []
    group = next(_groups)

    def opening(url: str = "", **options: Any) -> Directory:
        opened.append(Directory(url or server.url(), **{"group": group, "lease_s": 1.0, **options}))
        return opened[-1]

    yield opening
    for directory in opened:
        directory.close()
