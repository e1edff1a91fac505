"""Hosts that share by a directory: what one stores the others find and read; what goes wrong is a miss."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from kvstore.bench.fleet import TOKEN, Fleet
from kvstore.bench.redis_server import RedisCluster

MiB = 1 << 20
Starter = Callable[..., Fleet]


def test_what_one_host_stores_the_others_find_and_read(fleet: Starter, kit: Any) -> None:
    made, chain, tail = fleet(3), kit.prompt(), kit.prompt(1, 3)
    clients = [host.connect() for host in made.hosts]
    kit.fill(clients[0], chain)
    kit.fill(clients[1], tail)
    kit.published(*clients)
    for client in clients:
        assert kit.read(client, chain) == len(chain.ids)
        assert kit.read(client, tail) == len(tail.ids)
        assert client.lookup(kit.spec, kit.prompt(2)).tokens == 0
    told = kit.peers(clients[2])
    assert (told["state"], told["peers"], told["peers_down"]) == ("ok", 2, 0)
    assert (told["found"], told["records_read"], told["published"]) == (11, 11, 0)
    assert kit.peers(clients[0])["published"] == 8
    assert clients[0].stats()["counters"]["peer_reads"] == 16  # once by either of the others
    command = [sys.executable, "-m", "kvstore", "tiers", "--url", f"local:{made.hosts[2].ready['local']}"]
    shown = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "KVSTORE_TOKEN": TOKEN}
    )
    assert "2 other hosts, 0 of them down; 0 entries published, 11 found, 11 read from others" in shown.stdout
    asked = kit.peers(clients[2])["asked"]
    kit.check(clients[2], chain)  # it is in this host's own DRAM now
    assert clients[2].lookup(kit.spec, chain).tokens == len(chain.ids)
    assert kit.peers(clients[2])["asked"] == asked
    for client in clients:
        client.close()


def test_its_owner_is_told_of_every_use_of_a_record(fleet: Starter, kit: Any) -> None:
    made, (ref,) = fleet(2), kit.prompt(chunks=1).refs
    with made.hosts[0].connect() as owner, made.hosts[1].connect() as reader:
        kit.fill(owner, kit.prompt(chunks=1))
        kit.published(owner)
        assert reader.lookup(kit.spec, [ref]).tokens == ref.tokens  # without a lease, so that only gets are uses
        for _ in range(3):  # answered by Python first, then natively
            (before,) = [info.hits for info in owner.list()]
            assert (reader.get(kit.spec, ref) == kit.content(ref)).all()
            kit.until(lambda before=before: [info.hits for info in owner.list()] > [before])


def test_a_prefix_that_is_spread_over_hosts(fleet: Starter, kit: Any) -> None:
    made, chain = fleet(3), kit.prompt(chunks=9)
    clients = [host.connect() for host in made.hosts]
    for number, ref in enumerate(chain.refs[:8]):
        clients[number % 3].put(kit.spec, ref, kit.content(ref))
    kit.published(*clients)
    for client in clients:
        assert kit.read(client, chain) == 8 * kit.spec.chunk_tokens
        client.close()


def test_what_a_host_lets_go_of_is_withdrawn(fleet: Starter, kit: Any) -> None:
    made, chain = fleet(2, dram=8 * MiB), kit.prompt(chunks=20)
    with closing(made.hosts[0].connect()) as one, closing(made.hosts[1].connect()) as two:
        kit.fill(one, chain)
        kit.fill(one, kit.prompt(1, 60))  # more than there is room for: the first ones go
        kit.published(one)
        kept = one.lookup(kit.spec, chain).tokens
        assert two.lookup(kit.spec, chain).tokens == kept < len(chain.ids)
        assert kit.peers(one)["withdrawn"] == one.stats()["counters"]["evicted_dram"] > 0
        one.delete(kit.spec, [ref.key for ref in kit.prompt(1, 60).refs])
        kit.published(one)
        assert two.lookup(kit.spec, kit.prompt(1, 60)).tokens == 0


def test_a_host_that_was_killed_is_a_miss_and_its_next_life_is_another(fleet: Starter, kit: Any) -> None:
    made, chain, more = fleet(3), kit.prompt(), kit.prompt(1)
    clients = [host.connect() for host in made.hosts[:2]]
    kit.fill(clients[0], chain)
    kit.fill(clients[1], more)
    kit.published(*clients)
    with closing(made.hosts[2].connect()) as reader:
        assert reader.lookup(kit.spec, chain).tokens == len(chain.ids)
        made.hosts[0].kill()
        start = time.monotonic()
        assert kit.read(reader, chain) == 0
        assert kit.read(reader, more) == len(more.ids)
        assert time.monotonic() - start < 20
        made.hosts[0].start()
        with closing(made.hosts[0].connect()) as again:
            assert reader.lookup(kit.spec, chain).tokens == 0
            kit.fill(again, chain)
            kit.published(again)
            kit.until(lambda: kit.read(reader, chain) == len(chain.ids))
    clients[0].close()
    clients[1].close()


def test_what_was_read_from_a_host_is_the_readers_own_once_that_has_lost_it(fleet: Starter, kit: Any) -> None:
    made, chain, more = fleet(3), kit.prompt(), kit.prompt(1)
    clients = [host.connect() for host in made.hosts]
    kit.fill(clients[0], chain)
    kit.fill(clients[0], more)
    kit.published(clients[0])
    for prompt in (chain, more):
        assert kit.read(clients[1], prompt) == len(prompt.ids)
    kit.published(clients[1])
    assert kit.peers(clients[1])["published"] == 0
    clients[0].delete(kit.spec, [ref.key for ref in chain.refs])
    kit.published(clients[0])
    assert kit.read(clients[1], chain) == len(chain.ids)  # a use, of which the owner is told
    kit.until(lambda: kit.read(clients[2], chain) == len(chain.ids))
    made.hosts[0].kill()
    kit.until(lambda: kit.peers(clients[1])["peers"] == 1)
    assert kit.read(clients[1], more) == len(more.ids)
    kit.until(lambda: kit.read(clients[2], more) == len(more.ids))
    for client in clients:
        client.close()


def test_a_host_that_hangs_holds_nobody_longer_than_its_time(fleet: Starter, kit: Any) -> None:
    made, chain = fleet(2, more=["lookup_wait_s = 2.0", "deadline_s = 1.0"]), kit.prompt()
    with closing(made.hosts[0].connect()) as one, closing(made.hosts[1].connect()) as two:
        kit.fill(one, chain)
        kit.published(one)
        assert two.lookup(kit.spec, chain).tokens == len(chain.ids)
        made.hosts[0].pause()
        try:
            start = time.monotonic()
            assert kit.read(two, chain) == 0
            assert time.monotonic() - start < 15
            assert kit.read(two, chain) == 0
            kit.until(lambda: kit.peers(two)["peers"] == 0)  # its lease is over
        finally:
            made.hosts[0].resume()
        kit.until(lambda: kit.read(two, chain) == len(chain.ids))  # in another life, all is told anew


def test_a_directory_that_dies_costs_one_look_up_and_is_told_all_when_it_is_back(fleet: Starter, kit: Any) -> None:
    made, chain, more = fleet(2), kit.prompt(), kit.prompt(1)
    with closing(made.hosts[0].connect()) as one, closing(made.hosts[1].connect()) as two:
        kit.fill(one, chain)
        kit.published(one)
        assert made.redis is not None
        made.redis.kill()
        assert two.lookup(kit.spec, chain).tokens == 0
        kit.until(lambda: kit.peers(two)["state"] != "ok")
        asked = kit.peers(two)["asked"]
        for _ in range(50):
            assert two.lookup(kit.spec, chain).tokens == 0
        assert kit.peers(two)["asked"] == asked
        kit.fill(one, more)
        kit.check(one, chain)
        made.redis.start()  # empty
        kit.until(lambda: kit.read(two, chain) == len(chain.ids))
        kit.until(lambda: kit.read(two, more) == len(more.ids))


def test_entries_of_the_dead_are_swept(fleet: Starter, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, chain = fleet(2, more=["lookup_wait_s = 2.0", "lease_s = 1.0"]), kit.prompt()
    with closing(made.hosts[0].connect()) as one:
        kit.fill(one, chain)
        kit.published(one)
    assert made.redis is not None
    held = int(made.redis.ask("DBSIZE")[1:])
    made.hosts[0].kill()
    with closing(made.hosts[1].connect()) as two:
        kit.until(lambda: kit.peers(two)["peers"] == 0)
        assert two.lookup(kit.spec, chain).tokens == 0
        assert int(made.redis.ask("DBSIZE")[1:]) in (held - 1, held)  # its lease; the entries go by and by


def test_a_host_with_another_token_is_told_nothing(fleet: Starter, kit: Any) -> None:
    made, chain = fleet(1), kit.prompt()
    assert made.redis is not None
    strange = fleet(1, directory=f"valkey://127.0.0.1:{made.redis.port}", token="another")
    with closing(made.hosts[0].connect()) as one, closing(strange.hosts[0].connect()) as two:
        kit.fill(one, chain)
        kit.published(one)
        assert two.lookup(kit.spec, chain).tokens == 0
        states = [value for name, value in kit.peers(two).items() if name.startswith("peer ")]
        assert len(states) == 1
        assert "not the token of peers" in states[0]
        assert kit.peers(two)["peers_down"] == 1


def test_encoded_records_travel_as_they_lie_and_a_disk_is_read_for_others(fleet: Starter, kit: Any) -> None:
    made, chain = fleet(1), kit.prompt(chunks=90)
    assert made.redis is not None
    folder = made.redis.socket.parent
    disk = ["[nvme]", f'path = "{folder / "nvme"}"', 'capacity = "64MiB"', 'segment = "4MiB"', 'reserve = "0"']
    url = f"valkey://127.0.0.1:{made.redis.port}"
    more = ["lookup_wait_s = 2.0", *disk, 'codec = "lossless"']
    keeper = fleet(1, dram=8 * MiB, directory=url, more=more)  # room for two thirds of it
    with closing(keeper.hosts[0].connect()) as one, closing(made.hosts[0].connect()) as two:
        kit.fill(one, chain)
        kit.published(one)
        assert one.stats()["tiers"]["nvme"]["used"] > 0
        tokens = kit.read(two, chain)
        assert tokens == one.lookup(kit.spec, chain).tokens == len(chain.ids)


def test_a_shared_place_below_is_asked_for_what_no_host_has(fleet: Starter, kit: Any) -> None:
    first = fleet(1)
    assert first.redis is not None
    url = f"valkey://127.0.0.1:{first.redis.port}"
    remote = ["lookup_wait_s = 2.0", "[remote]", f'url = "{url}"', "lookup_wait_s = 2.0"]
    made, chain = fleet(2, directory=url, more=remote), kit.prompt()
    with closing(made.hosts[0].connect()) as one, closing(made.hosts[1].connect()) as two:
        kit.fill(one, chain)
        kit.until(lambda: one.stats()["gauges"]["through"] == 0)
        kit.published(one)
        assert kit.read(two, chain) == len(chain.ids)
        tiers = two.stats()["tiers"]
        assert list(tiers) == ["dram", "peers", "remote"]
        assert (tiers["peers"]["records_read"], tiers["remote"]["records_read"]) == (8, 0)
        assert tiers["peers"]["written"] == 0
        made.hosts[0].kill()
        made.hosts[1].kill()
        made.hosts[1].start()
        with closing(made.hosts[1].connect()) as again:
            assert kit.read(again, chain) == len(chain.ids)
            assert again.stats()["tiers"]["remote"]["records_read"] == 8


def test_a_directory_in_a_cluster_of_three_masters(fleet: Starter, kit: Any, cluster: RedisCluster) -> None:
    more = ["lookup_wait_s = 2.0", 'group = "in-a-cluster"']
    made, chain = fleet(2, directory=cluster.urls()[1], more=more), kit.prompt(chunks=60)
    with closing(made.hosts[0].connect()) as one, closing(made.hosts[1].connect()) as two:
        kit.fill(one, chain)
        kit.published(one)
        assert kit.read(two, chain) == len(chain.ids)
        sizes = [int(server.ask("DBSIZE")[1:].split()[0]) for server in cluster.servers]
        assert min(sizes) > 5  # entries are spread
        one.delete(kit.spec, [chain.refs[20].key])
        kit.published(one)
        other = kit.prompt(5, 3)
        kit.fill(two, other)
        kit.published(two)
        assert kit.read(one, other) == len(other.ids)
