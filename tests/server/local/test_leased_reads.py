"""Reading out of mapped extents: under a lease, after it, and while the server's memory changes hands."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Client, InvalidArgument
from kvstore.channels import local as channel
from kvstore.v1 import kvstore_pb2 as pb

READER = """
import sys, numpy as np, kvstore
from kvstore import KVSpec
spec = KVSpec.dense("small", layers=4, kv_heads=2, head_dim=16, chunk_tokens=64)
client = kvstore.connect("local:" + sys.argv[1])
chain = client.chain(spec, range(64 * 40))
hit = client.lookup(spec, chain, lease_s=float(sys.argv[2]))
print(hit.tokens, flush=True)
while True:
    for number, ref in enumerate(hit.refs):
        try:
            found = client.get(spec, ref)
        except kvstore.NotFound:
            continue
        if not (found == number + 1).all():
            print("wrong", number, found.flat[0], flush=True)
            sys.exit(1)
    print("round", flush=True)
"""


def block_of(kit: Any, number: int) -> np.ndarray[Any, Any]:
    return np.full(kit.small.part_shape(kit.small.part(), 64), number, np.uint16)


@pytest.fixture
def local(running: Any) -> Iterator[Client]:
    with kvstore.connect("local:" + running.server.local) as made:
        yield made


@pytest.fixture
def reader(running: Any) -> Iterator[Callable[[float], Any]]:
    made: list[subprocess.Popen[str]] = []

    def begin(lease_s: float) -> Any:
        command = [sys.executable, "-c", READER, running.server.local, str(lease_s)]
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert made[-1].stdout is not None
        assert made[-1].stdout.readline() == f"{64 * 40}\n"
        return made[-1]

    yield begin
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            each.send_signal(signal.SIGKILL)
        each.wait(20)
        assert each.stdout is not None
        each.stdout.close()


def calls(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The look-ups and places that the server is asked for from now on."""
    seen: list[int] = []
    backend: Any = client.backend
    exchange = backend._lines.exchange

    def watched(line: Any, method: int, *rest: Any) -> bytes:
        if method in (pb.METHOD_LOOKUP, pb.METHOD_PLACE):
            seen.append(method)
        told: bytes = exchange(line, method, *rest)
        return told

    monkeypatch.setattr(backend._lines, "exchange", watched)
    return seen


def test_a_leased_chunk_is_read_without_a_call(local: Client, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = local.chain(kit.small, range(192))
    for number, ref in enumerate(chain.refs):
        local.put(kit.small, ref, block_of(kit, number))
    with local.lookup(kit.small, chain, lease_s=10):  # maps the index and the extents
        local.get(kit.small, chain.refs[0])
    seen = calls(local, monkeypatch)
    with local.lookup(kit.small, chain, lease_s=10) as hit:
        asked = len(seen)
        wants = [local.want(kit.small, ref, np.zeros_like(block_of(kit, 0))) for ref in hit.refs]
        assert local.get_many(kit.small, wants, verify=True) == [None] * 3
        for number, ref in enumerate(hit.refs):
            assert (local.get(kit.small, ref) == number).all()
            assert (local.get(kit.small, ref, layers=(1, 3)) == number).all()
    local.get(kit.small, chain.refs[0])
    assert asked == len(seen) == 0


def test_asking_again_under_the_same_lease_replaces_what_is_held(start: Callable[..., Any], kit: Any) -> None:
    running = start(namespaces=(kvstore.NamespaceConfig("default", policy="lru"),))
    with kvstore.connect("local:" + running.server.local) as local:
        chain = local.chain(kit.small, range(192))
        for number, ref in enumerate(chain.refs):
            local.put(kit.small, ref, block_of(kit, number))
        short = local.chain(kit.small, range(70))
        for ref in short.tails(64, 2):
            local.put(kit.small, ref, np.zeros(kit.small.part_shape(kit.small.part(), ref.tokens), np.uint16))
        with local.lookup(kit.small, short, lease_s=10, block_tokens=2) as hit:
            assert hit.tokens == 68
            assert running.gauge("hazards") == 2
            assert (local.get(kit.small, hit.refs[0]) == 0).all()
        assert running.gauge("hazards") == running.gauge("leases") == 0


@pytest.mark.parametrize(("policy", "asked"), [("value", 1), ("lru", 0)])
def test_a_look_up_that_misses_something_is_the_servers_where_its_policy_learns_of_that(
    start: Callable[..., Any], kit: Any, monkeypatch: pytest.MonkeyPatch, policy: str, asked: int
) -> None:
    running = start(namespaces=(kvstore.NamespaceConfig("default", policy=policy),))
    with kvstore.connect("local:" + running.server.local) as local:
        chain = local.chain(kit.small, range(64 * 4))
        for number, ref in enumerate(chain.refs[:2]):
            local.put(kit.small, ref, block_of(kit, number))
        told: list[list[int]] = []
        monkeypatch.setattr(running.store._core.usage, "asked", lambda scope, refs, rows: told.append(list(rows)))
        seen = calls(local, monkeypatch)
        with local.lookup(kit.small, chain.refs[:2], lease_s=10) as hit:
            assert hit.tokens == 128
        assert (seen, told) == ([], [])
        with local.lookup(kit.small, chain, lease_s=10) as hit:
            assert hit.tokens == 128
            for number, ref in enumerate(hit.refs):
                assert (local.get(kit.small, ref) == number).all()
        assert len(seen) == len(told) == asked
        assert all([row >= 0 for row in rows] == [True, True, False, False] for rows in told)
        local.lookup(kit.small, chain)  # without a lease it is a hint, and asks for nothing
        assert len(seen) == asked


def test_two_leases_on_one_chunk(local: Client, running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = local.chain(kit.small, range(64))
    local.put(kit.small, chain.refs[0], block_of(kit, 7))
    first, second = (local.lookup(kit.small, chain, lease_s=10) for _ in range(2))
    seen = calls(local, monkeypatch)
    local.delete(kit.small, [chain.refs[0].key])  # what is leased is read all the same, and by nobody else
    assert (local.get(kit.small, chain.refs[0]) == 7).all()
    second.release()
    assert (local.get(kit.small, chain.refs[0]) == 7).all()
    assert seen == []
    first.release()
    with pytest.raises(kvstore.NotFound):
        local.get(kit.small, chain.refs[0])
    assert len(seen) == 1


def test_a_copy_that_outlasts_its_lease_does_not_count(
    local: Client, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = local.chain(kit.small, range(64))
    local.put(kit.small, chain.refs[0], block_of(kit, 3))
    local.lookup(kit.small, chain, lease_s=0.2)
    fill, late = channel.fill, [True]

    def slow(*args: Any) -> Any:
        outcome = fill(*args)
        if late.pop() if late else False:
            time.sleep(0.3)
            args[2].out[:] = bytes(args[2].out.nbytes)  # as if another chunk were there by now
        return outcome

    monkeypatch.setattr(channel, "fill", slow)
    assert (local.get(kit.small, chain.refs[0]) == 3).all()


def test_a_get_that_is_late_every_time_ends(local: Client, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (ref,) = local.chain(kit.small, range(64)).refs
    local.put(kit.small, ref, block_of(kit, 3))
    monkeypatch.setattr(channel, "HOLD_S", 0.002)
    with pytest.raises(kvstore.DeadlineExceeded, match="took longer"):
        local.get(kit.small, ref)


def test_a_lease_is_given_up_before_the_server_hears_of_it(local: Client, kit: Any) -> None:
    chain = local.chain(kit.small, range(64))
    local.put(kit.small, chain.refs[0], block_of(kit, 3))
    hit = local.lookup(kit.small, chain, lease_s=10)
    leases = local.backend._life.leases  # type: ignore[attr-defined]
    part = kit.small.part()
    assert leases.find(kit.small.digest, chain.refs[0], part, kvstore.Fidelity.EXACT) is not None
    (lease,) = leases._leases.values()
    hit.release()
    assert lease.deadline == 0
    assert leases.find(kit.small.digest, chain.refs[0], part, kvstore.Fidelity.EXACT) is None


def test_a_killed_client_leaves_nothing_leased(running: Any, local: Client, kit: Any, reader: Any) -> None:
    for number, ref in enumerate(local.chain(kit.small, range(64 * 40)).refs):
        local.put(kit.small, ref, block_of(kit, number + 1))
    child = reader(50.0)
    assert running.gauge("hazards") >= 40
    child.send_signal(signal.SIGKILL)
    kit.eventually(lambda: running.gauge("hazards") == 0)
    keys = [ref.key for ref in local.chain(kit.small, range(64 * 40)).refs]
    assert local.delete(kit.small, keys) == 40
    kit.eventually(lambda: running.used() == 0)


def test_a_client_that_stands_still_past_its_lease_reads_no_wrong_byte(
    running: Any, local: Client, kit: Any, reader: Any
) -> None:
    refs = local.chain(kit.small, range(64 * 40)).refs
    for number, ref in enumerate(refs):
        local.put(kit.small, ref, block_of(kit, number + 1))
    child = reader(1.0)
    for turn in range(6):
        time.sleep(0.05)
        child.send_signal(signal.SIGSTOP)
        if not turn:
            kit.eventually(lambda: running.gauge("hazards") == 0)
            assert local.delete(kit.small, [ref.key for ref in refs]) == 40
        for ref in local.chain(kit.small, range(turn + 1, turn + 1 + 64 * 80)).refs:  # other bytes in the same memory
            local.put(kit.small, ref, block_of(kit, 999))
        child.send_signal(signal.SIGCONT)
        assert child.stdout.readline() == "round\n"
    assert child.poll() is None


def test_damaged_bytes_are_quarantined_by_a_verified_get(running: Any, local: Client, kit: Any) -> None:
    chain = local.chain(kit.small, range(64))
    (ref,) = chain.refs
    local.put(kit.small, ref, block_of(kit, 5))
    store = running.store.session("default")
    with store.view(kit.small, ref, kit.small.part()) as view:
        memory = np.frombuffer(view.data, np.uint8)
        address = memory.ctypes.data
        del memory
    import ctypes

    ctypes.c_uint8.from_address(address).value ^= 1
    with local.lookup(kit.small, chain, lease_s=10), pytest.raises(kvstore.Corrupt, match=ref.key.hex()):
        local.get(kit.small, ref, verify=True)
    with pytest.raises(kvstore.NotFound):
        local.get(kit.small, ref)


def test_wrong_destinations_and_missing_chunks(local: Client, kit: Any) -> None:
    refs = local.chain(kit.small, range(128)).refs
    local.put(kit.small, refs[0], block_of(kit, 5))
    outs = [memoryview(bytearray(kit.small.part_bytes(kit.small.part(), 64) - gap)) for gap in (0, 64, 0)]
    wants = [kvstore.Want(ref, kit.small.part(), out) for ref, out in zip((refs[0], *refs), outs, strict=True)]
    right, short, missing = local.backend.get(kit.small, wants)
    assert right is None
    assert isinstance(short, InvalidArgument)
    assert isinstance(missing, kvstore.NotFound)


def test_views_hold_their_chunk_until_nothing_stands_on_them(running: Any, local: Client, kit: Any) -> None:
    (ref,) = local.chain(kit.small, range(64)).refs
    local.put(kit.small, ref, block_of(kit, 5))
    view = local.view(kit.small, ref)
    assert (view.record.key, view.data.readonly) == (ref.key, True)
    array = np.frombuffer(view.data, np.uint16)
    view.close()
    view.close()
    assert local.delete(kit.small, [ref.key]) == 1
    assert (array == 5).all()
    assert running.gauge("hazards") == 1
    assert running.used() == running.gauge("waiting_bytes") > 0
    del array
    with contextlib.suppress(kvstore.NotFound):  # the next call gives the lease back
        local.view(kit.small, ref).close()
    kit.eventually(lambda: running.gauge("hazards") == 0 and running.used() == 0)


def test_many_threads_on_one_client(local: Client, running: Any, kit: Any) -> None:
    chain = local.chain(kit.small, range(64 * 16))
    for number, ref in enumerate(chain.refs):
        local.put(kit.small, ref, block_of(kit, number))
    wrong: list[Any] = []

    def read(seed: int) -> None:
        try:
            for turn in range(40):
                with local.lookup(kit.small, chain, lease_s=5) if turn % 3 else contextlib.nullcontext():
                    for number in np.random.default_rng(seed + turn).permutation(16)[:6].tolist():
                        if not (local.get(kit.small, chain.refs[number], verify=bool(turn % 2)) == number).all():
                            wrong.append(number)
                with local.view(kit.small, chain.refs[seed % 16]) as view:
                    if np.frombuffer(view.data, np.uint16)[0] != seed % 16:
                        wrong.append(view)
        except kvstore.KVStoreError as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    local.backend._releases.send(())  # type: ignore[attr-defined]
    kit.eventually(lambda: running.gauge("leases") == running.gauge("hazards") == 0)


def test_extents_are_mapped_once_and_without_a_descriptor(local: Client, running: Any, kit: Any) -> None:
    refs = local.chain(kit.small, range(64 * 8)).refs
    for ref in refs:
        local.put(kit.small, ref, block_of(kit, 1))
    local.get(kit.small, refs[0])
    life = local.backend._life  # type: ignore[attr-defined]
    kit.eventually(lambda: not running.store._core.dram.is_growing)  # extents have descriptors too
    before = len(os.listdir("/proc/self/fd"))
    together = threading.Barrier(4)

    def one(number: int) -> None:
        together.wait()
        for ref in refs:
            local.get(kit.small, ref)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(life.extents) == 1
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 4  # connections, both ends


def test_a_forked_child_gets_a_clear_error_and_leaves_the_parent_alone(local: Client, running: Any, kit: Any) -> None:
    chain = local.chain(kit.small, range(64))
    local.put(kit.small, chain.refs[0], block_of(kit, 5))
    hit = local.lookup(kit.small, chain, lease_s=30)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                local.get(kit.small, chain.refs[0])
            except kvstore.Closed:
                local.close()
                code = 0
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert (local.get(kit.small, hit.refs[0]) == 5).all()
    assert local.lookup(kit.small, chain, lease_s=30).tokens == 64
    assert running.gauge("hazards") == 2
