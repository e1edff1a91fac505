"""Payload behind the frames: a get straight out of the arena, a put straight into it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from kvstore import wire
from kvstore.channels.stream import Frame, encode
from kvstore.errors import InvalidArgument
from kvstore.server.streams import Connection, Handler, send_held
from kvstore.service import Service, Session
from kvstore.session import Session as StoreSession
from kvstore.transfer import GetPlan, Outgoing
from kvstore.v1 import kvstore_pb2 as pb

TOGETHER_BYTES = 1 << 20  # items are sent in one system call up to here
TOGETHER_ITEMS = 128
AHEAD_ITEMS = 8  # opened while others are sent, where opening takes long: their bytes come from a slower tier
AHEAD_THREADS = 16
SLOW_S = 300e-6


def handlers() -> Mapping[int, Handler]:
    """By the number of the method."""
    pool = ThreadPoolExecutor(AHEAD_THREADS, "kvstore-ahead")

    def get(connection: Connection, frame: Frame) -> None:
        """Every item in order: a frame with its head, its payload behind it."""
        service, session = connection.service, connection.session
        if connection.gets is not None and send_held(connection.stream, frame, connection.gets):
            return
        plan = service.plan_get(session, wire.parse(pb.GetRequest, frame.message))
        items = Opened(service, session, plan, pool)
        try:
            _send(connection, frame, items)
        finally:
            items.close()
        if isinstance(session.backend, StoreSession):
            connection.gets = session.backend.plain_gets(pb.METHOD_GET, plan.spec)

    return {pb.METHOD_GET: get, pb.METHOD_PUT: put}


def put(connection: Connection, frame: Frame) -> None:
    """Take the payload straight into the store's memory."""
    service, session, stream = connection.service, connection.session, connection.stream
    incoming = service.start_put(session, wire.parse(pb.PutRequest, frame.message).head)
    try:
        if incoming.announced != frame.payload:
            raise InvalidArgument(f"{frame.payload} bytes follow a head that announces {incoming.announced}")
        incoming.fill(stream.read_into)
        done = incoming.finish()
    finally:
        incoming.abort()
    connection.answer(frame, done)


def _send(connection: Connection, frame: Frame, items: Iterator[Outgoing]) -> None:
    pieces: list[bytes | memoryview] = []
    with ExitStack() as held:
        nbytes = 0
        for outgoing in items:
            held.callback(outgoing.close)
            pieces += (encode(frame.method, outgoing.head, 0, len(outgoing.data)), outgoing.data)
            nbytes += len(outgoing.data)
            if nbytes >= TOGETHER_BYTES or len(pieces) >= 2 * TOGETHER_ITEMS:
                connection.stream.send_raw(pieces)
                pieces, nbytes = [], 0
                held.close()
        if pieces:
            connection.stream.send_raw(pieces)
            pieces = []  # or what they stand on would be held until somebody sweeps


class Opened(Iterator[Outgoing]):
    """The items of a get, in order. After one that took long to open, the next ones are opened ahead in threads."""

    def __init__(self, service: Service, session: Session, plan: GetPlan, pool: ThreadPoolExecutor) -> None:
        self._service = service
        self._session = session
        self._plan = plan
        self._pool = pool
        self._run: deque[Outgoing] = deque()
        self._ahead: deque[Future[Outgoing]] = deque()
        self._asked = 0  # items that are opened or about to be
        self._slow = False

    def __next__(self) -> Outgoing:
        if not self._run:
            self._open_more()
        return self._run.popleft()

    def close(self) -> None:
        """Close what was opened and is not wanted any more."""
        for outgoing in self._run:
            outgoing.close()
        for future in self._ahead:
            if not future.cancel():
                future.add_done_callback(_close)

    def _open_more(self) -> None:
        total = len(self._plan.items)
        if self._ahead:
            self._run.append(self._ahead.popleft().result())
        elif self._asked == total:
            raise StopIteration
        else:
            start = time.monotonic()
            self._run.extend(self._service.open_run(self._session, self._plan, self._asked))
            self._asked += len(self._run)
            self._slow = time.monotonic() - start > SLOW_S
        while self._slow and len(self._ahead) < AHEAD_ITEMS and self._asked < total:
            self._ahead.append(self._pool.submit(self._open, self._asked))
            self._asked += 1

    def _open(self, index: int) -> Outgoing:
        start = time.monotonic()
        found = self._service.open_item(self._session, self._plan, index)
        self._slow = time.monotonic() - start > SLOW_S
        return found


def _close(opened: Future[Outgoing]) -> None:
    """Let go of what is not wanted any more; what could not be opened holds nothing."""
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()
