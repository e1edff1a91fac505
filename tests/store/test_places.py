"""Where chunks lie, told under a lease: what a local reader copies out of the extents is right as long as it lasts."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.api import Fidelity, Placed, Query
from kvstore.config import NamespaceConfig
from kvstore.core import DRAM, now_ms
from kvstore.errors import Closed, Corrupt, InvalidArgument, KVStoreError, NotFound, Shed, SpecMismatch
from kvstore.keys import ChunkRef, pack_refs
from kvstore.places import NOWHERE, PLACE_DTYPE
from kvstore.record import unpack
from kvstore.removed import Removed
from kvstore.session import Session
from kvstore.spec import KVSpec, Part
from tests.store.conftest import LARGE, MLA, SHARDED, SLIDING, SMALL, Box, MiB, content, prompt
from tests.store.test_corruption import PAYLOAD_AT, flip_in_dram, flip_on_disk
from tests.store.test_leases import until

LEASE = b"L" * 16
OFFSET = (1 << 40) - 1
TWO = (NamespaceConfig("default"), NamespaceConfig("second"))


def session(client: kvstore.Client) -> Session:
    """The session behind a client."""
    assert isinstance(client.backend, Session)
    return client.backend


def place(
    client: kvstore.Client, spec: KVSpec, items: Sequence[tuple[ChunkRef, Part]], lease: bytes = LEASE, **rest: Any
) -> Placed:
    options = {"fidelity": Fidelity.EXACT, "verify": False, "lease_s": 0.0, **rest}
    return session(client).place(spec, items, lease=lease, **options)


def rows(places: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(places, PLACE_DTYPE)


class Reader:
    """What a local client is: its own mapping of the extents, and nothing else of the store."""

    def __init__(self, client: kvstore.Client) -> None:
        self._session = session(client)
        self._maps: dict[int, mmap.mmap] = {}

    def extent(self, location: int) -> mmap.mmap:
        number = int(location) >> 40
        if number not in self._maps:
            descriptor, size = self._session.open_extent(number)
            self._maps[number] = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
            os.close(descriptor)
        return self._maps[number]

    def payload(self, row: Any) -> bytes:
        at = int(row["location"]) & OFFSET
        return self.extent(row["location"])[at : at + int(row["stored"])]

    def header(self, row: Any, length: int = 4096) -> bytes:
        at = int(row["location"]) & OFFSET
        return self.extent(row["location"])[at - length : at]


def leases(client: kvstore.Client) -> list[int]:
    return [info.leases for info in client.list()]


@pytest.mark.parametrize("spec", [SMALL, SHARDED, MLA, SLIDING], ids=lambda spec: spec.model)
def test_a_leased_look_up_says_where_every_part_lies(box: Box, spec: KVSpec) -> None:
    client, chain = box.open(), prompt(spec, 4)
    box.fill(client, spec, chain.refs)
    found = client.backend.lookup(Query(spec, chain.packed, lease=LEASE, lease_s=10, places=True))
    wanted = [(chain.refs[i], part) for i in found.used for part in spec.parts()]
    assert len(rows(found.places)) == len(wanted) > 0
    reader = Reader(client)
    for row, (ref, part) in zip(rows(found.places), wanted, strict=True):
        assert (row["form"], row["stored"], row["tokens_from"]) == (0, spec.part_bytes(part, ref.tokens), 0)
        assert reader.payload(row) == content(spec, ref, part).tobytes()
        record = unpack(reader.header(row))
        assert (record.key, record.spec, record.part) == (ref.key, spec.digest, part)


def test_places_come_in_the_order_of_the_parts_asked_for(box: Box) -> None:
    client, chain = box.open(), prompt(SHARDED, 2)
    box.fill(client, SHARDED, chain.refs)
    asked = (SHARDED.part(0, 1, 1), SHARDED.part(0, 0, 0))
    found = client.backend.lookup(Query(SHARDED, chain.packed, asked, lease=LEASE, lease_s=10, places=True))
    reader, wanted = Reader(client), [(ref, part) for ref in chain.refs for part in asked]
    got = [reader.payload(row) for row in rows(found.places)]
    assert got == [content(SHARDED, *each).tobytes() for each in wanted]


def test_what_is_not_in_dram_is_nowhere_until_it_is_placed(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 4)
    box.only_on_disk(client, SMALL, chain.refs[:3])
    box.fill(client, SMALL, chain.refs[3:])
    found = client.backend.lookup(Query(SMALL, chain.packed, lease=LEASE, lease_s=10, places=True))
    assert found.tokens == 64
    assert (rows(found.places)["location"] == NOWHERE).tolist() == [True, True, True, False]
    placed = place(client, SMALL, [(ref, SMALL.part()) for ref in chain.refs], lease=b"M" * 16)
    assert placed.failures == {}
    reader = Reader(client)
    got = [reader.payload(row) for row in rows(placed.places)]
    assert got == [content(SMALL, ref, SMALL.part()).tobytes() for ref in chain.refs]
    assert leases(client) == [2] * 4
    client.backend.release([LEASE, b"M" * 16])
    box.settled(client)


def test_a_look_up_of_nothing_has_no_places(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2)
    assert client.backend.lookup(Query(SMALL, chain.packed, lease=LEASE, lease_s=10, places=True)).places == b""
    box.fill(client, SMALL, chain.refs)
    assert client.backend.lookup(Query(SMALL, chain.packed, lease=LEASE, lease_s=10)).places == b""


def test_places_are_told_under_a_lease_only(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 1)
    box.fill(client, SMALL, chain.refs)
    with pytest.raises(InvalidArgument, match="under a lease"):
        client.backend.lookup(Query(SMALL, chain.packed, places=True))


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9, float("nan")])
def test_a_look_up_cannot_take_a_lease_without_a_limit(box: Box, seconds: float) -> None:
    client, chain = box.open(), prompt(SMALL, 1)
    box.fill(client, SMALL, chain.refs)
    with pytest.raises(InvalidArgument, match="a lease lasts"):
        client.backend.lookup(Query(SMALL, chain.packed, lease=LEASE, lease_s=seconds))
    assert leases(client) == [0]


def test_what_is_doomed_bad_or_lossy_has_no_place_in_a_look_up(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 3)
    box.fill(client, LARGE, chain.refs, "persisted")
    core = box.store(client)._core
    held = [client.view(LARGE, ref) for ref in chain.refs]
    flip_in_dram(box, client, chain.refs[1], PAYLOAD_AT)
    with pytest.raises(Corrupt):
        client.get(LARGE, chain.refs[1], verify=True)
    client.delete(LARGE, [chain.refs[2].key])
    found = client.backend.lookup(Query(LARGE, chain.packed, lease=LEASE, lease_s=10, places=True))
    assert (found.tokens, len(rows(found.places))) == (64, 1)
    with core.lock:
        again = core.index.places(
            np.array([core.index.find(0, ref.key) for ref in chain.refs]),
            LARGE.part().pack(), np.uint32([4096]), True, DRAM, core.bad_rows(),
        )  # fmt: skip
    assert (rows(again)["location"] == NOWHERE).tolist() == [False, True, False]
    for view in held:
        view.close()
    client.backend.release([LEASE])
    box.settled(client)


def test_an_exact_reader_is_not_placed_a_lossy_copy(box: Box) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    box.fill(client, SMALL, [ref])
    core = box.store(client)._core
    with core.lock:
        _, part = core.find_part(core.catalog.scopes[0], ref.key, SMALL.part())
        row = core.index.placement(core.index.find_placement(part, DRAM))
        other = core.index.add_placement(part, 7, 0, 0, True, 0, 0)  # so that the part stays meanwhile
        core.index.remove_placement(core.index.find_placement(part, DRAM))
        core.index.add_placement(part, DRAM, 0, 3, False, row.loc, row.stored)
        core.index.remove_placement(other)
    placed = place(client, SMALL, [(ref, SMALL.part())])
    assert [type(each) for each in placed.failures.values()] == [NotFound]
    assert rows(placed.places)["location"] == [NOWHERE]
    lossy = place(client, SMALL, [(ref, SMALL.part())], fidelity=Fidelity.LOSSY)
    assert Reader(client).payload(rows(lossy.places)[0]) == content(SMALL, ref, SMALL.part()).tobytes()
    client.backend.release([LEASE])


def test_each_item_has_an_outcome_of_its_own(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 3)
    box.only_on_disk(client, SMALL, chain.refs[:1])
    box.fill(client, SMALL, chain.refs[1:2])
    elsewhere = ChunkRef(chain.refs[1].key, bytes(32), 32, 16)
    refs = [chain.refs[2], chain.refs[0], elsewhere, chain.refs[1], chain.refs[1]]
    placed = place(client, SMALL, [(ref, SMALL.part()) for ref in refs], lease_s=5.0)
    assert {i: type(each) for i, each in placed.failures.items()} == {0: NotFound, 2: NotFound}
    assert (rows(placed.places)["location"] == NOWHERE).tolist() == [True, False, True, False, False]
    reader = Reader(client)
    for i in (1, 3, 4):
        assert reader.payload(rows(placed.places)[i]) == content(SMALL, refs[i], SMALL.part()).tobytes()
    assert sorted(leases(client)) == [1, 2]
    client.backend.release([LEASE])
    assert leases(client) == [0, 0]
    box.settled(client)


def test_places_count_and_touch_as_gets_do(box: Box) -> None:
    stats = []
    for how in ("get", "place"):
        client = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB, namespaces=TWO, policy="lru")
        refs = [prompt(LARGE, 1, seed).refs[0] for seed in range(8)]
        box.fill(client, LARGE, refs[:4])
        for ref in (refs[1], refs[7], refs[0]):
            if how == "place":
                place(client, LARGE, [(ref, LARGE.part())])
                client.backend.release([LEASE])
            else:
                out = np.empty(LARGE.part_shape(LARGE.part(), 64), np.uint16)
                client.get_many(LARGE, [client.want(LARGE, ref, out)])
        core = box.store(client)._core
        with core.lock:
            order = list(core.usage.policy(DRAM, core.catalog.namespaces["default"]).victims())
            keys = [core.index.chunk(row).key for row in order]
            hits = [core.index.chunk(core.index.find(0, ref.key)).hits for ref in refs[:4]]
        stats.append((client.stats()["counters"], [[ref.key for ref in refs].index(key) for key in keys], hits))
        client.close()
        for path in sorted(box.folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    assert stats[0] == stats[1]
    assert stats[0][1:] == ([2, 3, 1, 0], [1, 1, 0, 0])


def test_a_lease_without_a_limit_ends_with_its_release_or_its_session(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 2)
    box.fill(client, SMALL, chain.refs)
    other = box.another(client)
    core = box.store(client)._core
    place(client, SMALL, [(chain.refs[0], SMALL.part())])
    place(other, SMALL, [(ref, SMALL.part()) for ref in chain.refs], lease=b"M" * 16)
    place(other, SMALL, [(chain.refs[1], SMALL.part())], lease=b"N" * 16, lease_s=1.0)
    with core.lock:
        assert core.leases.expire(now_ms() + 366 * 86400 * 1000) == 1
    assert leases(client) == [2, 1]
    client.backend.release([LEASE])
    assert leases(client) == [1, 1]
    other.close()
    assert leases(client) == [0, 0]


def test_a_lease_that_is_placed_again_is_replaced(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 3)
    box.fill(client, SMALL, chain.refs)
    part = SMALL.part()
    place(client, SMALL, [(ref, part) for ref in chain.refs])
    place(client, SMALL, [(chain.refs[2], part)])
    assert sorted(leases(client)) == [0, 0, 1]
    place(client, SMALL, [(prompt(SMALL, 1, 9).refs[0], part)])
    assert leases(client) == [0, 0, 0]


def test_what_place_refuses_leaves_no_lease(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 1)
    box.fill(client, SMALL, chain.refs)
    item = (chain.refs[0], SMALL.part())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"lease": b"abc"}, "16 bytes"), ({"lease_s": -1.0}, "a lease lasts"), ({"lease_s": 1e9}, "a lease lasts"),
        ({"items": [(chain.refs[0], SHARDED.part(0, 1))]}, "no part of this spec"),
        ({"items": [(ChunkRef(b"k", b"", 0, 16), SMALL.part())]}, "32 bytes"),
        ({"items": [(ChunkRef(bytes(32), b"", -1, 16), SMALL.part())]}, "does not fit"),
        ({"items": [(chain.refs[0], Part(1 << 20))]}, "does not fit"),
    ]  # fmt: skip
    for change, words in refused:
        with pytest.raises(InvalidArgument, match=words):
            place(client, SMALL, **{"items": [item], **change})
    with pytest.raises(InvalidArgument, match="48 bytes"):
        session(client).place_packed(SMALL, bytes(47), fidelity=Fidelity.EXACT, verify=False, lease=LEASE, lease_s=0.0)
    assert place(client, SMALL, []) == Placed(b"", {})
    assert leases(client) == [0]
    box.settled(client)


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_session_that_ends_while_it_places_keeps_no_lease(box: Box, cold: bool) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(SMALL, 1)
    box.only_on_disk(client, SMALL, chain.refs) if cold else box.fill(client, SMALL, chain.refs)
    other = box.another(client)
    if cold:
        box.probe.before_read = lambda _: other.close()
        with pytest.raises(Closed):
            place(other, SMALL, [(chain.refs[0], SMALL.part())])
    else:
        core, find = box.store(client)._core, box.store(client)._core.find_items

        def end(*arguments: Any) -> Any:
            session(other)._closed = True
            return find(*arguments)

        core.find_items = end  # type: ignore[method-assign]
        with pytest.raises(Closed):
            place(other, SMALL, [(chain.refs[0], SMALL.part())])
        core.find_items = find  # type: ignore[method-assign]
    assert leases(client) == [0]
    box.settled(client)


# What would take the memory away


def crowd(box: Box, client: kvstore.Client, seed: int = 50) -> None:
    """Others come, more than there is memory for."""
    for ref in prompt(LARGE, 30, seed).refs:
        try:
            box.fill(client, LARGE, [ref])
        except Shed:
            return


def evict(box: Box, client: kvstore.Client, ref: ChunkRef) -> None:
    crowd(box, client)


def delete(box: Box, client: kvstore.Client, ref: ChunkRef) -> None:
    client.delete(LARGE, [ref.key])
    client.delete(LARGE, [ref.key])


def expire(box: Box, client: kvstore.Client, ref: ChunkRef) -> None:
    client.delete(LARGE, [ref.key])
    box.store(client)._mover._expire()


def quarantine(box: Box, client: kvstore.Client, ref: ChunkRef) -> None:
    """The store takes the copy for bad, the local reader has verified it before."""
    core = box.store(client)._core
    with core.lock:
        _, row = core.find_part(core.catalog.scopes[0], ref.key, LARGE.part())
        core.condemn(core.catalog.scopes[0], core.index.find_placement(row, DRAM), Removed())
    for _ in range(2):
        box.store(client)._mover._expire()
    with pytest.raises(NotFound):
        client.get(LARGE, ref)
    with pytest.raises(Shed, match="damaged"):
        box.fill(client, LARGE, [ref])


def fill_index(box: Box, client: kvstore.Client, ref: ChunkRef) -> None:
    box.fill(client, SMALL, prompt(SMALL, 200, 3).refs)


Loss = Callable[[Box, kvstore.Client, ChunkRef], None]


@pytest.mark.parametrize("loss", [evict, delete, expire, quarantine, fill_index])
@pytest.mark.parametrize("how", ["look-up", "place"])
def test_memory_under_a_lease_stays_whatever_happens(box: Box, how: str, loss: Loss) -> None:
    client = box.open(dram=2 * MiB, extent=MiB, put_wait_s=0.05, max_chunks=60, policy="lru")
    chain = prompt(LARGE, 1)
    ref, expected = chain.refs[0], content(LARGE, chain.refs[0], LARGE.part()).tobytes()
    box.fill(client, LARGE, [ref])
    if how == "place":
        row = rows(place(client, LARGE, [(ref, LARGE.part())]).places)[0]
    else:
        query = Query(LARGE, chain.packed, lease=LEASE, lease_s=60, places=True)
        row = rows(client.backend.lookup(query).places)[0]
    reader = Reader(client)
    assert reader.payload(row) == expected
    loss(box, client, ref)
    assert reader.payload(row) == expected
    crowd(box, client, 90)
    assert reader.payload(row) == expected
    assert unpack(reader.header(row)).key == ref.key
    client.backend.release([LEASE])
    assert until(lambda: not box.store(client)._core.bad | box.store(client)._core.doomed)
    crowd(box, client, 120)
    crowd(box, client, 150)
    assert reader.payload(row) != expected, "it is free again, and used"
    box.settled(client)


def test_a_copy_that_a_verified_get_finds_bad_stays_while_it_is_leased(box: Box) -> None:
    client, chain = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB, put_wait_s=0.05), prompt(LARGE, 1)
    ref = chain.refs[0]
    box.fill(client, LARGE, [ref], "persisted")
    row = rows(place(client, LARGE, [(ref, LARGE.part())]).places)[0]
    flip_in_dram(box, client, ref, PAYLOAD_AT)
    damaged = Reader(client).payload(row)
    with pytest.raises(Corrupt):
        client.get(LARGE, ref, verify=True)
    crowd(box, client)
    assert Reader(client).payload(row) == damaged != content(LARGE, ref, LARGE.part()).tobytes()
    box.check(client, LARGE, [ref])  # from the disk, past DRAM
    placed = place(client, LARGE, [(ref, LARGE.part())], lease=b"M" * 16)
    assert [type(each) for each in placed.failures.values()] == [Shed]
    client.backend.release([LEASE])
    assert until(lambda: client.stats()["counters"].get("quarantined_dram") == 1)
    box.check(client, LARGE, [ref], verify=True)
    box.settled(client)


def test_a_leased_windowed_part_is_not_replaced(box: Box) -> None:
    client, ref = box.open(), prompt(SLIDING, 1).refs[0]
    window = SLIDING.part(1)
    array = content(SLIDING, ref, window)
    client.put(SLIDING, ref, array, part=window, first_valid=9)
    placed = place(client, SLIDING, [(ref, window)])
    row = rows(placed.places)[0]
    assert row["tokens_from"] == 9
    with pytest.raises(Shed, match="cannot be replaced"):
        client.put(SLIDING, ref, array, part=window, first_valid=2)
    box.fill(client, SMALL, prompt(SMALL, 5).refs)
    assert Reader(client).payload(row) == array.tobytes()
    client.backend.release([LEASE])
    assert client.put(SLIDING, ref, array, part=window, first_valid=2)
    assert rows(place(client, SLIDING, [(ref, window)]).places)["tokens_from"] == [2]


@pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])
def test_an_extent_with_leased_memory_is_not_given_away(box: Box, nvme: int) -> None:
    client = box.open(dram=2 * MiB, extent=MiB, nvme=nvme, namespaces=TWO, put_wait_s=0.3)
    chain = prompt(LARGE, 6)
    box.fill(client, LARGE, chain.refs)
    there = [ref for ref, has in zip(chain.refs, client.contains(LARGE, chain.refs), strict=True) if has]
    placed = place(client, LARGE, [(ref, LARGE.part()) for ref in there])
    expected = [content(LARGE, ref, LARGE.part()).tobytes() for ref in there]
    reader = Reader(client)
    assert [reader.payload(row) for row in rows(placed.places)] == expected
    poor = kvstore.Client(box.store(client).session("second"))
    before = session(client).extents()
    with pytest.raises(Shed):
        box.fill(poor, LARGE, chain.refs[:1])
    mover, second = box.store(client)._mover, box.store(client)._core.catalog.namespaces["second"]
    mover._give_extent(second)
    assert session(client).extents() == before
    assert [reader.payload(row) for row in rows(placed.places)] == expected
    client.backend.release([LEASE])
    for _ in range(20):
        try:
            box.fill(poor, LARGE, chain.refs[:1])
            break
        except Shed:
            continue
    box.check(poor, LARGE, chain.refs[:1])
    assert session(client).extents() < before


@pytest.mark.parametrize("doomed", [False, True])
def test_memory_that_was_leased_keeps_its_bytes_when_the_store_is_closed(box: Box, doomed: bool) -> None:
    client, chain = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB), prompt(LARGE, 3)
    box.fill(client, LARGE, chain.refs)
    other = box.another(client)
    placed = place(other, LARGE, [(ref, LARGE.part()) for ref in chain.refs])
    reader = Reader(client)
    got = [reader.payload(row) for row in rows(placed.places)]
    if doomed:
        client.delete(LARGE, [ref.key for ref in chain.refs])
    dram, digest = box.store(client)._core.dram, box.store(client)._core.catalog.namespaces["default"].digest
    mover = box.store(client)._mover
    ends = mover._core.leases.end_all

    def late_put() -> None:
        """A put that had looked whether the store is open before it was closed."""
        ends()
        with pytest.raises(Closed):
            dram.reserve(digest, 4096)

    mover._core.leases.end_all = late_put  # type: ignore[method-assign]
    client.close()
    assert [reader.payload(row) for row in rows(placed.places)] == got


# While it is loaded


def test_a_place_joins_a_load_under_way(box: Box) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.only_on_disk(client, LARGE, [ref])
    started, go = threading.Event(), threading.Event()

    def wait(location: int) -> None:
        started.set()
        assert go.wait(20)

    box.probe.before_read = wait
    getter = threading.Thread(target=box.check, args=(client, LARGE, [ref]))
    getter.start()
    assert started.wait(20)
    placed: list[Placed] = []
    placer = threading.Thread(target=lambda: placed.append(place(client, LARGE, [(ref, LARGE.part())])))
    placer.start()
    assert until(lambda: client.stats()["counters"].get("loads_joined") == 1)
    go.set()
    placer.join(20)
    getter.join(20)
    assert Reader(client).payload(rows(placed[0].places)[0]) == content(LARGE, ref, LARGE.part()).tobytes()
    assert box.probe.reads == 1
    assert leases(client) == [1]
    client.backend.release([LEASE])
    box.settled(client)


def test_cold_items_are_loaded_side_by_side(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 3)
    box.only_on_disk(client, LARGE, chain.refs)
    together = threading.Barrier(3)
    box.probe.before_read = lambda _: together.wait(20) and None
    placed = place(client, LARGE, [(ref, LARGE.part()) for ref in chain.refs])
    assert placed.failures == {}
    client.backend.release([LEASE])
    box.settled(client)


def test_a_chunk_deleted_while_it_is_placed(box: Box) -> None:
    """As with a get: its bytes are read to the end, and then it goes."""
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.only_on_disk(client, LARGE, [ref])

    def delete_it(location: int) -> None:
        box.probe.before_read = None
        client.delete(LARGE, [ref.key])

    box.probe.before_read = delete_it
    placed = place(client, LARGE, [(ref, LARGE.part())])
    assert placed.failures == {}
    assert Reader(client).payload(rows(placed.places)[0]) == content(LARGE, ref, LARGE.part()).tobytes()
    assert client.contains(LARGE, [ref]) == [False]
    client.backend.release([LEASE])
    assert until(lambda: client.stats()["tiers"]["dram"]["used"] == 0)
    box.settled(client)


def test_a_place_without_room_in_dram_is_shed_and_the_rest_is_placed(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB)
    cold, hot = prompt(LARGE, 2, 1), prompt(LARGE, 7, 2)
    box.only_on_disk(client, LARGE, cold.refs)
    box.fill(client, LARGE, hot.refs)
    with client.lookup(LARGE, hot, lease_s=30):
        placed = place(client, LARGE, [(ref, LARGE.part()) for ref in (*cold.refs, hot.refs[0])])
        assert {i: type(each) for i, each in placed.failures.items()} == {0: Shed, 1: Shed}
        assert Reader(client).payload(rows(placed.places)[2]) == content(LARGE, hot.refs[0], LARGE.part()).tobytes()
        assert sorted(leases(client)) == [0, 0, *[1] * 6, 2]
    client.backend.release([LEASE])
    box.settled(client)


def test_a_copy_that_is_damaged_on_disk_is_told_and_not_placed(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 3)
    box.only_on_disk(client, LARGE, chain.refs)
    flip_on_disk(box.folder, content(LARGE, chain.refs[1], LARGE.part()).tobytes()[:64], 7)
    items = [(ref, LARGE.part()) for ref in chain.refs]
    for kind in (Corrupt, NotFound):
        placed = place(client, LARGE, items)
        assert {i: type(each) for i, each in placed.failures.items()} == {1: kind}
    client.backend.release([LEASE])
    box.settled(client)


def test_a_disk_that_fails_is_told(box: Box, disk_error: KVStoreError) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.only_on_disk(client, LARGE, [ref])
    box.probe.read_error = disk_error
    placed = place(client, LARGE, [(ref, LARGE.part())])
    assert placed.failures == {0: disk_error}
    assert leases(client) == [0]
    box.settled(client)


@pytest.mark.parametrize("at", [0, 40, PAYLOAD_AT, PAYLOAD_AT + 200_000], ids=lambda at: f"byte-{at}")
@pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])
def test_verifying_finds_what_changed_in_dram(box: Box, nvme: int, at: int) -> None:
    client, chain = box.open(nvme=nvme), prompt(LARGE, 3)
    box.fill(client, LARGE, chain.refs, "persisted" if nvme else "stored")
    flip_in_dram(box, client, chain.refs[1], at)
    items = [(ref, LARGE.part()) for ref in chain.refs]
    assert place(client, LARGE, items).failures == {}, "nobody asked"
    client.backend.release([LEASE])
    placed = place(client, LARGE, items, verify=True)
    assert list(placed.failures) == [1]
    assert isinstance(placed.failures[1], Corrupt | SpecMismatch)
    assert client.stats()["counters"]["quarantined_dram"] == 1
    assert sum(leases(client)) == 2
    again = place(client, LARGE, items, verify=True)
    assert {i: type(each) for i, each in again.failures.items()} == ({} if nvme else {1: NotFound})
    reader = Reader(client)
    for row, ref in zip(rows(again.places), chain.refs, strict=True):
        assert row["location"] == NOWHERE or reader.payload(row) == content(LARGE, ref, LARGE.part()).tobytes()
    client.backend.release([LEASE])
    box.settled(client)


def test_placing_while_everything_moves(box: Box) -> None:
    """Threads place, check what they see through their own mapping and release, while others write and delete."""
    client = box.open(dram=2 * MiB, extent=MiB, nvme=64 * MiB, put_wait_s=2.0)
    chains = [prompt(LARGE, 2, seed) for seed in range(8)]
    expected = {ref.key: content(LARGE, ref, LARGE.part()).tobytes() for chain in chains for ref in chain.refs}
    for chain in chains:
        box.fill(client, LARGE, chain.refs)
    wrong: list[str] = []
    seen = [0]

    def read(number: int) -> None:
        reader, lease = Reader(client), bytes([number]) * 16
        generator = np.random.default_rng(number)
        for _ in range(60):
            refs = [ref for i in generator.integers(0, 8, 2) for ref in chains[i].refs]
            placed = place(client, LARGE, [(ref, LARGE.part()) for ref in refs], lease=lease)
            for i, row in enumerate(rows(placed.places)):
                if i in placed.failures:
                    if not isinstance(placed.failures[i], NotFound | Shed):
                        wrong.append(repr(placed.failures[i]))
                elif reader.payload(row) != expected[refs[i].key]:
                    wrong.append(f"{refs[i]}")
                else:
                    seen[0] += 1
            client.backend.release([lease])

    def write(number: int) -> None:
        generator = np.random.default_rng(100 + number)
        for _ in range(60):
            chain = chains[int(generator.integers(0, 8))]
            if generator.random() < 0.3:
                client.delete(LARGE, [ref.key for ref in chain.refs])
            try:
                box.fill(client, LARGE, chain.refs)
            except Shed:
                continue

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2) for work in (read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen[0] > 50
    box.settled(client)


def test_pack_refs_is_what_items_begin_with() -> None:
    from kvstore.places import pack_items, unpack_item

    ref, part = prompt(SMALL, 1).refs[0], SHARDED.part(0, 1, 1)
    packed = pack_items([(ref, part)] * 2)
    assert packed[:48] == pack_refs([ref]) + part.pack()
    key, again = unpack_item(packed, 1)
    assert (key.key, key.position, key.tokens, again) == (ref.key, ref.position, ref.tokens, part)
