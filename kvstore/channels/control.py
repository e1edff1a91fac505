"""Everything of a `Backend` that carries no payload, over whatever takes a message and gives its answer.

A channel adds how a message travels (`call`), and how payload does: get, put, view.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from kvstore import _native, wire, wire_listing, wire_plans
from kvstore.api import Ack, Description, Drain, Fidelity, Found, Offer, Page, Query, Want, in_batches
from kvstore.channels import artefacts
from kvstore.channels.link_speed import LinkSpeed
from kvstore.codecs import Artefact
from kvstore.decoding import known_forms
from kvstore.device_views import DeviceViews
from kvstore.errors import Corrupt, InvalidArgument, SpecMismatch
from kvstore.keys import REF_BYTES, ChunkRef, pack_keys
from kvstore.record import group_table
from kvstore.rows import REF_DTYPE
from kvstore.spec import KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb

T = TypeVar("T")
_FIRST = wire.numbers_to_bytes(range(4096))  # what a chain without tails is answered with


class Control(ABC):
    """The calls without payload. Specs are registered with the server when it does not know them yet.

    `channel` names the way that is taken.
    """

    channel: ClassVar[str] = ""

    def __init__(self) -> None:
        self._registered: set[bytes] = set()
        self.link_speed = LinkSpeed()

    @abstractmethod
    def call(self, method: str, request: Any, response: Any) -> Any:
        """Send a message to a method of the service; its answer, of the class `response`."""

    @abstractmethod
    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        """Store a part."""

    @abstractmethod
    def get(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Sequence[Exception | None]:
        """Read parts."""

    def get_each(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Iterator[tuple[int, Exception | None]]:
        """Read parts, a batch at a time."""
        return in_batches(lambda some: self.get(spec, some, fidelity=fidelity, verify=verify), wants)

    def describe(self) -> Description:
        """Ask the server who it is."""
        told = self.call("Describe", pb.DescribeRequest(), pb.DescribeResponse)
        return Description(
            told.version,
            told.namespace,
            tuple(told.tiers),
            told.max_part_bytes,
            told.chunks,
            {**told.extra, "channel": self.channel},
        )

    def register(self, spec: KVSpec) -> None:
        """Make a spec known to the server. Every other call does it by itself where needed."""
        request = pb.RegisterSpecRequest(spec=wire.spec_to_message(spec))
        answer = self.call("RegisterSpec", request, pb.RegisterSpecResponse)
        if answer.digest != spec.digest:
            raise InvalidArgument(
                f"the server computes {answer.digest.hex()} for this spec, this client {spec.digest.hex()}: they are "
                "of different versions, or the spec holds values that JSON cannot carry"
            )
        self._registered.add(spec.digest)

    def lookup(self, query: Query) -> Found:
        """Ask for the longest prefix; with a lease, in this client's session."""
        query = self.linked(query)
        found = found_from(self._look(lookup_request(query), query))
        if len(found.present) * REF_BYTES != len(query.refs):
            raise SpecMismatch(f"the server answers for {len(found.present)} chunks, not for those asked for")
        self.note_warm(query, found)
        return found

    def note_warm(self, query: Query, found: Found) -> None:
        """Remember what a look-up under a lease, by a client that weighs, has told to be in the server's DRAM."""
        if query.prompt is not None and found.leased:
            keys, cold = np.frombuffer(query.refs, REF_DTYPE)["key"], set(found.cold)
            self.link_speed.told(keys[number].tobytes() for number in found.used if number not in cold)

    def linked(self, query: Query) -> Query:
        """A query whose prompt says how fast bytes come here, where that was measured."""
        prompt = query.prompt
        if prompt is None or prompt.link_bytes_per_s or not self.link_speed.bytes_per_s:
            return query
        return replace(query, prompt=replace(prompt, link_bytes_per_s=self.link_speed.bytes_per_s))

    def release(self, leases: Sequence[bytes]) -> None:
        """End leases."""
        self.call("Release", pb.ReleaseRequest(leases=b"".join(leases)), pb.ReleaseResponse)

    def reserve(self, spec: KVSpec, ref: ChunkRef, part: Part, *, first_valid: int = 0) -> OwnReservation:
        """Memory of this process; `commit` sends it."""
        return OwnReservation(self, spec, ref, part, first_valid)

    def device_views(
        self, spec: KVSpec, refs: Sequence[ChunkRef], part: Part, *, device: Any = None, lease_s: float = 0.0
    ) -> DeviceViews:
        """Not over a network."""
        del spec, refs, part, device, lease_s
        raise InvalidArgument("device memory is shared by an embedded store, or a server on this host by local:PATH")

    def delete(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """Forget chunks."""
        return self._count("Delete", spec, pb.KeysRequest(spec=spec.digest, keys=pack_keys(keys)))

    def pin(self, spec: KVSpec, keys: Sequence[bytes], seconds: float) -> int:
        """Pin, or with 0 seconds unpin, chunks."""
        if not seconds:
            return self._count("Unpin", spec, pb.KeysRequest(spec=spec.digest, keys=pack_keys(keys)))
        request = pb.PinRequest(spec=spec.digest, keys=pack_keys(keys), ttl_ms=_milliseconds(seconds))
        return self._count("Pin", spec, request)

    def hint(self, spec: KVSpec, keys: Sequence[bytes], awaited_s: float) -> int:
        """Say that a prompt comes back, or with 0 seconds that it has ended."""
        awaited_ms = _milliseconds(awaited_s) if awaited_s else 0
        return self._count("Hint", spec, pb.HintRequest(spec=spec.digest, keys=pack_keys(keys), awaited_ms=awaited_ms))

    def prefetch(self, spec: KVSpec, keys: Sequence[bytes], *, fidelity: Fidelity = Fidelity.EXACT) -> int:
        """Bring chunks into the server's DRAM."""
        least = wire.fidelity_to_number(fidelity)
        return self._count("Prefetch", spec, pb.KeysRequest(spec=spec.digest, keys=pack_keys(keys), fidelity=least))

    def artefact(self, digest: bytes) -> bytes:
        """An artefact's file."""
        return artefacts.fetch_file(digest, self._artefact_piece)

    def find_artefact(self, digest: bytes) -> Artefact:
        """An artefact that a chunk names, fetched when this process first meets it."""
        return artefacts.find(digest, self._artefact_piece)

    def _artefact_piece(self, digest: bytes, offset: int) -> tuple[int, bytes]:
        request = pb.GetArtefactRequest(digest=digest, offset=offset)
        answer = self.call("GetArtefact", request, pb.GetArtefactResponse)
        return answer.bytes, answer.data

    def chunks(self, cursor: int = 0, limit: int = 1000) -> Page:
        """A page of stored chunks; the server gives at most 1000."""
        answer = self.call("List", pb.ListRequest(cursor=cursor, limit=limit), pb.ListResponse)
        return Page(tuple(wire_listing.chunk_from_message(each) for each in answer.chunks), answer.cursor)

    def stats(self) -> dict[str, Any]:
        """Counters of the namespace."""
        text = self.call("Stats", pb.StatsRequest(), pb.StatsResponse).json
        try:
            counters: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"the server's counters are not JSON: {error}") from None
        return counters

    def drain(self, tier: str, path: str = "") -> Drain:
        """Empty a tier or a drive."""
        return wire_listing.drain_from_message(
            self.call("Drain", pb.DrainRequest(tier=tier, path=path), pb.DrainResponse)
        )

    def resume(self, tier: str, path: str = "") -> Drain:
        """Use it again."""
        return wire_listing.drain_from_message(
            self.call("Resume", pb.DrainRequest(tier=tier, path=path), pb.DrainResponse)
        )

    def with_spec(self, spec: KVSpec, act: Callable[[], T]) -> T:
        """`act` with the spec registered, once more if the server has forgotten it (it was started again)."""
        if spec.digest not in self._registered:
            self.register(spec)
        try:
            return act()
        except wire.UnknownSpec:
            self.register(spec)
            return act()

    def ask(self, method: str, spec: KVSpec, request: Any, response: Any) -> Any:
        """`call` with the spec registered."""
        return self.with_spec(spec, lambda: self.call(method, request, response))

    def _look(self, request: Any, query: Query) -> Any:
        return self.ask("Lookup", query.spec, request, pb.LookupResponse)

    def _count(self, method: str, spec: KVSpec, request: Any) -> int:
        return int(self.ask(method, spec, request, pb.CountResponse).count)


def _milliseconds(seconds: float) -> int:
    """At least 1, and not endless: how much is too much the server says."""
    return max(1, round(min(seconds * 1000, 2.0**53)))


def lookup_request(query: Query, *, places: bool = False) -> Any:
    """The message of a look-up."""
    return pb.LookupRequest(
        spec=query.spec.digest,
        refs=query.refs,
        parts=b"".join([part.pack() for part in query.parts]),
        fidelity=wire.fidelity_to_number(query.fidelity),
        lease=query.lease,
        lease_ms=max(1, round(query.lease_s * 1000)) if query.lease else 0,
        in_session=bool(query.lease),
        places=places,
        prompt=None if query.prompt is None else wire_plans.prompt_to_message(query.prompt),
    )


def found_from(answer: Any) -> Found:
    """What a look-up's answer says. `SpecMismatch` where it names chunks that nobody asked for."""
    present = (np.frombuffer(answer.present, np.uint8) != 0).tolist() if answer.present else []
    packed = answer.used
    used: Sequence[int] = range(len(packed) // 4)
    if packed != _FIRST[: len(packed)]:
        used = wire.numbers_from_bytes(packed)
    last = -1 if not used else used[-1] if isinstance(used, range) else max(used)
    if last >= len(present):
        raise SpecMismatch(f"the server's answer uses chunk {last} of {len(present)}")
    cold = tuple(wire.numbers_from_bytes(answer.cold)) if answer.cold else ()
    if cold and not set(used).issuperset(cold):
        raise SpecMismatch(f"the server's answer says of chunks that it does not use that they are cold: {cold[:8]}")
    plan = wire_plans.plan_from_message(answer.plan) if answer.HasField("plan") else None
    return Found(answer.tokens, used, present, answer.leased, cold=cold, plan=plan, left_out=answer.left_out)


def get_request(spec: KVSpec, wants: Sequence[Want], fidelity: Fidelity, verify: bool) -> bytes:
    """The encoded message of a get."""
    layers = []
    if any(want.layers is not None for want in wants):
        layers = [want.layers or (0, len(spec.layer_ranges(want.part, want.ref.tokens))) for want in wants]
    request = pb.GetRequest(
        spec=spec.digest,
        items=wire.items_to_bytes((want.ref, want.part) for want in wants),
        fidelity=wire.fidelity_to_number(fidelity),
        verify=verify,
        layers=[pb.LayerRange(start=start, end=end) for start, end in layers],
        accept_forms=known_forms(),
    )
    encoded: bytes = request.SerializeToString()
    return encoded


def plain_request(spec: KVSpec, item: bytes) -> bytes:
    """`get_request` of one whole exact part, packed (`kvstore.places`), without a message to be made first."""
    return b"".join((b"\n\x10", spec.digest, b"\x12\x30", item, _accepted(known_forms())))


@cache
def _accepted(forms: tuple[int, ...]) -> bytes:
    """The end of a `GetRequest`: the forms that this client decodes."""
    encoded: bytes = pb.GetRequest(accept_forms=forms).SerializeToString()
    return encoded


def put_head(spec: KVSpec, offer: Offer, ack: Ack) -> Any:
    """The head of a put, with the checksums of what is offered, for the server to check."""
    ref, nbytes = offer.ref, len(offer.data)
    groups = group_table(spec.layer_ranges(offer.part, ref.tokens), digests(spec, offer)).tobytes()
    record = pb.Record(
        key=ref.key,
        parent=ref.parent,
        part=offer.part.pack(),
        position=ref.position,
        tokens=ref.tokens,
        first_valid=offer.first_valid,
        logical=nbytes,
        stored=nbytes,
        exact=True,
        groups=groups,
        spec=spec.digest,
    )
    return pb.PutRequest.Head(spec=spec.digest, record=record, ack=wire.ack_to_number(ack))


def digests(spec: KVSpec, offer: Offer) -> Any:
    """xxh3-128 of every layer group of what is offered."""
    ranges = np.array(spec.layer_ranges(offer.part, offer.ref.tokens), np.uint64)
    offsets, lengths = np.ascontiguousarray(ranges.T)
    return _native.xxh3_128_many(offer.data, offsets, lengths)


class OwnReservation:
    """A buffer of this process for one part; `commit` puts it."""

    def __init__(
        self,
        backend: Control,
        spec: KVSpec,
        ref: ChunkRef,
        part: Part,
        first_valid: int,
        data: memoryview | None = None,
    ) -> None:
        spec.check_part(part)
        self.data = np.empty(spec.part_bytes(part, ref.tokens), np.uint8).data if data is None else data
        self._backend = backend
        self._spec = spec
        self._offer = Offer(ref, part, self.data, first_valid)
        self._done = False

    def commit(self, ack: Ack = Ack.STORED, *, expect: bytes = b"") -> bool:
        """Send and publish. `expect` is checked here; the server checks what it gets against this side's hashes."""
        if self._done:
            raise InvalidArgument("this reservation was committed or aborted before")
        if expect and expect != digests(self._spec, self._offer).tobytes():
            raise Corrupt("the bytes in the reservation do not match the checksums that were expected of them")
        self._done = True
        return self._backend.put(self._spec, self._offer, ack=ack)

    def abort(self) -> None:
        """Forget the buffer. After `commit` it does nothing."""
        self._done = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
