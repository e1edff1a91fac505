"""Making room: what the owner keeps stays, what is freed is used again, the capacity holds at every step."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.errors import Closed, NotFound
from kvstore.gate import Gate
from kvstore.record import Record
from kvstore.testing import BookOwner, aligned_memory, make_sample
from kvstore.tiers.base import Tier, TierFull, Verdict
from kvstore.tiers.nvme import NvmeTier
from kvstore.tiers.nvme.location import key_of

MIB = 1 << 20
Opener = Callable[..., NvmeTier]
Killer = Callable[..., Path]


def folder_bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file() and each.parent.name != "catalog")


def put(tier: NvmeTier, owner: BookOwner, number: int, nbytes: int = 100_000) -> bool:
    sample = make_sample(number, nbytes)
    try:
        owner.enter(sample.write_to(tier), sample)
    except TierFull:
        if not tier.make_room(sample.record.total_bytes, owner):
            return False
        owner.enter(sample.write_to(tier), sample)
    return True


def test_what_the_owner_keeps_is_moved_and_stays_readable(opener: Opener, killed: Killer) -> None:
    tier = opener()
    tier.recover()
    kept = {make_sample(number, 1).record.key for number in range(0, 1000, 6)}
    owner = BookOwner(lambda record: record.key in kept and record.created_ms % 1000 < 300)
    for number in range(400):
        assert put(tier, owner, number, 60_000)
    assert owner.moves > 0
    assert owner.dropped
    owner.check(tier)
    stats = tier.stats()
    assert stats["moved_bytes"] > 0
    assert stats["write_amplification"] > 1
    again = opener(killed(apart=True))
    assert sorted(int(row["location"]) for row in again.recover().rows) == sorted(owner.book)
    owner.check(again)


def test_killed_in_the_middle_of_moving(opener: Opener, killed: Killer) -> None:
    """Each record is there once, at the place that the owner was told of last."""
    states: list[tuple[Path, dict[bytes, int]]] = []

    class Watcher(BookOwner):
        def moved(self, tier: Tier, record: Record, old: int, new: int) -> bool:
            followed = super().moved(tier, record, old, new)
            if len(states) < 3:
                places = {sample.record.key: location for location, sample in self.book.items()}
                states.append((killed(apart=True), places))
            return followed

    tier = opener()
    tier.recover()
    owner = Watcher(lambda record: record.key[0] < 60)
    number = 0
    while len(states) < 3:
        number += 1
        assert put(tier, owner, number, 60_000)
    for path, places in states:
        again = opener(path)
        rows = again.recover().rows
        there = [row["key"].tobytes() for row in rows]
        assert len(there) == len(set(there))
        assert places.items() <= {row["key"].tobytes(): int(row["location"]) for row in rows}.items()


def test_nothing_can_be_freed_if_all_is_kept(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    owner = BookOwner(lambda record: True)
    number = 0
    while put(tier, owner, number):
        number += 1
    assert number > 50
    owner.check(tier)
    assert not owner.dropped


def test_dead_segments_are_freed_without_asking(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    owner = BookOwner()
    for number in range(80):
        assert put(tier, owner, number)
    for location, sample in list(owner.book.items()):
        tier.delete(location, sample.record.total_bytes)
    owner.book.clear()
    asked: list[int] = []

    class Silent(BookOwner):
        def judge(
            self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int
        ) -> Sequence[Verdict]:
            asked.append(len(records))
            return super().judge(tier, records, since_ms, most)

    assert tier.make_room(6 * MIB, Silent())
    assert not asked
    assert tier.used == 0


def test_a_location_of_an_earlier_life_is_a_miss(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    owner = BookOwner()
    for number in range(300):
        assert put(tier, owner, number)
    first = next(location for location in range(1 << 44 | 1, 1 << 45) if location not in owner.book)
    with pytest.raises(NotFound):
        tier.read_into(first, 0, aligned_memory(4096))
    used = tier.used
    tier.delete(first, 104_448)
    assert tier.used == used
    assert isinstance(tier.read_many([(first, 0, aligned_memory(4096))])[0], NotFound)


def test_a_segment_that_is_being_read_is_not_used_again(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = opener()
    tier.recover()
    owner = BookOwner()
    while len({key_of(at) for at in owner.book}) < 3:
        assert put(tier, owner, len(owner.book))
    location, sample = min(owner.book.items())
    reading, go_on = threading.Event(), threading.Event()
    really_read = tier._fleet.live[0].transfer.read

    def slow_read(fd: int, offset: int, out: memoryview) -> None:
        if threading.current_thread().name.startswith("reader"):
            reading.set()
            assert go_on.wait(20)
        really_read(fd, offset, out)

    monkeypatch.setattr(tier._fleet.live[0].transfer, "read", slow_read)
    with ThreadPoolExecutor(1, "reader") as readers, ThreadPoolExecutor(1, "cleaner") as cleaners:
        read = readers.submit(sample.check_in, tier, location)
        assert reading.wait(20)
        room = cleaners.submit(tier.make_room, 11 * MIB, owner)
        time.sleep(0.2)
        assert not room.done()
        go_on.set()
        read.result(20)
        room.result(20)


def test_make_room_for_more_than_there_is(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    assert not tier.make_room(100 * MIB, BookOwner())
    assert tier.make_room(MIB // 2, BookOwner())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), keep=st.sampled_from([0.0, 0.1, 0.4]), segments=st.sampled_from([3, 5, 12]))
def test_random_life(tmp_path_factory: pytest.TempPathFactory, seed: int, keep: float, segments: int) -> None:
    """Writes, deletes, room, checkpoints, restarts and kills in any order against a book."""
    choose, number = random.Random(seed), 0
    folder = tmp_path_factory.mktemp("life") / "nvme"
    options = {"capacity": segments * MIB // 4 + 450_000, "segment_bytes": MIB // 4, "reserve_bytes": 0}
    owner = BookOwner(lambda record: choose.random() < keep)
    tier = NvmeTier(folder, **options)
    tier.recover()
    for _ in range(120):
        action = choose.random()
        if action < 0.7:
            number += 1
            put(tier, owner, number, choose.choice((1, 5000, 40_000, 100_000)))
        elif action < 0.85 and owner.book:
            location = choose.choice(list(owner.book))
            tier.delete(location, owner.book.pop(location).record.total_bytes)
        elif action < 0.9:
            tier.checkpoint()
        elif action < 0.93:
            tier.close()
            tier = NvmeTier(folder, **options)
            found = tier.recover()
            assert found.clean
            assert sorted(int(row["location"]) for row in found.rows) == sorted(owner.book)
        else:
            tier.sync()
        assert tier.used == sum(sample.record.total_bytes for sample in owner.book.values())
        assert folder_bytes(folder) <= tier.capacity
    owner.check(tier)
    tier.close()


def test_readers_writers_and_cleaning_at_once(opener: Opener) -> None:
    tier = opener()
    tier.recover()
    gate, stop = Gate(), threading.Event()
    owner = BookOwner(lambda record: record.key[0] < 20 and random.random() < 0.5)

    def write(first: int) -> None:
        for number in range(first, first + 150):
            sample = make_sample(number, 1000 + number * 7919 % 90_000, shift=number % 2 * 8)
            while True:
                with gate.passing():
                    try:
                        owner.enter(sample.write_to(tier), sample)
                        break
                    except TierFull:
                        pass
                with gate.alone():
                    assert tier.make_room(sample.record.total_bytes, owner)
            if number % 50 == 0:
                tier.checkpoint()

    def read() -> int:
        seen, choose = 0, random.Random(1)
        while not stop.is_set():
            book = list(owner.book.items())
            for location, sample in choose.sample(book, min(8, len(book))):
                try:
                    sample.check_in(tier, location)
                    seen += 1
                except NotFound:
                    assert location not in owner.book
        return seen

    with ThreadPoolExecutor(6) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        try:
            for writer in [threads.submit(write, first) for first in (0, 1000, 2000)]:
                writer.result()
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)
    owner.check(tier)


def test_closing_waits_for_what_is_under_way(opener: Opener) -> None:
    before = set(threading.enumerate())
    tier = opener()
    tier.recover()
    owner = BookOwner()

    def write(first: int) -> None:
        try:
            for number in range(first, first + 1000):
                sample = make_sample(number, 5000)
                owner.enter(sample.write_to(tier), sample)
        except Closed:
            return

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, first) for first in (0, 10_000, 20_000)]
        time.sleep(0.1)
        tier.close()
        for writer in writers:
            writer.result(20)
    assert not [thread for thread in threading.enumerate() if thread not in before and "kvstore-nvme" in thread.name]
    again = opener()
    assert sorted(int(row["location"]) for row in again.recover().rows) == sorted(owner.book)
    owner.check(again)
