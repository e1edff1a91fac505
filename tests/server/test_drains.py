"""Drives of a real server: drained and unmounted by command, or gone by themselves; and who is told."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import DramConfig, NvmeConfig
from kvstore.errors import InvalidArgument
from kvstore.keys import Chain, ChunkRef

MiB = 1 << 20
SPEC = kvstore.KVSpec.dense("drained", layers=4, kv_heads=4, head_dim=64, chunk_tokens=64)  # 256 KiB a chunk
CHUNKS = 60


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}


def refs_of(seed: int = 0) -> list[ChunkRef]:
    rng = np.random.default_rng(seed)
    return [Chain.of(rng.integers(0, 50_000, 64), 64).refs[0] for _ in range(CHUNKS)]


def content(ref: ChunkRef) -> Any:
    flat = np.random.Generator(np.random.SFC64(int.from_bytes(ref.key[:8], "little"))).bytes(MiB // 4)
    return np.frombuffer(flat, np.uint16).reshape(SPEC.part_shape(SPEC.part(), ref.tokens))


class Running:
    """`kvstore serve` over two drives, each a tmpfs of its own."""

    def __init__(self, drives: list[Path], folder: Path) -> None:
        config = folder / "kvstore.toml"
        config.write_text(
            '[dram]\ncapacity = "4MiB"\nextent = "4MiB"\n'
            f'[nvme]\npath = "{drives[0]}/kv"\npaths = ["{drives[1]}/kv"]\ncapacity = "96MiB"\nsegment = "1MiB"\n'
            'reserve = "0"\n'
        )
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0", "--config", config],
                stdout=subprocess.PIPE, stderr=log, text=True, env=environment(),
            )  # fmt: skip
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.address = str(told["address"])
        self.ways = (self.address, f"local:{told['local']}", f"bulk://{told['bulk']}", f"grpc://{self.address}")

    def command(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kvstore", *map(str, words), "--url", self.address],
            capture_output=True, text=True, check=False, env=environment(), timeout=100,
        )  # fmt: skip

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def drives(tmp_path: Path) -> Iterator[list[Path]]:
    made = [tmp_path / "a", tmp_path / "b"]
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("needs the right to mount")
    for each in made:
        each.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "none", each], check=False).returncode:
            pytest.skip("needs the right to mount")
    yield made
    for each in made:
        subprocess.run(["umount", "-l", each], check=False, capture_output=True)


@pytest.fixture
def running(drives: list[Path], tmp_path: Path) -> Iterator[Running]:
    server = Running(drives, tmp_path)
    yield server
    server.end()


def fill(client: kvstore.Client, refs: list[ChunkRef]) -> None:
    for ref in refs:
        client.put(SPEC, ref, content(ref), ack="persisted")


def check(client: kvstore.Client, refs: list[ChunkRef]) -> None:
    for ref in refs:
        assert (client.get(SPEC, ref, verify=True) == content(ref)).all()


def test_a_drive_is_drained_unmounted_and_brought_back(running: Running, drives: list[Path]) -> None:
    refs, path = refs_of(), f"{drives[1]}/kv"
    with kvstore.connect(running.address) as client:
        fill(client, refs)
        done = running.command("tiers", "drain", "nvme", "--path", path, "--wait", "--json")
        told = json.loads(done.stdout)
        assert (done.returncode, told["state"], told["dropped_chunks"]) == (0, "drained", 0), done.stderr
        assert told["moved_parts"] > 0
        subprocess.run(["umount", drives[1]], check=True)  # not lazily: nothing of it is open any more
        check(client, refs)
        fill(client, refs_of(1))
        assert not list(drives[1].iterdir())
        shown = running.command("tiers").stdout
        assert [path, "drained"] in [line.split()[:2] for line in shown.splitlines()], shown
        again = running.command("tiers", "resume", "nvme", "--path", path)
        assert again.returncode == 7
        assert "mount it" in again.stderr
        check(client, refs_of(1))
    assert "is drained and can be pulled" in running.log.read_text()


def test_a_drive_pulled_in_use_is_told_of_and_its_records_are_misses(running: Running, drives: list[Path]) -> None:
    refs = refs_of()
    with kvstore.connect(running.address) as client, closing(client.watch()) as events:  # type: ignore[type-var]
        fill(client, refs)
        subprocess.run(["umount", "-l", drives[1]], check=True)
        note = next(event for event in events if event.kind == "tier")
        assert note.tier == "nvme"
        assert f"{drives[1]}/kv (drive 1) is out of use: the folder was unmounted" in note.note
        kept = [ref for ref, there in zip(refs, client.contains(SPEC, refs), strict=True) if there]
        assert len(kept) >= CHUNKS // 3
        check(client, kept)
        fill(client, refs_of(1))
        check(client, refs_of(1))
    deadline = time.monotonic() + 30
    while "was unmounted" not in running.log.read_text() and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    assert f"kvstore: {drives[1]}/kv (drive 1) is out of use" in running.log.read_text()


def test_every_way_in_drains_and_a_wrong_name_is_refused(running: Running, drives: list[Path]) -> None:
    for way in running.ways:
        with kvstore.connect(way) as client:
            with pytest.raises(InvalidArgument, match="dram cannot be drained"):
                client.drain("dram")
            assert client.resume("nvme").state == "ok"
            told = client.drain("nvme", f"{drives[0]}/kv")
            assert (told.tier, told.path) == ("nvme", f"{drives[0]}/kv")
            assert client.resume("nvme", f"{drives[0]}/kv").state == "ok"
    for words, said in (
        (("drain", "tape"), "no tier 'tape'"), (("drain",), "which tier?"), (("drain", "dram"), "cannot be drained"),
        (("show", "nvme"), "go with `drain`"), (("drain", "nvme", "--path", "/nowhere"), "no drive of this tier"),
    ):  # fmt: skip
        refused = running.command("tiers", *words)
        assert refused.returncode == 2
        assert said in refused.stderr


def test_a_folder_opened_by_the_command_itself_is_not_drained(tmp_path: Path) -> None:
    kvstore.open(kvstore.Config(dram=DramConfig(8 << 20), nvme=NvmeConfig(tmp_path / "data", 2 << 30))).close()
    done = subprocess.run(
        [sys.executable, "-m", "kvstore", "tiers", "drain", "nvme", "--nvme", tmp_path / "data"],
        capture_output=True, text=True, check=False, env=environment(), timeout=100,
    )  # fmt: skip
    assert done.returncode == 2
    assert "give the --url of a server" in done.stderr


def test_a_server_killed_in_mid_drain_has_everything_and_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    folders, refs = [tmp_path / "a", tmp_path / "b"], refs_of()
    for each in folders:
        each.mkdir()
    server = Running(folders, tmp_path)
    try:
        with kvstore.connect(server.address) as client:
            fill(client, refs)
        for folder in (*folders, *folders):
            path = f"{folder}/kv"
            with kvstore.connect(server.address) as client:
                client.drain("nvme", path)
                while client.drain("nvme", path).moved_parts < 5:
                    time.sleep(0.001)
                server.process.kill()
            server.end()
            server = Running(folders, tmp_path)
            with kvstore.connect(server.address) as client:
                check(client, refs)
                assert list(client.stats()["tiers"]["nvme"]["drains"]) == [path]
                waited = server.command("tiers", "drain", "nvme", "--path", path, "--wait", "--json")
                assert json.loads(waited.stdout)["state"] == "drained"
                check(client, refs)
                assert client.resume("nvme", path).state == "ok"
                assert client.stats()["tiers"]["nvme"]["drives"] == 2
    finally:
        server.end()


def test_a_drain_is_remembered_until_it_is_ended(tmp_path: Path) -> None:
    """By a server that is killed -9 each time; `kvstore tiers` shows it, and the drive is left alone."""
    folders, path = [tmp_path / "a", tmp_path / "b"], f"{tmp_path}/a/kv"
    for each in folders:
        each.mkdir()
    server = Running(folders, tmp_path)
    try:
        with kvstore.connect(server.address) as client:
            fill(client, refs_of())
            done = server.command("tiers", "drain", "nvme", "--path", path, "--wait")
            assert done.returncode == 0, done.stderr
        for seed in (1, 2):
            server.process.kill()
            server.end()
            server = Running(folders, tmp_path)
            deadline = time.monotonic() + 60
            while held_in(server, path) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not held_in(server, path), "its files are open"
            shown = [line.split()[:2] for line in server.command("tiers").stdout.splitlines()]
            assert [path, "drained"] in shown, shown
            with kvstore.connect(server.address) as client:
                fill(client, refs_of(seed))
                check(client, refs_of(seed))
            assert not held_in(server, path)
        assert server.command("tiers", "resume", "nvme", "--path", path).returncode == 0
        server.process.kill()
        server.end()
        server = Running(folders, tmp_path)
        shown = [line.split()[:2] for line in server.command("tiers").stdout.splitlines()]
        assert [path, "drained"] not in shown
        assert held_in(server, path)
        with kvstore.connect(server.address) as client:
            assert "drains" not in client.stats()["tiers"]["nvme"]
            check(client, refs_of(2))
    finally:
        server.end()


def held_in(server: Running, path: str) -> list[str]:
    """Files that the server's process has open in a folder."""
    opened = [os.path.realpath(each) for each in Path(f"/proc/{server.process.pid}/fd").iterdir()]
    return [each for each in opened if each.startswith(f"{path}/")]
