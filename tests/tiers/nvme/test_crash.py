"""kill -9 of a process that writes, deletes, cleans and checkpoints: nothing corrupt, lost or back from the dead."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.record import unpack
from kvstore.testing import aligned_memory
from kvstore.tiers.nvme import NvmeTier

ROUNDS = 5
WRITER = Path(__file__).with_name("crash_writer.py")


def run_and_kill(folder: Path, first: int, seconds: float) -> dict[str, set[int]]:
    """What a writer said until it was killed."""
    output = folder.with_name(f"said-{first}")
    with output.open("wb") as said:
        process = subprocess.Popen([sys.executable, str(WRITER), str(folder), str(first)], stdout=said)
        while b"a " not in output.read_bytes() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        assert process.poll() is None, "the writer ended by itself"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    words: dict[str, set[int]] = {"w": set(), "a": set(), "g": set(), "d": set()}
    for line in output.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            words[line[0]].add(int(line[2:]))
    return words


def read_all(tier: NvmeTier, rows: npt.NDArray[Any]) -> set[bytes]:
    """Every row's key, all records verified."""
    found = set[bytes]()
    for row in rows:
        out = aligned_memory(int(row["header_blocks"]) * 4096 + int(row["stored"]))
        tier.read_into(int(row["location"]), 0, out)
        record = unpack(out)
        groups = record.groups
        digests = _native.xxh3_128_many(out[record.header_bytes :], groups["offset"].copy(), groups["length"].copy())
        assert np.array_equal(digests, groups["xxh3"]), "corrupt payload"
        assert record.key == row["key"].tobytes()
        assert record.key not in found, "two copies"
        found.add(record.key)
    return found


def test_kill_9(tmp_path: Path) -> None:
    folder, choose = tmp_path / "nvme", random.Random(11)
    tried, acknowledged, gone, deleted = set[int](), set[int](), set[int](), set[int]()
    for round_ in range(ROUNDS):
        said = run_and_kill(folder, 1 + round_ * 100_000, choose.uniform(0.05, 1.2))
        tried |= said["w"]
        acknowledged |= said["a"]
        gone |= said["g"]
        deleted |= said["d"]
        keys = {number: hashlib.sha256(b"%d" % number).digest() for number in tried}
        tier = NvmeTier(folder, capacity=8 << 20, segment_bytes=1 << 20, reserve_bytes=0)
        found = tier.recover()
        assert not found.notes
        there = read_all(tier, found.rows)
        lost = [n for n in acknowledged - gone if keys[n] not in there]
        assert not lost, f"round {round_}: {lost} were acknowledged"
        phantoms = [n for n in deleted if keys[n] in there]
        assert not phantoms, f"round {round_}: {phantoms} were deleted"
        assert there <= {keys[n] for n in tried}
        # The next writer's owner does not know of these: it takes them for dead, so they go now.
        for row in found.rows:
            nbytes = int(row["header_blocks"]) * 4096 + -(-int(row["stored"]) // 4096) * 4096
            tier.delete(int(row["location"]), nbytes)
        gone |= tried
        tier.close()
    assert len(acknowledged) > 100
