"""Pieces every call is made of: errors as statuses, and blocking work whose result is never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from kvstore.errors import DeadlineExceeded, KVStoreError, Shed
from kvstore.wire import MAX_ERROR_CHARACTERS, error_name

STALL_S = 60.0
T = TypeVar("T")


@asynccontextmanager
async def reported(context: Any) -> AsyncIterator[None]:
    """Send an error of ours as a gRPC status, with its class in the trailing metadata."""
    try:
        yield
    except KVStoreError as error:
        trailing = [("kvstore-error", error_name(error))]
        if isinstance(error, Shed):
            trailing.append(("kvstore-reason", error.reason))
        code = getattr(grpc.StatusCode, error.status)
        await context.abort(code, str(error)[:MAX_ERROR_CHARACTERS], trailing_metadata=tuple(trailing))


@asynccontextmanager
async def moving() -> AsyncIterator[Callable[[], None]]:
    """Limit how long a transfer may stand still; call what is given after every piece."""
    loop, seconds = asyncio.get_running_loop(), STALL_S
    try:
        async with asyncio.timeout(seconds) as limit:
            yield lambda: limit.reschedule(loop.time() + seconds)
    except TimeoutError:
        raise DeadlineExceeded(f"the transfer stood still for {seconds:g} s and was given up") from None


class Workers:
    """Threads for calls that block."""

    def __init__(self, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="kvstore-call")

    def start(self, act: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run `act` in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._executor, act, *args)

    async def run(self, act: Callable[..., T], *args: Any, dispose: Callable[[T], object] | None = None) -> T:
        """The result of `act`, run in a thread. If the caller is cancelled, `dispose` gets the result."""
        return await self.take(self.start(act, *args), dispose)

    @staticmethod
    async def take(started: asyncio.Future[T], dispose: Callable[[T], object] | None = None) -> T:
        """The result of what `start` gave."""
        try:
            return await asyncio.shield(started)
        except asyncio.CancelledError:
            drop(started, dispose)
            raise

    def close(self) -> None:
        """Wait for the threads to end."""
        self._executor.shutdown()


def drop(started: asyncio.Future[T], dispose: Callable[[T], object] | None = None) -> None:
    """Let work that nobody waits for any more end, and dispose of its result."""

    def end(done: asyncio.Future[T]) -> None:
        if not done.cancelled() and done.exception() is None and dispose is not None:
            dispose(done.result())

    started.add_done_callback(end)
