"""A store behind a gRPC server, as a `Backend`."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np

from kvstore import _native, pieces, wire
from kvstore.api import (
    Ack,
    ChunkInfo,
    Description,
    Event,
    Fidelity,
    Found,
    Offer,
    Page,
    PlacementInfo,
    Query,
    View,
    Want,
)
from kvstore.client import Client
from kvstore.errors import Corrupt, InvalidArgument, LeaseExpired, Unavailable
from kvstore.keys import ChunkRef, pack_keys
from kvstore.link import Address, Link, Pem, client_credentials
from kvstore.namespace import DEFAULT, check_name
from kvstore.receive import Receiver
from kvstore.record import group_table
from kvstore.spec import KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb

T = TypeVar("T")


def connect_remote(
    url: str,
    *,
    token: str = "",
    ca: Pem = None,
    cert: Pem = None,
    key: Pem = None,
    namespace: str = DEFAULT,
    timeout: float = 10.0,
    retries: int = 3,
) -> Client:
    """A client of the server at `url`: `HOST:PORT`, `grpc://…`, `grpcs://…` (TLS) or `unix:PATH`.

    `ca` (a path or PEM bytes) is the authority that signed the server's certificate and turns TLS on; `cert` and
    `key` are the client's own, for mutual TLS. The token decides the namespace; `namespace` counts on servers
    without tokens. Every call ends within `timeout` seconds; those that find the server unavailable are made up to
    `retries` times more, after growing pauses. Nothing is sent before the first call.
    """
    if timeout <= 0 or retries < 0:
        raise InvalidArgument(f"timeout must be above 0 and retries at least 0, not {timeout} and {retries}")
    address = Address.parse(url)
    secure = address.secure or ca is not None or cert is not None
    session = secrets.token_bytes(16)
    metadata = [("kvstore-session", session.hex())]
    if token:
        metadata.append(("authorization", f"Bearer {token}"))
    if not token or namespace != DEFAULT:
        metadata.append(("kvstore-namespace", check_name(namespace)))
    credentials = client_credentials(ca, cert, key) if secure else None
    return Client(RemoteBackend(Link(address, tuple(metadata), credentials, timeout, retries)))


class RemoteBackend:
    """The `Backend` of one connection. Leases are taken in a session that ends with it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._registered: set[bytes] = set()
        self._session: Any = None
        self._session_lock = threading.Lock()
        pieces.keep_freed_memory()

    def describe(self) -> Description:
        """Ask the server who it is."""
        told = self._call("Describe", pb.DescribeRequest(), pb.DescribeResponse)
        return Description(
            told.version, told.namespace, tuple(told.tiers), told.max_part_bytes, told.chunks, dict(told.extra)
        )

    def register(self, spec: KVSpec) -> None:
        """Make a spec known to the server. Every other call does it by itself where needed."""
        request = pb.RegisterSpecRequest(spec=wire.spec_to_message(spec))
        answer = self._call("RegisterSpec", request, pb.RegisterSpecResponse)
        if answer.digest != spec.digest:
            raise InvalidArgument(
                f"the server computes {answer.digest.hex()} for this spec, this client {spec.digest.hex()}: they are "
                "of different versions, or the spec holds values that JSON cannot carry"
            )
        self._registered.add(spec.digest)

    def lookup(self, query: Query) -> Found:
        """Ask for the longest prefix; with a lease, in this client's session."""
        lease_ms = max(1, round(query.lease_s * 1000)) if query.lease else 0
        request = pb.LookupRequest(
            spec=query.spec.digest,
            refs=query.refs,
            parts=b"".join(part.pack() for part in query.parts),
            fidelity=wire.fidelity_to_number(query.fidelity),
            lease=query.lease,
            lease_ms=lease_ms,
            in_session=bool(query.lease),
        )

        def ask() -> Any:
            return self._ask("Lookup", query.spec, request, pb.LookupResponse)

        answer = self._in_session(ask) if query.lease else ask()
        present = [bool(flag) for flag in answer.present]
        return Found(answer.tokens, wire.numbers_from_bytes(answer.used), present, answer.leased)

    def release(self, leases: Sequence[bytes]) -> None:
        """End leases."""
        self._call("Release", pb.ReleaseRequest(leases=b"".join(leases)), pb.ReleaseResponse)

    def get(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Sequence[Exception | None]:
        """Read parts in one call, each verified on arrival; what arrived damaged is asked for once more."""
        outcomes: dict[int, Exception | None] = {}
        self._get(spec, wants, range(len(wants)), outcomes, fidelity, verify)
        damaged = [index for index, outcome in outcomes.items() if isinstance(outcome, Corrupt)]
        if damaged and not verify:
            self._get(spec, wants, damaged, outcomes, fidelity, True)
        return [outcomes[index] for index in range(len(wants))]

    def view(self, spec: KVSpec, ref: ChunkRef, part: Part) -> View:
        """Not over gRPC."""
        del spec, ref, part
        raise InvalidArgument("views need an embedded store (kvstore.open); over gRPC use get with a buffer of yours")

    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        """Store a part, straight from the caller's memory, with its checksums. Safe to repeat, so it is retried."""
        head = _put_head(spec, offer, ack)
        call = self._link.upload("Put")

        def messages() -> Iterator[bytes]:
            yield head
            yield from pieces.frames(offer.data)

        def attempt(seconds: float) -> bytes:
            answer: bytes = call(messages(), timeout=seconds, metadata=self._link.metadata)
            return answer

        answer = self._with_spec(spec, lambda: self._link.run(attempt))
        return bool(pb.PutResponse.FromString(answer).stored)

    def reserve(self, spec: KVSpec, ref: ChunkRef, part: Part, *, first_valid: int = 0) -> RemoteReservation:
        """Memory of this process; `commit` sends it."""
        return RemoteReservation(self, spec, ref, part, first_valid)

    def delete(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """Forget chunks."""
        return self._count("Delete", spec, pb.KeysRequest(spec=spec.digest, keys=pack_keys(keys)))

    def pin(self, spec: KVSpec, keys: Sequence[bytes], seconds: float) -> int:
        """Pin, or with 0 seconds unpin, chunks."""
        if not seconds:
            return self._count("Unpin", spec, pb.KeysRequest(spec=spec.digest, keys=pack_keys(keys)))
        ttl_ms = min(0xFFFFFFFF, max(1, round(seconds * 1000)))
        return self._count("Pin", spec, pb.PinRequest(spec=spec.digest, keys=pack_keys(keys), ttl_ms=ttl_ms))

    def prefetch(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """Bring chunks into the server's DRAM."""
        return self._count("Prefetch", spec, pb.KeysRequest(spec=spec.digest, keys=pack_keys(keys)))

    def chunks(self, cursor: int = 0, limit: int = 1000) -> Page:
        """A page of stored chunks; the server gives at most 1000."""
        answer = self._call("List", pb.ListRequest(cursor=cursor, limit=limit), pb.ListResponse)
        return Page(tuple(wire.chunk_from_message(each) for each in answer.chunks), answer.cursor)

    def stats(self) -> dict[str, Any]:
        """Counters of the namespace."""
        counters: dict[str, Any] = json.loads(self._call("Stats", pb.StatsRequest(), pb.StatsResponse).json)
        return counters

    def watch(self) -> RemoteWatch:
        """Events from now on."""
        stream = self._link.stream("Watch")

        def attempt(seconds: float) -> Any:
            call = stream(pb.WatchRequest().SerializeToString(), metadata=self._link.metadata)
            self._link.opened(call, call.initial_metadata, seconds)
            if call.done():
                raise call
            return call

        return RemoteWatch(self._link, self._link.run(attempt))

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Have the server read everything back."""
        call = self._link.stream("Verify")(pb.VerifyRequest().SerializeToString(), metadata=self._link.metadata)
        try:
            for message in call:
                found = pb.VerifyResponse.FromString(message)
                yield wire.chunk_from_message(found.chunk), wire.placement_from_message(found.placement), found.problem
        except grpc.RpcError as error:
            raise self._link.meaning(error) from None
        finally:
            call.cancel()

    def close(self) -> None:
        """End the session and the connection."""
        with self._session_lock:
            if self._session is not None:
                self._session.cancel()
            self._session = None
        self._link.close()

    def _get(
        self,
        spec: KVSpec,
        wants: Sequence[Want],
        indexes: Sequence[int],
        outcomes: dict[int, Exception | None],
        fidelity: Fidelity,
        verify: bool,
    ) -> None:
        """Fill in `outcomes` of `indexes`; after a broken connection only what is missing is asked for again."""
        download = self._link.download("Get")
        left = list(indexes)

        def attempt(seconds: float) -> None:
            receiver = Receiver(spec, wants, list(left))
            request = _get_request(spec, [wants[index] for index in left], fidelity, verify)
            call = download(request, timeout=seconds, metadata=self._link.metadata)
            try:
                for message in call:
                    receiver.take(message)
            finally:
                call.cancel()
                outcomes.update(receiver.outcomes)
                left[:] = [index for index in left if index not in receiver.outcomes]
            if left:
                raise Unavailable(f"{self._link.address} ended the answer {len(left)} items early")

        if left:
            self._with_spec(spec, lambda: self._link.run(attempt))

    def _count(self, method: str, spec: KVSpec, request: Any) -> int:
        return int(self._ask(method, spec, request, pb.CountResponse).count)

    def _ask(self, method: str, spec: KVSpec, request: Any, response: Any) -> Any:
        return self._with_spec(spec, lambda: self._call(method, request, response))

    def _with_spec(self, spec: KVSpec, act: Callable[[], T]) -> T:
        """`act` with the spec registered, once more if the server has forgotten it (it was started again)."""
        if spec.digest not in self._registered:
            self.register(spec)
        try:
            return act()
        except wire.UnknownSpec:
            self.register(spec)
            return act()

    def _in_session(self, act: Callable[[], T]) -> T:
        """`act` with the session open, once more if the server has ended it."""
        self._open_session(self._session)
        before = self._session
        try:
            return act()
        except LeaseExpired:
            self._open_session(before, again=True)
            return act()

    def _open_session(self, before: Any, again: bool = False) -> None:
        with self._session_lock:
            if self._session is not None and not (again and self._session is before):
                return

            def attempt(seconds: float) -> Any:
                stream = self._link.stream("Session")
                call = stream(pb.SessionRequest().SerializeToString(), metadata=self._link.metadata)
                self._link.opened(call, lambda: next(call), seconds)
                return call

            self._session = self._link.run(attempt)

    def _call(self, method: str, request: Any, response: Any) -> Any:
        call, data = self._link.unary(method), request.SerializeToString()
        answer = self._link.run(lambda seconds: call(data, timeout=seconds, metadata=self._link.metadata))
        return response.FromString(answer)


class RemoteWatch(Iterator[Event]):
    """An endless iterator of events. `close` ends it from any thread; a lost server is `Unavailable`."""

    def __init__(self, link: Link, call: Any) -> None:
        self._link = link
        self._call = call
        self._closed = False

    def __next__(self) -> Event:
        try:
            return wire.event_from_message(pb.Event.FromString(next(self._call)))
        except grpc.RpcError as error:
            if self._closed or self._link.closed:
                raise StopIteration from None
            raise self._link.meaning(error) from None

    def close(self) -> None:
        """End the iteration. A second call does nothing."""
        self._closed = True
        self._call.cancel()


class RemoteReservation:
    """A buffer of this process for one part; `commit` puts it."""

    def __init__(self, backend: RemoteBackend, spec: KVSpec, ref: ChunkRef, part: Part, first_valid: int) -> None:
        spec.check_part(part)
        self.data = np.empty(spec.part_bytes(part, ref.tokens), np.uint8).data
        self._backend = backend
        self._spec = spec
        self._offer = Offer(ref, part, self.data, first_valid)
        self._done = False

    def commit(self, ack: Ack = Ack.STORED, *, expect: bytes = b"") -> bool:
        """Send and publish. `expect` is checked here; the server checks what it gets against this side's hashes."""
        if self._done:
            raise InvalidArgument("this reservation was committed or aborted before")
        if expect and expect != _digests(self._spec, self._offer).tobytes():
            raise Corrupt("the bytes in the reservation do not match the checksums that were expected of them")
        self._done = True
        return self._backend.put(self._spec, self._offer, ack=ack)

    def abort(self) -> None:
        """Forget the buffer. After `commit` it does nothing."""
        self._done = True

    def __enter__(self) -> RemoteReservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def _digests(spec: KVSpec, offer: Offer) -> Any:
    ranges = np.array(spec.layer_ranges(offer.part, offer.ref.tokens), np.uint64)
    offsets, lengths = np.ascontiguousarray(ranges.T)
    return _native.xxh3_128_many(offer.data, offsets, lengths)


def _put_head(spec: KVSpec, offer: Offer, ack: Ack) -> bytes:
    ref, nbytes = offer.ref, len(offer.data)
    groups = group_table(spec.layer_ranges(offer.part, ref.tokens), _digests(spec, offer))
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
        groups=groups.tobytes(),
        spec=spec.digest,
    )
    head = pb.PutRequest.Head(spec=spec.digest, record=record, ack=wire.ack_to_number(ack))
    encoded: bytes = pb.PutRequest(head=head).SerializeToString()
    return encoded


def _get_request(spec: KVSpec, wants: Sequence[Want], fidelity: Fidelity, verify: bool) -> bytes:
    layers = []
    if any(want.layers is not None for want in wants):
        layers = [want.layers or (0, len(spec.layer_ranges(want.part, want.ref.tokens))) for want in wants]
    request = pb.GetRequest(
        spec=spec.digest,
        items=wire.items_to_bytes((want.ref, want.part) for want in wants),
        fidelity=wire.fidelity_to_number(fidelity),
        verify=verify,
        layers=[pb.LayerRange(start=start, end=end) for start, end in layers],
    )
    encoded: bytes = request.SerializeToString()
    return encoded
