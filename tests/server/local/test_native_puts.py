"""Puts from staging memory that the server takes without Python, and those that it must not take so."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Client, DramConfig, InvalidArgument, NamespaceConfig, ServerConfig, wire
from kvstore.policy import POLICIES
from kvstore.server import serve
from kvstore.store import Store
from kvstore.v1 import kvstore_pb2 as pb
from tests.store.conftest import check_policies

MiB = 1 << 20


def by_python(running: Any) -> int:
    """How many parts were stored the general way."""
    return int(running.store._core.counters["stored"])


def stored(running: Any) -> int:
    return int(running.store.session("default").stats()["counters"].get("stored", 0))


def refs(kit: Any, count: int, seed: int = 0) -> Any:
    ids = np.arange(64 * count, dtype=np.uint32) + 100_000 * seed
    return kvstore.Chain.of(ids, kit.small.chunk_tokens).refs


def fill(local: Client, kit: Any, number: int) -> Any:
    array = local.buffer(kit.small.part_shape(kit.small.part(), 64), "bfloat16")
    array[:] = number
    return array


class Staged:
    """A client of the frames alone, with the spec registered and two parts' worth of memory staged as number 1."""

    def __init__(self, raw: Any, kit: Any, frames: Any) -> None:
        self._kit = kit
        self.stream, self.ask, self.answer = raw.stream, raw.ask, raw.answer
        self.nbytes = kit.small.part_bytes(kit.small.part(), 64)
        self.ask(pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(spec=wire.spec_to_message(kit.small)))
        with frames.memfd(2 * self.nbytes) as descriptor:
            self.ask(pb.METHOD_STAGE, pb.StageRequest(number=1, bytes=2 * self.nbytes), [descriptor])

    def message(self, ref: Any, **fields: Any) -> Any:
        put = wire.StagedPut(
            self._kit.small.digest, ref.key, ref.parent, self._kit.small.part().pack(), ref.position, ref.tokens, 0, 0,
            1, 0,
        )  # fmt: skip
        return pb.StagedPutRequest(put=wire.staged_put_to_bytes(put._replace(**fields)))

    def put(self, ref: Any, **fields: Any) -> bool:
        return bool(pb.PutResponse.FromString(self.ask(pb.METHOD_PUT_STAGED, self.message(ref, **fields))).stored)


@pytest.fixture
def staged(raw: Any, kit: Any, frames: Any) -> Staged:
    return Staged(raw, kit, frames)


def test_the_second_of_a_kind_is_taken_natively_and_is_the_same(running: Any, local: Client, kit: Any) -> None:
    chain = refs(kit, 6)
    arrays = [fill(local, kit, number + 1) for number in range(6)]
    assert all(local.put(kit.small, ref, array) for ref, array in zip(chain, arrays, strict=True))
    assert (by_python(running), stored(running)) == (1, 6)
    assert not any(local.put(kit.small, ref, array) for ref, array in zip(chain, arrays, strict=True))
    assert stored(running) == 6
    for number, ref in enumerate(chain):
        assert (local.get(kit.small, ref, verify=True) == number + 1).all()
    assert local.lookup(kit.small, chain).tokens == 64 * 6
    assert not any(problem for _, _, problem in local.verify())
    infos = {info.key: info for info in running.store.session("default").chunks().chunks}
    assert {(info.position, info.tokens, info.parent) for info in infos.values()} == {
        (ref.position, ref.tokens, ref.parent) for ref in chain
    }
    assert local.stats()["namespace"]["used"] == running.used() > 0
    assert local.delete(kit.small, [ref.key for ref in chain]) == 6
    assert (local.stats()["namespace"]["used"], running.used()) == (0, 0)


def test_records_put_natively_are_whole_on_disk(tmp_path: Any, kit: Any) -> None:
    config = kvstore.Config(
        dram=DramConfig(64 * MiB, 64 * MiB),
        nvme=kvstore.NvmeConfig(tmp_path, capacity=64 * MiB, segment=16 * MiB, reserve=0),
        server=ServerConfig(listen="127.0.0.1:0"),
    )
    chain = refs(kit, 4)
    with contextlib.closing(Store(config)) as store, contextlib.ExitStack() as stack:
        server = serve(store, config)
        stack.callback(server.stop, 0.2)
        local = stack.enter_context(kvstore.connect("local:" + server.local))
        for number, ref in enumerate(chain):
            assert local.put(kit.small, ref, fill(local, kit, number + 1))
        assert int(store._core.counters["stored"]) == 1
        assert not local.put(kit.small, chain[2], fill(local, kit, 3), ack="synced")  # there already, now on disk, too
    with kvstore.open(config) as again:
        for number, ref in enumerate(chain):
            assert (again.get(kit.small, ref, verify=True) == number + 1).all()


def test_a_put_that_its_client_gave_up_is_not_taken(running: Any, staged: Staged, kit: Any) -> None:
    first, second = refs(kit, 2)
    assert staged.put(first)
    before = running.used()
    with running.store._core.lock:  # the server waits for it before it copies anything
        staged.stream.send(pb.METHOD_PUT_STAGED, staged.message(second).SerializeToString())
        staged.stream.shut()
    kit.eventually(lambda: running.server._service._sessions == {})
    client = Client(running.store.session("default"))
    assert client.contains(kit.small, [first, second]) == [True, False]
    assert running.used() == before


def test_fields_that_no_client_of_ours_sends(running: Any, staged: Staged, kit: Any) -> None:
    first, second = refs(kit, 2)
    assert staged.put(first)
    used = running.used()
    for wrong in (
        {"offset": staged.nbytes + 1}, {"offset": 1 << 63}, {"offset": (1 << 64) - staged.nbytes}, {"staging": 2},
        {"position": 0xFFFFFFFF}, {"tokens": 0}, {"tokens": 65}, {"tokens": 0xFFFFFFFF}, {"part": b"\xff" * 8},
        {"first_valid": 1}, {"ack": 3}, {"ack": 1},
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            staged.put(second, **wrong)
    with pytest.raises(wire.UnknownSpec):
        staged.put(second, spec=bytes(16))
    packed = staged.message(second).SerializeToString()
    for message in (packed[:-1] + b"\1", packed + b"\0", packed[:-1], b"\x12" + packed[1:]):
        staged.stream.send(pb.METHOD_PUT_STAGED, message)
        with pytest.raises(InvalidArgument):
            staged.answer()
    assert (running.used(), by_python(running), stored(running)) == (used, 1, 1)
    with pytest.raises(InvalidArgument, match="is known with"):
        staged.put(first, position=64)
    assert staged.put(second, offset=staged.nbytes)
    assert (by_python(running), stored(running)) == (1, 2)


def test_descriptors_that_come_with_a_put_are_closed(staged: Staged, kit: Any, frames: Any) -> None:
    chain = refs(kit, 24)
    assert staged.put(chain[0])
    with frames.memfd(4096) as descriptor:
        sent = os.fstat(descriptor)
        for ref in chain[1:]:
            assert staged.ask(pb.METHOD_PUT_STAGED, staged.message(ref), [descriptor])
        assert frames.open_here(sent) >= 1
    assert staged.ask(pb.METHOD_STATS, pb.StatsRequest())
    kit.eventually(lambda: frames.open_here(sent) == 0)


def test_whoever_watches_hears_of_every_put(running: Any, local: Client, kit: Any) -> None:
    chain = refs(kit, 5)
    for ref in chain[:2]:
        assert local.put(kit.small, ref, fill(local, kit, 1))
    with contextlib.closing(running.store.session("default").watch()) as events:
        for ref in chain[2:4]:
            assert local.put(kit.small, ref, fill(local, kit, 1))
        assert [next(events).key for _ in range(2)] == [ref.key for ref in chain[2:4]]
    assert by_python(running) == 3
    assert local.put(kit.small, chain[4], fill(local, kit, 1))
    assert (by_python(running), stored(running)) == (3, 5)


def test_a_quota_is_kept_the_general_way(start: Any, kit: Any) -> None:
    running = start(namespaces=(NamespaceConfig("default", quota=4 * MiB),))
    with kvstore.connect("local:" + running.server.local) as local:
        for ref in refs(kit, 4):
            assert local.put(kit.small, ref, fill(local, kit, 1))
    assert by_python(running) == 4


def test_tenants_put_into_extents_of_their_own(running: Any, kit: Any) -> None:
    (ref, *others) = refs(kit, 3)
    with contextlib.ExitStack() as stack:
        places = {}
        for name in ("default", "other"):
            local = stack.enter_context(kvstore.connect("local:" + running.server.local, namespace=name))
            assert all(local.put(kit.small, each, fill(local, kit, len(name))) for each in (*others, ref))
            assert (local.get(kit.small, ref, verify=True) == len(name)).all()
            core = running.store._core
            with core.lock:
                rows = core.index.chunks(0, 100)[0].tolist()
                places[name] = {
                    core.index.placement(each).loc >> 40
                    for row in rows
                    if core.catalog.scopes[core.index.chunk(row).scope].namespace.name == name
                    for each in core.placements(row)
                }
    assert by_python(running) == 2
    assert not places["default"] & places["other"]


def test_many_clients_put_the_same_chunks(running: Any, kit: Any) -> None:
    """One of them stores each, whoever it is, and what the others had copied is free again."""
    chain, took = refs(kit, 60), list[int]()

    def work() -> None:
        with kvstore.connect("local:" + running.server.local) as local:
            array = fill(local, kit, 7)
            took.append(sum(local.put(kit.small, ref, array) for ref in chain))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(took) == len(chain) == stored(running)
    assert not any(problem for *_, problem in running.store.session("default").verify())
    record = kit.small.part_bytes(kit.small.part(), 64) + 4096
    assert running.used() == len(chain) * record


@pytest.mark.parametrize("policy", POLICIES)
def test_when_memory_is_full_room_is_made(kit: Any, policy: str) -> None:
    server_config = ServerConfig(listen="127.0.0.1:0")
    config = kvstore.Config(dram=DramConfig(2 * MiB, 2 * MiB), server=server_config, policy=policy)
    store = Store(config)
    server = serve(store, config)
    try:
        with kvstore.connect("local:" + server.local) as local:
            chain = refs(kit, 100)
            for number, ref in enumerate(chain):
                assert local.put(kit.small, ref, fill(local, kit, number))
            assert (local.get(kit.small, chain[-1], verify=True) == 99).all()
            there = local.contains(kit.small, chain)
            assert there[-1]
            assert not all(there)
            check_policies(store._core)
            stats = local.stats()
            assert stats["counters"]["stored"] == 100
            assert stats["namespace"]["used"] == stats["tiers"]["dram"]["used"] <= 2 * MiB
    finally:
        server.stop(0.2)
        store.close()


def test_a_full_index_lets_go_of_the_coldest(kit: Any) -> None:
    config = kvstore.Config(
        dram=DramConfig(16 * MiB, 16 * MiB), max_chunks=16, server=ServerConfig(listen="127.0.0.1:0")
    )
    store = Store(config)
    server = serve(store, config)
    try:
        with kvstore.connect("local:" + server.local) as local:
            for number, ref in enumerate(refs(kit, 100)):
                assert local.put(kit.small, ref, fill(local, kit, number))
            stats = local.stats()
            assert stats["index"]["chunks"] <= 16
            assert stats["namespace"]["used"] == stats["tiers"]["dram"]["used"]
    finally:
        server.stop(0.2)
        store.close()


def test_a_store_that_is_closed_takes_nothing_more(running: Any, staged: Staged, kit: Any) -> None:
    first, second = refs(kit, 2)
    assert staged.put(first)
    running.store.close()
    with pytest.raises((kvstore.Closed, kvstore.Unavailable)):
        staged.put(second)
