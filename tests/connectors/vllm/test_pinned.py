"""What a client maps of a store is registered beside its calls: with a device that is made up, and on a GPU.

The store is a server process of its own, and the client maps its extents as an engine on the host does.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import KVSpec, _native
from kvstore.channels.mappings import Mappings
from kvstore.connectors.vllm import _blocks
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._pinned import Pinned
from kvstore.connectors.vllm._worker import Worker
from kvstore.errors import StorageError

torch = pytest.importorskip("torch")

from kvstore.connectors.vllm._device import DeviceLayers  # noqa: E402 - needs torch
from kvstore.tiers.hbm.pinning import Pins  # noqa: E402 - needs torch

MIB = 1 << 20
LAYERS, HEADS, TOKENS, DIM, CHUNK = 8, 4, 16, 64, 256
SPEC = KVSpec.dense("pinned", layers=LAYERS, kv_heads=HEADS, head_dim=DIM, chunk_tokens=CHUNK)
NAMES = [f"model.layers.{number}.attn" for number in range(LAYERS)]
GROUP = SimpleNamespace(layer_names=NAMES)
SERVER = """
import sys
from kvstore import Config, DramConfig, NamespaceConfig, ServerConfig
from kvstore.server import serve
from kvstore.store import Store
listen = ServerConfig(listen="unix:" + sys.argv[1] + "/grpc", local=sys.argv[1] + "/local", bulk="off")
config = Config(dram=DramConfig(64 << 20, 32 << 20), namespaces=(NamespaceConfig("default"),), server=listen)
store = Store(config)
server = serve(store, config)
print("ready", flush=True)
sys.stdin.read()
server.stop(0.2)
store.close()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a store in another process."""
    with tempfile.TemporaryDirectory(prefix="kv") as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield f"local:{Path(folder) / 'local'}"
        finally:
            process.communicate(timeout=20)


class MadeUpDevice:
    """Stands in for a GPU's driver. What it is told to forget must still be mapped."""

    takes_read_only = True

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.registered: dict[int, tuple[int, bool]] = {}

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        if self.refuses:
            raise StorageError("refused on purpose")
        assert mapped(address, nbytes)
        self.registered[address] = nbytes, read_only

    def unregister(self, address: int) -> None:
        nbytes, _ = self.registered.pop(address)
        assert mapped(address, nbytes), "unmapped before it was unregistered"


def mapped(address: int, nbytes: int) -> bool:
    """Whether the kernel says that this process has such memory."""
    at = address
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        if start <= at < end:
            at = end
    return at >= address + nbytes


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def put(client: kvstore.Client, tokens: list[int]) -> Any:
    """Store a chunk from staging memory; its reference and the memory."""
    ref = client.chain(SPEC, tokens).refs[0]
    buffer = client.buffer(SPEC.part_bytes(SPEC.part(), CHUNK))
    buffer[:] = np.random.default_rng(tokens[0]).integers(0, 256, buffer.nbytes, np.uint8)
    assert client.put(SPEC, ref, buffer)
    return ref, buffer


@pytest.mark.parametrize("before", [False, True])
def test_what_a_client_maps_is_registered_until_nobody_uses_it(server: str, before: bool) -> None:
    """`before`: the client has mapped all of it before somebody wants it registered."""
    gc.collect()
    device = MadeUpDevice()
    pins, pinned = Pins(device), None
    if not before:
        pinned = Pinned(pins)
    client = kvstore.connect(server, timeout=5)
    ref, buffer = put(client, list(range(before, CHUNK + before)))
    view = client.view(SPEC, ref)
    source = np.frombuffer(view.data, np.uint8)
    if before:
        assert not pins.nbytes
        pinned = Pinned(pins)
    assert pinned is not None
    eventually(partial(pins.covers, buffer.ctypes.data, buffer.nbytes, writing=True))
    eventually(partial(pins.covers, source.ctypes.data, source.nbytes, writing=False))
    assert not pins.covers(source.ctypes.data, 1, writing=True), "extents are registered for reading"
    assert np.array_equal(source, buffer)
    view.close()
    client.close()
    del client, view, buffer
    gc.collect()
    at = source.ctypes.data
    time.sleep(0.05)
    assert pins.covers(at, 1, writing=False), "somebody still looks at it"
    del source
    eventually(lambda: not device.registered)
    pinned.close()


def test_closing_unregisters_what_is_in_use(server: str) -> None:
    device = MadeUpDevice()
    pins, client = Pins(device), kvstore.connect(server, timeout=5)
    pinned = Pinned(pins)
    _, buffer = put(client, list(range(2, CHUNK + 2)))
    eventually(partial(pins.covers, buffer.ctypes.data, buffer.nbytes, writing=True))
    pinned.close()
    assert not device.registered
    put(client, list(range(3, CHUNK + 3)))
    assert not device.registered
    client.close()


def test_what_is_refused_is_used_all_the_same(server: str, caplog: pytest.LogCaptureFixture) -> None:
    pins, client = Pins(MadeUpDevice(refuses=True)), kvstore.connect(server, timeout=5)
    pinned = Pinned(pins)
    ref, buffer = put(client, list(range(4, CHUNK + 4)))
    with client.view(SPEC, ref) as view:
        assert np.array_equal(np.frombuffer(view.data, np.uint8), buffer)
    eventually(lambda: "copied more slowly: refused on purpose" in caplog.text)
    assert not pins.nbytes
    pinned.close()
    client.close()


def test_a_mapping_is_gone_when_nobody_has_it() -> None:
    mappings, queue, late = Mappings(), SimpleQueue[Any](), SimpleQueue[Any]()
    mappings.watch(queue)
    mapping = np.arange(100, dtype=np.uint8)
    at = mapping.ctypes.data
    users = mappings.add(mapping)
    del mapping
    number, memory = queue.get_nowait()
    assert _native.address_of(memory) == _native.address_of(users) == at
    mappings.watch(late)
    assert late.get_nowait()[0] == number
    part = users[5:7]
    del users
    assert queue.empty()
    del part
    assert queue.get_nowait() == (number, None)
    assert late.get_nowait() == (number, None)
    assert memory[99] == 99, "who holds the memory keeps it"
    mappings.unwatch(queue)
    mappings.add(np.zeros(5, np.uint8))
    assert queue.empty()
    mappings.watch(queue)
    assert queue.empty(), "what is gone is not told of"


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_worker_registers_for_caches_on_a_device_only(
    server: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches on no device of this machine stand for those on a GPU; nothing is copied."""
    pins, client = Pins(MadeUpDevice()), kvstore.connect(server, timeout=5)
    monkeypatch.setattr(_blocks, "_on_device", lambda *caches: SimpleNamespace(pins=pins, device="meta"))
    worker = Worker(client, SPEC, TOKENS, Options.of({"server": server, "staging_mib": 64}), 0, [GROUP], None)
    worker.register(
        {name: torch.zeros(3, HEADS, TOKENS, 2 * DIM, dtype=torch.bfloat16, device=device) for name in NAMES}
    )
    buffer = client.buffer(MIB)
    if device == "cpu":
        assert worker._pinned is None
    else:
        eventually(partial(pins.covers, buffer.ctypes.data, MIB, writing=True))
    worker.close()
    assert not pins.nbytes
    client.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
def test_a_chunk_there_and_back_on_a_gpu(server: str) -> None:
    """A save from blocks through registered staging memory, and a load from the store's own memory."""
    client = kvstore.connect(server, timeout=5)
    shape = (LAYERS, 40, HEADS, TOKENS, 2 * DIM)
    memory = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
    device = DeviceLayers(list(memory), 2)
    pinned, table = Pinned(device.pins), list(range(3, 3 + CHUNK // TOKENS))
    ref = client.chain(SPEC, list(range(5, CHUNK + 5))).refs[0]
    buffer = client.buffer(SPEC.part_bytes(SPEC.part(), CHUNK))
    eventually(partial(device.pins.covers, buffer.ctypes.data, buffer.nbytes, writing=True))
    device.read(table, 0, buffer)()
    assert client.put(SPEC, ref, buffer)
    client.view(SPEC, ref).close()
    with client.view(SPEC, ref) as view:
        source = np.frombuffer(view.data, np.uint8)
        assert np.array_equal(source, buffer)
        eventually(partial(device.pins.covers, source.ctypes.data, source.nbytes, writing=False))
        other = torch.zeros_like(memory)
        DeviceLayers(list(other), 2).write(table, 0, source)
        del source
    assert torch.equal(other[:, table], memory[:, table])
    client.close()
    del buffer, client, view
    gc.collect()
    eventually(lambda: device.pins.nbytes == 0)
    pinned.close()
