"""The pieces that the remote tier is made of."""

from __future__ import annotations

import hashlib
import threading

import pytest

from kvstore.errors import ConfigError, NotFound, Unavailable
from kvstore.spec import Part
from kvstore.tiers.base import Name, TierFull
from kvstore.tiers.remote.breaker import Breaker, Circuit
from kvstore.tiers.remote.meter import Latencies
from kvstore.tiers.remote.misses import RecentMisses
from kvstore.tiers.remote.names import META, object_name, pack, parse, unpack
from kvstore.tiers.remote.table import LocationTable
from kvstore.tiers.remote.valkey.connect import parse as parse_url
from kvstore.tiers.remote.valkey.objects import cut
from kvstore.tiers.remote.valkey.wire import command, gathered


def name(number: int) -> bytes:
    key = hashlib.sha256(b"%d" % number).digest()
    return pack(Name(b"n" * 16, b"s" * 16, key, Part(number % 3, number % 5, (0, 7))))


class TestNames:
    def test_come_back(self) -> None:
        packed = name(1)
        assert pack(unpack(packed)) == packed
        assert parse(object_name(packed)) == packed

    def test_spread_over_256_prefixes(self) -> None:
        starts = {object_name(name(number))[:3] for number in range(5000)}
        assert len(starts) == 256

    @pytest.mark.parametrize("other", [META + "spec-00.json", "probe", "00/" + object_name(name(1))[3:] + "x", ""])
    def test_others_are_no_records(self, other: str) -> None:
        assert parse(other) is None

    def test_a_name_under_another_prefix_is_no_record(self) -> None:
        right = object_name(name(1))
        wrong = f"{int(right[:2], 16) ^ 1:02x}{right[2:]}"
        assert parse(wrong) is None


class TestLocationTable:
    def test_gives_back_what_was_entered(self) -> None:
        table = LocationTable(1 << 40, 1 << 20)
        places = {table.add(name(i), i, own=bool(i % 2), tag=i << 30): i for i in range(40_000)}
        assert len(places) == 40_000
        assert all(0 <= location < 1 << 63 for location in places)
        for location, i in places.items():
            assert table.get(location) == (name(i), i, bool(i % 2), i << 30)
        assert table.used == sum(i for i in range(40_000) if i % 2)
        assert (table.own, table.others) == (20_000, 20_000)

    def test_an_old_location_is_not_taken_for_a_new_one(self) -> None:
        table = LocationTable(1 << 40, 10)
        old = table.add(name(1), 5, own=True)
        assert table.remove(old) == (name(1), 5, True, 0)
        new = table.add(name(2), 6, own=True)
        assert new != old
        assert new & 0xFFFFFFFF == old & 0xFFFFFFFF  # the row is used again
        with pytest.raises(NotFound):
            table.get(old)
        assert table.remove(old) is None
        assert table.get(new).name == name(2)

    def test_what_was_never_given_out_is_not_found(self) -> None:
        with pytest.raises(NotFound):
            LocationTable(1, 1).get(12345)

    def test_capacity_counts_own_and_promised_bytes(self) -> None:
        table = LocationTable(100, 10)
        table.add(name(1), 1000, own=False)
        table.reserve(60)
        with pytest.raises(TierFull):
            table.reserve(41)
        table.add(name(2), 60, own=True, reserved=60)
        table.reserve(40)
        table.unreserve(40)
        table.reserve(40)

    def test_has_so_many_rows_at_most(self) -> None:
        table = LocationTable(100, 2)
        first = table.add(name(1), 1, own=True)
        table.add(name(2), 1, own=True)
        with pytest.raises(TierFull):
            table.add(name(3), 1, own=True)
        table.remove(first)
        table.add(name(3), 1, own=True)


class TestRecentMisses:
    def test_remembers_and_forgets(self) -> None:
        misses = RecentMisses(60.0)
        assert name(1) not in misses
        misses.add(name(1))
        assert name(1) in misses
        misses.discard(name(1))
        assert name(1) not in misses

    def test_is_over_after_its_time(self) -> None:
        misses = RecentMisses(0.0)
        misses.add(name(1))
        assert name(1) not in misses

    def test_one_name_is_never_taken_for_another(self) -> None:
        misses = RecentMisses(60.0)
        for number in range(100_000):
            misses.add(name(number))
        assert not any(name(number) in misses for number in range(100_000, 150_000))


class TestBreaker:
    def test_opens_with_the_first_failure_and_closes_when_the_probe_returns(self) -> None:
        asked, may_answer, back = threading.Event(), threading.Event(), threading.Event()

        def probe() -> None:
            asked.set()
            may_answer.wait(30)

        breaker = Breaker("place", probe, back.set)
        breaker.check(lookup=True)
        breaker.failed(Unavailable("gone"))
        assert asked.wait(30)
        assert breaker.circuit is Circuit.HALF_OPEN
        assert "gone" in breaker.state
        with pytest.raises(Unavailable, match="gone"):
            breaker.check()
        assert not back.is_set()
        may_answer.set()
        assert back.wait(30)
        breaker.close()
        assert breaker.state == "ok"
        breaker.check()

    def test_one_probe_at_a_time_until_one_succeeds(self) -> None:
        under_way, most, left = 0, 0, 4

        def probe() -> None:
            nonlocal under_way, most, left
            under_way += 1
            most = max(most, under_way)
            under_way -= 1
            left -= 1
            if left:
                raise Unavailable("still gone")

        done = threading.Event()
        breaker = Breaker("place", probe, done.set)
        for _ in range(10):
            breaker.failed(Unavailable("gone"))
        assert done.wait(30)
        breaker.close()
        assert (most, breaker.probes, breaker.opened) == (1, 4, 1)

    def test_a_suspect_is_not_looked_up_but_read(self) -> None:
        may_answer = threading.Event()
        breaker = Breaker("place", lambda: may_answer.wait(30) and None, lambda: None)
        breaker.failed(Unavailable("slow"), suspect=True)
        breaker.check()
        with pytest.raises(Unavailable):
            breaker.check(lookup=True)
        may_answer.set()
        breaker.close()


class TestPercentiles:
    def test_are_of_the_last_calls(self) -> None:
        took = Latencies()
        assert took.percentile(0.5) is None
        for number in range(1000):
            took.add(float(number))
        assert took.percentile(0.0) == 744
        assert took.percentile(1.0) == 999
        assert Latencies().percentile(0.95, 32) is None


class TestRequests:
    def test_are_framed(self) -> None:
        payload = memoryview(b"payload")
        whole = b"".join(command(b"SET", b"key", payload))
        assert whole == b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$7\r\npayload\r\n"
        pieces = [payload[:3], payload[3:]]
        assert b"".join(gathered([b"SET", b"key"], pieces, [])) == whole
        with_option = b"".join(gathered([b"SET", b"key"], pieces, [b"NX"]))
        assert with_option == whole.replace(b"*3", b"*4") + b"$2\r\nNX\r\n"

    def test_pieces_are_cut_anywhere(self) -> None:
        data = bytes(range(100))
        pieces = [memoryview(data)[:10], memoryview(data)[10:11], memoryview(data)[11:100]]
        for start in range(0, 100, 3):
            for end in range(start, 101, 7):
                assert b"".join(cut(pieces, start, end)) == data[start:end]


class TestUrls:
    def test_say_where_and_as_whom(self) -> None:
        place = parse_url("valkeys://me:p%40ss@host:7000/3")
        assert (place.address, place.tls, place.username, place.password, place.database) == (
            ("host", 7000), True, "me", "p@ss", 3,
        )  # fmt: skip
        assert parse_url("redis://[::1]").address == ("::1", 6379)
        assert parse_url("unix:///tmp/x.sock").address == ("/tmp/x.sock", 0)

    @pytest.mark.parametrize("url", ["http://host", "host:6379", "valkey://host:port", "valkey://host/x", "unix://"])
    def test_that_say_nothing_are_refused(self, url: str) -> None:
        with pytest.raises(ConfigError):
            parse_url(url)

    def test_passwords_are_not_shown(self) -> None:
        with pytest.raises(ConfigError) as raised:
            parse_url("http://me:secret@host")
        assert "secret" not in str(raised.value)
