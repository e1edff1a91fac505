"""Servers and prompts for the tests of this folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from kvstore.bench.engines import Engine

__all__ = ["Engine", "Server", "prompt", "transfer"]


class Server:
    """`kvstore serve` over a folder."""

    def __init__(self, folder: Path, *more: str) -> None:
        self._folder, self._more = folder, more
        self._listen = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it, again at the address it had."""
        command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", self._listen, "--dram", "512MiB",
                   "--nvme", str(self._folder), "--nvme-capacity", "2GiB", *self._more]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.told: dict[str, Any] = json.loads(self._process.stdout.readline())
        self.address = self._listen = str(self.told["address"])

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, in order or not."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


def transfer(address: str, **extra: Any) -> dict[str, Any]:
    """What a user pastes."""
    return {
        "kv_connector": "KVStoreConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {**({"server": address} if address else {}), **extra},
    }


def prompt(tokens: int, seed: int = 0) -> list[int]:
    """Token ids below 320 without a pattern."""
    state, ids = seed * 2654435761 + 12345, []
    for _ in range(tokens):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        ids.append(3 + (state >> 33) % 310)
    return ids
