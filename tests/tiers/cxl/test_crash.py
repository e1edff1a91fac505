"""kill -9 of a process that writes to a persistent tier and deletes from it: nothing corrupt, lost or back."""

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
from kvstore.record import padded, unpack
from kvstore.testing import aligned_memory
from kvstore.tiers.cxl import CxlTier
from tests.tiers.cxl.conftest import MIB, MakeFiles

ROUNDS = 4
WRITER = Path(__file__).with_name("crash_writer.py")


def run_and_kill(paths: list[Path], output: Path, first: int, seconds: float) -> dict[str, set[int]]:
    """What a writer said until it was killed."""
    with output.open("wb") as said:
        process = subprocess.Popen([sys.executable, str(WRITER), str(first), *map(str, paths)], stdout=said)
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


def read_all(tier: CxlTier, rows: npt.NDArray[Any]) -> set[bytes]:
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


def test_kill_9(make_files: MakeFiles, tmp_path: Path) -> None:
    paths, choose = make_files(16 * MIB, 8 * MIB), random.Random(11)
    acknowledged = 0
    for round_ in range(ROUNDS):
        said = run_and_kill(paths, tmp_path / f"said-{round_}", 1 + round_ * 100_000, choose.uniform(0.05, 0.6))
        keys = {number: hashlib.sha256(b"%d" % number).digest() for number in said["w"]}
        tier = CxlTier(paths=paths, persistent=True)
        found = tier.recover()
        assert not found.clean
        assert all("whose writing had not ended" in note for note in found.notes), found.notes
        there = read_all(tier, found.rows)
        lost = [n for n in said["a"] - said["g"] if keys[n] not in there]
        assert not lost, f"round {round_}: {lost} were acknowledged"
        phantoms = [n for n in said["d"] if keys[n] in there]
        assert not phantoms, f"round {round_}: {phantoms} were deleted"
        assert there <= set(keys.values())
        acknowledged += len(said["a"])
        for row in found.rows:
            tier.delete(int(row["location"]), int(row["header_blocks"]) * 4096 + padded(int(row["stored"])))
        assert tier.used == 0
        tier.close()
    assert acknowledged > 100
