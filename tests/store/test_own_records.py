"""What a host has written to a shared place stays its own over restarts: the place never outgrows its capacity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import Config, DramConfig, NamespaceConfig, NvmeConfig, RemoteConfig
from kvstore.errors import StorageError
from kvstore.keys import ChunkRef
from kvstore.store import Store
from tests.store.conftest import LARGE, SHARDED, MiB, content, prompt
from tests.store.shared_tier import until

DEFAULT = NamespaceConfig("default")
CAPACITY = 4 * MiB  # of one host in the place: 15 records of 260 KiB


class Host:
    """A store over DRAM and a shared folder, with a drive or without."""

    def __init__(self, folder: Path, place: Path, *, drive: bool = True, index: int = 1000,
                 namespace: NamespaceConfig = DEFAULT, **remote: Any) -> None:  # fmt: skip
        nvme = NvmeConfig(folder / "drive", 96 * MiB, MiB, 0, 2) if drive else None
        folder.mkdir(exist_ok=True)
        shared = RemoteConfig(f"file://{place}", **{"capacity": CAPACITY, "lookup_wait_s": 10.0, **remote})
        dram = DramConfig(8 * MiB, 8 * MiB)
        self.store = Store(
            Config(dram=dram, nvme=nvme, remote=shared, namespaces=(namespace,), put_wait_s=5.0, max_chunks=index)
        )
        self.client = kvstore.Client(self.store.own_session())

    def put(self, refs: Sequence[ChunkRef]) -> None:
        """Put chunks, and wait until the place has been offered them."""
        for ref in refs:
            self.client.put(LARGE, ref, content(LARGE, ref, LARGE.part()))
        until(lambda: self.client.stats()["gauges"]["through"] == 0)

    def check(self, refs: Sequence[ChunkRef]) -> None:
        for ref in refs:
            assert (self.client.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()

    @property
    def remote(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.stats()["tiers"]["remote"]
        return found

    def in_place(self) -> set[bytes]:
        """Keys of the chunks that the index has in the place."""
        return {info.key for info in self.client.list() if "remote" in {each.tier for each in info.placements}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def bytes_in(place: Path) -> int:
    """Of all records that lie in a shared folder."""
    return sum(path.stat().st_size for path in place.glob("??/*/*/~*"))


def refs_of(count: int, first: int) -> list[ChunkRef]:
    return [prompt(LARGE, 1, first + seed).refs[0] for seed in range(count)]


def test_a_host_that_is_started_again_and_again_stays_within_its_capacity(tmp_path: Path, place: Path) -> None:
    kept = set[bytes]()
    for life in range(4):
        host = Host(tmp_path / "host", place)
        try:
            assert host.in_place() == kept
            assert host.remote["used"] == bytes_in(place)
            refs = refs_of(20, 100 * life)
            host.put(refs)
            assert CAPACITY // 2 < bytes_in(place) <= CAPACITY
            assert host.remote["used"] == bytes_in(place)
            kept = host.in_place()
            assert kept & {ref.key for ref in refs}, "none of what was put last is there"
        finally:
            host.client.close()


def test_what_it_wrote_is_found_by_itself_and_by_others(tmp_path: Path, place: Path) -> None:
    """By itself without asking the place; and what of it is let go is gone for all."""
    refs = refs_of(10, 0)
    host = Host(tmp_path / "host", place, drive=False, ledger=tmp_path / "host" / "ledger")
    host.put(refs)
    host.client.close()
    host = Host(tmp_path / "host", place, drive=False, ledger=tmp_path / "host" / "ledger")
    other = Host(tmp_path / "other", place)
    try:
        assert host.in_place() == {ref.key for ref in refs}
        assert host.client.contains(LARGE, refs) == [True] * 10
        assert host.remote["asked"] == 0
        host.check(refs)
        for seed in range(10):
            assert other.client.lookup(LARGE, prompt(LARGE, 1, seed)).tokens == LARGE.chunk_tokens
        other.check(refs)
        assert (other.remote["used"], other.remote["others_records"]) == (0, 10)
        assert host.client.delete(LARGE, [ref.key for ref in refs[:4]]) == 4
        assert bytes_in(place) == host.remote["used"] == 6 * 260 * 1024
        host.put(refs_of(30, 100))
        assert bytes_in(place) <= CAPACITY
        assert host.client.stats()["namespace"]["used"] >= host.remote["used"]
    finally:
        host.client.close()
        other.client.close()


def test_two_hosts_that_are_started_again_delete_their_own_alone(tmp_path: Path, place: Path) -> None:
    for life in range(3):
        hosts = [Host(tmp_path / name, place) for name in ("one", "two")]
        try:
            for number, host in enumerate(hosts):
                host.put(refs_of(20, 1000 * number + 100 * life))
                assert host.remote["used"] <= CAPACITY
            assert sum(host.remote["used"] for host in hosts) == bytes_in(place)
            assert bytes_in(place) > CAPACITY
        finally:
            for host in hosts:
                host.client.close()


def test_a_quota_counts_what_was_written_before(tmp_path: Path, place: Path) -> None:
    for _ in range(3):
        host = Host(tmp_path / "host", place, drive=False, ledger=tmp_path / "host" / "ledger")
        try:
            host.put(refs_of(5, 0))
            namespace = host.client.stats()["namespace"]["used"]
            dram = host.client.stats()["tiers"]["dram"]["used"]
            assert namespace - dram == host.remote["used"] == bytes_in(place) == 5 * 260 * 1024
        finally:
            host.client.close()


def test_a_second_process_with_the_same_ledger_is_refused(tmp_path: Path, place: Path) -> None:
    host = Host(tmp_path / "host", place, drive=False, ledger=tmp_path / "ledger")
    try:
        with pytest.raises(StorageError, match=r"ledger is in use by process \d+; stop it or choose another folder"):
            Host(tmp_path / "second", place, drive=False, ledger=tmp_path / "ledger")
        host.put(refs_of(2, 0))
    finally:
        host.client.close()
    Host(tmp_path / "second", place, drive=False, ledger=tmp_path / "ledger").client.close()


def test_a_host_without_a_ledger_is_told_what_that_means(tmp_path: Path, place: Path) -> None:
    host = Host(tmp_path / "host", place, drive=False)
    try:
        assert any("not known to it after a restart" in note for note in host.store.notes)
    finally:
        host.client.close()


def test_a_shared_tier_that_is_drained_after_a_restart_is_rid_of_what_was_written_before(
    tmp_path: Path, place: Path
) -> None:
    refs = refs_of(6, 0)
    for draining in (False, True):
        host = Host(tmp_path / "host", place)
        try:
            if not draining:
                host.put(refs)
                continue
            host.client.drain("remote")
            until(lambda host=host: host.client.drain("remote").state == "drained")
            assert bytes_in(place) == 0
            host.check(refs)
        finally:
            host.client.close()


def test_an_index_with_less_room_than_the_tiers_bring_back_lets_go_of_the_oldest(tmp_path: Path, place: Path) -> None:
    host = Host(tmp_path / "host", place, capacity=64 * MiB, index=1000)
    host.put(refs_of(40, 0))
    host.client.close()
    for path in (tmp_path / "host" / "drive" / "segments").iterdir():
        path.unlink()  # what the drive has and what the place has are no longer the same
    host = Host(tmp_path / "host", place, capacity=64 * MiB, index=1000)
    host.put(refs_of(20, 100))
    host.client.close()
    host = Host(tmp_path / "host", place, capacity=64 * MiB, index=30)
    try:
        assert any("more than max_chunks=30 allows" in note for note in host.store.notes)
        assert bytes_in(place) == host.remote["used"] == len(host.in_place()) * 260 * 1024
        assert 0 < len(list(host.client.list())) <= 30
        host.put(refs_of(5, 200))
    finally:
        host.client.close()


def test_a_chunk_whose_parts_two_hosts_wrote_is_whole_after_a_restart(tmp_path: Path, place: Path) -> None:
    """Each owns its parts; what the other wrote is asked for."""
    chain, parts = prompt(SHARDED, 2), list(SHARDED.parts())
    names = ("one", "two")

    def start(name: str) -> Host:
        return Host(tmp_path / name, place, drive=False, ledger=tmp_path / f"{name}-ledger")

    for name, own in zip(names, (parts[:2], parts[2:]), strict=True):
        host = start(name)
        for ref in chain.refs:
            for part in own:
                host.client.put(SHARDED, ref, content(SHARDED, ref, part), part=part, ack="persisted")
        host.client.close()
    total = bytes_in(place)
    for name in names:
        host = start(name)
        try:
            assert host.remote["used"] == total // 2
            assert host.client.lookup(SHARDED, chain).tokens == 2 * SHARDED.chunk_tokens
            for ref in chain.refs:
                for part in parts:
                    assert (host.client.get(SHARDED, ref, part=part) == content(SHARDED, ref, part)).all()
            assert host.remote["used"] == total // 2
        finally:
            host.client.close()


def test_what_may_be_written_in_a_day_is_remembered_beside_the_ledger(tmp_path: Path, place: Path) -> None:
    options = {"ledger": tmp_path / "ledger", "write_bytes_per_day": 64 * MiB}
    host = Host(tmp_path / "host", place, drive=False, **options)
    host.put(refs_of(10, 0))
    host.client.close()
    left, most = (host.store.stats(host.store.core.catalog.namespace("default"))["tiers"]["remote"][each]
                  for each in ("budget_left", "budget_most"))  # fmt: skip
    assert left < most - 10 * (256 << 10)
    host = Host(tmp_path / "host", place, drive=False, **options)
    try:
        assert left <= host.remote["budget_left"] < most - 10 * (256 << 10)
    finally:
        host.client.close()


def test_a_lossy_record_of_before_gives_way_to_an_exact_one(tmp_path: Path, place: Path) -> None:
    """The configuration was changed between two starts: what takes the place of the old record must stay."""
    (ref,), part = refs_of(1, 0), LARGE.part()
    floats = np.random.default_rng(0).standard_normal(LARGE.part_shape(part, ref.tokens), np.float32)
    values = (floats.view(np.uint32) >> 16).astype(np.uint16)  # as bfloat16
    sizes = list[int]()
    for lossy in (True, False):
        host = Host(
            tmp_path / "host", place, drive=False, ledger=tmp_path / "ledger", codec="int8" if lossy else "raw",
            namespace=NamespaceConfig("default", lossy=lossy),
        )  # fmt: skip
        try:
            host.client.put(LARGE, ref, values)
            until(lambda host=host: host.client.stats()["gauges"]["through"] == 0)
            sizes.append(bytes_in(place))
            assert host.remote["used"] == sizes[-1]
        finally:
            host.client.close()
    assert 0 < sizes[0] < sizes[1] == 260 << 10
    reader = Host(tmp_path / "reader", place)
    try:
        assert reader.client.lookup(LARGE, prompt(LARGE, 1, 0)).tokens == LARGE.chunk_tokens
        assert (reader.client.get(LARGE, ref, verify=True) == values).all()
    finally:
        reader.client.close()
