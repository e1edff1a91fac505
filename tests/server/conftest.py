"""Servers to talk to: in this process for what is quick, in a process of their own for what is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Client, Config, DramConfig, KVSpec, NamespaceConfig, ServerConfig
from kvstore.server import Server, serve
from kvstore.store import Store

MiB = 1 << 20
SMALL = KVSpec.dense("small", layers=4, kv_heads=2, head_dim=16, chunk_tokens=64)
LARGE = KVSpec.dense("large", layers=16, kv_heads=8, head_dim=64, chunk_tokens=256)


@dataclass
class Running:
    """A store and a server of this process."""

    store: Store
    server: Server

    def url(self, channel: str) -> str:
        server = self.server
        return {"grpc": f"grpc://{server.address}", "bulk": f"bulk://{server.bulk}", "local": f"local:{server.local}"}[
            channel
        ]

    def gauge(self, name: str) -> int:
        return int(self.store.session("default").stats()["gauges"][name])

    def holds(self) -> bool:
        """Whether anything is leased, by a call or without."""
        return self.gauge("leases") + self.gauge("hazards") > 0

    def used(self) -> int:
        return int(self.store.session("default").stats()["tiers"]["dram"]["used"])


def config(**server: Any) -> Config:
    names = server.pop("namespaces", (NamespaceConfig("default"), NamespaceConfig("other")))
    server.setdefault("listen", "127.0.0.1:0")
    return Config(dram=DramConfig(128 * MiB, 64 * MiB), namespaces=names, server=ServerConfig(**server), put_wait_s=5.0)


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def begin(**options: Any) -> Running:
        settings = config(**options)
        store = Store(settings)
        try:
            running.append(Running(store, serve(store, settings)))
        except BaseException:
            store.close()
            raise
        return running[-1]

    yield begin
    for each in running:
        each.server.stop(0.2)
        each.store.close()


@pytest.fixture
def running(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture(params=["grpc", "bulk", "local"])
def channel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(running: Running, channel: str) -> Iterator[Client]:
    with kvstore.connect(running.url(channel), timeout=10) as made:
        yield made


class Process:
    """`kvstore serve` in a process of its own."""

    def __init__(self, listen: str) -> None:
        command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", listen]
        command += ["--dram", "128MiB", "--dram-extent", "64MiB"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = str(json.loads(self._process.stdout.readline())["address"])

    def end(self, number: int = signal.SIGKILL) -> int:
        self._process.send_signal(number)
        code = self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def begin(listen: str = "127.0.0.1:0") -> Process:
        made.append(Process(listen))
        return made[-1]

    yield begin
    for each in made:
        each.end()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem/.key and client.pem/.key signed by it; stranger.pem signs itself."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        openssl(
            "req",
            "-x509",
            *curve,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
        )
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def block(spec: KVSpec, seed: int = 0, tokens: int | None = None) -> np.ndarray[Any, Any]:
    """An array of random bits for the only part of a spec."""
    shape = spec.part_shape(spec.part(), tokens or spec.chunk_tokens)
    return np.random.default_rng(seed).integers(0, 1 << 16, shape, np.uint16)


def eventually(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds; fail if it never does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


class Kit:
    """What tests import from here: fixtures cannot be imported under importlib."""

    small, large, block, eventually = SMALL, LARGE, staticmethod(block), staticmethod(eventually)


@pytest.fixture
def kit() -> type[Kit]:
    return Kit
