"""The bulk channel: payload behind the frames of a TCP or TLS socket, straight into the caller's memory."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from kvstore import wire
from kvstore.api import Ack, ChunkInfo, Event, Fidelity, Offer, PlacementInfo, View, Want
from kvstore.channels.control import Control, get_request, put_head
from kvstore.channels.fetch import fetch_one, is_plain
from kvstore.channels.lines import Lines
from kvstore.channels.patience import Hopeless
from kvstore.channels.receive import Receiver
from kvstore.channels.stream import Stream, keep_alive
from kvstore.errors import Corrupt, InvalidArgument, KVStoreError, Unavailable
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb

LEAST_SHARE = 4 << 20


class BulkBackend(Control):
    """A `Backend` over `Lines`, payload inline; large batches over up to `streams` of them."""

    channel = "bulk"

    def __init__(self, lines: Lines, streams: int = 1) -> None:
        super().__init__()
        self._lines = lines
        self._streams = streams
        self._pool = ThreadPoolExecutor(streams, "kvstore-bulk")

    def call(self, method: str, request: Any, response: Any) -> Any:
        """One message and its answer."""
        return self._lines.call(method, request, response)

    def get(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Sequence[Exception | None]:
        """Read parts, each verified on arrival; what arrived damaged is asked for once more.

        A large batch comes over several connections at once.
        """
        began = time.monotonic()
        outcomes = self._get(spec, wants, fidelity, verify)
        self.link_speed.measured(wants, outcomes, time.monotonic() - began)
        return outcomes

    def _get(self, spec: KVSpec, wants: Sequence[Want], fidelity: Fidelity, verify: bool) -> Sequence[Exception | None]:
        if is_plain(spec, wants):
            return [self._get_one(spec, wants[0], fidelity, verify)]
        shares = _shares(wants, self._streams)
        if len(shares) == 1:
            outcomes = dict(self.get_each(spec, wants, fidelity=fidelity, verify=verify))
        else:
            outcomes = {}
            works = [self._pool.submit(list, self._items(spec, wants, share, fidelity, verify)) for share in shares]
            for work in wait(works).done:
                outcomes.update(work.result())
        return [outcomes[index] for index in range(len(wants))]

    def get_each(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Iterator[tuple[int, Exception | None]]:
        """As `get`, each as soon as it has come: in order, but what arrived damaged at the end."""
        return self._items(spec, wants, range(len(wants)), fidelity, verify)

    def view(
        self, spec: KVSpec, ref: ChunkRef, part: Part, *, fidelity: Fidelity = Fidelity.EXACT, encoded: bool = False
    ) -> View:
        """Not over a network."""
        del spec, ref, part, fidelity, encoded
        raise InvalidArgument("views need an embedded store or a server on this host; use get with a buffer of yours")

    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        """Store a part, straight from the caller's memory, with its checksums. Safe to repeat, so it is retried."""
        head = pb.PutRequest(head=put_head(spec, offer, ack)).SerializeToString()

        def attempt(line: Stream) -> bytes:
            return self._lines.ask(line, pb.METHOD_PUT, head, (offer.data,))

        answer = self.with_spec(spec, lambda: self._lines.run(attempt))
        return bool(wire.parse(pb.PutResponse, answer).stored)

    def watch(self, *, lookups: bool = False) -> Iterator[Event]:
        """Events from now on."""
        return self._lines.watch(lookups)

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Have the server read everything back."""
        return self._lines.verify()

    def close(self) -> None:
        """End the session and every connection."""
        self._lines.close()
        self._pool.shutdown()

    def _get_one(self, spec: KVSpec, want: Want, fidelity: Fidelity, verify: bool) -> KVStoreError | None:
        """The outcome of one whole part; what arrived damaged is asked for once more."""

        def attempt(line: Stream) -> KVStoreError | None:
            return fetch_one(self._lines, line, spec, want, fidelity, verify, self.find_artefact)

        outcome = self.with_spec(spec, lambda: self._lines.run(attempt))
        if isinstance(outcome, Corrupt) and not verify:
            return self._get_one(spec, want, fidelity, True)
        return outcome

    def _items(
        self, spec: KVSpec, wants: Sequence[Want], indexes: Sequence[int], fidelity: Fidelity, verify: bool
    ) -> Iterator[tuple[int, Exception | None]]:
        """The outcome of each of `indexes`; after a broken connection only what is missing is asked for again."""
        left, damaged = list(indexes), list[int]()
        for index, outcome in self._registered_items(spec, wants, left, fidelity, verify):
            if isinstance(outcome, Corrupt) and not verify:
                damaged.append(index)
            else:
                yield index, outcome
        if damaged:
            yield from self._registered_items(spec, wants, damaged, fidelity, True)

    def _registered_items(
        self, spec: KVSpec, wants: Sequence[Want], left: list[int], fidelity: Fidelity, verify: bool
    ) -> Iterator[tuple[int, Exception | None]]:
        def attempt(line: Stream) -> Iterator[tuple[int, Exception | None]]:
            return self._arriving(line, spec, wants, left, fidelity, verify)

        if not left:
            return
        if spec.digest not in self._registered:
            self.register(spec)
        try:
            yield from self._lines.each(attempt)
        except wire.UnknownSpec:
            self.register(spec)
            yield from self._lines.each(attempt)

    def _arriving(
        self, line: Stream, spec: KVSpec, wants: Sequence[Want], left: list[int], fidelity: Fidelity, verify: bool
    ) -> Iterator[tuple[int, Exception | None]]:
        """One request for what is `left`, its items as they arrive; each is taken out of `left` first."""
        indexes = tuple(left)
        receiver = Receiver(spec, wants, indexes, self.find_artefact)
        line.in_step = False
        line.send(pb.METHOD_GET, get_request(spec, [wants[index] for index in indexes], fidelity, verify))
        for index in indexes:
            frame = self._lines.answer(line)
            line.in_step = False
            receiver.begin(wire.parse(pb.GetResponse, frame.message).head)
            receiver.read(frame.payload, line.read_into)
            line.in_step = index == indexes[-1]
            left.remove(index)
            yield index, receiver.outcomes[index]


def _shares(wants: Sequence[Want], streams: int) -> list[range]:
    """Consecutive indexes for each connection, of about the same number of bytes."""
    total = sum(want.out.nbytes for want in wants)
    count = max(1, min(streams, total // LEAST_SHARE, len(wants)))
    shares, start, passed = list[range](), 0, 0
    for index, want in enumerate(wants):
        passed += want.out.nbytes
        if passed * count >= total * (len(shares) + 1) and len(shares) + 1 < count:
            shares.append(range(start, index + 1))
            start = index + 1
    return [each for each in (*shares, range(start, len(wants))) if each] or [range(0)]


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
            keep_alive(sock)
            if context is not None:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                sock = context.wrap_socket(sock, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            sock.close()
            raise Hopeless(f"{name}: its certificate is not to be trusted: {error.verify_message}; see `ca`") from None
        except OSError as error:
            sock.close()
            raise Unavailable(f"{name}: no TLS with this server: {error.strerror or error}") from None
        return Stream(sock, seconds, name)

    return dial
