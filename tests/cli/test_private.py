"""A server keeps its memory and its descriptors from other processes of its user."""

from __future__ import annotations

import json
import subprocess
import sys

from .conftest import environment

# Root is never stopped, so whoever runs this gives up its capabilities first: capset(2), version 3, all empty.
POWERLESS = """
import ctypes, os, sys
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
"""
PEEK = """
for name in ("fd/0", "mem", "maps"):
    path = f"/proc/{sys.argv[1]}/{name}"
    try:
        os.readlink(path) if name == "fd/0" else open(path, "rb").read(0)
        print(name, "open")
    except PermissionError:
        print(name, "closed")
"""
SERVE = "from kvstore.cli import main; sys.exit(main(['serve', '--json', '--dram', '8MiB', '--listen', '127.0.0.1:0']))"
IDLE = "print('{}', flush=True); input()"
FORBID = "from kvstore.process import forbid_inspection; forbid_inspection()\n"


def peeked(code: str) -> list[str]:
    """What another process of the same user can open of one that runs `code`."""
    server = subprocess.Popen(
        [sys.executable, "-c", POWERLESS + code],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        json.loads(server.stdout.readline())  # it is ready
        peek = subprocess.run(
            [sys.executable, "-c", POWERLESS + PEEK, str(server.pid)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return peek.stdout.splitlines()
    finally:
        server.kill()
        server.communicate()


def test_a_server_cannot_be_inspected_by_its_own_user() -> None:
    assert peeked(SERVE) == ["fd/0 closed", "mem closed", "maps closed"]


def test_any_other_process_can() -> None:
    """What the test above would see without the server's doing."""
    assert peeked(IDLE) == ["fd/0 open", "mem open", "maps open"]


def test_a_process_that_forbade_inspection_still_reads_its_own_files() -> None:
    code = (
        "os.listdir('/proc/self/fd'), open('/proc/self/statm').read(), open('/proc/self/maps').read()\n"
        "import subprocess; subprocess.run([sys.executable, '-c', ''], check=True)\n"
    )
    assert peeked(FORBID + code + IDLE) == ["fd/0 closed", "mem closed", "maps closed"]
