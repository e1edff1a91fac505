"""The ways to keep a prefix that `kvstore.bench.vllm` compares: each is one entry.

`kvstore` and `tier` keep it in a server's DRAM, `example` and `fs` in files (whose pages may lie in the kernel's
cache; `fs` reads around it where the file system lets it), `lmcache` in the memory of LMCache's own server, `own` in
the engine itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Transfer = dict[str, Any]
PRIMARY_BYTES = 512 << 20  # vLLM's own host memory in front of a secondary tier
SERVER_S = 60


@dataclass(frozen=True)
class Case:
    """One way. `serve` runs what it needs beside the engine and gives the engine's `kv_transfer_config`.

    A `shared` case is filled by one engine and measured in another, a fresh one; one that is not is filled by itself.
    A `restarted` one has what runs beside the engine end after the filling and start anew in the same folder. One with
    `workers` fills with processes as vLLM has them, too, where others take the quicker way of a single one.
    """

    serve: Callable[[Path], contextlib.AbstractContextManager[Transfer | None]]
    shared: bool = True
    restarted: bool = False
    workers: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)
    missing: Callable[[], str] = str  # why it cannot run here; empty if it can


@contextlib.contextmanager
def kvstore_server(*more: str) -> Iterator[str]:
    """`kvstore serve` with 2 GiB of DRAM; its address."""
    command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0", "--dram", "2GiB", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["address"])
        finally:
            process.terminate()


def direct(address: str, **options: Any) -> Transfer:
    """`KVStoreConnector` with a server."""
    return {
        "kv_connector": "KVStoreConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"server": address, **options},
    }


def prompt(tokens: int, seed: int) -> list[int]:
    """Token ids that no other seed begins with."""
    return [1000 + seed, *((n * 7919 + seed * 104729) % 40000 + 100 for n in range(1, tokens))]


@contextlib.contextmanager
def _direct(folder: Path) -> Iterator[Transfer]:
    with kvstore_server() as address:
        yield direct(address)


@contextlib.contextmanager
def _nvme(folder: Path) -> Iterator[Transfer]:
    """Filled through one server process and read through another, whose memory is empty."""
    disk = ["--nvme", str(folder / "nvme"), "--nvme-capacity", "4GiB"]
    with kvstore_server(*disk) as address:
        yield direct(address)


@contextlib.contextmanager
def _tier(folder: Path) -> Iterator[Transfer]:
    with kvstore_server() as address:
        yield _offloading({"type": "KVStoreTier", "server": address})


@contextlib.contextmanager
def _fs(folder: Path) -> Iterator[Transfer]:
    yield _offloading({"type": "fs", "root_dir": str(folder / "fs")})


@contextlib.contextmanager
def _example(folder: Path) -> Iterator[Transfer]:
    yield {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "example")},
    }


@contextlib.contextmanager
def _lmcache(folder: Path) -> Iterator[Transfer]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, http = one.getsockname()[1], two.getsockname()[1]
    command = [_lmcache_program(), "server", "--transport", "zmq", "--host", "127.0.0.1", "--port", str(port),
               "--http-port", str(http), "--l1-size-gb", "2", "--no-l1-use-lazy", "--eviction-policy", "LRU",
               "--supported-transfer-mode", "engine_driven", "--shm-name", f"kvstore-bench-{port}"]  # fmt: skip
    with (folder / "lmcache.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(port)
            where = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
            yield {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": where}
        finally:
            process.terminate()


@contextlib.contextmanager
def _nothing(folder: Path) -> Iterator[None]:
    yield None


def _offloading(tier: Mapping[str, Any]) -> Transfer:
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "HostOffloadingSpec",
            "spec_module_path": "kvstore.bench.vllm_offload",
            "cpu_bytes_to_use": PRIMARY_BYTES,
            "secondary_tiers": [dict(tier)],
        },
    }


def _lmcache_program() -> str:
    beside = Path(sys.executable).with_name("lmcache")
    return str(beside) if beside.exists() else shutil.which("lmcache") or ""


def _no_lmcache() -> str:
    return "" if importlib.util.find_spec("lmcache") and _lmcache_program() else "LMCache is not installed here"


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + SERVER_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


CASES = {
    "dram": Case(_direct),
    "nvme": Case(_nvme, restarted=True),
    "tier": Case(_tier),
    "example": Case(_example),
    "fs": Case(_fs),
    # In one process vLLM 0.32 trips over what LMCache has imported (llvmlite), before it has loaded a model.
    "lmcache": Case(_lmcache, missing=_no_lmcache, workers=True),
    "own": Case(_nothing, shared=False, engine={"enable_prefix_caching": True}),
}
