"""Look-ups in shared memory: what they answer, what they leave to the server, and who sees what."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kvstore
from kvstore.api import Ack, Fidelity, Found, Offer, Query
from kvstore.config import NamespaceConfig
from kvstore.errors import Closed, Corrupt, InvalidArgument, Shed, StorageError
from kvstore.keys import pack_refs
from kvstore.session import Session
from kvstore.shared_index import SharedIndex
from kvstore.spec import KVSpec
from tests.store.conftest import (
    LARGE,
    MLA,
    SHARDED,
    SLIDING,
    SMALL,
    Box,
    MiB,
    content,
    prompt,
    says_the_same,
    shared_index,
)
from tests.store.test_corruption import PAYLOAD_AT, flip_in_dram
from tests.store.test_leases import until

ROOT = Path(__file__).parents[2]


def session_of(client: kvstore.Client) -> Session:
    assert isinstance(client.backend, Session)
    return client.backend


def tags_in(fd: int, nbytes: int) -> int:
    """How many tags a table holds, whose buckets are eight tags and eight places each."""
    buckets = np.frombuffer(os.pread(fd, nbytes, 4096), "<u8").reshape(-1, 2, 8)
    return int(np.count_nonzero(buckets[:, 0]))


@pytest.mark.parametrize("spec", [SMALL, SHARDED, MLA], ids=["one-part", "sharded", "mla"])
def test_a_chunk_is_seen_when_its_last_part_is_there(box: Box, spec: KVSpec) -> None:
    client, chain = box.open(), prompt(spec, 3, tail=5)
    with shared_index(session_of(client)) as shared:
        query = Query(spec, chain.packed)
        assert shared.lookup(query) == Found(0, range(0), [False] * 4)
        for n, ref in enumerate(chain.refs):
            for part in spec.parts():
                assert shared.lookup(query) == Found(
                    sum(each.tokens for each in chain.refs[:n]), range(n), [*[True] * n, *[False] * (4 - n)]
                )
                client.put(spec, ref, content(spec, ref, part), part=part)
        assert shared.lookup(query) == Found(len(chain.ids), range(4), [True] * 4)
        client.delete(spec, [chain.refs[1].key])
        tails = pack_refs([chain.refs[0], chain.refs[1], *chain.tails(spec.chunk_tokens, 4), chain.refs[2]])
        assert shared.lookup(Query(spec, tails)) == session_of(client).lookup(Query(spec, tails))
        assert shared.lookup(Query(replace(spec, model="other"), chain.packed)) == Found(0, range(0), [False] * 4)
    box.settled(client)


def test_what_it_cannot_say_is_left_to_the_server(box: Box) -> None:
    client, chain = box.open(), prompt(SHARDED, 2)
    box.fill(client, SHARDED, chain.refs)
    box.fill(client, SLIDING, prompt(SLIDING, 2).refs)
    shared, parts = shared_index(session_of(client)), tuple(SHARDED.parts())
    query = Query(SHARDED, chain.packed)
    assert shared.lookup(query) == shared.lookup(replace(query, parts=parts)) == session_of(client).lookup(query)
    fd, nbytes = session_of(client).open_shared_index()
    assert tags_in(fd, nbytes) == 2, "those of the spec without windows"
    os.close(fd)
    for other in (
        replace(query, parts=parts[:1]),
        replace(query, fidelity=Fidelity.LOSSY),
        replace(query, lease=bytes(16), lease_s=1.0),
        replace(query, refs=chain.packed[:-1]),
        Query(SLIDING, prompt(SLIDING, 2).packed),
    ):
        assert shared.lookup(other) is None
    shared.close()
    assert shared.lookup(query) is None


def test_a_table_made_late_holds_what_was_there_before(box: Box) -> None:
    """More rows than are entered at once, chunks marked to go among them, and specs that come later."""
    client = box.open(dram=16 * MiB, extent=16 * MiB, namespaces=[NamespaceConfig("default"), NamespaceConfig("late")])
    late = box.another(client, "late")
    chain = prompt(SMALL, 1100)
    box.fill(late, SMALL, chain.refs)
    with late.lookup(SMALL, chain.refs[:1], lease_s=30):
        late.delete(SMALL, [chain.refs[0].key])
        with shared_index(session_of(late)) as shared:
            assert shared.lookup(Query(SMALL, chain.packed)) == Found(0, range(0), [False, *[True] * 1099])
            box.fill(late, SHARDED, prompt(SHARDED, 2).refs)
            assert says_the_same(session_of(late), shared, SHARDED, prompt(SHARDED, 2).packed)
    box.settled(client)


def test_what_is_recovered_from_disk_is_seen(box: Box) -> None:
    chain = prompt(SMALL, 30)
    client = box.open(nvme=64 * MiB)
    box.fill(client, SMALL, chain.refs, "persisted")
    before = shared_index(session_of(client))
    client.close()
    assert before.lookup(Query(SMALL, chain.packed)) is None
    with shared_index(session_of(box.open(nvme=64 * MiB))) as shared:
        assert shared.lookup(Query(SMALL, chain.packed)) == Found(len(chain.ids), range(30), [True] * 30)


def test_a_deleted_chunk_is_hidden_until_it_is_put_again(box: Box) -> None:
    client, ref = box.open(), prompt(SMALL, 1).refs[0]
    query = Query(SMALL, pack_refs([ref]))
    box.fill(client, SMALL, [ref])
    with shared_index(session_of(client)) as shared, client.lookup(SMALL, [ref], lease_s=30):
        client.delete(SMALL, [ref.key])
        deadline = time.monotonic() + 0.6  # while the mover tries to let it go
        while time.monotonic() < deadline:
            assert shared.lookup(query) == Found(0, range(0), [False])
        client.put(SMALL, ref, content(SMALL, ref, SMALL.part()))
        assert shared.lookup(query) == Found(16, range(1), [True])
    box.settled(client)


@pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])
def test_a_damaged_chunk_is_hidden_while_somebody_reads_it(box: Box, nvme: int) -> None:
    client, ref = box.open(nvme=nvme), prompt(LARGE, 1).refs[0]
    query = Query(LARGE, pack_refs([ref]))
    box.fill(client, LARGE, [ref], "persisted" if nvme else "stored")
    with shared_index(session_of(client)) as shared:
        with client.view(LARGE, ref):
            flip_in_dram(box, client, ref, PAYLOAD_AT)
            assert shared.lookup(query) == Found(64, range(1), [True])
            with pytest.raises(Corrupt):
                client.get(LARGE, ref, verify=True)
            assert shared.lookup(query) == session_of(client).lookup(query) == Found(0, range(0), [False])
        good_copy = Found(64, range(1), [True]) if nvme else Found(0, range(0), [False])
        assert until(lambda: not box.store(client)._core.bad)
        assert shared.lookup(query) == session_of(client).lookup(query) == good_copy
    box.settled(client)


def test_what_expires_is_gone(box: Box) -> None:
    client = box.open(namespaces=[NamespaceConfig("default", ttl_s=0.3)])
    chain = prompt(SMALL, 5)
    with shared_index(session_of(client)) as shared:
        box.fill(client, SMALL, chain.refs)
        assert until(lambda: shared.lookup(Query(SMALL, chain.packed)) == Found(0, range(0), [False] * 5))
    box.settled(client)


def test_a_chunk_of_which_only_a_lease_is_left_is_not_remembered_as_going(box: Box) -> None:
    """The mover would look for a row that is not there any more."""
    client, chain = box.open(), prompt(LARGE, 2)
    core = box.store(client)._core
    box.fill(client, LARGE, chain.refs[:1])
    hit = client.lookup(LARGE, chain.refs[:1], lease_s=30)
    flip_in_dram(box, client, chain.refs[0], PAYLOAD_AT)
    with pytest.raises(Corrupt):
        client.get(LARGE, chain.refs[0], verify=True)
    client.delete(LARGE, [chain.refs[0].key])
    hit.release()
    assert until(lambda: not core.doomed and not core.bad)
    assert not until(lambda: not box.store(client)._mover._thread.is_alive(), 0.6)  # two rounds
    box.settled(client)


def test_a_tenant_maps_nothing_of_another(box: Box) -> None:
    client = box.open(dram=16 * MiB, namespaces=[NamespaceConfig("default"), NamespaceConfig("blue")])
    other, chain = box.another(client, "blue"), prompt(SMALL, 6)
    box.fill(client, SMALL, chain.refs)
    box.fill(other, SMALL, chain.refs[:2])
    mine, nbytes = session_of(client).open_shared_index()
    again, _ = session_of(client).open_shared_index()
    theirs, _ = session_of(other).open_shared_index()
    assert os.fstat(mine).st_ino == os.fstat(again).st_ino != os.fstat(theirs).st_ino
    assert not os.get_inheritable(mine)
    tags = [tags_in(fd, nbytes) for fd in (mine, again, theirs)]
    assert tags == [6, 6, 2]
    with SharedIndex(theirs, nbytes) as shared:
        assert shared.lookup(Query(SMALL, chain.packed)) == Found(32, range(2), [True, True, *[False] * 4])
    for fd in (mine, again, theirs):
        os.close(fd)


def test_a_foreign_descriptor_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8192))
    with (tmp_path / "file").open("rb") as file, pytest.raises(InvalidArgument, match="no shared index"):
        SharedIndex(file.fileno(), 8192)
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(StorageError, match="cannot be mapped"):
        SharedIndex(fd, 8192)


def test_a_store_that_is_closed_shares_nothing(box: Box) -> None:
    client = box.open()
    session = session_of(client)
    query = Query(SMALL, prompt(SMALL, 1).packed)
    shared = shared_index(session)
    assert shared.lookup(query) is not None
    client.close()
    assert shared.lookup(query) is None
    with pytest.raises(Closed):
        session.open_shared_index()


def test_an_owner_that_hangs_or_was_killed_is_not_believed_for_long() -> None:
    """A hint may outlive its server by two seconds and no more."""
    chain = prompt(SMALL, 4)
    command = [sys.executable, "-m", "tests.store.shared_owner"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout is not None
        fd, nbytes = map(int, owner.stdout.readline().split())
        found = os.open(f"/proc/{owner.pid}/fd/{fd}", os.O_RDONLY)
        with SharedIndex(found, nbytes) as shared:
            os.close(found)
            query, all_of_it = Query(SMALL, chain.packed), Found(len(chain.ids), range(4), [True] * 4)
            assert until(lambda: shared.lookup(query) == all_of_it)
            time.sleep(2.1)
            assert until(lambda: shared.lookup(query) == all_of_it)  # it beats
            os.kill(owner.pid, signal.SIGSTOP)
            assert until(lambda: shared.lookup(query) is None)
            os.kill(owner.pid, signal.SIGCONT)
            assert until(lambda: shared.lookup(query) == all_of_it)
            os.kill(owner.pid, signal.SIGKILL)
            assert until(lambda: shared.lookup(query) is None)


def test_a_soak_of_everything_ends_in_agreement(box: Box) -> None:
    """Two tenants put, delete, evict, read, quarantine and let expire in a store that is too small for them."""
    names = ("default", "blue")
    client = box.open(
        dram=2 * MiB, extent=MiB, nvme=16 * MiB, segment=MiB, put_wait_s=0.05, max_chunks=96,
        namespaces=[NamespaceConfig("default", quota=6 * MiB), NamespaceConfig("blue", ttl_s=1.0)],
    )  # fmt: skip
    sessions = {name: box.store(client).session(name) for name in names}
    shared = {name: shared_index(session) for name, session in sessions.items()}
    chains = [(spec, prompt(spec, 12, seed)) for spec in (SMALL, LARGE, SHARDED) for seed in (1, 2)]
    rng, leases = random.Random(4), [(name, bytes([n]) * 16) for n in range(8) for name in names]

    def put(session: Session, spec: KVSpec, chain: kvstore.Chain) -> None:
        for ref in chain.refs[: rng.randint(1, 12)]:
            for part in spec.parts():
                data = memoryview(content(spec, ref, part)).cast("B")
                session.put(spec, Offer(ref, part, data), ack=rng.choice([Ack.STORED, Ack.PERSISTED]))

    def step(name: str) -> None:
        session, (spec, chain) = sessions[name], rng.choice(chains)
        match rng.randrange(6):
            case 0 | 1:
                put(session, spec, chain)
            case 2:
                session.delete(spec, [ref.key for ref in rng.sample(chain.refs, 3)])
            case 3:
                lease = rng.choice(leases)[1]
                session.lookup(Query(spec, chain.packed, (), Fidelity.EXACT, lease, rng.choice([0.1, 5.0])))
            case 4:
                session.release([lease for _, lease in rng.sample(leases, 4)])
            case _:
                damage(rng.choice(chain.refs).key)

    def damage(key: bytes) -> None:
        """Condemn a copy, as a reader that found it bad does."""
        core, removed = box.store(client)._core, kvstore.core.Removed()
        with core.lock:
            for scope in core.catalog.scopes:
                chunk = core.index.find(scope.number, key)
                places = [] if chunk < 0 else list(core.placements(chunk))
                if places:
                    core.condemn(scope, rng.choice(places), removed)
        core.settle(removed)

    for n in range(400):
        with contextlib.suppress(Shed):
            step(rng.choice(names))
        if n % 20 == 0:
            check_all(sessions, shared, chains)
    assert until(lambda: client.stats()["counters"].get("expired_dram"))
    check_all(sessions, shared, chains)
    counters = client.stats()["counters"]
    assert min(counters.get(name, 0) for name in ("evicted_dram", "deleted_dram", "quarantined_dram")) > 0
    for name in names:
        sessions[name].release([lease for _, lease in leases])
        shared[name].close()


def check_all(
    sessions: dict[str, Session], shared: dict[str, SharedIndex], chains: list[tuple[KVSpec, kvstore.Chain]]
) -> None:
    for name, session in sessions.items():
        for spec, chain in chains:
            assert says_the_same(session, shared[name], spec, chain.packed)


def test_readers_see_a_put_that_was_acknowledged_and_no_deleted_chunk(box: Box) -> None:
    client, chain = box.open(), prompt(SMALL, 200)
    session, part = session_of(client), SMALL.part()
    with shared_index(session) as shared:

        def seen(n: int) -> Found | None:
            return shared.lookup(Query(SMALL, pack_refs([chain.refs[n]])))

        for n, ref in enumerate(chain.refs):
            client.put(SMALL, ref, content(SMALL, ref, part))
            assert seen(n) == Found(ref.end, range(1), [True])
            if n % 2:
                client.delete(SMALL, [chain.refs[n - 1].key])
                assert seen(n - 1) == Found(chain.refs[n - 1].position, range(0), [False])
