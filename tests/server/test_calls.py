"""Every method of the interface through the SDK, against a real store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import ChunkRef, Client, Want


def test_put_look_up_get(client: Client, kit: Any) -> None:
    chain = client.chain(kit.small, range(150))
    blocks = [kit.block(kit.small, i, ref.tokens) for i, ref in enumerate(chain.refs)]
    assert [client.put(kit.small, ref, each) for ref, each in zip(chain.refs, blocks, strict=True)] == [True] * 3
    assert client.put(kit.small, chain.refs[0], blocks[0]) is False
    hit = client.lookup(kit.small, chain)
    assert (hit.tokens, hit.refs) == (150, chain.refs)
    for ref, each in zip(chain.refs, blocks, strict=True):
        assert np.array_equal(client.get(kit.small, ref), each)
    assert np.array_equal(client.get(kit.small, chain.refs[0], layers=(1, 3), verify=True), blocks[0][1:3])
    assert client.contains(kit.small, chain.refs[:1]) == [True]


def test_describe_and_stats(client: Client, kit: Any) -> None:
    told = client.describe()
    assert (told.version, told.namespace, told.tiers[0]) == (kvstore.__version__, "default", "dram")
    assert client.stats()["namespace"]["name"] == "default"


def test_large_parts_come_in_pieces(client: Client, kit: Any) -> None:
    (ref,) = client.chain(kit.large, range(256)).refs
    data = kit.block(kit.large)
    assert data.nbytes > 3 << 20
    client.put(kit.large, ref, data)
    out = np.zeros_like(data)
    client.get(kit.large, ref, out=out, verify=True)
    assert np.array_equal(out, data)


def test_get_many_reports_each_item(client: Client, kit: Any) -> None:
    refs = client.chain(kit.small, range(192)).refs
    data = kit.block(kit.small)
    client.put(kit.small, refs[0], data)
    client.put(kit.small, refs[2], data)
    outs = [np.zeros_like(data) for _ in refs]
    wants = [client.want(kit.small, ref, out) for ref, out in zip(refs, outs, strict=True)]
    first, second, third = client.get_many(kit.small, wants)
    assert first is None
    assert isinstance(second, kvstore.NotFound)
    assert third is None
    assert [np.array_equal(out, data) for out in outs] == [True, False, True]
    assert client.get_many(kit.small, []) == []
    for out in outs:
        out.fill(0)
    seen = []
    for index, outcome in client.get_each(kit.small, wants):
        assert (outcome is None) == bool((outs[index] == data).all())
        seen.append((index, type(outcome)))
    assert sorted(seen, key=lambda each: each[0]) == [(0, type(None)), (1, kvstore.NotFound), (2, type(None))]
    assert list(client.get_each(kit.small, [])) == []


def test_layers_come_one_by_one(client: Client, kit: Any) -> None:
    refs, part = client.chain(kit.large, range(512)).refs, kit.large.part()
    blocks = [kit.block(kit.large, seed) for seed in range(2)]
    for ref, block in zip(refs, blocks, strict=True):
        client.put(kit.large, ref, block)
    outs = np.zeros((2, *kit.large.part_shape(part, 256)), np.uint16)
    wants = [
        client.want(kit.large, ref, outs[chunk, layer : layer + 1], layers=(layer, layer + 1))
        for layer in range(16)
        for chunk, ref in enumerate(refs)
    ]
    for index, outcome in client.get_each(kit.large, wants, verify=True):
        layer, chunk = divmod(index, 2)
        assert outcome is None
        assert np.array_equal(outs[chunk, layer], blocks[chunk][layer])
    assert np.array_equal(outs, blocks)


def test_leaving_off_early_hurts_nothing(running: Any, client: Client, kit: Any) -> None:
    chain = client.chain(kit.large, range(1024))
    data = kit.block(kit.large)
    for ref in chain.refs:
        client.put(kit.large, ref, data)
    assert client.lookup(kit.large, chain, lease_s=30).lease
    outs = [np.zeros_like(data) for _ in chain.refs]
    wants = [client.want(kit.large, ref, out) for ref, out in zip(chain.refs, outs, strict=True)]
    each: Any = client.get_each(kit.large, wants)
    assert next(each) == (0, None)
    each.close()
    assert np.array_equal(outs[0], data)
    assert running.holds()
    assert client.get_many(kit.large, wants) == [None] * 4
    core = running.store._core
    kit.eventually(lambda: all(core.index.placement(each).readers == 0 for each in placements(core)))


def test_leases_end_by_release_and_with_the_client(running: Any, client: Client, kit: Any) -> None:
    chain = client.chain(kit.small, range(64))
    client.put(kit.small, chain.refs[0], kit.block(kit.small))
    with client.lookup(kit.small, chain, lease_s=30) as hit:
        assert hit.lease
        assert running.holds()
    kit.eventually(lambda: not running.holds())
    client.lookup(kit.small, chain, lease_s=30)
    assert running.holds()
    client.close()
    kit.eventually(lambda: not running.holds())


def test_delete_pin_prefetch(client: Client, kit: Any) -> None:
    (ref,) = client.chain(kit.small, range(64)).refs
    client.put(kit.small, ref, kit.block(kit.small))
    assert client.pin(kit.small, [ref.key, bytes(32)], 60) == 1
    assert next(client.list()).pinned_until_ms > 0
    assert client.unpin(kit.small, [ref.key]) == 1
    assert next(client.list()).pinned_until_ms == 0
    assert client.prefetch(kit.small, [ref.key]) == 1
    assert client.delete(kit.small, [ref.key]) == 1
    assert client.delete(kit.small, [ref.key]) == 0
    with pytest.raises(kvstore.NotFound, match=ref.key.hex()):
        client.get(kit.small, ref)


def test_list_in_pages_and_verify(client: Client, kit: Any) -> None:
    refs = client.chain(kit.small, range(64 * 7)).refs
    for ref in refs:
        client.put(kit.small, ref, kit.block(kit.small))
    page = client.page(limit=3)
    assert len(page.chunks) == 3
    assert page.cursor
    found, cursor = list(page.chunks), page.cursor
    while cursor:
        page = client.page(cursor, 3)
        found, cursor = found + list(page.chunks), page.cursor
    assert {each.key for each in found} == {ref.key for ref in refs}
    assert [each.parent for each in found if each.key == refs[1].key] == [refs[0].key]
    assert [problem for _, _, problem in client.verify()] == [""] * 7


def test_a_reservation_is_a_buffer_until_it_is_committed(client: Client, kit: Any) -> None:
    (ref,) = client.chain(kit.small, range(64)).refs
    data = kit.block(kit.small)
    with client.reserve(kit.small, ref) as reservation:
        reservation.data[:] = data.tobytes()
    assert client.contains(kit.small, [ref]) == [False]
    with client.reserve(kit.small, ref) as reservation:
        reservation.data[:] = data.tobytes()
        assert reservation.commit() is True
    assert np.array_equal(client.get(kit.small, ref), data)


@pytest.mark.parametrize("channel", ["grpc", "bulk"], indirect=True)
def test_views_need_an_embedded_store(client: Client, kit: Any) -> None:
    with pytest.raises(kvstore.InvalidArgument, match="embedded"):
        client.view(kit.small, ChunkRef(bytes(32), bytes(32), 0, 64))


def test_watch_tells_what_happens(client: Client, kit: Any) -> None:
    watch: Any = client.watch()
    (ref,) = client.chain(kit.small, range(64)).refs
    client.put(kit.small, ref, kit.block(kit.small))
    event = next(watch)
    assert (event.kind, event.key, event.spec, event.part) == ("stored", ref.key, kit.small.digest, kit.small.part())
    threading.Timer(0.2, watch.close).start()
    assert list(watch) == []


def test_a_slow_watcher_holds_nothing_up_and_is_told_of_its_loss(
    running: Any, client: Client, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.events._BACKLOG", 50)
    watch: Any = client.watch()
    hub = running.store._core.events
    key, spec, part = bytes(32), kit.small.digest, kit.small.part()
    for _ in range(60_000):
        hub.emit("stored", "default", key, spec, part, "dram")
    assert client.describe().namespace == "default"
    kinds = set()
    while "lost" not in kinds:
        kinds.add(next(watch).kind)
    watch.close()
    kit.eventually(lambda: not hub._watchers)


def test_a_spec_is_registered_again_after_the_server_forgot_it(running: Any, client: Client, kit: Any) -> None:
    (ref,) = client.chain(kit.small, range(64)).refs
    client.put(kit.small, ref, kit.block(kit.small))
    running.server._service.session("default").specs.clear()
    assert np.array_equal(client.get(kit.small, ref), kit.block(kit.small))
    running.server._service.session("default").specs.clear()
    assert client.put(kit.small, ref, kit.block(kit.small)) is False


def test_bytes_damaged_in_memory_are_corrupt_then_a_miss(running: Any, client: Client, kit: Any) -> None:
    (ref,) = client.chain(kit.small, range(64)).refs
    client.put(kit.small, ref, kit.block(kit.small))
    session = running.store.session("default")
    with session.view(kit.small, ref, kit.small.part()) as view:
        memory = np.frombuffer(view.data, np.uint8)
        flip(memory)
        del memory  # an array on a view keeps its bytes in use
    with pytest.raises(kvstore.Corrupt, match=ref.key.hex()):
        client.get(kit.small, ref, verify=True)
    with pytest.raises(kvstore.NotFound):
        client.get(kit.small, ref, verify=True)


def placements(core: Any) -> list[int]:
    with core.lock:
        rows, _ = core.index.chunks(0, 1000)
        return [each for row in rows.tolist() for each in core.placements(row)]


def flip(memory: np.ndarray[Any, Any]) -> None:
    """Change one byte of memory that this process may write but was given read-only."""
    import ctypes

    address = memory.__array_interface__["data"][0] + 1000
    ctypes.memset(address, int(memory[1000]) ^ 0xFF, 1)


def test_a_wrong_destination_is_refused_before_anything_is_sent(client: Client, kit: Any) -> None:
    ref = ChunkRef(bytes(32), bytes(32), 0, 64)
    with pytest.raises(kvstore.SpecMismatch, match="bytes do not fit"):
        client.get(kit.small, ref, out=np.zeros(5, np.uint8))


def test_windows_and_parts_travel(start: Callable[..., Any]) -> None:
    spec = kvstore.KVSpec(
        "gemma", "r1", "bfloat16",
        (kvstore.KVGroup((0, 2), 2, 16), kvstore.KVGroup((1, 3), 2, 16, window=100)),
        rope={"theta": 1e6, "scaling": None}, chunk_tokens=64, tp_size=2, pipeline=((0, 2), (2, 4)),
    )  # fmt: skip
    with kvstore.connect(start().server.address) as client:
        chain = client.chain(spec, range(256))
        for ref in chain.refs:
            for part in spec.parts():
                data = np.full(spec.part_shape(part, ref.tokens), ref.position + part.rank, np.uint16)
                assert client.put(spec, ref, data, part=part, first_valid=0)
        hit = client.lookup(spec, chain)
        assert hit.tokens == 256
        part = spec.part(1, 1, 1)
        outs = [np.zeros(spec.part_shape(part, 64), np.uint16) for _ in chain.refs]
        wants: list[Want] = [client.want(spec, ref, out, part=part) for ref, out in zip(chain.refs, outs, strict=True)]
        assert client.get_many(spec, wants) == [None] * 4
        assert [int(out.max()) for out in outs] == [1, 65, 129, 193]
