"""Servers that share by a directory, each a process on a host of its own, for benchmarks and tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kvstore
from kvstore.bench.certificate import make_certificate
from kvstore.bench.network import Network
from kvstore.bench.processes import STOP_S, TIMEOUT_S
from kvstore.bench.redis_server import RedisServer
from kvstore.client import Client
from kvstore.config import Config
from kvstore.errors import Unavailable

PEERS_TOKEN, TOKEN, PORT = "token-of-peers", "token-of-tenant", 7421


class FleetHost:
    """One server. `link` is its number in a network, None for one on loopback."""

    def __init__(
        self, folder: Path, dram: int, command: Sequence[str], lines: Sequence[str], policy: str = Config.policy
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._socket, self._file = folder / "local.sock", folder / "kvstore.toml"
        own = ["[dram]", f"capacity = {dram}", f"extent = {dram}", "[store]", "put_wait_s = 5.0"]
        own += ["lease_limit_s = 3600.0", "flush_on_close = false", f'policy = "{policy}"']
        own += ["[[namespace]]", 'name = "default"', f'tokens = ["{TOKEN}"]']
        self._file.write_text("\n".join([*own, *lines, ""]))
        self._command = [*command, sys.executable, "-m", "kvstore", "serve", "--json", "--config", str(self._file)]
        self._command += ["--listen", "127.0.0.1:0", "--server-local", str(self._socket)]
        self._process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """Start it (again), empty."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(f"{' '.join(self._command)} ended with status {self._process.wait()}")
        self.ready = json.loads(line)

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self.ready["pid"])

    def connect(self, **options: Any) -> Client:
        """A client on the same host."""
        return kvstore.connect(f"local:{self.ready['local']}", token=TOKEN, **{"timeout": TIMEOUT_S, **options})

    def pause(self) -> None:
        """It hangs: connections are taken, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        while any(_state(task) not in "Tt" for task in tasks.iterdir()):  # a thread may still run for a moment
            time.sleep(0.001)

    def resume(self) -> None:
        """It goes on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._wait(self._process)

    def stop(self) -> None:
        """End it, whatever has become of it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._wait(self._process, STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    @staticmethod
    def _wait(process: subprocess.Popen[str], seconds: float | None = None) -> None:
        process.wait(seconds)
        if process.stdout is not None:
            process.stdout.close()


def _state(task: Path) -> str:
    return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]


class Fleet:
    """So many hosts of `dram` bytes each over one directory, a `redis-server` of their own unless its URL is given.

    With a `network` each is in a namespace of it, and speaks TLS; without one all are on loopback.
    """

    def __init__(
        self, folder: Path, hosts: int, dram: int, *, network: Network | None = None, directory: str = "",
        more: Sequence[str] = (), share: bool = True, token: str = PEERS_TOKEN, policy: str = Config.policy,
    ) -> None:  # fmt: skip
        """`more` are lines of configuration; with `share` of false each is alone. `token` is that of peers."""
        self.hosts: list[FleetHost] = []
        self.redis: RedisServer | None = None
        self.network = network
        if share and not directory:
            self.redis = RedisServer(folder / "redis", "--bind", "0.0.0.0", "--protected-mode", "no")
            directory = f"valkey://{network.gateway if network else '127.0.0.1'}:{self.redis.port}"
        peers = ["[peers]", f'directory = "{directory}"', f'token = "{token}"', *more] if share else []
        if network is not None:
            cert, key = make_certificate(folder, network.addresses)
            peers += [f'ca = "{cert}"'] if share else []
        try:
            for number in range(hosts):
                server = ["[server]", 'bulk = "127.0.0.1:0"']
                if network is not None:
                    server = ["[server]", f'bulk = "{network.addresses[number]}:{PORT}"']
                    server += [f'tls_cert = "{cert}"', f'tls_key = "{key}"']
                begin = () if network is None else network.command(number)
                self.hosts.append(FleetHost(folder / f"host-{number}", dram, begin, [*server, *peers], policy))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all of them."""
        for host in self.hosts:
            host.stop()
        if self.redis is not None:
            self.redis.stop()
