"""What another host has as well goes first, is never written down, and is this host's own once the other lost it.

Over a stand-in for other hosts: a shared tier that nobody here writes to. Real hosts are in tests/server/peers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

import kvstore
from kvstore.config import Config, DramConfig, NvmeConfig
from kvstore.errors import NotFound, StorageError
from kvstore.record import Record
from kvstore.store import Store
from kvstore.tiers.base import Name
from tests.store.conftest import LARGE, MLA, SHARDED, SLIDING, MiB, content, prompt
from tests.store.shared_tier import Place, SharedTier, until


class OtherHosts(SharedTier):
    """Finds and reads; a write is a failure of the store."""

    kind, persistent, writable = "stand-in", False, False

    def __init__(self, place: Place) -> None:
        super().__init__(place, "peers", 0)
        self.written = 0

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        self.written += 1
        raise StorageError("nothing is written to other hosts")

    def delete(self, location: int, record_bytes: int) -> None:
        self.evict(location, record_bytes)

    def names(self, names: Sequence[Name]) -> int:
        return sum(name in self.place.records for name in names)


class Host:
    """A store with 30 chunks' room over what others have."""

    def __init__(self, place: Place, nvme: Path | None = None) -> None:
        self.others = OtherHosts(place)
        config = Config(
            dram=DramConfig(8 * MiB, 8 * MiB), put_wait_s=2.0,
            nvme=None if nvme is None else NvmeConfig(nvme, 64 * MiB, 4 * MiB, 0, 2),
        )  # fmt: skip
        self.store = Store(config, [self.others])
        self.client = kvstore.Client(self.store.session("default"))

    def put(self, refs: Sequence[kvstore.ChunkRef]) -> None:
        for ref in refs:
            self.client.put(LARGE, ref, content(LARGE, ref, LARGE.part()))

    def read(self, refs: Sequence[kvstore.ChunkRef]) -> None:
        self.client.lookup(LARGE, list(refs))
        for ref in refs:
            assert (self.client.get(LARGE, ref) == content(LARGE, ref, LARGE.part())).all()

    def here(self, refs: Sequence[kvstore.ChunkRef]) -> int:
        """How many of these have a copy in DRAM."""
        keys = {ref.key for ref in refs}
        return sum(
            info.key in keys and any(each.tier == "dram" for each in info.placements) for info in self.client.list()
        )


def elsewhere(refs: Sequence[kvstore.ChunkRef], spec: kvstore.KVSpec = LARGE) -> Place:
    """What other hosts hold, made by a store that writes through."""
    place = Place()
    writer = Store(Config(dram=DramConfig(64 * MiB, 64 * MiB)), [SharedTier(place)])
    client = kvstore.Client(writer.session("default"))
    for ref in refs:
        for part in spec.parts():
            client.put(spec, ref, content(spec, ref, part), part=part)
    until(lambda: client.stats()["gauges"]["through"] == 0)
    writer.close()
    return place


@pytest.fixture(params=["dram", "nvme"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    host = Host(elsewhere(prompt(LARGE, 40).refs), tmp_path / "nvme" if request.param == "nvme" else None)
    yield host
    host.store.close()
    assert host.others.written == 0


def test_what_others_have_displaces_little_and_goes_first(host: Host) -> None:
    mine, theirs = prompt(LARGE, 26, 1).refs, prompt(LARGE, 40).refs
    host.put(mine)
    for ref in theirs:  # many more than there is room for, one after the other
        host.read([ref])
    kept = host.here(mine)
    assert kept >= 24
    assert host.client.stats()["counters"]["loaded_peers"] == 40
    more = prompt(LARGE, 3, 2).refs
    host.put(more)
    assert host.here(more) == 3
    assert host.here(mine) >= kept - 1
    host.read(mine[:20])


def test_what_others_have_is_not_written_down(tmp_path: Path) -> None:
    theirs = prompt(LARGE, 28).refs
    host = Host(elsewhere(theirs), tmp_path / "nvme")
    with closing(host.store):  # a flush writes what no tier holds that survives
        host.read(theirs)
        host.client.stats()
    assert host.others.written == 0
    config = Config(nvme=NvmeConfig(tmp_path / "nvme", 64 * MiB, 4 * MiB, 0, 2), dram=DramConfig(8 * MiB, 8 * MiB))
    with closing(Store(config)) as again:
        assert kvstore.Client(again.session("default")).lookup(LARGE, list(theirs)).tokens == 0


def test_what_others_have_lost_is_asked_for_anew_in_every_look_up(host: Host) -> None:
    theirs = prompt(LARGE, 6).refs
    whole = 6 * LARGE.chunk_tokens
    assert host.client.lookup(LARGE, list(theirs)).tokens == whole
    gone = next(name for name in host.others.place.records if name.key == theirs[2].key)
    lost = host.others.place.records.pop(gone)
    assert host.client.lookup(LARGE, list(theirs)).tokens == 2 * LARGE.chunk_tokens
    host.others.place.records[gone] = lost
    assert host.client.lookup(LARGE, list(theirs)).tokens == whole
    del host.others.place.records[gone]
    with pytest.raises(NotFound):
        host.client.get(LARGE, theirs[2])
    host.read(theirs[:2])
    counted = host.client.stats()["namespace"]["used"]
    assert counted == 2 * (LARGE.part_bytes(LARGE.part(), LARGE.chunk_tokens) + 4096)  # theirs is not this host's


def test_every_use_of_what_others_hold_is_kept_for_them(host: Host) -> None:
    mine, theirs, core, client = prompt(LARGE, 2, 1).refs, prompt(LARGE, 4).refs, host.store.core, host.client
    host.put(mine)

    def used() -> list[list[bytes]]:
        assert core.uses is not None
        with core.lock:
            return [[core.index.chunk(row).key for row in rows.tolist()] for rows in core.uses.take()]

    keys = [ref.key for ref in theirs]
    client.lookup(LARGE, list(theirs))
    assert used() == []  # without a lease it is a question and no use
    client.get(LARGE, theirs[0])
    assert used() == [keys[:1]]
    client.get(LARGE, theirs[0])  # from DRAM by now
    client.view(LARGE, theirs[1]).close()
    assert used() == [keys[:1], keys[1:2]]
    outs = [content(LARGE, ref, LARGE.part()).copy() for ref in (*theirs[:2], *mine)]
    wants = [client.want(LARGE, ref, out) for ref, out in zip((*theirs[:2], *mine), outs, strict=True)]
    assert list(client.get_many(LARGE, wants)) == [None] * 4
    assert used() == [keys[:2]]
    host.read(mine)
    assert used() == []
    with client.lookup(LARGE, list(theirs), lease_s=5):
        assert used() == [keys]
        client.get(LARGE, theirs[3])
        assert used() == []  # its look-up has told


def test_a_put_is_stored_here_whatever_others_have(host: Host) -> None:
    refs = prompt(LARGE, 4).refs
    host.read(refs[:2])  # spares
    assert host.client.lookup(LARGE, list(refs)).tokens == 4 * LARGE.chunk_tokens
    host.others.place.records.clear()
    ack = "persisted" if len(host.store.core.tiers) == 3 else "stored"
    for ref in refs[2:]:
        assert host.client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack=ack)
    for ref in refs:
        assert not host.client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack=ack)
    host.read(refs)
    placed = {info.key: [each.tier for each in info.placements] for info in host.client.list()}
    assert all("peers" not in placed[ref.key] for ref in refs[2:])
    if ack == "persisted":
        assert all("nvme" in placed[ref.key] for ref in refs)


def test_of_hosts_and_a_shared_place_whoever_has_it_serves(tmp_path: Path) -> None:
    """A record that the host has lost between the look-up and the get comes from the place below, at once."""
    theirs = prompt(LARGE, 3).refs
    place = elsewhere(theirs)
    others, below = OtherHosts(elsewhere(theirs)), SharedTier(place)
    store = Store(Config(dram=DramConfig(8 * MiB, 8 * MiB)), [others, below])
    client = kvstore.Client(store.session("default"))
    try:
        others.place.down = True
        assert client.lookup(LARGE, list(theirs)).tokens == 3 * LARGE.chunk_tokens  # from the place
        others.place.down = False
        assert client.lookup(LARGE, list(theirs)).tokens == 3 * LARGE.chunk_tokens  # hosts are nearer
        assert client.stats()["counters"]["found_peers"] == 3
        others.place.records.clear()
        for ref in theirs:
            assert (client.get(LARGE, ref) == content(LARGE, ref, LARGE.part())).all()
        assert client.stats()["counters"]["loaded_remote"] == 3
    finally:
        store.close()


def test_what_comes_damaged_is_a_miss_and_is_taken_out() -> None:
    theirs = prompt(LARGE, 3).refs
    host = Host(elsewhere(theirs))
    try:
        assert host.client.lookup(LARGE, list(theirs)).tokens == 3 * LARGE.chunk_tokens
        for name, record in host.others.place.records.items():
            if name.key == theirs[1].key:
                host.others.place.records[name] = record[:9000] + bytes([record[9000] ^ 4]) + record[9001:]
        with pytest.raises(NotFound):
            host.client.get(LARGE, theirs[1])
        assert host.client.stats()["counters"]["quarantined_peers"] == 1
        host.read([theirs[0], theirs[2]])
    finally:
        host.store.close()


@pytest.mark.parametrize("spec", [SHARDED, SLIDING, MLA], ids=lambda spec: spec.model)
def test_all_parts_are_asked_for_or_those_that_a_reader_wants(spec: kvstore.KVSpec) -> None:
    refs, parts = prompt(spec, 6, tail=7).refs, list(spec.parts())
    place = elsewhere(refs, spec)
    host = Host(place)
    try:
        for part in parts:
            assert host.client.lookup(spec, list(refs), parts=[part]).tokens == refs[-1].end
        assert host.client.stats()["counters"]["found_peers"] == len(refs) * len(parts)
        gone = next(name for name in place.records if (name.key, name.part) == (refs[3].key, parts[-1]))
        del place.records[gone]
        reached = refs[-1].end if spec is SLIDING else refs[3].position  # the window has passed it
        assert host.client.lookup(spec, list(refs)).tokens == reached
        for ref in refs[:3]:
            for part in parts:
                assert (host.client.get(spec, ref, part=part) == content(spec, ref, part)).all()
    finally:
        host.store.close()
