"""The gRPC channel: a store behind its public interface, payload streamed in pieces of 1 MiB."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc

from kvstore import pieces, wire_listing
from kvstore.api import Ack, ChunkInfo, Event, Fidelity, Offer, PlacementInfo, Query, View, Want
from kvstore.channels.control import Control, get_request, put_head
from kvstore.channels.link import Link
from kvstore.channels.receive import Receiver
from kvstore.errors import Corrupt, InvalidArgument, LeaseExpired, Unavailable
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb

T = TypeVar("T")


class GrpcBackend(Control):
    """The `Backend` of one connection. Leases are taken in a session that ends with it."""

    channel = "grpc"

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._session: Any = None
        self._session_lock = threading.Lock()
        pieces.keep_freed_memory()

    def call(self, method: str, request: Any, response: Any) -> Any:
        """One unary call."""
        call, data = self._link.unary(method), request.SerializeToString()
        answer = self._link.run(lambda seconds: call(data, timeout=seconds, metadata=self._link.metadata))
        return response.FromString(answer)

    def get(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Sequence[Exception | None]:
        """Read parts in one call, each verified on arrival; what arrived damaged is asked for once more."""
        outcomes: dict[int, Exception | None] = {}
        began = time.monotonic()
        self._get(spec, wants, range(len(wants)), outcomes, fidelity, verify)
        self.link_speed.measured(wants, [outcomes[index] for index in range(len(wants))], time.monotonic() - began)
        damaged = [index for index, outcome in outcomes.items() if isinstance(outcome, Corrupt)]
        if damaged and not verify:
            self._get(spec, wants, damaged, outcomes, fidelity, True)
        return [outcomes[index] for index in range(len(wants))]

    def view(
        self, spec: KVSpec, ref: ChunkRef, part: Part, *, fidelity: Fidelity = Fidelity.EXACT, encoded: bool = False
    ) -> View:
        """Not over gRPC."""
        del spec, ref, part, fidelity, encoded
        raise InvalidArgument(
            "views need an embedded store (kvstore.open) or a server on this host; over gRPC use get with a buffer"
        )

    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        """Store a part, straight from the caller's memory, with its checksums. Safe to repeat, so it is retried."""
        head = pb.PutRequest(head=put_head(spec, offer, ack)).SerializeToString()
        call = self._link.upload("Put")

        def messages() -> Iterator[bytes]:
            yield head
            yield from pieces.frames(offer.data)

        def attempt(seconds: float) -> bytes:
            answer: bytes = call(messages(), timeout=seconds, metadata=self._link.metadata)
            return answer

        answer = self.with_spec(spec, lambda: self._link.run(attempt))
        return bool(pb.PutResponse.FromString(answer).stored)

    def watch(self, *, lookups: bool = False) -> GrpcWatch:
        """Events from now on."""
        stream = self._link.stream("Watch")

        def attempt(seconds: float) -> Any:
            call = stream(pb.WatchRequest(lookups=lookups).SerializeToString(), metadata=self._link.metadata)
            self._link.opened(call, call.initial_metadata, seconds)
            if call.done():
                raise call
            return call

        return GrpcWatch(self._link, self._link.run(attempt))

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Have the server read everything back."""
        call = self._link.stream("Verify")(pb.VerifyRequest().SerializeToString(), metadata=self._link.metadata)
        try:
            for message in call:
                yield wire_listing.verified_from_bytes(message)
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
            receiver = Receiver(spec, wants, list(left), self.find_artefact)
            request = get_request(spec, [wants[index] for index in left], fidelity, verify)
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
            self.with_spec(spec, lambda: self._link.run(attempt))

    def _look(self, request: Any, query: Query) -> Any:
        def ask() -> Any:
            return self.ask("Lookup", query.spec, request, pb.LookupResponse)

        return self._in_session(ask) if query.lease else ask()

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


class GrpcWatch(Iterator[Event]):
    """An endless iterator of events. `close` ends it from any thread; a lost server is `Unavailable`."""

    def __init__(self, link: Link, call: Any) -> None:
        self._link = link
        self._call = call
        self._closed = False

    def __next__(self) -> Event:
        try:
            return wire_listing.event_from_message(pb.Event.FromString(next(self._call)))
        except grpc.RpcError as error:
            if self._closed or self._link.closed:
                raise StopIteration from None
            raise self._link.meaning(error) from None

    def close(self) -> None:
        """End the iteration. A second call does nothing."""
        self._closed = True
        self._call.cancel()
