"""Clients that do wrong: each is told so or put out, and costs nobody else anything."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import _native, wire
from kvstore.channels.control import get_request
from kvstore.channels.stream import FAILED, HEAD, ONE_WAY, encode
from kvstore.server import streams
from kvstore.v1 import kvstore_pb2 as pb


def failure(frame: Any) -> Exception:
    assert frame.flags & FAILED
    return wire.failure_from_message(pb.Failure.FromString(frame.message))


def head_of(length: int, method: int, payload: int) -> bytes:
    head = HEAD.pack(0, length, method, 0, payload, 0)[:-8]
    return head + _native.xxh3_64(head).to_bytes(8, "little")


def put_request(kit: Any, spec: Any, key: bytes = b"k" * 32) -> bytes:
    record = pb.Record(key=key, parent=bytes(32), part=spec.part().pack(), tokens=spec.chunk_tokens)
    encoded: bytes = pb.PutRequest(head=pb.PutRequest.Head(spec=spec.digest, record=record)).SerializeToString()
    return encoded


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: kvstore\r\n\r\n" * 4,
        bytes(100),
        b"\xff" * 100,
        encode(pb.METHOD_STATS),
        encode(pb.METHOD_HELLO, b"\xff\xff nonsense"),
        encode(pb.METHOD_HELLO, b"", 0, 5) + b"12345",
        encode(pb.METHOD_HELLO, pb.HelloRequest(protocol=99, session=bytes(16)).SerializeToString()),
        encode(pb.METHOD_HELLO, pb.HelloRequest(protocol=1, session=b"short").SerializeToString()),
        encode(pb.METHOD_HELLO, pb.HelloRequest(protocol=1, session=bytes(16), namespace="x").SerializeToString()),
        head_of(1 << 20, pb.METHOD_HELLO, 0),
    ],
)
def test_what_does_not_begin_well_is_told_and_ended(running: Any, kit: Any, first: bytes) -> None:
    stream = running.dial(hello=False)
    stream.send_raw([first])
    failure(kit.answer(stream))
    with contextlib.suppress(kvstore.Unavailable):  # reset, where not all of it was read
        assert stream.receive() is None
    stream.close()
    kit.eventually(lambda: not running.server._channels._servers[1]._open)


def test_silence_instead_of_hello_is_ended(running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HELLO_S", 0.2)
    stream = running.dial(hello=False)
    assert "in time" in str(failure(kit.answer(stream)))
    assert stream.receive() is None


def test_half_a_message_and_half_a_payload_leave_nothing(running: Any, kit: Any) -> None:
    for cut in (encode(pb.METHOD_STATS, b"", 0)[:20], head_of(1000, pb.METHOD_STATS, 0) + bytes(10)):
        stream = running.dial()
        stream.send_raw([cut])
        stream.close()
    stream = running.dial()
    kit.register(stream, kit.large)
    nbytes = kit.large.part_bytes(kit.large.part(), 256)
    stream.send_raw([encode(pb.METHOD_PUT, put_request(kit, kit.large), 0, nbytes), bytes(nbytes // 2)])
    kit.eventually(lambda: running.used() >= nbytes)
    stream.close()
    kit.eventually(lambda: running.used() == 0)
    kit.eventually(lambda: running.sessions() == 0)


@pytest.mark.parametrize("length", [(1 << 32) - 1, 5 << 20])
def test_a_length_of_4_gib_costs_no_memory(running: Any, kit: Any, length: int) -> None:
    stream = running.dial()
    stream.send_raw([head_of(length, pb.METHOD_STATS, 0)])
    assert "more than may come" in str(failure(kit.answer(stream)))
    assert stream.receive() is None


def test_mistakes_within_the_protocol_leave_the_connection_usable(running: Any, kit: Any) -> None:
    stream = running.dial()
    nbytes = kit.small.part_bytes(kit.small.part(), 64)
    put = put_request(kit, kit.small)
    wrong: list[tuple[int, bytes, int, type[Exception]]] = [
        (99, b"", 0, kvstore.InvalidArgument),
        (99, b"", 3 << 20, kvstore.InvalidArgument),
        (pb.METHOD_STATS, b"", 1000, kvstore.InvalidArgument),
        (pb.METHOD_LOOKUP, b"\xff\xff", 0, kvstore.InvalidArgument),
        (pb.METHOD_PUT, put, nbytes, wire.UnknownSpec),
        (pb.METHOD_GET, pb.GetRequest(spec=bytes(16)).SerializeToString(), 0, wire.UnknownSpec),
    ]
    registered: list[tuple[int, bytes, int, type[Exception]]] = [
        (pb.METHOD_PUT, put, nbytes + 1, kvstore.InvalidArgument),
        (pb.METHOD_PUT, put, 5 << 20, kvstore.InvalidArgument),
        (pb.METHOD_PUT, put, 0, kvstore.InvalidArgument),
        (pb.METHOD_PUT, b"", 10, wire.UnknownSpec),
        (pb.METHOD_PUT, b"\xff", 10, kvstore.InvalidArgument),
        (pb.METHOD_GET, pb.GetRequest(spec=kit.small.digest).SerializeToString(), 0, kvstore.InvalidArgument),
    ]
    for cases in (wrong, registered):
        for method, message, payload, kind in cases:
            stream.send_raw([encode(method, message, 0, payload), bytes(payload)])
            error = failure(kit.answer(stream))
            assert isinstance(error, kind | kvstore.InvalidArgument), (method, error)
            stream.send(pb.METHOD_STATS, b"", flags=ONE_WAY)
            stream.send(pb.METHOD_DESCRIBE)
            assert pb.DescribeResponse.FromString(kit.answer(stream).message).namespace == "default"
        kit.register(stream, kit.small)
    stream.send_raw([encode(pb.METHOD_PUT, put, 0, nbytes), bytes(nbytes)])
    assert pb.PutResponse.FromString(kit.answer(stream).message).stored
    stream.close()


def test_a_payload_of_terabytes_is_refused_unread(running: Any, kit: Any) -> None:
    stream = running.dial()
    stream.send_raw([encode(pb.METHOD_PUT, put_request(kit, kit.small), 0, 1 << 39), bytes(1000)])
    assert isinstance(failure(kit.answer(stream)), wire.UnknownSpec)
    with pytest.raises(kvstore.Unavailable):  # noqa: PT012
        for _ in range(1000):
            stream.send_raw([bytes(1 << 20)])
    stream.close()


def test_a_refused_put_tells_the_client_why(running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_SKIP", 1 << 20)
    huge = kvstore.KVSpec.dense("huge", layers=16, kv_heads=8, head_dim=512, chunk_tokens=512)
    with running.connect() as client:
        (ref,) = client.chain(huge, range(512)).refs
        with pytest.raises(kvstore.TooLarge):
            client.put(huge, ref, np.zeros(huge.part_shape(huge.part(), 512), np.uint16))
        assert client.describe().chunks == 0


def test_bytes_that_do_not_match_their_checksums_are_not_stored(running: Any, kit: Any) -> None:
    with running.connect() as client:
        (ref,) = client.chain(kit.small, range(64)).refs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kvstore.channels.control.digests", lambda spec, offer: np.zeros((4, 16), np.uint8))
            with pytest.raises(kvstore.Corrupt):
                client.put(kit.small, ref, kit.block(kit.small))
        assert client.contains(kit.small, [ref]) == [False]
        assert client.put(kit.small, ref, kit.block(kit.small)) is True


def test_a_client_that_stops_reading_holds_up_nobody(running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STALL_S", 1.0)
    with running.connect() as client:
        refs = client.chain(kit.large, range(1024)).refs
        for ref in refs:
            client.put(kit.large, ref, kit.block(kit.large))
        outs = [client.want(kit.large, ref, np.empty_like(kit.block(kit.large))) for ref in refs]
        stream = running.dial()
        stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        stream.send(pb.METHOD_GET, get_request(kit.large, outs, kvstore.Fidelity.EXACT, False))
        kit.eventually(lambda: running.readers() > 0)
        assert np.array_equal(client.get(kit.large, refs[0]), kit.block(kit.large))
        kit.eventually(lambda: running.readers() == 0)  # given up after STALL_S
        stream.close()


def test_a_thousand_connections_leave_nothing(running: Any, kit: Any) -> None:
    host, _, port = running.server.bulk.rpartition(":")

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with running.connect() as client:
        client.describe()
        kit.eventually(lambda: not running.store._core.dram.is_growing)  # extents have descriptors too
        before = (descriptors(), threading.active_count(), running.sessions())
        for number in range(1000):
            with socket.create_connection((host, int(port))) as sock:
                if number % 3 == 1:
                    sock.sendall(os.urandom(number % 50))
                if number % 3 == 2:  # reset in place of an end
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def are_gone() -> bool:
            """Threads of earlier tests may have ended meanwhile."""
            now = (descriptors(), threading.active_count(), running.sessions())
            return all(each <= then for each, then in zip(now, before, strict=True))

        kit.eventually(are_gone)
        assert client.describe().namespace == "default"


def test_too_many_connections_are_told(start: Callable[..., Any], kit: Any) -> None:
    running = start(max_connections=3)
    held = [running.dial() for _ in range(3)]
    with running.connect(retries=0) as client, pytest.raises(kvstore.Shed, match="max_connections") as caught:
        client.describe()
    assert caught.value.reason == "connections"
    for stream in held:
        stream.close()
    kit.eventually(lambda: running.sessions() == 0)
    with running.connect() as client:
        client.describe()


def test_connections_of_one_client_meet_in_one_session(running: Any, kit: Any) -> None:
    for _ in range(20):
        with running.connect() as client:
            ready, failures = threading.Barrier(6), list[BaseException]()

            def call(client: Any = client, ready: Any = ready, failures: Any = failures) -> None:
                ready.wait()
                try:
                    client.describe()
                except (kvstore.KVStoreError, StopIteration) as error:
                    failures.append(error)

            threads = [threading.Thread(target=call) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert failures == []
            assert running.sessions() == 1
        kit.eventually(lambda: running.sessions() == 0)


def test_stopping_a_server_ends_its_connections(start: Callable[..., Any]) -> None:
    running = start()
    with running.connect(retries=0, timeout=30) as client:
        watch = client.watch()
        failures: list[BaseException] = []

        def read() -> None:
            try:
                next(watch)
            except (kvstore.KVStoreError, StopIteration) as error:
                failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.05)
        running.server.stop(0.1)
        thread.join(30)
        assert [type(each) for each in failures] in ([kvstore.Unavailable], [StopIteration])
        with pytest.raises(kvstore.Unavailable):
            client.describe()
