"""`kvstore bench tier posix`: the engine against plain threads that open, read or write, and close files beside it.

Both have the same sizes and numbers of threads, in an order drawn anew each round, and the best number of threads
counts for each. Nothing is flushed by either. Reads come twice: `read` of files that the page cache has, where only
work of one's own counts, and `read-cold` after both have been dropped from it. What is read is compared with what was
written.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvstore import _native
from kvstore.bench.cpu import CpuClock
from kvstore.bench.measure import Bar, Row, cpu_facts, percentile
from kvstore.bench.raw_disk import in_threads
from kvstore.errors import Corrupt, StorageError
from kvstore.tiers.remote.posix import PosixEngine

MIB = 1 << 20
SIZES = (256 << 10, MIB, 4 * MIB, 16 * MIB)
THREADS = (1, 2, 4)
BAR = Bar(ratio=0.9)
TIMEOUT_S = 60.0
_BATCH = 64 * MIB
_NOTES = {
    "write": "into the page cache, nothing flushed; time per record of a batch",
    "read": "all of it in the page cache; time per record of a batch",
    "read-cold": "nothing in this machine's page cache, maybe in the disk's host's; time per record of a batch",
}
Times = dict[tuple[str, int], list[tuple[float, float]]]  # seconds, and CPU seconds, a record


def run(
    path: Path, *, sizes: Sequence[int] = SIZES, rounds: int = 16, progress: Callable[[str], None] | None = None
) -> list[Row]:
    """Rows for `raw-write`, `write`, `raw-read`, `read`, `raw-read-cold` and `read-cold` at each of `sizes` (bytes).

    Works in a new folder in `path` and removes it. `StorageError` if the file system has too little room.
    """
    say = progress or (lambda text: None)
    rows: list[Row] = []
    with _folder(path) as folder:
        facts = os.statvfs(folder)
        if facts.f_bavail * facts.f_frsize < 1 << 30:
            raise StorageError(f"{path} has too little room for a benchmark: free 1 GiB, or choose another folder")
        (folder / "raw").mkdir()
        (folder / "ours").mkdir()
        with closing(PosixEngine(folder / "ours", threads=max(THREADS))) as engine:
            contest = _Contest(folder / "raw", engine)
            for size in sizes:
                say(f"records of {size >> 10} KiB")
                rows += contest.measure(size, rounds)
    return rows


class _Contest:
    """Plain files and an engine, and memory for one batch."""

    def __init__(self, folder: Path, engine: PosixEngine) -> None:
        self._folder, self._engine = folder, engine
        self._source, self._target = (memoryview(mmap.mmap(-1, _BATCH)) for _ in range(2))
        words = np.frombuffer(self._source, np.uint64)
        words[:] = np.random.default_rng(0).integers(0, 1 << 63, len(words), dtype=np.uint64)
        self._target[:] = self._source  # both are in memory before the clock starts
        self._cpu = CpuClock()

    def measure(self, size: int, rounds: int) -> list[Row]:
        """The rows of one record size."""
        pieces, targets = ([m[at : at + size] for at in range(0, _BATCH, size)] for m in (self._source, self._target))
        expected = [_native.xxh3_128(piece) for piece in pieces]
        times: dict[str, Times] = {case: {} for case in _NOTES}
        contenders = [(who, threads) for threads in THREADS for who in ("raw", "ours")]
        order = random.Random(size)
        for number in range(-1, rounds):
            for who, threads in order.sample(contenders, len(contenders)):
                self._forget(who)
                steps = self._steps(who, pieces, targets)
                for case, step in steps.items():
                    if case == "read-cold":
                        self._drop(who)
                    self._target[::4096] = bytes(_BATCH // 4096)
                    used = self._cpu.seconds()
                    seconds = in_threads(threads, len(pieces), step)
                    used = self._cpu.seconds() - used
                    if case != "write" and [_native.xxh3_128(target) for target in targets] != expected:
                        raise Corrupt(f"{who} read something else than was written")
                    if number >= 0:
                        taken = times[case].setdefault((who, threads), [])
                        taken.append((seconds / len(pieces), used / len(pieces)))
        self._forget("raw")
        self._forget("ours")
        return [row for case in _NOTES for row in _two_rows(case, size, times[case])]

    def _steps(
        self, who: str, pieces: Sequence[memoryview], targets: Sequence[memoryview]
    ) -> dict[str, Callable[[int], Any]]:
        engine, folder = self._engine, os.fspath(self._folder)
        names = [f"r/{number}" for number in range(len(pieces))]
        paths = [f"{folder}/{number}" for number in range(len(pieces))]
        read: Callable[[int], Any]
        if who == "ours":
            read = lambda i: engine.read_into(names[i], 0, targets[i], TIMEOUT_S)  # noqa: E731
            return {
                "write": lambda i: engine.put(names[i], [pieces[i]], TIMEOUT_S), "read": read, "read-cold": read,
            }  # fmt: skip
        read = lambda i: _raw_read(paths[i], targets[i])  # noqa: E731
        return {"write": lambda i: _raw_write(paths[i], pieces[i]), "read": read, "read-cold": read}

    def _files(self, who: str) -> Iterator[Path]:
        folder = self._folder if who == "raw" else self._engine.root / "r"
        return folder.glob("*")

    def _forget(self, who: str) -> None:
        for path in self._files(who):
            path.unlink()

    def _drop(self, who: str) -> None:
        for path in self._files(who):
            fd = os.open(path, os.O_RDONLY)
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _raw_read(path: str, target: memoryview) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    done = os.preadv(fd, [target], 0)
    os.close(fd)
    if done != len(target):
        raise Corrupt(f"{path} is shorter than it was written")


def _raw_write(path: str, piece: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    done = os.pwritev(fd, [piece], 0)
    os.close(fd)
    if done != len(piece):
        raise StorageError(f"{path} was written in part")


def _two_rows(case: str, size: int, times: Times) -> list[Row]:
    """The best raw row and the engine's best, both by their medians."""
    best = {
        who: min((key for key in times if key[0] == who), key=lambda key: _median(times[key]))
        for who in ("raw", "ours")
    }
    raw = _row(f"raw-{case}", case, size, best["raw"][1], times[best["raw"]])
    ours = _row(case, case, size, best["ours"][1], times[best["ours"]])
    ours |= {"baseline": raw["case"], "ratio": raw["p50_s"] / ours["p50_s"]}
    BAR.judge(ours)
    return [raw, ours]


def _median(taken: Sequence[tuple[float, float]]) -> float:
    return statistics.median(seconds for seconds, _ in taken)


def _row(name: str, case: str, size: int, threads: int, taken: Sequence[tuple[float, float]]) -> Row:
    p50 = _median(taken)
    return {
        "case": name,
        "mode": f"{threads} threads",
        "bytes": size,
        "p50_s": p50,
        "p99_s": percentile([seconds for seconds, _ in taken], 0.99),
        "gbps": size / p50 / 1e9,
        "baseline": None,
        "ratio": None,
        **cpu_facts(sum(used for _, used in taken), None, len(taken), size),
        "rounds": len(taken),
        "note": _NOTES[case],
        "bar": None,
        "met": None,
    }


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder of its own in `path`, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-bench-posix-", dir=path))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
