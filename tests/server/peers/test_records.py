"""Records over the bulk channel as they lie: who may read them, what comes, what holds them meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Config, DramConfig, NamespaceConfig, NvmeConfig, ServerConfig
from kvstore.channels.options import Options, tls_context
from kvstore.channels.peer import PeerLines, split_address
from kvstore.config import PeersConfig
from kvstore.errors import ConfigError, Corrupt, InvalidArgument, NotFound, PermissionDenied, Shed
from kvstore.keys import ChunkRef
from kvstore.namespace import namespace_digest
from kvstore.peer_wire import MOST_NAMES, NO_ROW, unpack_row
from kvstore.record import BLOCK, unpack
from kvstore.removed import Removed
from kvstore.server import Server, serve
from kvstore.store import Store
from kvstore.tiers.base import Name
from kvstore.tiers.remote.names import pack
from kvstore.v1 import kvstore_pb2 as pb

MiB = 1 << 20
WITHIN_S = 20.0
TENANTS = (NamespaceConfig("red", tokens=("red-1",)), NamespaceConfig("blue", tokens=("blue-1",)))


class Running:
    """A store, a server of this process, and ways in."""

    def __init__(self, config: Config) -> None:
        self.store = Store(config)
        self.server: Server = serve(self.store, config)
        self._lines: list[PeerLines] = []

    def peer(self, token: str = "of-peers", context: Any = None) -> PeerLines:
        host, port = split_address(self.server.bulk)
        lines = PeerLines(host, port, token=token, context=context, name="the server")
        self._lines.append(lines)
        return lines

    def client(self, **options: Any) -> kvstore.Client:
        return kvstore.connect(f"bulk://{self.server.bulk}", timeout=WITHIN_S, **options)

    def end(self) -> None:
        for lines in self._lines:
            lines.close()
        self.server.stop(0.2)
        self.store.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers; they end before the test's folder does."""
    del tmp_path
    made: list[Running] = []

    def begin(
        *, dram: int = 16 * MiB, peers: bool = True, namespaces: Any = (), server: Any = None, **more: Any
    ) -> Any:
        config = Config(
            dram=DramConfig(dram, dram, more.pop("codec", "raw")),
            peers=PeersConfig(token="of-peers") if peers else None,
            namespaces=namespaces or (NamespaceConfig("default"),),
            server=ServerConfig(listen="127.0.0.1:0", **(server or {})),
            put_wait_s=5.0,
            **more,
        )
        made.append(Running(config))
        return made[-1]

    yield begin
    for each in made:
        each.end()


def name_of(kit: Any, ref: ChunkRef, namespace: str = "default") -> bytes:
    return pack(Name(namespace_digest(namespace), kit.spec.digest, ref.key, kit.spec.part()))


def find(kit: Any, peer: PeerLines, ref: ChunkRef, **options: Any) -> Any:
    (row,) = peer.find([name_of(kit, ref, **options)], WITHIN_S)
    return unpack_row(row, ref.key, kit.spec.part())


def read(kit: Any, peer: PeerLines, ref: ChunkRef, entry: Any, offset: int = 0, nbytes: int | None = None) -> bytearray:
    out = bytearray(entry.total_bytes - offset if nbytes is None else nbytes)
    name = name_of(kit, ref)
    peer.read_record(name, offset, memoryview(out), WITHIN_S, form=entry.form, total=entry.total_bytes)
    return out


class TestWhoMayAsk:
    def test_without_a_token_of_peers_nobody(self, start: Callable[..., Running]) -> None:
        running = start(peers=False)
        for token in ("", "of-peers"):
            with pytest.raises(PermissionDenied, match=r"takes no peers.*\[peers\]"):
                running.peer(token).probe(WITHIN_S)

    def test_neither_a_tenant_nor_a_stranger(self, start: Callable[..., Running]) -> None:
        running = start(namespaces=TENANTS)
        for token in ("red-1", "", "of-peer", "of-peers "):
            with pytest.raises(PermissionDenied, match="not the token of peers"):
                running.peer(token).probe(WITHIN_S)
        running.peer().probe(WITHIN_S)
        with running.client(token="of-peers") as client, pytest.raises(PermissionDenied, match="not known"):
            client.describe()

    def test_a_token_that_a_tenant_has_is_refused_at_the_start(self, start: Callable[..., Running]) -> None:
        with pytest.raises(ConfigError, match=r"peers\.token is a namespace's token too"):
            start(namespaces=(NamespaceConfig("red", tokens=("of-peers",)),))

    def test_clients_cannot_make_the_calls_of_peers_nor_peers_those_of_clients(
        self, start: Callable[..., Running], kit: Any
    ) -> None:
        running = start()
        with running.client() as client:
            lines = client.backend._lines  # type: ignore[attr-defined]
            for method in (pb.METHOD_FIND, pb.METHOD_RECORD):
                with pytest.raises(InvalidArgument, match="no method"):
                    lines.run(lambda line, method=method: lines.ask(line, method, b""))
        peer = running.peer()
        for method in (pb.METHOD_STATS, pb.METHOD_LOOKUP, pb.METHOD_GET, pb.METHOD_LIST):
            with pytest.raises(InvalidArgument, match="no method"):
                peer.call(method, pb.StatsRequest(), pb.StatsResponse, WITHIN_S)
        peer.probe(WITHIN_S)  # the connection goes on

    def test_over_tls_alone_where_the_server_has_a_certificate(
        self, start: Callable[..., Running], certificates: Path, kit: Any
    ) -> None:
        running = start(server={"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"})
        with pytest.raises(InvalidArgument, match="TLS"):
            running.peer().probe(WITHIN_S)
        with pytest.raises(kvstore.Unavailable, match="not to be trusted"):
            running.peer(context=tls_context(Options(ca=certificates / "stranger.pem"))).probe(WITHIN_S)
        chain = kit.prompt(chunks=2)
        with running.client(ca=certificates / "ca.pem") as client:
            kit.fill(client, chain)
        peer = running.peer(context=tls_context(Options(ca=certificates / "ca.pem")))
        data = read(kit, peer, chain.refs[0], find(kit, peer, chain.refs[0]))
        assert data[BLOCK : BLOCK + 128 * 1024] == kit.content(chain.refs[0]).tobytes()

    def test_they_count_as_connections(self, start: Callable[..., Running]) -> None:
        running = start(server={"max_connections": 2})
        peers = [running.peer() for _ in range(3)]
        for peer in peers[:2]:
            peer.probe(WITHIN_S)
        with pytest.raises(Shed, match="connections are open"):
            peers[2].probe(WITHIN_S)


class TestWhatComes:
    def test_rows_of_what_is_there(self, start: Callable[..., Running], kit: Any) -> None:
        running, chain = start(namespaces=(NamespaceConfig("default"), NamespaceConfig("other"))), kit.prompt()
        with running.client() as client:
            kit.fill(client, chain)
        peer, refs = running.peer(), [*chain.refs, *kit.prompt(1, 2).refs]
        rows = peer.find([name_of(kit, ref) for ref in refs], WITHIN_S)
        entries = [unpack_row(row, ref.key, kit.spec.part()) for row, ref in zip(rows, refs, strict=True)]
        assert rows[8:] == [NO_ROW] * 2
        for entry, ref in zip(entries[:8], chain.refs, strict=True):
            assert entry is not None
            assert (entry.parent, entry.position, entry.tokens) == (ref.parent, ref.position, ref.tokens)
            assert (entry.stored, entry.total_bytes, entry.form, entry.exact) == (131072, 135168, 0, True)
        assert find(kit, peer, chain.refs[0], namespace="other") is None
        assert find(kit, peer, chain.refs[0], namespace="unheard-of") is None

    def test_names_that_are_none_and_too_many_are_refused(self, start: Callable[..., Running], kit: Any) -> None:
        peer = start().peer()
        for names in (b"", bytes(71), bytes(72 * (MOST_NAMES + 1))):
            with pytest.raises(InvalidArgument, match="names have 72 bytes"):
                peer.call(pb.METHOD_FIND, pb.FindRequest(names=names), pb.FindResponse, WITHIN_S)
        assert len(peer.find([bytes(72)] * MOST_NAMES, WITHIN_S)) == MOST_NAMES

    def test_any_range_of_a_record_as_it_lies(self, start: Callable[..., Running], kit: Any) -> None:
        running, chain = start(), kit.prompt(chunks=2)
        with running.client() as client:
            kit.fill(client, chain)
        peer, ref = running.peer(), chain.refs[1]
        entry = find(kit, peer, ref)
        whole = read(kit, peer, ref, entry)
        record = unpack(whole)
        record.check(key=ref.key, spec=kit.spec.digest, namespace=namespace_digest("default"), part=kit.spec.part())
        assert whole[record.header_bytes :] == kit.content(ref).tobytes()
        for offset, nbytes in ((0, 1), (4095, 2), (4096, 131072), (135167, 1), (100, 0), (70_001, 12_345)):
            assert read(kit, peer, ref, entry, offset, nbytes) == whole[offset : offset + nbytes]
        for offset, nbytes in ((0, 135169), (135168, 1), (1 << 62, 1)):
            with pytest.raises(Corrupt):
                read(kit, peer, ref, entry, offset, nbytes)
        for other in (entry._replace(form=7), entry._replace(total_bytes=entry.total_bytes - 4096)):
            with pytest.raises(NotFound, match="the record is here in form 0"):
                read(kit, peer, ref, other, 0, 100)
        with pytest.raises(NotFound):
            read(kit, peer, kit.prompt(3, 1).refs[0], entry)

    def test_what_is_encoded_comes_encoded(self, start: Callable[..., Running], kit: Any) -> None:
        running, chain = start(codec="int8", namespaces=(NamespaceConfig("default", lossy=True),)), kit.prompt()
        values = np.random.default_rng(0).normal(size=kit.content(chain.refs[0]).shape).astype(np.float32)
        with running.client() as client:
            client.put(kit.spec, chain.refs[0], (values.view(np.uint32) >> 16).astype(np.uint16))
        peer = running.peer()
        entry = find(kit, peer, chain.refs[0])
        assert entry.form > 0
        assert not entry.exact
        record = unpack(read(kit, peer, chain.refs[0], entry, 0, 4096))
        assert (record.form, record.stored, record.total_bytes) == (entry.form, entry.stored, entry.total_bytes)

    def test_what_a_disk_alone_has_comes_as_it_would_lie_in_memory(
        self, start: Callable[..., Running], kit: Any, tmp_path: Path
    ) -> None:
        running = start(nvme=NvmeConfig(tmp_path / "nvme", 64 * MiB, 4 * MiB, 0, 2))
        chain = kit.prompt()
        with running.client() as client:
            for ref in chain.refs:
                client.put(kit.spec, ref, kit.content(ref), ack="persisted")
        core, removed = running.store.core, Removed()
        with core.lock:
            for row in core.index.chunks(0, 100)[0].tolist():
                assert core.drop_from(row, 0, removed)
        core.settle(removed)
        peer = running.peer()
        data = read(kit, peer, chain.refs[0], find(kit, peer, chain.refs[0]))
        assert data[16:32] == bytes(16)  # neither generation nor seal of a log
        assert unpack(data).key == chain.refs[0].key
        assert data[BLOCK:] == kit.content(chain.refs[0]).tobytes()


class TestWhatItDoesToTheOwner:
    def test_a_record_stays_while_it_is_being_read(self, start: Callable[..., Running], kit: Any) -> None:
        running = start(dram=128 * MiB)
        spec = kvstore.KVSpec.dense("long", layers=16, kv_heads=8, head_dim=128, chunk_tokens=1024)  # 64 MiB
        ref = kvstore.Client(running.store.session("default")).chain(spec, range(1024)).refs[0]
        data = bytes(range(256)) * (spec.part_bytes(spec.part(), 1024) // 256)
        with running.client() as client:
            client.put(spec, ref, memoryview(data))
            peer = running.peer()
            name = pack(Name(namespace_digest("default"), spec.digest, ref.key, spec.part()))
            (row,) = peer.find([name], WITHIN_S)
            entry = unpack_row(row, ref.key, spec.part())
            assert entry is not None
            request = pb.RecordRequest(name=name, bytes=entry.total_bytes, total=entry.total_bytes)
            with_payload = threading.Event()

            def slowly(line: Any) -> bytearray:
                line.in_step = False
                line.send(pb.METHOD_RECORD, request.SerializeToString())
                frame = peer._lines.answer(line)
                with_payload.set()
                assert client.delete(spec, [ref.key]) == 1  # waits for the reader a little, then leaves it to it
                out = bytearray(frame.payload)
                line.read_into(memoryview(out))
                line.in_step = True
                return out

            out = peer._lines.once(slowly, time.monotonic() + WITHIN_S)
            assert with_payload.is_set()
            assert out[entry.total_bytes - len(data) :] == data
            kit.until(lambda: client.stats()["tiers"]["dram"]["used"] == 0)  # with its reader it goes
            with pytest.raises(NotFound):
                client.get(spec, ref)

    def test_a_use_elsewhere_keeps_it_here(self, start: Callable[..., Running], kit: Any) -> None:
        running, chain = start(dram=8 * MiB, policy="lru"), kit.prompt(chunks=20)
        peer = running.peer()
        with running.client() as client:
            kit.fill(client, chain)
            kit.fill(client, kit.prompt(1, 30))
            peer.find([name_of(kit, ref) for ref in chain.refs], WITHIN_S, used=True)
            kit.fill(client, kit.prompt(2, 30))  # what goes is of the second prompt
            assert client.lookup(kit.spec, chain).tokens == len(chain.ids)
            assert client.lookup(kit.spec, kit.prompt(1, 30)).tokens < 30 * kit.spec.chunk_tokens
            kit.check(client, chain)

    def test_of_a_prefix_the_end_goes_first(self, start: Callable[..., Running], kit: Any) -> None:
        running, chain = start(policy="lru"), kit.prompt(chunks=100)  # more than are looked at under one lock
        peer = running.peer()
        with running.client() as client:
            kit.fill(client, chain)
            peer.find([name_of(kit, ref) for ref in chain.refs], WITHIN_S, used=True)
            kit.fill(client, kit.prompt(2, 60))
            left = client.lookup(kit.spec, chain).tokens // kit.spec.chunk_tokens
            assert 40 <= left < 100
            there = [ref.key for ref in chain.refs[left:]]
            assert not {info.key for info in client.list()} & set(there)
