"""A server of this process on every channel, raw connections to it, and a proxy that does harm."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Config, DramConfig, KVSpec, NamespaceConfig, ServerConfig, wire
from kvstore.channels.lines import hello_message
from kvstore.channels.stream import Frame, Stream
from kvstore.server import Server, serve
from kvstore.store import Store
from kvstore.v1 import kvstore_pb2 as pb

MiB = 1 << 20
SMALL = KVSpec.dense("small", layers=4, kv_heads=2, head_dim=16, chunk_tokens=64)
LARGE = KVSpec.dense("large", layers=16, kv_heads=8, head_dim=64, chunk_tokens=256)


@dataclass
class Running:
    store: Store
    server: Server
    dialed: list[Stream] = field(default_factory=list)

    def gauge(self, name: str) -> int:
        return int(self.store.session("default").stats()["gauges"][name])

    def used(self) -> int:
        return int(self.store.session("default").stats()["tiers"]["dram"]["used"])

    def readers(self) -> int:
        core = self.store._core
        with core.lock:
            rows, _ = core.index.chunks(0, 1000)
            return sum(core.index.placement(each).readers for row in rows.tolist() for each in core.placements(row))

    def connect(self, **options: Any) -> kvstore.Client:
        return kvstore.connect("bulk://" + self.server.bulk, **{"timeout": 20, **options})

    def sessions(self) -> int:
        return len(self.server._service._sessions)

    def dial(self, *, hello: bool = True) -> Stream:
        """A connection without a client."""
        host, _, port = self.server.bulk.rpartition(":")
        stream = Stream(socket.create_connection((host, int(port)), timeout=20), 20.0, "the server")
        self.dialed.append(stream)
        if hello:
            stream.send(pb.METHOD_HELLO, hello_message(os.urandom(16), "", "default").SerializeToString())
            assert answer(stream).method == pb.METHOD_HELLO
        return stream


def answer(stream: Stream) -> Frame:
    frame = stream.receive()
    assert frame is not None
    return frame


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def begin(**server: Any) -> Running:
        names = server.pop("namespaces", (NamespaceConfig("default"), NamespaceConfig("other")))
        server.setdefault("listen", "127.0.0.1:0")
        policy = server.pop("policy", Config.policy)
        settings = Config(
            dram=DramConfig(64 * MiB, 32 * MiB), namespaces=names, server=ServerConfig(**server), put_wait_s=5.0,
            policy=policy,
        )  # fmt: skip
        store = Store(settings)
        try:
            running.append(Running(store, serve(store, settings)))
        except BaseException:
            store.close()
            raise
        return running[-1]

    yield begin
    for each in running:
        for stream in each.dialed:
            stream.close()
        each.server.stop(0.2)
        each.store.close()


@pytest.fixture
def running(start: Callable[..., Running], request: pytest.FixtureRequest) -> Running:
    """With the settings of the test's parameter, if it has one."""
    return start(**getattr(request, "param", {}))


Mangle = Callable[[bool, int, bytes], "bytes | None"]


class Proxy:
    """Passes TCP connections on. `mangle(upstream, offset, data)` gives what goes on in place of `data`; None cuts.

    `offset` is where `data` begins in its direction of its connection. What is handed over is 1 KiB at most.
    """

    def __init__(self, target: str, mangle: Mangle = lambda upstream, offset, data: data) -> None:
        self.mangle = mangle
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                both = threading.Barrier(2)
                for upstream, source, sink in ((True, near, far), (False, far, near)):
                    thread = threading.Thread(target=self._pump, args=(upstream, source, sink, both), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, upstream: bool, source: socket.socket, sink: socket.socket, both: threading.Barrier) -> None:
        offset = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1024):
                passed = self.mangle(upstream, offset, data)
                offset += len(data)
                if passed is None:
                    break
                sink.sendall(passed)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(30)
        source.close()  # whoever still sends to it gets a reset


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def begin(*args: Any) -> Proxy:
        made.append(Proxy(*args))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def block(spec: KVSpec, seed: int = 0) -> np.ndarray[Any, Any]:
    shape = spec.part_shape(spec.part(), spec.chunk_tokens)
    return np.random.default_rng(seed).integers(0, 1 << 16, shape, np.uint16)


def eventually(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def register(stream: Stream, spec: KVSpec) -> None:
    stream.send(pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(spec=wire.spec_to_message(spec)).SerializeToString())
    answer(stream)


class Kit:
    """What tests import from here: fixtures cannot be imported under importlib."""

    small, large = SMALL, LARGE
    block, eventually, answer, register = map(staticmethod, (block, eventually, answer, register))


@pytest.fixture
def kit() -> type[Kit]:
    return Kit
