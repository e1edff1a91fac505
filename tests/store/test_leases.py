"""A lease is a promise: what was reported under it can be read until it ends, whatever happens meanwhile."""

import threading
import time

import numpy as np
import pytest

from kvstore.api import Query
from kvstore.errors import InvalidArgument, NotFound, Shed
from kvstore.keys import pack_refs
from tests.store.conftest import LARGE, SMALL, Box, MiB, content, prompt


def until(condition: object, seconds: float = 30.0) -> bool:
    """Wait for a condition."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("nvme", [0, 6 * MiB], ids=["dram", "dram+nvme"])
def test_leased_chunks_survive_any_pressure(box: Box, nvme: int) -> None:
    client = box.open(dram=4 * MiB, extent=2 * MiB, nvme=nvme, segment=MiB, put_wait_s=5, policy="lru")
    kept = prompt(LARGE, 4, seed=1)
    box.fill(client, LARGE, kept.refs)
    with client.lookup(LARGE, kept, lease_s=30) as hit:
        assert hit.tokens == len(kept.ids)
        box.fill(client, LARGE, prompt(LARGE, 60, seed=2).refs)
        box.check(client, LARGE, hit.refs, verify=True)
    assert client.lookup(LARGE, kept).tokens > 0
    box.fill(client, LARGE, prompt(LARGE, 60, seed=3).refs)
    assert nvme or client.lookup(LARGE, kept).tokens == 0
    box.settled(client)


def test_when_all_memory_is_leased_a_put_is_shed_and_told_why(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, put_wait_s=0.1)
    chain = prompt(LARGE, 7)
    box.fill(client, LARGE, chain.refs)
    other = prompt(LARGE, 1, seed=9)
    with client.lookup(LARGE, chain, lease_s=30):
        with pytest.raises(Shed, match="leased") as shed:
            box.fill(client, LARGE, other.refs)
        assert shed.value.reason == "pressure"
        assert client.stats()["counters"]["shed_pressure"] == 1
    box.fill(client, LARGE, other.refs)
    box.settled(client)


def test_a_put_that_waits_goes_on_when_a_lease_ends(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, put_wait_s=10)
    chain, other = prompt(LARGE, 7), prompt(LARGE, 1, seed=9)
    box.fill(client, LARGE, chain.refs)
    hit = client.lookup(LARGE, chain, lease_s=30)
    released = threading.Event()

    def release() -> None:
        released.set()
        hit.release()

    threading.Timer(0.2, release).start()
    box.fill(client, LARGE, other.refs)
    assert released.is_set(), "there was no room before"
    box.settled(client)


def test_a_lease_ends_by_its_time(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2)
    box.fill(client, SMALL, chain.refs)
    client.lookup(SMALL, chain, lease_s=0.1)
    assert [info.leases for info in client.list()] == [1, 1]
    assert until(lambda: [info.leases for info in client.list()] == [0, 0])
    assert client.stats()["counters"]["leases_expired"] == 1


def test_asking_again_renews_and_does_not_add(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 3)
    box.fill(client, SMALL, chain.refs)
    for refs in (chain.refs, chain.refs, chain.refs[:2]):
        client.backend.lookup(Query(SMALL, pack_refs(refs), lease=b"L" * 16, lease_s=10))
    assert sorted(info.leases for info in client.list()) == [0, 1, 1]
    client.backend.release([b"L" * 16, b"M" * 16])
    assert [info.leases for info in client.list()] == [0, 0, 0]


def test_a_lease_ends_with_its_session_and_no_other(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 1)
    other = box.another(client)
    box.fill(client, SMALL, chain.refs)
    client.lookup(SMALL, chain, lease_s=10)
    other.backend.lookup(Query(SMALL, chain.packed, lease=b"L" * 16, lease_s=10))
    client.backend.release([b"L" * 16])  # it is the other's
    assert [info.leases for info in client.list()] == [2]
    other.close()
    assert [info.leases for info in client.list()] == [1]


def test_a_lease_id_has_16_bytes(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 1)
    box.fill(client, SMALL, chain.refs)
    with pytest.raises(InvalidArgument, match="not 3"):
        client.backend.lookup(Query(SMALL, chain.packed, lease=b"abc", lease_s=1))
    assert [info.leases for info in client.list()] == [0]


@pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])
def test_a_leased_chunk_that_is_deleted_goes_when_its_lease_does(box: Box, nvme: int) -> None:
    client, chain = box.open(nvme=nvme), prompt(SMALL, 2)
    box.fill(client, SMALL, chain.refs, "persisted" if nvme else "stored")
    hit = client.lookup(SMALL, chain, lease_s=30)
    assert client.delete(SMALL, [ref.key for ref in chain.refs]) == 2
    assert client.delete(SMALL, [ref.key for ref in chain.refs]) == 0
    assert client.lookup(SMALL, chain).tokens == 0, "nobody new finds it"
    assert client.contains(SMALL, chain.refs) == [False, False]
    assert list(client.list()) == []
    time.sleep(0.4)
    box.check(client, SMALL, hit.refs)
    assert client.stats()["namespace"]["used"] > 0
    hit.release()
    assert until(lambda: client.stats()["tiers"]["dram"]["used"] == 0)
    with pytest.raises(NotFound):
        client.get(SMALL, chain.refs[0])
    box.settled(client)


def test_a_deleted_chunk_that_is_put_again_stays(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 1)
    box.fill(client, SMALL, chain.refs)
    hit = client.lookup(SMALL, chain, lease_s=30)
    client.delete(SMALL, [chain.refs[0].key])
    box.fill(client, SMALL, chain.refs, "persisted")
    hit.release()
    time.sleep(0.6)
    box.check(client, SMALL, chain.refs)
    assert client.lookup(SMALL, chain).tokens == 16
    box.settled(client)


def test_a_chunk_deleted_under_a_lease_does_not_come_back_with_a_restart(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 3)
    box.fill(client, SMALL, chain.refs[:2], "persisted")
    box.fill(client, SMALL, chain.refs[2:])
    other = box.another(client)
    other.lookup(SMALL, chain, lease_s=60)
    held = client.view(SMALL, chain.refs[1])
    client.delete(SMALL, [ref.key for ref in chain.refs])
    client.close()
    held.close()
    client = box.open(nvme=64 * MiB)
    assert list(client.list()) == []


def test_a_view_holds_its_chunk_against_deletion_and_pressure(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB)
    ref = prompt(LARGE, 1).refs[0]
    box.fill(client, LARGE, [ref])
    with client.view(LARGE, ref) as view:
        client.delete(LARGE, [ref.key])
        box.fill(client, LARGE, prompt(LARGE, 20, seed=3).refs)
        assert view.data == content(LARGE, ref, LARGE.part()).tobytes()
    assert until(lambda: client.contains(LARGE, [ref]) == [False])
    box.settled(client)


def test_an_array_on_a_closed_view_never_sees_another_chunks_bytes(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB)
    ref = prompt(LARGE, 1).refs[0]
    box.fill(client, LARGE, [ref])
    with client.view(LARGE, ref) as view:
        array = np.frombuffer(view.data, np.uint16)
    box.fill(client, LARGE, prompt(LARGE, 20, seed=3).refs)
    assert np.array_equal(array, content(LARGE, ref, LARGE.part()).reshape(-1))
    del array
    box.settled(client)


def test_an_array_on_an_aborted_reservation_never_writes_into_another_chunk(box: Box) -> None:
    client = box.open(dram=MiB // 2, extent=MiB // 2, put_wait_s=0.3)
    ref = prompt(LARGE, 1).refs[0]
    with client.reserve(LARGE, ref) as reservation:
        array = np.frombuffer(reservation.data, np.uint8)
    with pytest.raises(Shed):
        box.fill(client, LARGE, [ref])
    array[:] = 1
    del array
    assert until(lambda: client.stats()["tiers"]["dram"]["used"] == 0)
    box.fill(client, LARGE, [ref])
    box.check(client, LARGE, [ref], verify=True)
    box.settled(client)


def test_a_session_that_ends_gives_its_reservations_back(box: Box) -> None:
    client = box.open()
    other = box.another(client)
    for seed in range(4):
        other.reserve(LARGE, prompt(LARGE, 1, seed).refs[0])  # and forgotten
    assert client.stats()["tiers"]["dram"]["used"] > 0
    other.close()
    assert client.stats()["tiers"]["dram"]["used"] == 0
    box.settled(client)


def test_a_pin_keeps_a_chunk_until_it_ends(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, policy="lru")
    one, two = prompt(LARGE, 1, 1).refs[0], prompt(LARGE, 1, 2).refs[0]
    box.fill(client, LARGE, [one, two])
    assert client.pin(LARGE, [one.key, two.key, bytes(32)], 60) == 2
    box.fill(client, LARGE, prompt(LARGE, 10, 3).refs)
    assert client.contains(LARGE, [one, two]) == [True, True]
    assert client.unpin(LARGE, [one.key]) == 1
    box.fill(client, LARGE, prompt(LARGE, 10, 4).refs)
    assert client.contains(LARGE, [one, two]) == [False, True]
    assert client.delete(LARGE, [two.key]) == 1, "deleting does not ask for pins"
    assert client.contains(LARGE, [two]) == [False]
    client.pin(LARGE, [], 1)
    box.settled(client)


def test_a_pin_ends_by_its_time(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, policy="lru")
    ref = prompt(LARGE, 1, 1).refs[0]
    box.fill(client, LARGE, [ref])
    client.pin(LARGE, [ref.key], 0.05)
    time.sleep(0.1)
    box.fill(client, LARGE, prompt(LARGE, 10, 3).refs)
    assert client.contains(LARGE, [ref]) == [False]
