"""Reads that the server does not hear of: what they hold, and never a byte of another chunk."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Client, Config, DramConfig, NamespaceConfig, ServerConfig
from kvstore._native import HAZARD_TABLE_BYTES, MAX_HAZARDS
from kvstore.channels.lines import hello_message
from kvstore.channels.stream import FAILED, Stream
from kvstore.server import Server, serve
from kvstore.store import Store
from kvstore.v1 import kvstore_pb2 as pb

MiB = 1 << 20
CHUNKS = 320  # more than fit
READER = """
import random, sys, time
import numpy as np
import kvstore
from kvstore import KVSpec
path, seed, seconds, chunks = sys.argv[1], *map(int, sys.argv[2:])
spec = KVSpec.dense("small", layers=4, kv_heads=2, head_dim=16, chunk_tokens=64)
client = kvstore.connect("local:" + path, timeout=20)
refs = client.chain(spec, range(64 * chunks)).refs
rng, reads, end = random.Random(seed), 0, time.monotonic() + seconds

def check(array, number, where):
    global reads
    reads += 1
    first = int(array.flat[0])
    if first % 1024 != number or not (array == first).all():
        print("wrong", where, number, np.unique(array)[:8], flush=True)
        sys.exit(1)
    return first

print("ready", flush=True)
while time.monotonic() < end:
    kind, start = rng.randrange(4), rng.randrange(chunks - 8)
    try:
        if kind == 0:
            check(client.get(spec, refs[start]), start, "get")
        elif kind == 1:
            with client.view(spec, refs[start]) as view:
                array = np.frombuffer(view.data, np.uint16)
                before = check(array, start, "view")
                time.sleep(rng.random() * 0.01)
                if check(array, start, "view later") != before:
                    print("changed", flush=True)
                    sys.exit(1)
                del array
        elif kind == 2:
            with client.lookup(spec, refs[start : start + 8], lease_s=rng.choice([0.01, 5])) as hit:
                for ref in hit.refs:
                    time.sleep(rng.random() * 0.002)
                    check(client.get(spec, ref), refs.index(ref), "leased")
        else:
            outs = [np.zeros(spec.part_shape(spec.part(), 64), np.uint16) for _ in range(8)]
            wants = [client.want(spec, ref, out) for ref, out in zip(refs[start : start + 8], outs)]
            for n, outcome in enumerate(client.get_many(spec, wants)):
                if outcome is None:
                    check(outs[n], start + n, "batch")
    except (kvstore.NotFound, kvstore.Shed):
        continue
hazards = client.backend._life.hazards
print("done", reads, len(hazards), flush=True)
"""


@pytest.fixture
def small(request: pytest.FixtureRequest) -> Iterator[tuple[Store, Server]]:
    """A server with so little memory that it changes hands all the time; a test's parameter is its policy."""
    settings = Config(
        dram=DramConfig(8 * MiB, 4 * MiB),
        namespaces=(NamespaceConfig("default"), NamespaceConfig("other")),
        server=ServerConfig(listen="127.0.0.1:0"),
        put_wait_s=1.0,
        policy=getattr(request, "param", Config.policy),
    )
    store = Store(settings)
    server = serve(store, settings)
    yield store, server
    server.stop(0.2)
    store.close()


@pytest.fixture
def start_reader() -> Iterator[Callable[..., Any]]:
    made: list[subprocess.Popen[str]] = []

    def begin(path: str, seed: int, seconds: int) -> Any:
        command = [sys.executable, "-c", READER, path, str(seed), str(seconds), str(CHUNKS)]
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield begin
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            each.kill()
        each.wait(20)
        assert each.stdout is not None
        each.stdout.close()


@pytest.fixture
def local(running: Any) -> Iterator[Client]:
    with kvstore.connect("local:" + running.server.local) as made:
        yield made


def block_of(kit: Any, number: int, version: int = 0) -> np.ndarray[Any, Any]:
    return np.full(kit.small.part_shape(kit.small.part(), 64), number + 1024 * version, np.uint16)


def used(store: Store) -> int:
    return int(store.session("default").stats()["tiers"]["dram"]["used"])


def gauge(store: Store, name: str) -> int:
    return int(store.session("default").stats()["gauges"][name])


def no_calls(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on everything that is asked of the server fails."""
    backend: Any = client.backend

    def refuse(*args: Any) -> None:
        raise AssertionError("the server was asked")

    monkeypatch.setattr(backend._lines, "run", refuse)


def test_readers_never_see_another_chunk_while_memory_changes_hands(
    small: tuple[Store, Server], start_reader: Any, kit: Any
) -> None:
    """Eviction, deletion, quarantine and new versions against views, gets and leases; a reader is killed, too."""
    store, server = small
    client = Client(store.session("default"))
    refs = client.chain(kit.small, range(64 * CHUNKS)).refs
    readers = [start_reader(server.local, seed, 6) for seed in range(3)]
    victim = start_reader(server.local, 99, 60)
    for each in (*readers, victim):
        assert each.stdout.readline() == "ready\n"
    over, rng = threading.Event(), random.Random(4)

    def damage() -> None:
        """Spoil a copy whose chunk nobody has found yet, and have it quarantined."""
        mine = client.chain(kit.small, range(7, 71)).refs[0]
        with contextlib.suppress(kvstore.KVStoreError):
            client.put(kit.small, mine, block_of(kit, 0))
            with client.view(kit.small, mine) as view:
                memory = np.frombuffer(view.data, np.uint8)
                ctypes.c_uint8.from_address(memory.ctypes.data).value ^= 1
                del memory
            client.get(kit.small, mine, verify=True)

    def churn(seed: int) -> None:
        rng, version = random.Random(seed), 0
        while not over.is_set():
            number, version = rng.randrange(CHUNKS), (version + 1) % 60
            with contextlib.suppress(kvstore.Shed):
                client.put(kit.small, refs[number], block_of(kit, number, version))
            if rng.random() < 0.3:
                client.delete(kit.small, [refs[(number + n) % CHUNKS].key for n in range(4)])

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    waited = 0
    while any(each.poll() is None for each in readers):
        time.sleep(0.05)
        waited = max(waited, gauge(store, "waiting_bytes"))
        damage()
        if rng.random() < 0.2:
            victim.send_signal(signal.SIGSTOP if rng.random() < 0.5 else signal.SIGCONT)
    over.set()
    for thread in threads:
        thread.join()
    told = [each.stdout.read().split() for each in readers]
    assert [words[0] for words in told] == ["done"] * 3, told
    assert all(int(words[1]) > 20 for words in told), told  # each has read; how often is the machine's affair
    assert [int(words[2]) for words in told] == [0] * 3, "every hazard was released"
    assert waited > 0, "something must have been deleted while it was read"
    victim.kill()
    assert "wrong" not in victim.stdout.read()
    client.delete(kit.small, [ref.key for ref in refs])
    client.delete(kit.small, [client.chain(kit.small, range(7, 71)).refs[0].key])
    kit.eventually(lambda: used(store) == 0)


def test_nothing_is_asked_of_the_server(local: Client, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = local.chain(kit.small, range(64 * 4))
    for number, ref in enumerate(chain.refs):
        local.put(kit.small, ref, block_of(kit, number))
    local.get(kit.small, chain.refs[0])
    no_calls(local, monkeypatch)
    with local.lookup(kit.small, chain, lease_s=5) as hit:
        assert hit.tokens == 64 * 4
        assert hit.lease
        assert (local.get(kit.small, hit.refs[3], verify=True) == 3).all()
    assert (local.get(kit.small, chain.refs[2], layers=(1, 2)) == 2).all()
    with local.view(kit.small, chain.refs[1]) as view:
        assert (np.frombuffer(view.data, np.uint16) == 1).all()
        assert view.record.key == chain.refs[1].key


def test_many_views_while_everything_is_evicted(small: tuple[Store, Server], kit: Any) -> None:
    """They keep their bytes, and the memory comes back when they are closed."""
    store, server = small
    with kvstore.connect("local:" + server.local) as client:
        refs = client.chain(kit.small, range(64 * CHUNKS)).refs
        views = []
        for number, ref in enumerate(refs[:60]):
            client.put(kit.small, ref, block_of(kit, number))
            views.append(client.view(kit.small, ref))
        client.delete(kit.small, [ref.key for ref in refs[:30]])
        for turn in range(3):
            for number, ref in enumerate(refs[60:]):
                with contextlib.suppress(kvstore.Shed):
                    client.put(kit.small, ref, block_of(kit, number, turn))
            client.delete(kit.small, [ref.key for ref in refs[60:]])
        assert client.lookup(kit.small, refs[30:60]).tokens == refs[59].end, "what is viewed is not chosen to go"
        assert gauge(store, "waiting_bytes") == used(store) // 2 > 0
        for number, view in enumerate(views):
            assert (np.frombuffer(view.data, np.uint16) == number).all()
            view.close()
        client.delete(kit.small, [ref.key for ref in refs])
        kit.eventually(lambda: used(store) == 0)


@pytest.mark.parametrize("small", ["lru"], indirect=True)
def test_what_is_used_without_a_call_is_used(small: tuple[Store, Server], kit: Any) -> None:
    """It stays when room is made, counts as hits, and of a prefix the tail goes first."""
    store, server = small
    with kvstore.connect("local:" + server.local) as client:
        chain = client.chain(kit.small, range(64 * CHUNKS))
        for number, ref in enumerate(chain.refs[:100]):
            client.put(kit.small, ref, block_of(kit, number))
        client.lookup(kit.small, chain.refs[:20], lease_s=5).release()
        client.get(kit.small, chain.refs[50])
        kit.eventually(lambda: client.stats()["counters"].get("hit_tokens") == 20 * 64)
        core = store._core
        with core.lock:
            rows = list(core.usage.policy(0, core.catalog.namespace("default")).victims())
            order = [core.index.chunk(row).key for row in rows]
        position = {ref.key: number for number, ref in enumerate(chain.refs)}
        assert [position[key] for key in order[-21:]] == [*range(19, -1, -1), 50]
        assert client.stats()["counters"]["hits_dram"] == 1
        for number, ref in enumerate(client.chain(kit.small, range(1, 1 + 64 * 200)).refs):
            client.put(kit.small, ref, block_of(kit, number))
        assert client.contains(kit.small, [*chain.refs[:20], chain.refs[50]]) == [True] * 21
        assert client.contains(kit.small, chain.refs[70:100]) == [False] * 30


def test_a_lease_that_is_too_long_is_refused_all_the_same(local: Client, kit: Any) -> None:
    chain = local.chain(kit.small, range(64))
    local.put(kit.small, chain.refs[0], block_of(kit, 1))
    with pytest.raises(kvstore.InvalidArgument, match="a lease lasts up to"):
        local.lookup(kit.small, chain, lease_s=1e6)


def test_renewing_a_lease_replaces_what_it_held(local: Client, running: Any, kit: Any) -> None:
    """From a call to hazards and back, under one id."""
    chain = local.chain(kit.small, range(64 * 3))
    for number, ref in enumerate(chain.refs):
        local.put(kit.small, ref, block_of(kit, number))
    query = kvstore.api.Query(kit.small, chain.packed, (), kvstore.Fidelity.EXACT, bytes(16), 5.0)
    lossy = kvstore.api.Query(kit.small, chain.packed, (), kvstore.Fidelity.LOSSY, bytes(16), 5.0)
    for _ in range(3):
        local.backend.lookup(query)
        assert running.gauge("hazards") == 3
        local.backend.lookup(lossy)  # only the server answers that
        assert (running.gauge("hazards"), running.gauge("leases")) == (0, 1)
    local.backend.lookup(query)
    local.backend.release([bytes(16)])
    local.backend._releases.send(())  # type: ignore[attr-defined]
    kit.eventually(lambda: running.gauge("hazards") == running.gauge("leases") == 0)


def test_hits_that_nobody_releases_end_by_themselves(local: Client, running: Any, kit: Any) -> None:
    chain = local.chain(kit.small, range(64 * 3))
    for number, ref in enumerate(chain.refs):
        local.put(kit.small, ref, block_of(kit, number))
    for _ in range(200):
        local.lookup(kit.small, chain, lease_s=0.05)
    local.delete(kit.small, [ref.key for ref in chain.refs])
    kit.eventually(lambda: running.gauge("hazards") == running.used() == 0)
    for number, ref in enumerate(chain.refs):
        local.put(kit.small, ref, block_of(kit, number))
    for _ in range(200):
        local.lookup(kit.small, chain, lease_s=5).release()
    assert len(local.backend._life.hazards) < 3 * 201  # type: ignore[attr-defined]


def test_in_the_child_of_a_fork_nothing_is_released(local: Client, running: Any, kit: Any) -> None:
    (ref,) = local.chain(kit.small, range(64)).refs
    local.put(kit.small, ref, block_of(kit, 5))
    hit, view = local.lookup(kit.small, [ref], lease_s=30), local.view(kit.small, ref)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            view.close()
            hit.release()
            local.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert running.gauge("hazards") == 2
    local.delete(kit.small, [ref.key])
    assert (np.frombuffer(view.data, np.uint16) == 5).all()
    assert running.used() > 0
    view.close()
    hit.release()
    kit.eventually(lambda: running.used() == 0)


# Tables of clients that mean no good


class Hostile:
    """A connection that speaks frames, with a hazard table that it fills itself."""

    def __init__(self, path: str, namespace: str = "default") -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        self.stream = Stream(sock, 10.0)
        self.ask(pb.METHOD_HELLO, hello_message(os.urandom(16), "", namespace))
        self.fd = -1

    def ask(self, method: int, message: Any, *descriptors: int) -> None:
        self.stream.send(method, message.SerializeToString(), descriptors=descriptors)
        while (frame := self.stream.receive()) is not None and frame.method == pb.METHOD_EXTENTS:
            self.stream.drop_descriptors()
        assert frame is not None
        if frame.flags & FAILED:
            raise kvstore.wire.failure_from_message(pb.Failure.FromString(frame.message))

    def offer(self, nbytes: int, seals: int, told: int | None = None) -> None:
        self.close_table()
        self.fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, nbytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self.ask(pb.METHOD_HAZARDS, pb.HazardsRequest(bytes=nbytes if told is None else told), self.fd)

    def close_table(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        self.close_table()
        self.stream.close()


@pytest.fixture
def hostile(running: Any) -> Iterator[Callable[..., Hostile]]:
    made: list[Hostile] = []

    def connect(namespace: str = "default") -> Hostile:
        made.append(Hostile(running.server.local, namespace))
        return made[-1]

    yield connect
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("nbytes", "seals", "told"),
    [
        (HAZARD_TABLE_BYTES, 0, None),
        (HAZARD_TABLE_BYTES, fcntl.F_SEAL_GROW, None),
        (HAZARD_TABLE_BYTES - 4096, fcntl.F_SEAL_SHRINK, None),
        (HAZARD_TABLE_BYTES * 2, fcntl.F_SEAL_SHRINK, None),
        (HAZARD_TABLE_BYTES, fcntl.F_SEAL_SHRINK, HAZARD_TABLE_BYTES * 2),
        (HAZARD_TABLE_BYTES - 4096, fcntl.F_SEAL_SHRINK, HAZARD_TABLE_BYTES),
        (HAZARD_TABLE_BYTES, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE, None),
    ],
)
def test_a_table_that_is_not_one_is_refused(
    hostile: Any, running: Any, nbytes: int, seals: int, told: int | None
) -> None:
    with pytest.raises(kvstore.InvalidArgument):
        hostile().offer(nbytes, seals, told)
    assert running.gauge("hazards") == 0


def test_a_hostile_table_holds_its_own_namespace_and_harms_nobody(hostile: Any, running: Any, kit: Any) -> None:
    rng, seals = np.random.default_rng(5), fcntl.F_SEAL_SHRINK
    mine, theirs = (Client(running.store.session(name)) for name in ("other", "default"))
    refs = mine.chain(kit.small, range(64 * 40)).refs
    evil = hostile("other")
    evil.offer(HAZARD_TABLE_BYTES, seals)
    every = np.zeros((MAX_HAZARDS, 2), "<u8")  # every block of the first extents, for ever
    every[:, 0] = [(extent << 28) + block for extent in (1, 2) for block in range(MAX_HAZARDS // 2)]
    every[:, 1] = 0xFFFF_FFFF_FFFF_FFFF
    for turn in range(20):
        data = rng.bytes(HAZARD_TABLE_BYTES) if turn else every.tobytes()
        os.pwrite(evil.fd, data, 0 if turn else 4096)
        os.pwrite(evil.fd, b"\xff" * 8, 128)  # the high-water mark
        for client, number in ((mine, 1), (theirs, 2)):
            for ref in refs:
                client.put(kit.small, ref, block_of(kit, number))
            assert all((client.get(kit.small, ref) == number).all() for ref in refs)
            assert client.delete(kit.small, [ref.key for ref in refs]) == 40
        time.sleep(0.02)
    os.pwrite(evil.fd, every.tobytes(), 4096)
    evil.offer(HAZARD_TABLE_BYTES, seals)  # another one takes its place
    kit.eventually(lambda: running.used() == 0)
    evil.close()
    with kvstore.connect("local:" + running.server.local) as client:
        client.put(kit.small, refs[0], block_of(kit, 3))
        assert (client.get(kit.small, refs[0]) == 3).all()


def test_memory_that_a_client_held_is_free_when_it_is_gone(hostile: Any, running: Any, kit: Any) -> None:
    client = Client(running.store.session("default"))
    (ref,) = client.chain(kit.small, range(64)).refs
    evil = hostile()
    evil.offer(HAZARD_TABLE_BYTES, fcntl.F_SEAL_SHRINK)
    client.put(kit.small, ref, block_of(kit, 1))
    os.pwrite(evil.fd, np.array([1 << 28, 0xFFFF_FFFF_FFFF_FFFF], "<u8").tobytes(), 4096)
    os.pwrite(evil.fd, b"\x01\0\0\0", 128)
    client.delete(kit.small, [ref.key])
    time.sleep(0.6)
    assert running.gauge("waiting_bytes") == running.used() > 0
    evil.close()
    kit.eventually(lambda: running.used() == 0)


def test_a_record_of_another_name_is_not_read(local: Client, running: Any, kit: Any) -> None:
    """As it would be found by a tag that two chunks share: the server decides."""
    (ref,) = local.chain(kit.small, range(64)).refs
    local.put(kit.small, ref, block_of(kit, 5))
    with running.store.session("default").view(kit.small, ref, kit.small.part()) as view:
        payload = np.frombuffer(view.data, np.uint8).ctypes.data
    ctypes.c_uint8.from_address(payload - 4096 + 96).value ^= 1  # of the spec in the record's header
    out = np.zeros_like(block_of(kit, 0))
    with pytest.raises((kvstore.SpecMismatch, kvstore.Corrupt)):
        local.get(kit.small, ref, out=out)
    with pytest.raises(kvstore.NotFound):
        local.view(kit.small, ref)


def test_a_chunk_that_cannot_be_is_refused(local: Client, kit: Any) -> None:
    (ref,) = local.chain(kit.small, range(64)).refs
    local.put(kit.small, ref, block_of(kit, 5))
    local.get(kit.small, ref)
    for wrong in (kvstore.ChunkRef(ref.key, ref.parent, -1, 64), kvstore.ChunkRef(ref.key[:5], ref.parent, 0, 64)):
        with pytest.raises(kvstore.InvalidArgument):
            local.backend.view(kit.small, wrong, kit.small.part())
        want = kvstore.Want(wrong, kit.small.part(), memoryview(bytearray(block_of(kit, 0).nbytes)))
        with pytest.raises(kvstore.InvalidArgument):
            local.backend.get(kit.small, [want])
