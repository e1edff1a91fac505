"""A server that is killed, stopped or started again under a client of the local channel."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore


class Served:
    """`kvstore serve` on a local channel of a fixed path."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0"]
        command += ["--dram", "128MiB", "--dram-extent", "64MiB", "--server-local", str(path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.local = json.loads(self.process.stdout.readline())["local"]

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(20)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], Served]]:
    made: list[Served] = []

    def begin() -> Served:
        made.append(Served(tmp_path / "s"))
        return made[-1]

    yield begin
    for each in made:
        if each.process.poll() is None:
            each.end()
        assert each.process.stdout is not None
        each.process.stdout.close()


def block_of(kit: Any, number: int) -> np.ndarray[Any, Any]:
    return np.full(kit.small.part_shape(kit.small.part(), 64), number, np.uint16)


def test_a_new_server_on_the_same_path_is_another_life(serve: Any, kit: Any) -> None:
    first = serve()
    with kvstore.connect("local:" + first.local, timeout=5) as client:
        chain = client.chain(kit.small, range(64 * 4))
        staged = client.buffer((4, *block_of(kit, 0).shape), "bfloat16")
        for number, ref in enumerate(chain.refs):
            staged[number] = number
            client.put(kit.small, ref, staged[number])
        hit = client.lookup(kit.small, chain, lease_s=30)
        view = client.view(kit.small, chain.refs[1])
        assert client.lookup(kit.small, chain).tokens == 64 * 4
        first.end()
        assert (client.get(kit.small, hit.refs[2]) == 2).all()  # its memory is still what it was
        began = time.monotonic()
        with pytest.raises(kvstore.Unavailable):
            client.get(kit.small, client.chain(kit.small, range(9, 73)).refs[0])
        assert time.monotonic() - began < 5
        serve()
        assert client.lookup(kit.small, chain, lease_s=5).tokens == 0
        for ref in hit.refs:
            with pytest.raises(kvstore.NotFound):
                client.get(kit.small, ref)
        hit.release()
        assert (np.frombuffer(view.data, np.uint16) == 1).all()
        view.close()
        for number, ref in enumerate(chain.refs):
            assert client.put(kit.small, ref, staged[number])
            assert (client.get(kit.small, ref) == number).all()
        kit.eventually(lambda: client.lookup(kit.small, chain).tokens == 64 * 4)


def test_killed_under_load(serve: Any, kit: Any) -> None:
    server = serve()
    problems: list[Any] = []
    over = threading.Event()
    with kvstore.connect("local:" + server.local, timeout=3, retries=1) as client:
        refs = client.chain(kit.small, range(64 * 30)).refs

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not over.is_set():
                number = int(rng.integers(30))
                began = time.monotonic()
                try:
                    client.put(kit.small, refs[number], block_of(kit, number))
                    chain = client.chain(kit.small, range(64 * 30))
                    with client.lookup(kit.small, chain, lease_s=2) as hit:
                        for ref in hit.refs[:3]:
                            client.get(kit.small, ref)
                    if not (client.get(kit.small, refs[number]) == number).all():
                        problems.append(number)
                except (kvstore.Unavailable, kvstore.NotFound, kvstore.DeadlineExceeded):
                    if time.monotonic() - began > 30:
                        problems.append("too late")
                except kvstore.KVStoreError as error:
                    problems.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for each in threads:
            each.start()
        for _ in range(3):
            time.sleep(0.3)
            server.end()
            time.sleep(0.1)
            server = serve()
        time.sleep(0.3)
        over.set()
        for each in threads:
            each.join()
        assert problems == []
        assert client.put(kit.small, client.chain(kit.small, range(7, 71)).refs[0], block_of(kit, 1))


def test_a_server_that_stands_still_is_given_up_in_time(serve: Any, kit: Any) -> None:
    server = serve()
    with kvstore.connect("local:" + server.local, timeout=2, retries=0) as client:
        (ref,) = client.chain(kit.small, range(64)).refs
        client.put(kit.small, ref, block_of(kit, 4))
        client.get(kit.small, ref)
        server.stop()
        time.sleep(2.1)  # until then what it has in memory is read without it
        for attempt in (
            lambda: client.get(kit.small, ref),
            lambda: client.put(kit.small, ref, block_of(kit, 5)),
            lambda: client.view(kit.small, ref),
        ):
            began = time.monotonic()
            with pytest.raises((kvstore.DeadlineExceeded, kvstore.Unavailable)):
                attempt()
            assert time.monotonic() - began < 20
        server.process.send_signal(signal.SIGCONT)
        assert (client.get(kit.small, ref, verify=True) == 4).all()
        kit.eventually(lambda: client.stats()["gauges"]["leases"] <= 1)


def test_leases_outlive_the_connections_that_took_them(serve: Any, kit: Any) -> None:
    """A call that fails costs its connection, and must not cost the session."""
    server = serve()
    with kvstore.connect("local:" + server.local, timeout=2, retries=0) as client:
        chain = client.chain(kit.small, range(64))
        client.put(kit.small, chain.refs[0], block_of(kit, 4))
        client.lookup(kit.small, chain, lease_s=30)
        server.stop()
        with pytest.raises((kvstore.DeadlineExceeded, kvstore.Unavailable)):
            client.stats()
        server.process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        assert client.stats()["gauges"]["hazards"] == 1
        assert (client.get(kit.small, chain.refs[0]) == 4).all()
