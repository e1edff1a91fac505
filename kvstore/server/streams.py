"""The local and the bulk front: frames over Unix and TCP sockets, a thread for each connection.

A connection that stalls, sends nonsense or vanishes costs its own thread and nothing else.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstore import wire
from kvstore.channels.lines import NUMBERS
from kvstore.channels.stream import FAILED, MORE, ONE_WAY, PROTOCOL, BadFrame, Frame, Stream
from kvstore.config import ServerConfig
from kvstore.errors import ConfigError, InvalidArgument, KVStoreError, Shed
from kvstore.server.access import Access
from kvstore.service import SESSION_BYTES, Service, Session
from kvstore.v1 import kvstore_pb2 as pb

STALL_S = 60.0
HELLO_S = 10.0
Handler = Callable[["Connection", Frame], None]
Greet = Callable[[socket.socket], socket.socket]


@dataclass(eq=False)
class Connection:
    """One connection that has introduced itself. `ending` is run when it is over, last first."""

    stream: Stream
    session: Session
    service: Service
    ending: list[Callable[[], object]] = field(default_factory=list)

    def answer(self, frame: Frame, message: Any, *, flags: int = 0) -> None:
        """Answer a frame with a message."""
        self.stream.send(frame.method, message.SerializeToString(), flags=flags)


class StreamServer:
    """Accepts connections on one listening socket and serves them until `stop`.

    `handlers` answer what is not a plain call of one message; `greet` makes a fresh socket ready (TLS), in the
    connection's own thread.
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
    ) -> None:
        self._listener = listener
        self._service = service
        self._access = access
        self._instance = instance
        self._name = name
        self._limit = limit
        self._greet = greet
        self._handlers = {**_plain_calls(service), pb.METHOD_WATCH: watch, pb.METHOD_VERIFY: verify, **handlers}
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"kvstore-{name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections and end those that are open. A second call does nothing."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            threads = list(self._open.values())
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if self._stopped.is_set():
                    return
                continue
            thread = threading.Thread(target=self._run, args=(sock,), name=f"kvstore-{self._name}-call", daemon=True)
            with self._lock:
                self._open[sock] = thread
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        ready = sock
        try:
            with contextlib.suppress(OSError, KVStoreError):  # whoever it was is gone
                ready = self._greeted(sock)
                self._serve(Stream(ready, HELLO_S, "the client"))
        finally:
            with self._lock:
                self._open.pop(sock, None)
            ready.close()
            sock.close()

    def _greeted(self, sock: socket.socket) -> socket.socket:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.settimeout(HELLO_S)
        return sock if self._greet is None else self._greet(sock)

    def _serve(self, stream: Stream) -> None:
        try:
            session_id, session = self._hello(stream)
        except KVStoreError as error:
            fail(stream, pb.METHOD_HELLO, error)
            return
        connection = Connection(stream, session, self._service)
        try:
            stream.patience = STALL_S
            while (frame := stream.receive(idle=True)) is not None:
                self._handle(connection, frame)
        except BadFrame as error:
            fail(stream, pb.METHOD_NONE, error)
        finally:
            for end in reversed(connection.ending):
                end()
            stream.drop_descriptors()
            self._service.leave_session(session_id, session)

    def _hello(self, stream: Stream) -> tuple[bytes, Session]:
        frame = stream.receive()
        if frame is None or frame.method != pb.METHOD_HELLO or frame.payload:
            raise BadFrame("a connection begins with Hello")
        hello = wire.parse(pb.HelloRequest, frame.message)
        if hello.protocol != PROTOCOL:
            raise InvalidArgument(f"this server speaks protocol {PROTOCOL}, not {hello.protocol}: use one version")
        if len(hello.session) != SESSION_BYTES:
            raise InvalidArgument(f"a session id is {SESSION_BYTES} bytes, not {len(hello.session)}")
        namespace = self._access.namespace(hello.token, hello.namespace)
        with self._lock:
            if len(self._open) > self._limit:
                raise Shed(f"{self._limit} connections are open already; raise server.max_connections", "connections")
        session = self._service.join_session(namespace, hello.session)
        told = session.backend.describe()
        answer = pb.HelloResponse(instance=self._instance, version=told.version, namespace=namespace)
        try:
            stream.send(pb.METHOD_HELLO, answer.SerializeToString())
        except BaseException:
            self._service.leave_session(hello.session, session)
            raise
        return hello.session, session

    def _handle(self, connection: Connection, frame: Frame) -> None:
        """Answer one frame. A failure of the call is its answer; one of the connection ends it."""
        stream = connection.stream
        try:
            handler = self._handlers.get(frame.method)
            if handler is None:
                raise InvalidArgument(f"there is no method {frame.method} on the {self._name} channel")
            handler(connection, frame)
        except BadFrame:
            raise
        except KVStoreError as error:
            if stream.broken:
                raise
            if not frame.flags & ONE_WAY:
                fail(stream, frame.method, error)
        finally:
            stream.drop_untaken()


def fail(stream: Stream, method: int, error: KVStoreError) -> None:
    """Answer with an error, if anybody still listens."""
    with contextlib.suppress(KVStoreError):
        stream.send(method, wire.failure_to_message(error).SerializeToString(), flags=FAILED)


def watch(connection: Connection, frame: Frame) -> None:
    """Events of the namespace until the client ends the connection, whose whole use this is."""
    stream = connection.stream
    events = connection.session.backend.watch()
    close: Callable[[], None] = events.close  # type: ignore[attr-defined]

    def end_with_client() -> None:
        stream.wait_for_end()
        close()

    connection.answer(frame, pb.WatchRequest())
    watcher = threading.Thread(target=end_with_client, name="kvstore-watch", daemon=True)
    watcher.start()
    try:
        for event in events:
            connection.answer(frame, wire.event_to_message(event), flags=MORE)
    finally:
        close()
        stream.shut()
        watcher.join()


def verify(connection: Connection, frame: Frame) -> None:
    """Read everything back, an answer for each copy, then one without MORE."""
    connection.answer(frame, pb.VerifyRequest(), flags=MORE)
    for chunk, placement, problem in connection.session.backend.verify():
        connection.answer(frame, wire.verified_to_message(chunk, placement, problem), flags=MORE)
    connection.answer(frame, pb.VerifyRequest())


def _plain_calls(service: Service) -> dict[int, Handler]:
    """Handlers of the calls that are one message and its answer."""

    def handler(message: Any, act: Callable[[Session, Any], Any]) -> Handler:
        def handle(connection: Connection, frame: Frame) -> None:
            if frame.payload:
                raise BadFrame(f"method {frame.method} takes no payload")
            answer = act(connection.session, wire.parse(message, frame.message))
            if not frame.flags & ONE_WAY:
                connection.stream.send(frame.method, answer.SerializeToString())

        return handle

    return {NUMBERS[name]: handler(message, act) for name, (message, act) in service.unary().items()}


def tls_greeter(config: ServerConfig) -> Greet:
    """A `greet` that makes sockets TLS with the server's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(str(config.tls_cert), config.tls_key)
        if config.client_ca is not None:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"server.tls_cert, tls_key or client_ca cannot be used for TLS: {error}") from None

    def greet(sock: socket.socket) -> socket.socket:
        return context.wrap_socket(sock, server_side=True)

    return greet
