"""The ledger of a remote tier: what a host has written is its own after a restart, however the process ended."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import StorageError, Unavailable
from kvstore.testing.memory_engine import MemoryEngine
from kvstore.testing.records import NAMESPACE, Sample, make_sample, make_spec
from kvstore.testing.remote import name_of
from kvstore.tiers.base import Recovered
from kvstore.tiers.remote import Ledger, RemoteTier
from kvstore.tiers.remote.ledger import SLOT_BYTES, Noted
from kvstore.tiers.remote.names import object_name, pack

MIB = 1 << 20
Act = Callable[[], None]


class HookedEngine(MemoryEngine):
    """Does something before and after it takes an object."""

    before: Act | None = None
    after: Act | None = None

    def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
        if self.before is not None:
            self.before()
        new = super().put(name, pieces, timeout_s)
        if self.after is not None:
            self.after()
        return new


def start(engine: MemoryEngine, folder: Path, place: str = "place", **options: Any) -> tuple[RemoteTier, Recovered]:
    """A tier over a ledger, and what it knows of itself."""
    tier = RemoteTier(engine, **{"capacity": 64 * MIB, "ledger": Ledger(folder, place), "miss_s": 0.0, **options})
    found = tier.recover()
    tier.describe(NAMESPACE, make_spec())
    return tier, found


def keys(found: Recovered) -> set[bytes]:
    return {row["key"].tobytes() for row in found.rows}


def keys_of(samples: Sequence[Sample]) -> set[bytes]:
    return {sample.record.key for sample in samples}


def restarted(engine: MemoryEngine, folder: Path) -> set[bytes]:
    """Keys that a host finds to be its own when it is started, which must be what counts for it."""
    tier, found = start(engine, folder)
    with closing(tier):
        assert tier.stats()["live_records"] == len(found.rows)
        return keys(found)


def write(engine: MemoryEngine, folder: Path, samples: Sequence[Sample]) -> None:
    """A host writes these and is closed."""
    tier, _ = start(engine, folder)
    with closing(tier):
        for sample in samples:
            sample.write_to(tier)


def evict_in_an_outage(engine: MemoryEngine, tier: RemoteTier, sample: Sample) -> None:
    """Write it, and let it go while the place does not answer."""
    location = sample.write_to(tier)
    engine.failure = Unavailable("gone")
    tier.evict(location, sample.record.total_bytes)
    assert tier.used == 0


def noted(folder: Path) -> Noted:
    with closing(Ledger(folder, "place")) as ledger:
        return ledger.load()


def later(sample: Sample) -> Sample:
    """The same chunk, as another host has put it."""
    record = dataclasses.replace(sample.record, created_ms=sample.record.created_ms + 5)
    return Sample(record, record.pack(), sample.payload)


def is_there(engine: MemoryEngine, sample: Sample) -> bool:
    return object_name(pack(name_of(sample))) in engine.objects


def test_what_was_written_is_own_after_a_restart_and_what_others_wrote_is_not(tmp_path: Path) -> None:
    engine, samples = MemoryEngine(), [make_sample(number, 1000 * (number + 1)) for number in range(20)]
    tier, found = start(engine, tmp_path / "a")
    other, _ = start(engine, tmp_path / "b")
    with closing(tier), closing(other):
        assert not len(found.rows)
        theirs = [make_sample(number, 5000) for number in range(100, 105)]
        for sample in theirs:
            sample.write_to(other)
            later(sample).write_to(tier)  # what is there counts, and stays theirs
        locations = [sample.write_to(tier) for sample in samples]
        for sample, location in zip(samples[::3], locations[::3], strict=True):
            tier.evict(location, sample.record.total_bytes)
        used = tier.used
    kept = [sample for sample in samples if sample not in samples[::3]]
    calls = engine.calls["list"]
    tier, found = start(engine, tmp_path / "a")
    with closing(tier):
        assert engine.calls["list"] == calls, "the place was listed"
        assert (keys(found), tier.used) == (keys_of(kept), used)
        assert list(found.namespaces.values()) == [NAMESPACE]
        assert list(found.specs.values()) == [make_spec()]
        by_key = {sample.record.key: sample for sample in kept}
        for row in found.rows:
            sample = by_key[row["key"].tobytes()]
            assert int(row["created_ms"]) == sample.record.created_ms
            sample.check_in(tier, int(row["location"]))
            tier.evict(int(row["location"]), sample.record.total_bytes)
        assert tier.used == 0
    assert not any(is_there(engine, sample) for sample in samples)
    assert all(is_there(engine, sample) for sample in theirs)
    assert not len(noted(tmp_path / "a").slots)
    assert restarted(engine, tmp_path / "b") == keys_of(theirs)


def test_the_ledger_is_as_long_as_the_most_records_at_a_time(tmp_path: Path) -> None:
    tier, _ = start(MemoryEngine(), tmp_path / "a")
    with closing(tier):
        for number in range(200):
            sample = make_sample(number, 3000)
            tier.evict(sample.write_to(tier), sample.record.total_bytes)
    with closing(Ledger(tmp_path / "a", "place")) as ledger:
        assert ledger.path.stat().st_size <= 3 * SLOT_BYTES


class TestKilledInAWrite:
    """What the dead process left is a copy of its ledger, made at that moment."""

    def copy(self, folder: Path) -> Act:
        return lambda: shutil.copytree(folder / "a", folder / "dead", dirs_exist_ok=True)  # type: ignore[return-value]

    def test_before_the_record_was_there(self, tmp_path: Path) -> None:
        engine, first, sample = HookedEngine(), make_sample(1, 5000), make_sample(2, 5000)
        tier, _ = start(engine, tmp_path / "a")
        with closing(tier):
            first.write_to(tier)
            engine.before = self.copy(tmp_path)
            location = sample.write_to(tier)
            tier.delete(location, sample.record.total_bytes)
        engine.before = None
        assert restarted(engine, tmp_path / "dead") == keys_of([first])

    def test_after_it_was_there(self, tmp_path: Path) -> None:
        engine, first, sample = HookedEngine(), make_sample(1, 5000), make_sample(2, 5000)
        tier, _ = start(engine, tmp_path / "a")
        with closing(tier):
            first.write_to(tier)
            engine.after = self.copy(tmp_path)
            sample.write_to(tier)
        engine.after = None
        assert sorted(noted(tmp_path / "dead").kept) == [False, True]
        assert restarted(engine, tmp_path / "dead") == keys_of([first, sample])
        assert list(noted(tmp_path / "dead").kept) == [True, True], "what was found to be so is not asked again"

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_where_another_host_had_written_it(self, moment: str, tmp_path: Path) -> None:
        engine, sample = HookedEngine(), make_sample(1, 5000)
        other, _ = start(engine, tmp_path / "b")
        tier, _ = start(engine, tmp_path / "a")
        with closing(tier), closing(other):
            sample.write_to(other)
            setattr(engine, moment, self.copy(tmp_path))
            later(sample).write_to(tier)
            setattr(engine, moment, None)
        assert restarted(engine, tmp_path / "dead") == set()
        assert is_there(engine, sample)
        assert restarted(engine, tmp_path / "b") == keys_of([sample])

    def test_while_the_place_is_down_at_the_next_start(self, tmp_path: Path) -> None:
        engine, first, sample = HookedEngine(), make_sample(1, 5000), make_sample(2, 5000)
        tier, _ = start(engine, tmp_path / "a")
        with closing(tier):
            first.write_to(tier)
            engine.after = self.copy(tmp_path)
            sample.write_to(tier)
        engine.after, engine.failure = None, Unavailable("gone")
        down = RemoteTier(engine, capacity=MIB, ledger=Ledger(tmp_path / "dead", "place"))
        with closing(down):
            found = down.recover()
            assert keys(found) == keys_of([first])
            assert "could not be looked at" in " ".join(found.notes)
            engine.failure = None
        assert restarted(engine, tmp_path / "dead") == keys_of([first, sample])


def test_a_write_whose_answer_was_lost_is_known_after_a_restart(tmp_path: Path) -> None:
    engine, there, lost = HookedEngine(), make_sample(1, 5000), make_sample(2, 5000)
    tier, _ = start(engine, tmp_path / "a")

    def lose_the_answer() -> None:
        engine.failure = Unavailable("the connection is lost")
        raise engine.failure

    with closing(tier):
        engine.after = lose_the_answer
        with pytest.raises(Unavailable):
            there.write_to(tier)
        with pytest.raises(Unavailable):
            lost.write_to(tier)
        assert tier.used == 0
    engine.after = engine.failure = None
    assert is_there(engine, there)
    assert restarted(engine, tmp_path / "a") == keys_of([there])


def test_what_could_not_be_deleted_is_own_after_a_restart(tmp_path: Path) -> None:
    engine, sample = MemoryEngine(), make_sample(1, 5000)
    tier, _ = start(engine, tmp_path / "a")
    with closing(tier):
        evict_in_an_outage(engine, tier, sample)
    engine.failure = None
    assert restarted(engine, tmp_path / "a") == keys_of([sample])


def test_what_was_deleted_after_an_outage_is_not(tmp_path: Path) -> None:
    engine, sample = MemoryEngine(), make_sample(1, 5000)
    tier, _ = start(engine, tmp_path / "a")
    with closing(tier):
        evict_in_an_outage(engine, tier, sample)
        tier._deletions.delay(pack(name_of(make_sample(2, 1))), 0)
        engine.failure = None
        tier._deletions.do()
        assert not is_there(engine, sample)
    assert not len(noted(tmp_path / "a").slots)


def test_what_is_written_again_before_it_could_be_deleted_stays_and_is_noted_once(tmp_path: Path) -> None:
    engine, sample = MemoryEngine(), make_sample(1, 5000)
    tier, _ = start(engine, tmp_path / "a")
    with closing(tier):
        engine.failure = None
        for again, slots in ((sample, 1), (later(sample), 1)):  # the second time what is there counts
            location = sample.write_to(tier)
            engine.failure = StorageError("the place refuses that")
            tier.evict(location, sample.record.total_bytes)
            engine.failure = None
            location = again.write_to(tier)
            tier._deletions.do()
            assert is_there(engine, sample)
            shutil.copytree(tmp_path / "a", tmp_path / "copy", dirs_exist_ok=True)
            assert len(noted(tmp_path / "copy").slots) == slots
            tier.evict(location, sample.record.total_bytes)
    assert restarted(engine, tmp_path / "a") == keys_of([sample])


def test_slots_that_are_in_use_are_left_alone_after_a_restart(tmp_path: Path) -> None:
    engine, samples = MemoryEngine(), [make_sample(number, 500) for number in range(9)]
    for start_at in (0, 3, 6):
        write(engine, tmp_path / "a", samples[start_at : start_at + 3])
    assert restarted(engine, tmp_path / "a") == keys_of(samples)


def test_so_many_writes_in_doubt_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.tiers.remote.ledger.MOST_IN_DOUBT", 3)
    engine = MemoryEngine()
    tier, _ = start(engine, tmp_path / "a")
    with closing(tier):
        engine.failure = Unavailable("gone")
        for number in range(10):
            with pytest.raises(Unavailable):
                make_sample(number, 500).write_to(tier)
    assert list(noted(tmp_path / "a").kept) == [False] * 3
    engine.failure = None
    assert restarted(engine, tmp_path / "a") == set()
    assert not len(noted(tmp_path / "a").slots)


def test_two_locations_of_one_record_are_one_after_a_restart(tmp_path: Path) -> None:
    engine, sample = MemoryEngine(), make_sample(1, 5000)
    tier, _ = start(engine, tmp_path / "a")
    with closing(tier):
        sample.write_to(tier)
        twin = sample.write_to(tier)
        assert tier.stats()["live_records"] == 2
        assert restarted_copy(engine, tmp_path) == keys_of([sample])
        tier.forget(twin, sample.record.total_bytes)
        assert tier.stats()["live_records"] == 1
    assert restarted(engine, tmp_path / "a") == keys_of([sample])
    with closing(Ledger(tmp_path / "a", "place")) as ledger:
        assert len(ledger.load().slots) == 1


def restarted_copy(engine: MemoryEngine, folder: Path) -> set[bytes]:
    shutil.copytree(folder / "a", folder / "copy")
    return restarted(engine, folder / "copy")


class TestPlaceThatHasLostRecords:
    def write(self, engine: MemoryEngine, folder: Path, count: int) -> list[Sample]:
        samples = [make_sample(number, 500) for number in range(count)]
        write(engine, folder / "a", samples)
        return samples

    def test_all_of_them_however_many(self, tmp_path: Path) -> None:
        engine = MemoryEngine()
        self.write(engine, tmp_path, 600)
        engine.objects.clear()
        tier, found = start(engine, tmp_path / "a")
        with closing(tier):
            assert not len(found.rows)
            assert tier.used == 0
            assert len(tier._ledger._free) == 600  # type: ignore[union-attr]
            assert found.notes == ("nothing is left in the shared place of the 600 records that this host had there",)
            assert engine.calls["heads"] <= 2, "more than a sample was looked at"
        assert {name.split("-")[0] for name in engine.objects} == {"meta/namespace", "meta/spec"}, "they are put again"

    def test_some_of_few(self, tmp_path: Path) -> None:
        engine = MemoryEngine()
        samples = self.write(engine, tmp_path, 20)
        for sample in samples[:5]:
            del engine.objects[object_name(pack(name_of(sample)))]
        assert restarted(engine, tmp_path / "a") == keys_of(samples[5:])

    def test_one_that_another_host_has_written_anew_is_theirs(self, tmp_path: Path) -> None:
        engine = MemoryEngine()
        samples = self.write(engine, tmp_path, 3)
        del engine.objects[object_name(pack(name_of(samples[0])))]
        other, _ = start(engine, tmp_path / "b")
        with closing(other):
            later(samples[0]).write_to(other)
        assert restarted(engine, tmp_path / "a") == keys_of(samples[1:])
