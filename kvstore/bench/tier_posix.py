"""`kvstore bench tier posix`: the engine against plain threads that open, read or write, and close files beside it.

Both have the same sizes and numbers of threads, in an order drawn anew each round, and the best number of threads
counts for each. Nothing is flushed by either. Reads come twice: `read` of files that the page cache has, where only
work of one's own counts, and `read-cold` after both have been dropped from it. What is read is compared with what was
written. `find` is a look-up of 100 names against opening, reading and closing in a loop.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from kvstore import _native
from kvstore.bench.contest import (
    Contender,
    Taken,
    best,
    check_sizes,
    folder_in,
    in_threads,
    paired,
    source_and_target,
)
from kvstore.bench.cpu import CpuClock
from kvstore.bench.finds import HEAD_BYTES, find_rows, prepared
from kvstore.bench.measure import Bar, Row
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
_FIND_NOTE = "all of it in the page cache"
Times = dict[Contender, Taken]


def run(
    path: Path, *, sizes: Sequence[int] = SIZES, rounds: int = 16, progress: Callable[[str], None] | None = None
) -> list[Row]:
    """Rows for `raw-write`, `write`, `raw-read`, `read`, `raw-read-cold` and `read-cold` at each of `sizes` (bytes),
    `raw-find` and `find`.

    Works in a new folder in `path` and removes it. `StorageError` if the file system has too little room.
    """
    check_sizes(sizes)
    say = progress or (lambda text: None)
    rows: list[Row] = []
    with folder_in(path, "posix") as folder:
        facts = os.statvfs(folder)
        need = (1 << 30) + 2 * max(sizes)
        if facts.f_bavail * facts.f_frsize < need:
            raise StorageError(f"{path} has too little room for a benchmark: free {need >> 20} MiB, or choose another")
        (folder / "raw").mkdir()
        (folder / "ours").mkdir()
        with closing(PosixEngine(folder / "ours", threads=max(THREADS))) as engine:
            contest = _Contest(folder / "raw", engine, max(_batch_bytes(size) for size in sizes))
            for size in sizes:
                say(f"records of {size >> 10} KiB")
                rows += contest.measure(size, rounds)
            rows += contest.find(100 * rounds)
    return rows


def _batch_bytes(size: int) -> int:
    return max(_BATCH // size, 1) * size


class _Contest:
    """Plain files and an engine, and memory for one batch."""

    def __init__(self, folder: Path, engine: PosixEngine, nbytes: int) -> None:
        self._folder, self._engine = folder, engine
        self._source, self._target = source_and_target(nbytes)
        self._cpu = CpuClock()

    def measure(self, size: int, rounds: int) -> list[Row]:
        """The rows of one record size."""
        nbytes = _batch_bytes(size)
        pieces, targets = ([m[at : at + size] for at in range(0, nbytes, size)] for m in (self._source, self._target))
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
                    self._target[:nbytes:4096] = bytes(nbytes // 4096)
                    used = self._cpu.seconds()
                    seconds = in_threads(threads, len(pieces), step)
                    used = self._cpu.seconds() - used
                    if case != "write" and [_native.xxh3_128(target) for target in targets] != expected:
                        raise Corrupt(f"{who} read something else than was written")
                    if number >= 0:
                        times[case].setdefault((who, threads), Taken()).add(len(pieces), seconds, used)
        self._forget("raw")
        self._forget("ours")
        return [row for case in _NOTES for row in _rows(case, size, times[case])]

    def find(self, rounds: int) -> list[Row]:
        """The rows of look-ups."""
        folder, there = os.fspath(self._folder), prepared(self._source)
        os.mkdir(f"{folder}/find")
        for name, whole in there.items():
            _raw_write(f"{folder}/{name}", whole)
            self._engine.put(name, [whole], TIMEOUT_S)
        return find_rows(
            there, lambda names: [_raw_head(f"{folder}/{name}") for name in names],
            lambda names: self._engine.heads(names, HEAD_BYTES, TIMEOUT_S), rounds=rounds, note=_FIND_NOTE,
        )  # fmt: skip

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


def _raw_head(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    head = os.pread(fd, HEAD_BYTES, 0)
    os.close(fd)
    return head


def _raw_write(path: str, piece: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    done = os.pwritev(fd, [piece], 0)
    os.close(fd)
    if done != len(piece):
        raise StorageError(f"{path} was written in part")


def _rows(case: str, size: int, times: Times) -> list[Row]:
    """The best raw row and the engine's best, both by their medians."""
    raw, ours = (
        times[who, threads].row(name, f"{threads} threads", size, _NOTES[case])
        for who, name in (("raw", f"raw-{case}"), ("ours", case))
        for threads in [best(times, who)]
    )
    return paired(raw, ours, BAR)
