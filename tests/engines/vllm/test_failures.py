"""A server that dies in mid-load: the right text by recomputing, one warning, no hang."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading

import pytest

from .harness import prompt, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Relay:
    """Passes a TCP connection on, and cuts everything off after a number of bytes from the server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"bulk://127.0.0.1:{self._listener.getsockname()[1]}"
        self.left: int | None = None
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.left is not None and self.left <= 0:
                near.close()
                continue
            far = socket.create_connection(self._server)
            self._open += [near, far]
            threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted and self.left is not None:
                    data = data[: max(0, self.left)]
                    self.left -= len(data)
                target.sendall(data)
                if counted and self.left is not None and self.left <= 0:
                    break
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def test_cut_off_in_mid_load(start, server, llama):
    host, _, port = str(server.told["bulk"]).rpartition(":")
    relay = Relay(host, int(port))
    ask = prompt(1000)
    first = start(llama, transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.ask_until_cached(ask)
    engine = start(llama, transfer(relay.address, timeout_s=2.0, retry_s=1.0))
    # Enough for one chunk of 256 tokens of 4 layers of 2 KV heads of 64, K and V, in float32, and half of the next.
    relay.left = 3 * 256 * 4 * 2 * 64 * 2 * 4 // 2
    cut = engine.ask(ask)
    assert cut["answers"][0]["ids"] == cold["ids"]
    assert cut["counters"]["loads_failed"] == 1
    log = engine.log.read_text(errors="replace")
    assert log.count("kvstore loads:") == 1
    # Nothing is leaked or stuck: it goes on without the store, and with it once it is back.
    assert engine.ask(prompt(300, seed=3))["answers"][0]["cached"] == 0
    relay.left = None
    assert engine.ask_until_cached(ask)["answers"][0]["ids"] == cold["ids"]
    relay.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_gone_or_stands_still(start, server, llama, number):
    ask = prompt(600)
    engine = start(llama, transfer(server.address, timeout_s=2.0, retry_s=1.0, lookup_timeout_s=0.5))
    cold = engine.ask(ask)["answers"][0]
    engine.ask_until_cached(ask)
    process = server._process
    process.send_signal(number)
    try:
        answers = [engine.ask(ask), engine.ask(prompt(400, seed=9)), engine.ask(ask)]
        assert all(each["answers"][0]["ids"] == cold["ids"] for each in (answers[0], answers[2]))
    finally:
        process.send_signal(signal.SIGCONT)
    if number == signal.SIGKILL:
        server.stop()
        server.start()
        engine.ask_until_cached(ask)


def test_bytes_that_have_changed_on_disk(start, server, llama, tmp_path):
    ask = prompt(1000)
    first = start(llama, transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.close()
    server.stop()
    # In every fourth KiB of what the disk holds a few bytes change: some chunks are damaged, others stay whole.
    changed = 0
    for path in sorted((tmp_path / "store").rglob("*")):
        if path.is_file() and path.stat().st_size > 1 << 20:
            with path.open("r+b") as file:
                for at in range(700 << 10, path.stat().st_size, 1100 << 10):
                    file.seek(at)
                    file.write(b"damage")
                    changed += 1
    assert changed
    server.start()
    second = start(llama, transfer(server.address))
    warm = second.ask(ask)
    assert warm["answers"][0]["ids"] == cold["ids"]
    # What was bad has been put again.
    again = second.ask_until_cached(ask)["answers"][0]
    assert again["ids"] == cold["ids"]
    assert second.log.read_text(errors="replace").count("kvstore loads:") <= 1


def test_a_deadline_that_passes_is_a_miss(start, alone, llama):
    """A server that takes connections and never answers: look-ups end by their own limit, saves by theirs."""
    ask = prompt(600)
    plain = alone(llama).ask(ask)["answers"][0]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"bulk://127.0.0.1:{silent.getsockname()[1]}"
        engine = start(llama, transfer(address, lookup_timeout_s=0.3, timeout_s=0.5, retry_s=30.0))
        told = engine.ask(ask)
        assert (told["answers"][0]["ids"], told["answers"][0]["cached"]) == (plain["ids"], 0)
        assert engine.ask(prompt(300, seed=3))["answers"][0]["cached"] == 0
        assert engine.log.read_text(errors="replace").count("kvstore look-ups:") == 1
        engine.close()
