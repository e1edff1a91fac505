"""What the benchmarks that set a tier against its raw baseline share: folders, memory, threads, and rows in pairs."""

from __future__ import annotations

import itertools
import mmap
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kvstore.bench.measure import Bar, Row, cpu_facts, percentile
from kvstore.errors import InvalidArgument
from kvstore.record import BLOCK

LARGEST = 128 << 20
Contender = tuple[str, int]  # "raw" or "ours", and its threads


@dataclass
class Taken:
    """What one contender took, batch by batch; everything is per record."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    server_cpu_s: float | None = None

    def add(self, records: int, seconds: float, cpu_s: float, server_cpu_s: float | None = None) -> None:
        """A batch of so many records took so long, and so much CPU time here and in the server."""
        self.seconds.append(seconds / records)
        self.cpu_s += cpu_s / records
        if server_cpu_s is not None:
            self.server_cpu_s = (self.server_cpu_s or 0.0) + server_cpu_s / records

    @property
    def p50(self) -> float:
        """The median batch's seconds a record."""
        return statistics.median(self.seconds)

    def row(self, case: str, mode: str, size: int, note: str) -> Row:
        """A row for records of `size` bytes."""
        return {
            "case": case,
            "mode": mode,
            "bytes": size,
            "p50_s": self.p50,
            "p99_s": percentile(self.seconds, 0.99),
            "gbps": size / self.p50 / 1e9,
            "baseline": None,
            "ratio": None,
            **cpu_facts(self.cpu_s, self.server_cpu_s, len(self.seconds), size),
            "rounds": len(self.seconds),
            "note": note,
            "bar": None,
            "met": None,
        }


def best(times: Mapping[Contender, Taken], who: str) -> int:
    """The number of threads with which a contender has the shortest median."""
    return min((key for key in times if key[0] == who), key=lambda key: times[key].p50)[1]


def paired(raw: Row, ours: Row, bar: Bar) -> list[Row]:
    """Both rows, ours judged by the raw one."""
    ours |= {"baseline": raw["case"], "ratio": raw["p50_s"] / ours["p50_s"]}
    bar.judge(ours)
    return [raw, ours]


def check_sizes(sizes: Sequence[int]) -> None:
    """`InvalidArgument` unless records of these sizes go to a disk directly, and some of them into memory at a time."""
    wrong = [size for size in sizes if not 0 < size <= LARGEST or size % BLOCK]
    if wrong:
        raise InvalidArgument(f"records to measure with have 4 KiB to 128 MiB, in steps of 4 KiB, not {wrong[0]} bytes")


def source_and_target(nbytes: int) -> tuple[memoryview, memoryview]:
    """Random bytes to write, and as much memory to read into, both in memory before a clock starts."""
    source, target = (memoryview(mmap.mmap(-1, nbytes)) for _ in range(2))
    words = np.frombuffer(source, np.uint64)
    words[:] = np.random.default_rng(0).integers(0, 1 << 63, len(words), dtype=np.uint64)
    target[:] = source
    return source, target


@contextmanager
def folder_in(path: Path, name: str) -> Iterator[Path]:
    """A new folder in `path`, gone afterwards. `InvalidArgument` where none can be made there."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"kvstore-bench-{name}-", dir=path))
    except OSError as error:
        raise InvalidArgument(f"{path} is no folder to measure in: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def in_threads(threads: int, count: int, work: Callable[[int], object]) -> float:
    """Seconds that so many threads need for `work(0)` … `work(count - 1)`; what one raises is raised here.

    All have ended when this returns or raises, after Ctrl-C too: what they work on may be taken down then.
    """
    numbers, failures, interrupted = itertools.count(), list[BaseException](), False

    def run() -> None:
        try:
            while not interrupted and (index := next(numbers)) < count:
                work(index)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            failures.append(error)

    crew = [threading.Thread(target=run) for _ in range(threads)]
    start = time.perf_counter()
    for thread in crew:
        thread.start()
    try:
        for thread in crew:
            thread.join()
    except BaseException:
        interrupted = True
        for thread in crew:
            thread.join()
        raise
    seconds = time.perf_counter() - start
    if failures:
        raise failures[0]
    return seconds
