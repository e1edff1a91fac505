"""Servers and prompts for the tests of this folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from kvstore.bench.engines import ForkedEngine as Engine

__all__ = ["Engine", "Server", "prompt", "tier_transfer", "transfer"]


class Server:
    """`kvstore serve` over a folder."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder, self._more = folder, more
        self.program = ("-m", "kvstore")
        self._listen = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it, again at the address it had."""
        command = [sys.executable, *self.program, "serve", "--json", "--listen", self._listen, "--dram", "512MiB",
                   "--nvme", str(self.folder), "--nvme-capacity", "2GiB", *self._more]  # fmt: skip
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
    """What a user pastes, but that everything is loaded: these models compute as fast as they load."""
    extra = {"load_or_recompute": False, **extra}
    return {
        "kv_connector": "KVStoreConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {**({"server": address} if address else {}), **extra},
    }


def tier_transfer(address: str, *, rows: int = 0, primary_mib: int = 64, **extra: Any) -> dict[str, Any]:
    """`KVStoreTier` behind vLLM's offloading, which copies from host memory to host memory here."""
    tier = {"type": "KVStoreTier", **({"server": address} if address else {}), **extra}
    config = {
        "spec_name": "HostOffloadingSpec",
        "spec_module_path": "kvstore.bench.vllm_offload",
        "cpu_bytes_to_use": primary_mib << 20,
        "secondary_tiers": [tier],
        **({"blocks_per_chunk": rows} if rows else {}),
    }
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": config}


def prompt(tokens: int, seed: int = 0) -> list[int]:
    """Token ids below 320 without a pattern."""
    state, ids = seed * 2654435761 + 12345, []
    for _ in range(tokens):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        ids.append(3 + (state >> 33) % 310)
    return ids
