"""How long the NVMe tier takes from opening to rows that can be looked up, after a clean stop and after kill -9.

The records are written by a process of its own that is really killed. Journal and snapshot are in the page cache, as
they are when a server is started again on a machine that kept running. Imports are not counted.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvstore.bench.measure import Bar, Row
from kvstore.errors import Corrupt, StorageError
from kvstore.record import Record, unpack
from kvstore.testing.records import NAMESPACE, aligned_memory, make_sample, make_spec
from kvstore.tiers.nvme import NvmeTier

RECORD_BYTES = 16 << 10
BARS = {"recover-100k-clean": Bar(p50_s=0.25), "recover-100k-killed": Bar(p50_s=1.0)}
_THREADS = 4
_STATE = ("journal", "snapshot.arrow")


def recover_rows(folder: Path, records: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Two rows."""
    import pyarrow.ipc  # noqa: F401 - not counted

    system = os.statvfs(folder)
    if system.f_bavail * system.f_frsize < records * 21_000 + (1 << 30):
        raise StorageError(f"{folder} has too little room for {records} records; free some, or choose another folder")
    say(f"writing {records} records to recover")
    _write_and_die(folder / "tier", records)
    times: dict[str, list[float]] = {case: [] for case in BARS}
    killed = _keep(folder, "killed")
    _open(folder / "tier", records, checkpoint=True)
    clean = _keep(folder, "clean")
    for _ in range(rounds):
        for case, state in zip(BARS, (clean, killed), strict=True):
            _restore(folder, state)
            times[case].append(_open(folder / "tier", records))
    return [_row(case, records, seconds) for case, seconds in times.items()]


def _row(case: str, records: int, seconds: list[float]) -> Row:
    bar, p50 = BARS[case], statistics.median(seconds)
    row: Row = {
        "case": case,
        "mode": f"{records} records",
        "bytes": RECORD_BYTES,
        "p50_s": p50,
        "p99_s": max(seconds),
        "gbps": None,
        "baseline": None,
        "ratio": None,
        "rounds": len(seconds),
        "note": "journal and snapshot in the page cache; imports not counted",
    }
    return row | {"bar": f"≤ {bar.p50_s:g} s", "met": bar.met(row)}


def _tier(path: Path, records: int) -> NvmeTier:
    return NvmeTier(path, capacity=records * 24_000 + (2 << 30), reserve_bytes=0)


def _write_and_die(path: Path, records: int) -> None:
    code = f"from kvstore.bench.nvme_recover import write; write({str(path)!r}, {records})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    if line != b"written\n":
        raise StorageError(f"the process that writes what is recovered ended early: {path}")


def write(path: str, records: int) -> None:
    """Write the records, say so, and wait to be killed."""
    tier = _tier(Path(path), records)
    tier.recover()
    tier.describe(NAMESPACE, make_spec())
    sample = make_sample(0, RECORD_BYTES)

    def write_share(first: int) -> None:
        for number in range(first, records, _THREADS):
            record = _renamed(sample.record, number)
            tier.write(record.pack(), sample.payload, record)

    crew = [threading.Thread(target=write_share, args=(first,)) for first in range(_THREADS)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    os.write(1, b"written\n")
    time.sleep(600)


def _renamed(record: Record, number: int) -> Record:
    key = np.random.default_rng(number).bytes(32)
    return Record(
        key, record.parent, record.spec, record.namespace, record.part, record.position, record.tokens,
        record.logical, record.stored, record.groups, created_ms=record.created_ms + number,
    )  # fmt: skip


def _open(path: Path, records: int, *, checkpoint: bool = False) -> float:
    """Seconds until the rows are there; all of them are counted and a few read."""
    start = time.perf_counter()
    tier = _tier(path, records)
    found = tier.recover()
    seconds = time.perf_counter() - start
    if len(found.rows) != records:
        raise Corrupt(f"{len(found.rows)} of {records} records came back")
    for row in found.rows[:: records // 10]:
        out = aligned_memory(8192)
        tier.read_into(int(row["location"]), 0, out)
        if unpack(out).key != row["key"].tobytes():
            raise Corrupt(f"another record lies at {int(row['location']):#x}")
    if checkpoint:
        tier.checkpoint()
    tier.close()
    return seconds


def _keep(folder: Path, name: str) -> Path:
    kept = folder / name
    kept.mkdir()
    for each in _STATE:
        if (folder / "tier" / each).exists():
            shutil.copy2(folder / "tier" / each, kept / each)
    return kept


def _restore(folder: Path, state: Path) -> None:
    for each in _STATE:
        target = folder / "tier" / each
        target.unlink(missing_ok=True)
        if (state / each).exists():
            shutil.copy2(state / each, target)
