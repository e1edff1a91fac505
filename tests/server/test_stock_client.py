"""What any language's stock client sees: generated stubs alone, good requests and bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import xxhash
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore import KVSpec, wire
from kvstore.keys import pack_refs
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as rpc

KEY = bytes(range(32))


@pytest.fixture
def channel(running: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.server.address) as made:
        yield made


@pytest.fixture
def stub(channel: grpc.Channel, kit: Any) -> Any:
    made = rpc.KVStoreStub(channel)
    for spec in (kit.small, kit.large):
        made.RegisterSpec(pb.RegisterSpecRequest(spec=wire.spec_to_message(spec)))
    return made


def head(of: KVSpec, /, **changes: Any) -> pb.PutRequest:
    record = {"key": KEY, "parent": bytes(32), "part": of.part().pack(), "tokens": of.chunk_tokens}
    record |= {"stored": of.part_bytes(of.part(), of.chunk_tokens), **changes}
    return pb.PutRequest(head=pb.PutRequest.Head(spec=of.digest, record=pb.Record(**record)))


def pieces(data: bytes, size: int) -> list[pb.PutRequest]:
    return [pb.PutRequest(data=data[start : start + size]) for start in range(0, len(data), size)]


def fails(code: str, name: str, words: str, call: Callable[[], object]) -> None:
    """The call ends with this status, this class of error and these words."""
    with pytest.raises(grpc.RpcError, match=words) as caught:
        call()
    error: Any = caught.value
    assert error.code().name == code
    assert dict(error.trailing_metadata())["kvstore-error"] == name


def test_put_and_get_with_stubs_alone(stub: Any, kit: Any) -> None:
    spec = kit.large
    data = kit.block(spec).tobytes()
    assert stub.Put(iter([head(spec), *pieces(data, 700_000)])).stored is True
    assert stub.Put(iter([head(spec), *pieces(data, 3 << 20)])).stored is False
    ref = pack_refs([_ref(spec)])
    found = stub.Lookup(pb.LookupRequest(spec=spec.digest, refs=ref))
    assert (found.tokens, found.used, found.present) == (256, b"\0\0\0\0", b"\1")
    messages = list(stub.Get(pb.GetRequest(spec=spec.digest, items=ref + spec.part().pack())))
    record = messages[0].head.record
    assert messages[0].head.bytes == len(data)
    assert b"".join(each.data for each in messages) == data
    groups = wire.groups_from_bytes(record.groups)
    first = data[: int(groups["length"][0])]
    assert groups["xxh3"][0].tobytes() == xxhash.xxh3_128_digest(first)


def test_health(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", "kvstore.v1.KVStore"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == 1


def test_reflection(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([asked]))
    names = {each.name for each in answer.list_services_response.service}
    assert {"kvstore.v1.KVStore", "grpc.health.v1.Health"} <= names
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="kvstore.v1.KVStore")
    (found,) = stub.ServerReflectionInfo(iter([symbol]))
    assert b"RegisterSpec" in found.file_descriptor_response.file_descriptor_proto[0]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_length_stores_nothing(stub: Any, running: Any, kit: Any, change: int) -> None:
    data = (kit.block(kit.small).tobytes() + b"x")[: kit.block(kit.small).nbytes + change]
    before = running.used()
    word = "shorter" if change < 0 else "longer"
    fails("INVALID_ARGUMENT", "InvalidArgument", word, lambda: stub.Put(iter([head(kit.small), *pieces(data, 5000)])))
    assert running.used() == before
    assert stub.List(pb.ListRequest()).chunks == []


def test_a_payload_damaged_on_its_way_stores_nothing(stub: Any, running: Any, kit: Any) -> None:
    from kvstore.bench.corpus import content  # incompressible bytes of a length

    spec, nbytes = kit.small, kit.small.part_bytes(kit.small.part(), 64)
    data = content(1, nbytes)
    ranges = spec.layer_ranges(spec.part(), 64)
    groups = b"".join(
        offset.to_bytes(8, "little") + length.to_bytes(8, "little")
        + xxhash.xxh3_128_digest(data[offset : offset + length].tobytes())
        for offset, length in ranges
    )  # fmt: skip
    data[nbytes // 2] ^= 1
    before = running.used()
    fails(
        "DATA_LOSS", "Corrupt", "checksum",
        lambda: stub.Put(iter([head(spec, groups=groups), pb.PutRequest(data=data.tobytes())])),
    )  # fmt: skip
    assert running.used() == before
    data[nbytes // 2] ^= 1
    assert stub.Put(iter([head(spec, groups=groups), pb.PutRequest(data=data.tobytes())])).stored


@pytest.mark.parametrize(
    ("changes", "code", "name", "words"),
    [
        ({"key": b"short"}, "INVALID_ARGUMENT", "InvalidArgument", "32 bytes, not 5"),
        ({"parent": b""}, "INVALID_ARGUMENT", "InvalidArgument", "32 bytes, not 0"),
        ({"part": b""}, "INVALID_ARGUMENT", "InvalidArgument", "one part"),
        ({"part": b"\7" * 8}, "INVALID_ARGUMENT", "InvalidArgument", "no part of this spec"),
        ({"tokens": 0}, "INVALID_ARGUMENT", "InvalidArgument", "1 to 64 tokens"),
        ({"tokens": 65}, "INVALID_ARGUMENT", "InvalidArgument", "1 to 64 tokens"),
        ({"position": 0xFFFFFFFF}, "INVALID_ARGUMENT", "InvalidArgument", "no chunk of this spec"),
        ({"stored": 1 << 60}, "FAILED_PRECONDITION", "SpecMismatch", "announces"),
        ({"spec": bytes(16)}, "FAILED_PRECONDITION", "SpecMismatch", "the put of spec"),
        ({"form": 3}, "INVALID_ARGUMENT", "InvalidArgument", "raw bytes"),
        ({"first_valid": 3}, "INVALID_ARGUMENT", "InvalidArgument", "sliding-window"),
        ({"groups": bytes(31)}, "INVALID_ARGUMENT", "InvalidArgument", "32 bytes each"),
        ({"groups": bytes(32)}, "INVALID_ARGUMENT", "InvalidArgument", "1 layer groups"),
    ],
)
def test_heads_that_cannot_be(
    stub: Any, running: Any, kit: Any, changes: dict[str, Any], code: str, name: str, words: str
) -> None:
    before = running.used()
    fails(code, name, words, lambda: stub.Put(iter([head(kit.small, **changes)])))
    assert running.used() == before


def test_puts_that_are_no_puts(stub: Any, kit: Any) -> None:
    fails("INVALID_ARGUMENT", "InvalidArgument", "begins with", lambda: stub.Put(iter([])))
    fails("INVALID_ARGUMENT", "InvalidArgument", "begins with", lambda: stub.Put(iter([pb.PutRequest(data=b"x")])))
    fails("INVALID_ARGUMENT", "InvalidArgument", "one `head`", lambda: stub.Put(iter([head(kit.small)] * 2)))
    odd = head(kit.small)
    odd.head.ack = 9
    fails("INVALID_ARGUMENT", "InvalidArgument", "acknowledgement 9", lambda: stub.Put(iter([odd])))


def test_an_unknown_spec_says_what_to_do(stub: Any) -> None:
    asked = pb.LookupRequest(spec=bytes(16), refs=bytes(40))
    fails("FAILED_PRECONDITION", "UnknownSpec", "RegisterSpec", lambda: stub.Lookup(asked))


def test_requests_that_cannot_be(stub: Any, kit: Any) -> None:
    spec, ref = kit.small.digest, pack_refs([_ref(kit.small)])
    part = kit.small.part().pack()

    def invalid(words: str, call: Callable[[], object]) -> None:
        fails("INVALID_ARGUMENT", "InvalidArgument", words, call)

    invalid("16 bytes", lambda: stub.Lookup(pb.LookupRequest(spec=b"x", refs=ref)))
    invalid("no multiple", lambda: stub.Lookup(pb.LookupRequest(spec=spec, refs=ref[1:])))
    invalid("1 to 64 tokens", lambda: stub.Lookup(pb.LookupRequest(spec=spec, refs=bytes(40))))
    invalid("1 to 64 tokens", lambda: stub.Lookup(pb.LookupRequest(spec=spec, refs=b"\xff" * 40)))
    invalid("no multiple", lambda: stub.Lookup(pb.LookupRequest(spec=spec, refs=ref, parts=part[1:])))
    invalid("16 bytes", lambda: stub.Lookup(pb.LookupRequest(spec=spec, refs=ref, lease=b"x", lease_ms=5)))
    invalid("lease lasts", lambda: stub.Lookup(pb.LookupRequest(spec=spec, refs=ref, lease=bytes(16))))
    invalid("fidelity 7", lambda: stub.Lookup(pb.LookupRequest(spec=spec, refs=ref, fidelity=7)))
    invalid("none at all", lambda: list(stub.Get(pb.GetRequest(spec=spec))))
    invalid("no part", lambda: list(stub.Get(pb.GetRequest(spec=spec, items=ref + b"\7" * 8))))
    invalid("3 layer ranges", lambda: list(stub.Get(pb.GetRequest(spec=spec, items=ref + part, layers=_ranges(3)))))
    invalid("no keys", lambda: stub.Delete(pb.KeysRequest(spec=spec)))
    invalid("32 bytes each", lambda: stub.Delete(pb.KeysRequest(spec=spec, keys=b"x" * 33)))
    invalid("no keys", lambda: stub.Hint(pb.HintRequest(spec=spec)))
    invalid("32 bytes each", lambda: stub.Hint(pb.HintRequest(spec=spec, keys=b"x" * 33)))
    invalid("awaited for", lambda: stub.Hint(pb.HintRequest(spec=spec, keys=KEY, awaited_ms=0xFFFFFFFF)))
    invalid("ttl_ms", lambda: stub.Pin(pb.PinRequest(spec=spec, keys=KEY)))
    invalid("16 bytes each", lambda: stub.Release(pb.ReleaseRequest(leases=b"x")))
    invalid("session id", lambda: next(stub.Session(pb.SessionRequest())))
    session = (("kvstore-session", "zz"),)
    invalid("hexadecimal", lambda: stub.Describe(pb.DescribeRequest(), metadata=session))


def test_a_layer_range_outside_is_the_items_failure(stub: Any, kit: Any) -> None:
    stub.Put(iter([head(kit.small), *pieces(kit.block(kit.small).tobytes(), 1 << 20)]))
    items = pack_refs([_ref(kit.small)]) + kit.small.part().pack()
    (answer,) = stub.Get(pb.GetRequest(spec=kit.small.digest, items=items, layers=_ranges(9)[8:]))
    assert (answer.head.status, answer.head.error) == ("INVALID_ARGUMENT", "InvalidArgument")
    assert answer.head.bytes == 0


def test_a_cursor_of_nowhere(stub: Any) -> None:
    assert stub.List(pb.ListRequest(limit=0xFFFFFFFF)).chunks == []
    for cursor in (0xFFFFFFFF, 1 << 63):
        asked = pb.ListRequest(cursor=cursor)
        fails("INVALID_ARGUMENT", "InvalidArgument", "no cursor", lambda asked=asked: stub.List(asked))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float1"}, "unknown dtype"),
        ({"tp_size": 0xFFFFFFFF}, "more than this wire takes"),
        ({"rope_json": "{"}, "not JSON"),
        ({"rope_json": "[]"}, "JSON object"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"layout": ["head"]}, "layout"),
        ({"pipeline": [pb.LayerRange(start=0, end=1 << 20)]}, "16-bit"),
    ],
)
def test_specs_that_cannot_be(stub: Any, kit: Any, changes: dict[str, Any], words: str) -> None:
    spec = wire.spec_to_message(kit.small)
    for name, value in changes.items():
        if isinstance(value, list):
            spec.ClearField(name)
            getattr(spec, name).extend(value)
        else:
            setattr(spec, name, value)
    asked = pb.RegisterSpecRequest(spec=spec)
    fails("INVALID_ARGUMENT", "InvalidArgument", words, lambda: stub.RegisterSpec(asked))


def test_hostile_sizes_and_bytes_are_refused(channel: grpc.Channel, stub: Any, kit: Any) -> None:
    raw = channel.unary_unary("/kvstore.v1.KVStore/Lookup")
    fails("INVALID_ARGUMENT", "InvalidArgument", "not a kvstore.v1.LookupRequest", lambda: raw(b"\xff" * 100))
    with pytest.raises(grpc.RpcError) as caught:
        raw(bytes(5 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert stub.Describe(pb.DescribeRequest()).namespace == "default"


def test_a_lease_without_a_session_ends_by_release(stub: Any, running: Any, kit: Any) -> None:
    stub.Put(iter([head(kit.small), *pieces(kit.block(kit.small).tobytes(), 1 << 20)]))
    asked = pb.LookupRequest(spec=kit.small.digest, refs=pack_refs([_ref(kit.small)]), lease=b"l" * 16, lease_ms=9000)
    assert stub.Lookup(asked).leased
    assert stub.Lookup(asked).leased
    assert running.gauge("leases") == 1
    stub.Release(pb.ReleaseRequest(leases=b"l" * 16))
    assert running.gauge("leases") == 0
    asked.in_session = True
    fails("ABORTED", "LeaseExpired", "Session", lambda: stub.Lookup(asked))


def _ref(spec: KVSpec) -> Any:
    from kvstore import ChunkRef

    return ChunkRef(KEY, bytes(32), 0, spec.chunk_tokens)


def _ranges(count: int) -> list[Any]:
    return [pb.LayerRange(start=start, end=start + 1) for start in range(count)]


def test_a_lease_without_a_limit_is_not_to_be_had_over_the_wire(stub: Any, running: Any, kit: Any) -> None:
    request = pb.LookupRequest(spec=kit.small.digest, refs=pack_refs([_ref(kit.small)]), lease=bytes(16), lease_ms=0)
    fails("INVALID_ARGUMENT", "InvalidArgument", "a lease lasts", lambda: stub.Lookup(request))
    assert running.gauge("leases") == 0
