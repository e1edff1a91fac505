"""One line of configuration for each tier: servers of their own processes over DRAM, CXL, NVMe and a real Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.bench.redis_server import RedisServer
from kvstore.keys import Chain, ChunkRef

MiB = 1 << 20
SPEC = kvstore.KVSpec.dense("spanning", layers=8, kv_heads=4, head_dim=64, chunk_tokens=128)  # 1 MiB a chunk
CHUNKS = 90


def prompt(seed: int = 0, chunks: int = CHUNKS) -> Chain:
    return Chain.of(np.random.default_rng(seed).integers(0, 50_000, chunks * SPEC.chunk_tokens), SPEC.chunk_tokens)


def content(ref: ChunkRef) -> Any:
    flat = np.random.Generator(np.random.SFC64(int.from_bytes(ref.key[:8], "little"))).bytes(MiB)
    return np.frombuffer(flat, np.uint16).reshape(SPEC.part_shape(SPEC.part(), ref.tokens))


@dataclass
class Host:
    """A server process."""

    process: subprocess.Popen[str]
    address: str

    def client(self) -> kvstore.Client:
        return kvstore.connect(self.address)

    def tiers(self) -> Any:
        told = subprocess.run(
            [sys.executable, "-m", "kvstore", "tiers", "--json", "--url", self.address],
            capture_output=True, text=True, check=True, env=environment(),
        )  # fmt: skip
        return json.loads(told.stdout)["tiers"]

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}


def host(*flags: object) -> Host:
    command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0", *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    return Host(process, str(json.loads(process.stdout.readline())["address"]))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", "--maxmemory", "400mb")
    yield server
    server.stop()


@pytest.fixture
def spanning(tmp_path: Path) -> list[object]:
    """Flags of a store over everything: 16 MiB of DRAM, 24 of CXL on two stand-ins of devices, 48 of NVMe."""
    devices = []
    for number in range(2):
        path = Path("/dev/shm") / f"kvstore-test-{os.getpid()}-{number}"
        with path.open("wb") as file:
            file.truncate(16 * MiB)
        devices.append(path)
    yield [
        "--dram", "16MiB", "--dram-extent", "16MiB", "--cxl-paths", os.pathsep.join(map(str, devices)),
        "--cxl-capacity", "24MiB", "--nvme", tmp_path / "nvme", "--nvme-capacity", "48MiB", "--nvme-segment", "4MiB",
        "--nvme-reserve", "0",
    ]  # fmt: skip
    for path in devices:
        path.unlink()


def fill(client: kvstore.Client, refs: list[ChunkRef]) -> None:
    for ref in refs:
        client.put(SPEC, ref, content(ref))


def check(client: kvstore.Client, refs: list[ChunkRef]) -> None:
    for ref in refs:
        assert np.array_equal(client.get(SPEC, ref), content(ref)), ref


def until(true: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_a_store_that_spans_them_all_and_a_host_beside_it(redis: RedisServer, spanning: list[object]) -> None:
    chain, one = prompt(), host(*spanning, "--remote", redis.url())
    try:
        with closing(one.client()) as client:
            fill(client, list(chain.refs))
            until(lambda: client.stats()["gauges"]["through"] == 0)
            assert client.lookup(SPEC, chain).tokens == len(chain.ids)
            check(client, list(chain.refs))
        tiers = one.tiers()
        assert list(tiers) == ["dram", "cxl", "nvme", "remote"]
        assert {each["state"] for each in tiers.values()} == {"ok"}
        assert all(each["used"] > 0 for each in tiers.values()), tiers
        assert tiers["cxl"]["written"] > 0
        assert tiers["nvme"]["written"] > 0
        assert sum(each["hits"] for each in tiers.values()) >= CHUNKS
        assert all(each["used"] <= each["capacity"] for each in tiers.values())
        two = host("--dram", "32MiB", "--dram-extent", "32MiB", "--remote", redis.url())
        try:
            with closing(two.client()) as client:
                until(lambda: client.lookup(SPEC, chain).tokens == len(chain.ids))  # each waits for the place a little
                check(client, list(chain.refs))
            assert two.tiers()["remote"]["hits"] >= CHUNKS
        finally:
            two.end()
    finally:
        one.end()


def test_a_remote_place_that_dies_and_comes_back(redis: RedisServer, tmp_path: Path) -> None:
    chain, more = prompt(chunks=8), prompt(1, chunks=8)
    one = host("--dram", "32MiB", "--dram-extent", "32MiB", "--remote", redis.url())
    two = host("--dram", "32MiB", "--dram-extent", "32MiB", "--remote", redis.url())
    try:
        with closing(one.client()) as first, closing(two.client()) as second:
            fill(first, list(chain.refs))
            redis.kill()
            assert second.lookup(SPEC, prompt(2, 4)).tokens == 0
            until(lambda: second.stats()["tiers"]["remote"]["state"] != "ok")
            fill(first, list(more.refs))
            check(first, [*chain.refs, *more.refs])
            redis.start()  # empty: it keeps nothing on disk
            until(lambda: first.stats()["gauges"]["through"] == 0)
            until(lambda: second.lookup(SPEC, more).tokens == len(more.ids))
            check(second, list(more.refs))
    finally:
        two.end()
        one.end()


def test_after_kill_9_what_persistent_tiers_held_is_there(redis: RedisServer, spanning: list[object]) -> None:
    chain, flags = prompt(chunks=40), [*spanning, "--cxl-persistent", "yes", "--remote", redis.url()]
    one = host(*flags)
    with closing(one.client()) as client:
        fill(client, list(chain.refs))
        until(lambda: client.stats()["gauges"]["through"] == 0)
    one.end(signal.SIGKILL)
    again = host(*flags)
    try:
        recovered = again.tiers()
        assert recovered["cxl"]["used"] > 0
        assert recovered["nvme"]["used"] > 0
        with closing(again.client()) as client:
            assert client.lookup(SPEC, chain).tokens == len(chain.ids)
            check(client, list(chain.refs))
    finally:
        again.end()
