"""What look-ups find of other hosts: no tenant's quota pays for it, none of it goes to make room for what is put."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore.config import Config, DramConfig, NamespaceConfig, NvmeConfig, RemoteConfig
from kvstore.errors import Shed
from kvstore.keys import ChunkRef
from tests.store.conftest import LARGE, SHARDED, MiB, content, prompt
from tests.store.shared_tier import until

RECORD = 260 << 10  # of a LARGE chunk
Opener = Callable[..., kvstore.Client]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Opener]:
    """Opens stores of their own over one shared folder."""
    (tmp_path / "place").mkdir()
    with ExitStack() as opened:

        def opening(name: str, *, quota: int = 0, capacity: int = 1 << 40, nvme: bool = False, ttl_s: float = 0.0,
                    **rest: Any) -> kvstore.Client:  # fmt: skip
            remote = RemoteConfig(f"file://{tmp_path / 'place'}", capacity=capacity, lookup_wait_s=5.0)
            config = Config(
                dram=DramConfig(8 * MiB, 8 * MiB), remote=remote, put_wait_s=5.0,
                nvme=NvmeConfig(tmp_path / name, 64 * MiB, MiB, 0, 2) if nvme else None,
                namespaces=(NamespaceConfig("default", quota, ttl_s),), **rest,
            )  # fmt: skip
            return opened.enter_context(kvstore.open(config))

        yield opening


def refs_of(count: int, first: int = 0) -> list[ChunkRef]:
    return [prompt(LARGE, 1, first + seed).refs[0] for seed in range(count)]


def put(client: kvstore.Client, refs: list[ChunkRef]) -> None:
    for ref in refs:
        client.put(LARGE, ref, content(LARGE, ref, LARGE.part()))
    until(lambda: client.stats()["gauges"]["through"] == 0)


def check(client: kvstore.Client, refs: list[ChunkRef]) -> None:
    for ref in refs:
        assert (client.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()


def used(client: kvstore.Client) -> int:
    return int(client.stats()["namespace"]["used"])


def indexed(client: kvstore.Client, refs: list[ChunkRef]) -> int:
    """How many of the chunks the index has, without a look-up that would find them."""
    keys = {ref.key for ref in refs}
    return sum(info.key in keys for info in client.list())


def test_what_is_found_counts_for_nobodys_quota(hosts: Opener) -> None:
    others, mine = refs_of(20), refs_of(4, 100)
    put(hosts("one"), others)
    two = hosts("two", quota=8 * RECORD)
    assert two.contains(LARGE, others) == [True] * 20
    assert used(two) == 0
    put(two, mine)  # in DRAM and in the shared place: all that the quota allows
    assert used(two) == 8 * RECORD
    assert indexed(two, others) == 20, "none of it went"
    assert indexed(two, mine) == 4
    assert two.delete(LARGE, [ref.key for ref in others]) == 20
    assert used(two) == 8 * RECORD


def test_what_is_found_makes_no_room_in_a_quota_and_stays(hosts: Opener) -> None:
    others, mine = refs_of(20), refs_of(12, 100)
    put(hosts("one"), others)
    two = hosts("two", quota=8 * RECORD)
    assert two.contains(LARGE, others) == [True] * 20
    for ref in mine:
        put(two, [ref])
    assert used(two) <= 9 * RECORD, "the last one's copy in the place came after its put was let in"
    assert indexed(two, others) == 20
    assert 0 < indexed(two, mine) < 12, "its own made room, the oldest first"
    assert indexed(two, mine[-3:]) == 3
    check(two, mine[-3:])


def test_copies_of_what_was_found_count_and_go_while_the_chunk_stays(hosts: Opener) -> None:
    others, mine = refs_of(6), refs_of(4, 100)
    put(hosts("one"), others)
    two = hosts("two", quota=6 * RECORD)
    check(two, others) if two.contains(LARGE, others) else None
    assert used(two) == 6 * RECORD, "copies in this host's DRAM"
    for ref in mine:
        put(two, [ref])
    assert used(two) <= 7 * RECORD, "the last one's copy in the place came after its put was let in"
    assert indexed(two, others) == 6
    check(two, others)


def test_a_quota_of_leased_chunks_is_told_and_not_those_that_were_found(hosts: Opener) -> None:
    put(hosts("one"), refs_of(10))
    two = hosts("two", quota=2 * RECORD)
    assert all(two.contains(LARGE, refs_of(10)))
    put(two, refs_of(1, 100))
    with two.lookup(LARGE, refs_of(1, 100), lease_s=30), pytest.raises(Shed, match="quota"):
        put(two, refs_of(1, 200))
    assert indexed(two, refs_of(10)) == 10


def test_what_was_found_makes_no_room_in_the_place_for_what_is_put(hosts: Opener) -> None:
    others = refs_of(30)
    put(hosts("one"), others)
    two = hosts("two", capacity=4 * RECORD)
    first = refs_of(4, 100)
    assert all(two.contains(LARGE, others))  # the coldest in the order of what is there
    put(two, first)
    assert two.stats()["tiers"]["remote"]["used"] == 4 * RECORD
    late = refs_of(3, 200)
    put(two, late)
    tiers = {info.key: {place.tier for place in info.placements} for info in two.list()}
    assert all("remote" in tiers[ref.key] for ref in late), "its own oldest went for them"
    assert sum("remote" in tiers[ref.key] for ref in first) == 1
    assert indexed(two, others) == 30
    assert "shed_no_space" not in two.stats()["counters"]


def test_a_full_index_lets_go_of_what_was_found(hosts: Opener) -> None:
    put(hosts("one"), refs_of(60))
    two = hosts("two", max_chunks=40)
    for ref in refs_of(60):
        two.contains(LARGE, [ref])
    assert len(list(two.list())) <= 40
    put(two, refs_of(10, 100))
    check(two, refs_of(10, 100))
    check(two, refs_of(3)) if two.contains(LARGE, refs_of(3)) else None
    assert used(two) % RECORD == 0


def test_a_record_that_another_host_wrote_first_is_not_this_hosts(hosts: Opener) -> None:
    refs = refs_of(5)
    one, two = hosts("one"), hosts("two", quota=100 * RECORD)
    put(one, refs)
    put(two, refs)
    assert used(one) == 10 * RECORD
    assert used(two) == 5 * RECORD, "DRAM alone: the first writer's records were taken over"
    two.delete(LARGE, [ref.key for ref in refs])
    assert used(two) == 0


def test_chunks_of_several_parts_keep_their_books(hosts: Opener) -> None:
    refs = [prompt(SHARDED, 1, seed).refs[0] for seed in range(6)]
    one, two = hosts("one"), hosts("two", quota=64 << 10)
    for ref in refs:
        for part in SHARDED.parts():
            one.put(SHARDED, ref, content(SHARDED, ref, part), part=part)
    until(lambda: one.stats()["gauges"]["through"] == 0)
    assert two.contains(SHARDED, refs) == [True] * 6
    assert used(two) == 0
    for ref in refs:
        for part in SHARDED.parts():
            assert (two.get(SHARDED, ref, part=part) == content(SHARDED, ref, part)).all()
    assert two.contains(SHARDED, refs) == [True] * 6
    assert two.delete(SHARDED, [ref.key for ref in refs]) == 6
    assert used(two) == 0
