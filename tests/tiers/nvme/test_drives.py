"""Several drives: records on all of them, and each of them lost, missing, back, swapped or somebody else's."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstore.errors import ConfigError, NotFound, StorageError
from kvstore.testing import BookOwner, Sample, aligned_memory, make_sample, make_spec
from kvstore.testing.records import NAMESPACE
from kvstore.tiers.base import TierFull
from kvstore.tiers.nvme import NvmeTier, fleet, io
from kvstore.tiers.nvme.location import drive_of

MIB = 1 << 20
Book = dict[int, Sample]
Opener = Callable[..., NvmeTier]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in ("a", "b", "c")]


@pytest.fixture
def drives(folders: list[Path]) -> Iterator[Opener]:
    """Opens tiers on three folders, and closes what the test left open."""
    opened: list[NvmeTier] = []

    def opening(paths: list[Path] | None = None, **options: int) -> NvmeTier:
        wanted = {"capacity": 36 * MIB, "segment_bytes": MIB, "reserve_bytes": 0, **options}
        opened.append(NvmeTier(paths=paths or folders, **wanted))
        return opened[-1]

    yield opening
    for tier in opened:
        tier.close()


def write_some(tier: NvmeTier, count: int = 60, first: int = 0) -> Book:
    samples = [make_sample(first + i, 20_000 + 100 * i) for i in range(count)]
    return {sample.write_to(tier): sample for sample in samples}


def on(drive: int, book: Book) -> Book:
    return {at: sample for at, sample in book.items() if drive_of(at) == drive}


def check(tier: NvmeTier, book: Book) -> None:
    for location, sample in book.items():
        sample.check_in(tier, location)


def recovered(tier: NvmeTier) -> tuple[list[int], list[str]]:
    found = tier.recover()
    return sorted(int(row["location"]) for row in found.rows), list(found.notes)


def test_records_that_follow_each_other_lie_on_all_drives(drives: Opener) -> None:
    tier = drives()
    tier.recover()
    tier.describe(NAMESPACE, make_spec())
    book = write_some(tier)
    assert min(Counter(map(drive_of, book)).values()) > 15
    for start in range(0, 60, 6):
        assert set(map(drive_of, list(book)[start : start + 6])) == {0, 1, 2}
    requests = [(at, sample.record.header_bytes, aligned_memory(sample.record.stored)) for at, sample in book.items()]
    assert list(tier.read_many(requests)) == [None] * 60
    assert all(out == book[at].content for at, _, out in requests)
    tier.close()
    for order in ((2, 0, 1), (1, 2, 0)):
        again = drives([tier.paths[i] for i in order])
        assert recovered(again) == (sorted(book), [])
        check(again, book)
        again.close()


def test_a_drive_is_missing_when_the_tier_is_opened(drives: Opener, folders: list[Path]) -> None:
    tier = drives()
    tier.recover()
    tier.describe(NAMESPACE, make_spec())
    book = write_some(tier)
    tier.close()
    for lost in range(3):
        away = folders[lost].rename(folders[lost].with_name("away"))
        if lost == 1:
            folders[lost].mkdir()  # the empty folder that a drive was mounted on
        tier = drives()
        found = tier.recover()
        assert sorted(int(row["location"]) for row in found.rows) == sorted(set(book) - set(on(lost, book)))
        assert any(str(folders[lost]) in note and "mount it" in note for note in found.notes)
        assert list(found.specs.values()) == [make_spec()]
        assert tier.state == "ok"
        assert tier.stats()["drives_missing"] == 1
        check(tier, {at: sample for at, sample in book.items() if drive_of(at) != lost})
        for location, sample in on(lost, book).items():
            with pytest.raises(NotFound, match=f"drive {lost}, which is not there"):
                tier.read_into(location, 0, aligned_memory(4096))
            tier.delete(location, sample.record.total_bytes)
        late = write_some(tier, 10, first=1000 + lost * 100)
        assert lost not in map(drive_of, late)
        book |= late
        tier.close()
        assert not folders[lost].exists() or not list(folders[lost].iterdir()), "written to where a drive is missing"
        shutil.rmtree(folders[lost], ignore_errors=True)
        away.rename(folders[lost])
    tier = drives()
    assert recovered(tier) == (sorted(book), [])
    check(tier, book)


def test_a_tier_of_one_drive_becomes_one_of_several(drives: Opener, folders: list[Path], opener: Opener) -> None:
    single = opener(folders[1])
    single.recover()
    book = write_some(single, 20)
    single.close()
    tier = drives()
    assert recovered(tier) == (sorted(book), [])
    book |= write_some(tier, 30, first=100)
    assert {0, 1, 2} == set(map(drive_of, book))
    tier.close()
    alone = opener(folders[0], capacity=12 * MIB)  # one of them by itself is a tier of its own records
    number = next(number for number in range(3) if recovered_number(folders[0]) == number)
    assert recovered(alone)[0] == sorted(on(number, book))
    alone.close()


def recovered_number(folder: Path) -> int:
    segments = sorted((folder / "segments").iterdir())
    return int(segments[0].stem) >> 16


def test_folders_that_do_not_go_together_are_refused(drives: Opener, folders: list[Path], opener: Opener) -> None:
    tier = drives()
    tier.recover()
    with pytest.raises(StorageError, match="in use by process"):
        drives()
    with pytest.raises(StorageError, match="in use by process"):
        opener(folders[2])
    tier.close()
    other = drives([folders[0].with_name(name) for name in "xyz"])
    other.recover()
    other.close()
    with pytest.raises(ConfigError, match="2 different tiers"):
        drives([folders[0], folders[1], folders[0].with_name("x")])
    shutil.copytree(folders[0], folders[0].with_name("copy"))
    with pytest.raises(ConfigError, match="leave one of them out"):
        drives([*folders, folders[0].with_name("copy")])
    legacy = opener(folders[0].with_name("legacy"))
    legacy.recover()
    legacy.close()
    with pytest.raises(ConfigError, match="holds a tier of its own"):
        drives([*folders, folders[0].with_name("legacy")])


def test_paths_that_cannot_work(drives: Opener, folders: list[Path], tmp_path: Path) -> None:
    for paths, message in (
        ([tmp_path / "nowhere" / "x", folders[0]], "nowhere does not exist"),
        ([folders[0], folders[0]], "named twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            drives(paths)
    with pytest.raises(ConfigError, match="`path`, one folder, or `paths`"):
        NvmeTier(capacity=36 * MIB)
    with pytest.raises(ConfigError, match="`path`, one folder, or `paths`"):
        NvmeTier(folders[0], paths=folders, capacity=36 * MIB)
    with pytest.raises(ConfigError, match="capacity 3145728 is too small for two segments of 2097152 bytes on a drive"):
        drives(segment_bytes=2 * MIB, capacity=9 * MIB)
    (folders[0] / "drive.json").parent.mkdir(exist_ok=True)
    (folders[0] / "drive.json").write_text("{")
    with pytest.raises(StorageError, match=r"drive.json cannot be read"):
        drives([folders[0]])


def test_a_drive_that_fails_is_taken_out_and_the_service_goes_on(
    drives: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = drives()
    tier.recover()
    book = write_some(tier)
    lost: list[tuple[str, list[int]]] = []
    tier.watch_losses(lambda note, is_lost: lost.append((note, [at for at in book if is_lost(at)])))
    failing = tier._fleet.live[1]
    really = io.preadv
    broken = {segment.fd for segment in failing.table.segments.values()}

    def fail(fd: int, pieces: list[memoryview], offset: int, call: Callable[..., int]) -> int:
        if fd in broken:
            raise OSError(errno.EIO, "Input/output error")
        return call(fd, pieces, offset)

    monkeypatch.setattr(io, "preadv", lambda fd, pieces, at: fail(fd, pieces, at, really))
    victim = next(iter(on(1, book)))
    with pytest.raises(StorageError):  # a bad block on a drive that can be written to: for itself alone
        tier.read_into(victim, 0, aligned_memory(4096))
    assert tier.stats()["drives"] == 3
    monkeypatch.setattr(fleet, "_EXAMINE_AGAIN_S", 0.0)
    monkeypatch.setattr(failing, "trouble", lambda *, thorough: "Input/output error" if thorough else "")
    with pytest.raises(NotFound, match="drive 1, which is out of use: Input/output error"):
        tier.read_into(victim, 0, aligned_memory(4096))
    assert [at for _, places in lost for at in places] == list(on(1, book))
    assert "drive 1" in lost[0][0]
    assert tier.stats()["drives_lost"] == 1
    assert "out of use" in str(tier.stats()["drive_1"])
    check(tier, {at: sample for at, sample in book.items() if drive_of(at) != 1})
    outcomes = tier.read_many([(at, 0, aligned_memory(4096)) for at in book])
    assert [isinstance(each, NotFound) for each in outcomes] == [drive_of(at) == 1 for at in book]
    assert tier.used == sum(sample.record.total_bytes for at, sample in book.items() if drive_of(at) != 1)
    book |= write_some(tier, 30, first=500)
    assert set(map(drive_of, list(book)[60:])) == {0, 2}
    tier.sync()
    tier.checkpoint()
    assert tier.make_room(MIB // 2, BookOwner(lambda record: True))


def test_a_write_goes_to_the_next_drive_when_its_own_fails(drives: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = drives()
    tier.recover()
    failing = tier._fleet.live[0]
    monkeypatch.setattr(failing, "trouble", lambda *, thorough: "Input/output error")
    monkeypatch.setattr(failing.transfer, "append", broken_write)
    book = write_some(tier, 12)
    assert set(map(drive_of, book)) == {1, 2}
    check(tier, book)
    for drive in list(tier._fleet.live):
        tier._fleet.take_out(drive, "Input/output error")
    assert tier.state.startswith("no drive is left")
    with pytest.raises(StorageError, match="no drive is left"):
        make_sample(1, 1000).write_to(tier)


def broken_write(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@pytest.fixture
def mounted(folders: list[Path]) -> Iterator[Path]:
    """The second folder's parent on a file system of its own."""
    place = folders[1].with_name("drive")
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "none", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def test_an_unmounted_drive_is_noticed(drives: Opener, folders: list[Path], mounted: Path) -> None:
    paths = [folders[0], mounted / "b", folders[2]]
    tier = drives(paths)
    tier.recover()
    book = write_some(tier)
    subprocess.run(["umount", "-l", str(mounted)], check=True)
    tier._keeper.wake()
    deadline = time.monotonic() + 20
    while tier.stats()["drives"] == 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "unmounted" in str(tier.stats()["drive_1"])
    with pytest.raises(NotFound, match="drive 1"):
        tier.read_into(next(iter(on(1, book))), 0, aligned_memory(4096))
    check(tier, {at: sample for at, sample in book.items() if drive_of(at) != 1})
    tier.close()
    again = drives(paths)
    places, notes = recovered(again)
    assert places == sorted(at for at in book if drive_of(at) != 1)
    assert any("mount it" in note for note in notes)
    assert not (mounted / "b").exists()


def test_a_full_drive_leaves_the_others_to_write_to(drives: Opener, folders: list[Path], mounted: Path) -> None:
    tier = drives([folders[0], mounted / "b", folders[2]], capacity=300 * MIB)
    tier.recover()
    ballast = os.open(mounted / "ballast", os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(ballast, 0, os.statvfs(mounted).f_bavail * os.statvfs(mounted).f_frsize)
    os.close(ballast)
    book = write_some(tier, 30)
    assert set(map(drive_of, book)) == {0, 2}
    assert tier.stats()["drives"] == 3
    check(tier, book)


def test_room_is_made_on_every_drive(drives: Opener) -> None:
    tier = drives(capacity=18 * MIB)
    tier.recover()
    owner = BookOwner()
    for number in range(400):
        sample = make_sample(number, 60_000)
        try:
            location = sample.write_to(tier)
        except TierFull:
            assert tier.make_room(sample.record.total_bytes, owner)
            location = sample.write_to(tier)
        owner.enter(location, sample)
    assert owner.dropped
    assert set(map(drive_of, owner.book)) == {0, 1, 2}
    owner.check(tier)
    assert tier.stats()["file_bytes"] <= tier.capacity
