"""What a server does with a request, whatever way it came in: messages and a `Session` in, messages out.

No gRPC in here. A front authenticates the caller, finds its session, and calls one method; calls block and may be
made from any thread. Payload is handed over as memory (`Outgoing.data`, `Incoming.data`), for the front to move.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from kvstore import wire, wire_listing, wire_plans
from kvstore.api import Backend, Query
from kvstore.errors import InvalidArgument, KVStoreError, LeaseExpired, Shed
from kvstore.pieces import PIECE_BYTES
from kvstore.spec import KVSpec
from kvstore.transfer import (
    GetPlan,
    Incoming,
    Outgoing,
    failed_item,
    open_item,
    open_run,
    plan_get,
    start_put,
)
from kvstore.v1 import kvstore_pb2 as pb

SESSION_BYTES = 16
MAX_SESSIONS = 4096
MAX_SPECS = 4096
MAX_PAGE = 1000


class Closeable(Protocol):
    """Something that ends."""

    def close(self) -> None:
        """End it."""


Belonging = TypeVar("Belonging", bound=Closeable)


class SessionSource(Protocol):
    """What the service needs of a store."""

    def session(self, namespace: str) -> Backend:
        """A backend bound to one namespace; `UnknownNamespace` if there is none of that name."""


@dataclass
class Session:
    """Who is calling: the namespace, the backend whose end ends the leases, and the specs seen so far.

    `shared` tells the session that all callers of a namespace use who have not opened one of their own; `users`
    counts the connections of one that several share; `belongings` are what else is closed with it, by kind.
    """

    namespace: str
    backend: Backend
    specs: dict[bytes, KVSpec] = field(repr=False)
    shared: bool = False
    users: int = 0
    belongings: dict[type, Closeable] = field(default_factory=dict, repr=False)

    def own(self, kind: type[Belonging]) -> Belonging:
        """What this session has of a kind, made at the first asking."""
        found = self.belongings.get(kind)
        if found is None:
            found = self.belongings.setdefault(kind, kind())
        assert isinstance(found, kind)
        return found

    def close(self) -> None:
        """End the leases, and whatever else belongs to the session."""
        self.backend.close()
        for each in self.belongings.values():
            each.close()

    def spec(self, digest: bytes) -> KVSpec:
        """The spec of this digest, or `UnknownSpec`."""
        if len(digest) != 16:
            raise InvalidArgument(f"a spec digest is 16 bytes, not {len(digest)}")
        try:
            return self.specs[digest]
        except KeyError:
            raise wire.UnknownSpec(
                f"this server has not seen the spec {digest.hex()}; call RegisterSpec with it and ask again"
            ) from None


class Service:
    """Answers requests from one store. Specs are kept per namespace: a tenant cannot see another's."""

    def __init__(self, store: SessionSource, *, may_operate: Callable[[str], bool] = lambda namespace: True) -> None:
        """`may_operate` says of a namespace whether its callers see figures of the whole store."""
        self._store = store
        self._may_operate = may_operate
        self._lock = threading.Lock()
        self._joining = threading.Lock()  # the first and the last connection of a session, one after the other
        self._sessions: dict[tuple[str, bytes], Session] = {}
        self._shared: dict[str, Session] = {}
        self._specs: dict[str, dict[bytes, KVSpec]] = {}
        self.facts: dict[str, str] = {}  # about this server, for `describe`

    def session(self, namespace: str, session_id: bytes = b"") -> Session:
        """The session that was opened under this id, or the namespace's shared one."""
        found = self._sessions.get((namespace, session_id)) or self._shared.get(namespace)
        if found is not None:
            return found
        backend = self._store.session(namespace)
        with self._lock:
            shared = self._shared.get(namespace)
            if shared is None:
                specs = self._specs.setdefault(namespace, {})
                shared = self._shared[namespace] = Session(namespace, backend, specs, shared=True)
                return shared
        backend.close()
        return shared

    def open_session(self, namespace: str, session_id: bytes) -> Session:
        """A session of the caller's own. It must be closed."""
        if len(session_id) != SESSION_BYTES:
            raise InvalidArgument(f"a session id is {SESSION_BYTES} bytes, not {len(session_id)}")
        backend = self._store.session(namespace)
        session = Session(namespace, backend, self._specs.setdefault(namespace, {}))
        with self._lock:
            if len(self._sessions) < MAX_SESSIONS and (namespace, session_id) not in self._sessions:
                self._sessions[namespace, session_id] = session
                return session
            full = len(self._sessions) >= MAX_SESSIONS
        backend.close()
        if full:
            raise Shed(f"{MAX_SESSIONS} sessions are open already; close some clients", "sessions")
        raise InvalidArgument(f"the session {session_id.hex()} is open already; choose a random id for each client")

    def join_session(self, namespace: str, session_id: bytes) -> Session:
        """The session that all connections of one client share, opened by the first; `leave_session` for each."""
        with self._joining:
            with self._lock:
                session = self._sessions.get((namespace, session_id))
            if session is None or not session.users:
                session = self.open_session(namespace, session_id)
            session.users += 1
            return session

    def leave_session(self, session_id: bytes, session: Session) -> None:
        """One connection less; with the last one the session ends."""
        with self._joining:
            session.users -= 1
            if not session.users:
                self.close_session(session_id, session)

    def close_session(self, session_id: bytes, session: Session) -> None:
        """End a session and every lease that was taken in it."""
        with self._lock:
            self._sessions.pop((session.namespace, session_id), None)
        session.close()

    def close(self) -> None:
        """End every session."""
        with self._lock:
            ended = [*self._sessions.values(), *self._shared.values()]
            self._sessions.clear()
            self._shared.clear()
        for session in ended:
            session.close()

    def unary(self) -> dict[str, tuple[Any, Callable[[Session, Any], Any]]]:
        """Every call of one message and one answer, by name: the class of the message, and what answers it."""
        return {
            "Describe": (pb.DescribeRequest, self.describe),
            "RegisterSpec": (pb.RegisterSpecRequest, self.register_spec),
            "Lookup": (pb.LookupRequest, self.lookup),
            "Release": (pb.ReleaseRequest, self.release),
            "Delete": (pb.KeysRequest, self.delete),
            "Pin": (pb.PinRequest, self.pin),
            "Unpin": (pb.KeysRequest, self.unpin),
            "Prefetch": (pb.KeysRequest, self.prefetch),
            "Hint": (pb.HintRequest, self.hint),
            "List": (pb.ListRequest, self.list),
            "Stats": (pb.StatsRequest, self.stats),
            "GetArtefact": (pb.GetArtefactRequest, self.get_artefact),
            "Drain": (pb.DrainRequest, self.drain),
            "Resume": (pb.DrainRequest, self.resume),
        }

    def describe(self, session: Session, request: Any) -> Any:
        """Who answers."""
        del request
        told = session.backend.describe()
        return pb.DescribeResponse(
            version=told.version,
            namespace=told.namespace,
            tiers=told.tiers,
            max_part_bytes=told.max_part_bytes,
            chunks=told.chunks,
            extra={**told.extra, **self.facts},
        )

    def register_spec(self, session: Session, request: Any) -> Any:
        """Make a spec known."""
        spec = wire.spec_from_message(request.spec)
        if spec.digest not in session.specs:
            if len(session.specs) >= MAX_SPECS:
                raise Shed(f"this namespace has registered {MAX_SPECS} specs already", "specs")
            session.backend.register(spec)
            session.specs[spec.digest] = spec
        return pb.RegisterSpecResponse(digest=spec.digest)

    def lookup(self, session: Session, request: Any, *, places: bool = False) -> Any:
        """The longest prefix that is there; with `places` also where it lies."""
        if request.lease and session.shared and request.in_session:
            raise LeaseExpired("the session of this lease is not open (any more); open it with Session and ask again")
        spec = session.spec(request.spec)
        query = Query(
            spec,
            wire.checked_refs(request.refs, spec),
            wire.parts_from_bytes(request.parts, spec),
            wire.fidelity_from_number(request.fidelity),
            request.lease,
            request.lease_ms / 1000,
            places,
            wire_plans.prompt_from_message(request.prompt) if request.HasField("prompt") else None,
        )
        found = session.backend.lookup(query)
        return pb.LookupResponse(
            tokens=found.tokens,
            used=wire.numbers_to_bytes(found.used),
            present=bytes(found.present),
            leased=found.leased,
            places=found.places,
            cold=wire.numbers_to_bytes(found.cold) if found.cold else b"",
            plan=None if found.plan is None else wire_plans.plan_to_message(found.plan),
            left_out=found.left_out,
        )

    def release(self, session: Session, request: Any) -> Any:
        """End leases."""
        session.backend.release(wire.leases_from_bytes(request.leases))
        return pb.ReleaseResponse()

    def delete(self, session: Session, request: Any) -> Any:
        """Forget chunks."""
        count = session.backend.delete(session.spec(request.spec), wire.keys_from_bytes(request.keys))
        return pb.CountResponse(count=count)

    def pin(self, session: Session, request: Any) -> Any:
        """Keep chunks from eviction."""
        if not request.ttl_ms:
            raise InvalidArgument("a pin needs ttl_ms of at least 1; use Unpin to end it")
        keys = wire.keys_from_bytes(request.keys)
        return pb.CountResponse(count=session.backend.pin(session.spec(request.spec), keys, request.ttl_ms / 1000))

    def unpin(self, session: Session, request: Any) -> Any:
        """End pins."""
        keys = wire.keys_from_bytes(request.keys)
        return pb.CountResponse(count=session.backend.pin(session.spec(request.spec), keys, 0.0))

    def hint(self, session: Session, request: Any) -> Any:
        """Advise what to keep."""
        keys = wire.keys_from_bytes(request.keys)
        return pb.CountResponse(count=session.backend.hint(session.spec(request.spec), keys, request.awaited_ms / 1000))

    def prefetch(self, session: Session, request: Any) -> Any:
        """Bring chunks into DRAM in the background."""
        keys, fidelity = wire.keys_from_bytes(request.keys), wire.fidelity_from_number(request.fidelity)
        return pb.CountResponse(count=session.backend.prefetch(session.spec(request.spec), keys, fidelity=fidelity))

    def list(self, session: Session, request: Any) -> Any:
        """A page of the namespace's chunks."""
        try:
            page = session.backend.chunks(request.cursor, min(request.limit or MAX_PAGE, MAX_PAGE))
        except (IndexError, TypeError):  # outside the index, or of more bits than it counts with
            raise InvalidArgument(f"{request.cursor} is no cursor that a list gave") from None
        return pb.ListResponse(chunks=[wire_listing.chunk_to_message(each) for each in page.chunks], cursor=page.cursor)

    def stats(self, session: Session, request: Any) -> Any:
        """Counters: of the whole store, or where tenants are kept apart, of the namespace alone."""
        del request
        stats = session.backend.stats()
        if not self._may_operate(session.namespace):
            stats = {name: stats[name] for name in ("version", "namespace") if name in stats}
        return pb.StatsResponse(json=json.dumps(stats))

    def drain(self, session: Session, request: Any) -> Any:
        """Empty a tier or a drive."""
        return wire_listing.drain_to_message(session.backend.drain(request.tier, request.path))

    def resume(self, session: Session, request: Any) -> Any:
        """Use it again."""
        return wire_listing.drain_to_message(session.backend.resume(request.tier, request.path))

    def get_artefact(self, session: Session, request: Any) -> Any:
        """A piece of an artefact's file."""
        data = session.backend.artefact(request.digest)
        if request.offset > len(data):
            raise InvalidArgument(f"the artefact has {len(data)} bytes; there is nothing at {request.offset}")
        piece = data[request.offset : request.offset + PIECE_BYTES]
        return pb.GetArtefactResponse(bytes=len(data), data=piece)

    def plan_get(self, session: Session, request: Any) -> GetPlan:
        """Check a get and say what it asks for."""
        return plan_get(session.spec(request.spec), request)

    def open_item(self, session: Session, plan: GetPlan, index: int) -> Outgoing:
        """One item of a get: its head and its bytes. A failure becomes the item's head and is not raised."""
        try:
            return open_item(session.backend, plan, index)
        except KVStoreError as error:
            return failed_item(index, error)

    def open_run(self, session: Session, plan: GetPlan, first: int) -> Sequence[Outgoing]:
        """As `open_item`, together with those that follow and are of the same part, such as its other layers."""
        return open_run(session.backend, plan, first)

    def start_put(self, session: Session, head: Any) -> Incoming:
        """Memory for a put that was announced."""
        return start_put(session.backend, session.spec(head.spec), head)
