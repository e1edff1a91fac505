"""Conformance suites for tiers. Subclass one, say how to make the tier, and let pytest collect the tests.

    class TestMine(TierConformance):
        def make_tier(self) -> Tier: ...
        def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None: ...

The tier must take 8 MiB at least. Needs no pytest itself.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from kvstore.errors import Closed, KVStoreError
from kvstore.testing.faults import FaultChecks, raises
from kvstore.testing.kills import KillChecks
from kvstore.testing.owners import BookOwner
from kvstore.testing.records import NAMESPACE, Sample, aligned_memory, make_sample, make_spec
from kvstore.tiers.base import Tier, TierFull

ODD_SIZES = (1, 4095, 4096, 4097, 100_000, (1 << 20) - 1, 1 << 20)


class TierConformance(FaultChecks):
    """What every tier does."""

    def test_reads_back_what_was_written(self) -> None:
        with closing(self.make_tier()) as tier:
            written = [(sample.write_to(tier), sample) for sample in map(make_sample, range(7), ODD_SIZES)]
            for location, sample in written:
                assert 0 <= location < 1 << 63
                sample.check_in(tier, location)

    def test_takes_memory_of_any_alignment_and_length(self) -> None:
        with closing(self.make_tier()) as tier:
            for number, nbytes in enumerate(ODD_SIZES):
                for shift, pad in ((0, False), (1, True), (64, False), (512, True)):
                    sample = make_sample(number * 10 + shift, nbytes, shift=shift, pad=pad)
                    location = sample.write_to(tier)
                    sample.check_in(tier, location)
                    tier.delete(location, sample.record.total_bytes)

    def test_reads_any_range_into_memory_of_any_alignment(self) -> None:
        choose = random.Random(1)
        with closing(self.make_tier()) as tier:
            sample = make_sample(1, 300_001)
            start, location = sample.record.header_bytes, sample.write_to(tier)
            for _ in range(300):
                at = choose.choice((0, 4096, choose.randrange(300_000)))
                nbytes = min(choose.choice((0, 1, 4096, 8192, choose.randrange(1, 300_000))), 300_001 - at)
                out = aligned_memory(nbytes, choose.choice((0, 1, 512, at % 4096)))
                tier.read_into(location, start + at, out)
                assert out == sample.content[at : at + nbytes], (at, nbytes)

    def test_reads_touch_nothing_beside_their_destination(self) -> None:
        with closing(self.make_tier()) as tier:
            sample = make_sample(1, 50_000)
            location = sample.write_to(tier)
            for shift in (0, 1, 4000):
                memory = aligned_memory(70_000)
                memory[:] = b"\xaa" * 70_000
                tier.read_into(location, sample.record.header_bytes, memory[shift : shift + 50_000])
                assert memory[:shift] == b"\xaa" * shift
                assert memory[shift + 50_000 :] == b"\xaa" * (20_000 - shift)

    def test_many_reads_have_one_outcome_each_in_order(self) -> None:
        with closing(self.make_tier()) as tier:
            samples = [make_sample(i, 20_000 + i) for i in range(40)]
            requests, beyond = [], aligned_memory(4096)
            for sample in samples:
                out = aligned_memory(sample.record.stored)
                requests.append((sample.write_to(tier), sample.record.header_bytes, out))
            bad = (requests[7][0], tier.capacity, beyond)
            outcomes = tier.read_many([*requests[:20], bad, *requests[20:]])
            assert len(outcomes) == 41
            assert isinstance(outcomes[20], KVStoreError)
            assert [each for each in outcomes if each is not None] == [outcomes[20]]
            assert all(out == sample.content for (_, _, out), sample in zip(requests, samples, strict=True))
            assert list(tier.read_many([])) == []

    def test_reading_past_the_end_is_an_error(self) -> None:
        with closing(self.make_tier()) as tier:
            location = make_sample(1, 5000).write_to(tier)
            with raises(KVStoreError):
                tier.read_into(location, tier.capacity, aligned_memory(4096))

    def test_used_follows_writes_and_deletes(self) -> None:
        with closing(self.make_tier()) as tier:
            assert tier.used == 0
            sample = make_sample(1, 70_000)
            location = sample.write_to(tier)
            assert sample.record.total_bytes <= tier.used <= tier.capacity
            tier.delete(location, sample.record.total_bytes)
            assert tier.used == 0

    def test_a_full_tier_says_so_and_harms_nothing(self) -> None:
        with closing(self.make_tier()) as tier:
            owner = self.fill(tier)
            assert tier.used <= tier.capacity
            owner.check(tier)

    def test_deleted_room_is_used_again(self) -> None:
        with closing(self.make_tier()) as tier:
            owner = self.fill(tier)
            for location, sample in list(owner.book.items()):
                tier.delete(location, sample.record.total_bytes)
                del owner.book[location]
            for number in range(50):
                assert self.write_with_room(tier, owner, make_sample(100_000 + number, 200_000))
            owner.check(tier)

    def test_concurrent_writers_and_readers(self) -> None:
        with closing(self.make_tier()) as tier, ThreadPoolExecutor(6) as threads:
            stop = threading.Event()
            owner = BookOwner()

            def write(first: int) -> None:
                for number in range(first, first + 30):
                    sample = make_sample(number, 3000 + number * 37 % 50_000, shift=number % 2)
                    owner.enter(sample.write_to(tier), sample)

            def read() -> None:
                while not stop.is_set():
                    owner.check(tier)

            readers = [threads.submit(read) for _ in range(2)]
            try:
                for writer in [threads.submit(write, first) for first in (0, 1000, 2000, 3000)]:
                    writer.result()
            finally:
                stop.set()
            for reader in readers:
                reader.result()
            assert len(owner.book) == 120
            owner.check(tier)

    def test_closing_twice_is_allowed_and_use_after_it_is_not(self) -> None:
        tier, sample = self.make_tier(), make_sample(1, 5000)
        location = sample.write_to(tier)
        tier.close()
        tier.close()
        with raises(Closed):
            sample.write_to(tier)
        with raises(Closed):
            tier.read_into(location, 0, aligned_memory(4096))

    def test_speed_and_stats_are_figures(self) -> None:
        with closing(self.make_tier()) as tier:
            sample = make_sample(1, 1 << 20)
            location = sample.write_to(tier)
            sample.check_in(tier, location)
            speed = tier.speed
            assert min(speed.read_bytes_per_s, speed.write_bytes_per_s) > 1e6
            assert 0 <= speed.latency_s < 10
            assert all(isinstance(name, str) for name in tier.stats())
            assert tier.written_bytes == 0 or tier.written_bytes >= sample.record.total_bytes

    def fill(self, tier: Tier) -> BookOwner:
        """Write records of 200 KB until the tier is full; the book of them."""
        owner = BookOwner()
        for number in range(1 + 2 * tier.capacity // 200_000):
            sample = make_sample(number, 200_000)
            try:
                owner.enter(sample.write_to(tier), sample)
            except TierFull:
                assert owner.book, "a fresh tier is full"
                return owner
        raise AssertionError("the tier took twice its capacity")

    def write_with_room(self, tier: Tier, owner: BookOwner, sample: Sample) -> bool:
        """Write a sample, making room first where that is needed; False if there is none to be had."""
        for _ in range(3):
            try:
                owner.enter(sample.write_to(tier), sample)
                return True
            except TierFull:
                if not tier.make_room(sample.record.total_bytes, owner):
                    return False
        return False


class PersistentTierConformance(KillChecks, TierConformance):
    """What a tier does besides that survives its process."""

    def test_comes_back_as_it_was(self) -> None:
        with closing(self.make_tier()) as tier:
            tier.describe(NAMESPACE, make_spec())
            samples = [make_sample(i, 1000 * (i + 1)) for i in range(50)]
            places = {sample.write_to(tier): sample for sample in samples}
            used = tier.used
        tier, found = self.reopen()
        with closing(tier):
            assert found.clean
            assert not found.notes
            assert NAMESPACE in found.namespaces.values()
            assert list(found.specs.values()) == [make_spec()]
            assert {int(row["location"]) for row in found.rows} == set(places)
            for row in found.rows:
                record = places[int(row["location"])].record
                assert row["key"].tobytes() == record.key
                assert row["parent"].tobytes() == record.parent
                assert (int(row["stored"]), int(row["position"])) == (record.stored, record.position)
                assert int(row["header_blocks"]) * 4096 == record.header_bytes
                assert int(row["created_ms"]) == record.created_ms
            for location, sample in places.items():
                sample.check_in(tier, location)
            assert tier.used == used

    def test_what_was_put_aside_is_there_again_or_was_never_taken(self) -> None:
        with closing(self.make_tier()) as tier:
            assert list(tier.recall("note")) == []
            for data in (b"the first", b"the second"):
                tier.put_aside("note", data)
            kept = list(tier.recall("note"))
            assert set(kept) <= {b"the second"}
        tier, found = self.reopen()
        with closing(tier):
            assert list(tier.recall("note")) == kept
            assert list(tier.recall("another")) == []
            assert not found.notes

    def test_what_was_deleted_stays_away(self) -> None:
        with closing(self.make_tier()) as tier:
            samples = [make_sample(i, 9000) for i in range(20)]
            locations = [sample.write_to(tier) for sample in samples]
            tier.checkpoint()
            for sample, location in list(zip(samples, locations, strict=True))[::2]:
                tier.delete(location, sample.record.total_bytes)
        tier, found = self.reopen()
        with closing(tier):
            assert sorted(int(row["location"]) for row in found.rows) == sorted(locations[1::2])

    def test_room_is_made_after_coming_back(self) -> None:
        with closing(self.make_tier()) as tier:
            owner = self.fill(tier)
        tier, _ = self.reopen()
        with closing(tier):
            owner.check(tier)
            for number in range(60):
                assert self.write_with_room(tier, owner, make_sample(50_000 + number, 200_000))
            owner.check(tier)
            assert owner.dropped
