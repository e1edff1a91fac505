"""Full disks, folders that cannot be used, numbers that cannot work."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstore.errors import Closed, ConfigError, InvalidArgument, StorageError, TooLarge
from kvstore.testing import BookOwner, make_sample
from kvstore.tiers.base import TierFull
from kvstore.tiers.nvme import NvmeTier, io, journal

MIB = 1 << 20
Opener = Callable[..., NvmeTier]

HOLD = """
import sys
from kvstore.tiers.nvme import NvmeTier
tier = NvmeTier(sys.argv[1], capacity=12 << 20, segment_bytes=1 << 20, reserve_bytes=0)
print("open", flush=True)
sys.stdin.read()
"""


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "none", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(tier: NvmeTier, owner: BookOwner) -> None:
    for number in range(1000):
        sample = make_sample(number, 50_000)
        try:
            owner.enter(sample.write_to(tier), sample)
        except TierFull:
            return
    raise AssertionError("the disk did not fill up")


def fill_up(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(fd, bytes(4096)):
            pass
    except OSError:
        os.close(fd)


def test_a_second_process_is_told_who_holds_the_folder(opener: Opener, folder: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StorageError, match=f"{folder} is in use by process {holder.pid}"):
            opener()
        holder.stdin.close()
        holder.wait(20)
    opener().recover()


def test_the_same_process_cannot_open_twice(opener: Opener) -> None:
    opener()
    with pytest.raises(StorageError, match=f"in use by process {os.getpid()}"):
        opener()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": MIB}, "capacity 1048576 is too small for two segments"),
        ({"segment_bytes": 1000}, r"\[nvme\] segment must be a multiple of 4096"),
        ({"segment_bytes": 4096}, r"\[nvme\] segment must be"),
        ({"io_threads": 0}, "io_threads must be at least 1, not 0"),
    ],
)
def test_numbers_that_cannot_work(opener: Opener, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opener(**options)


def test_paths_that_cannot_work(opener: Opener, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist; make it"):
        opener(tmp_path / "nowhere" / "nvme")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file is not a folder"):
        opener(tmp_path / "file")


def test_a_read_only_folder(opener: Opener, folder: Path) -> None:
    opener().recover()
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        with pytest.raises(StorageError, match=f"{folder}.*Read-only file system"):
            opener()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_use_before_recover_is_refused(opener: Opener) -> None:
    with pytest.raises(StorageError, match="recover"):
        make_sample(1, 10).write_to(opener())


def test_a_second_recover_is_refused(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    with pytest.raises(StorageError, match="recovered already"):
        tier.recover()


def test_memory_that_cannot_serve(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    sample = make_sample(1, 9000)
    location = sample.write_to(tier)
    with pytest.raises(InvalidArgument, match="9000 bytes"):
        tier.write(sample.header, sample.payload[:8999], sample.record)
    with pytest.raises(InvalidArgument, match="writable"):
        tier.read_into(location, 0, memoryview(bytes(4096)))
    assert isinstance(tier.read_many([(location, 0, memoryview(bytes(10)))] * 9)[8], InvalidArgument)
    wide = memoryview(bytearray(4096)).cast("I")
    tier.read_into(location, sample.record.header_bytes, wide)
    assert wide.tobytes() == sample.content[:4096]


def test_everything_is_closed_after_close(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    tier.close()
    calls: list[Callable[[], object]] = [
        tier.sync,
        tier.checkpoint,
        tier.recover,
        lambda: tier.delete(1, 1),
        lambda: tier.read_many([(1, 0, memoryview(b""))]),
        lambda: tier.make_room(1, BookOwner()),
    ]
    for call in calls:
        with pytest.raises(Closed):
            call()


def test_a_record_that_can_never_fit(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    assert tier.max_record == MIB - 4096
    largest = make_sample(1, tier.max_record - 4096)
    largest.check_in(tier, largest.write_to(tier))
    with pytest.raises(TooLarge, match="1048576 bytes"):
        make_sample(2, tier.max_record).write_to(tier)


def test_the_reserve_is_left_free(opener: Opener, folder: Path) -> None:
    system = os.statvfs(folder.parent)
    tier = opener(reserve_bytes=system.f_bavail * system.f_frsize + (1 << 40))
    tier.recover()
    with pytest.raises(TierFull):
        make_sample(1, 1000).write_to(tier)
    assert list((folder / "segments").iterdir()) == []
    assert tier.stats()["full"] == 1


def test_a_full_disk_loses_nothing(opener: Opener, small_disk: Path) -> None:
    path = small_disk / "nvme"
    tier = opener(path, capacity=64 * MIB)
    tier.recover()
    owner = BookOwner()
    fill(tier, owner)
    assert len(owner.book) > 50
    fill_up(small_disk / "ballast")
    owner.check(tier)
    with pytest.raises(TierFull):
        tier.checkpoint()
    owner.check(tier)
    assert tier.make_room(60_000, owner)  # journal entries for this were allocated before
    sample = make_sample(5000, 50_000)
    owner.enter(sample.write_to(tier), sample)
    owner.check(tier)
    (small_disk / "ballast").unlink()
    tier.checkpoint()
    tier.close()
    again = opener(path, capacity=64 * MIB)
    assert sorted(int(row["location"]) for row in again.recover().rows) == sorted(owner.book)
    owner.check(again)
    again.close()


def test_a_journal_that_cannot_be_written_acknowledges_nothing(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = opener()
    tier.recover()
    kept = make_sample(1, 9000)
    location = kept.write_to(tier)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_all", fail)
        patch.setattr(io, "append_record", lambda *_: errno.EIO)
        for shift in (0, 64):  # in one call with the record, and by itself after it
            with pytest.raises(StorageError, match=r"journal: Input/output error"):
                make_sample(2, 9000, shift=shift).write_to(tier)
    assert tier.used == kept.record.total_bytes
    assert tier.stats()["errors"] >= 1
    other = make_sample(3, 9000)
    there = {location: kept, other.write_to(tier): other}
    tier.close()
    again = opener()
    assert sorted(int(row["location"]) for row in again.recover().rows) == sorted(there)


def test_sync_is_shared(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = opener()
    tier.recover()
    flushes = []
    really = os.fdatasync

    def count(fd: int) -> None:
        flushes.append(fd)
        really(fd)

    monkeypatch.setattr(os, "fdatasync", count)
    with ThreadPoolExecutor(16) as threads:
        for _ in range(5):
            for done in [threads.submit(tier.sync) for _ in range(16)]:
                done.result(20)
    assert 5 <= len(flushes) < 60
