"""Engines forked from a process that has imported vLLM: each takes one second of a CPU to start instead of nine, and
shares nothing but the imports with the others. For tests, which start a hundred; benchmarks start as users do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from kvstore.bench.vllm_driver import main


class Fork:
    """What `Engine` uses of a `subprocess.Popen`, of a process that runs the driver."""

    def __init__(self, given: str, log: Path, env: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["kvstore.bench.vllm_imports"])
        theirs, asked = context.Pipe(duplex=False)
        answers, told = context.Pipe(duplex=False)
        self._process = context.Process(target=_engine, args=(given, str(log), env, theirs, told))
        self._process.start()
        for each in (theirs, told):
            each.close()
        self.stdin, self.stdout = (
            os.fdopen(os.dup(each.fileno()), mode) for each, mode in ((asked, "w"), (answers, "r"))
        )
        for each in (asked, answers):
            each.close()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end; TimeoutExpired when it does not come in time."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("vllm_driver", timeout or 0.0)

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def _engine(given: str, log: str, env: dict[str, str], asked: Connection, answers: Connection) -> None:
    """The driver, by the pipes and in the environment that it would have if it had been started by itself."""
    os.environ.update(env)
    with open(log, "ab") as errors:
        for descriptor, its in enumerate((asked.fileno(), answers.fileno(), errors.fileno())):
            os.dup2(its, descriptor)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.argv[1:] = [given]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which a fork server's children do not by themselves
