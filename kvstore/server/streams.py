"""The local and the bulk front: frames over Unix and TCP sockets, a thread for each connection.

A connection that stalls, sends nonsense or vanishes costs its own thread and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstore import __version__, _native, wire, wire_listing
from kvstore.channels.lines import NUMBERS
from kvstore.channels.stream import (
    FAILED,
    MORE,
    ONE_WAY,
    PROTOCOL,
    BadFrame,
    DamagedFrame,
    Frame,
    Stream,
    keep_alive,
    shut,
)
from kvstore.config import ServerConfig
from kvstore.errors import ConfigError, InvalidArgument, KVStoreError, PermissionDenied, Shed
from kvstore.server.access import Access
from kvstore.service import SESSION_BYTES, Service, Session
from kvstore.v1 import kvstore_pb2 as pb

STALL_S = 60.0
HELLO_S = 10.0
HELLO_BYTES = 4096  # at most: a stranger is not given memory for more
SPARE_CONNECTIONS = 64  # above the limit, to tell them so
MAX_SKIP = 256 << 20
_ACCEPT_PAUSE_S = 0.05
_TLS_HANDSHAKE = b"\x16"
Handler = Callable[["Connection", Frame], None]
PeerHandler = Callable[[Stream, Frame], None]
Greet = Callable[[socket.socket], socket.socket]


@dataclass(eq=False)
class Connection:
    """One connection that has introduced itself. `ending` is run when it is over, last first.

    `puts` and `gets` answer what is plain while the next frame is waited for.
    """

    stream: Stream
    session: Session
    service: Service
    ending: list[Callable[[], object]] = field(default_factory=list)
    puts: _native.StagedPuts | None = None
    gets: _native.PartSource | None = None

    def answer(self, frame: Frame, message: Any, *, flags: int = 0) -> None:
        """Answer a frame with a message."""
        self.stream.send(frame.method, message.SerializeToString(), flags=flags)


@dataclass(frozen=True)
class PeerCalls:
    """What answers other servers: `handlers` by the number of the method, `reads` what is plain, without Python."""

    handlers: Mapping[int, PeerHandler]
    reads: _native.PartSource


class StreamServer:
    """Accepts connections on one listening socket and serves them until `stop`.

    `handlers` answer what is not a plain call of one message; `greet` turns a fresh socket into a TLS one, whose
    handshake the connection's own thread does.
    """

    def __init__(
        self,
        listener: socket.socket,
        service: Service,
        access: Access,
        instance: bytes,
        handlers: Mapping[int, Handler],
        *,
        name: str,
        limit: int,
        greet: Greet | None = None,
        peers: PeerCalls | None = None,
    ) -> None:
        """`peers` answer other servers; where there are none these are refused."""
        self._listener = listener
        self._service = service
        self._access = access
        self._instance = instance
        self._name = name
        self._limit = limit
        self._greet = greet
        self._peers = peers
        self._handlers = {**_plain_calls(service), pb.METHOD_WATCH: watch, pb.METHOD_VERIFY: verify, **handlers}
        self._open: dict[socket.socket, threading.Thread] = {}
        self._admitted = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"kvstore-{name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections and end those that are open. A second call does nothing."""
        self._stopped.set()
        shut(self._listener)
        self._thread.join()
        self._listener.close()
        with self._lock:
            threads = list(self._open.values())
            for sock in self._open:
                shut(sock)
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:  # stopped, or no descriptor is left: then none is closed by asking again at once
                self._stopped.wait(_ACCEPT_PAUSE_S)
                continue
            thread = threading.Thread(target=self._run, args=(sock,), name=f"kvstore-{self._name}-call", daemon=True)
            try:
                with self._lock:
                    if len(self._open) >= self._limit + SPARE_CONNECTIONS:
                        raise RuntimeError("too many connections")
                    self._open[sock] = thread
                    thread.start()
            except RuntimeError:  # the system has no thread left either
                self._open.pop(sock, None)
                sock.close()

    def _run(self, sock: socket.socket) -> None:
        ready = sock
        try:
            with contextlib.suppress(OSError, KVStoreError):  # whoever it was is gone
                ready = self._greeted(sock)
                if isinstance(ready, ssl.SSLSocket):
                    ready.do_handshake()
                self._serve(Stream(ready, HELLO_S, "the client"))
        finally:
            with self._lock:
                self._open.pop(ready, None)
            ready.close()

    def _greeted(self, sock: socket.socket) -> socket.socket:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)
        sock.settimeout(HELLO_S)
        if self._greet is None:
            return sock
        first = sock.recv(1, socket.MSG_PEEK)
        if first and first != _TLS_HANDSHAKE:
            stream = Stream(sock, HELLO_S, "the client")
            stream.receive(longest=HELLO_BYTES)
            fail(stream, pb.METHOD_HELLO, InvalidArgument("this port speaks TLS: use bulks://HOST:PORT or give `ca`"))
            raise BadFrame("a connection without TLS")
        with self._lock:
            ready = self._greet(sock)
            self._open[ready] = self._open.pop(sock)
        return ready

    def _serve(self, stream: Stream) -> None:
        stream.deadline = time.monotonic() + HELLO_S
        try:
            hello = self._hear_hello(stream)
            with self._admitted_one():
                if hello.peer:
                    self._serve_peer(stream, hello)
                else:
                    self._serve_client(stream, hello)
        except KVStoreError as error:
            stream.deadline = None
            fail(stream, pb.METHOD_HELLO, error)

    def _serve_client(self, stream: Stream, hello: Any) -> None:
        """Raises what keeps a client from coming in, and nothing after that."""
        session = self._service.join_session(self._access.namespace(hello.token, hello.namespace), hello.session)
        connection = Connection(stream, session, self._service)
        try:
            told = session.backend.describe()
            self._greet_back(stream, told.version, told.namespace)
            self._answer_all(
                stream,
                lambda: stream.next_question(connection.puts, connection.gets),
                lambda frame: self._handlers[frame.method](connection, frame),
                self._handlers,
            )
        finally:
            for end in reversed(connection.ending):
                end()
            stream.drop_descriptors()
            self._service.leave_session(hello.session, session)

    def _serve_peer(self, stream: Stream, hello: Any) -> None:
        """Raises what keeps a peer from coming in, and nothing after that."""
        self._access.check_peer(hello.token)
        peers = self._peers
        if peers is None:
            raise PermissionDenied(f"the {self._name} channel is not for other servers: use the bulk channel")
        self._greet_back(stream, __version__, "")
        self._answer_all(
            stream,
            lambda: stream.next_question(None, peers.reads),
            lambda frame: peers.handlers[frame.method](stream, frame),
            peers.handlers,
        )

    def _hear_hello(self, stream: Stream) -> Any:
        frame = stream.receive(longest=HELLO_BYTES)
        check_peer(stream)
        if frame is None or frame.method != pb.METHOD_HELLO or frame.payload:
            raise BadFrame("a connection begins with Hello")
        hello = wire.parse(pb.HelloRequest, frame.message)
        if hello.protocol != PROTOCOL:
            raise InvalidArgument(f"this server speaks protocol {PROTOCOL}, not {hello.protocol}: use one version")
        if len(hello.session) != SESSION_BYTES:
            raise InvalidArgument(f"a session id is {SESSION_BYTES} bytes, not {len(hello.session)}")
        return hello

    def _greet_back(self, stream: Stream, version: str, namespace: str) -> None:
        answer = pb.HelloResponse(instance=self._instance, version=version, namespace=namespace)
        stream.send(pb.METHOD_HELLO, answer.SerializeToString())
        stream.deadline, stream.patience = None, STALL_S

    @contextlib.contextmanager
    def _admitted_one(self) -> Iterator[None]:
        with self._lock:
            if self._admitted >= self._limit:
                raise Shed(f"{self._limit} connections are open already; raise server.max_connections", "connections")
            self._admitted += 1
        try:
            yield
        finally:
            with self._lock:
                self._admitted -= 1

    def _answer_all(
        self,
        stream: Stream,
        ask: Callable[[], Frame | None],
        answer: Callable[[Frame], None],
        known: Container[int],
    ) -> None:
        """Answer frames until the other side ends or makes no sense; raises nothing of ours."""
        with contextlib.suppress(KVStoreError):  # the connection is broken: there is nobody to tell
            try:
                while True:
                    frame = ask()
                    if frame is None or not self._handle(stream, frame, answer, known):
                        break
            except (BadFrame, DamagedFrame) as error:
                fail(stream, pb.METHOD_NONE, error)

    def _handle(self, stream: Stream, frame: Frame, answer: Callable[[Frame], None], known: Container[int]) -> bool:
        """Answer one frame; whether the connection goes on. A failure of the call is its answer."""
        try:
            if frame.method not in known:
                raise InvalidArgument(f"there is no method {frame.method} on the {self._name} channel")
            answer(frame)
        except BadFrame:
            raise
        except KVStoreError as error:
            if stream.broken:
                raise
            goes_on = stream.unread <= MAX_SKIP
            if goes_on:
                stream.skip()  # a client that is still sending does not listen yet
            if not frame.flags & ONE_WAY:
                fail(stream, frame.method, error)
            return goes_on
        finally:
            stream.drop_untaken()
        return True


def send_held(stream: Stream, frame: Frame, source: _native.PartSource) -> bool:
    """Answer what `source` can, which over TLS comes here; False where it is anything else."""
    found = None if frame.payload or frame.flags else source.find(frame.method, frame.message)
    if found is None:
        return False
    data = found.data
    try:
        stream.send_raw((found.head, data))
    finally:
        data.release()  # before the memory may become another's
        found.close()
    return True


def check_peer(stream: Stream) -> None:
    """On this host let in the server's own user and root, whatever has become of the mode of the socket."""
    uid = stream.peer_uid()
    if uid not in (None, 0, os.geteuid()):
        raise PermissionDenied(f"this socket is for the user {os.geteuid()} that the server runs as, not {uid}")


def fail(stream: Stream, method: int, error: KVStoreError) -> None:
    """Answer with an error, if anybody still listens."""
    with contextlib.suppress(KVStoreError):
        stream.send(method, wire.failure_to_message(error).SerializeToString(), flags=FAILED)


def watch(connection: Connection, frame: Frame) -> None:
    """Events of the namespace until the client ends the connection, whose whole use this is."""
    stream = connection.stream
    events = connection.session.backend.watch(lookups=wire.parse(pb.WatchRequest, frame.message).lookups)
    close: Callable[[], None] = events.close  # type: ignore[attr-defined]

    def end_with_client() -> None:
        stream.wait_for_end()
        close()

    connection.answer(frame, pb.WatchRequest())
    watcher = threading.Thread(target=end_with_client, name="kvstore-watch", daemon=True)
    watcher.start()
    try:
        for event in events:
            connection.answer(frame, wire_listing.event_to_message(event), flags=MORE)
    finally:
        close()
        stream.shut()
        watcher.join()


def verify(connection: Connection, frame: Frame) -> None:
    """Read everything back, an answer for each copy, then one without MORE."""
    connection.answer(frame, pb.VerifyRequest(), flags=MORE)
    for chunk, placement, problem in connection.session.backend.verify():
        connection.answer(frame, wire_listing.verified_to_message(chunk, placement, problem), flags=MORE)
    connection.answer(frame, pb.VerifyRequest())


def _plain_calls(service: Service) -> dict[int, Handler]:
    """Handlers of the calls that are one message and its answer."""

    def handler(message: Any, act: Callable[[Session, Any], Any]) -> Handler:
        def handle(connection: Connection, frame: Frame) -> None:
            if frame.payload:
                raise InvalidArgument(f"method {frame.method} takes no payload")
            answer = act(connection.session, wire.parse(message, frame.message))
            if not frame.flags & ONE_WAY:
                connection.stream.send(frame.method, answer.SerializeToString())

        return handle

    return {NUMBERS[name]: handler(message, act) for name, (message, act) in service.unary().items()}


def tls_greeter(config: ServerConfig) -> Greet:
    """A `greet` that makes sockets TLS with the server's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(str(config.tls_cert), config.tls_key, password=lambda: "")  # or it would ask a terminal
        if config.client_ca is not None:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"server.tls_cert, tls_key or client_ca cannot be used for TLS: {error}") from None

    def greet(sock: socket.socket) -> socket.socket:
        return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    return greet
