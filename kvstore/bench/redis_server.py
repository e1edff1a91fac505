"""`redis-server` processes of our own: one, or a cluster, for benchmarks and tests. They listen on this host only."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from kvstore.bench.processes import free_port, stop
from kvstore.errors import Unavailable

PROGRAM = "redis-server"
MASTERS = 3
START_S = 20.0


class RedisServer:
    """One server in `folder`, without persistence unless `flags` say otherwise; it keeps its port when it restarts."""

    def __init__(self, folder: Path, *flags: str, tls: bool = False, password: str = "") -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise Unavailable(f"{PROGRAM} is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.socket = free_port(), folder / "redis.sock"
        listen = ["--port", "0", "--tls-port", str(self.port)] if tls else ["--port", str(self.port)]
        self._command = [program, *listen, "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._command += ["--unixsocket", str(self.socket), *(["--requirepass", password] if password else []), *flags]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def url(self, scheme: str = "valkey") -> str:
        """Where it listens."""
        return f"{scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it (again) and wait until it serves."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            self._await()
        except BaseException:
            self.stop()
            raise

    def _await(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while not self._serves():
            if time.monotonic() > deadline or self._process.poll() is not None:
                last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(f"{PROGRAM} did not serve: {' '.join(last)}")
            time.sleep(0.01)

    def ask(self, *words: str) -> bytes:
        """The first 4 KiB of the answer to a command, over the Unix socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_S)
            connection.connect(str(self.socket))
            connection.sendall(
                b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)
            )
            return connection.recv(4096)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """It hangs: connections are taken, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, hanging or not."""
        if self._process is not None:
            self.resume()
            stop(self._process)

    def _serves(self) -> bool:
        try:
            answer = self.ask("PING")
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))


class RedisCluster:
    """A cluster of three masters without replicas."""

    def __init__(self, folder: Path) -> None:
        with ExitStack() as stack:
            self.servers: list[RedisServer] = []
            for number in range(MASTERS):
                flags = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
                server = RedisServer(folder / f"node-{number}", *flags)
                stack.callback(server.stop)
                self.servers.append(server)
            self._join()
            self._stop = stack.pop_all()

    def urls(self) -> Sequence[str]:
        """Where its servers listen."""
        return [server.url() for server in self.servers]

    def stop(self) -> None:
        """End all of them."""
        self._stop.close()

    def _join(self) -> None:
        first = self.servers[0]
        bus = self._bus_port(first)
        for number, server in enumerate(self.servers):
            share = 16384 // MASTERS
            last = 16383 if number == MASTERS - 1 else (number + 1) * share - 1
            expect_ok(server.ask("CLUSTER", "ADDSLOTSRANGE", str(number * share), str(last)))
            if server is not first:
                expect_ok(server.ask("CLUSTER", "MEET", "127.0.0.1", str(first.port), str(bus)))
        deadline = time.monotonic() + START_S
        while not all(self._is_whole(server) for server in self.servers):
            if time.monotonic() > deadline:
                raise Unavailable("the cluster did not come together")
            time.sleep(0.05)

    @staticmethod
    def _is_whole(server: RedisServer) -> bool:
        info = server.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % MASTERS in info

    @staticmethod
    def _bus_port(server: RedisServer) -> int:
        node = server.ask("CLUSTER", "NODES").split(b"\r\n")[1].split()[1]
        return int(node.partition(b"@")[2].partition(b",")[0])


def expect_ok(answer: bytes) -> None:
    """Raise `Unavailable` for an answer that is not OK."""
    if not answer.startswith(b"+OK"):
        raise Unavailable(answer.decode(errors="replace").strip())
