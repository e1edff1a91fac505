"""Nothing that was persisted is lost, whatever happened to journal and snapshot; nothing foreign is taken in."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.errors import StorageError
from kvstore.record import BLOCK
from kvstore.testing import BookOwner, Sample, aligned_memory, make_sample, make_spec
from kvstore.testing.records import NAMESPACE
from kvstore.tiers.base import Recovered, TierFull
from kvstore.tiers.nvme import NvmeTier, log, snapshot
from kvstore.tiers.nvme.journal import ENTRY_BYTES
from kvstore.tiers.nvme.location import key_of, offset_of, segment_of

MIB = 1 << 20
Book = dict[int, Sample]
Opener = Callable[..., NvmeTier]
Killer = Callable[..., Path]


def write_some(tier: NvmeTier, count: int, first: int = 0, nbytes: int = 9000) -> Book:
    samples = [make_sample(first + i, nbytes + 100 * i) for i in range(count)]
    return {sample.write_to(tier): sample for sample in samples}


def locations(found: Recovered) -> list[int]:
    return sorted(int(row["location"]) for row in found.rows)


def check(tier: NvmeTier, found: Recovered, book: Book) -> None:
    assert locations(found) == sorted(book)
    for location, sample in book.items():
        sample.check_in(tier, location)
    assert tier.used == sum(sample.record.total_bytes for sample in book.values())


def recover_and_check(opener: Opener, path: Path, book: Book) -> Recovered:
    tier = opener(path)
    found = tier.recover()
    check(tier, found, book)
    tier.close()
    again = opener(path)
    second = again.recover()
    assert second.clean
    check(again, second, book)
    again.close()
    return found


def test_a_killed_tier_has_everything(opener: Opener, killed: Killer) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 100)
    gone = list(book)[::3]
    for location in gone:
        tier.delete(location, book.pop(location).record.total_bytes)
    found = recover_and_check(opener, killed(), book)
    assert not found.clean
    assert not found.notes


def test_the_journal_may_be_cut_anywhere_near_its_end(opener: Opener, killed: Killer) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 12)
    edges = {n * ENTRY_BYTES + near for n in range(3) for near in range(-9, 10)}
    for cut in sorted(edges | set(range(1, 2 * ENTRY_BYTES, 11))):
        path = killed()
        journal = path / "journal"
        journal.write_bytes(journal.read_bytes()[: BLOCK + 12 * ENTRY_BYTES - cut])
        found = opener_recover(opener, path)
        assert locations(found) == sorted(book), cut


def opener_recover(opener: Opener, path: Path) -> Recovered:
    tier = opener(path)
    try:
        return tier.recover()
    finally:
        tier.close()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_journal_may_be_cut_or_flipped_anywhere(opener: Opener, killed: Killer, checkpoint: bool) -> None:
    choose = random.Random(7)
    tier = opener()
    tier.recover()
    book = write_some(tier, 60)
    if checkpoint:
        tier.checkpoint()
        book |= write_some(tier, 60, first=60)
    length = BLOCK + 60 * ENTRY_BYTES
    for attempt in range(16):
        path = killed()
        journal = path / "journal"
        data = bytearray(journal.read_bytes())
        if attempt % 2:
            del data[choose.randrange(length) :]
        else:
            for _ in range(choose.choice((1, 1, 5, 50))):
                data[choose.randrange(length)] ^= 1 << choose.randrange(8)
        if data == journal.read_bytes():
            continue
        journal.write_bytes(data)
        recover_and_check(opener, path, book)


@pytest.mark.parametrize("lost", [("journal",), ("snapshot.arrow",), ("journal", "snapshot.arrow")])
def test_missing_files_are_made_up_for(opener: Opener, killed: Killer, lost: tuple[str, ...]) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 50)
    tier.checkpoint()
    book |= write_some(tier, 50, first=50)
    path = killed()
    for name in lost:
        (path / name).unlink()
    found = recover_and_check(opener, path, book)
    assert not found.clean
    assert found.notes


def test_a_damaged_snapshot_is_noticed_and_made_up_for(opener: Opener, killed: Killer) -> None:
    choose = random.Random(3)
    tier = opener()
    tier.recover()
    book = write_some(tier, 30)
    tier.checkpoint()
    length = len((killed() / "snapshot.arrow").read_bytes())
    noticed = 0
    for _ in range(16):
        path = killed()
        file = path / "snapshot.arrow"
        data = bytearray(file.read_bytes())
        data[choose.randrange(length)] ^= 1 << choose.randrange(8)
        file.write_bytes(data)
        noticed += any("snapshot" in note for note in recover_and_check(opener, path, book).notes)
    assert noticed > 8


def test_an_old_snapshot_is_no_danger(opener: Opener, killed: Killer) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 30)
    tier.checkpoint()
    old = (killed() / "snapshot.arrow").read_bytes()
    book |= write_some(tier, 30, first=30)
    tier.checkpoint()
    book |= write_some(tier, 30, first=60)
    path = killed()
    (path / "snapshot.arrow").write_bytes(old)
    found = recover_and_check(opener, path, book)
    assert any("missing" in note for note in found.notes)


def test_a_checkpoint_that_fails_changes_nothing_and_can_be_tried_again(
    opener: Opener, killed: Killer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 30)
    tier.checkpoint()
    book |= write_some(tier, 30, first=30)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    states: list[tuple[Path, Book]] = []
    with monkeypatch.context() as patch:
        patch.setattr(log, "save_snapshot", full)
        for attempt in range(2):
            with pytest.raises(TierFull, match="snapshot"):
                tier.checkpoint()
            book |= write_some(tier, 10, first=100 + 10 * attempt)
            states.append((killed(apart=True), dict(book)))
    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "_take_name", full)
        with pytest.raises(TierFull):
            tier.checkpoint()
        book |= write_some(tier, 10, first=200)
        states.append((killed(apart=True), dict(book)))
    for path, held in states:
        recover_and_check(opener, path, held)
    tier.checkpoint()
    book |= write_some(tier, 10, first=300)
    recover_and_check(opener, killed(), book)


def test_records_of_an_earlier_life_do_not_come_back(opener: Opener, killed: Killer) -> None:
    tier = opener()
    tier.recover()
    owner = BookOwner()
    for number in range(1500):
        sample = make_sample(number, 20_000)
        try:
            owner.enter(sample.write_to(tier), sample)
        except TierFull:
            assert tier.make_room(sample.record.total_bytes, owner)
            owner.enter(sample.write_to(tier), sample)
    path = killed()
    (path / "journal").unlink()
    (path / "snapshot.arrow").unlink()
    again = opener(path)
    found = again.recover()
    assert set(owner.book) <= set(locations(found))
    current = {int(row["location"]): row for row in found.rows}
    for location, sample in owner.book.items():
        assert current[location]["key"].tobytes() == sample.record.key
    # What else is there was dropped while room was made, lies in a segment not used again, and is whole.
    dropped = {sample.record.key: sample for sample in owner.dropped}
    for location in set(current) - set(owner.book):
        dropped[current[location]["key"].tobytes()].check_in(again, location)


def test_a_record_inside_a_payload_is_not_taken_for_one(opener: Opener, killed: Killer) -> None:
    tier = opener()
    tier.recover()
    inner = make_sample(1, 9000)
    place = inner.write_to(tier)
    sealed = aligned_memory(inner.record.total_bytes)
    tier.read_into(place, 0, sealed)
    outer = make_sample(2, 200_000)
    outer.payload[8192 : 8192 + len(sealed)] = sealed
    hidden = outer.write_to(tier)  # its checksums do not match any more: a scan must not bring it back either
    path = killed()
    (path / "journal").unlink()
    found = opener_recover(opener, path)
    assert locations(found) == [place]
    assert hidden not in locations(found)


def test_a_torn_record_is_not_brought_back(opener: Opener, killed: Killer, folder: Path) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 5, nbytes=50_000)
    torn = list(book)[-1]
    path = killed(apart=True)
    number = segment_of(key_of(torn))
    with (path / "segments" / f"{number:06d}.seg").open("r+b") as file:
        file.seek(offset_of(torn) + 30_000)
        file.write(bytes(4096))
    journal = path / "journal"
    journal.write_bytes(journal.read_bytes()[: BLOCK + 4 * ENTRY_BYTES])
    del book[torn]
    recover_and_check(opener, path, book)


@pytest.mark.parametrize("harm", ["missing", "short", "foreign", "empty"])
def test_a_harmed_segment_costs_its_own_records_only(opener: Opener, killed: Killer, harm: str) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 150)
    tier.close()
    path = killed()
    victim = path / "segments" / "000001.seg"
    data = victim.read_bytes()
    victim.unlink()
    if harm == "short":
        victim.write_bytes(data[:500_000])
    elif harm == "foreign":
        victim.write_bytes(b"somebody else's file".ljust(len(data), b"\1"))
    elif harm == "empty":
        victim.write_bytes(b"")
    rest = {at: sample for at, sample in book.items() if segment_of(key_of(at)) != 1}
    assert 0 < len(rest) < len(book)
    again = opener(path)
    found = again.recover()
    check(again, found, rest)
    assert found.notes
    rest |= write_some(again, 100, first=1000)
    again.close()
    recover_and_check(opener, path, rest)
    if harm == "foreign":
        assert victim.read_bytes().startswith(b"somebody else's file")


@pytest.mark.parametrize("name", ["journal", "segments/000000.seg"])
def test_a_version_from_the_future_is_left_alone(opener: Opener, killed: Killer, name: str) -> None:
    tier = opener()
    tier.recover()
    write_some(tier, 5)
    tier.close()
    path = killed()
    file = path / name
    data = bytearray(file.read_bytes())
    data[4] = 9
    file.unlink()
    file.write_bytes(data)
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file() and each.name != "LOCK"}
    with pytest.raises(StorageError, match=r"version 9.*newer kvstore"):
        opener_recover(opener, path)
    assert before == {each: each.read_bytes() for each in path.rglob("*") if each.is_file() and each.name != "LOCK"}


def test_a_snapshot_from_the_future_is_left_alone(
    opener: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opener()
    tier.recover()
    write_some(tier, 5)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "VERSION", 9)
        tier.checkpoint()
    tier.close()
    before = (folder / "snapshot.arrow").read_bytes()
    with pytest.raises(StorageError, match=r"snapshot.arrow is of version 9; use a newer kvstore"):
        opener_recover(opener, folder)
    assert (folder / "snapshot.arrow").read_bytes() == before


def test_a_catalog_file_that_cannot_be_read_is_noted(opener: Opener, folder: Path) -> None:
    tier = opener()
    tier.recover()
    tier.describe(NAMESPACE, make_spec())
    tier.close()
    (folder / "catalog" / f"spec-{make_spec().digest.hex()}.json").write_text("{")
    (folder / "catalog" / "left.tmp").write_text("")
    again = opener()
    found = again.recover()
    assert list(found.namespaces.values()) == [NAMESPACE]
    assert not found.specs
    assert any("spec-" in note for note in found.notes)
    assert not (folder / "catalog" / "left.tmp").exists()
    again.describe(NAMESPACE, make_spec())
    again.close()
    assert opener_recover(opener, folder).specs == {make_spec().digest: make_spec()}


def test_a_smaller_capacity_drops_whole_segments(opener: Opener, folder: Path) -> None:
    tier = opener()
    tier.recover()
    book = write_some(tier, 200, nbytes=10_000)
    tier.close()
    smaller = opener(capacity=4 * MIB)
    found = smaller.recover()
    assert any("capacity" in note for note in found.notes)
    assert 0 < len(found.rows) < len(book)
    for row in found.rows:
        book[int(row["location"])].check_in(smaller, int(row["location"]))
    assert sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) <= 4 * MIB


def test_of_two_equal_copies_a_search_keeps_one(opener: Opener, killed: Killer) -> None:
    tier = opener()
    tier.recover()
    sample = make_sample(1, 9000)
    first, second = sample.write_to(tier), sample.write_to(tier)
    path = killed()
    (path / "journal").unlink()
    found = opener_recover(opener, path)
    assert locations(found) in ([first], [second])


def test_what_was_never_acknowledged_does_not_appear(opener: Opener, killed: Killer) -> None:
    """A whole record without its entry, in a journal that is otherwise as it should be."""
    tier = opener()
    tier.recover()
    book = write_some(tier, 5)
    path = killed()
    journal = path / "journal"
    data = bytearray(journal.read_bytes())
    data[BLOCK + 3 * ENTRY_BYTES : BLOCK + 4 * ENTRY_BYTES] = bytes(ENTRY_BYTES)
    journal.write_bytes(data)
    del book[sorted(book)[3]]
    found = recover_and_check(opener, path, book)
    assert not found.notes


def test_writing_goes_on_where_it_stopped(opener: Opener, folder: Path) -> None:
    book: Book = {}
    for opening in range(6):
        tier = opener()
        check(tier, tier.recover(), book)
        book |= write_some(tier, 8, first=100 * opening)
        tier.close()
    begun = sorted(path.name for path in (folder / "segments").iterdir())
    assert begun[:1] == ["000000.seg"]
    assert len(begun) <= 2, "the one in use, and the next, which may be made ready"
