"""Several processes (or threads) that work at the same moment: started together, stopped by the clock.

A member is a process `python -m kvstore.bench.crew MODULE`, which makes `kvstore.bench.MODULE.role(config)` from the
JSON line it is given first and then takes orders, one JSON line each. An order names a moment of the host's
monotonic clock, the same in all processes, at which every member begins, and one at which it ends. What a
member's content should be is checked on an order of its own, when nobody is timed any more.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from kvstore import errors
from kvstore.bench.processes import stop
from kvstore.errors import DeadlineExceeded, KVStoreError, Unavailable

Answer = dict[str, Any]
LEAD_S = 0.03  # from an order to the moment that it names
PATIENCE_S = 120.0


class Role(Protocol):
    """What a member does."""

    def run(self, do: str, until: float) -> Answer:
        """One kind of work until that moment of `time.monotonic`; what came of it, as JSON data."""

    def check(self) -> None:
        """Raise `Corrupt` if the last work gave wrong bytes."""

    def close(self) -> None:
        """End connections."""


class Member(Protocol):
    """One that takes orders."""

    def order(self, order: Mapping[str, Any]) -> None:
        """Begin."""

    def answer(self, timeout_s: float) -> Answer:
        """Wait until it is done. Raises what went wrong there."""


class Crew:
    """Members that are given orders together."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members

    def phase(self, do: Sequence[str], seconds: float) -> list[Answer]:
        """Each member does what stands in its place (empty: nothing), all for the same `seconds`; then all check.

        `seconds` of infinity lets every member finish its own work.
        """
        busy = [(member, each) for member, each in zip(self.members, do, strict=False) if each]
        start = time.monotonic() + LEAD_S
        until = start + seconds
        for member, each in busy:
            member.order({"do": each, "start": start, "until": until if seconds < float("inf") else None})
        patience = PATIENCE_S + (seconds if seconds < float("inf") else 3600.0)
        answers = [member.answer(patience) for member, _ in busy]
        for member, _ in busy:
            member.order({"do": "check"})
        for member, _ in busy:
            member.answer(PATIENCE_S)
        return answers


def perform(role: Role, order: Mapping[str, Any], cpu: Callable[[], float]) -> Answer:
    """Carry out one order; an answer holds `cpu_s` and `elapsed_s` besides what the role says."""
    if order["do"] == "check":
        role.check()
        return {}
    time.sleep(max(0.0, order["start"] - time.monotonic()))
    used, start = cpu(), time.monotonic()
    answer = role.run(order["do"], float("inf") if order["until"] is None else order["until"])
    return {"elapsed_s": time.monotonic() - start, "cpu_s": cpu() - used, **answer}


class ProcessMember:
    """A member that is a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], errors_file: Any) -> None:
        self._process, self._errors, self._rest = process, errors_file, b""

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def order(self, order: Mapping[str, Any]) -> None:
        """One line on its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its answer tells why it is gone
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self, timeout_s: float) -> Answer:
        """The line that it prints when it is done."""
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise DeadlineExceeded(f"a process of the benchmark did not answer within {timeout_s:g} s")
            block = os.read(descriptor, 1 << 20)
            if not block:
                self._errors.seek(0)
                last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(
                    f"a process of the benchmark ended with status {self._process.wait()}: {' '.join(last)}"
                )
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Answer = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"], KVStoreError)
            raise kind(answer["message"])
        return answer


class ThreadMember:
    """A member that is a thread of this process."""

    def __init__(self, role: Role) -> None:
        self._role, self._thread = role, threading.Thread()
        self._answer: Answer | BaseException = {}

    def order(self, order: Mapping[str, Any]) -> None:
        """Start a thread for it."""
        self._thread = threading.Thread(target=self._perform, args=(order,), daemon=True)
        self._thread.start()

    def answer(self, timeout_s: float) -> Answer:
        """Wait for the thread."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise DeadlineExceeded(f"a thread of the benchmark did not finish within {timeout_s:g} s")
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    def _perform(self, order: Mapping[str, Any]) -> None:
        try:
            self._answer = perform(self._role, order, time.thread_time)
        except BaseException as error:  # noqa: BLE001  it is raised where the answer is taken
            self._answer = error


@contextmanager
def processes(module: str, configs: Sequence[Mapping[str, Any]], *, share: Sequence[int] = ()) -> Iterator[Crew]:
    """A crew of processes, one per configuration, ready for orders. `share` are descriptors that they inherit."""
    command = [sys.executable, "-m", "kvstore.bench.crew", module]
    with ExitStack() as stack:
        members = []
        for config in configs:
            errors_file = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors_file, pass_fds=share
            )
            stack.callback(_end, process)
            members.append(ProcessMember(process, errors_file))
            members[-1].order(config)
        for member in members:
            member.answer(PATIENCE_S)
        yield Crew(members)


@contextmanager
def threads(roles: Sequence[Role]) -> Iterator[Crew]:
    """A crew of threads."""
    try:
        yield Crew([ThreadMember(role) for role in roles])
    finally:
        for role in roles:
            role.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    stop(process)


def main() -> None:
    """Take orders until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the conductor ends its crew
    make = importlib.import_module(f"kvstore.bench.{sys.argv[1]}").role
    role: Role | None = None
    for line in sys.stdin.buffer:
        try:
            order = json.loads(line)
            if role is None:
                role, answer = make(order), {}
            else:
                answer = perform(role, order, time.process_time)
        except KVStoreError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if role is not None:
        role.close()


if __name__ == "__main__":
    main()
