"""Events on their way to a watcher: a thread reads the store's iterator, the loop writes.

At most `_AHEAD` events wait here; behind them the store's own backlog fills up and reports what it loses.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

from kvstore import wire_listing
from kvstore.api import Backend, Event
from kvstore.errors import Shed
from kvstore.server.calls import Workers

MAX_WATCHERS = 256
_AHEAD = 256


class WatchFeed:
    """One watcher's events."""

    _open = 0

    def __init__(self, events: Any) -> None:
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="kvstore-watch", daemon=True)

    @classmethod
    @asynccontextmanager
    async def opened(cls, backend: Backend, workers: Workers, lookups: bool) -> AsyncIterator[Self]:
        """Events, or look-ups, from now on; on leaving, the store's iterator is closed and the thread has ended."""
        if cls._open >= MAX_WATCHERS:
            raise Shed(f"{MAX_WATCHERS} watchers are served already", "watchers")
        cls._open += 1
        try:
            watch = partial(backend.watch, lookups=lookups)
            feed = cls(await workers.run(watch, dispose=lambda events: events.close()))
            feed._thread.start()
            try:
                yield feed
            finally:
                await feed._end()
        finally:
            cls._open -= 1

    async def write_to(self, context: Any) -> None:
        """Write events until there are no more."""
        while (event := await self._queue.get()) is not None:
            await context.write(wire_listing.event_to_message(event).SerializeToString())
            self._room.release()

    async def _end(self) -> None:
        self._ended = True
        self._events.close()
        self._room.release()
        await asyncio.shield(self._loop.run_in_executor(None, self._thread.join))

    def _read(self) -> None:
        for event in self._events:
            self._room.acquire()
            if self._ended:
                return
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
        self._loop.call_soon_threadsafe(self._queue.put_nowait, None)
