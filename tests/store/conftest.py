"""What the tests of the store share: small specs, content that is a function of the key, a tier that can be asked
to be slow or to fail."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import opening, store
from kvstore.api import Query
from kvstore.config import Config, DramConfig, NamespaceConfig, NvmeConfig
from kvstore.core import Core
from kvstore.errors import KVStoreError, StorageError
from kvstore.keys import Chain, ChunkRef, pack_refs
from kvstore.record import Record
from kvstore.removed import Removed
from kvstore.session import Session
from kvstore.shared_index import SharedIndex
from kvstore.spec import KVGroup, KVSpec, Part
from kvstore.tiers.base import Owner, Recovered, Speed, Tier, TierFull

MiB = 1 << 20
# 8 KiB payload a chunk, 12 KiB with its header.
SMALL = KVSpec.dense("small", layers=2, kv_heads=2, head_dim=32, chunk_tokens=16)
# 256 KiB payload a chunk, 260 KiB with its header.
LARGE = KVSpec.dense("large", layers=4, kv_heads=4, head_dim=64, chunk_tokens=64)
SHARDED = KVSpec.dense(
    "sharded", layers=4, kv_heads=4, head_dim=32, chunk_tokens=64, tp_size=2, pipeline=((0, 2), (2, 4))
)
MLA = KVSpec("mla", "", "bfloat16", (KVGroup((0, 1, 2), latent_dim=48),), chunk_tokens=16, tp_size=4)
SLIDING = KVSpec("sliding", "", "bfloat16", (KVGroup((0,), 2, 16), KVGroup((1, 2), 2, 16, window=24)), chunk_tokens=16)


def content(spec: KVSpec, ref: ChunkRef, part: Part) -> np.ndarray[Any, Any]:
    """The array of a part: a function of its key, its spec and the part, so that nothing mixed up goes unseen."""
    seed = hashlib.sha256(ref.key + spec.digest + part.pack()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(seed[:8], "little")))
    flat = np.frombuffer(generator.bytes(spec.part_bytes(part, ref.tokens)), np.uint8)
    return flat.view(np.uint16).reshape(spec.part_shape(part, ref.tokens))


def prompt(spec: KVSpec, chunks: int, seed: int = 0, tail: int = 0) -> Chain:
    """A prompt of whole chunks and a tail."""
    tokens = np.random.default_rng(seed).integers(0, 50_000, chunks * spec.chunk_tokens + tail)
    return Chain.of(tokens, spec.chunk_tokens)


class Probe(Tier):
    """The NVMe tier, counted, and slow or failing on demand."""

    kind, persistent, evicts = "nvme", True, True

    def __init__(self, inner: Tier) -> None:
        self.inner, self.name = inner, inner.name
        self.reads = self.writes = 0
        self.read_delay_s = self.write_delay_s = 0.0
        self.told_speed: Speed | None = None
        self.read_error: KVStoreError | None = None
        self.write_error: KVStoreError | None = None
        self.full = False
        self.before_read: Callable[[int], None] | None = None
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        return self.inner.capacity

    @property
    def used(self) -> int:
        return self.inner.used

    @property
    def speed(self) -> Speed:
        return self.told_speed or self.inner.speed

    @property
    def max_record(self) -> int:
        return self.inner.max_record

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        with self._lock:
            self.writes += 1
        time.sleep(self.write_delay_s)
        if self.write_error is not None:
            raise self.write_error
        if self.full:
            raise TierFull("the test says so")
        return self.inner.write(header, payload, record)

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        with self._lock:
            self.reads += 1
        time.sleep(self.read_delay_s)
        if self.before_read is not None:
            self.before_read(location)
        if self.read_error is not None:
            raise self.read_error
        self.inner.read_into(location, offset, out)

    def delete(self, location: int, record_bytes: int) -> None:
        self.inner.delete(location, record_bytes)

    def make_room(self, nbytes: int, owner: Owner) -> bool:
        return not self.full and self.inner.make_room(nbytes, _Named(owner, self))

    def tend(self, owner: Owner) -> None:
        self.inner.tend(_Named(owner, self))

    def describe(self, namespace: str, spec: KVSpec) -> None:
        self.inner.describe(namespace, spec)

    def recover(self) -> Recovered:
        return self.inner.recover()

    def sync(self) -> None:
        self.inner.sync()

    def checkpoint(self) -> None:
        self.inner.checkpoint()

    def close(self) -> None:
        self.inner.close()


@dataclass
class _Named:
    """The owner, told that the probe asks."""

    owner: Owner
    probe: Tier

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Any:
        del tier
        return self.owner.judge(self.probe, records, since_ms, most)

    def moved(self, tier: Tier, record: Record, old: int, new: int) -> bool:
        del tier
        return self.owner.moved(self.probe, record, old, new)


def check_policies(core: Core) -> None:
    """Each tier's policies have the chunks with a copy there, each once, and no tier is over its capacity."""
    with core.lock:
        for tier in range(len(core.tiers)):
            for namespace in core.catalog.namespaces.values():
                known = list(core.usage.policy(tier, namespace).victims())
                there = [
                    row
                    for row in core.index.chunks(0, 1 << 30)[0].tolist()
                    if core.catalog.scopes[core.index.chunk(row).scope].namespace is namespace
                    and core.chunk_in_tier(row, tier)
                ]
                assert sorted(known) == there
                assert len(core.usage.policy(tier, namespace)) == len(there)
            assert core.tiers[tier].used <= core.tiers[tier].capacity


@dataclass
class Box:
    """Stores in one folder."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    opened: list[kvstore.Client] = field(default_factory=list)
    probe: Probe = field(init=False, repr=False)

    def open(
        self,
        *,
        dram: int = 8 * MiB,
        extent: int = 8 * MiB,
        nvme: int = 0,
        segment: int = 2 * MiB,
        namespace: str = "default",
        namespaces: Sequence[NamespaceConfig] = (NamespaceConfig("default"),),
        dram_codec: str = "raw",
        nvme_codec: str = "raw",
        **rest: Any,
    ) -> kvstore.Client:
        """A store with so many bytes of DRAM and, unless 0, of NVMe."""
        real = opening._open

        def probed(config: NvmeConfig, nvme: NvmeConfig) -> Tier:
            self.probe = Probe(real(config, nvme))
            return self.probe

        config = Config(
            dram=DramConfig(dram, extent, dram_codec),
            nvme=NvmeConfig(self.folder, nvme, segment, 0, 2, nvme_codec) if nvme else None,
            namespaces=tuple(namespaces),
            **{"put_wait_s": 5.0, **rest},
        )
        with self.monkeypatch.context() as patch:
            patch.setattr(opening, "_open", probed)
            client = kvstore.open(config, namespace=namespace)
        self.opened.append(client)
        os.close(self.store(client).session(namespace).open_shared_index()[0])  # from here on it is kept up
        return client

    def another(self, client: kvstore.Client, namespace: str = "default") -> kvstore.Client:
        """A second client of the same store."""
        return kvstore.Client(self.store(client).session(namespace))

    def store(self, client: kvstore.Client) -> store.Store:
        """The store behind a client."""
        return client.backend._store  # type: ignore[attr-defined, no-any-return]

    def fill(self, client: kvstore.Client, spec: KVSpec, refs: Sequence[ChunkRef], ack: str = "stored") -> None:
        """Put all parts of chunks."""
        for ref in refs:
            for part in spec.parts():
                self.put(client, spec, ref, part, ack)

    def put(self, client: kvstore.Client, spec: KVSpec, ref: ChunkRef, part: Part, ack: str = "stored") -> None:
        """Put one part."""
        client.put(spec, ref, content(spec, ref, part), part=part, ack=ack)

    def check(self, client: kvstore.Client, spec: KVSpec, refs: Sequence[ChunkRef], **options: Any) -> None:
        """Get all parts of chunks and compare every byte."""
        for ref in refs:
            for part in spec.parts():
                got = client.get(spec, ref, part=part, **options)
                assert np.array_equal(got, content(spec, ref, part)), f"{ref} {part}"

    def only_on_disk(self, client: kvstore.Client, spec: KVSpec, refs: Sequence[ChunkRef]) -> None:
        """Store chunks durably, then take their DRAM copies out as an eviction would."""
        self.fill(client, spec, refs, "persisted")
        core = self.store(client)._core
        removed = Removed()
        with core.lock:
            for info in core.index.chunks(0, 1_000_000)[0].tolist():
                assert core.drop_from(info, 0, removed)
        core.settle(removed)

    def settled(self, client: kvstore.Client) -> None:
        """Nothing may be left behind: memory, readers, reservations, loads, leases of nobody."""
        core = self.store(client)._core
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not self._is_settled(core):
            time.sleep(0.02)
        with core.lock:
            assert core.loads == 0
            assert [core.backlog[tier] for tier in range(len(core.tiers))] == [0] * len(core.tiers)
            assert (core.doomed, core.bad) == (set(), set())
            rows = core.index.chunks(0, 1_000_000)[0].tolist()
            places = [core.index.placement(each) for row in rows for each in core.placements(row)]
            assert [each.readers for each in places] == [0] * len(places)
        listed = [place for info in client.list() for place in info.placements]
        by_tier = {tier.name: 0 for tier in core.tiers}
        for info in client.list():
            for place in info.placements:
                by_tier[place.tier] += record_bytes(place)
        assert len(listed) == len(places) or len(core.catalog.namespaces) > 1
        if len(core.catalog.namespaces) == 1:
            assert {tier.name: tier.used for tier in core.tiers} == by_tier
        stats = client.stats()
        assert stats["namespace"]["used"] == sum(by_tier.values())
        assert all(each.promised == 0 for each in core.catalog.namespaces.values())

        self.shared_index_is_right(client)

    def shared_index_is_right(self, client: kvstore.Client) -> None:
        """What clients read in shared memory is what the store answers, for every chunk of every open namespace."""
        for scope in self.store(client)._core.catalog.scopes:
            if scope.namespace.open and not scope.windowed:
                session = self.store(client).session(scope.namespace.name)
                refs = [info for info in kvstore.Client(session).list() if info.spec == scope.spec.digest]
                with shared_index(session) as shared:
                    assert says_the_same(session, shared, scope.spec, pack_refs(refs))  # type: ignore[arg-type]

    def _is_settled(self, core: Any) -> bool:
        with core.lock:
            rows = core.index.chunks(0, 1_000_000)[0].tolist()
            readers = sum(core.index.placement(p).readers for row in rows for p in core.placements(row))
        return not (readers or core.loads or core.doomed or core.bad)

    def close(self) -> None:
        """Close every store that a test left open."""
        for client in reversed(self.opened):
            client.close()
        self.opened.clear()


def shared_index(session: Session) -> SharedIndex:
    """The shared index of a session's namespace, as a client has it."""
    fd, nbytes = session.open_shared_index()
    try:
        return SharedIndex(fd, nbytes)
    finally:
        os.close(fd)


def says_the_same(session: Session, shared: SharedIndex, spec: KVSpec, refs: bytes) -> bool:
    """Whether the shared index answers what the store does. It is asked again where the mover came in between."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if shared.lookup(Query(spec, refs)) == session.lookup(Query(spec, refs)):
            return True
    return False


def record_bytes(place: kvstore.PlacementInfo) -> int:
    """Length of a record with one block of header (all specs of these tests)."""
    return 4096 + -(-place.stored // 4096) * 4096


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    made = Box(tmp_path / "nvme", monkeypatch)
    yield made
    made.close()


@pytest.fixture
def disk_error() -> StorageError:
    return StorageError("the disk is on fire")
