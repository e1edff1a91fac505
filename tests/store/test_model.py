"""A Hypothesis state machine drives the store against a dictionary: in any order, never a wrong byte, nothing
acknowledged as persisted lost while it may not be evicted, nothing promised under a lease broken.

`HYPOTHESIS_PROFILE=long` runs it for longer.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

import kvstore
from kvstore.config import Config, DramConfig, HbmConfig, NvmeConfig
from kvstore.errors import Corrupt, NotFound, Shed
from kvstore.hit import Hit
from kvstore.keys import ChunkRef
from kvstore.places import unpack_places
from kvstore.policy import POLICIES
from kvstore.removed import Removed
from kvstore.session import Session
from kvstore.spec import KVSpec, Part
from tests.store.codec_samples import registered
from tests.store.conftest import SHARDED, SMALL, MiB, check_policies, content, prompt, says_the_same, shared_index

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
CHAINS = [(SMALL, prompt(SMALL, 4, 1, tail=5)), (SMALL, prompt(SMALL, 3, 2)), (SHARDED, prompt(SHARDED, 3, 3))]
CHUNKS = [(spec, ref) for spec, chain in CHAINS for ref in chain.refs]
Where = tuple[KVSpec, ChunkRef, Part]

chunks = st.sampled_from(CHUNKS)


def copy_of(old: Path, new: Path) -> None:
    """The folder of a store that goes on, copied anew where a file that was being written got its name meanwhile."""
    while True:
        try:
            shutil.copytree(old, new, ignore=shutil.ignore_patterns("LOCK"))
        except shutil.Error:
            shutil.rmtree(new)
        else:
            return


@dataclass(eq=False)
class Placed:
    """A part that lies `at` in a mapping of an extent, under a lease of a session."""

    where: Where
    memory: mmap.mmap
    at: int
    lease: tuple[object, bytes]


class StoreMachine(RuleBasedStateMachine):
    """What may be there (`maybe`), what must be there (`surely`), what must not (`gone`), what may be bad."""

    hits = Bundle("hits")
    views = Bundle("views")
    placed = Bundle("placed")

    codec = "raw"  # of what lies on disk
    hbm: HbmConfig | None = None
    kept_bits = 0xFFFF  # of every element: the fewer, the more there is to encode

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kvstore-model-"))
        self.homes = 0
        self.maybe: set[tuple[bytes, Part]] = set()  # put and not deleted since: there, or evicted
        self.durable: set[tuple[bytes, Part]] = set()  # acknowledged as persisted and not evicted on purpose
        self.suspect: set[tuple[bytes, Part]] = set()  # a byte was changed on disk
        self.doomed: set[bytes] = set()  # deleted while somebody held it: may be there still
        self.revived: set[bytes] = set()  # of these, what a crash may have brought back: there until it is deleted anew
        self.leased: dict[tuple[object, bytes], object] = {}  # what was placed under each lease last

    @initialize(roomy=st.booleans(), policy=st.sampled_from(POLICIES))
    def begin(self, roomy: bool, policy: str) -> None:
        """A store whose memory holds everything, or a few chunks, under any policy."""
        self.dram, self.policy = 2 * MiB if roomy else MiB // 4, policy
        self.reopen()

    def reopen(self) -> None:
        """Open the store in the folder of now."""
        self.client = kvstore.open(
            Config(
                dram=DramConfig(self.dram, self.dram),
                hbm=self.hbm,
                nvme=NvmeConfig(self.folder / str(self.homes), 64 * MiB, MiB, 0, 2, self.codec),
                put_wait_s=0.05,
                policy=self.policy,
            )
        )
        self.shared = shared_index(self.client.backend)  # type: ignore[arg-type]

    def content(self, spec: KVSpec, ref: ChunkRef, part: Part) -> np.ndarray[Any, Any]:
        """The array of a part."""
        return content(spec, ref, part) & self.kept_bits

    # Writing

    @rule(chunk=chunks, ack=st.sampled_from(["stored", "stored", "persisted", "synced"]), which=st.integers(0, 3))
    def put(self, chunk: tuple[KVSpec, ChunkRef], ack: str, which: int) -> None:
        """One part."""
        spec, ref = chunk
        parts = tuple(spec.parts())
        self.put_part(spec, ref, parts[which % len(parts)], ack)

    @rule(chain=st.sampled_from(CHAINS), ack=st.sampled_from(["stored", "persisted"]))
    def put_prompt(self, chain: tuple[KVSpec, kvstore.Chain], ack: str) -> None:
        """All parts of all chunks of a prompt."""
        for ref in chain[1].refs:
            for part in chain[0].parts():
                self.put_part(chain[0], ref, part, ack)

    def put_part(self, spec: KVSpec, ref: ChunkRef, part: Part, ack: str) -> None:
        """Put, and remember what was promised."""
        try:
            self.client.put(spec, ref, self.content(spec, ref, part), part=part, ack=ack)
        except Shed:
            return
        self.maybe.add((ref.key, part))
        self.doomed.discard(ref.key)
        if ack != "stored":
            self.durable.add((ref.key, part))

    @rule(chunk=chunks, commit=st.booleans())
    def reserve(self, chunk: tuple[KVSpec, ChunkRef], commit: bool) -> None:
        """A part in place, committed or left."""
        spec, ref = chunk
        part = next(spec.parts())
        try:
            with self.client.reserve(spec, ref, part=part) as reservation:
                reservation.data[:] = (
                    self.content(spec, ref, part).tobytes() if commit else b"x" * len(reservation.data)
                )
                if commit:
                    reservation.commit()
                    self.maybe.add((ref.key, part))
                    self.doomed.discard(ref.key)
        except Shed:
            pass

    # Reading

    @rule(chunk=chunks, verify=st.booleans())
    def get(self, chunk: tuple[KVSpec, ChunkRef], verify: bool) -> None:
        """All parts of a chunk, as far as they are there."""
        self.read(*chunk, verify=verify)

    def read(self, spec: KVSpec, ref: ChunkRef, *, promised: bool = False, verify: bool = False) -> None:
        """Whatever comes back is right; what was promised comes back."""
        for part in spec.parts():
            where = (ref.key, part)
            try:
                got = self.client.get(spec, ref, part=part, verify=verify)
            except NotFound:
                assert where in self.suspect or not (promised or self.must_be_there(where)), f"lost {ref} {part}"
            except Corrupt:
                assert where in self.suspect
                self.durable.discard(where)
            else:
                assert where in self.maybe or self.may_be_back(ref)
                assert np.array_equal(got, self.content(spec, ref, part))

    def may_be_back(self, ref: ChunkRef) -> bool:
        """Whether a chunk may be there although it was deleted."""
        return ref.key in self.doomed or ref.key in self.revived

    def must_be_there(self, where: tuple[bytes, Part]) -> bool:
        """Nothing evicts from the disk here, which holds everything many times over."""
        return where in self.durable

    @rule(target=hits, chain=st.sampled_from(CHAINS))
    def lookup(self, chain: tuple[KVSpec, kvstore.Chain]) -> Hit:
        """With a lease."""
        spec, refs = chain
        hit = self.client.lookup(spec, refs, lease_s=60)
        assert hit.refs == refs.refs[: len(hit.refs)]
        for ref in hit.refs:
            assert self.may_be_back(ref) or all((ref.key, part) in self.maybe for part in spec.parts())
        durable = [all((ref.key, part) in self.durable for part in spec.parts()) for ref in refs.refs]
        clean = [all((ref.key, part) not in self.suspect for part in spec.parts()) for ref in refs.refs]
        least = next((i for i, both in enumerate(zip(durable, clean, strict=True)) if not all(both)), len(durable))
        assert len(hit.refs) >= least
        return hit

    @rule(hit=hits)
    def read_hit(self, hit: Hit) -> None:
        """What is leased can be read until the lease ends, whatever happened since."""
        if hit._backend is self.client.backend:
            for ref in hit.refs:
                self.read(hit.spec, ref, promised=True)

    @rule(hit=consumes(hits))
    def release(self, hit: Hit) -> None:
        """End a lease."""
        if hit._backend is self.client.backend:
            hit.release()

    @rule(target=views, chunk=chunks)
    def view(self, chunk: tuple[KVSpec, ChunkRef]) -> tuple[Where, object] | None:
        """A view that is held for a while."""
        spec, ref = chunk
        part = next(spec.parts())
        try:
            return (spec, ref, part), self.client.view(spec, ref, part=part)
        except (NotFound, Shed):
            return None
        except Corrupt:
            assert (ref.key, part) in self.suspect
            self.durable.discard((ref.key, part))
            return None

    @rule(held=consumes(views))
    def close_view(self, held: tuple[Where, kvstore.api.View] | None) -> None:
        """The bytes are right up to the end, even of a store that was closed meanwhile."""
        if held is not None:
            where, view = held
            assert view.data == self.content(*where).tobytes()
            view.close()

    @rule(target=placed, chunk=chunks, verify=st.booleans(), number=st.integers(0, 255))
    def place(self, chunk: tuple[KVSpec, ChunkRef], verify: bool, number: int) -> Placed | None:
        """A chunk put under a lease of its own, to be read by way of the extent."""
        spec, ref = chunk
        part, session = next(spec.parts()), self.client.backend
        assert isinstance(session, Session)
        lease = bytes([number]) * 16
        answer = session.place(spec, [(ref, part)], verify=verify, lease=lease, lease_s=0.0)
        if answer.failures:
            assert isinstance(answer.failures[0], NotFound | Shed) or (ref.key, part) in self.suspect
            if isinstance(answer.failures[0], Corrupt):
                self.durable.discard((ref.key, part))
            self.leased.pop((session, lease), None)
            return None
        ((location, _, form, _),) = unpack_places(answer.places)
        if form:  # it lies there as it came from disk
            self.leased.pop((session, lease), None)
            return None
        descriptor, size = session.open_extent(location >> 40)
        memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(descriptor)
        placed = Placed((spec, ref, part), memory, location & ((1 << 40) - 1), (session, lease))
        self.leased[session, lease] = placed
        return placed

    @rule(held=placed)
    def read_placed(self, held: Placed | None) -> None:
        """What was placed stays as it was until its lease is released, even of a store that was closed meanwhile."""
        if held is not None and self.leased.get(held.lease) is held:
            expected = self.content(*held.where).tobytes()
            assert held.memory[held.at : held.at + len(expected)] == expected

    @rule(number=st.integers(0, 255))
    def release_placed(self, number: int) -> None:
        """End one of these leases."""
        session = self.client.backend
        session.release([bytes([number]) * 16])
        self.leased.pop((session, bytes([number]) * 16), None)

    # What makes things go

    @rule(chunk=chunks)
    def delete(self, chunk: tuple[KVSpec, ChunkRef]) -> None:
        """Gone at once for look-ups; its bytes go with the last who holds them."""
        spec, ref = chunk
        self.client.delete(spec, [ref.key])
        for part in spec.parts():
            self.maybe.discard((ref.key, part))
            self.durable.discard((ref.key, part))
        self.doomed.add(ref.key)
        self.revived.discard(ref.key)
        assert self.client.contains(spec, [ref]) == [False]

    @rule(chunk=chunks, seconds=st.sampled_from([0.01, 60]))
    def pin(self, chunk: tuple[KVSpec, ChunkRef], seconds: float) -> None:
        self.client.pin(chunk[0], [chunk[1].key], seconds)

    @rule(chain=st.sampled_from(CHAINS), length=st.integers(1, 4), seconds=st.sampled_from([0, 0.01, 60]))
    def hint(self, chain: tuple[KVSpec, kvstore.Chain], length: int, seconds: float) -> None:
        """Advice, which changes nothing of what there is."""
        spec, refs = chain[0], chain[1].refs[:length]
        there = self.client.contains(spec, refs)
        hinted = self.client.awaited(spec, refs, seconds) if seconds else self.client.ended(spec, refs)
        assert sum(there) <= hinted <= len(refs)
        assert self.client.contains(spec, refs) == there

    @rule(chunk=chunks)
    def prefetch(self, chunk: tuple[KVSpec, ChunkRef]) -> None:
        self.client.prefetch(chunk[0], [chunk[1].key])

    @rule()
    def evict(self) -> None:
        """Pressure: whatever may leave DRAM leaves it."""
        core, removed = self.client.backend._store._core, Removed()  # type: ignore[attr-defined]
        with core.lock:
            for row in core.index.chunks(0, 1000)[0].tolist():
                if not any(core.redundancy.only_here(each) for each in core.placements(row, 0)):
                    core.drop_from(row, 0, removed)
        core.settle(removed)

    @rule(seed=st.integers(100, 120))
    def crowd(self, seed: int) -> None:
        """Others come: the cold end is demoted or let go."""
        for ref in prompt(SHARDED, 3, seed).refs:
            for part in SHARDED.parts():
                try:
                    self.client.put(SHARDED, ref, self.content(SHARDED, ref, part), part=part)
                except Shed:
                    return

    @rule()
    def restart(self) -> None:
        """In order: everything is flushed first."""
        self.client.close()
        self.doomed.clear()
        self.reopen()

    @rule()
    def crash(self) -> None:
        """The folder as it lies there now, in another place; what was acknowledged as persisted must be in it."""
        old, new = self.folder / str(self.homes), self.folder / str(self.homes + 1)
        copy_of(old, new)
        self.client.close()
        shutil.rmtree(old)
        self.revived |= self.doomed
        self.homes += 1
        self.reopen()

    @precondition(lambda self: self.durable)
    @rule(data=st.data())
    def corrupt(self, data: st.DataObject) -> None:
        """A byte of a part on disk changes while nobody looks: it may be a miss or `Corrupt` from then on."""
        where = data.draw(st.sampled_from(sorted(self.durable, key=lambda each: (each[0], each[1].pack()))))
        spec, ref = next((spec, ref) for spec, ref in CHUNKS if ref.key == where[0])
        self.client.close()
        self.doomed.clear()
        found = self.content(spec, ref, where[1]).tobytes()
        offset = data.draw(st.integers(0, len(found) - 1))
        for path in sorted((self.folder / str(self.homes) / "segments").iterdir()):
            whole = path.read_bytes()
            start = whole.find(found)
            while start >= 0:  # a stale copy may lie beside the live one
                with path.open("r+b") as file:
                    file.seek(start + offset)
                    file.write(bytes([found[offset] ^ 0x01]))
                self.suspect.add(where)
                start = whole.find(found, start + 1)
        self.reopen()

    @invariant()
    def counts_add_up(self) -> None:
        """What the namespace is charged for is what the list shows."""
        if not hasattr(self, "client"):
            return
        core = self.client.backend._store._core  # type: ignore[attr-defined]
        with core.lock:
            rows = core.index.chunks(0, 10_000)[0].tolist()
            stored = [core.index.placement(each).stored for row in rows for each in core.placements(row)]
            used = core.catalog.namespaces["default"].used
        assert used == sum(4096 + -(-each // 4096) * 4096 for each in stored)

    @invariant()
    def policies_know_what_is_there(self) -> None:
        """Each tier's policy has the chunks with a copy there, each once, and the tier is within its capacity."""
        if hasattr(self, "client"):
            check_policies(self.client.backend._store._core)  # type: ignore[attr-defined]

    @invariant()
    def shared_index_is_right(self) -> None:
        """What clients read in shared memory is what the store answers."""
        if hasattr(self, "client"):
            for spec, chain in CHAINS:
                assert says_the_same(self.client.backend, self.shared, spec, chain.packed)  # type: ignore[arg-type]

    def teardown(self) -> None:
        """Nothing is left behind."""
        if hasattr(self, "client"):
            for spec, ref in CHUNKS:
                self.read(spec, ref)
            self.client.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class CodedMachine(StoreMachine):
    """The same of a store that encodes what it writes to disk, by a codec that loses nothing."""

    codec = "t-exact"
    kept_bits = 0x0F01

    def reopen(self) -> None:
        if not hasattr(self, "codecs"):
            self.codecs = registered()
            self.codecs.__enter__()
        super().reopen()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "codecs"):
            self.codecs.__exit__(None, None, None)


SETTINGS = settings(
    max_examples=400 if LONG else 12,
    stateful_step_count=60 if LONG else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStore = StoreMachine.TestCase
TestCodedStore = CodedMachine.TestCase
TestStore.settings = TestCodedStore.settings = SETTINGS
