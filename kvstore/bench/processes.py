"""Processes that a benchmark starts: a server of its own, and other ends of raw streams. All are stopped at the end."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kvstore
from kvstore.client import Client
from kvstore.errors import InvalidArgument, Unavailable

TIMEOUT_S = 60.0
LEASE_LIMIT_S = 3600.0
PUT_WAIT_S = 60.0  # the first put waits until its extent is populated
STOP_S = 30.0
MODES = ("local", "bulk", "grpc")


@dataclass(frozen=True)
class Server:
    """A running `kvstore serve`: the line that it printed when it was ready, and what a client needs besides."""

    ready: dict[str, Any]
    options: dict[str, Any]

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self.ready["pid"])

    def url(self, mode: str) -> str:
        """Where a client of one of `MODES` connects to. `Unavailable` if the server has no such way in."""
        if mode == "grpc":
            return f"grpc://{self.ready['address']}"
        if mode not in MODES:
            raise InvalidArgument(f"{mode!r} is no way to a server; one of {', '.join(MODES)}")
        where = self.ready.get(mode)
        if not where:
            raise Unavailable(f"this server has no {mode} channel: it printed no {mode!r} when it was ready")
        return f"local:{where}" if mode == "local" else f"bulk://{where}"

    def connect(self, mode: str) -> Client:
        """A client over one way in."""
        return kvstore.connect(self.url(mode), timeout=TIMEOUT_S, **self.options)


Connect = Callable[[Server, str], Client]


@contextmanager
def server(dram: int, *flags: str, put_wait_s: float = PUT_WAIT_S, **options: Any) -> Iterator[Server]:
    """`kvstore serve` in a process of its own, its DRAM in one extent; `options` are for clients of it."""
    command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0"]
    command += ["--dram", str(dram), "--dram-extent", str(dram), "--store-lease-limit-s", str(LEASE_LIMIT_S)]
    command += ["--store-put-wait-s", str(put_wait_s), *flags]
    with child(command) as (first_line, _):
        yield Server(json.loads(first_line), options)


@contextmanager
def child(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A process: the first line that it prints, its number. `Unavailable`, with its last words, if it ends before."""
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            first_line = process.stdout.readline()
            if not first_line:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                status = process.wait()
                raise Unavailable(f"{' '.join(command)} ended with status {status}: {' '.join(last)}")
            yield first_line, process.pid
        finally:
            stop(process)


def free_port() -> int:
    """A port of this host that nobody listens on just now.

    Below those that the kernel gives away by itself, where there are enough: what is started there, and started again,
    finds no connection of somebody else on it.
    """
    given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    dice = random.SystemRandom()  # not the seed of a test
    for _ in range(100 if given_away > 20_000 else 0):
        with suppress(OSError), socket.create_server(("127.0.0.1", dice.randrange(10_000, given_away))) as free:
            return int(free.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def stop(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL for one that does not end."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
