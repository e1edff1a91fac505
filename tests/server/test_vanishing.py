"""Clients and servers that go away in the middle of things."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import kvstore
from kvstore import pieces, wire
from kvstore.keys import pack_refs
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.v1 import kvstore_pb2_grpc as rpc

CHILD = """
import sys, time, numpy as np, kvstore
from kvstore import pieces
spec = kvstore.KVSpec.dense("small", layers=4, kv_heads=2, head_dim=16, chunk_tokens=64)
large = kvstore.KVSpec.dense("large", layers=16, kv_heads=8, head_dim=64, chunk_tokens=256)
client = kvstore.connect(sys.argv[1])
chain = client.chain(spec, range(64))
client.put(spec, chain.refs[0], np.ones(spec.part_shape(spec.part(), 64), np.uint16))
assert client.lookup(spec, chain, lease_s=50).lease
watch = client.watch()
whole = pieces.frames
def stalling(data):
    for number, piece in enumerate(whole(data)):
        yield piece
        if number == 2:
            print("stalled", flush=True)
            time.sleep(60)
pieces.frames = stalling
ref = client.chain(large, range(256)).refs[0]
client.put(large, ref, np.ones(large.part_shape(large.part(), 256), np.uint16))
"""


def test_a_killed_client_leaves_nothing_behind(running: Any, kit: Any) -> None:
    hub = running.store._core.events
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, "grpc://" + running.server.address], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stalled\n"
        kit.eventually(lambda: running.used() > 8 << 20)
        assert running.gauge("leases") == 1
        assert len(hub._watchers) == 1
        child.send_signal(signal.SIGKILL)
    kit.eventually(lambda: running.gauge("leases") == 0)
    kit.eventually(lambda: running.used() < 1 << 20)
    kit.eventually(lambda: not hub._watchers)
    kit.eventually(lambda: running.server._service._sessions == {})


def test_a_put_that_is_cancelled_or_late_gives_its_memory_back(running: Any, kit: Any) -> None:
    with grpc.insecure_channel(running.server.address) as channel:
        stub: Any = rpc.KVStoreStub(channel)
        stub.RegisterSpec(pb.RegisterSpecRequest(spec=wire.spec_to_message(kit.large)))
        record = pb.Record(key=b"k" * 32, parent=bytes(32), part=kit.large.part().pack(), tokens=256)
        head = pb.PutRequest(head=pb.PutRequest.Head(spec=kit.large.digest, record=record))
        for timeout in (None, 0.5):
            leave = threading.Event()

            def messages(leave: threading.Event = leave) -> Iterator[Any]:
                yield head
                yield pb.PutRequest(data=bytes(1 << 20))
                leave.wait(20)

            before = running.used()
            call = stub.Put.future(messages(), timeout=timeout)
            kit.eventually(lambda before=before: running.used() > before)
            if timeout is None:
                call.cancel()
            kit.eventually(lambda before=before: running.used() == before)
            leave.set()
            expected = grpc.StatusCode.CANCELLED if timeout is None else grpc.StatusCode.DEADLINE_EXCEEDED
            assert call.code() is expected
        assert stub.List(pb.ListRequest()).chunks == []


def test_a_get_that_is_cancelled_closes_its_views(running: Any, kit: Any) -> None:
    with (
        kvstore.connect("grpc://" + running.server.address) as client,
        grpc.insecure_channel(running.server.address) as channel,
    ):
        refs = client.chain(kit.large, range(512)).refs
        for ref in refs:
            client.put(kit.large, ref, kit.block(kit.large))
        stub: Any = rpc.KVStoreStub(channel)
        items = b"".join(pack_refs([ref]) + kit.large.part().pack() for ref in refs)
        call = stub.Get(pb.GetRequest(spec=kit.large.digest, items=items))
        next(call)
        kit.eventually(lambda: readers(running) > 0)
        call.cancel()
        kit.eventually(lambda: readers(running) == 0)
        assert client.delete(kit.large, [ref.key for ref in refs]) == 2
        kit.eventually(lambda: running.used() == 0)


def readers(running: Any) -> int:
    """Views that are open on any copy."""
    core = running.store._core
    with core.lock:
        rows, _ = core.index.chunks(0, 1000)
        return sum(core.index.placement(each).readers for row in rows.tolist() for each in core.placements(row))


def test_a_transfer_that_stands_still_is_given_up(running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.server.calls.STALL_S", 0.3)
    with grpc.insecure_channel(running.server.address) as channel:
        stub: Any = rpc.KVStoreStub(channel)
        stub.RegisterSpec(pb.RegisterSpecRequest(spec=wire.spec_to_message(kit.small)))
        leave = threading.Event()

        def messages() -> Iterator[Any]:
            record = pb.Record(key=b"k" * 32, parent=bytes(32), part=kit.small.part().pack(), tokens=64)
            yield pb.PutRequest(head=pb.PutRequest.Head(spec=kit.small.digest, record=record))
            leave.wait(20)

        with pytest.raises(grpc.RpcError, match="stood still"):
            stub.Put(messages())
        leave.set()
        assert running.used() == 0


def test_nobody_there_is_unavailable_within_the_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    start = time.monotonic()
    with (
        kvstore.connect("grpc://" + address, timeout=2, retries=1000) as client,
        pytest.raises(kvstore.Unavailable, match=address),
    ):
        client.describe()
    assert time.monotonic() - start < 20


def test_a_server_that_accepts_and_is_silent_is_unavailable_within_the_time(kit: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with kvstore.connect("grpc://" + address, timeout=1, retries=20) as client:
            calls: list[Callable[[], object]] = [
                client.describe,
                client.watch,
                lambda: client.put(kit.small, client.chain(kit.small, [1]).refs[0], kit.block(kit.small, tokens=1)),
            ]
            for call in calls:
                start = time.monotonic()
                with pytest.raises(kvstore.Unavailable, match=address):
                    call()
                assert time.monotonic() - start < 10, "its time is that of all tries together"


def test_a_stopped_process_is_a_passed_deadline(process: Callable[..., Any], kit: Any) -> None:
    server = process()
    with kvstore.connect("grpc://" + server.address, timeout=2) as client:
        client.describe()
        server._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server._process.pid, os.WSTOPPED)  # every thread of it
        start = time.monotonic()
        with pytest.raises(kvstore.DeadlineExceeded, match="within 2 s"):
            client.stats()
        assert time.monotonic() - start < 10
        server._process.send_signal(signal.SIGCONT)


def test_a_server_killed_under_load_and_started_again(process: Callable[..., Any], kit: Any) -> None:
    server = process()
    with kvstore.connect("grpc://" + server.address, timeout=10, retries=2) as client:
        chain = client.chain(kit.large, range(256))
        data = kit.block(kit.large)
        client.put(kit.large, chain.refs[0], data)
        client.lookup(kit.large, chain, lease_s=30)
        failures: list[BaseException] = []

        def load() -> None:
            out = np.zeros_like(data)
            try:
                while True:
                    client.get(kit.large, chain.refs[0], out=out)
                    assert np.array_equal(out, data)
            except kvstore.KVStoreError as error:
                failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        server.end()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert [type(failure) for failure in failures] == [kvstore.Unavailable] * 3
        again = process(server.address)
        assert again.address == server.address
        kit.eventually(lambda: reachable(client))
        with pytest.raises(kvstore.NotFound):
            client.get(kit.large, chain.refs[0])
        assert client.put(kit.large, chain.refs[0], data) is True
        assert client.lookup(kit.large, chain, lease_s=30).lease
        assert client.stats()["gauges"]["leases"] == 1


def reachable(client: kvstore.Client) -> bool:
    try:
        client.describe()
    except kvstore.Unavailable:
        return False
    return True


def test_a_process_stops_in_order_on_sigterm(process: Callable[..., Any], kit: Any) -> None:
    server = process()
    with kvstore.connect("grpc://" + server.address, timeout=10, retries=0) as client:
        chain = client.chain(kit.small, range(64))
        client.put(kit.small, chain.refs[0], kit.block(kit.small))
        client.lookup(kit.small, chain, lease_s=30)
        watch = client.watch()
        assert server.end(signal.SIGTERM) == 0
        assert list(watch) == []


class FlakyProxy:
    """A TCP proxy that cuts the first `cuts` connections after `after` bytes from the client."""

    def __init__(self, target: str, cuts: int, after: int) -> None:
        self._target, self._cuts, self._after = target, cuts, after
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await self._stop.wait()
            server.close()

        self._loop.run_until_complete(main())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        limit = self._after if self.connections <= self._cuts else 1 << 60
        host, _, port = self._target.rpartition(":")
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: int) -> None:
            while left > 0 and (data := await source.read(min(65536, left))):
                sink.write(data)
                await sink.drain()
                left -= len(data)

        pumps = [
            asyncio.ensure_future(pump(reader, upstream_writer, limit)),
            asyncio.ensure_future(pump(upstream_reader, writer, 1 << 60)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in pumps:
                each.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.close()
            upstream_writer.close()


def test_broken_connections_are_tried_again(running: Any, kit: Any) -> None:
    proxy = FlakyProxy(running.server.address, cuts=2, after=2 << 20)
    try:
        with kvstore.connect("grpc://" + proxy.address, timeout=10, retries=4) as client:
            (ref,) = client.chain(kit.large, range(256)).refs
            data = kit.block(kit.large)
            assert client.put(kit.large, ref, data) is True
            assert np.array_equal(client.get(kit.large, ref), data)
        assert proxy.connections >= 3
    finally:
        proxy.close()
    kit.eventually(lambda: readers(running) == 0)


def test_without_retries_the_first_failure_counts(running: Any, kit: Any) -> None:
    proxy = FlakyProxy(running.server.address, cuts=1, after=2 << 20)
    try:
        with kvstore.connect("grpc://" + proxy.address, timeout=10, retries=0) as client:
            (ref,) = client.chain(kit.large, range(256)).refs
            with pytest.raises(kvstore.Unavailable, match=proxy.address):
                client.put(kit.large, ref, kit.block(kit.large))
    finally:
        proxy.close()


def test_only_unavailability_is_tried_again(running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    spoken = pieces.frames
    monkeypatch.setattr(pieces, "frames", lambda data: tries.append(1) or spoken(data[:-1]))
    with kvstore.connect("grpc://" + running.server.address, timeout=5, retries=3) as client:
        (ref,) = client.chain(kit.small, range(64)).refs
        with pytest.raises(kvstore.InvalidArgument, match="shorter"):
            client.put(kit.small, ref, kit.block(kit.small))
    assert len(tries) == 1
