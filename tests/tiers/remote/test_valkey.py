"""The Valkey engine against real servers: alone, with a password, over TLS and a Unix socket, in a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvstore.bench.certificate import make_certificate
from kvstore.bench.processes import free_port
from kvstore.bench.redis_server import RedisCluster, RedisServer
from kvstore.errors import ConfigError, Corrupt, DeadlineExceeded, NotFound, StorageError, Unavailable
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.valkey import ValkeyEngine
from kvstore.tiers.remote.valkey import engine as module
from kvstore.tiers.remote.valkey.connect import Connector
from kvstore.tiers.remote.valkey.engine import LEFTOVER_S
from kvstore.tiers.remote.valkey.nodes import Address

KIB, MIB = 1 << 10, 1 << 20
WITHIN_S = 10.0
Starter = Callable[..., RedisServer]


def content(nbytes: int, seed: int = 1) -> bytes:
    word = seed.to_bytes(4, "little") + bytes(range(256))
    return (word * (nbytes // len(word) + 1))[:nbytes]


def put(engine: ValkeyEngine, name: str, data: bytes) -> bool:
    half = len(data) // 2
    return engine.put(name, [memoryview(data)[:half], memoryview(data)[half:]], WITHIN_S)


def get(engine: ValkeyEngine, name: str, offset: int, nbytes: int) -> bytes:
    out = memoryview(bytearray(nbytes))
    engine.read_into(name, offset, out, WITHIN_S)
    return bytes(out)


def fits(engine: ValkeyEngine, name: str) -> bool:
    try:
        return put(engine, name, content(900_000))
    except TierFull:
        return False


def keys(server: RedisServer, prefix: str) -> list[bytes]:
    lines = server.ask("KEYS", f"{prefix}*").split(b"\r\n")
    return lines[2::2][: int(lines[0][1:])]


def expiries(server: RedisServer, prefix: str) -> dict[bytes, int]:
    """Milliseconds that each key of a prefix has left, -1 for ever."""
    return {key: int(server.ask("PTTL", key.decode())[1:]) for key in keys(server, prefix)}


@pytest.fixture
def engine(server: RedisServer, prefix: str) -> Iterator[ValkeyEngine]:
    with closing(ValkeyEngine(server.url(), prefix=prefix)) as engine:
        yield engine


@pytest.fixture
def splitting(server: RedisServer, prefix: str) -> Iterator[ValkeyEngine]:
    """An engine that keeps 64 KiB at most in a value."""
    with closing(ValkeyEngine(server.url(), prefix=prefix, piece_bytes=64 * KIB)) as engine:
        yield engine


class TestObjects:
    @pytest.mark.parametrize("nbytes", [0, 1, 4096, 64 * KIB, 64 * KIB + 1, 300_001, 3 * MIB + 5])
    @pytest.mark.parametrize("splits", [False, True])
    def test_are_read_back_in_any_range(self, server: RedisServer, prefix: str, nbytes: int, splits: bool) -> None:
        piece = 64 * KIB if splits else 64 * MIB
        with closing(ValkeyEngine(server.url(), prefix=prefix, piece_bytes=piece)) as engine:
            data = content(nbytes)
            assert put(engine, "a", data)
            for offset in (0, 1, nbytes // 2, 64 * KIB - 1, 64 * KIB, 128 * KIB):
                for length in (1, 100, 64 * KIB, 130 * KIB, nbytes):
                    if offset + length <= nbytes:
                        assert get(engine, "a", offset, length) == data[offset : offset + length]
            assert engine.heads(["a", "b"], 100, WITHIN_S) == [data[:100], None]
            assert list(engine.list("")) == [("a", nbytes)]
            with pytest.raises(Corrupt):
                get(engine, "a", nbytes, 1)
            engine.delete(["a", "b"], WITHIN_S)
            assert engine.heads(["a"], 100, WITHIN_S) == [None]
            assert expiries(server, prefix) == {}

    def test_written_with_other_pieces_are_read(
        self, engine: ValkeyEngine, splitting: ValkeyEngine, server: RedisServer
    ) -> None:
        data = content(300_000)
        assert put(splitting, "split", data)
        assert put(engine, "whole", data)
        for reader, name in ((engine, "split"), (splitting, "whole")):
            assert get(reader, name, 0, 300_000) == data
            assert get(reader, name, 70_000, 100_000) == data[70_000:170_000]
            assert reader.heads([name], 300, WITHIN_S) == [data[:300]]

    def test_that_are_not_there_are_not_found(self, engine: ValkeyEngine) -> None:
        for nbytes in (1, 100 * MIB):
            with pytest.raises(NotFound):
                get(engine, "a", 0, nbytes)

    @pytest.mark.parametrize("nbytes", [1000, 2 * MIB])
    def test_stay_as_they_were_written_first(self, engine: ValkeyEngine, nbytes: int) -> None:
        first, second = content(nbytes, 1), content(nbytes, 2)
        assert put(engine, "a", first)
        assert not put(engine, "a", second)
        assert get(engine, "a", 0, nbytes) == first

    def test_of_many_names_are_looked_up_at_once(self, engine: ValkeyEngine) -> None:
        for number in range(0, 1000, 3):
            put(engine, f"n{number}", content(50, number))
        found = engine.heads([f"n{number}" for number in range(1000)], 20, WITHIN_S)
        assert found == [None if number % 3 else content(50, number)[:20] for number in range(1000)]
        assert {name for name, _ in engine.list("n9")} == {f"n{n}" for n in range(0, 1000, 3) if str(n)[0] == "9"}

    def test_what_others_keep_under_a_name_harms_nothing(
        self, engine: ValkeyEngine, server: RedisServer, prefix: str
    ) -> None:
        server.ask("SET", f"{prefix}{{a}}", "no object")
        server.ask("RPUSH", f"{prefix}{{b}}", "no string")
        assert engine.heads(["a"], 10, WITHIN_S) == [b""]
        with pytest.raises(Corrupt):
            get(engine, "a", 0, 100)
        with pytest.raises(StorageError, match="WRONGTYPE"):
            get(engine, "b", 0, 100)
        assert put(engine, "c", b"good")  # on the same connections
        engine.delete(["a"], WITHIN_S)
        assert put(engine, "a", b"good")


class TestSplitWrites:
    def test_two_writers_do_not_mix(self, server: RedisServer, splitting: ValkeyEngine, prefix: str) -> None:
        datas = [content(900_000, seed) for seed in range(4)]
        start, won = threading.Barrier(4), []

        def write(number: int) -> None:
            start.wait()
            if put(splitting, "a", datas[number]):
                won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert get(splitting, "a", 0, 900_000) == datas[won[0]]
        left = expiries(server, prefix)
        assert len(left) == 14  # 900,000 bytes in 64 KiB each: what the losers wrote is gone
        assert set(left.values()) == {-1}

    def test_one_that_dies_half_way_leaves_nothing_that_is_found_or_stays(
        self, server: RedisServer, splitting: ValkeyEngine, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*args: object) -> bool:
            raise Unavailable("killed")

        with monkeypatch.context() as patch:
            patch.setattr(module, "set_new", die)
            with pytest.raises(Unavailable):
                put(splitting, "a", content(300_000))
        assert splitting.heads(["a"], 10, WITHIN_S) == [None]
        assert list(splitting.list("")) == []
        left = expiries(server, prefix)
        assert len(left) == 4
        assert all(0 < each <= LEFTOVER_S * 1000 for each in left.values())
        assert put(splitting, "a", content(300_000, 2))
        assert get(splitting, "a", 0, 300_000) == content(300_000, 2)

    def test_one_that_dies_at_the_very_end_is_finished_by_the_next(
        self, server: RedisServer, splitting: ValkeyEngine, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*args: object) -> None:
            raise Unavailable("killed")

        with monkeypatch.context() as patch:
            patch.setattr(ValkeyEngine, "_lift", die)
            with pytest.raises(Unavailable):
                put(splitting, "a", content(300_000))
        assert get(splitting, "a", 0, 300_000) == content(300_000)
        assert all(each > 0 for each in expiries(server, prefix).values())
        assert not put(splitting, "a", content(300_000))
        assert set(expiries(server, prefix).values()) == {-1}

    def test_a_lost_piece_is_a_miss_and_can_be_written_again(
        self, server: RedisServer, splitting: ValkeyEngine, prefix: str
    ) -> None:
        put(splitting, "a", content(300_000))
        piece = next(key for key in expiries(server, prefix) if key.endswith(b":2"))
        server.ask("DEL", piece.decode())
        with pytest.raises(NotFound):
            get(splitting, "a", 0, 300_000)
        assert put(splitting, "a", content(300_000, 2))
        assert get(splitting, "a", 0, 300_000) == content(300_000, 2)

    def test_with_a_time_to_live_all_pieces_have_it(self, server: RedisServer, prefix: str) -> None:
        with closing(ValkeyEngine(server.url(), prefix=prefix, piece_bytes=64 * KIB, ttl_s=3600)) as engine:
            put(engine, "long", content(300_000))
            put(engine, "short", content(100))
        left = expiries(server, prefix)
        assert len(left) == 6
        assert all(3_000_000 < each <= 3_600_000 for each in left.values())


class TestLimits:
    def test_a_full_server_is_a_full_tier(self, own_server: Starter) -> None:
        server = own_server("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
        with closing(ValkeyEngine(server.url(), piece_bytes=256 * KIB)) as engine:
            number = 0
            while fits(engine, f"n{number}"):
                number += 1
                assert number < 20
            assert number > 3
            for each in range(number):
                assert get(engine, f"n{each}", 0, 900_000) == content(900_000)
            assert list(expiries(server, "kvstore/").values()).count(-1) == number * 4, (
                "pieces of the last one are left"
            )
            engine.delete([f"n{each}" for each in range(number)], WITHIN_S)
            assert put(engine, "late", content(900_000))

    def test_a_server_that_evicts_loses_records_and_none_half(self, own_server: Starter) -> None:
        server = own_server("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru")
        with closing(ValkeyEngine(server.url(), piece_bytes=256 * KIB)) as engine:
            for number in range(30):
                assert put(engine, f"n{number}", content(900_000, number))
            lost = 0
            for number in range(30):
                try:
                    assert get(engine, f"n{number}", 0, 900_000) == content(900_000, number)
                except NotFound:
                    lost += 1
            assert 15 < lost < 30

    def test_values_stay_below_what_the_server_takes(self, own_server: Starter) -> None:
        server = own_server("--proto-max-bulk-len", str(MIB))
        with closing(ValkeyEngine(server.url())) as engine:
            assert put(engine, "a", content(3 * MIB))
            assert get(engine, "a", 0, 3 * MIB) == content(3 * MIB)


class TestWaysIn:
    def check(self, engine: ValkeyEngine) -> None:
        with closing(engine):
            data = content(3 * MIB)
            assert put(engine, "a", data)
            assert get(engine, "a", 0, len(data)) == data
            assert engine.heads(["b", "a"], 50, WITHIN_S) == [None, data[:50]]
            engine.delete(["a"], WITHIN_S)

    def test_unix_socket(self, server: RedisServer, prefix: str) -> None:
        self.check(ValkeyEngine(f"unix://{server.socket}", prefix=prefix))

    def test_password_and_database(self, own_server: Starter) -> None:
        server = own_server(password="s3cret")
        self.check(ValkeyEngine(f"valkey://:s3cret@127.0.0.1:{server.port}/2"))
        self.check(ValkeyEngine(server.url(), password="s3cret"))
        for wrong in ("", "wrong"):
            with pytest.raises(ConfigError, match="password"):
                ValkeyEngine(server.url(), password=wrong)

    def test_tls(self, own_server: Starter, tmp_path: Path) -> None:
        certificate, key = make_certificate(tmp_path)
        flags = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no")
        server = own_server(*flags, "--tls-ca-cert-file", str(certificate), tls=True)
        url = server.url("valkeys")
        self.check(ValkeyEngine(url, ca_file=str(certificate)))
        self.check(ValkeyEngine(url, verify=False))
        with pytest.raises(ConfigError, match="certificate"):
            ValkeyEngine(url)
        with pytest.raises(ConfigError, match="no file"):
            ValkeyEngine(url, ca_file="/nowhere")

    def test_nobody_there(self) -> None:
        with pytest.raises(Unavailable):
            ValkeyEngine(f"valkey://127.0.0.1:{free_port()}")

    def test_a_server_that_hangs_at_the_start(self, own_server: Starter) -> None:
        server = own_server()
        server.pause()
        with pytest.raises(Unavailable, match="does not answer"):
            ValkeyEngine(server.url(), connect_s=0.2)

    @pytest.mark.parametrize(
        "options", [{"piece_bytes": 10}, {"ttl_s": -1}, {"connections": 0}, {"prefix": "a{b}"}, {"ca_file": "/x"}]
    )
    def test_options_that_cannot_work(self, server: RedisServer, options: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            ValkeyEngine(server.url(), **options)  # type: ignore[arg-type]


class TestFailures:
    def test_killed_in_mid_read_and_mid_write_and_back(self, own_server: Starter) -> None:
        server = own_server("--appendonly", "yes", "--appendfsync", "always")
        with closing(ValkeyEngine(server.url(), piece_bytes=MIB)) as engine:
            data = content(8 * MIB)
            assert put(engine, "a", data)
            stopped = self.keep_busy(engine, data, server.kill)
            assert all(isinstance(each, Unavailable | DeadlineExceeded) for each in stopped), stopped
            with pytest.raises(Unavailable):
                get(engine, "a", 0, 100)
            server.start()
            assert get(engine, "a", 0, len(data)) == data
            for name, nbytes in engine.list("w"):  # whatever is found is whole
                assert get(engine, name, 0, nbytes) == data

    def test_hangs_in_mid_read_and_mid_write_and_goes_on(self, own_server: Starter) -> None:
        server = own_server()
        with closing(ValkeyEngine(server.url(), piece_bytes=MIB)) as engine:
            data = content(8 * MIB)
            assert put(engine, "a", data)
            stopped = self.keep_busy(engine, data, server.pause, within_s=0.5)
            assert all(isinstance(each, DeadlineExceeded) for each in stopped), stopped
            server.resume()
            assert get(engine, "a", 0, len(data)) == data

    @staticmethod
    def keep_busy(
        engine: ValkeyEngine, data: bytes, strike: Callable[[], None], within_s: float = WITHIN_S
    ) -> Sequence[Exception]:
        """What two readers and two writers, who go on until something fails, were stopped by after `strike`."""
        errors: list[Exception] = []
        moving = threading.Semaphore(0)

        def until_it_fails(work: Callable[[int], object]) -> None:
            number = 0
            try:
                while True:
                    work(number)
                    number += 1
                    moving.release()
            except Exception as error:  # noqa: BLE001 - looked at by the test
                errors.append(error)

        def read(number: int) -> None:
            out = memoryview(bytearray(len(data)))
            engine.read_into("a", 0, out, within_s)
            assert out == data

        def write(writer: int) -> Callable[[int], None]:
            def one(number: int) -> None:
                engine.put(f"w{writer}-{number % 3}", [memoryview(data)], within_s)
                engine.delete([f"w{writer}-{number % 3}"], within_s)

            return one

        threads = [threading.Thread(target=until_it_fails, args=(work,)) for work in (read, read, write(0), write(1))]
        for thread in threads:
            thread.start()
        for _ in range(12):
            assert moving.acquire(timeout=30)
        strike()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        return errors

    def test_a_call_ends_in_time_though_a_server_trickles(self) -> None:
        with trickling_server() as url, pytest.raises((DeadlineExceeded, Unavailable)):
            ValkeyEngine(url, connect_s=0.5, cluster=False)

    def test_what_is_no_valkey_is_said_so(self) -> None:
        answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        with trickling_server(answer, pause_s=0) as url, pytest.raises(Unavailable, match="no server"):
            ValkeyEngine(url)


@contextmanager
def trickling_server(answer: bytes = b"+" + b"x" * 100_000, pause_s: float = 0.05) -> Iterator[str]:
    """Sends its answer byte by byte, or at once."""
    import socket

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    if not pause_s:
                        connection.sendall(answer)
                        over.wait(30)
                    for byte in answer:
                        if over.wait(pause_s):
                            return
                        connection.sendall(bytes([byte]))
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"valkey://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


class TestCluster:
    def test_objects_are_spread_and_found(self, cluster: RedisCluster, prefix: str) -> None:
        with closing(ValkeyEngine(cluster.urls()[:1], prefix=prefix, piece_bytes=64 * KIB)) as engine:
            names = [f"n{number}" for number in range(60)]
            for number, name in enumerate(names):
                assert put(engine, name, content(200_000, number))
            counts = [len(keys(server, prefix)) for server in cluster.servers]
            assert sum(counts) == 240
            assert min(counts) > 0
            assert all(count % 4 == 0 for count in counts)  # the pieces of an object are together
            assert engine.heads(names, 9, WITHIN_S) == [content(9, number) for number in range(60)]
            assert dict(engine.list("n")) == dict.fromkeys(names, 200_000)
            for number, name in enumerate(names):
                assert get(engine, name, 0, 200_000) == content(200_000, number)
            engine.delete(names, WITHIN_S)
            assert not any(keys(server, prefix) for server in cluster.servers)

    def test_a_slot_that_moves_is_followed(self, cluster: RedisCluster, prefix: str) -> None:
        with closing(ValkeyEngine(cluster.urls(), prefix=prefix, piece_bytes=64 * KIB)) as engine:
            name = "moving"
            slot = int(cluster.servers[0].ask("CLUSTER", "KEYSLOT", f"{prefix}{{{name}}}")[1:])
            owner, other = self.owner_and_other(cluster, slot)
            with moved_slot(cluster, slot, owner, other):
                assert put(engine, name, content(200_000))
                assert len(keys(other, prefix)) == 4
                assert get(engine, name, 0, 200_000) == content(200_000)
                assert engine.heads([name], 5, WITHIN_S) == [content(5)]
                engine.delete([name], WITHIN_S)

    def test_a_slot_on_its_way_is_asked_for(self, cluster: RedisCluster, prefix: str) -> None:
        with closing(ValkeyEngine(cluster.urls(), prefix=prefix, piece_bytes=64 * KIB)) as engine:
            name = "asking"
            slot = str(int(cluster.servers[0].ask("CLUSTER", "KEYSLOT", f"{prefix}{{{name}}}")[1:]))
            owner, other = self.owner_and_other(cluster, int(slot))
            other.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(owner))
            owner.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(other))
            try:
                assert put(engine, name, content(200_000))
                assert len(keys(other, prefix)) == 4
                assert get(engine, name, 0, 200_000) == content(200_000)
                assert engine.heads([name], 5, WITHIN_S) == [content(5)]
                engine.delete([name], WITHIN_S)
                assert engine.heads([name], 5, WITHIN_S) == [None]
            finally:
                for server in (owner, other):
                    server.ask("CLUSTER", "SETSLOT", slot, "STABLE")

    @staticmethod
    def owner_and_other(cluster: RedisCluster, slot: int) -> tuple[RedisServer, RedisServer]:
        owner = next(server for server in cluster.servers if owns(server, slot))
        return owner, next(server for server in cluster.servers if server is not owner)


def node_id(server: RedisServer) -> str:
    return server.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()


def owns(server: RedisServer, slot: int) -> bool:
    lines = server.ask("CLUSTER", "NODES").decode().splitlines()
    mine = next(line for line in lines if "myself" in line).split()[8:]
    for share in mine:
        first, _, last = share.partition("-")
        if not share.startswith("[") and int(first) <= slot <= int(last or first):
            return True
    return False


@contextmanager
def moved_slot(cluster: RedisCluster, slot: int, source: RedisServer, target: RedisServer) -> Iterator[None]:
    """While this lasts, an empty slot belongs to another server, whom a client that knows the old one is sent to."""
    number = str(slot)
    for owner in (target, source):
        for server in cluster.servers:
            server.ask("CLUSTER", "SETSLOT", number, "NODE", node_id(owner))
        if owner is target:
            try:
                yield
            finally:
                pass


class TestConnections:
    def test_are_kept_and_bounded(self, server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        real = Connector.__call__

        def counted(self: Connector, address: Address, timeout_s: float) -> object:
            made.append(address)
            return real(self, address, timeout_s)

        monkeypatch.setattr(Connector, "__call__", counted)
        with closing(ValkeyEngine(server.url(), prefix=prefix, connections=2)) as engine:
            data = content(300_000)
            put(engine, "a", data)
            threads = [
                threading.Thread(target=lambda: [get(engine, "a", 0, 300_000) for _ in range(20)]) for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert 1 <= len(made) <= 2
