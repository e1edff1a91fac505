"""The two ways to the same store: inside the process, and behind `kvstore serve` in another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import kvstore
from kvstore.client import Client
from kvstore.config import Config, DramConfig, MiB, NvmeConfig, ServerConfig
from kvstore.errors import Unavailable

Place = Callable[[Path], AbstractContextManager[Client]]
STOP_S = 60.0


def store_config(folder: Path) -> Config:
    """DRAM over NVMe in `folder`, big enough for a prompt of a few thousand tokens."""
    return Config(
        dram=DramConfig(capacity=512 * MiB, extent=256 * MiB),
        nvme=NvmeConfig(folder / "nvme", capacity=4096 * MiB, segment=64 * MiB),
        server=ServerConfig(listen="127.0.0.1:0"),
    )


@contextmanager
def embedded(folder: Path) -> Iterator[Client]:
    """The store of `folder` in this process."""
    with kvstore.open(store_config(folder)) as client:
        yield client


@contextmanager
def served(folder: Path) -> Iterator[Client]:
    """The store of `folder` in a server process of its own, which is stopped in order at the end."""
    from kvstore.settings import render

    file = folder / "kvstore.toml"
    file.write_text(render(store_config(folder)), encoding="utf-8")
    command = [sys.executable, "-m", "kvstore", "serve", "--json", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            with kvstore.connect(_address(server)) as client:
                yield client
        finally:
            _stop(server)


def _address(server: subprocess.Popen[str]) -> str:
    """Wait for the line that says the server is ready."""
    line = server.stdout.readline() if server.stdout else ""
    if not line:
        raise Unavailable(f"kvstore serve ended with status {server.wait()} before it was ready; see above")
    address: str = json.loads(line)["address"]
    return address


def _stop(server: subprocess.Popen[str]) -> None:
    server.terminate()
    try:
        status = server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        raise Unavailable(f"kvstore serve did not stop within {STOP_S:g} s of SIGTERM and was killed") from None
    if status:
        raise Unavailable(f"kvstore serve ended with status {status}; see what it said above")


PLACES: dict[str, Place] = {"embedded": embedded, "server": served}
