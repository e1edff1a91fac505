"""What a client can do with what it is given, and what it cannot."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Client, wire
from kvstore.channels.lines import hello_message
from kvstore.channels.stream import FAILED, Stream
from kvstore.places import PLACE_DTYPE, pack_items
from kvstore.v1 import kvstore_pb2 as pb


class Raw:
    """A client of the frames alone, which keeps the descriptors that it is given."""

    def __init__(self, path: str, namespace: str = "default") -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        self.stream = Stream(sock, 10.0)
        self.extents: dict[int, tuple[int, int]] = {}
        self.gone: list[int] = []
        self.ask(pb.METHOD_HELLO, hello_message(os.urandom(16), "", namespace))

    def ask(self, method: int, message: Any) -> bytes:
        self.stream.send(method, message.SerializeToString())
        while True:
            frame = self.stream.receive()
            assert frame is not None, "the server ended the connection"
            if frame.flags & FAILED:
                raise wire.failure_from_message(pb.Failure.FromString(frame.message))
            if frame.method != pb.METHOD_EXTENTS:
                return frame.message
            told = pb.Extents.FromString(frame.message)
            for each in told.given:
                self.extents[each.number] = (self.stream.take_descriptor(), each.bytes)
            self.gone += told.gone

    def place(self, spec: Any, ref: Any) -> Any:
        self.ask(pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(spec=wire.spec_to_message(spec)))
        items = pack_items([(ref, spec.part())])
        request = pb.PlaceRequest(spec=spec.digest, items=items, lease=os.urandom(16), lease_ms=5000)
        return pb.PlaceResponse.FromString(self.ask(pb.METHOD_PLACE, request))

    def close(self) -> None:
        for descriptor, _ in self.extents.values():
            os.close(descriptor)
        self.stream.close()


@pytest.fixture
def raw(running: Any) -> Iterator[Callable[..., Raw]]:
    made: list[Raw] = []

    def connect(namespace: str = "default") -> Raw:
        made.append(Raw(running.server.local, namespace))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def attempts(descriptor: int, size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way to change a memfd through a descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)

    def fallocate(mode: int) -> None:
        if libc.fallocate(descriptor, mode, ctypes.c_long(0), ctypes.c_long(mmap.PAGESIZE)):
            raise OSError(ctypes.get_errno(), "fallocate")

    yield "write", lambda: os.write(descriptor, b"x")
    yield "pwrite", lambda: os.pwrite(descriptor, b"x", 0)
    yield "shrink", lambda: os.ftruncate(descriptor, 0)
    yield "grow", lambda: os.ftruncate(descriptor, size + mmap.PAGESIZE)
    yield "punch", lambda: fallocate(3)
    yield "zero", lambda: fallocate(0x10)
    yield "map", lambda: mmap.mmap(descriptor, size, mmap.MAP_SHARED)
    yield "unseal", lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def is_refused(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def test_no_descriptor_that_a_client_gets_can_change_the_store(running: Any, raw: Any, kit: Any) -> None:
    client = Client(running.store.session("default"))
    (ref,) = client.chain(kit.small, range(64)).refs
    client.put(kit.small, ref, kit.block(kit.small))
    mine = raw()
    (place,) = np.frombuffer(mine.place(kit.small, ref).places, PLACE_DTYPE)
    extent = int(place["location"]) >> 40
    assert list(mine.extents) == [extent]
    descriptor, size = mine.extents[extent]
    mine.ask(pb.METHOD_LOOKUP, pb.LookupRequest(spec=kit.small.digest, refs=b""))
    mine.stream.send(pb.METHOD_INDEX, b"")
    frame = mine.stream.receive()
    index = mine.stream.take_descriptor()
    try:
        for original, nbytes in ((descriptor, size), (index, pb.IndexResponse.FromString(frame.message).bytes)):
            with contextlib.ExitStack() as stack:
                ways = [original]
                for flags in (os.O_RDWR, os.O_RDONLY):
                    with contextlib.suppress(OSError):
                        again = os.open(f"/proc/self/fd/{original}", flags)
                        stack.callback(os.close, again)
                        ways.append(again)
                for each in ways:
                    for name, attempt in attempts(each, nbytes):
                        assert is_refused(attempt), name
    finally:
        os.close(index)
    assert np.array_equal(client.get(kit.small, ref, verify=True), kit.block(kit.small))


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="needs another user to try as")
def test_the_descriptors_of_the_server_process_are_out_of_reach(process: Any) -> None:
    """As an unprivileged user of the server's own uid: root is never kept out."""
    if os.geteuid() == 0:
        pytest.skip("root may look into every process; see tests/cli/test_private.py for other users")
    server = process()
    pid = server._process.pid
    with pytest.raises(PermissionError):
        os.listdir(f"/proc/{pid}/fd")
    with pytest.raises(PermissionError):
        Path(f"/proc/{pid}/mem").read_bytes()


def test_another_tenants_extents_are_not_given(running: Any, raw: Any, kit: Any) -> None:
    mine, theirs = (Client(running.store.session(name)) for name in ("default", "other"))
    (ref,) = mine.chain(kit.small, range(64)).refs
    mine.put(kit.small, ref, kit.block(kit.small, 1))
    theirs.put(kit.small, ref, kit.block(kit.small, 2))
    first, second = raw(), raw("other")
    (one,) = np.frombuffer(first.place(kit.small, ref).places, PLACE_DTYPE)
    (two,) = np.frombuffer(second.place(kit.small, ref).places, PLACE_DTYPE)
    assert set(first.extents) == {int(one["location"]) >> 40}
    assert set(second.extents) == {int(two["location"]) >> 40}
    assert not set(first.extents) & set(second.extents)
    # There is no call that takes an extent's number; the store itself refuses one of another tenant.
    with pytest.raises(kvstore.PermissionDenied):
        running.store.session("other").open_extent(int(one["location"]) >> 40)


def test_an_extent_that_goes_to_another_tenant_takes_nothing_along(running: Any, raw: Any, kit: Any) -> None:
    mine, theirs = (Client(running.store.session(name)) for name in ("default", "other"))
    refs = mine.chain(kit.large, range(256 * 16)).refs
    secret = np.full(kit.large.part_shape(kit.large.part(), 256), 0x5EC1, np.uint16)
    with kvstore.connect("local:" + running.server.local) as client:
        for ref in refs:
            client.put(kit.large, ref, np.ones_like(secret))
        client.get(kit.large, refs[-1])
        mapped = client.backend._life.extents  # type: ignore[attr-defined]
        before = dict(mapped._mapped)
        assert before
        for turn in range(8):  # the poorer tenant's puts make the mover give it an extent
            for ref in theirs.chain(kit.large, range(turn, turn + 256 * 16)).refs:
                with contextlib.suppress(kvstore.Shed):
                    theirs.put(kit.large, ref, secret)
        for extent in before.values():
            view = np.frombuffer(extent.view, np.uint16)
            assert not (view[:: mmap.PAGESIZE // 2] == 0x5EC1).any()
        owned = running.store.session("default").extents()
        with contextlib.suppress(kvstore.KVStoreError):
            client.put(kit.large, refs[-1], np.ones_like(secret))
            client.get(kit.large, refs[-1])
        assert set(mapped._mapped) <= owned | running.store.session("default").extents()


def test_a_place_of_a_chunk_that_is_not_there_fails_alone(running: Any, raw: Any, kit: Any) -> None:
    client = Client(running.store.session("default"))
    (ref,) = client.chain(kit.small, range(64)).refs
    answer = raw().place(kit.small, ref)
    assert [(each.item, each.failure.error) for each in answer.failed] == [(0, "NotFound")]


@pytest.mark.parametrize(
    "message",
    [
        pb.PlaceRequest(lease=b"x" * 16, items=b"x" * 47),
        pb.PlaceRequest(lease=b"x" * 15, items=b""),
        pb.PlaceRequest(lease=b"x" * 16, lease_ms=0xFFFFFFFF),
        pb.PlaceRequest(lease=b"x" * 16, fidelity=9),
    ],
)
def test_places_that_make_no_sense(raw: Any, kit: Any, message: Any) -> None:
    mine = raw()
    mine.ask(pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(spec=wire.spec_to_message(kit.small)))
    message.spec = kit.small.digest
    with pytest.raises(kvstore.InvalidArgument):
        mine.ask(pb.METHOD_PLACE, message)
    assert mine.ask(pb.METHOD_STATS, pb.StatsRequest())


def test_a_user_that_is_not_the_servers_is_sent_away(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.server.streams.os.geteuid", lambda: 12345)
    monkeypatch.setattr(Stream, "peer_uid", lambda self: 54321)
    with (
        kvstore.connect("local:" + running.server.local, retries=0) as client,
        pytest.raises(kvstore.PermissionDenied, match="54321"),
    ):
        client.describe()


def test_connecting_a_thousand_times(running: Any, kit: Any) -> None:
    (ref,) = Client(running.store.session("default")).chain(kit.small, range(64)).refs
    Client(running.store.session("default")).put(kit.small, ref, kit.block(kit.small))
    kit.eventually(lambda: not running.store._core.dram.is_growing)  # extents have descriptors too
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        with kvstore.connect("local:" + running.server.local) as client:
            if number % 50 == 0:
                client.get(kit.small, ref)
                client.put(kit.small, ref, kit.block(kit.small))
            else:
                client.backend.call("Describe", pb.DescribeRequest(), pb.DescribeResponse)
    kit.eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 4)
    kit.eventually(lambda: running.server._service._sessions == {})
    assert running.gauge("leases") == 0
