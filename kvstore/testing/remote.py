"""The conformance suite for engines of the remote tier. Subclass it, say how to open one, and let pytest collect.

    class TestMine(RemoteConformance):
        def open_engine(self) -> Engine: ...

Every call of `open_engine` is another host's way to one place, which is empty before a test. The suite runs the
tier over it, so a persistent tier's tests are among these.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from abc import abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from kvstore.errors import NotFound
from kvstore.record import Record
from kvstore.testing.owners import BookOwner
from kvstore.testing.records import NAMESPACE, Sample, aligned_memory, make_sample, make_spec
from kvstore.testing.tiers import PersistentTierConformance
from kvstore.tiers.base import Name, Present, Recovered, Tier
from kvstore.tiers.remote import Engine, Ledger, RemoteTier
from kvstore.tiers.remote.sweep import sweep

MIB = 1 << 20
WITHIN_S = 20.0


def name_of(sample: Sample) -> Name:
    """What the record of a sample is known by."""
    record = sample.record
    return Name(record.namespace, record.spec, record.key, record.part)


def in_form(sample: Sample, form: int) -> Sample:
    """The same bytes as a record that says it has another form."""
    record = dataclasses.replace(sample.record, form=form)
    return Sample(record, record.pack(), sample.payload)


class RemoteConformance(PersistentTierConformance):
    """What the remote tier does over an engine. `tier_options` are the tier's."""

    tier_options: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def open_engine(self) -> Engine:
        """One more way to the place of this test."""

    def open_host(self, **options: Any) -> RemoteTier:
        """The tier as one more host opens it, which knows nothing yet."""
        wanted = {"capacity": 24 * MIB, "deadline_s": WITHIN_S, "miss_s": 0.0, **self.tier_options, **options}
        return RemoteTier(self.open_engine(), **wanted)

    def make_tier(self) -> Tier:
        tier = self.open_host()
        tier.recover()
        return tier

    def after_outage(self, tier: Tier) -> None:
        """Wait until a probe has found that the place is back."""
        until = time.monotonic() + WITHIN_S
        while tier.state != "ok":
            assert time.monotonic() < until, "the tier does not come back"
            time.sleep(0.01)

    def reopen(self) -> tuple[Tier, Recovered]:
        tier = self.open_host()
        return tier, tier.recover()

    def test_comes_back_as_it_was(self) -> None:
        """At other locations than before."""
        with closing(self.make_tier()) as tier:
            tier.describe(NAMESPACE, make_spec())
            samples = [make_sample(i, 1000 * (i + 1)) for i in range(50)]
            for sample in samples:
                sample.write_to(tier)
            used = tier.used
        tier, found = self.reopen()
        with closing(tier):
            assert found.clean
            assert not found.notes
            assert list(found.namespaces.values()) == [NAMESPACE]
            assert list(found.specs.values()) == [make_spec()]
            by_key = {sample.record.key: sample for sample in samples}
            assert len(found.rows) == len(samples)
            for row in found.rows:
                sample = by_key.pop(row["key"].tobytes())
                record = sample.record
                assert row["parent"].tobytes() == record.parent
                assert (int(row["stored"]), int(row["position"])) == (record.stored, record.position)
                assert int(row["header_blocks"]) * 4096 == record.header_bytes
                assert int(row["created_ms"]) == record.created_ms
                sample.check_in(tier, int(row["location"]))
            assert tier.used == used

    def test_what_was_deleted_stays_away(self) -> None:
        with closing(self.make_tier()) as tier:
            samples = [make_sample(i, 9000) for i in range(20)]
            locations = [sample.write_to(tier) for sample in samples]
            for sample, location in list(zip(samples, locations, strict=True))[::2]:
                tier.delete(location, sample.record.total_bytes)
        tier, found = self.reopen()
        with closing(tier):
            keys = {row["key"].tobytes() for row in found.rows}
            assert keys == {sample.record.key for sample in samples[1::2]}

    def test_room_is_made_after_coming_back(self) -> None:
        """By the owner: this tier does not choose what goes."""
        with closing(self.make_tier()) as tier:
            book = {sample.record.key: sample for sample in self.fill(tier).book.values()}
        tier, found = self.reopen()
        with closing(tier):
            owner = BookOwner()
            for row in found.rows:
                owner.enter(int(row["location"]), book[row["key"].tobytes()])
            assert len(owner.book) == len(book)
            assert not self.write_with_room(tier, owner, make_sample(50_000, 200_000))
            location, sample = next(iter(owner.book.items()))
            tier.evict(location, sample.record.total_bytes)
            del owner.book[location]
            assert self.write_with_room(tier, owner, make_sample(50_000, 200_000))
            owner.check(tier)

    def test_recovers_so_many_at_most(self) -> None:
        with closing(self.make_tier()) as tier:
            for number in range(12):
                make_sample(number, 5000).write_to(tier)
        with closing(self.open_host(recover_records=5)) as tier:
            found = tier.recover()
            assert len(found.rows) == 5
            assert len(found.notes) == 1
        with closing(self.open_host(recover_records=0)) as tier:
            assert len(tier.recover().rows) == 0
            assert all(tier.find([name_of(make_sample(number, 5000)) for number in range(12)], WITHIN_S))

    def test_a_host_with_a_ledger_knows_its_own_when_it_is_started_again(self) -> None:
        samples, theirs = [make_sample(number, 5000) for number in range(12)], make_sample(50, 5000)
        with tempfile.TemporaryDirectory() as folder:
            with closing(self.open_host()) as other:
                theirs.write_to(other)
            for life in range(3):
                with closing(self.open_host(ledger=Ledger(Path(folder, "ledger"), "place"))) as tier:
                    rows = tier.recover().rows
                    before = samples[3 * life - 1 : 3 * life] if life else []
                    assert {row["key"].tobytes() for row in rows} == {each.record.key for each in before}
                    assert tier.used == sum(each.record.total_bytes for each in before)
                    for location in rows["location"].tolist():
                        before[0].check_in(tier, location)
                        tier.evict(location, before[0].record.total_bytes)
                    tier.describe(NAMESPACE, make_spec())
                    for sample in samples[3 * life : 3 * life + 2]:
                        tier.evict(sample.write_to(tier), sample.record.total_bytes)
                    samples[3 * life + 2].write_to(tier)
            with closing(self.open_host(recover_records=0)) as reader:
                found = reader.find([name_of(each) for each in (*samples, theirs)], WITHIN_S)
            assert [each is not None for each in found] == [number in (8, 12) for number in range(13)]

    def test_a_sweep_takes_what_is_old_whoever_wrote_it(self) -> None:
        samples = [make_sample(number, 5000, groups=1 + 100 * (number % 3)) for number in range(12)]
        with closing(self.open_host()) as one, closing(self.open_host()) as two:
            for number, sample in enumerate(samples):
                sample.write_to((one, two)[number % 2])
            for digest in (bytes(15) + b"1", bytes(15) + b"2"):
                one.keep_artefact(digest, b"learnt")
            before = samples[5].record.created_ms
            for delete in (False, True):
                swept = sweep(one.engine, before, delete=delete)
                assert (swept.records, swept.left_records, swept.artefacts) == (5, 7, 2)
            found = two.find([name_of(sample) for sample in samples], WITHIN_S)
            assert [each is not None for each in found] == [number >= 5 for number in range(12)]
            assert sweep(one.engine, before, delete=True).left_records == 7
            assert not list(one.engine.list("artefacts/"))

    def test_one_host_finds_what_another_wrote(self) -> None:
        with closing(self.open_host()) as writer, closing(self.open_host()) as reader:
            samples = [make_sample(number, 3000 + 50_000 * number, groups=1 + 100 * number) for number in range(6)]
            absent = make_sample(99, 5000)
            names = [name_of(each) for each in (*samples, absent)]
            assert list(reader.find(names, WITHIN_S)) == [None] * 7
            for sample in samples:
                sample.write_to(writer)
            found = reader.find(names, WITHIN_S)
            assert found[6] is None
            for sample, answer in zip(samples, found[:6], strict=True):
                assert answer is not None
                record, location = answer
                same_record(record, sample.record)
                sample.check_in(reader, location)
            assert reader.used == 0

    def test_evicting_what_another_wrote_leaves_it_there(self) -> None:
        with closing(self.open_host()) as writer, closing(self.open_host()) as reader:
            sample = make_sample(1, 20_000)
            mine = sample.write_to(writer)
            answer = reader.find([name_of(sample)], WITHIN_S)[0]
            assert answer is not None
            reader.evict(answer[1], sample.record.total_bytes)
            assert is_lost(reader, answer[1])
            sample.check_in(writer, mine)
            again = reader.find([name_of(sample)], WITHIN_S)[0]
            assert again is not None
            writer.evict(mine, sample.record.total_bytes)
            assert is_lost(reader, again[1])
            assert list(reader.find([name_of(sample)], WITHIN_S)) == [None]

    def test_the_second_writer_of_a_record_takes_over_what_is_there(self) -> None:
        with closing(self.open_host()) as one, closing(self.open_host()) as other:
            sample, twin = make_sample(1, 50_000), make_sample(1, 50_000)
            random_other = make_sample(2, 50_000)
            twin.payload[:50_000] = random_other.payload[:50_000]  # the same key, computed to other bytes
            record = dataclasses.replace(sample.record, groups=random_other.record.groups)
            twin = Sample(record, record.pack(), twin.payload)
            sample.check_in(one, sample.write_to(one))
            location = twin.write_to(other)
            sample.check_in(other, location)
            assert other.used == 0, "what another host wrote counts for it"
            assert other.stats()["already_there"] == 1

    def test_the_second_writer_is_told_of_another_form(self) -> None:
        with closing(self.open_host()) as one, closing(self.open_host()) as other:
            sample = make_sample(1, 50_000)
            sample.write_to(one)
            try:
                in_form(sample, 7).write_to(other)
                raise AssertionError("another form was taken for the same")
            except Present as present:
                same_record(present.record, sample.record)
            assert other.used == 0
            answer = other.find([name_of(sample)], WITHIN_S)[0]
            assert answer is not None
            other.delete(answer[1], sample.record.total_bytes)
            in_form(sample, 7).check_in(other, in_form(sample, 7).write_to(other))

    def test_of_writers_at_the_same_time_one_wins_and_all_read_it(self) -> None:
        hosts = [self.open_host() for _ in range(4)]
        sample, start = make_sample(1, 700_000), threading.Barrier(4)
        places: dict[int, int] = {}

        def write(number: int) -> None:
            start.wait()
            places[number] = sample.write_to(hosts[number])

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        try:
            assert len(places) == 4
            for number, location in places.items():
                sample.check_in(hosts[number], location)
        finally:
            for host in hosts:
                host.close()


def is_lost(tier: Tier, location: int) -> bool:
    """Whether nothing is at a location any more."""
    try:
        tier.read_into(location, 0, aligned_memory(4096))
    except NotFound:
        return True
    return False


def same_record(found: Record, wanted: Record) -> None:
    """Assert that two headers say the same."""
    assert found.pack() == wanted.pack()
