"""Servers that a driver starts: they end with it, whatever ends it.

Run as a program (`python -m drivers.children PARENT COMMAND …`) it becomes the command, after it has asked the kernel
to end it with its parent: doing that between fork and exec is not safe in a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

PR_SET_PDEATHSIG = 1
STOP_S = 5.0
START_S = 90.0
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def spawn(
    stack: ExitStack, command: Sequence[str], *, env: Mapping[str, str] | None = None, stdout: int = 2
) -> subprocess.Popen[bytes]:
    """Start a server whose output goes where the driver's errors go. It is stopped when `stack` closes."""
    leashed = [sys.executable, "-P", "-m", "drivers.children", str(os.getpid()), *command]
    process = subprocess.Popen(leashed, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=stdout)
    stack.callback(_stop, process)
    return process


def free_port() -> int:
    """A TCP port on the loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wait_for(process: subprocess.Popen[bytes], address: str | tuple[str, int]) -> None:
    """Return when something accepts connections on a TCP address or a Unix socket's path."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    assert isinstance(process.args, list)
    name = os.path.basename(process.args[5])
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with status {process.returncode}")
        with socket.socket(family) as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{name} did not listen on {address} within {START_S:g} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    die_with_parent()
    if os.getppid() == int(sys.argv[1]):  # else it ended before we asked
        os.execvp(sys.argv[2], sys.argv[2:])
