"""The directory: entries and lives of hosts in a real Redis."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from kvstore.bench.redis_server import RedisServer
from kvstore.errors import ConfigError, Unavailable
from kvstore.tiers.peers import Directory
from kvstore.tiers.peers import directory as module

Opener = Callable[..., Directory]
WITHIN_S = 20.0


def names(count: int) -> list[bytes]:
    return [os.urandom(72) for _ in range(count)]


def nothing() -> None:
    """Whoever does not care when a life begins."""


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def holders(directory: Directory, asked: list[bytes]) -> list[str | None]:
    return [None if each is None else each[1] for each in directory.look_up(asked, WITHIN_S)]


def advertised(open_directory: Opener, where: str, **options: object) -> Directory:
    directory = open_directory(**options)
    directory.advertise(where, nothing)
    return directory


def test_who_holds_what(open_directory: Opener) -> None:
    one, two = advertised(open_directory, "bulk://one:1"), advertised(open_directory, "bulk://two:2")
    reader = open_directory()
    mine, theirs, nobodys = names(3000), names(3), names(3)
    one.publish(mine, one.life)
    two.publish(theirs, two.life)
    found = holders(reader, [*theirs, *nobodys, *mine[:2000]])
    assert found == ["bulk://two:2"] * 3 + [None] * 3 + ["bulk://one:1"] * 2000
    assert holders(one, mine[:3]) == [None] * 3  # itself is nobody to ask
    assert holders(one, theirs) == ["bulk://two:2"] * 3
    assert open_directory(group="another").look_up(mine[:3], WITHIN_S) == [None] * 3


def test_a_host_takes_out_its_own_entries_alone(open_directory: Opener) -> None:
    one, two = advertised(open_directory, "bulk://one:1"), advertised(open_directory, "bulk://two:2")
    reader, both = open_directory(), names(100)
    one.publish(both, one.life)
    two.publish(both, two.life)  # the last one stays
    one.withdraw(both, one.life)
    assert holders(reader, both) == ["bulk://two:2"] * 100
    two.withdraw(both[:50], two.life)
    assert holders(reader, both) == [None] * 50 + ["bulk://two:2"] * 50


def test_a_host_without_a_lease_counts_for_nothing_at_once(open_directory: Opener, server: RedisServer) -> None:
    one, reader, held = advertised(open_directory, "bulk://one:1", lease_s=60.0), open_directory(lease_s=60.0), names(5)
    one.publish(held, one.life)
    assert holders(reader, held) == ["bulk://one:1"] * 5
    expect = server.ask("DEL", one._layout.lease(one.life).decode())
    assert expect == b":1\r\n"
    assert holders(reader, held) == [None] * 5


def test_a_host_that_ends_in_order_is_gone_at_once(open_directory: Opener) -> None:
    one, reader, held = advertised(open_directory, "bulk://one:1", lease_s=60.0), open_directory(), names(5)
    one.publish(held, one.life)
    assert holders(reader, held) == ["bulk://one:1"] * 5
    one.close()
    one.close()
    assert holders(reader, held) == [None] * 5


def test_a_lease_that_was_lost_begins_another_life(open_directory: Opener, server: RedisServer) -> None:
    begun = list[bytes]()
    one, reader, held = open_directory(), open_directory(), names(5)
    one.advertise("bulk://one:1", lambda: begun.append(one.life))
    one.publish(held, one.life)
    server.ask("DEL", one._layout.lease(one.life).decode())
    until(lambda: len(begun) == 2)
    assert begun[0] != begun[1] == one.life
    assert holders(reader, held) == [None] * 5  # of the life before: told anew, or not there
    one.publish(held, one.life)
    assert holders(reader, held) == ["bulk://one:1"] * 5


def test_entries_of_lives_that_are_over_and_those_found_wrong_are_swept(
    open_directory: Opener, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = advertised(open_directory, "bulk://one:1"), advertised(open_directory, "bulk://two:2")
    dead, alive = names(50), names(50)
    one.publish(dead, one.life)
    two.publish(alive, two.life)
    swept = [module.slot_of(name).bucket for name in (*dead, *alive)]
    monkeypatch.setattr(module.random, "sample", lambda population, count: swept)  # as luck may have it
    wrong, life = dead[0], one.life
    two.lost(wrong, life)
    until(lambda: holders(two, [wrong]) == [None])
    assert holders(two, dead[1:]) == ["bulk://one:1"] * 49

    def entries() -> int:
        pattern = one._layout.bucket(0)[:-4].decode() + "[0-9a-f]*"
        script = "local n = 0 for _, key in ipairs(redis.call('KEYS', ARGV[1])) do n = n + redis.call('HLEN', key) end"
        return int(server.ask("EVAL", f"{script} return n", "0", pattern)[1:])

    assert entries() == 99
    one.close()
    until(lambda: entries() == 50)
    assert holders(open_directory(), alive) == ["bulk://two:2"] * 50


def test_an_unreachable_directory_is_asked_once(
    own_server: Callable[..., RedisServer], open_directory: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_server()
    one, asked = open_directory(server.url()), names(3)
    one.advertise("bulk://one:1", nothing)
    server.kill()
    with pytest.raises(Unavailable):
        one.look_up(asked, WITHIN_S)
    assert not one.is_open
    start = time.monotonic()
    for _ in range(1000):
        with pytest.raises(Unavailable):
            one.look_up(asked, WITHIN_S)
    assert time.monotonic() - start < 30
    server.start()
    until(lambda: one.is_open and one.look_up(asked, WITHIN_S) == [None] * 3)


def test_what_cannot_work_is_told_at_the_start(own_server: Callable[..., RedisServer]) -> None:
    server = own_server(password="right")
    with pytest.raises(ConfigError, match=r"peers\.username and peers\.password"):
        Directory(server.url(), password="wrong")
    Directory(server.url(), password="right").close()
    server.kill()
    with pytest.raises(Unavailable):
        Directory(server.url(), password="right")


def test_values_that_others_wrote_are_no_hosts(open_directory: Opener, server: RedisServer) -> None:
    one, reader, held = advertised(open_directory, "bulk://one:1"), open_directory(), names(3)
    one.publish(held, one.life)
    keys, requests, _ = one._layout.ask([module.slot_of(name) for name in held])
    del requests
    field = module.slot_of(held[0]).field
    bucket = keys[0].decode()
    import valkey

    with valkey.Valkey(port=server.port) as client:
        client.hset(bucket, field, b"no life")
        client.set(keys[1], b"no hash") if keys[1] != keys[0] else None
    with pytest.raises(Exception, match="WRONGTYPE"):
        reader.look_up(held, WITHIN_S)
    assert holders(reader, held[:1]) == [None]
    assert reader.is_open  # it answers, whatever it says
