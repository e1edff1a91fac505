"""The handle of one driver process: asks, waits no longer than a limit, and ends it with all that it started."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvstore.bench.peers.drivers.driver import Job
from kvstore.bench.peers.systems import System
from kvstore.errors import Unavailable

START_S = 180.0
ANSWER_S = 60.0
END_S = 15.0
LAST_LINES = 6


class Skipped(Exception):
    """A system that cannot run here."""


class Failed(Unavailable):
    """A driver that ended or did not answer; the message has the last lines of what it said."""


class Player:
    """One system at work. Raises `Skipped` where its environment is not installed."""

    def __init__(self, system: System, job: Job, envs: Path) -> None:
        self.system = system
        self.does: list[str] = []
        self.mode = self.note = ""
        self._servers: list[int] = []
        python = system.python(envs)
        if not python.exists():
            raise Skipped(f"no environment in {envs / system.env} (make bench-peers installs it)")
        self._errors = Path(job.folder, "errors.txt")
        # A user's own settings must not change what is measured.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("KVSTORE_", "PYTHON"))}
        env["PYTHONPATH"] = os.pathsep.join(map(str, system.folders))
        command = [str(python), "-P", "-m", system.module, json.dumps(asdict(job))]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env, start_new_session=True
            )

    def ready(self) -> None:
        """Wait until it has stored its chunks. Raises `Skipped` or `Failed`."""
        reply = self._receive(START_S)
        if "skip" in reply:
            raise Skipped(str(reply["skip"]))
        self.does, self.mode, self.note = reply["does"], reply["mode"], reply["note"]
        self._servers = reply["pids"]

    def ask(self, do: str, slots: Sequence[int] = ()) -> dict[str, Any]:
        """One request and its reply. Raises `Failed`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "slots": list(slots)}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failed("ended") from None
        return self._receive(ANSWER_S)

    def server_cpu(self) -> float:
        """CPU seconds that its servers have used, all threads; 0 for one that is gone."""
        return sum(map(_cpu_seconds, self._servers))

    def close(self) -> None:
        """End the driver, in order if it still listens, and whatever else is in its session."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # it may be gone already
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.terminate()
        finally:
            _kill_session(process.pid)
            process.wait()
            process.stdout.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        """The next line. A driver writes whole lines, one for each request, so nothing is left over."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = b""
            while not line.endswith(b"\n"):
                if not selector.select(seconds):
                    raise self._failed(f"did not answer within {seconds:g} s")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise self._failed("ended")
                line += piece
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _failed(self, what: str) -> Failed:
        said = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = " | ".join(line.strip() for line in said[-LAST_LINES:] if line.strip())
        return Failed(f"the driver {what}" + (f": {last}" if last else ", and said nothing"))


def _cpu_seconds(pid: int) -> float:
    total = 0
    # A thread, or all of them, may end while we count.
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def _kill_session(leader: int) -> None:
    with suppress(ProcessLookupError):  # nothing may be left of it
        os.killpg(leader, signal.SIGKILL)
