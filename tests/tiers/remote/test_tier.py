"""The remote tier: outages, hedged reads, look-ups that are not asked, and what it counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from kvstore.bench.redis_server import RedisCluster, RedisServer
from kvstore.errors import Closed, ConfigError, DeadlineExceeded, NotFound, StorageError, TooLarge, Unavailable
from kvstore.testing.memory_engine import MemoryEngine
from kvstore.testing.records import aligned_memory, make_sample
from kvstore.testing.remote import name_of
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote import RemoteTier
from kvstore.tiers.remote.valkey import ValkeyEngine

WITHIN_S = 10.0
GIVEN_UP_S = 30.0
Starter = Callable[..., RedisServer]
TierMaker = Callable[..., RemoteTier]


class CountedEngine(ValkeyEngine):
    """Counts the look-ups and reads that come as far as the engine."""

    calls = 0

    def heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        self.calls += 1
        return super().heads(names, nbytes, timeout_s)

    def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
        self.calls += 1
        super().read_into(name, offset, out, timeout_s)


def wait_until(done: Callable[[], bool], seconds: float = GIVEN_UP_S) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"it did not come to that within {seconds:g} s"
        time.sleep(0.01)


class TestOutage:
    def test_lookups_cost_no_call_after_the_first_failure(self, own_server: Starter, open_tier: TierMaker) -> None:
        server = own_server()
        engine = CountedEngine(server.url())
        tier = open_tier(engine, miss_s=0.0)
        sample = make_sample(1, 50_000)
        location = sample.write_to(tier)
        assert tier.find([name_of(sample)], WITHIN_S)[0] is not None
        server.kill()
        assert list(tier.find([name_of(sample)], WITHIN_S)) == [None]
        assert "down" in tier.state
        calls = engine.calls
        for _ in range(100):
            assert list(tier.find([name_of(sample)], WITHIN_S)) == [None]
        with pytest.raises(Unavailable, match="down"):
            sample.check_in(tier, location)
        with pytest.raises(Unavailable, match="down"):
            make_sample(2, 100).write_to(tier)
        assert engine.calls == calls
        server.start()
        wait_until(lambda: tier.state == "ok")
        assert tier.stats()["breaker_opened"] == 1
        with pytest.raises(NotFound):  # that server kept nothing
            sample.check_in(tier, location)
        assert tier.stats()["lost"] == 1
        sample.check_in(tier, sample.write_to(tier))

    def test_a_server_that_hangs(self, own_server: Starter, open_tier: TierMaker) -> None:
        server = own_server()
        engine = CountedEngine(server.url())
        tier = open_tier(engine, miss_s=0.0, deadline_s=1.5)
        sample = make_sample(1, 50_000)
        location = sample.write_to(tier)
        server.pause()
        with pytest.raises(DeadlineExceeded):
            sample.check_in(tier, location)
        calls = engine.calls
        for _ in range(100):
            assert list(tier.find([name_of(sample)], WITHIN_S)) == [None]
        assert engine.calls == calls
        server.resume()
        wait_until(lambda: tier.state == "ok")
        sample.check_in(tier, location)
        assert tier.find([name_of(sample)], WITHIN_S)[0] is not None

    def test_a_short_lookup_of_a_server_that_hangs(self, own_server: Starter, open_tier: TierMaker) -> None:
        server = own_server()
        engine = CountedEngine(server.url())
        tier = open_tier(engine, miss_s=0.0)
        server.pause()
        sample = make_sample(1, 50_000)
        for _ in range(100):
            assert list(tier.find([name_of(sample)], 0.05)) == [None]
        assert engine.calls == 1
        server.resume()
        wait_until(lambda: tier.state == "ok")

    def test_a_cluster_that_lost_a_master_and_gets_it_back(self, tmp_path: Path, open_tier: TierMaker) -> None:
        cluster = RedisCluster(tmp_path)
        try:
            engine = CountedEngine(cluster.urls())
            tier = open_tier(engine, miss_s=0.0)
            samples = [make_sample(number, 20_000) for number in range(30)]
            locations = [sample.write_to(tier) for sample in samples]
            names = [name_of(sample) for sample in samples]
            lost = cluster.servers[1]
            lost.kill()
            assert list(tier.find(names, WITHIN_S)) == [None] * 30
            calls = engine.calls
            for _ in range(100):
                assert list(tier.find(names, WITHIN_S)) == [None] * 30
            assert engine.calls == calls
            lost.start()
            wait_until(lambda: tier.state == "ok")
            found = [each is not None for each in tier.find(names, WITHIN_S)]
            assert 0 < sum(found) < 30  # that master kept nothing
            for sample, location, is_there in zip(samples, locations, found, strict=True):
                if is_there:
                    sample.check_in(tier, location)
        finally:
            cluster.stop()

    def test_one_lost_connection_is_tried_again(self, own_server: Starter, open_tier: TierMaker) -> None:
        server = own_server()
        tier = open_tier(server.url())
        sample = make_sample(1, 50_000)
        location = sample.write_to(tier)
        for _ in range(3):
            server.ask("CLIENT", "KILL", "TYPE", "normal")
            sample.check_in(tier, location)
        assert tier.stats()["retries"] == 3
        assert tier.state == "ok"

    def test_deletions_wait_for_the_place(self, own_server: Starter, open_tier: TierMaker) -> None:
        server = own_server()
        tier = open_tier(server.url(), deadline_s=1.5)
        samples = [make_sample(number, 5000) for number in range(5)]
        locations = [sample.write_to(tier) for sample in samples]
        server.pause()
        for sample, location in zip(samples[:3], locations[:3], strict=True):
            tier.delete(location, sample.record.total_bytes)
        assert tier.used == sum(sample.record.total_bytes for sample in samples[3:])
        assert tier.stats()["deletes_delayed"] == 3
        server.resume()
        wait_until(lambda: tier.state == "ok")
        found = tier.find([name_of(sample) for sample in samples], WITHIN_S)
        assert [each is not None for each in found] == [False] * 3 + [True] * 2

    def test_an_answer_that_was_lost_does_not_make_a_record_anothers(self, open_tier: TierMaker) -> None:
        class Forgetful(MemoryEngine):
            def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
                new = super().put(name, pieces, timeout_s)
                if self.calls["put"] == 1:
                    raise Unavailable("the answer is lost")
                return new

        tier = open_tier(Forgetful())
        sample = make_sample(1, 5000)
        sample.write_to(tier)
        assert tier.used == sample.record.total_bytes
        assert tier.stats()["already_there"] == 0

    def test_a_refusal_is_no_outage(self, open_tier: TierMaker) -> None:
        engine = MemoryEngine()
        tier = open_tier(engine)
        engine.failure = StorageError("not like that")
        with pytest.raises(StorageError):
            make_sample(1, 5000).write_to(tier)
        assert (tier.state, tier.used, engine.calls["put"]) == ("ok", 0, 1)


class TestLookups:
    def test_names_that_were_missing_are_not_asked_for_again(self, open_tier: TierMaker) -> None:
        engine = MemoryEngine()
        tier = open_tier(engine, miss_s=60.0)
        samples = [make_sample(number, 5000) for number in range(4)]
        names = [name_of(sample) for sample in samples]
        assert list(tier.find(names, WITHIN_S)) == [None] * 4
        assert list(tier.find(names, WITHIN_S)) == [None] * 4
        assert engine.calls["heads"] == 1
        samples[2].write_to(tier)
        found = tier.find(names, WITHIN_S)
        assert [each is not None for each in found] == [False, False, True, False]
        assert engine.calls["heads"] == 2

    def test_a_damaged_header_is_a_miss_and_is_written_over(self, open_tier: TierMaker) -> None:
        engine = MemoryEngine()
        tier = open_tier(engine, miss_s=0.0)
        sample = make_sample(1, 5000)
        sample.write_to(tier)
        (name,) = engine.objects
        data = bytearray(engine.objects[name])
        data[40] ^= 1
        engine.objects[name] = bytes(data)
        assert list(tier.find([name_of(sample)], WITHIN_S)) == [None]
        assert tier.stats()["damaged"] == 1
        sample.check_in(tier, sample.write_to(tier))

    def test_another_record_under_a_name_is_a_miss(self, open_tier: TierMaker) -> None:
        engine = MemoryEngine()
        tier = open_tier(engine, miss_s=0.0)
        one, other = make_sample(1, 5000), make_sample(2, 5000)
        one.write_to(tier)
        (name,) = engine.objects
        other.write_to(tier)
        (second,) = engine.objects.keys() - {name}
        engine.objects[name] = engine.objects[second]
        found = tier.find([name_of(one), name_of(other)], WITHIN_S)
        assert [each is not None for each in found] == [False, True]


class TestHedging:
    """Against an engine in memory whose reads wait until a test lets them go."""

    class Slow(MemoryEngine):
        def __init__(self) -> None:
            super().__init__()
            self.hold: threading.Event | None = None
            self.late = threading.Event()

        def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
            hold, self.hold = self.hold, None
            if hold is not None:
                assert hold.wait(30)
                out[:] = b"\xff" * len(out)  # what a loser may do to its own memory
                self.late.set()
                return
            super().read_into(name, offset, out, timeout_s)

    def warmed(self, open_tier: TierMaker) -> tuple[Slow, RemoteTier, Callable[[memoryview], None], bytes]:
        engine = self.Slow()
        tier = open_tier(engine, hedge=True)
        sample = make_sample(1, 50_000)
        location = sample.write_to(tier)

        def read(out: memoryview) -> None:
            tier.read_into(location, sample.record.header_bytes, out)

        for _ in range(40):
            read(aligned_memory(50_000))
        return engine, tier, read, sample.content

    def test_the_second_read_wins_and_the_loser_writes_into_memory_of_its_own(self, open_tier: TierMaker) -> None:
        engine, tier, read, content = self.warmed(open_tier)
        engine.hold = hold = threading.Event()
        out = aligned_memory(50_000)
        read(out)
        assert out == content
        assert tier.stats()["hedges_won"] == 1
        hold.set()
        assert engine.late.wait(30)
        assert out == content

    def test_second_reads_are_few(self, open_tier: TierMaker) -> None:
        _, tier, read, content = self.warmed(open_tier)
        usual = tier._meter.sizes.p95
        tier._meter.sizes.p95 = lambda nbytes: 0.0 if usual(nbytes) else None  # type: ignore[method-assign]
        for _ in range(400):
            out = aligned_memory(50_000)
            read(out)
            assert out == content
        assert tier.stats()["hedges"] <= 8 + 400 * 0.05 + 1

    def test_two_that_fail_are_one_error(self, open_tier: TierMaker) -> None:
        engine, _, read, _ = self.warmed(open_tier)
        engine.objects.clear()
        with pytest.raises(NotFound):
            read(aligned_memory(50_000))


class TestLimits:
    def test_capacity_is_what_this_host_writes(self, open_tier: TierMaker) -> None:
        tier = open_tier(MemoryEngine(), capacity=100_000)
        sample = make_sample(1, 50_000)
        location = sample.write_to(tier)
        with pytest.raises(TierFull):
            make_sample(2, 50_000).write_to(tier)
        with pytest.raises(TooLarge):
            make_sample(3, 100_000).write_to(tier)
        tier.evict(location, sample.record.total_bytes)
        make_sample(2, 50_000).write_to(tier)

    @pytest.mark.parametrize(
        "options", [{"capacity": 0}, {"deadline_s": 0.0}, {"tries": 0}, {"io_threads": 0}, {"least_bytes_per_s": 0.0}]
    )
    def test_numbers_that_cannot_work(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigError):
            RemoteTier(MemoryEngine(), **{"capacity": 1 << 20, **options})  # type: ignore[arg-type]

    def test_close_ends_the_engine_and_all_use(self, open_tier: TierMaker) -> None:
        engine = MemoryEngine()
        tier = open_tier(engine)
        tier.close()
        assert engine.closed
        with pytest.raises(Closed):
            tier.find([name_of(make_sample(1, 100))], WITHIN_S)

    def test_close_while_the_place_is_down(self, own_server: Starter, open_tier: TierMaker) -> None:
        server = own_server()
        tier = open_tier(server.url(), deadline_s=0.5)
        server.pause()
        tier.find([name_of(make_sample(1, 100))], 0.05)
        tier.close()


def test_a_location_is_forgotten_and_its_object_stays() -> None:
    """Of a record that was written twice at once both locations are of one object."""
    engine, sample = MemoryEngine(), make_sample(1, 50_000)
    with closing(RemoteTier(engine, capacity=1 << 30)) as tier:
        first, second = sample.write_to(tier), sample.write_to(tier)
        used = tier.used
        tier.forget(second, sample.record.total_bytes)
        assert (len(engine.objects), tier.used) == (1, used // 2)
        sample.check_in(tier, first)
        with pytest.raises(NotFound):
            tier.read_into(second, 0, aligned_memory(4096))
