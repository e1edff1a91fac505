"""Device memory beside DRAM, on its CPU twin: what comes there, what goes, and what a lease holds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import Config, DramConfig, HbmConfig, NamespaceConfig
from kvstore.errors import ConfigError, InvalidArgument, NotFound, StorageError
from kvstore.opening import open_tiers
from kvstore.removed import Removed
from tests.store.conftest import LARGE, MLA, SHARDED, SMALL, Box, content, prompt

torch = pytest.importorskip("torch")

from kvstore.tiers.base import Tier  # noqa: E402 - beside torch
from kvstore.tiers.hbm.ipc import device_id  # noqa: E402 - needs torch
from kvstore.tiers.hbm.lanes import Lane  # noqa: E402 - needs torch

MiB = 1 << 20
TWO = (NamespaceConfig("default"), NamespaceConfig("other"))


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def opened(box: Box, capacity: int = 2 * MiB, slab: int = MiB, **rest: Any) -> kvstore.Client:
    return box.open(hbm=HbmConfig(capacity, ("cpu",), slab), **rest)


def lies_there(client: kvstore.Client, spec: Any, refs: Any, part: Any = None) -> list[bool]:
    with client.device_views(spec, refs, part=part, device="cpu") as views:
        return [each is not None for each in views.tensors]


def bring(client: kvstore.Client, spec: Any, refs: Any, part: Any = None) -> None:
    """Ask until everything lies there; what has no room needs to be asked for twice."""
    eventually(lambda: all(lies_there(client, spec, refs, part)))


def settle(client: kvstore.Client) -> None:
    """Wait until nothing is on its way to a device."""
    eventually(lambda: client.stats()["gauges"]["promotions"] == 0)


def tiers_of(client: kvstore.Client, ref: Any) -> set[str]:
    return {place.tier for info in client.list() if info.key == ref.key for place in info.placements}


def drop(box: Box, client: kvstore.Client, tier: int) -> None:
    """Take all copies in a tier out, as evictions would."""
    core, removed = box.store(client)._core, Removed()
    with core.lock:
        for row in core.index.chunks(0, 1_000_000)[0].tolist():
            assert core.drop_from(row, tier, removed)
    core.settle(removed)


@pytest.mark.parametrize("spec", [SMALL, LARGE, SHARDED, MLA])
def test_what_a_reader_on_the_device_asks_for_comes_there_byte_for_byte(box: Box, spec: Any) -> None:
    client, refs = opened(box), prompt(spec, 4, tail=5).refs
    box.fill(client, spec, refs)
    for part in spec.parts():
        assert not any(lies_there(client, spec, refs, part))
        bring(client, spec, refs, part)
        with client.device_views(spec, refs, part=part, device=torch.device("cpu")) as views:
            for ref, tensor in zip(refs, views.tensors, strict=True):
                assert tensor.dtype == torch.uint8
                assert bytes(tensor.numpy()) == content(spec, ref, part).tobytes()
    assert all(tiers_of(client, ref) == {"dram", "hbm"} for ref in refs)
    told = client.stats()["tiers"]
    assert list(told) == ["dram", "hbm"]
    assert told["hbm"]["written"] == len(refs) * len(tuple(spec.parts()))
    assert told["hbm"]["hits"] >= told["hbm"]["written"]
    assert [problem for _, place, problem in client.verify() if place.tier == "hbm"] == [""] * told["hbm"]["written"]
    assert client.describe().extra["hbm"] == device_id(torch.device("cpu"))
    box.settled(client)


def test_what_is_not_stored_is_not_there_and_another_device_is_refused(box: Box) -> None:
    client, refs = opened(box), prompt(SMALL, 2).refs
    assert lies_there(client, SMALL, refs) == [False, False]
    settle(client)
    assert client.stats()["tiers"]["hbm"]["used"] == 0
    with pytest.raises(InvalidArgument, match="no chunks"):
        client.device_views(SMALL, [], device="cpu")
    with pytest.raises(InvalidArgument, match="up to 60 s"):
        client.device_views(SMALL, refs, device="cpu", lease_s=61)
    with pytest.raises(InvalidArgument, match="is no device"):
        client.device_views(SMALL, refs, device="gpu")
    with pytest.raises(InvalidArgument, match="no part of this spec"):
        client.device_views(SMALL, refs, part=LARGE.part(), device="cpu")
    assert client.stats()["gauges"]["leases"] == 0
    without = box.open()
    with pytest.raises(NotFound, match=r"no hbm tier on the device asked for.*\[hbm\] devices"):
        without.device_views(SMALL, refs, device="cpu")


def test_where_there_is_no_room_a_part_comes_when_it_is_asked_for_again_and_the_coldest_goes(box: Box) -> None:
    client, refs = opened(box, MiB, MiB, policy="lru"), prompt(LARGE, 5).refs  # room for three
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs[:3])
    assert lies_there(client, LARGE, refs[2:3]) == [True]  # the tail goes before the head: now that is the second
    assert lies_there(client, LARGE, refs[3:4]) == [False]
    settle(client)
    assert client.stats()["counters"]["not_promoted_used_once"] == 1
    assert tiers_of(client, refs[3]) == {"dram"}
    assert lies_there(client, LARGE, refs[3:4]) == [False]
    settle(client)
    assert [sorted(tiers_of(client, ref)) for ref in refs] == [
        ["dram", "hbm"], ["dram"], ["dram", "hbm"], ["dram", "hbm"], ["dram"],
    ]  # fmt: skip
    assert client.stats()["tiers"]["hbm"]["evicted"] == 1
    box.check(client, LARGE, refs)
    box.settled(client)


def test_a_lease_holds_what_lies_there_and_its_memory(box: Box) -> None:
    client, refs = opened(box, MiB, MiB), prompt(LARGE, 6).refs
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs[:3])
    with client.device_views(LARGE, refs[:3], device="cpu") as views:
        assert not views.over
        for _ in range(4):
            lies_there(client, LARGE, refs[3:])
            settle(client)
        assert client.stats()["counters"]["not_promoted_no_space"] > 0
        assert all(tiers_of(client, ref) == {"dram"} for ref in refs[3:])
        assert client.delete(LARGE, [refs[0].key]) == 1
        lies_there(client, LARGE, refs[3:])
        settle(client)
        for ref, tensor in zip(refs, views.tensors, strict=False):
            assert bytes(tensor.numpy()) == content(LARGE, ref, LARGE.part()).tobytes()
    assert views.over
    with pytest.raises(kvstore.Closed):
        _ = views.tensors
    bring(client, LARGE, refs[3:])
    eventually(lambda: tiers_of(client, refs[0]) == set())
    box.settled(client)


def test_a_lease_with_a_time_limit_ends_by_itself(box: Box) -> None:
    client, refs = opened(box, MiB, MiB), prompt(LARGE, 6).refs
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs[:3])
    views = client.device_views(LARGE, refs[:3], device="cpu", lease_s=0.2)
    eventually(lambda: views.over and client.stats()["gauges"]["leases"] == 0)
    bring(client, LARGE, refs[3:])
    assert not any(lies_there(client, LARGE, refs[:3]))
    views.close()


def test_the_last_copy_goes_back_to_dram_before_it_goes(box: Box) -> None:
    client, refs = opened(box, MiB, MiB), prompt(LARGE, 6).refs
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs[:3])
    core, removed = box.store(client)._core, Removed()
    with core.lock:
        for ref in refs[:3]:
            core.drop_from(core.index.find(core.catalog.scopes[0].number, ref.key), 0, removed)
    core.settle(removed)
    assert [tiers_of(client, ref) for ref in refs[:3]] == [{"hbm"}] * 3
    assert client.lookup(SMALL, prompt(SMALL, 1)).tokens == 0
    hit = client.lookup(LARGE, refs, lease_s=5)
    assert (hit.tokens, hit.cold) == (6 * 64, refs[:3])
    hit.release()
    bring(client, LARGE, refs[3:])
    assert [tiers_of(client, ref) for ref in refs] == [{"dram"}] * 3 + [{"dram", "hbm"}] * 3
    box.check(client, LARGE, refs)
    box.settled(client)


def test_a_reader_on_the_host_gets_what_lies_only_on_the_device(box: Box) -> None:
    client, refs = opened(box), prompt(LARGE, 3).refs
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs)
    drop(box, client, 0)
    assert [tiers_of(client, ref) for ref in refs] == [{"hbm"}] * 3
    box.check(client, LARGE, refs, verify=True)
    assert [tiers_of(client, ref) for ref in refs] == [{"dram", "hbm"}] * 3
    assert client.stats()["tiers"]["hbm"]["hits"] >= 3
    box.settled(client)


def test_nothing_is_demoted_to_a_device_and_what_only_it_has_survives_the_close(box: Box) -> None:
    client, refs = opened(box, dram=2 * MiB, extent=2 * MiB, nvme=16 * MiB), prompt(LARGE, 20).refs
    box.fill(client, LARGE, refs)
    eventually(lambda: client.stats()["tiers"]["nvme"]["written"] > 0)
    assert client.stats()["tiers"]["hbm"]["used"] == 0
    bring(client, LARGE, refs[-3:])
    core = box.store(client)._core

    def drop_elsewhere() -> bool:
        """Whether it is the device's alone now: not while a copy is read, on its way up or down."""
        removed = Removed()
        with core.lock:
            for ref in refs[-3:]:
                row = core.index.find(core.catalog.scopes[0].number, ref.key)
                for tier in (0, 1):
                    core.drop_from(row, tier, removed)
        core.settle(removed)
        return [tiers_of(client, ref) for ref in refs[-3:]] == [{"hbm"}] * 3

    eventually(drop_elsewhere)
    client.close()
    again = box.open(dram=2 * MiB, extent=2 * MiB, nvme=16 * MiB)
    box.check(again, LARGE, refs[-3:])


def test_a_bad_copy_on_the_device_is_found_and_a_lease_keeps_its_memory(box: Box) -> None:
    client, refs = opened(box), prompt(LARGE, 2).refs
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs)
    with client.device_views(LARGE, refs, device="cpu") as views:
        views.tensors[0][1000] ^= 1
        bad = [info.key for info, place, problem in client.verify() if problem]
        assert bad == [refs[0].key]
        used = client.stats()["tiers"]["hbm"]["used"]
        assert used == 2 * (260 << 10)  # what is read in place is not given to others
        assert lies_there(client, LARGE, refs) == [False, True]
    eventually(lambda: client.stats()["tiers"]["hbm"]["used"] <= used)
    box.check(client, LARGE, refs)
    bring(client, LARGE, refs)
    box.check(client, LARGE, refs)
    assert [problem for _, _, problem in client.verify()] == [""] * 4
    box.settled(client)


def test_what_lies_encoded_in_dram_comes_raw(box: Box) -> None:
    client, refs = opened(box, dram_codec="lossless"), prompt(LARGE, 2).refs
    for ref in refs:
        client.put(LARGE, ref, np.zeros(LARGE.part_shape(LARGE.part(), ref.tokens), np.uint16))
    assert {place.form for info in client.list() for place in info.placements} == {"lossless"}
    bring(client, LARGE, refs)
    assert {(p.tier, p.form) for info in client.list() for p in info.placements} == {
        ("dram", "lossless"), ("hbm", "raw"),
    }  # fmt: skip
    with client.device_views(LARGE, refs, device="cpu") as views:
        assert all(each.nbytes == 256 << 10 and not bool(each.any()) for each in views.tensors)
    assert not [problem for _, _, problem in client.verify() if problem]
    box.settled(client)


def test_namespaces_have_slabs_of_their_own(box: Box) -> None:
    client = opened(box, 3 * MiB, MiB, namespaces=TWO)
    other, refs = box.another(client, "other"), prompt(LARGE, 12).refs
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs[:6])
    lies_there(client, LARGE, refs[6:])
    settle(client)
    assert not any(lies_there(client, LARGE, refs[6:])), "the last slab is left for the other namespace"
    assert not any(lies_there(other, LARGE, refs))
    for ref in refs[:2]:
        box.put(other, LARGE, ref, LARGE.part())
    bring(other, LARGE, refs[:2])
    core = box.store(client)._core
    tier: Any = core.devices[0]
    mine, theirs = (core.catalog.namespace(name).digest for name in ("default", "other"))
    owners = [slab.owner for slab in tier._slabs.all]
    assert sorted(owners) == sorted([mine, mine, theirs])
    number = owners.index(theirs)
    with pytest.raises(kvstore.PermissionDenied):
        box.store(client).session("default").share_slab("cpu", number)
    with pytest.raises(kvstore.PermissionDenied):
        box.store(client).session("default").share_slab("cpu", 99)


def test_a_quota_counts_copies_on_devices_and_gives_up_colder_ones_first(box: Box) -> None:
    quota = (NamespaceConfig("default", quota=5 * (260 << 10)),)
    client, refs = opened(box, namespaces=quota), prompt(LARGE, 4).refs
    box.fill(client, LARGE, refs[:3])
    bring(client, LARGE, refs[:2])
    assert lies_there(client, LARGE, refs[2:3]) == [False]
    settle(client)
    assert client.stats()["counters"]["not_promoted_quota"] == 1
    box.put(client, LARGE, refs[3], LARGE.part())
    assert [tiers_of(client, ref) for ref in refs] == [{"dram", "hbm"}, {"dram", "hbm"}, set(), {"dram"}]
    assert client.stats()["namespace"]["used"] <= quota[0].quota
    box.settled(client)


def test_every_device_has_a_tier_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from kvstore.tiers.hbm import tier as module

    monkeypatch.setattr(module, "_device", lambda name: torch.device("cpu"))
    dram, below, devices = open_tiers(Config(DramConfig(MiB, MiB), HbmConfig(MiB, ("cuda:0", "cuda:1"), MiB)))
    tiers: list[Tier] = [dram, *below, *devices]
    assert [each.name for each in tiers] == ["dram", "hbm0", "hbm1"]
    for each in tiers:
        each.close()


@pytest.mark.parametrize(
    ("hbm", "namespaces", "words"),
    [
        (HbmConfig(MiB, ()), 1, "name one, as cuda:0"),
        (HbmConfig(MiB, ("cpu", "cpu")), 1, "cpu is there twice"),
        (HbmConfig(MiB, ("cuda", "cuda:00")), 1, "cuda:0 is there twice"),
        (HbmConfig(MiB, ("gpu",)), 1, "cuda:N or cpu, not 'gpu'"),
        (HbmConfig(2 * MiB, ("cpu",), MiB), 3, "2 slabs of 1048576, for 3 namespaces"),
        (HbmConfig(1000, ("cpu",)), 1, "must be 4096 bytes or more"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(hbm: HbmConfig, namespaces: int, words: str) -> None:
    tenants = tuple(NamespaceConfig(f"n{n}") for n in range(namespaces))
    with pytest.raises(ConfigError, match=words):
        kvstore.open(Config(DramConfig(MiB, MiB), hbm, namespaces=tenants), namespace="n0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_start_says_so() -> None:
    with pytest.raises(ConfigError, match=r"no GPU is usable here.*leave the hbm tier out"):
        kvstore.open(Config(DramConfig(MiB, MiB), HbmConfig(MiB)))


def test_without_torch_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.startswith("kvstore.tiers.hbm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"needs torch.*pip install"):
        kvstore.open(Config(DramConfig(MiB, MiB), HbmConfig(MiB, ("cpu",))))


def test_a_device_that_fails_is_told_and_the_store_goes_on(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    client, refs = opened(box), prompt(LARGE, 3).refs
    box.fill(client, LARGE, refs)
    bring(client, LARGE, refs)
    core, removed = box.store(client)._core, Removed()
    with core.lock:
        core.drop_from(core.index.find(core.catalog.scopes[0].number, refs[0].key), 0, removed)
    core.settle(removed)

    def fails(lane: Any, *args: Any) -> None:
        raise StorageError("copying failed on the GPU: CUDA_ERROR_ILLEGAL_ADDRESS (700)")

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "read", fails)
        with pytest.raises(StorageError):  # that copy alone: the device answers
            client.get(LARGE, refs[0])
        assert client.stats()["tiers"]["hbm"]["state"] == "ok"
        patch.setattr(Lane, "wait", fails)
        with pytest.raises(StorageError):
            client.get(LARGE, refs[0])
    told = client.stats()
    assert told["tiers"]["hbm"]["state"] == "cpu answers no more"
    assert any("hbm: cpu answers no more" in note for note in told["notes"])
    eventually(lambda: [tiers_of(client, ref) for ref in refs] == [set(), {"dram"}, {"dram"}])
    box.check(client, LARGE, refs[1:])
    assert not any(lies_there(client, LARGE, refs))
    settle(client)
    assert client.stats()["counters"]["not_promoted_device_lost"] == 2
    box.settled(client)


def test_under_a_crowd_whoever_holds_a_lease_sees_the_right_bytes(box: Box) -> None:
    client, refs = opened(box, MiB, MiB, dram=4 * MiB, extent=4 * MiB), prompt(LARGE, 12).refs
    due = {ref: content(LARGE, ref, LARGE.part()).tobytes() for ref in refs}
    box.fill(client, LARGE, refs)
    stop, wrong, seen = time.monotonic() + 2.0, list[str](), [0] * 4

    def read(number: int) -> None:
        own, draw = box.another(client), np.random.default_rng(number)
        while time.monotonic() < stop and not wrong:
            some = [refs[n] for n in draw.choice(len(refs), 2, replace=False)]
            with own.device_views(LARGE, some, device="cpu") as views:
                for ref, tensor in zip(some, views.tensors, strict=True):
                    if tensor is not None:
                        seen[number] += 1
                        if bytes(tensor.numpy()) != due[ref]:
                            wrong.append(f"{ref}")
        own.close()

    def disturb() -> None:
        draw = np.random.default_rng(99)
        while time.monotonic() < stop and not wrong:
            ref = refs[int(draw.integers(len(refs)))]
            client.delete(LARGE, [ref.key])
            box.put(client, LARGE, ref, LARGE.part())

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)] + [threading.Thread(target=disturb)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert sum(seen) > 0
    settle(client)
    assert client.stats()["tiers"]["hbm"]["evicted"] > 0
    box.check(client, LARGE, refs)
    box.settled(client)
