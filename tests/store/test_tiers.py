"""Between DRAM and disk: demotion, promotion, joined loads, pressure, quotas, time-to-live, restarts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from kvstore.config import NamespaceConfig
from kvstore.errors import NotFound, Shed, StorageError, TooLarge
from kvstore.mover import _Sweep
from kvstore.record import padded
from kvstore.removed import Removed
from kvstore.spec import KVSpec
from tests.store.conftest import LARGE, MLA, SHARDED, SLIDING, SMALL, Box, MiB, content, prompt
from tests.store.test_leases import until

RECORD = 260 << 10  # of a LARGE chunk


@pytest.mark.parametrize("spec", [LARGE, SHARDED, MLA, SLIDING], ids=lambda spec: spec.model)
def test_what_does_not_fit_dram_is_demoted_and_promoted_bit_for_bit(box: Box, spec: KVSpec) -> None:
    record = sum(4096 + padded(spec.part_bytes(part, spec.chunk_tokens)) for part in spec.parts())
    client = box.open(dram=4 * record, extent=4 * record, nvme=64 * MiB)
    chain = prompt(spec, 15)
    box.fill(client, spec, chain.refs)
    assert client.lookup(spec, chain).tokens == len(chain.ids)
    for _ in range(2):
        box.check(client, spec, chain.refs)
    counters = client.stats()["counters"]
    assert counters["loaded_nvme"] > 0
    assert counters["evicted_dram"] > 0
    assert "evicted_nvme" not in counters
    box.settled(client)


def test_without_a_disk_the_least_recently_used_go_first(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, policy="lru")
    refs = [prompt(LARGE, 1, seed).refs[0] for seed in range(9)]
    box.fill(client, LARGE, refs[:7])
    box.check(client, LARGE, refs[:1])
    box.fill(client, LARGE, refs[7:])
    assert client.contains(LARGE, refs) == [True, False, False, True, True, True, True, True, True]
    box.settled(client)


@pytest.mark.parametrize("policy", ["value", "lru"])
def test_the_tail_of_a_prefix_goes_before_its_head(box: Box, policy: str) -> None:
    client, chain = box.open(dram=2 * MiB, extent=2 * MiB, policy=policy), prompt(LARGE, 7)
    box.fill(client, LARGE, chain.refs)
    client.lookup(LARGE, chain, lease_s=5).release()
    box.fill(client, LARGE, prompt(LARGE, 3, 1).refs)
    there = client.contains(LARGE, chain.refs)
    assert there == sorted(there, reverse=True)
    assert not there[-1], "something had to go"
    if policy == "lru":  # the newest chunk of a prompt that nobody has used twice may be its own victim under others
        assert there == [True] * 4 + [False] * 3


def test_no_half_of_a_chunk_is_kept_when_it_is_evicted(box: Box) -> None:
    client = box.open(dram=MiB, extent=MiB)
    refs = [prompt(SHARDED, 1, seed).refs[0] for seed in range(40)]
    box.fill(client, SHARDED, refs)
    kept = [len(info.placements) for info in client.list()]
    assert 0 < len(kept) < 40
    assert set(kept) == {4}
    box.settled(client)


def test_no_half_of_a_chunk_is_kept_when_the_disk_has_no_room_for_a_part(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(SHARDED, 1)
    core, parts = box.store(client)._core, tuple(SHARDED.parts())
    for i, part in enumerate(parts):
        array = content(SHARDED, chain.refs[0], part)
        client.put(SHARDED, chain.refs[0], array, part=part, ack="persisted" if i < 2 else "stored")
    box.probe.full = True
    box.store(client)._mover._demote(core.catalog.namespaces["default"], _Sweep(0, 1, 1 << 40))
    assert list(client.list()) == []
    assert client.stats()["counters"]["dropped_no_space"] == 1
    box.probe.full = False
    box.settled(client)


def test_no_half_of_a_chunk_is_kept_when_the_disk_makes_room(box: Box) -> None:
    client = box.open(dram=MiB, extent=MiB, nvme=3 * MiB, segment=MiB // 2)
    refs = [prompt(SHARDED, 1, seed).refs[0] for seed in range(100)]
    box.fill(client, SHARDED, refs)
    counters = client.stats()["counters"]
    assert counters["evicted_nvme"] > 0
    for info in client.list():
        assert len({place.part for place in info.placements}) == 4
    for info in client.list():
        ref = next(ref for ref in refs if ref.key == info.key)
        with client.lookup(SHARDED, [ref], lease_s=30) as hit:
            box.check(client, SHARDED, hit.refs, verify=True)
    box.settled(client)


def test_readers_of_one_part_share_one_load(box: Box) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.only_on_disk(client, LARGE, [ref])
    box.probe.read_delay_s = 0.3
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: box.check(client, LARGE, [ref]), range(8)))
    assert box.probe.reads == 1
    assert client.stats()["counters"]["loaded_nvme"] == 1
    box.settled(client)


def test_a_batch_is_read_several_at_a_time(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 6)
    box.only_on_disk(client, LARGE, chain.refs)
    together = threading.Barrier(2)
    box.probe.before_read = lambda _: together.wait(30) and None  # none goes on alone
    outs = [np.zeros(LARGE.part_shape(LARGE.part(), 64), np.uint16) for _ in chain.refs]
    wants = [client.want(LARGE, ref, out) for ref, out in zip(chain.refs, outs, strict=True)]
    assert client.get_many(LARGE, wants) == [None] * 6
    for ref, out in zip(chain.refs, outs, strict=True):
        assert np.array_equal(out, content(LARGE, ref, LARGE.part()))


def test_a_dram_full_of_leases_is_read_around(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB)
    cold, hot = prompt(LARGE, 3, 1), prompt(LARGE, 7, 2)
    box.only_on_disk(client, LARGE, cold.refs)
    box.fill(client, LARGE, hot.refs)
    with client.lookup(LARGE, hot, lease_s=30):
        box.check(client, LARGE, cold.refs)
        with pytest.raises(Shed):
            client.view(LARGE, cold.refs[0])
        assert client.stats()["counters"]["read_around_dram"] == 3
    box.check(client, LARGE, cold.refs)
    box.settled(client)


def test_all_who_wait_for_a_load_that_finds_no_memory_read_around_together(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB)
    cold, hot, together = prompt(LARGE, 1, 1), prompt(LARGE, 7, 2), threading.Barrier(8)
    box.only_on_disk(client, LARGE, cold.refs)
    box.fill(client, LARGE, hot.refs)
    box.probe.before_read = lambda _: together.wait(30) and None  # not one after the other
    with client.lookup(LARGE, hot, lease_s=30), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: box.check(client, LARGE, cold.refs), range(8)))
    box.settled(client)


def test_prefetch_brings_chunks_into_dram(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 4)
    box.only_on_disk(client, LARGE, chain.refs)
    assert client.prefetch(LARGE, [*(ref.key for ref in chain.refs), bytes(32)]) == 4
    assert until(lambda: client.stats()["tiers"]["dram"]["used"] == 4 * RECORD)
    reads = box.probe.reads
    box.check(client, LARGE, chain.refs)
    assert box.probe.reads == reads == 4
    box.settled(client)


def test_nobody_waits_behind_prefetches(box: Box) -> None:
    client, chain, wanted = box.open(nvme=64 * MiB), prompt(LARGE, 12), prompt(LARGE, 2, 7)
    box.only_on_disk(client, LARGE, [*chain.refs, *wanted.refs])
    go_on = threading.Event()

    def slow_ahead(_: int) -> None:
        if threading.current_thread().name.startswith("kvstore-prefetch"):
            assert go_on.wait(30)

    box.probe.before_read = slow_ahead
    assert client.prefetch(LARGE, [ref.key for ref in chain.refs]) == 12
    outs = [np.zeros(LARGE.part_shape(LARGE.part(), 64), np.uint16) for _ in wanted.refs]
    wants = [client.want(LARGE, ref, out) for ref, out in zip(wanted.refs, outs, strict=True)]
    assert client.get_many(LARGE, wants) == [None, None]
    assert client.stats()["counters"]["loaded_nvme"] == 2, "all prefetches are still under way"
    go_on.set()
    assert until(lambda: client.stats()["counters"]["loaded_nvme"] == 14)


def test_an_error_of_the_disk_is_told_and_the_chunk_stays(box: Box, disk_error: StorageError) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.only_on_disk(client, LARGE, [ref])
    box.probe.read_error = disk_error
    with pytest.raises(StorageError, match="on fire"):
        client.get(LARGE, ref)
    assert [problem for _, _, problem in client.verify()] == ["the disk is on fire"]
    box.probe.read_error = None
    box.check(client, LARGE, [ref])
    box.settled(client)


def test_a_disk_that_cannot_be_written_fails_the_acknowledgement_only(box: Box, disk_error: StorageError) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.probe.write_error = disk_error
    with pytest.raises(StorageError, match="on fire"):
        box.fill(client, LARGE, [ref], "persisted")
    box.check(client, LARGE, [ref])
    box.probe.write_error = None
    assert client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack="persisted") is False
    assert {place.tier for info in client.list() for place in info.placements} == {"dram", "nvme"}
    box.settled(client)


def test_the_mover_outlives_a_disk_that_fails(box: Box, disk_error: StorageError) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB)
    box.probe.write_error = disk_error
    box.fill(client, LARGE, prompt(LARGE, 20, 1).refs)
    assert client.stats()["counters"]["dropped_disk_error"] > 0
    box.probe.write_error = None
    chain = prompt(LARGE, 20, 2)
    box.fill(client, LARGE, chain.refs)
    assert client.lookup(LARGE, chain).tokens == len(chain.ids)
    box.settled(client)


@pytest.mark.parametrize("held", ["leased", "pinned"])
def test_closing_ends_even_if_the_disk_is_full_and_chunks_are_held(box: Box, held: str) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 3)
    box.fill(client, LARGE, chain.refs)
    if held == "leased":
        box.another(client).lookup(LARGE, chain, lease_s=60)
    else:
        client.pin(LARGE, [ref.key for ref in chain.refs], 60)
    box.probe.full = True
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_a_view_that_is_held_does_not_keep_a_chunk_from_the_last_flush(box: Box) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.fill(client, LARGE, [ref])
    view = client.view(LARGE, ref)
    client.close()
    assert view.data == content(LARGE, ref, LARGE.part()).tobytes(), "its memory stays"
    view.close()
    box.check(box.open(nvme=64 * MiB), LARGE, [ref])


def test_everything_is_there_after_a_restart_in_order(box: Box) -> None:
    client = box.open(nvme=64 * MiB)
    chains = {spec: prompt(spec, 4, tail=3) for spec in (LARGE, SHARDED, MLA, SLIDING)}
    for spec, chain in chains.items():
        box.fill(client, spec, chain.refs)
    used = client.stats()["namespace"]["used"]
    client.close()
    client = box.open(nvme=64 * MiB)
    assert client.stats()["namespace"]["used"] == used
    for spec, chain in chains.items():
        assert client.lookup(spec, chain).tokens == len(chain.ids)
        box.check(client, spec, chain.refs)
    box.settled(client)


def test_without_a_flush_what_was_persisted_is_there_and_nothing_is_wrong(box: Box) -> None:
    client, one, two = box.open(nvme=64 * MiB, flush_on_close=False), prompt(LARGE, 3, 1), prompt(LARGE, 3, 2)
    box.fill(client, LARGE, one.refs, "persisted")
    box.fill(client, LARGE, two.refs)
    client.close()
    client = box.open(nvme=64 * MiB)
    assert client.contains(LARGE, [*one.refs, *two.refs]) == [True] * 3 + [False] * 3
    box.check(client, LARGE, one.refs)


@pytest.mark.parametrize("ack", ["persisted", "synced"])
def test_an_acknowledgement_covers_a_part_that_was_there_already(box: Box, ack: str) -> None:
    client, ref = box.open(nvme=64 * MiB, flush_on_close=False), prompt(LARGE, 1).refs[0]
    box.fill(client, LARGE, [ref])
    assert client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack=ack) is False
    with client.reserve(LARGE, ref) as reservation:
        reservation.data[:] = content(LARGE, ref, LARGE.part()).tobytes()
        assert reservation.commit(ack="synced") is False  # type: ignore[arg-type]
    client.close()
    box.check(box.open(nvme=64 * MiB), LARGE, [ref])


def test_a_deletion_outlives_a_restart(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 2)
    box.fill(client, LARGE, chain.refs, "persisted")
    client.delete(LARGE, [chain.refs[0].key])
    client.close()
    client = box.open(nvme=64 * MiB)
    assert client.contains(LARGE, chain.refs) == [False, True]


def test_a_second_store_in_the_same_folder_is_refused(box: Box) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.fill(client, LARGE, [ref])
    with pytest.raises(StorageError, match="in use") as refused:
        box.open(nvme=64 * MiB)
    assert str(box.folder) in str(refused.value)
    box.check(client, LARGE, [ref])


def test_two_clients_of_one_store_see_each_others_chunks(box: Box) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    other = box.another(client)
    box.fill(client, SMALL, [ref])
    box.check(other, SMALL, [ref])
    other.close()
    box.check(client, SMALL, [ref])


TWO = (NamespaceConfig("default"), NamespaceConfig("second"))


def test_namespaces_see_nothing_of_each_other(box: Box) -> None:
    client, chain = box.open(extent=4 * MiB, nvme=64 * MiB, namespaces=TWO), prompt(SMALL, 2)
    other = box.another(client, "second")
    box.fill(client, SMALL, chain.refs)
    assert other.lookup(SMALL, chain).tokens == 0
    assert list(other.list()) == []
    assert other.delete(SMALL, [chain.refs[0].key]) == 0
    assert other.pin(SMALL, [chain.refs[0].key], 5) == 0
    assert other.stats()["namespace"]["used"] == 0
    with pytest.raises(NotFound):
        other.get(SMALL, chain.refs[0])
    box.fill(other, SMALL, chain.refs[:1])
    assert client.delete(SMALL, [chain.refs[0].key]) == 1
    box.check(other, SMALL, chain.refs[:1])


def test_an_extent_has_one_namespace(box: Box) -> None:
    client = box.open(dram=8 * MiB, extent=2 * MiB, namespaces=TWO)
    other = box.another(client, "second")
    box.fill(client, LARGE, prompt(LARGE, 5).refs)
    box.fill(other, LARGE, prompt(LARGE, 5).refs)
    core = box.store(client)._core
    extents: dict[str, set[int]] = {"default": set(), "second": set()}
    with core.lock:
        for row in core.index.chunks(0, 1000)[0].tolist():
            owner = core.catalog.scopes[core.index.chunk(row).scope].namespace.name
            extents[owner] |= {core.index.placement(each).loc >> 40 for each in core.placements(row)}
    assert all(extents.values())
    assert not extents["default"] & extents["second"]


@pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])
def test_a_namespace_without_memory_gets_an_extent_of_the_richest(box: Box, nvme: int) -> None:
    client = box.open(dram=4 * MiB, extent=MiB, nvme=nvme, namespaces=TWO, put_wait_s=8)
    other = box.another(client, "second")
    rich, poor = prompt(LARGE, 12, 1), prompt(LARGE, 2, 2)
    box.fill(client, LARGE, rich.refs)
    stop = threading.Event()

    def go_on() -> None:
        for seed in range(3, 10_000):
            if stop.is_set():
                return
            box.fill(client, LARGE, prompt(LARGE, 1, seed).refs)

    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(go_on)  # the rich one takes whatever is free
        try:
            box.fill(other, LARGE, poor.refs)
        finally:
            stop.set()
        pushing.result()
    box.check(other, LARGE, poor.refs, verify=True)
    if nvme:
        box.check(client, LARGE, rich.refs, verify=True)
    box.settled(client)


def test_a_quota_holds_and_the_oldest_make_room(box: Box) -> None:
    names = (NamespaceConfig("default", quota=5 * RECORD),)
    client = box.open(namespaces=names, policy="lru")
    refs = [prompt(LARGE, 1, seed).refs[0] for seed in range(20, 32)]
    for ref in refs:
        box.fill(client, LARGE, [ref])
        assert client.stats()["namespace"]["used"] <= 5 * RECORD
    assert client.contains(LARGE, refs) == [False] * 7 + [True] * 5
    with ExitStack() as held:
        for ref in refs[7:]:
            held.enter_context(client.lookup(LARGE, [ref], lease_s=30))
        with pytest.raises(Shed, match="quota") as shed:
            box.fill(client, LARGE, prompt(LARGE, 1, 9).refs)
        assert shed.value.reason == "quota"
        assert client.stats()["counters"]["shed_quota"] == 1
    box.settled(client)


def test_a_quota_counts_what_is_under_way(box: Box) -> None:
    names = (NamespaceConfig("default", quota=2 * RECORD),)
    client = box.open(namespaces=names)
    refs = [prompt(LARGE, 1, seed).refs[0] for seed in range(3)]
    with client.reserve(LARGE, refs[0]), client.reserve(LARGE, refs[1]), pytest.raises(Shed):
        client.reserve(LARGE, refs[2])
    client.reserve(LARGE, refs[2]).abort()
    box.settled(client)


def test_what_is_larger_than_the_quota_evicts_nothing(box: Box) -> None:
    names = (NamespaceConfig("default", quota=10 << 12),)
    client, small = box.open(namespaces=names), prompt(SMALL, 3)
    box.fill(client, SMALL, small.refs)
    with pytest.raises(TooLarge, match=str(10 << 12)):
        box.fill(client, LARGE, prompt(LARGE, 1).refs)
    assert client.lookup(SMALL, small).tokens == 48
    box.settled(client)


def test_chunks_go_when_they_were_not_used_for_their_time(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 2)
    core = box.store(client)._core

    def an_hour_goes_by() -> None:
        with core.lock:
            core.index.touch(core.index.chunks(0, 10)[0], time.time_ns() // 1_000_000 - 3_600_000)

    box.fill(client, SMALL, chain.refs, "persisted")
    an_hour_goes_by()
    client.get(SMALL, chain.refs[1])
    core.catalog.namespaces["default"].ttl_s = 60.0
    assert until(lambda: client.contains(SMALL, chain.refs) == [False, True])
    an_hour_goes_by()
    assert until(lambda: not list(client.list()))
    assert client.stats()["counters"]["expired_nvme"] == 2
    assert client.stats()["namespace"]["used"] == 0
    box.settled(client)


def test_a_full_index_lets_go_of_its_coldest(box: Box) -> None:
    client, refs = box.open(max_chunks=100), [prompt(SMALL, 1, seed).refs[0] for seed in range(250)]
    box.fill(client, SMALL, refs)
    left = list(client.list())
    assert 30 <= len(left) <= 100
    assert client.contains(SMALL, refs[-30:]) == [True] * 30
    box.settled(client)


def test_a_full_index_of_leased_chunks_sheds(box: Box) -> None:
    client, chain = box.open(max_chunks=20), prompt(SMALL, 20)
    box.fill(client, SMALL, chain.refs)
    with client.lookup(SMALL, chain, lease_s=30):
        with pytest.raises(Shed, match="20 chunks") as shed:
            box.fill(client, SMALL, prompt(SMALL, 1, 5).refs)
        assert shed.value.reason == "index_full"
    box.settled(client)


def test_what_is_cheaper_to_recompute_is_dropped(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB, prefill_tokens_per_s=1e12)
    box.fill(client, LARGE, prompt(LARGE, 20).refs)
    counters = client.stats()["counters"]
    assert counters["dropped_cheaper_to_recompute"] > 0
    assert box.probe.writes == 0
    box.settled(client)


def test_a_tier_that_fails_to_forget_loses_no_memory(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 3)
    box.fill(client, LARGE, chain.refs, "persisted")
    with monkeypatch.context() as patch:
        patch.setattr(box.probe, "delete", _refuse)
        with pytest.raises(StorageError, match="no journal"):
            client.delete(LARGE, [ref.key for ref in chain.refs])
        core, removed = box.store(client)._core, Removed()
        core.settle(removed)
    assert list(client.list()) == []
    assert client.stats()["tiers"]["dram"]["used"] == 0


def _refuse(location: int, record_bytes: int) -> None:
    raise StorageError(f"no journal for {location} {record_bytes}")
