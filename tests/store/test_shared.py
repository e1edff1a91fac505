"""Several stores over one shared tier: what one has stored, another finds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import kvstore
from kvstore.config import Config, DramConfig, NamespaceConfig
from kvstore.errors import NotFound
from kvstore.record import unpack
from kvstore.removed import Removed
from kvstore.store import Store
from kvstore.tiers.base import Tier
from kvstore.tiers.remote import RemoteTier
from kvstore.tiers.remote.posix import PosixEngine
from tests.store.conftest import LARGE, SHARDED, SMALL, MiB, content, prompt
from tests.store.shared_tier import Place, SharedTier, until


class Host:
    """A store of its own, with little DRAM, over a shared place."""

    def __init__(self, place: Place, dram: int = 8 * MiB, namespaces: tuple[str, ...] = ("default",)) -> None:
        self.tier = SharedTier(place)
        config = Config(dram=DramConfig(dram, dram), namespaces=tuple(map(NamespaceConfig, namespaces)), put_wait_s=5.0)
        self.store = Store(config, [self.tier])
        self.client = kvstore.Client(self.store.session(namespaces[0]))

    def put(self, spec: kvstore.KVSpec, refs: list[kvstore.ChunkRef]) -> None:
        """Put all parts, and wait until they are in the shared place."""
        for ref in refs:
            for part in spec.parts():
                self.client.put(spec, ref, content(spec, ref, part), part=part)
        until(lambda: self.client.stats()["gauges"]["through"] == 0)

    def check(self, spec: kvstore.KVSpec, refs: list[kvstore.ChunkRef]) -> None:
        """All parts, every byte."""
        for ref in refs:
            for part in spec.parts():
                assert (self.client.get(spec, ref, part=part) == content(spec, ref, part)).all()


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    place = Place()
    found = [Host(place), Host(place)]
    yield found
    place.down = False
    for host in found:
        host.store.close()


@pytest.mark.parametrize("spec", [LARGE, SHARDED], ids=lambda spec: spec.model)
def test_what_one_host_stored_another_finds(hosts: list[Host], spec: kvstore.KVSpec) -> None:
    one, two = hosts
    chain = prompt(spec, 6)
    one.put(spec, list(chain.refs))
    assert two.client.lookup(spec, chain).tokens == len(chain.ids)
    two.check(spec, list(chain.refs))
    counters = two.client.stats()["counters"]
    assert counters["found_remote"] == 6 * len(list(spec.parts()))
    assert counters["loaded_remote"] == 6 * len(list(spec.parts()))
    asked = two.tier.asked
    assert two.client.lookup(spec, chain).tokens == len(chain.ids)
    assert two.tier.asked == asked  # it knows now


@pytest.mark.parametrize("kind", ["stand-in", "folder"])
def test_what_is_written_twice_at_once_stays_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever puts it and waits for a copy that survives, and by what writes through."""
    tier: Tier = SharedTier(Place()) if kind == "stand-in" else RemoteTier(PosixEngine(tmp_path), capacity=64 * MiB)
    write, together = tier.write, threading.Barrier(2)
    monkeypatch.setattr(tier, "write", lambda *args: together.wait(30) < 0 or write(*args))
    store, refs = Store(Config(dram=DramConfig(8 * MiB, 8 * MiB)), [tier]), prompt(LARGE, 4).refs
    try:
        client, core, removed = kvstore.Client(store.session("default")), store.core, Removed()
        for ref in refs:
            client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack="persisted")
        until(lambda: client.stats()["gauges"]["through"] == 0)
        with core.lock:
            for row in core.index.chunks(0, 100)[0].tolist():
                assert core.drop_from(row, 0, removed)
        core.settle(removed)
        for ref in refs:
            assert (client.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()
        assert client.stats()["tiers"]["remote"]["used"] == client.stats()["namespace"]["used"] - core.dram.used
    finally:
        store.close()


def test_what_nobody_stored_is_a_miss_and_another_namespace_finds_nothing(hosts: list[Host]) -> None:
    one, _ = hosts
    chain = prompt(SMALL, 3)
    one.put(SMALL, list(chain.refs))
    other = Host(one.tier.place, namespaces=("tenant",))
    try:
        assert other.client.lookup(SMALL, chain).tokens == 0
        assert other.client.lookup(SMALL, prompt(SMALL, 3, 1)).tokens == 0
    finally:
        other.store.close()


def test_a_part_that_is_written_twice_at_once_stays(hosts: list[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a put that waits for the place, and by the copy that is made of every put."""
    one, two = hosts
    chain = prompt(SMALL, 1)
    (ref,) = chain.refs
    both, write = threading.Barrier(2), one.tier.write
    monkeypatch.setattr(one.tier, "write", lambda *record: both.wait(10) is None or write(*record))
    one.client.put(SMALL, ref, content(SMALL, ref, SMALL.part()), ack="persisted")
    until(lambda: one.client.stats()["gauges"]["through"] == 0)
    assert len(one.tier._names) == 1
    assert two.client.lookup(SMALL, chain).tokens == len(chain.ids)
    two.check(SMALL, [ref])


def test_a_prefix_that_is_there_in_part(hosts: list[Host]) -> None:
    one, two = hosts
    chain = prompt(SMALL, 8)
    one.put(SMALL, list(chain.refs[:5]))
    two.put(SMALL, list(chain.refs[:2]))
    assert two.client.lookup(SMALL, chain).tokens == 5 * SMALL.chunk_tokens
    two.check(SMALL, list(chain.refs[:5]))


def test_a_record_that_the_place_has_lost_is_a_miss(hosts: list[Host]) -> None:
    one, two = hosts
    chain = prompt(SMALL, 3)
    one.put(SMALL, list(chain.refs))
    assert two.client.lookup(SMALL, chain).tokens == 3 * SMALL.chunk_tokens
    gone = chain.refs[1]
    for name in [each for each in two.tier.place.records if each.key == gone.key]:
        del two.tier.place.records[name]
    with pytest.raises(NotFound):
        two.client.get(SMALL, gone)
    assert two.client.lookup(SMALL, chain).tokens == SMALL.chunk_tokens
    two.check(SMALL, [chain.refs[0]])


def test_a_damaged_record_is_never_given_out(hosts: list[Host]) -> None:
    one, two = hosts
    chain = prompt(SMALL, 2)
    one.put(SMALL, list(chain.refs))
    assert two.client.lookup(SMALL, chain).tokens == 2 * SMALL.chunk_tokens
    for name, record in two.tier.place.records.items():
        if name.key == chain.refs[1].key:
            two.tier.place.records[name] = record[:5000] + bytes([record[5000] ^ 1]) + record[5001:]
    with pytest.raises(kvstore.Corrupt):
        two.client.get(SMALL, chain.refs[1])
    assert two.client.lookup(SMALL, chain).tokens == SMALL.chunk_tokens
    one.check(SMALL, list(chain.refs))  # whose own copies are good


def test_what_this_host_cannot_decode_is_a_miss_and_stays_for_others(hosts: list[Host]) -> None:
    one, two = hosts
    chain = prompt(SMALL, 3)
    one.put(SMALL, list(chain.refs))
    records = two.tier.place.records
    for name in [each for each in records if each.key == chain.refs[1].key]:
        there = unpack(memoryview(records[name]))
        foreign = replace(there, form=0x7FFF)
        records[name] = foreign.pack() + records[name][there.header_bytes :]
    assert two.client.lookup(SMALL, chain).tokens == SMALL.chunk_tokens
    with pytest.raises(NotFound):
        two.client.get(SMALL, chain.refs[1])
    assert len(records) == 3


def test_while_the_place_is_down_look_ups_ask_once_and_puts_go_on(hosts: list[Host]) -> None:
    one, two = hosts
    chain, more = prompt(SMALL, 4), prompt(SMALL, 4, 1)
    one.put(SMALL, list(chain.refs))
    one.tier.place.down = True
    for _ in range(20):
        assert two.client.lookup(SMALL, chain).tokens == 0
    assert two.tier.asked == 1
    for ref in more.refs:
        two.client.put(SMALL, ref, content(SMALL, ref, SMALL.part()))
    two.check(SMALL, list(more.refs))
    assert two.client.stats()["tiers"]["remote"]["state"] == "down"
    one.tier.place.down = False
    assert two.client.lookup(SMALL, chain).tokens == 4 * SMALL.chunk_tokens
    until(lambda: one.client.lookup(SMALL, more).tokens == 4 * SMALL.chunk_tokens)
    one.check(SMALL, list(more.refs))


def test_what_one_host_lets_go_of_stays_for_others_and_what_is_deleted_does_not(hosts: list[Host]) -> None:
    one, two = hosts
    chain = prompt(LARGE, 60)  # twice what DRAM holds
    one.put(LARGE, list(chain.refs))
    assert one.client.stats()["counters"]["evicted_dram"] > 0
    assert two.client.lookup(LARGE, chain).tokens == len(chain.ids)
    two.check(LARGE, list(chain.refs))
    two.client.delete(LARGE, [chain.refs[3].key])
    assert len(two.tier.place.records) == 59
    fresh = Host(one.tier.place)
    try:
        assert fresh.client.lookup(LARGE, chain).tokens == 3 * LARGE.chunk_tokens
    finally:
        fresh.store.close()


def test_a_host_that_starts_again_finds_what_it_stored(hosts: list[Host]) -> None:
    one, _ = hosts
    chain = prompt(SMALL, 5, tail=7)
    one.put(SMALL, list(chain.refs))
    again = Host(one.tier.place)
    try:
        assert again.client.lookup(SMALL, chain).tokens == len(chain.ids)
        again.check(SMALL, list(chain.refs))
    finally:
        again.store.close()
