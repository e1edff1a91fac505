"""A writer in a process of its own that is killed, and what it has left in its tier."""

from __future__ import annotations

import os
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
from kvstore.tiers.base import Tier


def run_and_kill(command: list[object], output: Path, seconds: float) -> dict[str, set[int]]:
    """What a writer (a script and its arguments) said until it was killed, so long after its first acknowledgement."""
    with output.open("wb") as said:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=said)
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


def read_all(tier: Tier, rows: npt.NDArray[Any]) -> set[bytes]:
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
