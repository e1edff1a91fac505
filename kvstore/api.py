"""What every way in offers: the `Backend` that a `Client` talks through, and the values that cross it.

An embedded store and a connection to a server are two backends with one meaning. A backend is bound to one
namespace; leases taken through it end with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from kvstore.cost import Plan, Prompt
from kvstore.device_views import DeviceViews
from kvstore.errors import KVStoreError
from kvstore.keys import ChunkRef
from kvstore.record import Record
from kvstore.spec import KVSpec, Part

BATCH_BYTES = 4 << 20
MAX_AWAITED_S = 86400  # of a hint


class Ack(StrEnum):
    """When a put is acknowledged."""

    STORED = "stored"  # visible to everyone; dies with the server
    PERSISTED = "persisted"  # survives kill -9
    SYNCED = "synced"  # survives power loss


class Fidelity(IntEnum):
    """The least a reader accepts."""

    EXACT = 0
    LOSSY = 1


@dataclass(frozen=True, slots=True)
class Query:
    """A look-up.

    `refs` are packed chunk references (`keys.pack_refs`, 40 bytes each) in rising position; several may share a
    position (a whole chunk and its possible tails): the longest that is there is taken, and the walk goes on where
    it ends. `parts` are what the reader needs
    (empty: every part of the spec). With `lease_s` the chunks of the hit stay readable for so many seconds, under
    the id `lease`, 16 bytes of the caller's choice; asking again with the same id renews. With `places` the answer
    says under that lease where the chunks of the hit lie in DRAM. With `prompt` the hit ends where computing is
    quicker than loading.
    """

    spec: KVSpec
    refs: bytes
    parts: Sequence[Part] = ()
    fidelity: Fidelity = Fidelity.EXACT
    lease: bytes = b""
    lease_s: float = 0.0
    places: bool = False
    prompt: Prompt | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a `Query`.

    `tokens` is the largest position at which every KV group asked for is satisfied; `used` the indexes of the refs
    that make it up; `present` one flag per ref: all parts asked for are there, whatever stands before. `places` are
    packed records (`kvstore.places.PLACE_DTYPE`), for each ref used the parts asked for in their order; `NOWHERE`
    for what is not in DRAM just now. `cold` are those of `used` of which a part is not in DRAM; told under a lease.
    Of a query with a prompt `plan` says what of it to load and why; `tokens` and `used` are that, the lease holds no
    more, and `left_out` tokens after it are stored but not worth loading.
    """

    tokens: int
    used: Sequence[int]
    present: Sequence[bool]
    leased: bool = False
    places: bytes = b""
    cold: tuple[int, ...] = ()
    plan: Plan | None = None
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """Where parts lie in DRAM: a packed record of `kvstore.places.PLACE_DTYPE` per item, `NOWHERE` for a failure."""

    places: bytes
    failures: Mapping[int, KVStoreError]


@dataclass(frozen=True, slots=True)
class Want:
    """One part to read: into `out`, a writable buffer of the exact length of its layers."""

    ref: ChunkRef
    part: Part
    out: memoryview
    layers: tuple[int, int] | None = None  # indexes of layer groups inside the part, half-open


class Offer(NamedTuple):
    """One part to store. `data` holds the raw bytes in the spec's layout."""

    ref: ChunkRef
    part: Part
    data: memoryview
    first_valid: int = 0


@dataclass(frozen=True, slots=True)
class PlacementInfo:
    """A part's copy in a tier."""

    part: Part
    tier: str
    form: str
    level: int
    exact: bool
    logical: int
    stored: int


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """One stored chunk, for lists."""

    key: bytes
    parent: bytes
    spec: bytes
    position: int
    tokens: int
    hits: int
    leases: int
    pinned_until_ms: int
    last_use_ms: int
    placements: tuple[PlacementInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a part: `stored`, `moved` (to another tier), `evicted`, `quarantined`.

    One of the kind `tier` is of a tier as a whole and has no key: `note` says in words what happened, such as that a
    drive failed.
    Or a `lookup`, of the packed references `refs`: of no part, key and tier.
    """

    kind: str
    key: bytes
    spec: bytes
    part: Part
    tier: str
    at_ms: int
    note: str = ""
    refs: bytes = b""


@dataclass(frozen=True, slots=True)
class Drain:
    """How far a tier (or the drive at `path` of it) is emptied, so that it can be pulled.

    `state` is `draining` (with what it waits for), `drained`, `drain failed: …`, or `ok` for one that is in use.
    Parts and bytes were `moved` to where they were not yet, whole chunks `dropped` that fitted nowhere.
    """

    tier: str
    path: str
    state: str
    left_bytes: int = 0
    moved_parts: int = 0
    moved_bytes: int = 0
    dropped_chunks: int = 0
    dropped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Some chunks and the cursor that goes on after them (0: no more)."""

    chunks: tuple[ChunkInfo, ...]
    cursor: int


@dataclass(frozen=True)
class Description:
    """Who answers: version, namespace, tiers by name in order of speed, limits in bytes."""

    version: str
    namespace: str
    tiers: tuple[str, ...]
    max_part_bytes: int
    chunks: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)


class View(Protocol):
    """Read-only bytes of a part that stay valid until `close` (or the end of a `with` block)."""

    @property
    def data(self) -> memoryview:
        """The bytes."""

    @property
    def record(self) -> Record:
        """The header: key, spec, part, lengths, form and the checksum of every layer group."""

    def close(self) -> None:
        """Give the lease back; `data` must not be used any more."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Reservation(Protocol):
    """Memory of the store for one part: fill `data`, then `commit`. Leaving the `with` block aborts."""

    @property
    def data(self) -> memoryview:
        """Memory of the exact length of the part, to be filled."""

    def commit(self, ack: Ack = Ack.STORED, *, expect: bytes = b"") -> bool:
        """Hash and publish what was written; False if the part had been stored meanwhile.

        `expect` holds the xxh3-128 of every layer group as the sender computed them: if they differ the bytes were
        damaged on the way, nothing is stored and `Corrupt` is raised.
        """

    def abort(self) -> None:
        """Give the memory back. After `commit` it does nothing."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """One way in, bound to one namespace. Every method may be called from any thread."""

    def describe(self) -> Description:
        """Version, namespace, tiers and limits of what answers."""

    def register(self, spec: KVSpec) -> None:
        """Make the spec known before its first use. Idempotent."""

    def lookup(self, query: Query) -> Found:
        """The longest prefix of what is asked for, leased if the query says so; see `Query` and `Found`."""

    def release(self, leases: Sequence[bytes]) -> None:
        """End leases; unknown ones are ignored."""

    def get(
        self,
        spec: KVSpec,
        wants: Sequence[Want],
        *,
        fidelity: Fidelity = Fidelity.EXACT,
        verify: bool = False,
    ) -> Sequence[Exception | None]:
        """Read parts; one outcome each: None, `NotFound`, `Corrupt`, …

        `verify` checks DRAM copies too, which are otherwise trusted since they were checked on arrival.
        """

    def get_each(
        self,
        spec: KVSpec,
        wants: Sequence[Want],
        *,
        fidelity: Fidelity = Fidelity.EXACT,
        verify: bool = False,
    ) -> Iterator[tuple[int, Exception | None]]:
        """As `get`, one (index, outcome) at a time, as soon as that destination may be used.

        Every index comes once: in order where nothing has to be waited for, those that do after the others. Closing
        the iterator early ends the reading; destinations that did not come may hold anything. `in_batches` makes this
        out of any `get`.
        """

    def view(
        self, spec: KVSpec, ref: ChunkRef, part: Part, *, fidelity: Fidelity = Fidelity.EXACT, encoded: bool = False
    ) -> View:
        """A part without a copy. `NotFound` if it is not there; `InvalidArgument` where a way in has no views.

        One that is stored encoded comes decoded, in memory of its own, or with `encoded` as it is stored.
        """

    def device_views(
        self, spec: KVSpec, refs: Sequence[ChunkRef], part: Part, *, device: Any = None, lease_s: float = 0.0
    ) -> DeviceViews:
        """A part of chunks in the store's memory on a device, for those where it lies there.

        `device` is torch's or its name (None: the current GPU, else `cpu`); the lease has no time limit if it is of
        0 s. `NotFound` where the store has nothing on this device, `Unavailable` where its memory cannot be opened
        here, `InvalidArgument` where a way in has none.
        """

    def artefact(self, digest: bytes) -> bytes:
        """The file of an artefact that a stored chunk names; `NotFound` where it is not here."""

    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        """Store a part; False if it was there already. `Shed` under pressure."""

    def reserve(self, spec: KVSpec, ref: ChunkRef, part: Part, *, first_valid: int = 0) -> Reservation:
        """Memory to fill in place, which `commit` stores. `Shed` where there is no room in time."""

    def delete(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """Forget chunks wherever they lie; how many there were. Leased ones go when their lease ends."""

    def pin(self, spec: KVSpec, keys: Sequence[bytes], seconds: float) -> int:
        """Keep chunks from eviction for a time (0: unpin); how many there were."""

    def hint(self, spec: KVSpec, keys: Sequence[bytes], awaited_s: float) -> int:
        """Say that a prompt, whose chunks these are, root first, comes back in about so long (0: never).

        How many of them there were. Policies may make use of it until the chunks' next use, or not.
        """

    def prefetch(self, spec: KVSpec, keys: Sequence[bytes], *, fidelity: Fidelity = Fidelity.EXACT) -> int:
        """Bring chunks into DRAM in the background; how many were found."""

    def chunks(self, cursor: int = 0, limit: int = 1000) -> Page:
        """Up to `limit` stored chunks of the namespace, and the cursor that goes on after them (0: none follow)."""

    def stats(self) -> dict[str, Any]:
        """Counters and gauges as plain data."""

    def drain(self, tier: str, path: str = "") -> Drain:
        """Empty a tier, or the drive at `path` of one, in the background, and write nothing there. Idempotent."""

    def resume(self, tier: str, path: str = "") -> Drain:
        """Use a tier or drive again that was drained, or is being drained. Idempotent."""

    def watch(self, *, lookups: bool = False) -> Iterator[Event]:
        """Events from now on. Closing the iterator ends it; a reader too slow loses events, told by `lost`.

        With `lookups` look-ups alone, each with what was asked for; while they are watched every one is a call.
        """

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Read everything back against its checksums; the last item is empty or says what is wrong."""

    def close(self) -> None:
        """End the session with its leases, and what belongs to it. A second call does nothing."""


def in_batches(
    get: Callable[[Sequence[Want]], Sequence[Exception | None]], wants: Sequence[Want], batch_bytes: int = BATCH_BYTES
) -> Iterator[tuple[int, Exception | None]]:
    """`Backend.get_each` by means of a `get` that is called for about `batch_bytes` at a time."""
    start = 0
    while start < len(wants):
        end, nbytes = start, 0
        while end < len(wants) and nbytes < batch_bytes:
            nbytes += wants[end].out.nbytes
            end += 1
        yield from zip(range(start, end), get(wants[start:end]), strict=True)
        start = end
