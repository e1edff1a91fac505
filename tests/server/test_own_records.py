"""A real server with no drive, killed -9 again and again: what it wrote to the shared place stays its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import kvstore
from kvstore.keys import Chain, ChunkRef

MiB = 1 << 20
CAPACITY = 4 * MiB
SPEC = kvstore.KVSpec.dense("owned", layers=4, kv_heads=4, head_dim=64, chunk_tokens=64)  # 256 KiB a chunk


def chain_of(seed: int) -> Chain:
    return Chain.of(np.random.default_rng(seed).integers(0, 50_000, 64), 64)


def content(ref: ChunkRef) -> Any:
    flat = np.random.Generator(np.random.SFC64(int.from_bytes(ref.key[:8], "little"))).bytes(MiB // 4)
    return np.frombuffer(flat, np.uint16).reshape(SPEC.part_shape(SPEC.part(), ref.tokens))


class Running:
    """`kvstore serve` with DRAM over a shared folder."""

    def __init__(self, folder: Path, place: Path) -> None:
        folder.mkdir(exist_ok=True)
        config = folder / "kvstore.toml"
        config.write_text(
            '[dram]\ncapacity = "4MiB"\nextent = "4MiB"\n'
            f'[remote]\nurl = "file://{place}"\ncapacity = "{CAPACITY // MiB}MiB"\nledger = "ledger"\n'
            "lookup_wait_s = 20\n"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0", "--config", config],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = str(json.loads(self.process.stdout.readline())["address"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


def bytes_in(place: Path) -> int:
    return sum(path.stat().st_size for path in place.glob("??/*/*/~*"))


def test_a_server_that_is_killed_again_and_again_stays_within_its_capacity(tmp_path: Path) -> None:
    place, last = tmp_path / "place", list[int]()
    place.mkdir()
    for life in range(3):
        server = Running(tmp_path / "one", place)
        try:
            with kvstore.connect(server.address) as client:
                assert client.stats()["tiers"]["remote"]["used"] == bytes_in(place) <= CAPACITY
                there = [seed for seed in last if client.lookup(SPEC, chain_of(seed)).tokens]
                assert len(there) == bytes_in(place) // (260 << 10)
                last = [100 * life + number for number in range(20)]
                for seed in last:
                    ref = chain_of(seed).refs[0]
                    client.put(SPEC, ref, content(ref), ack="persisted")  # it is in the place
                assert CAPACITY // 2 < bytes_in(place) <= CAPACITY
        finally:
            server.kill()
    server = Running(tmp_path / "two", place)
    try:
        with kvstore.connect(server.address) as client:
            found = [seed for seed in last if client.lookup(SPEC, chain_of(seed)).tokens]
            assert len(found) == bytes_in(place) // (260 << 10)
            for seed in found:
                ref = chain_of(seed).refs[0]
                assert (client.get(SPEC, ref, verify=True) == content(ref)).all()
            assert client.stats()["tiers"]["remote"]["used"] == 0
    finally:
        server.kill()
