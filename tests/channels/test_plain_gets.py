"""Gets that native code answers: the bytes of Python's answers, and the same care for memory that is being sent."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError

import kvstore
from kvstore import Fidelity
from kvstore.channels.control import get_request, plain_request
from kvstore.channels.stream import Stream
from kvstore.keys import ChunkRef
from kvstore.places import pack_items
from kvstore.server import streams
from kvstore.v1 import kvstore_pb2 as pb
from tests.mutations import mutations

MiB = 1 << 20


def native(running: Any) -> int:
    """How many gets native code has answered."""
    return int(running.store._core.catalog.namespaces["default"].tally.hits_dram)


def request(kit: Any, ref: ChunkRef, spec: Any = None) -> bytes:
    spec = spec or kit.small
    return plain_request(spec, pack_items([(ref, spec.part())]))


def ask(stream: Stream, message: bytes, items: int = 1) -> list[tuple[int, bytes, bytes]]:
    """Flags, message and payload of every answer to a get."""
    stream.send(pb.METHOD_GET, message)
    found: list[tuple[int, bytes, bytes]] = []
    for _ in range(items):
        frame = stream.receive()
        assert frame is not None
        payload = bytearray(frame.payload)
        stream.read_into(memoryview(payload))
        found.append((frame.flags, frame.message, bytes(payload)))
        if frame.flags:
            break
    return found


def taught(running: Any, kit: Any, message: bytes) -> Stream:
    """A connection that has been answered by Python once."""
    stream: Stream = running.dial()
    kit.register(stream, kit.small)
    ask(stream, message)
    return stream


@pytest.fixture
def stored(running: Any, kit: Any) -> list[ChunkRef]:
    with running.connect() as client:
        refs = list(client.chain(kit.small, range(256)).refs)
        for seed, ref in enumerate(refs[:3]):
            client.put(kit.small, ref, kit.block(kit.small, seed))
    return refs


def test_a_plain_request_is_the_message_that_protobuf_writes(kit: Any) -> None:
    ref = ChunkRef(b"k" * 32, b"p" * 32, 64, 64)
    want = kvstore.api.Want(ref, kit.small.part(), memoryview(b""))
    assert plain_request(kit.small, pack_items([(ref, kit.small.part())])) == get_request(
        kit.small, [want], Fidelity.EXACT, False
    )


def test_the_answer_is_pythons_to_the_byte(running: Any, kit: Any, stored: list[ChunkRef]) -> None:
    for number, ref in enumerate(stored[:3]):
        stream = running.dial()
        kit.register(stream, kit.small)
        first = ask(stream, request(kit, ref))
        assert native(running) == number
        assert ask(stream, request(kit, ref)) == first
        assert native(running) == number + 1
        assert first[0][2] == kit.block(kit.small, number).tobytes()
    kit.eventually(lambda: running.readers() == 0)


def test_what_is_not_plain_is_answered_all_the_same(running: Any, kit: Any, stored: list[ChunkRef]) -> None:
    part, ref = kit.small.part(), stored[0]
    want = kvstore.api.Want(ref, part, memoryview(b""))
    layers = kvstore.api.Want(ref, part, memoryview(b""), (1, 3))
    messages = [
        (request(kit, stored[3]), 1),  # a miss
        (request(kit, ChunkRef(ref.key, ref.parent, 64, 64)), 1),  # another position
        (get_request(kit.small, [want], Fidelity.LOSSY, False), 1),
        (get_request(kit.small, [want], Fidelity.EXACT, True), 1),
        (get_request(kit.small, [layers], Fidelity.EXACT, False), 1),
        (get_request(kit.small, [want, want], Fidelity.EXACT, False), 2),
        (pb.GetRequest(spec=b"u" * 16, items=pack_items([(ref, part)])).SerializeToString(), 1),
        (pb.GetRequest(spec=kit.small.digest, items=b"i" * 47).SerializeToString(), 1),
    ]
    stream = taught(running, kit, request(kit, ref))
    for message, items in messages:
        fresh = running.dial()  # whose first get is Python's
        kit.register(fresh, kit.small)
        assert ask(stream, message, items) == ask(fresh, message, items)
        fresh.close()
    assert native(running) == 0
    ask(stream, request(kit, ref))
    assert native(running) == 1


def test_mutated_requests_are_answered_as_python_answers_them(running: Any, kit: Any, stored: list[ChunkRef]) -> None:
    plain = request(kit, stored[0])
    stream = taught(running, kit, plain)
    for message in mutations(plain, 5, 150):
        fresh = running.dial()
        kit.register(fresh, kit.small)
        try:
            items = max(1, len(pb.GetRequest.FromString(message).items) // 48)
        except DecodeError:
            items = 1
        assert ask(stream, message, items) == ask(fresh, message, items)
        fresh.close()


@pytest.mark.parametrize("running", [{"policy": "lru"}], indirect=True, ids=["lru"])
def test_a_get_counts_as_a_use_whoever_answers(running: Any, kit: Any, stored: list[ChunkRef]) -> None:
    core = running.store._core

    def order() -> list[bytes]:
        with core.lock:
            rows = core.usage.policy(0, core.catalog.namespaces["default"]).victims()
            return [core.index.chunk(row).key for row in rows]

    stream = taught(running, kit, request(kit, stored[1]))
    assert order() == [stored[each].key for each in (2, 0, 1)]
    ask(stream, request(kit, stored[0]))
    assert order() == [stored[each].key for each in (2, 1, 0)]
    assert native(running) == 1
    with running.connect() as client:
        with client.lookup(kit.small, stored, lease_s=5) as hit:
            told = order()
            ask(stream, request(kit, hit.refs[0]))
            assert order() == told  # the look-up has told of what it leases
        with pytest.raises(kvstore.NotFound):
            client.get(kit.small, stored[3])
        counters = client.stats()["counters"]
    assert counters["hits_dram"] == 3
    assert counters["misses"] == 1


@pytest.fixture
def large(running: Any, kit: Any) -> list[ChunkRef]:
    """Four chunks of 8 MiB of which two are stored."""
    with running.connect() as client:
        refs = list(client.chain(kit.large, range(1024)).refs)
        for seed, ref in enumerate(refs[:2]):
            client.put(kit.large, ref, kit.block(kit.large, seed))
    return refs


def slow(running: Any, kit: Any, ref: ChunkRef) -> Stream:
    """A connection on which native code is sending a large chunk to somebody who does not read."""
    stream: Stream = running.dial()
    stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    kit.register(stream, kit.large)
    ask(stream, request(kit, ref, kit.large))
    kit.eventually(lambda: running.readers() == 0)
    before = native(running)
    stream.send(pb.METHOD_GET, request(kit, ref, kit.large))
    kit.eventually(lambda: running.readers() == 1)
    assert native(running) == before + 1
    return stream


def finish(stream: Stream) -> bytes:
    frame = stream.receive()
    assert frame is not None
    payload = bytearray(frame.payload)
    stream.read_into(memoryview(payload))
    return bytes(payload)


def test_a_chunk_that_is_deleted_while_it_is_sent(running: Any, kit: Any, large: list[ChunkRef]) -> None:
    stream, before = slow(running, kit, large[0]), running.used()
    with running.connect() as client:
        assert client.delete(kit.large, [large[0].key]) == 1
        assert client.contains(kit.large, large[:1]) == [False]
        assert running.used() == before  # what is being sent is nobody else's yet
        for seed in range(2, 4):
            client.put(kit.large, large[seed], kit.block(kit.large, seed))
    assert finish(stream) == kit.block(kit.large, 0).tobytes()
    kit.eventually(lambda: running.readers() == 0)
    kit.eventually(lambda: running.store.session("default").describe().chunks == 3)


def test_a_chunk_is_not_evicted_while_it_is_sent(running: Any, kit: Any, large: list[ChunkRef]) -> None:
    stream = slow(running, kit, large[0])
    with running.connect(timeout=20) as client:
        refs = client.chain(kit.large, range(256 * 12), kvstore.Extras(salt="other")).refs
        for seed, ref in enumerate(refs):  # more than there is room for
            client.put(kit.large, ref, kit.block(kit.large, 10 + seed))
        assert client.contains(kit.large, large[:2]) == [True, False]
    assert finish(stream) == kit.block(kit.large, 0).tobytes()
    kit.eventually(lambda: running.readers() == 0)


@pytest.mark.parametrize("way", ["stops reading", "closes"])
def test_a_client_that_does_not_take_what_it_asked_for(
    running: Any, kit: Any, large: list[ChunkRef], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(streams, "STALL_S", 1.0)
    stream = slow(running, kit, large[0])
    if way == "closes":
        stream.close()
    kit.eventually(lambda: running.readers() == 0)
    with running.connect() as client:
        assert np.array_equal(client.get(kit.large, large[0]), kit.block(kit.large, 0))


def test_a_server_that_stops_while_it_sends(start: Callable[..., Any], kit: Any) -> None:
    running = start()
    with running.connect() as client:
        (ref,) = client.chain(kit.large, range(256)).refs
        client.put(kit.large, ref, kit.block(kit.large))
    slow(running, kit, ref)
    running.server.stop(0.2)
    assert running.readers() == 0
    running.store.close()


def test_whoever_waits_for_readers_is_woken(
    running: Any, kit: Any, stored: list[ChunkRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    core, woken = running.store._core, list[bool]()
    monkeypatch.setattr(core.room, "wake", lambda: woken.append(True))
    stream = taught(running, kit, request(kit, stored[0]))
    ask(stream, request(kit, stored[0]))
    kit.eventually(lambda: running.readers() == 0)
    assert woken == []
    with core.lock:
        core.lock.awaited += 1
    ask(stream, request(kit, stored[0]))
    kit.eventually(lambda: woken == [True])
    with core.lock:
        core.lock.awaited -= 1
    assert native(running) == 2


@pytest.mark.parametrize("at", [0, 40, 100, 260, 1000], ids=str)
def test_a_damaged_header_is_not_sent(running: Any, kit: Any, stored: list[ChunkRef], at: int) -> None:
    core = running.store._core
    stream = taught(running, kit, request(kit, stored[0]))
    with core.lock:
        chunk = core.index.find(0, stored[0].key)
        (placement,) = core.placements(chunk, 0)
        location = core.index.placement(placement).loc
    memory = core.dram.view(location, at, 1)
    memory[0] ^= 1
    ((flags, message, payload),) = ask(stream, request(kit, stored[0]))
    head = pb.GetResponse.FromString(message).head
    assert (flags, payload, head.error) == (0, b"", "Corrupt")
    memory[0] ^= 1
    ((flags, message, payload),) = ask(stream, request(kit, stored[0]))
    assert payload == kit.block(kit.small, 0).tobytes()
    kit.eventually(lambda: running.readers() == 0)


def test_damaged_payload_is_told_and_taken_out(running: Any, kit: Any, stored: list[ChunkRef]) -> None:
    core = running.store._core
    with running.connect() as client:
        for ref in stored[:2]:
            client.get(kit.small, ref)
        with core.lock:
            (placement,) = core.placements(core.index.find(0, stored[0].key), 0)
            location = core.index.placement(placement).loc
        core.dram.view(location, 4096 + 1000, 1)[0] ^= 1
        with pytest.raises(kvstore.Corrupt):
            client.get(kit.small, stored[0])  # sent, found damaged, asked for once more, quarantined
        with pytest.raises(kvstore.NotFound):
            client.get(kit.small, stored[0])
        assert np.array_equal(client.get(kit.small, stored[1]), kit.block(kit.small, 1))
