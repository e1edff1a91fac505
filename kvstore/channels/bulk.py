"""The bulk channel: payload behind the frames of a TCP or TLS socket, straight into the caller's memory."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kvstore import wire
from kvstore.api import Ack, ChunkInfo, Event, Fidelity, Offer, PlacementInfo, View, Want
from kvstore.channels.control import Control, get_request, put_head
from kvstore.channels.lines import Lines
from kvstore.channels.receive import Receiver
from kvstore.channels.stream import Stream
from kvstore.errors import Corrupt, InvalidArgument, Unavailable
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb


class BulkBackend(Control):
    """A `Backend` over `Lines`, payload inline."""

    channel = "bulk"

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def call(self, method: str, request: Any, response: Any) -> Any:
        """One message and its answer."""
        return self._lines.call(method, request, response)

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
        """Not over a network."""
        del spec, ref, part
        raise InvalidArgument("views need an embedded store or a server on this host; use get with a buffer of yours")

    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        """Store a part, straight from the caller's memory, with its checksums. Safe to repeat, so it is retried."""
        head = pb.PutRequest(head=put_head(spec, offer, ack)).SerializeToString()

        def attempt(line: Stream) -> bytes:
            line.in_step = False
            line.send(pb.METHOD_PUT, head, payload=(offer.data,))
            return self._lines.answer(line).message

        answer = self.with_spec(spec, lambda: self._lines.run(attempt))
        return bool(pb.PutResponse.FromString(answer).stored)

    def watch(self) -> Iterator[Event]:
        """Events from now on."""
        return self._lines.watch()

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Have the server read everything back."""
        return self._lines.verify()

    def close(self) -> None:
        """End the session and every connection."""
        self._lines.close()

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
        left = list(indexes)

        def attempt(line: Stream) -> None:
            receiver = Receiver(spec, wants, list(left))
            request = get_request(spec, [wants[index] for index in left], fidelity, verify)
            try:
                line.in_step = False
                line.send(pb.METHOD_GET, request)
                for _ in list(left):
                    frame = self._lines.answer(line)
                    line.in_step = False
                    receiver.begin(wire.parse(pb.GetResponse, frame.message).head)
                    receiver.read(frame.payload, line.read_into)
                line.in_step = True
            finally:
                outcomes.update(receiver.outcomes)
                left[:] = [index for index in left if index not in receiver.outcomes]

        if left:
            self.with_spec(spec, lambda: self._lines.run(attempt))


def dial_tcp(host: str, port: int, context: ssl.SSLContext | None, name: str) -> Callable[[float], Stream]:
    """Connects to a bulk channel, over TLS where there is a context."""

    def dial(deadline: float) -> Stream:
        seconds = max(0.001, deadline - time.monotonic())
        try:
            sock = socket.create_connection((host, port), timeout=seconds)
        except OSError as error:
            raise Unavailable(f"{name}: {error.strerror or error}; is the server running?") from None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname=host)
        except OSError as error:
            sock.close()
            raise Unavailable(f"{name}: no TLS with this server: {error}") from None
        return Stream(sock, seconds, name)

    return dial
