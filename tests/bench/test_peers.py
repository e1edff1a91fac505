"""The comparison in miniature: real processes, and drivers that lie, die, hang or cannot start.

LMCache and Mooncake need environments of several GB: `make bench-peers` is their test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kvstore.bench import corpus
from kvstore.bench.peers import conductor, install, player
from kvstore.bench.peers.conductor import Result, run
from kvstore.bench.peers.drivers.driver import content
from kvstore.bench.peers.systems import DRIVERS, SYSTEMS, System, choose
from kvstore.cli import main
from kvstore.errors import Corrupt, InvalidArgument, Unavailable

KiB, MiB = 1 << 10, 1 << 20
SIZE = 256 * KiB
STUB = """
import os, signal, subprocess, sys, time
from pathlib import Path
from drivers.children import spawn
from drivers.driver import Skip
from drivers.loop import main
from drivers.memcpy import Memcpy

class Stub(Memcpy):
    loads = stores = 0

    def open(self):
        super().open()
        if self.job.options["does"] == "starts a server":
            self.pids = [spawn(self.stack, ["sleep", "1000"]).pid]
        if self.job.options["does"] == "cannot start":
            raise Skip("there is no such thing here")

    def load(self, key, target):
        super().load(key, target)
        Stub.loads += 1
        if Stub.loads > self.job.options.get("after", 0):
            self.misbehave(target)

    def store(self, key, data):
        if self.job.options["does"] == "stores something else" and key[0] == "p":
            data = data.copy()
            data[-1] ^= 1
        super().store(key, data)

    def misbehave(self, target):
        match self.job.options["does"]:
            case "lies":
                target[7] ^= 1
            case "loads the wrong chunk":
                super().load("k3", target)
            case "dies":
                print("something went wrong inside", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "raises":
                raise OSError("the pool is gone")
            case "hangs":
                time.sleep(1000)

main(Stub)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stub.py").write_text(STUB)
    return tmp_path


def stub(folder: Path, does: str, after: int = 0) -> System:
    return System("stub", "stub", options={"does": does, "after": after}, folders=(DRIVERS, folder))


def small(*systems: System, rounds: int = 3) -> Result:
    return run([SYSTEMS[0], *systems], sizes=(SIZE,), rounds=rounds, working_set=8 * MiB)


def named(*names: str) -> list[System]:
    return [system for system in SYSTEMS if system.name in names]


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_every_system_has_its_rows() -> None:
    systems = named("memcpy", "kvstore-embedded", "files-disk", "files-tmpfs")
    result = run(systems, sizes=(SIZE, 2 * SIZE), rounds=2, working_set=26 * MiB)
    assert result.skipped == []
    cases = {
        "memcpy": ["get", "put"],
        "kvstore-embedded": ["get", "get-leased", "put", "exists-100"],
        "files-disk": ["get", "put", "exists-100"],
        "files-tmpfs": ["get", "put", "exists-100"],
    }
    # Only the smaller size has 100 chunks to ask about.
    expected = [(name, case) for name in cases for case in cases[name]]
    expected += [(name, case) for name in cases for case in cases[name] if case != "exists-100"]
    assert [(row["system"], row["case"]) for row in result.rows] == expected
    assert {row["bytes"] for row in result.rows} == {SIZE, 2 * SIZE, 0}
    for row in result.rows:
        assert row["mode"]
        assert row["note"]
        assert row["p50_s"] > 0
        assert (row["baseline"] is None) == (row["ratio"] is None)
        assert (row["ratio"] is None) == (row["system"] == "memcpy" or row["case"] == "exists-100")
        assert (row["cpu_s_per_gb"] is None) == (row["case"] == "exists-100")


def test_the_server_in_another_process_says_how_it_is_reached() -> None:
    result = small(*named("kvstore-local", "kvstore-remote"))
    rows = [row for row in result.rows if row["system"].startswith("kvstore")]
    assert {row["case"] for row in rows} == {"get", "get-leased", "put"}
    assert {(row["system"], row["mode"]) for row in rows} == {("kvstore-local", "local"), ("kvstore-remote", "bulk")}
    assert all(row["cpu"] > 0 for row in rows)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server")
def test_redis_over_both_sockets() -> None:
    result = small(*named("redis-unix", "redis-tcp"))
    assert result.skipped == []
    assert {(row["system"], row["mode"]) for row in result.rows if row["case"] == "get"} >= {
        ("redis-unix", "Unix socket"), ("redis-tcp", "TCP loopback")
    }  # fmt: skip


def test_a_missing_redis_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = small(*named("redis-unix"))
    assert result.skipped == ["skipped: redis-unix: no redis-server on the PATH (apt-get install redis-server)"]


@pytest.mark.parametrize(
    ("does", "after"),
    [("lies", 0), ("lies", 48), ("loads the wrong chunk", 48), ("stores something else", 0)],
)
def test_wrong_bytes_are_caught(folder: Path, does: str, after: int) -> None:
    # The warm-up loads 32 chunks and reads 16 back: after 48 loads only the timed rounds are left to lie in.
    with pytest.raises(Corrupt, match="stub gave other bytes"):
        small(stub(folder, does, after))


def test_wrong_bytes_end_the_command_with_6(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.cli.peers.choose", lambda names: [SYSTEMS[0], stub(folder, "lies")])
    monkeypatch.setattr("kvstore.cli.peers.run", partial(run, working_set=8 * MiB))
    assert main(["bench", "peers", "--sizes", "4MiB", "--rounds", "1"]) == Corrupt.exit_code


@pytest.mark.parametrize(
    ("does", "after", "words"),
    [
        ("dies", 0, "the driver ended: something went wrong inside"),
        ("dies", 50, "the driver ended: something went wrong inside"),
        ("raises", 50, "the driver ended: OSError: the pool is gone"),
    ],
)
def test_a_driver_that_dies_is_told_and_the_others_finish(folder: Path, does: str, after: int, words: str) -> None:
    result = small(stub(folder, does, after), *named("files-tmpfs"))
    (line,) = result.skipped
    assert line.startswith("failed: stub at 0.25 MiB: ")
    assert words in line
    assert {row["system"] for row in result.rows} == {"memcpy", "files-tmpfs"}
    assert all(row["operations"] == 3 * 32 for row in result.rows)


def test_a_driver_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "ANSWER_S", 1.0)
    monkeypatch.setattr(player, "END_S", 0.5)
    (line,) = small(stub(folder, "hangs", 50)).skipped
    assert "did not answer within 1 s" in line


def test_a_system_that_cannot_start_is_skipped(folder: Path) -> None:
    assert small(stub(folder, "cannot start")).skipped == ["skipped: stub: there is no such thing here"]


def test_without_its_baseline_there_is_no_comparison(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor, "BASELINE", "stub")
    with pytest.raises(Unavailable, match="baseline"):
        small(stub(folder, "dies", 50))


def test_servers_end_with_a_driver_that_is_killed(folder: Path) -> None:
    (folder / "scratch").mkdir()
    job = conductor.Job(SIZE, 4, 2, 4, str(folder / "scratch"), "none", {"does": "starts a server"})
    made = player.Player(stub(folder, "starts a server"), job, folder)
    try:
        made.ready()
        (server,) = made._servers
        deadline = time.monotonic() + 30
        while not Path(f"/proc/{server}/cmdline").read_bytes().startswith(b"sleep"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(made._process.pid, signal.SIGKILL)
        assert gone(server)
        with pytest.raises(player.Failed):
            made.ask("wipe")
    finally:
        made.close()


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvstore", "bench", "peers", "--peers", "kvstore-local,files-tmpfs"]
    command += ["--sizes", "1MiB", "--rounds", "100000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        drivers = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        deadline = time.monotonic() + 60
        while len(drivers.read_text().split()) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        started = [int(pid) for pid in drivers.read_text().split()]
        job = json.loads(Path(f"/proc/{started[0]}/cmdline").read_bytes().split(b"\0")[-2])
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert len(started) == 3
    assert all(gone(pid) for pid in started)
    scratch = Path(job["folder"]).parent
    assert not scratch.exists()
    assert not list(Path("/dev/shm").glob(f"*{scratch.name}*"))


def test_an_unknown_name_is_told_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidArgument, match=r"no system 'rediss'.*lmcache-daemon"):
        choose(["rediss"])
    assert main(["bench", "peers", "--peers", "files,rediss"]) == InvalidArgument.exit_code
    assert "redis-unix" in capsys.readouterr().err


def test_names_and_families() -> None:
    assert [s.name for s in choose(["redis"])] == ["memcpy", "redis-unix", "redis-tcp", "redis-py"]
    assert [s.name for s in choose(["files-disk"])] == ["memcpy", "files-disk"]
    assert choose([]) == list(SYSTEMS)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="multiple of 256 KiB"):
        run(SYSTEMS[:1], sizes=(SIZE + 1,))
    with pytest.raises(InvalidArgument, match=r"GiB of memory.*--peers"):
        run(SYSTEMS, sizes=(SIZE,), working_set=1 << 50)
    assert main(["bench", "peers", "--sizes", "1parsec"]) == InvalidArgument.exit_code


def test_a_missing_environment_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvstore.cli.peers.run", partial(run, working_set=8 * MiB))
    options = ["--envs", str(tmp_path / "none"), "--sizes", "4MiB", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert main(["bench", "peers", "--peers", "lmcache-daemon", "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["skipped"] == [
        f"skipped: lmcache-daemon: no environment in {tmp_path}/none/lmcache (make bench-peers installs it)"
    ]
    assert [row["case"] for row in told["rows"]] == ["get", "put"]
    assert json.loads((tmp_path / "out" / "bench-peers.json").read_text()) == told


def test_an_environment_that_cannot_be_made_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.txt").write_text("./nowhere\n")
    monkeypatch.setattr(install, "HERE", tmp_path)
    monkeypatch.setattr(install, "PACKAGES", {})
    monkeypatch.setattr(install, "ENVIRONMENTS", {"nothing": [["none.txt"]]})
    real = install.venv.EnvBuilder  # a pip of its own would take longer than all else
    monkeypatch.setattr(install.venv, "EnvBuilder", lambda **options: real(**{**options, "with_pip": False}))
    assert install.install(tmp_path / "envs") == ["nothing could not be installed; its systems will be skipped"]
    assert not (tmp_path / "envs" / "nothing").exists()


def test_an_environment_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "PACKAGES", {})
    for name, steps in install.ENVIRONMENTS.items():
        wanted = "\n".join((install.HERE / step[-1]).read_text() for step in steps)
        (tmp_path / name).mkdir()
        (tmp_path / name / install.READY).write_text(wanted)
    assert install.install(tmp_path) == []
    assert all(
        [entry.name for entry in (tmp_path / name).iterdir()] == [install.READY] for name in install.ENVIRONMENTS
    )


def test_the_picture_has_every_panel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from kvstore.bench.peers.chart import draw

    rows = small(*named("kvstore-embedded", "files-tmpfs")).rows
    draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_drivers_make_the_same_content_as_the_other_benchmarks() -> None:
    assert np.array_equal(content(5, 1001), corpus.content(5, 1001))
