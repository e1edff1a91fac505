"""Another kvstore as a remote place: the suites over a real server process, and what happens when it goes away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import kvstore
from kvstore.bench.fleet import PEERS_TOKEN, FleetHost
from kvstore.bench.redis_server import free_port
from kvstore.channels.peer import PeerLines
from kvstore.channels.stream import Stream
from kvstore.config import Config, DramConfig, NamespaceConfig, PeersConfig, RemoteConfig
from kvstore.errors import ConfigError, DeadlineExceeded, NotFound, StorageError, Unavailable
from kvstore.opening import open_tiers
from kvstore.store import Store
from kvstore.testing.engines import EngineConformance, content
from kvstore.testing.remote import RemoteConformance
from kvstore.tiers.base import Tier
from kvstore.tiers.remote import Engine, RemoteTier
from kvstore.tiers.remote.peer import PeerEngine

if TYPE_CHECKING:
    from kvstore.testing.faults import Fault

MIB = 1 << 20
WITHIN_S = 20.0


class Place(FleetHost):
    """A server that takes peers, at the same address whenever it starts."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.port = free_port()
        server = ["[server]", f'bulk = "127.0.0.1:{self.port}"']
        super().__init__(folder, 256 * MIB, (), [*server, "[peers]", f'token = "{PEERS_TOKEN}"', *more])

    @property
    def url(self) -> str:
        return f"kvstore://127.0.0.1:{self.port}"

    def engine(self) -> PeerEngine:
        return PeerEngine(self.url, token=PEERS_TOKEN)

    def empty(self) -> None:
        with closing(self.engine()) as engine:
            engine.delete([name for name, _ in engine.list("")], WITHIN_S)
            assert list(engine.list("")) == []

    @contextmanager
    def hung(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("place"))
    yield place
    place.stop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """One that a test may harm."""
    place = Place(tmp_path / "place")
    yield place
    place.stop()


class TestEngine(EngineConformance):
    @pytest.fixture(autouse=True)
    def _place(self, shared_place: Place) -> None:
        self.place = shared_place

    def make_engine(self) -> Engine:
        self.place.empty()
        return self.another()

    def another(self) -> Engine:
        return self.place.engine()

    def hang(self, engine: Engine) -> AbstractContextManager[None] | None:
        return self.place.hung()


class TestTier(RemoteConformance):
    """Faults of the wire strike where answers are received; the others are real."""

    tier_options: ClassVar[dict[str, Any]] = {"deadline_s": 2.0}

    @pytest.fixture(autouse=True)
    def _place(self, shared_place: Place) -> None:
        self.served = shared_place
        shared_place.empty()

    def open_engine(self) -> Engine:
        return self.served.engine()

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        injected = {"HUNG": self.served.hung, "SLOW": self._slow, "BIT_FLIP": self._bit_flip}.get(fault.name)
        return None if injected is None else injected()

    def after_outage(self, tier: Tier) -> None:
        until(lambda: tier.state == "ok")

    @contextmanager
    def _slow(self) -> Iterator[None]:
        send = Stream.send

        def late(stream: Stream, *words: Any, **options: Any) -> None:
            time.sleep(0.02)
            send(stream, *words, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stream, "send", late)
            yield

    @contextmanager
    def _bit_flip(self) -> Iterator[None]:
        receive, turns = PeerLines.receive, iter(range(1 << 30))

        def flipped(lines: PeerLines, method: int, request: Any, out: memoryview, timeout_s: float) -> None:
            receive(lines, method, request, out, timeout_s)
            at = next(turns) * 7919 % (8 * len(out))
            out[at // 8] ^= 1 << at % 8

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PeerLines, "receive", flipped)
            yield


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


class TestTheWayThere:
    def test_a_wrong_token_is_told_at_the_start(self, shared_place: Place) -> None:
        for token in ("", "another", "token-of-tenant"):
            with pytest.raises(ConfigError, match=r"refuses this host.*not the token of peers"):
                PeerEngine(shared_place.url, token=token)

    def test_nobody_there(self) -> None:
        with pytest.raises(Unavailable, match="is the server running"):
            PeerEngine(f"kvstore://127.0.0.1:{free_port()}", token="x")

    @pytest.mark.parametrize(
        "url",
        ["kvstore://", "kvstore://host", "kvstore://host:0", "kvstore://host:70000", "kvstore://h:1/x", "http://h:1"],
    )
    def test_what_names_no_server(self, url: str) -> None:
        with pytest.raises(ConfigError, match="names no kvstore"):
            PeerEngine(url, token="x")

    def test_a_server_that_hangs_at_the_start(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kvstore.tiers.remote.peer.CONNECT_S", 0.5)
        with place.hung(), pytest.raises((Unavailable, DeadlineExceeded)):
            place.engine()

    def test_a_tenant_cannot_have_the_namespace_of_objects(self) -> None:
        config = Config(
            dram=DramConfig(8 * MIB, 8 * MIB), peers=PeersConfig(token="x"),
            namespaces=(NamespaceConfig("kvstore.objects"),),
        )  # fmt: skip
        with pytest.raises(ConfigError, match="call the tenant otherwise"):
            Store(config)

    def test_by_configuration(self, shared_place: Place) -> None:
        config = Config(remote=RemoteConfig(shared_place.url, password=PEERS_TOKEN))
        dram, below, _ = open_tiers(config)
        try:
            assert [(tier.kind, tier.stats()["engine"]) for tier in below] == [("remote", "peer")]
        finally:
            for tier in (*below, dram):
                tier.close()


class TestWhenItGoesAway:
    def test_kill_9_is_an_error_at_once_and_it_is_found_again(self, place: Place) -> None:
        with closing(RemoteTier(place.engine(), capacity=64 * MIB, deadline_s=5.0)) as tier:
            engine = tier.engine
            assert engine.put("a", [content(1, 100_000)], WITHIN_S)
            place.kill()
            with pytest.raises(Unavailable):
                engine.read_into("a", 0, content(2, 100_000), WITHIN_S)
            from kvstore.testing.records import make_sample

            start = time.monotonic()
            with pytest.raises(Unavailable):
                make_sample(1, 50_000).write_to(tier)
            assert tier.state != "ok"
            for _ in range(1000):  # the breaker is open
                with pytest.raises(Unavailable):
                    make_sample(1, 50_000).write_to(tier)
            assert time.monotonic() - start < 60
            place.start()
            until(lambda: tier.state == "ok")
            with pytest.raises(NotFound):  # it was in memory alone
                engine.read_into("a", 0, content(2, 100_000), WITHIN_S)
            sample = make_sample(1, 50_000)
            sample.check_in(tier, sample.write_to(tier))

    def test_with_a_disk_there_what_was_moved_down_survives(self, tmp_path: Path) -> None:
        disk = ("[nvme]", f'path = "{tmp_path / "disk"}"', 'capacity = "256MiB"', 'segment = "8MiB"', 'reserve = "0"')
        place = Place(tmp_path / "place", *disk)
        try:
            with closing(place.engine()) as engine:
                for number in range(200):  # DRAM is more than half full
                    assert engine.put(f"n/{number}", [content(number, MIB)], WITHIN_S)
                with closing(place.connect()) as client:
                    until(lambda: client.stats()["tiers"]["nvme"]["used"] > 16 * MIB)
            place.kill()
            place.start()
            with closing(place.engine()) as engine:
                names = [name for name, nbytes in engine.list("n/") if nbytes == MIB]
                assert len(names) >= 10
                for name in names[:20]:
                    out = content(0, MIB)
                    engine.read_into(name, 0, out, WITHIN_S)
                    assert out == content(int(name[2:]), MIB)
        finally:
            place.stop()

    def test_what_is_too_long_is_refused_and_the_connection_goes_on(self, shared_place: Place) -> None:
        shared_place.empty()
        with closing(shared_place.engine()) as engine:
            with pytest.raises(StorageError):
                engine.put("long", [memoryview(bytes(300 * MIB))], 60)
            assert engine.put("short", [content(1, 100)], WITHIN_S)


def test_two_stores_share_by_a_third(shared_place: Place) -> None:
    """As a shared tier below stores of this process."""
    shared_place.empty()
    spec = kvstore.KVSpec.dense("by-a-third", layers=2, kv_heads=2, head_dim=32, chunk_tokens=16)
    config = Config(
        dram=DramConfig(8 * MIB, 8 * MIB),
        remote=RemoteConfig(shared_place.url, password=PEERS_TOKEN, lookup_wait_s=5.0),
    )
    with kvstore.open(config) as one, kvstore.open(config) as two:
        chain = one.chain(spec, range(64))
        data = [content(number, spec.part_bytes(spec.part(), 16)) for number in range(4)]
        for ref, each in zip(chain.refs, data, strict=True):
            one.put(spec, ref, each)
        until(lambda: one.stats()["gauges"]["through"] == 0)
        assert two.lookup(spec, chain).tokens == 64
        for ref, each in zip(chain.refs, data, strict=True):
            assert two.get(spec, ref).tobytes() == bytes(each)
