"""The gRPC front: handlers on one asyncio loop, which moves payload and never blocks.

Store calls that may take long run in worker threads. A stalled or vanished peer costs a coroutine and no thread;
its cancellation closes the views and aborts the reservations that it held.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from kvstore import pieces, wire, wire_listing
from kvstore.errors import InvalidArgument
from kvstore.server.access import Access, Caller
from kvstore.server.calls import Workers, drop, moving, reported
from kvstore.server.watching import WatchFeed
from kvstore.service import Service, Session
from kvstore.transfer import GetPlan, Incoming, Outgoing
from kvstore.v1 import kvstore_pb2 as pb

SERVICE_NAME = "kvstore.v1.KVStore"
_INLINE_REQUEST_BYTES = 16384
_END = object()


class Front:
    """Handlers for every method of `kvstore.v1.KVStore`."""

    def __init__(self, service: Service, access: Access, workers: Workers) -> None:
        self._service = service
        self._access = access
        self._workers = workers
        self._ending = asyncio.Event()
        self._watchers = 0

    def end_streams(self) -> None:
        """End sessions and watches, which otherwise last as long as their clients."""
        self._ending.set()

    def handler(self) -> Any:
        """What a gRPC server is given. Messages stay encoded: each handler parses and serializes its own."""
        inline = {"Lookup", "Release"}
        methods = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(message, act, name in inline))
            for name, (message, act) in self._service.unary().items()
        }
        streams = {"Get": self.get, "Watch": self.watch, "Verify": self.verify, "Session": self.session}
        for name, stream in streams.items():
            methods[name] = grpc.unary_stream_rpc_method_handler(stream)
        methods["Put"] = grpc.stream_unary_rpc_method_handler(self.put)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def get(self, data: bytes, context: Any) -> None:
        """Stream every item; the next one is opened while this one is sent."""
        async with reported(context):
            session = self._shared(context)
            plan = self._service.plan_get(session, wire.parse(pb.GetRequest, data))
            opening = self._open(session, plan, 0)
            for index in range(len(plan.items)):
                outgoing = await Workers.take(opening, Outgoing.close)
                more = index + 1 < len(plan.items)
                opening = self._open(session, plan, index + 1) if more else opening
                try:
                    await _send(outgoing, context)
                except BaseException:
                    if more:
                        drop(opening, Outgoing.close)
                    raise
                finally:
                    outgoing.close()

    def _open(self, session: Session, plan: GetPlan, index: int) -> asyncio.Future[Outgoing]:
        return self._workers.start(self._service.open_item, session, plan, index)

    async def put(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Take a head and its payload straight into the store's memory."""
        async with reported(context), moving() as moved:
            session = self._shared(context)
            first = wire.parse(pb.PutRequest, await anext(aiter(requests), b""))
            if not first.HasField("head"):
                raise InvalidArgument("a put begins with a message that has `head`")
            incoming = await self._workers.run(self._service.start_put, session, first.head, dispose=Incoming.abort)
            finishing: asyncio.Future[Any] | None = None
            try:
                incoming.write(memoryview(first.data))
                async for message in requests:
                    incoming.write(_piece(message))
                    moved()
                finishing = self._workers.start(incoming.finish)
                done = await Workers.take(finishing)
            finally:
                if finishing is None or finishing.done():
                    incoming.abort()
                else:
                    drop(finishing)
                    finishing.add_done_callback(lambda _: incoming.abort())
            return _encoded(done)
        raise AssertionError("abort raises")

    async def watch(self, data: bytes, context: Any) -> None:
        """Events of the namespace until the caller or the server ends it."""
        async with reported(context):
            asked = wire.parse(pb.WatchRequest, data)
            async with WatchFeed.opened(self._shared(context).backend, self._workers, asked.lookups) as feed:
                await context.send_initial_metadata(())
                await self._until_ending(feed.write_to(context))

    async def verify(self, data: bytes, context: Any) -> None:
        """Read everything back."""
        async with reported(context):
            wire.parse(pb.VerifyRequest, data)
            checks = await self._workers.run(self._shared(context).backend.verify)
            while True:
                found: Any = await self._workers.run(next, checks, _END)
                if found is _END:
                    return
                chunk, placement, problem = found
                await context.write(_encoded(wire_listing.verified_to_message(chunk, placement, problem)))

    async def session(self, data: bytes, context: Any) -> None:
        """Hold a session open until its client goes away, then end its leases."""
        async with reported(context):
            wire.parse(pb.SessionRequest, data)
            caller = self._caller(context)

            def close(session: Session) -> None:
                self._service.close_session(caller.session, session)

            opened = await self._workers.run(
                self._service.open_session, caller.namespace, caller.session, dispose=close
            )
            try:
                await context.write(_encoded(pb.SessionEvent(opened=True)))
                await self._ending.wait()
            finally:
                close(opened)

    async def _until_ending(self, work: Awaitable[None]) -> None:
        tasks = {asyncio.ensure_future(work), asyncio.ensure_future(self._ending.wait())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _unary(
        self, message: Any, act: Callable[[Session, Any], Any], inline: bool
    ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def handle(data: bytes, context: Any) -> bytes:
            async with reported(context):
                session = self._session(context)
                request = wire.parse(message, data)
                if inline and len(data) <= _INLINE_REQUEST_BYTES:
                    return _encoded(act(session, request))
                return _encoded(await self._workers.run(act, session, request))
            raise AssertionError("abort raises")

        return handle

    def _caller(self, context: Any) -> Caller:
        metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        return self._access.caller(metadata)

    def _shared(self, context: Any) -> Session:
        """For calls that leave no lease behind: they may outlive the caller's session by a moment."""
        return self._service.session(self._caller(context).namespace)

    def _session(self, context: Any) -> Session:
        caller = self._caller(context)
        return self._service.session(caller.namespace, caller.session)


async def _send(outgoing: Outgoing, context: Any) -> None:
    async with moving() as moved:
        await context.write(outgoing.head)
        for piece in pieces.frames(outgoing.data):
            await context.write(piece)
            moved()


def _piece(message: bytes) -> memoryview:
    data = pieces.unframe(message)
    if data is not None:
        return data
    request = wire.parse(pb.PutRequest, message)
    if request.HasField("head"):
        raise InvalidArgument("a put has one `head`, in its first message")
    return memoryview(request.data)


def _encoded(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded
