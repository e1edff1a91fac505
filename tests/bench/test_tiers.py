"""`bench tier` on small batches: rows are whole, what is read is what was written, and look-ups are rows as well."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvstore.bench import finds, tier_posix, tier_s3, tier_valkey
from kvstore.bench.contest import check_sizes, folder_in, in_threads
from kvstore.bench.measure import Row
from kvstore.bench.redis_server import PROGRAM
from kvstore.errors import Corrupt, InvalidArgument

SIZES = (256 << 10, 1 << 20)
MOVED = ["raw-write", "write", "raw-read", "read"]
FOUND = ["raw-find", "find"]


def check(rows: Sequence[Row], cases: Sequence[str], *, served: bool) -> None:
    assert [row["case"] for row in rows] == list(cases)
    for row in rows:
        assert row["p50_s"] > 0
        assert (row["baseline"] is None) == row["case"].startswith("raw-")
        assert (row["ratio"] is None) == row["case"].startswith("raw-")
        if row["bytes"]:
            assert (row["server_cpu_s_per_gb"] is not None) == served
            if row["baseline"]:
                assert row["met"] == (row["ratio"] >= 0.9)


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
@pytest.mark.parametrize("hedge", [False, True])
def test_valkey(monkeypatch: pytest.MonkeyPatch, hedge: bool) -> None:
    monkeypatch.setattr(tier_valkey, "_BATCH", 4 << 20)
    rows = tier_valkey.run(sizes=SIZES, threads=(2,), rounds=2, hedge=hedge)
    check(rows, MOVED * 2 + FOUND, served=True)


@pytest.mark.parametrize("server", ["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def test_s3(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    if server == "moto":
        pytest.importorskip("moto.server")
    monkeypatch.setattr(tier_s3, "_BATCH", 2 << 20)
    rows = tier_s3.run(sizes=SIZES, server=server, rounds=1)
    for_each_size = ["raw-write", "write"] * 2 + ["raw-read", "read"] * 2  # one request in flight, then four
    check(rows, for_each_size * 2 + FOUND, served=True)


def test_posix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tier_posix, "_BATCH", 4 << 20)
    rows = tier_posix.run(tmp_path, sizes=SIZES, rounds=2)
    check(rows, [*MOVED, "raw-read-cold", "read-cold"] * 2 + FOUND, served=False)
    assert list(tmp_path.iterdir()) == []


def test_a_look_up_that_finds_something_else_is_corrupt() -> None:
    there = finds.prepared(memoryview(bytes(1 << 20)))
    names = [f"find/{number:03}" for number in range(finds.NAMES)]
    right = [bytes(finds.HEAD_BYTES) if name in there else None for name in names]
    assert len(finds.find_rows(there, lambda names: right, lambda names: right, rounds=2, note="")) == 2
    for wrong in ([*right[:-1], b"x"], right[:-1], [None] * len(names)):
        with pytest.raises(Corrupt, match="find gave other bytes"):
            finds.find_rows(there, lambda names: right, lambda names, wrong=wrong: wrong, rounds=2, note="")


@pytest.mark.parametrize("size", [0, 1, 4097, (128 << 20) + 4096])
def test_sizes_that_cannot_be_measured(size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"not {size} bytes"):
        check_sizes([4096, size])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is no folder to measure in"), folder_in(tmp_path / "absent", "x"):
        pass


def test_threads_end_before_an_interruption_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what they work on would be taken down beneath them."""
    began, join = threading.Event(), threading.Thread.join
    done = 0

    def work(index: int) -> None:
        nonlocal done
        began.set()
        time.sleep(0.2)
        done += 1

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.setattr(threading.Thread, "join", join)
        began.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        in_threads(1, 1000, work)
    assert threading.active_count() <= before
    assert done < 1000
