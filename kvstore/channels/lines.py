"""Connections of one client to one server over frames: opened when needed, used by one thread at a time.

All of them name the same session. The server ends it, and the leases in it, when the last of them is gone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

from kvstore import wire, wire_listing
from kvstore.api import ChunkInfo, Event, PlacementInfo
from kvstore.channels.patience import Patience, retry
from kvstore.channels.stream import FAILED, MORE, ONE_WAY, PROTOCOL, BadFrame, Frame, Stream
from kvstore.errors import Closed, DeadlineExceeded, KVStoreError, Unavailable
from kvstore.v1 import kvstore_pb2 as pb

P = ParamSpec("P")
T = TypeVar("T")
Dial = Callable[[float], Stream]
Aside = Callable[[Stream, Frame], None]
IDLE_LINES = 16
INSTANCE_BYTES = 16
_LAST_WORDS_S = 0.5
_REPLACE_S = 1.0
NUMBERS: dict[str, int] = {
    "Describe": pb.METHOD_DESCRIBE,
    "RegisterSpec": pb.METHOD_REGISTER_SPEC,
    "Lookup": pb.METHOD_LOOKUP,
    "Release": pb.METHOD_RELEASE,
    "Delete": pb.METHOD_DELETE,
    "Pin": pb.METHOD_PIN,
    "Unpin": pb.METHOD_UNPIN,
    "Prefetch": pb.METHOD_PREFETCH,
    "Hint": pb.METHOD_HINT,
    "List": pb.METHOD_LIST,
    "Stats": pb.METHOD_STATS,
    "GetArtefact": pb.METHOD_GET_ARTEFACT,
    "Drain": pb.METHOD_DRAIN,
    "Resume": pb.METHOD_RESUME,
    "Place": pb.METHOD_PLACE,
    "Stage": pb.METHOD_STAGE,
    "StagedPut": pb.METHOD_PUT_STAGED,
    "Index": pb.METHOD_INDEX,
}


def _nothing_aside(stream: Stream, frame: Frame) -> None:
    del stream
    raise BadFrame(f"the server sent a message of method {frame.method} out of turn")


class Lines:
    """The connections of one client.

    `dial(deadline)` gives a connected stream. `aside` is told of frames that the server sends ahead of an answer.
    `instance` names the server's life; `renewed` is called when it is another one than before: whatever the client
    knew of the old one is void.
    """

    def __init__(
        self,
        dial: Dial,
        hello: Any,
        *,
        name: str,
        timeout: float,
        retries: int,
        aside: Aside = _nothing_aside,
        renewed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.instance = b""
        self._dial = dial
        self._hello: bytes = hello.SerializeToString()
        self._retries = retries
        self._aside = aside
        self._renewed = renewed
        self._idle: list[Stream] = []
        self._open: set[Stream] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _is_closed(self) -> bool:
        return self._closed

    def call(self, method: str, request: Any, response: Any) -> Any:
        """One message and its answer."""
        data = request.SerializeToString()
        number = NUMBERS[method]
        if number == pb.METHOD_RELEASE:
            self.run(lambda line: line.send(number, data, flags=ONE_WAY))
            return response()
        return wire.parse(response, self.run(lambda line: self.ask(line, number, data)))

    def ask(self, line: Stream, number: int, message: bytes, payload: Sequence[memoryview] = ()) -> bytes:
        """One message and its answer on a line; raises the failure that the server answers with."""
        if not payload:
            return self.exchange(line, number, message)
        line.in_step = False
        try:
            line.send(number, message, payload=payload)
        except Unavailable:
            self._hear_why(line)
            raise
        return self.answer(line).message

    def exchange(self, line: Stream, number: int, message: bytes, ahead: bytes = b"") -> bytes:
        """`ask` without payload, behind encoded one-way frames that are `ahead` of it."""
        frame = self._asked(line, line.exchange, number, message, ahead)
        if frame is not None and frame.method == number and not frame.flags & (FAILED | MORE):
            line.in_step = not frame.payload
            return frame.message
        return self.checked(line, frame).message

    def fill(self, line: Stream, number: int, message: bytes, out: memoryview) -> None:
        """`exchange`, for an answer whose payload fills `out`."""
        found = self._asked(line, line.fill, number, message, out)
        if found is not True:
            frame = self.checked(line, found)
            if frame.payload != out.nbytes:
                line.in_step = False
                raise BadFrame(f"{self.name} sends {frame.payload} bytes where {out.nbytes} were asked for")
            line.read_into(out)
        line.in_step = True

    def answer(self, line: Stream) -> Frame:
        """The answer to what was sent on a line, once whatever the server says ahead of it has been dealt with."""
        return self.checked(line, line.receive())

    def checked(self, line: Stream, first: Frame | None) -> Frame:
        """`answer`, of which the first frame has come (None: the end)."""
        frame = first
        while True:
            if frame is None:
                raise Unavailable(f"{self.name} ended the connection")
            if frame.flags & FAILED:
                line.in_step = not frame.payload and frame.method == line.asked
                raise wire.failure_from_message(wire.parse(pb.Failure, frame.message))
            if frame.method == line.asked:
                line.in_step = not frame.payload and not frame.flags & MORE
                return frame
            if frame.method != pb.METHOD_EXTENTS:
                raise BadFrame(f"{self.name} answered method {line.asked} with a message of method {frame.method}")
            self._aside(line, frame)
            frame = line.receive()

    def run(self, attempt: Callable[[Stream], T]) -> T:
        """`attempt` on a line that no other thread uses; again on a new one while the server is unavailable."""
        deadline = time.monotonic() + self.timeout
        try:
            return self.once(attempt, deadline)
        except Unavailable as error:
            failed = error
        patience = Patience(self.timeout, self._retries, self._is_closed, deadline)
        while True:
            patience.after(failed)
            try:
                return self.once(attempt, deadline)
            except Unavailable as error:
                failed = error

    def once(self, attempt: Callable[[Stream], T], deadline: float) -> T:
        """`run` without a second try."""
        if self._closed:
            raise Closed("this client is closed")
        line = self._take(deadline)
        try:
            return attempt(line)
        except Unavailable:
            self._drop_idle()  # what has broken one of them has most likely broken all
            raise
        finally:
            self._give_back(line)

    def each(self, attempt: Callable[[Stream], Iterator[T]]) -> Iterator[T]:
        """What `attempt` yields as it goes along, tried again like `run`. The caller's time does not count."""
        patience = Patience(self.timeout, self._retries, self._is_closed)
        while True:
            patience.check()
            try:
                line = self._take(patience.deadline)
                try:
                    for item in attempt(line):
                        given = time.monotonic()
                        yield item
                        patience.deadline += time.monotonic() - given
                        line.deadline = patience.deadline
                    return
                except Unavailable:
                    self._drop_idle()
                    raise
                except GeneratorExit:
                    self._keep_session(line)
                    raise
                finally:
                    self._give_back(line)
            except Unavailable as error:
                patience.after(error)

    def stream(self, number: int, message: bytes) -> Stream:
        """A line of its own on which the server goes on answering; the caller closes it."""

        def act(deadline: float) -> Stream:
            line = self.connect(deadline)
            try:
                line.send(number, message)
                self.answer(line)
            except BaseException:
                self.end(line)
                raise
            line.deadline = None
            return line

        return retry(act, self.timeout, self._retries, self._is_closed)

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Have the server read everything back."""
        line = self.stream(pb.METHOD_VERIFY, b"")
        try:
            while (frame := self.more(line)) is not None:
                yield wire_listing.verified_from_bytes(frame.message)
        finally:
            self.end(line)

    def watch(self, lookups: bool) -> LineWatch:
        """Events from now on, or look-ups."""
        return LineWatch(self, self.stream(pb.METHOD_WATCH, pb.WatchRequest(lookups=lookups).SerializeToString()))

    def close(self) -> None:
        """End every connection; calls under way end with `Closed`."""
        self._closed = True
        with self._lock:
            busy = self._open.difference(self._idle)
            for line in busy:
                line.shut()
        self._drop_idle()

    def abandon(self) -> None:
        """In the child of a fork: these connections are the parent's, and so may be whoever held the lock."""
        self._closed = True
        self._lock = threading.Lock()
        self._idle = []

    def more(self, line: Stream) -> Frame | None:
        """The next of several answers, None after the last."""
        frame = line.receive(idle=True)
        if frame is None:
            raise Unavailable(f"{self.name} ended the connection")
        if frame.flags & FAILED:
            raise wire.failure_from_message(wire.parse(pb.Failure, frame.message))
        if frame.payload or frame.method != line.asked:
            raise BadFrame(f"{self.name} answered method {line.asked} with a message of method {frame.method}")
        return frame if frame.flags & MORE else None

    def end(self, line: Stream) -> None:
        """Close a line."""
        with self._lock:
            self._open.discard(line)
        line.close()

    def _asked(self, line: Stream, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `ask`, a way of `line`'s to send a question and receive, gives; where it was not sent, why not."""
        line.in_step = False
        try:
            return ask(*args, **kwargs)
        except Unavailable:
            if not line.sent:
                self._hear_why(line)
            raise

    def _hear_why(self, line: Stream) -> None:
        """Raise what the server said before it ended the connection, as where it will not read a payload."""
        line.deadline = time.monotonic() + _LAST_WORDS_S
        with contextlib.suppress(Unavailable, DeadlineExceeded, BadFrame):
            self.answer(line)

    def _take(self, deadline: float) -> Stream:
        with self._lock:
            line = self._idle.pop() if self._idle else None
        if line is None:
            line = self.connect(deadline)
        line.deadline = deadline
        return line

    def _give_back(self, line: Stream) -> None:
        line.drop_descriptors()
        good = line.in_step and not line.broken and not line.unread
        with self._lock:
            if good and not self._closed and len(self._idle) < IDLE_LINES:
                self._idle.append(line)
                return
        self.end(line)

    def _keep_session(self, leaving: Stream) -> None:
        """Open another line where the one that is given up is the last: with it the session would end."""
        with self._lock:
            last = len(self._open) == 1
        if last and not leaving.in_step and not leaving.broken and not self._closed:
            with contextlib.suppress(KVStoreError):
                self._give_back(self.connect(time.monotonic() + _REPLACE_S))

    def connect(self, deadline: float) -> Stream:
        """A line of its own, which the caller closes."""
        line = self._dial(deadline)
        with self._lock:
            self._open.add(line)
        try:
            line.deadline = deadline
            hello = wire.parse(pb.HelloResponse, self.ask(line, pb.METHOD_HELLO, self._hello))
            if len(hello.instance) != INSTANCE_BYTES or not line.in_step:
                raise BadFrame(f"{self.name} does not say which server it is")
        except DeadlineExceeded:
            self.end(line)
            raise Unavailable(f"{self.name} did not answer in time; is the server running?") from None
        except BaseException:
            self.end(line)
            raise
        line.instance = hello.instance
        with self._lock:
            new, self.instance = hello.instance != self.instance, hello.instance
        if new:
            self._renewed()
        if self._closed:  # while it was being opened, so that `close` has not seen it
            line.shut()
        return line

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for line in idle:
            self.end(line)


class LineWatch(Iterator[Event]):
    """An endless iterator of events. `close` ends it from any thread; a lost server is `Unavailable`."""

    def __init__(self, lines: Lines, line: Stream) -> None:
        self._lines = lines
        self._line = line
        self._reading = threading.Lock()
        self._closed = False

    def __next__(self) -> Event:
        with self._reading:
            if self._closed:
                raise StopIteration
            try:
                frame = self._lines.more(self._line)
            except KVStoreError:
                self._lines.end(self._line)
                if not self._closed and not self._lines.closed:
                    self._closed = True
                    raise
                frame = None
        if frame is None:
            self.close()
            raise StopIteration
        return wire_listing.event_from_message(wire.parse(pb.Event, frame.message))

    def close(self) -> None:
        """End the iteration. A second call does nothing."""
        self._closed = True
        self._line.shut()
        with self._reading:  # whoever reads has been woken
            self._lines.end(self._line)


def hello_message(session: bytes, token: str, namespace: str, *, peer: bool = False) -> Any:
    """What a connection begins with."""
    return pb.HelloRequest(protocol=PROTOCOL, session=session, token=token, namespace=namespace, peer=peer)
