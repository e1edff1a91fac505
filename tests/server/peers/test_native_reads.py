"""Reads of other servers that native code answers: bytes, refusals and care for memory as where Python answers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError

import kvstore
from kvstore import Config, DramConfig, NamespaceConfig, ServerConfig
from kvstore.channels.options import Options, tls_context
from kvstore.channels.peer import PeerLines, split_address
from kvstore.channels.stream import FAILED, Stream
from kvstore.config import PeersConfig
from kvstore.errors import Corrupt, KVStoreError, NotFound
from kvstore.keys import ChunkRef
from kvstore.namespace import namespace_digest
from kvstore.objects import NAMESPACE, Objects
from kvstore.record import BLOCK
from kvstore.server import serve, streams
from kvstore.store import Store
from kvstore.tiers.base import Name
from kvstore.tiers.remote.names import pack
from kvstore.tiers.remote.object_names import object_key
from kvstore.tiers.remote.peer import PeerEngine
from kvstore.v1 import kvstore_pb2 as pb
from tests.mutations import mutations
from tests.store.test_leases import until

MiB = 1 << 20
WITHIN_S = 20.0
TOKEN = "of-peers"
RANGES = ((0, None), (0, 1), (4095, 2), (4096, 131072), (135167, 1), (100, 0), (70_001, 12_345))
LONG = kvstore.KVSpec.dense("long", layers=16, kv_heads=8, head_dim=128, chunk_tokens=512)  # 32 MiB


class Running:
    """A store of this process that takes peers."""

    def __init__(self, server: Any = None, policy: str = Config.policy) -> None:
        config = Config(
            dram=DramConfig(256 * MiB, 64 * MiB),
            peers=PeersConfig(token=TOKEN),
            namespaces=(NamespaceConfig("default"),),
            server=ServerConfig(listen="127.0.0.1:0", **(server or {})),
            policy=policy,
        )
        self.store = Store(config)
        self.server = serve(self.store, config)
        self.client = kvstore.Client(self.store.session("default"))
        self._lines: list[PeerLines] = []

    def peer(self, context: Any = None) -> PeerLines:
        host, port = split_address(self.server.bulk)
        self._lines.append(PeerLines(host, port, token=TOKEN, context=context, name="the server"))
        return self._lines[-1]

    def engine(self) -> PeerEngine:
        return PeerEngine(f"kvstore://{self.server.bulk}", token=TOKEN)

    def native(self, namespace: str = "default") -> int:
        """How many reads native code has answered: of records, or of objects."""
        tally = self.store.core.catalog.namespaces[namespace].tally
        return int(tally.hits_dram if namespace == NAMESPACE else tally.peer_reads)

    def readers(self) -> int:
        core = self.store.core
        with core.lock:
            rows = core.index.chunks(0, 100)[0].tolist()
            return sum(core.index.placement(each).readers for row in rows for each in core.placements(row))

    def end(self) -> None:
        for lines in self._lines:
            lines.close()
        self.server.stop(0.2)
        self.store.close()


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A test's parameter is its policy."""
    made = Running(policy=getattr(request, "param", Config.policy))
    assert until(lambda: not made.store.core.dram.is_growing)
    yield made
    made.end()


def packed(spec: kvstore.KVSpec, ref: ChunkRef) -> bytes:
    return pack(Name(namespace_digest("default"), spec.digest, ref.key, spec.part()))


def request(spec: kvstore.KVSpec, ref: ChunkRef, offset: int = 0, nbytes: int | None = None) -> pb.RecordRequest:
    """Of a raw record of one whole chunk."""
    total = BLOCK + spec.part_bytes(spec.part(), ref.tokens)
    count = total if nbytes is None else nbytes
    return pb.RecordRequest(name=packed(spec, ref), offset=offset, bytes=count, total=total)


def answer(peer: PeerLines, method: int, message: bytes) -> bytes | str:
    """The payload, or the class of the error; what Python would say is `by_python`'s."""

    def ask(line: Stream) -> bytes | str:
        line.in_step = False
        line.send(method, message)
        frame = line.receive()
        assert frame is not None
        out = bytearray(frame.payload)
        line.read_into(memoryview(out))
        line.in_step = True
        return pb.Failure.FromString(frame.message).error if frame.flags & FAILED else bytes(out)

    return peer._lines.once(ask, time.monotonic() + WITHIN_S)


def record_by_python(running: Running, message: bytes) -> bytes | str:
    try:
        asked = pb.RecordRequest.FromString(message)
        if len(asked.name) != 72:
            return "InvalidArgument"
        held = running.store.records.read(asked.name, asked.offset, asked.bytes, asked.form, asked.total)
    except DecodeError:
        return "InvalidArgument"
    except KVStoreError as error:
        return type(error).__name__
    with held:
        return bytes(held.data)


def object_by_python(objects: Objects, message: bytes) -> bytes | str:
    found: list[bytes] = []
    try:
        asked = pb.ReadObjectRequest.FromString(message)
        if len(asked.key) != 32:
            return "InvalidArgument"
        objects.read(asked.key, asked.offset, asked.bytes, lambda data: found.append(bytes(data)))
    except DecodeError:
        return "InvalidArgument"
    except KVStoreError as error:
        return type(error).__name__
    return found[0]


class TestRecords:
    def test_python_answers_the_first_and_native_code_the_rest(self, running: Running, kit: Any) -> None:
        chain, peer = kit.prompt(chunks=2), running.peer()
        kit.fill(running.client, chain)
        for ref in chain.refs:
            for offset, nbytes in RANGES:
                message = request(kit.spec, ref, offset, nbytes).SerializeToString()
                assert answer(peer, pb.METHOD_RECORD, message) == record_by_python(running, message)
        assert running.native() == 13
        whole = answer(peer, pb.METHOD_RECORD, request(kit.spec, chain.refs[0]).SerializeToString())
        assert whole[BLOCK:] == kit.content(chain.refs[0]).tobytes()
        counters = running.client.stats()["counters"]
        assert counters["peer_reads"] == 15 + 14  # over the wire, and by Python to compare with
        kit.until(lambda: running.readers() == 0)

    def test_what_is_not_as_it_was_found_is_refused_all_the_same(self, running: Running, kit: Any) -> None:
        (ref, gone), peer = kit.prompt(chunks=2).refs, running.peer()
        kit.fill(running.client, kit.prompt(chunks=1))
        assert answer(peer, pb.METHOD_RECORD, request(kit.spec, ref).SerializeToString()) is not None
        total = request(kit.spec, ref).total
        cases = [
            (pb.RecordRequest(name=packed(kit.spec, ref), bytes=100, form=7, total=total), "NotFound"),
            (pb.RecordRequest(name=packed(kit.spec, ref), bytes=100, total=total - 4096), "NotFound"),
            (pb.RecordRequest(name=packed(kit.spec, ref), offset=total, bytes=1, total=total), "Corrupt"),
            (pb.RecordRequest(name=packed(kit.spec, ref), offset=1 << 62, bytes=1, total=total), "Corrupt"),
            (pb.RecordRequest(name=packed(kit.spec, ref), bytes=(1 << 62) - 1, total=total), "Corrupt"),
            (request(kit.spec, gone), "NotFound"),
        ]
        for message, expected in cases:
            assert answer(peer, pb.METHOD_RECORD, message.SerializeToString()) == expected
        assert running.native() == 0

    def test_mutated_requests_are_answered_as_python_answers_them(self, running: Running, kit: Any) -> None:
        (ref,), peer = kit.prompt(chunks=1).refs, running.peer()
        kit.fill(running.client, kit.prompt(chunks=1))
        plain = request(kit.spec, ref, 5000, 300).SerializeToString()
        answer(peer, pb.METHOD_RECORD, plain)
        for message in mutations(plain, 5, 400):
            assert answer(peer, pb.METHOD_RECORD, message) == record_by_python(running, message)
        assert running.native() > 0

    @pytest.mark.parametrize("ago_s", [9, 11])
    @pytest.mark.parametrize("running", ["lru"], indirect=True)
    def test_a_read_is_a_use_unless_one_was_told_of_a_moment_ago(
        self, running: Running, kit: Any, monkeypatch: pytest.MonkeyPatch, ago_s: int
    ) -> None:
        chain, peer, core = kit.prompt(chunks=3), running.peer(), running.store.core
        then = int(time.time() * 1000) - 1000 * ago_s
        monkeypatch.setattr("kvstore.commits.now_ms", lambda: then)
        kit.fill(running.client, chain)
        first, second, third = chain.refs
        for ref in (third, first, first, first):  # by Python, and three times natively
            answer(peer, pb.METHOD_RECORD, request(kit.spec, ref).SerializeToString())
        assert running.native() == 3
        with core.lock:
            rows = list(core.usage.policy(0, core.catalog.namespaces["default"]).victims())
            keys, hits = [core.index.chunk(row).key for row in rows], [core.index.chunk(row).hits for row in rows]
        told = ago_s > 10
        assert keys == [each.key for each in ((second, third, first) if told else (third, second, first))]
        assert hits == ([0, 1, 1] if told else [0, 0, 0])

    def test_a_record_stays_while_it_is_sent(self, running: Running) -> None:
        refs, peer = running.client.chain(LONG, range(1024)).refs, running.peer()
        data = random.Random(1).randbytes(LONG.part_bytes(LONG.part(), 512))
        for ref in refs:
            running.client.put(LONG, ref, memoryview(data))
        answer(peer, pb.METHOD_RECORD, request(LONG, refs[1]).SerializeToString())

        def slowly(line: Stream) -> bytearray:
            line.in_step = False
            line.send(pb.METHOD_RECORD, request(LONG, refs[0]).SerializeToString())
            frame = peer._lines.answer(line)
            assert (running.native(), running.readers()) == (1, 1)
            assert running.client.delete(LONG, [refs[0].key]) == 1
            running.client.put(LONG, refs[0], memoryview(bytes(len(data))))  # into other memory
            out = bytearray(frame.payload)
            line.read_into(memoryview(out))
            line.in_step = True
            return out

        assert peer._lines.once(slowly, time.monotonic() + WITHIN_S)[BLOCK:] == data

    def test_one_who_stops_reading_holds_nothing_for_long(
        self, running: Running, kit: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "STALL_S", 1.0)
        (ref,), peer = running.client.chain(LONG, range(512)).refs, running.peer()
        running.client.put(LONG, ref, memoryview(bytes(LONG.part_bytes(LONG.part(), 512))))
        answer(peer, pb.METHOD_RECORD, request(LONG, ref).SerializeToString())

        def stuck(line: Stream) -> None:
            line.in_step = False
            line.send(pb.METHOD_RECORD, request(LONG, ref).SerializeToString())
            peer._lines.answer(line)
            assert running.readers() == 1
            kit.until(lambda: running.readers() == 0)

        peer._lines.once(stuck, time.monotonic() + WITHIN_S)

    def test_over_tls(self, certificates: Path, kit: Any) -> None:
        running = Running({"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"})
        try:
            (ref,) = kit.prompt(chunks=1).refs
            kit.fill(running.client, kit.prompt(chunks=1))
            peer = running.peer(tls_context(Options(ca=certificates / "ca.pem")))
            total = request(kit.spec, ref).total
            for nbytes in (total, 1, total, 0):
                out = memoryview(bytearray(nbytes))
                peer.read_record(packed(kit.spec, ref), 0, out, WITHIN_S, form=0, total=total)
                message = request(kit.spec, ref, 0, nbytes).SerializeToString()
                assert out == record_by_python(running, message)
            assert running.native() == 3
            with pytest.raises(NotFound, match="is here in form 0"):
                peer.read_record(packed(kit.spec, ref), 0, memoryview(bytearray(1)), WITHIN_S, form=1, total=total)
            kit.until(lambda: running.readers() == 0)
        finally:
            running.end()


class TestObjects:
    @pytest.fixture
    def engine(self, running: Running) -> Iterator[PeerEngine]:
        with closing(running.engine()) as engine:
            yield engine

    def test_native_code_answers_what_is_there(self, running: Running, engine: PeerEngine, kit: Any) -> None:
        contents = {"a": b"", "b/c": b"x", "d": random.Random(2).randbytes(100_000)}
        for name, content in contents.items():
            engine.put(name, [memoryview(content)], WITHIN_S)
        for name, content in contents.items():
            for offset, nbytes in ((0, len(content)), (len(content) // 2, len(content) // 3), (len(content), 0)):
                out = memoryview(bytearray(nbytes))
                engine.read_into(name, offset, out, WITHIN_S)
                assert out == content[offset : offset + nbytes]
            for offset, nbytes in ((0, len(content) + 1), (len(content), 1), (1 << 62, 1)):
                with pytest.raises(Corrupt, match=f"an object of {len(content)} bytes"):
                    engine.read_into(name, offset, memoryview(bytearray(nbytes)), WITHIN_S)
        assert running.native(NAMESPACE) >= 9
        engine.delete(["d"], WITHIN_S)
        with pytest.raises(NotFound, match="no object of key"):
            engine.read_into("d", 0, memoryview(bytearray(1)), WITHIN_S)
        kit.until(lambda: running.readers() == 0)

    def test_mutated_requests_are_answered_as_python_answers_them(self, running: Running, engine: PeerEngine) -> None:
        engine.put("name", [memoryview(random.Random(3).randbytes(20_000))], WITHIN_S)
        peer, objects = running.peer(), running.store.objects()
        plain = pb.ReadObjectRequest(key=object_key("name"), offset=5000, bytes=300).SerializeToString()
        for message in mutations(plain, 7, 400):
            assert answer(peer, pb.METHOD_READ_OBJECT, message) == object_by_python(objects, message)
        assert running.native(NAMESPACE) > 0


def test_a_store_that_is_closing_answers_no_more(running: Running, kit: Any) -> None:
    (ref,) = kit.prompt(chunks=1).refs
    kit.fill(running.client, kit.prompt(chunks=1))
    core, message = running.store.core, request(kit.spec, ref).SerializeToString()
    reads = running.store.records.native_reads(1, 2)
    record_by_python(running, message)
    held = reads.find(1, message)
    assert held is not None
    held.close()
    with core.lock:
        core.intake.close()
    assert reads.find(1, message) is None
