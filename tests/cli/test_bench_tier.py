"""`kvstore bench tier`: what it refuses, and what it leaves behind when it is interrupted: nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.bench.redis_server import PROGRAM
from kvstore.cli import main

PATIENCE_S = 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("s3 --path .", "takes no folder"),
        ("s3 --server minio", "invalid choice: 'minio'"),
        ("s3 --sizes 5", "in steps of 4 KiB, not 5 bytes"),
        ("valkey --server ceph", "leave --server away"),
        ("valkey --sizes 1MiB,x", "'x' is not a size"),
        ("posix --path /nonexistent", "/nonexistent is no folder to measure in"),
        ("posix --path /etc/passwd", "is no folder to measure in"),
        ("posix --sizes 1GiB", "4 KiB to 128 MiB"),
        ("nvme --path /nonexistent", "/nonexistent is no folder to measure in"),
        ("cxl --sizes 6000", "in steps of 4 KiB"),
        ("hbm --sizes 6000", "in steps of 4 KiB"),
        ("tape", "invalid choice: 'tape'"),
    ],
)
def test_bad_options_end_with_2(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tier", *words.split()]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""


def test_a_server_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", "tier", "s3", "--server", "ceph"]) == 2
    assert "Ceph is not installed (ceph, " in capsys.readouterr().err


def children(pid: int) -> list[int]:
    """Processes that a process has started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def wait_until(said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def interrupt(tmp_path: Path, *words: str, begun: Callable[[int], bool]) -> None:
    """Ctrl-C of a benchmark that has begun; nothing is there any more when it has ended."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvstore", "bench", "tier", *words], cwd=tmp_path / "work", stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or begun(process.pid))
        assert process.poll() is None, process.communicate()
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (130, b"", b"")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
    assert [*(tmp_path / "tmp").iterdir(), *(tmp_path / "work").iterdir()] == []


def test_interrupted_posix(tmp_path: Path) -> None:
    interrupt(tmp_path, "posix", begun=lambda pid: any((tmp_path / "work").glob("kvstore-bench-posix-*/raw/*")))


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
def test_interrupted_valkey(tmp_path: Path) -> None:
    interrupt(tmp_path, "valkey", begun=lambda pid: bool(children(pid)))


@pytest.mark.parametrize("server", ["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def test_interrupted_s3(tmp_path: Path, server: str) -> None:
    if server == "moto":
        pytest.importorskip("moto.server")
    processes = {"moto": 1, "ceph": 3}[server]
    interrupt(tmp_path, "s3", "--server", server, begun=lambda pid: len(children(pid)) >= processes)
