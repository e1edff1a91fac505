"""Hosts that share by a directory: server processes, a real Redis, on loopback or in network namespaces."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.bench.fleet import Fleet
from kvstore.bench.network import Network
from kvstore.bench.redis_server import PROGRAM, RedisCluster
from kvstore.client import Client
from kvstore.errors import KVStoreError, NotFound, Unavailable
from kvstore.keys import Chain, ChunkRef

KiB, MiB = 1 << 10, 1 << 20
SPEC = kvstore.KVSpec.dense("shared", layers=4, kv_heads=2, head_dim=64, chunk_tokens=64)  # 128 KiB a chunk


class Kit:
    """What tests import from here: fixtures cannot be imported under importlib."""

    spec, chunk_bytes = SPEC, 132 * KiB

    @staticmethod
    def prompt(seed: int = 0, chunks: int = 8) -> Chain:
        tokens = np.random.default_rng(seed).integers(0, 50_000, chunks * SPEC.chunk_tokens)
        return Chain.of(tokens, SPEC.chunk_tokens)

    @staticmethod
    def content(ref: ChunkRef) -> Any:
        """A function of the key, so that nothing mixed up goes unseen."""
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(ref.key[:8], "little")))
        flat = generator.bytes(SPEC.part_bytes(SPEC.part(), ref.tokens))
        return np.frombuffer(flat, np.uint16).reshape(SPEC.part_shape(SPEC.part(), ref.tokens))

    @classmethod
    def fill(cls, client: Client, chain: Chain) -> None:
        for ref in chain.refs:
            client.put(SPEC, ref, cls.content(ref))

    @classmethod
    def check(cls, client: Client, chain: Chain) -> None:
        for ref in chain.refs:
            assert np.array_equal(client.get(SPEC, ref), cls.content(ref)), ref

    @classmethod
    def read(cls, client: Client, chain: Chain) -> int:
        """Tokens that are a hit and are read, every byte compared; what is lost on the way is a miss."""
        tokens = 0
        with client.lookup(SPEC, chain, lease_s=30) as hit:
            for ref in hit.refs:
                try:
                    got = client.get(SPEC, ref)
                except NotFound:
                    break
                assert np.array_equal(got, cls.content(ref)), ref
                tokens += ref.tokens
        return tokens

    @staticmethod
    def until(true: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.02)

    @classmethod
    def published(cls, *clients: Client) -> None:
        """Wait until the directory knows what these hosts hold."""
        for client in clients:
            cls.until(lambda client=client: client.stats()["gauges"]["unpublished"] == 0)

    @staticmethod
    def peers(client: Client) -> Any:
        return client.stats()["tiers"]["peers"]


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Starts hosts; `dram` of 16 MiB each unless told."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"no {PROGRAM}")
    made: list[Fleet] = []

    def start(hosts: int = 2, dram: int = 16 * MiB, **options: Any) -> Fleet:
        options.setdefault("more", ["lookup_wait_s = 2.0"])  # a busy machine must not turn a hit into a miss
        made.append(Fleet(tmp_path / f"fleet-{len(made)}", hosts, dram, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def network() -> Iterator[Callable[..., Network]]:
    """Makes networks of hosts, where this machine lets us."""
    made: list[Network] = []

    def make(hosts: int) -> Network:
        try:
            made.append(Network(hosts))
        except (Unavailable, OSError, KVStoreError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"no {PROGRAM}")
    made = RedisCluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()
