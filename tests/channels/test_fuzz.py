"""Both parsers against arbitrary frames: an error of ours or an end, and everybody else goes on."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.channels.control import get_request, lookup_request
from kvstore.channels.stream import FAILED, MORE, Stream, encode
from kvstore.keys import pack_refs
from kvstore.v1 import kvstore_pb2 as pb

ROUNDS = 400


def mutated(dice: random.Random, message: bytes) -> bytes:
    """A message with some bytes changed, left out, doubled or added."""
    data = bytearray(message)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0 if at < len(data):
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + dice.randrange(1, 9)]
            case 2:
                data[at:at] = data[at : at + dice.randrange(1, 60)]
            case _:
                data[at:at] = os.urandom(dice.randrange(1, 5))
    return bytes(data)


def test_arbitrary_frames_to_a_server(running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    dice = random.Random(11)
    spec, part = kit.small, kit.small.part()
    with running.connect() as client:
        chain = client.chain(spec, range(128))
        client.put(spec, chain.refs[0], kit.block(spec))
        wants = [client.want(spec, chain.refs[0], np.zeros_like(kit.block(spec)))] * 2
        query = kvstore.api.Query(spec, pack_refs(chain.refs), (part,), lease=bytes(16), lease_s=1.0)
        record = pb.Record(key=b"k" * 32, parent=bytes(32), part=part.pack(), tokens=64)
        keys = pb.KeysRequest(spec=spec.digest, keys=b"d" * 32).SerializeToString()
        seeds: list[tuple[int, bytes, int]] = [
            (pb.METHOD_GET, get_request(spec, wants, kvstore.Fidelity.EXACT, True), 0),
            (pb.METHOD_PUT, pb.PutRequest(head=pb.PutRequest.Head(spec=spec.digest, record=record)).SerializeToString(),
             spec.part_bytes(part, 64)),
            (pb.METHOD_LOOKUP, lookup_request(query).SerializeToString(), 0),
            (pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(
                spec=kvstore.wire.spec_to_message(spec)).SerializeToString(), 0),
            (pb.METHOD_RELEASE, pb.ReleaseRequest(leases=bytes(32)).SerializeToString(), 0),
            (pb.METHOD_LIST, pb.ListRequest(cursor=1, limit=9).SerializeToString(), 0),
            (pb.METHOD_PIN, pb.PinRequest(spec=spec.digest, keys=b"d" * 32, ttl_ms=5).SerializeToString(), 0),
            (pb.METHOD_UNPIN, keys, 0), (pb.METHOD_PREFETCH, keys, 0), (pb.METHOD_STATS, b"", 0),
            (pb.METHOD_HINT, pb.HintRequest(spec=spec.digest, keys=b"d" * 64, awaited_ms=5).SerializeToString(), 0),
            (pb.METHOD_DESCRIBE, b"", 0),
        ]  # fmt: skip
        stream: Stream | None = None
        for number in range(ROUNDS):
            if stream is None:
                stream = running.dial()
                kit.register(stream, spec)
            method, message, payload = dice.choice(seeds)
            method = dice.randrange(1 << 16) if dice.random() < 0.05 else method
            payload = dice.choice([0, 1, payload + 1, 70_000]) if dice.random() < 0.3 else payload
            flags = dice.randrange(1 << 16) & ~1 if dice.random() < 0.2 else 0
            stream.send_raw([encode(method, mutated(dice, message), flags, payload), bytes(payload)])
            stream.send(pb.METHOD_DESCRIBE)
            try:
                while (frame := stream.receive()) is not None and frame.method != pb.METHOD_DESCRIBE:
                    stream.skip()
            except kvstore.KVStoreError:
                frame = None
            if frame is None:
                stream.close()
                stream = None
            if number % 50 == 0:
                assert np.array_equal(client.get(spec, chain.refs[0]), kit.block(spec))
        assert died == []  # no connection's thread ended by an error that is not ours
        kit.eventually(lambda: running.readers() == 0)


class Liar:
    """Accepts connections, says Hello, and answers as `reply(frame)` says: encoded frames, or None to end."""

    def __init__(self, reply: Callable[[Any], bytes | None]) -> None:
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"bulk://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            stream = Stream(sock, 5.0)
            with contextlib.suppress(kvstore.KVStoreError):
                while (frame := stream.receive(idle=True)) is not None:
                    stream.skip()
                    hello = pb.HelloResponse(instance=bytes(16)).SerializeToString()
                    said = encode(frame.method, hello) if frame.method == pb.METHOD_HELLO else self._reply(frame)
                    if said is None:
                        break
                    stream.send_raw([said])
            stream.close()


@pytest.fixture
def liar() -> Iterator[Callable[[Callable[[Any], bytes | None]], Liar]]:
    made: list[Liar] = []

    def begin(reply: Callable[[Any], bytes | None]) -> Liar:
        made.append(Liar(reply))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def test_a_client_and_a_server_that_lies(running: Any, kit: Any, liar: Callable[..., Liar]) -> None:
    dice = random.Random(5)
    spec = kit.small
    with running.connect() as honest:
        (ref,) = honest.chain(spec, range(64)).refs
        data = kit.block(spec)
        honest.put(spec, ref, data)
        truth = running.dial()
        kit.register(truth, spec)

    def reply(frame: Any) -> bytes | None:
        """What an honest server says, with changes."""
        truth.send(frame.method, frame.message, flags=frame.flags)
        said = kit.answer(truth)
        payload = memoryview(bytearray(said.payload))
        truth.read_into(payload)
        message, method, flags, nbytes = said.message, said.method, said.flags, len(payload)
        if frame.method != pb.METHOD_REGISTER_SPEC:
            match dice.randrange(8):
                case 0 | 1 | 2:
                    message = mutated(dice, message)
                case 3:
                    method = dice.choice([0, 1, 4, 6, 20, 21, 65535])
                case 4:
                    flags ^= dice.choice([FAILED, MORE])
                case 5:
                    nbytes = dice.choice([0, 1, nbytes + 1, 1 << 41])
                case 6:
                    return None
                case _ if nbytes:
                    payload[dice.randrange(nbytes)] ^= 1
        return encode(method, message, flags, nbytes) + bytes(payload)

    url, right = liar(reply).url, 0
    for number in range(ROUNDS // 4):
        out = np.zeros_like(data)
        with kvstore.connect(url, timeout=0.2, retries=0) as client:
            acts: list[Callable[[Any], Any]] = [
                lambda client, out=out: client.get(spec, ref, out=out),
                lambda client: client.lookup(spec, [ref]),
                lambda client: client.stats(),
                lambda client: client.describe(),
                lambda client: list(client.page().chunks),
            ]
            try:
                acts[number % 2 if number % 4 < 2 else number % 5](client)
            except kvstore.KVStoreError:
                continue
        if out.any():
            assert np.array_equal(out, data)
            right += 1
    assert right > 0
