"""Draining tiers and drives of a running store: nothing is lost that fits anywhere, and what is held waits."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore.config import Config, CxlConfig, DramConfig, NamespaceConfig, NvmeConfig, RemoteConfig
from kvstore.errors import InvalidArgument, NotFound, PermissionDenied, Shed, StorageError, Unavailable
from kvstore.keys import ChunkRef
from kvstore.record import unpack
from kvstore.store import Store
from kvstore.tiers.nvme.location import drive_of
from tests.store.conftest import LARGE, SHARDED, MiB, content, prompt
from tests.store.shared_tier import Place, SharedTier, until

DRIVES = ("a", "b", "c")
RECORD_HEADER = 4096  # bytes, of a part of LARGE
REMOTE = 2  # the number of the stand-in's tier below DRAM and NVMe


class Host:
    """A store over DRAM, NVMe on some drives and, where there is a `place`, a shared tier."""

    def __init__(
        self, folder: Path, *, drives: int = 3, dram: int = 8 * MiB, place: Place | None = None, **rest: Any
    ) -> None:
        self.paths = [folder / name for name in DRIVES[:drives]]
        config = NvmeConfig(self.paths[0], 96 * MiB, MiB, 0, 2, paths=tuple(self.paths[1:]))
        more = [] if place is None else [SharedTier(place)]
        self.store = Store(Config(dram=DramConfig(dram, dram), nvme=config, put_wait_s=5.0, **rest), more)
        self.client = kvstore.Client(self.store.own_session())

    def fill(self, refs: Sequence[ChunkRef], ack: str = "persisted") -> None:
        for ref in refs:
            for part in LARGE.parts():
                self.client.put(LARGE, ref, content(LARGE, ref, part), part=part, ack=ack)

    def check(self, refs: Sequence[ChunkRef]) -> None:
        for ref in refs:
            assert (self.client.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()

    def tiers_of(self, ref: ChunkRef) -> set[str]:
        return {place.tier for info in self.client.list() if info.key == ref.key for place in info.placements}

    def on(self, drive: int) -> int:
        """Parts that the index has on a drive."""
        core = self.store.core
        with core.lock:
            rows = core.index.chunks(0, 1_000_000)[0].tolist()
            return sum(
                drive_of(core.index.placement(each).loc) == drive for row in rows for each in core.placements(row, 1)
            )

    def forget_what_was_written_through(self, place: Place) -> None:
        """Now the disk alone has what DRAM has let go."""
        until(lambda: self.client.stats()["gauges"]["through"] == 0)
        place.records.clear()
        core = self.store.core
        with core.lock:
            for row in core.index.chunks(0, 1_000_000)[0].tolist():
                for placement in list(core.placements(row, REMOTE)):
                    core.index.remove_placement(placement)

    def drained(self, name: str = "nvme", path: Path | None = None) -> kvstore.Drain:
        """The drain that was begun, once it is over."""
        where = "" if path is None else str(path)
        until(lambda: not self.client.drain(name, where).state.startswith("draining"))
        return self.client.drain(name, where)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    made: list[Host] = []
    yield made
    for host in made:
        host.client.close()


def refs_of(count: int, first: int = 0) -> list[ChunkRef]:
    return [prompt(LARGE, 1, first + seed).refs[0] for seed in range(count)]


def test_a_drive_is_emptied_into_the_others_closed_and_taken_back(hosts: list[Host], tmp_path: Path) -> None:
    host, refs = Host(tmp_path), refs_of(60)
    hosts.append(host)
    host.fill(refs)
    assert min(host.on(drive) for drive in range(3)) > 5
    told = host.client.drain("nvme", str(host.paths[1]))
    assert told.state.startswith(("draining", "drained"))
    done = host.drained(path=host.paths[1])
    assert (done.state, done.left_bytes, done.dropped_chunks) == ("drained", 0, 0)
    assert done.moved_parts > 5
    assert host.on(1) == 0
    host.check(refs)
    assert all("nvme" in host.tiers_of(ref) for ref in refs)
    # its files are closed, and nothing is written there
    held = {str(Path(f"/proc/self/fd/{fd.name}").resolve()) for fd in Path("/proc/self/fd").iterdir()}
    assert not [each for each in held if each.startswith(str(host.paths[1]) + "/")]
    away = host.paths[1].rename(tmp_path / "pulled")
    host.fill(refs_of(20, 100))
    assert host.on(1) == 0
    assert not host.paths[1].exists()
    stats = host.client.stats()["tiers"]["nvme"]
    assert (stats["state"], stats["drives"], stats["drive_1"]) == ("ok", 2, f"{host.paths[1]}: drained")
    with pytest.raises(StorageError, match="does not hold drive 1"):
        host.client.resume("nvme", str(host.paths[1]))
    away.rename(host.paths[1])
    assert host.client.resume("nvme", str(host.paths[1])).state == "ok"
    assert host.client.resume("nvme", str(host.paths[1])).state == "ok"
    host.fill(refs_of(20, 200))
    assert host.on(1) > 0
    host.check([*refs, *refs_of(20, 100), *refs_of(20, 200)])
    assert any("is drained and can be pulled" in note for note in host.store.notes)


def test_what_a_drained_drive_held_is_not_there_twice_after_the_store_is_opened_again(
    hosts: list[Host], tmp_path: Path
) -> None:
    host, refs = Host(tmp_path), refs_of(30)
    host.fill(refs)
    host.client.drain("nvme", str(host.paths[0]))
    host.drained(path=host.paths[0])
    gone = refs[::2]
    assert host.client.delete(LARGE, [ref.key for ref in gone]) == len(gone)
    host.client.close()
    again = Host(tmp_path)
    hosts.append(again)
    assert again.on(0) == 0
    again.check(refs[1::2])
    assert again.client.contains(LARGE, gone) == [False] * len(gone)


@pytest.mark.parametrize("path", [True, False], ids=["a drive", "the tier"])
def test_a_store_closed_in_mid_drain_has_all_and_goes_on(hosts: list[Host], tmp_path: Path, path: bool) -> None:
    host, refs = Host(tmp_path, dram=2 * MiB), refs_of(80)
    host.fill(refs)
    host.client.pin(LARGE, [ref.key for ref in refs], 60)  # or what DRAM has no room for would be dropped
    where = str(host.paths[2]) if path else ""
    held = sum(host.on(drive) for drive in ((2,) if path else range(3))) * (260 << 10)
    host.client.drain("nvme", where)

    def has_begun() -> bool:
        told = host.client.drain("nvme", where)
        return told.moved_parts > 0 or 0 < told.left_bytes < held

    until(has_begun)
    host.client.close()
    again = Host(tmp_path, dram=32 * MiB)  # room for all
    hosts.append(again)
    if path:
        assert again.drained(path=host.paths[2]).state == "drained"
        assert again.on(2) == 0
        again.fill(refs_of(5, 500))
    else:
        assert again.drained().state == "drained"
        assert sum(again.on(drive) for drive in range(3)) == 0
        with pytest.raises(Unavailable, match="is being drained"):
            again.fill(refs_of(1, 500))
    again.check(refs)
    assert again.client.resume("nvme", where).state == "ok"
    again.fill(refs_of(20, 600))  # and it takes records as before
    assert again.on(2) > 0


def test_a_tier_is_emptied_into_the_one_below_and_its_store_goes_on_without_it(
    hosts: list[Host], tmp_path: Path
) -> None:
    place = Place()
    host, refs = Host(tmp_path, drives=2, dram=3 * MiB, place=place), refs_of(40)
    hosts.append(host)
    host.fill(refs)
    host.forget_what_was_written_through(place)
    host.client.drain("nvme")
    done = host.drained()
    assert (done.state, done.dropped_chunks) == ("drained", 0)
    assert host.client.stats()["tiers"]["nvme"]["state"] == "drained"
    assert host.client.stats()["tiers"]["nvme"]["used"] == 0
    host.check(refs)
    assert all("remote" in host.tiers_of(ref) for ref in refs)
    late = refs_of(20, 100)
    host.fill(late)  # persisted: the next tier that survives the process
    host.check(late)
    assert not any("nvme" in host.tiers_of(ref) for ref in late)
    host.client.resume("nvme")
    host.fill(refs_of(20, 200))
    assert "nvme" in host.tiers_of(refs_of(1, 200)[0])


def test_a_record_that_the_disk_moves_while_it_is_drained_is_not_lost(
    hosts: list[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place()
    host, refs = Host(tmp_path, drives=1, dram=MiB, place=place), refs_of(8)
    hosts.append(host)
    host.fill(refs)
    host.forget_what_was_written_through(place)
    core, nvme, moved = host.store.core, host.store.core.tiers[1], set[int]()
    read = nvme.read_into

    def move(location: int, offset: int, out: memoryview) -> None:
        """A clean-up between the look at the index and the read: another copy, the index, another life in its place."""
        with core.lock:
            rows = core.index.chunks(0, 1_000_000)[0].tolist()
            placed = [each for row in rows for each in core.placements(row, 1)]
            here = next((each for each in placed if core.index.placement(each).loc == location), -1)
        if here in moved or here < 0 or not core.drained:
            read(location, offset, out)
            return
        moved.add(here)
        record = memoryview(bytearray(core.index.placement(here).stored + RECORD_HEADER))
        read(location, 0, record)
        new = nvme.write(bytes(record[:RECORD_HEADER]), record[RECORD_HEADER:], unpack(record))
        with core.lock:
            core.index.set_loc(here, new, core.index.placement(here).stored)
        out[:] = bytes(len(out))

    monkeypatch.setattr(nvme, "read_into", move)
    host.client.drain("nvme")
    assert host.drained().dropped_chunks == 0
    assert moved
    host.check(refs)
    assert "quarantined_nvme" not in host.client.stats()["counters"]


def test_the_last_persistent_tier_goes_up_as_far_as_there_is_room_and_drops_the_coldest(
    hosts: list[Host], tmp_path: Path
) -> None:
    host, refs = Host(tmp_path, drives=1, dram=2 * MiB, policy="lru"), refs_of(20)
    hosts.append(host)
    host.fill(refs)
    host.client.drain("nvme")
    done = host.drained()
    there = host.client.contains(LARGE, refs)
    assert done.state == "drained"
    assert done.dropped_chunks == there.count(False) > 0
    assert host.client.stats()["counters"]["dropped_drained"] == done.dropped_chunks
    assert there == sorted(there), "those that were used last stay"
    assert sum(there) >= 6, "of the seven that DRAM has room for"
    host.check([ref for ref, kept in zip(refs, there, strict=True) if kept])
    with pytest.raises(Unavailable, match="being drained"):
        host.fill(refs_of(1, 100))
    host.fill(refs_of(1, 100), "stored")


def test_what_is_leased_or_pinned_waits_for_its_holder(hosts: list[Host], tmp_path: Path) -> None:
    host, refs = Host(tmp_path, drives=1, dram=MiB), refs_of(12)
    hosts.append(host)
    host.fill(refs)
    host.client.pin(LARGE, [refs[0].key], 60)
    with host.client.lookup(LARGE, [refs[1]], lease_s=30) as hit:
        assert hit.tokens
        host.client.drain("nvme")
        until(lambda: host.client.drain("nvme").left_bytes <= 2 * (260 << 10))
        host.check(refs[:2])
        assert host.client.drain("nvme").state.startswith("draining")
    host.client.unpin(LARGE, [refs[0].key])
    assert host.drained().state == "drained"


def test_a_drain_waits_for_a_tier_that_does_not_answer_and_drops_nothing(hosts: list[Host], tmp_path: Path) -> None:
    place = Place(down=True)
    host, refs = Host(tmp_path, drives=1, dram=MiB, place=place), refs_of(12)
    hosts.append(host)
    host.fill(refs)
    host.client.drain("nvme")
    until(lambda: "down" in host.client.drain("nvme").state)
    assert host.client.contains(LARGE, refs) == [True] * 12
    place.down = False
    assert host.drained().dropped_chunks == 0
    host.check(refs)


def test_a_shared_tier_gives_up_what_is_its_hosts_and_leaves_the_rest(hosts: list[Host], tmp_path: Path) -> None:
    place = Place()
    host, refs = Host(tmp_path, drives=1, place=place), refs_of(12)
    hosts.append(host)
    host.fill(refs, "stored")
    until(lambda: len(place.records) == 12)
    host.client.drain("remote")
    assert host.drained("remote").state == "drained"
    host.check(refs)
    assert all("remote" not in host.tiers_of(ref) for ref in refs)
    asked = host.store.core.tiers[REMOTE].asked  # type: ignore[attr-defined]
    assert host.client.contains(LARGE, refs_of(3, 300)) == [False] * 3
    assert host.store.core.tiers[REMOTE].asked == asked, "nobody asks there any more"  # type: ignore[attr-defined]


def test_a_drive_that_fails_while_it_is_drained(hosts: list[Host], tmp_path: Path) -> None:
    host, refs = Host(tmp_path, dram=MiB), refs_of(60)
    hosts.append(host)
    host.fill(refs)
    shutil.rmtree(host.paths[1])
    host.client.drain("nvme", str(host.paths[1]))
    host.drained(path=host.paths[1])
    assert host.on(1) == 0
    kept = [ref for ref, there in zip(refs, host.client.contains(LARGE, refs), strict=True) if there]
    assert len(kept) >= 40
    host.check(kept)


def test_readers_and_writers_go_on_while_drives_come_and_go(hosts: list[Host], tmp_path: Path) -> None:
    host, refs = Host(tmp_path, dram=2 * MiB), refs_of(60)
    hosts.append(host)
    host.fill(refs)
    stop, failures = threading.Event(), list[Exception]()

    def use(seed: int) -> None:
        late = 0
        while not stop.is_set():
            try:
                host.check([refs[(seed * 7 + late * 3) % 60]])
                with suppress(Shed):
                    host.fill(refs_of(1, 1000 * seed + late % 30))
            except Exception as error:  # noqa: BLE001 - told by the test
                failures.append(error)
                return
            late += 1

    users = [threading.Thread(target=use, args=(seed,)) for seed in (1, 2)]
    for user in users:
        user.start()
    for drive in (0, 1, 2, 0):
        assert host.client.drain("nvme", str(host.paths[drive])).tier == "nvme"
        assert host.drained(path=host.paths[drive]).state == "drained"
        assert host.on(drive) == 0
        host.client.resume("nvme", str(host.paths[drive]))
    stop.set()
    for user in users:
        user.join()
    assert failures == []
    host.check(refs)


def test_no_half_of_a_chunk_is_left_when_parts_lie_on_several_drives(hosts: list[Host], tmp_path: Path) -> None:
    host = Host(tmp_path)
    hosts.append(host)
    refs = [prompt(SHARDED, 1, seed).refs[0] for seed in range(20)]
    for ref in refs:
        for part in SHARDED.parts():
            host.client.put(SHARDED, ref, content(SHARDED, ref, part), part=part, ack="persisted")
    host.client.drain("nvme", str(host.paths[2]))
    assert host.drained(path=host.paths[2]).dropped_chunks == 0
    for ref in refs:
        for part in SHARDED.parts():
            assert (host.client.get(SHARDED, ref, part=part, verify=True) == content(SHARDED, ref, part)).all()


def test_what_cannot_be_drained_is_refused(hosts: list[Host], tmp_path: Path) -> None:
    host = Host(tmp_path, drives=2)
    hosts.append(host)
    with pytest.raises(InvalidArgument, match="dram cannot be drained"):
        host.client.drain("dram")
    with pytest.raises(InvalidArgument, match="no tier 'cxl' here; there are dram, nvme"):
        host.client.drain("cxl")
    with pytest.raises(InvalidArgument, match="no tier"):
        host.client.resume("cxl")
    with pytest.raises(InvalidArgument, match=r"no drive of this tier; it has .*/a, .*/b"):
        host.client.drain("nvme", "/mnt/nowhere")
    with pytest.raises(InvalidArgument, match="tier dram has no devices that are drained one by one"):
        host.client.resume("dram", "/mnt/nowhere")
    assert host.client.resume("nvme").state == "ok"
    host.client.drain("nvme", str(host.paths[0]))
    with pytest.raises(InvalidArgument, match="only drive left"):
        host.client.drain("nvme", str(host.paths[1]))
    host.drained(path=host.paths[0])
    host.client.drain("nvme")  # the rest of it as well
    assert host.drained().state == "drained"
    with pytest.raises(InvalidArgument, match="drained already"):
        host.client.drain("nvme", str(host.paths[1]))
    host.client.resume("nvme")
    host.fill(refs_of(8))
    assert min(host.on(0), host.on(1)) > 0


def test_a_drain_that_was_stopped_by_a_resume_that_failed_is_begun_again(hosts: list[Host], tmp_path: Path) -> None:
    host, refs = Host(tmp_path, dram=MiB, drives=3), refs_of(30)
    hosts.append(host)
    host.fill(refs)
    host.client.drain("nvme", str(host.paths[0]))
    host.drained(path=host.paths[0])
    away = host.paths[0].rename(tmp_path / "pulled")
    host.client.drain("nvme", str(host.paths[1]))
    with pytest.raises(StorageError, match="does not hold drive 0"):
        host.client.resume("nvme")
    assert host.drained(path=host.paths[1]).state == "drained"
    assert host.on(1) == 0
    away.rename(host.paths[0])
    assert host.client.resume("nvme").state == "ok"
    host.check(refs)


def test_tenants_cannot_drain_what_is_everybodys_but_an_operator_can(hosts: list[Host], tmp_path: Path) -> None:
    tenants = (
        NamespaceConfig("default", tokens=("one",)), NamespaceConfig("ops", tokens=("two",), operator=True),
    )  # fmt: skip
    host = Host(tmp_path, namespaces=tenants)
    hosts.append(host)
    watch, tenant = kvstore.Client(host.store.session("ops")).watch(), host.client.watch()
    for call in (host.client.drain, host.client.resume):
        with pytest.raises(PermissionDenied, match="operator = true"):
            call("nvme", str(host.paths[0]))
    operator = kvstore.Client(host.store.session("ops"))
    operator.drain("nvme", str(host.paths[0]))
    until(lambda: operator.drain("nvme", str(host.paths[0])).state == "drained")
    notes = [next(watch), next(watch)]
    assert [(each.kind, each.tier) for each in notes] == [("tier", "nvme")] * 2
    assert "can be pulled" in notes[1].note
    host.fill(refs_of(1), "stored")
    assert next(tenant).kind == "stored", "a tenant is told nothing of the host's drives"


def test_memory_of_cxl_goes_down_to_the_disk_and_a_lost_record_is_a_miss(tmp_path: Path) -> None:
    device = tmp_path / "dax"
    device.write_bytes(bytes(8 * MiB))
    config = Config(
        dram=DramConfig(2 * MiB, 2 * MiB), cxl=CxlConfig(paths=(device,)),
        nvme=NvmeConfig(tmp_path / "nvme", 64 * MiB, MiB, 0, 2), put_wait_s=5.0,
    )  # fmt: skip
    with kvstore.open(config) as client:
        refs = refs_of(24)
        for ref in refs:
            client.put(LARGE, ref, content(LARGE, ref, LARGE.part()))
        until(lambda: client.stats()["counters"].get("demoted_cxl", 0) > 8)
        client.drain("cxl")
        until(lambda: client.drain("cxl").state == "drained")
        assert client.stats()["tiers"]["cxl"]["used"] == 0
        for ref in refs:
            assert (client.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()
        with pytest.raises(NotFound):
            client.get(LARGE, refs_of(1, 99)[0])


def test_a_real_shared_place_is_left_with_what_others_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()

    def opened(name: str) -> kvstore.Client:
        nvme = NvmeConfig(tmp_path / name, 64 * MiB, MiB, 0, 2)
        remote = RemoteConfig(f"file://{folder}", lookup_wait_s=2.0)
        return kvstore.open(Config(dram=DramConfig(8 * MiB, 8 * MiB), nvme=nvme, remote=remote))

    with opened("one") as one, opened("two") as two:
        mine, others = refs_of(6), refs_of(6, 50)
        for client, refs in ((one, mine), (two, others)):
            for ref in refs:
                client.put(LARGE, ref, content(LARGE, ref, LARGE.part()), ack="persisted")
        until(lambda: one.contains(LARGE, others) == [True] * 6 == two.contains(LARGE, mine))
        one.drain("remote")
        until(lambda: one.drain("remote").state == "drained")
        assert one.contains(LARGE, mine) == [True] * 6
        assert one.contains(LARGE, others) == [False] * 6
        for ref in mine:
            assert (one.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()
        for ref in others:
            two.prefetch(LARGE, [ref.key])
            assert (two.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()
