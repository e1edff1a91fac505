"""What is done ahead of need, which segment goes first, who goes before whom, and what it costs the drive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore.record import Record
from kvstore.testing import BookOwner, aligned_memory, make_sample
from kvstore.tiers.base import Tier, TierFull, Verdict
from kvstore.tiers.nvme import NvmeTier
from kvstore.tiers.nvme.location import key_of, segment_of

MIB = 1 << 20
Opener = Callable[..., NvmeTier]


class Watched(BookOwner):
    """Remembers what it was asked."""

    def __init__(self, keeps: Callable[[Record], bool] = lambda record: False) -> None:
        super().__init__(keeps)
        self.asked: list[tuple[int, int, int, int]] = []

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Sequence[Verdict]:
        nbytes = sum(record.total_bytes for record, _ in records)
        self.asked.append((segment_of(key_of(records[0][1])), since_ms, most, nbytes))
        return super().judge(tier, records, since_ms, most)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def fill(tier: NvmeTier, owner: BookOwner, first: int = 0) -> int:
    for number in range(first, first + 10_000):
        sample = make_sample(number, 100_000)
        try:
            owner.enter(sample.write_to(tier), sample)
        except TierFull:
            return number
    raise AssertionError("it never fills up")


def test_the_next_segment_is_ready_before_it_is_needed(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    for number in range(7):
        make_sample(number, 100_000).write_to(tier)
    until(lambda: tier.stats()["segments"] == 2)
    assert tier.used < MIB


def test_room_is_made_ahead_of_need_once_there_is_an_owner(opener: Opener) -> None:
    tier = opener(capacity=24 * MIB)
    tier.recover()
    owner = BookOwner()
    number = fill(tier, owner)
    assert tier.stats()["segments_cleaned"] == 0
    tier.tend(owner)
    table = tier._fleet.live[0].table
    for _ in range(60):
        until(lambda: not table.is_short and not table.wants_care)  # so nothing is judged while it is entered
        number += 1
        sample = make_sample(number, 100_000)
        owner.enter(sample.write_to(tier), sample)
    assert tier.stats()["full"] == 1, "a write found no room"
    assert owner.dropped
    until(lambda: not table.is_short and not table.wants_care)
    owner.check(tier)


def test_the_oldest_goes_first_and_the_owner_is_told_since_when(opener: Opener) -> None:
    tier, before = opener(), time.time_ns() // 1_000_000
    tier.recover()
    owner = Watched()
    number = fill(tier, owner)
    for _ in range(4):
        assert tier.make_room(tier.max_record, owner)
        number = fill(tier, owner, number)
    segments = [segment for segment, *_ in owner.asked]
    assert segments[:4] == [0, 1, 2, 3]
    times = [since for _, since, _, _ in owner.asked]
    assert times == sorted(times)
    assert before <= times[0] <= time.time_ns() // 1_000_000
    assert all(nbytes // 2 < most < nbytes for _, _, most, nbytes in owner.asked)


def test_an_owner_that_keeps_all_it_may_wears_the_drive_by_no_more_than_half(opener: Opener) -> None:
    class Miser(BookOwner):
        def judge(
            self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int
        ) -> Sequence[Verdict]:
            left = most
            for record, location in records:
                if location in self.book and record.total_bytes <= left:
                    left -= record.total_bytes
                    kept.add(record.key)
            return super().judge(tier, records, since_ms, most)

    kept: set[bytes] = set()
    tier = opener(capacity=24 * MIB)
    tier.recover()
    owner = Miser(lambda record: record.key in kept and not kept.discard(record.key))  # type: ignore[func-returns-value]
    number = 0
    while number < 1500:
        number = fill(tier, owner, number)
        assert tier.make_room(200_000, owner)
    owner.check(tier)
    stats = tier.stats()
    assert int(stats["moved_bytes"]) > 0.6 * int(stats["stored_bytes"])
    assert int(stats["moved_bytes"]) < int(stats["stored_bytes"]) + 10 * MIB


def test_after_reopening_the_oldest_still_goes_first(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    owner = Watched()
    fill(tier, owner)
    tier.close()
    again = opener()
    again.recover()
    assert again.make_room(again.max_record, owner)
    segment, since, _, _ = owner.asked[0]
    first = [sample for at, sample in owner.book.items() if segment_of(key_of(at)) == 0]
    assert segment == 0
    assert not first
    assert since == max(sample.record.created_ms for sample in owner.dropped)


def test_what_is_as_good_as_empty_goes_before_what_is_old(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    owner = Watched()
    fill(tier, owner)
    in_five = [(at, sample) for at, sample in owner.book.items() if segment_of(key_of(at)) == 5]
    for location, sample in in_five[1:]:
        tier.delete(location, owner.book.pop(location).record.total_bytes)
        assert sample.record.total_bytes
    assert tier.make_room(tier.max_record, owner)
    assert owner.asked[0][0] == 5


def test_a_write_gives_way_to_a_read_but_not_for_ever(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = opener()
    tier.recover()
    sample = make_sample(1, 50_000)
    location = sample.write_to(tier)
    reading, go_on = threading.Event(), threading.Event()
    transfer = tier._fleet.live[0].transfer
    really = transfer.read

    def slow(fd: int, offset: int, out: memoryview) -> None:
        reading.set()
        assert go_on.wait(30)
        really(fd, offset, out)

    monkeypatch.setattr(transfer, "read", slow)
    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(tier.read_into, location, 0, aligned_memory(4096))
        assert reading.wait(30)
        assert tier.stats()["gave_way"] == 0
        make_sample(2, 50_000).write_to(tier)
        assert tier.stats()["gave_way"] == 1
        assert not read.done()
        go_on.set()
        read.result(30)
    make_sample(3, 50_000).write_to(tier)
    assert tier.stats()["gave_way"] == 1


def test_wear_is_what_went_to_the_drive_over_what_was_admitted(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    owner = BookOwner(lambda record: record.key[0] < 40)
    samples = [make_sample(number, 60_000) for number in range(400)]
    for sample in samples:
        try:
            location = sample.write_to(tier)
        except TierFull:
            assert tier.make_room(sample.record.total_bytes, owner)
            location = sample.write_to(tier)
        owner.enter(location, sample)
    tier.checkpoint()
    stats = tier.stats()
    stored, written = int(stats["stored_bytes"]), int(stats["written_bytes"])
    assert stored == sum(sample.record.total_bytes for sample in samples)
    assert int(stats["moved_bytes"]) > 0
    assert written > stored + int(stats["moved_bytes"]) + 192 * 400
    assert written < 2 * stored
    assert stats["write_amplification"] == written / stored
