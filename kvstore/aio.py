"""The client for asyncio: the same methods as `kvstore.Client`, as coroutines.

async with kvstore.connect_async("127.0.0.1:7420") as client:
    hit = await client.lookup(spec, chain, lease_s=10)
    arrays = await asyncio.gather(*(client.get(spec, ref) for ref in hit.refs))
    await client.release(hit)

The work is done by the ordinary client in a bounded pool of threads, so that there is one implementation. A
coroutine that is cancelled stops waiting; the call under way ends by itself within its time limit, and a lease or a
reservation that nobody is left to receive is given back.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from kvstore.api import (
    Ack,
    ChunkInfo,
    Description,
    Drain,
    Event,
    Fidelity,
    Page,
    PlacementInfo,
    Reservation,
    View,
    Want,
)
from kvstore.client import Client
from kvstore.cost import Prompt
from kvstore.device_views import DeviceViews
from kvstore.errors import Closed
from kvstore.hit import Hit
from kvstore.keys import Chain, ChunkRef, Extras, TokenIds
from kvstore.spec import KVSpec, Part

WORKERS = 8
T = TypeVar("T")


class AsyncClient:
    """A `Client` for asyncio. `workers` calls run at a time; further ones wait."""

    def __init__(self, client: Client, *, workers: int = WORKERS) -> None:
        self._client = client
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="kvstore-async")
        self._closed = False

    def chain(self, spec: KVSpec, tokens: TokenIds, extras: Extras | None = None) -> Chain:
        """The chunks of a prompt; computed here and now."""
        return self._client.chain(spec, tokens, extras)

    def want(self, spec: KVSpec, ref: ChunkRef, out: Any, **options: Any) -> Want:
        """See `Client.want`."""
        return self._client.want(spec, ref, out, **options)

    def buffer(self, shape: int | Sequence[int], dtype: Any = "uint8") -> Any:
        """See `Client.buffer`."""
        return self._client.buffer(shape, dtype)

    async def describe(self) -> Description:
        """See `Client.describe`."""
        return await self._run(self._client.describe)

    async def lookup(
        self,
        spec: KVSpec,
        chain: Chain | Sequence[ChunkRef],
        *,
        parts: Sequence[Part] = (),
        fidelity: Fidelity = Fidelity.EXACT,
        lease_s: float = 0.0,
        block_tokens: int = 0,
        prompt: Prompt | None = None,
    ) -> Hit:
        """See `Client.lookup`. End a lease with `release`."""

        def look() -> Hit:
            return self._client.lookup(
                spec, chain, parts=parts, fidelity=fidelity, lease_s=lease_s, block_tokens=block_tokens, prompt=prompt
            )

        return await self._run(look, dispose=Hit.release)

    async def release(self, hit: Hit) -> None:
        """End the lease of a hit."""
        await self._run(hit.release)

    async def contains(
        self,
        spec: KVSpec,
        refs: Sequence[ChunkRef],
        *,
        parts: Sequence[Part] = (),
        fidelity: Fidelity = Fidelity.EXACT,
    ) -> list[bool]:
        """See `Client.contains`."""
        return await self._run(lambda: self._client.contains(spec, refs, parts=parts, fidelity=fidelity))

    async def put(
        self,
        spec: KVSpec,
        ref: ChunkRef,
        array: Any,
        *,
        part: Part | None = None,
        first_valid: int = 0,
        ack: Ack | str = Ack.STORED,
    ) -> bool:
        """See `Client.put`. The array must not change before this ends, nor after a cancellation."""
        return await self._run(lambda: self._client.put(spec, ref, array, part=part, first_valid=first_valid, ack=ack))

    async def get(
        self,
        spec: KVSpec,
        ref: ChunkRef,
        *,
        part: Part | None = None,
        out: Any = None,
        layers: tuple[int, int] | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        verify: bool = False,
    ) -> Any:
        """See `Client.get`. After a cancellation `out` may still be written to until the call has ended."""
        return await self._run(
            lambda: self._client.get(spec, ref, part=part, out=out, layers=layers, fidelity=fidelity, verify=verify)
        )

    async def get_many(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Sequence[Exception | None]:
        """See `Client.get_many`."""
        return await self._run(lambda: self._client.get_many(spec, wants, fidelity=fidelity, verify=verify))

    async def get_each(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> AsyncIterator[tuple[int, Exception | None]]:
        """See `Client.get_each`. After a cancellation destinations may still be written to for a moment."""
        found: Any = self._client.get_each(spec, wants, fidelity=fidelity, verify=verify)
        running, end = threading.Lock(), object()

        def step() -> Any:
            with running:
                return next(found, end)

        def leave() -> None:
            with running:  # a step that was cancelled may still be under way
                found.close()

        try:
            while (item := await self._run(step)) is not end:
                yield item
        finally:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, leave))

    async def view(
        self,
        spec: KVSpec,
        ref: ChunkRef,
        *,
        part: Part | None = None,
        fidelity: Fidelity = Fidelity.EXACT,
        encoded: bool = False,
    ) -> View:
        """See `Client.view`."""
        return await self._run(
            lambda: self._client.view(spec, ref, part=part, fidelity=fidelity, encoded=encoded),
            dispose=lambda view: view.close(),
        )

    async def device_views(
        self,
        spec: KVSpec,
        refs: Sequence[ChunkRef],
        *,
        part: Part | None = None,
        device: Any = None,
        lease_s: float = 0.0,
    ) -> DeviceViews:
        """See `Client.device_views`."""
        return await self._run(
            lambda: self._client.device_views(spec, refs, part=part, device=device, lease_s=lease_s),
            dispose=lambda views: views.close(),
        )

    async def reserve(
        self, spec: KVSpec, ref: ChunkRef, *, part: Part | None = None, first_valid: int = 0
    ) -> Reservation:
        """See `Client.reserve`. Commit with `commit`."""
        return await self._run(
            lambda: self._client.reserve(spec, ref, part=part, first_valid=first_valid),
            dispose=lambda reservation: reservation.abort(),
        )

    async def commit(self, reservation: Reservation, ack: Ack | str = Ack.STORED) -> bool:
        """See `Reservation.commit`."""
        return await self._run(lambda: reservation.commit(Ack(ack)))

    async def delete(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """See `Client.delete`."""
        return await self._run(lambda: self._client.delete(spec, keys))

    async def pin(self, spec: KVSpec, keys: Sequence[bytes], seconds: float) -> int:
        """See `Client.pin`."""
        return await self._run(lambda: self._client.pin(spec, keys, seconds))

    async def unpin(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        """See `Client.unpin`."""
        return await self._run(lambda: self._client.unpin(spec, keys))

    async def ended(self, spec: KVSpec, chain: Chain | Sequence[ChunkRef]) -> int:
        """See `Client.ended`."""
        return await self._run(lambda: self._client.ended(spec, chain))

    async def awaited(self, spec: KVSpec, chain: Chain | Sequence[ChunkRef], seconds: float) -> int:
        """See `Client.awaited`."""
        return await self._run(lambda: self._client.awaited(spec, chain, seconds))

    async def prefetch(self, spec: KVSpec, keys: Sequence[bytes], *, fidelity: Fidelity = Fidelity.EXACT) -> int:
        """See `Client.prefetch`."""
        return await self._run(lambda: self._client.prefetch(spec, keys, fidelity=fidelity))

    async def page(self, cursor: int = 0, limit: int = 1000) -> Page:
        """See `Client.page`."""
        return await self._run(lambda: self._client.page(cursor, limit))

    async def stats(self) -> dict[str, Any]:
        """See `Client.stats`."""
        return await self._run(self._client.stats)

    async def drain(self, tier: str, path: str = "") -> Drain:
        """See `Client.drain`."""
        return await self._run(lambda: self._client.drain(tier, path))

    async def resume(self, tier: str, path: str = "") -> Drain:
        """See `Client.resume`."""
        return await self._run(lambda: self._client.resume(tier, path))

    def list(self) -> AsyncIterator[ChunkInfo]:
        """See `Client.list`."""
        return self._each(self._client.list)

    def verify(self) -> AsyncIterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """See `Client.verify`."""
        return self._each(self._client.verify)

    async def watch(self) -> AsyncIterator[Event]:
        """See `Client.watch`. Each watch has a thread of its own, outside the pool."""
        events: Any = await self._run(self._client.watch, dispose=lambda watch: watch.close())
        reader = ThreadPoolExecutor(1, thread_name_prefix="kvstore-watch")
        loop = asyncio.get_running_loop()
        try:
            while (event := await loop.run_in_executor(reader, next, events, None)) is not None:
                yield event
        finally:
            events.close()
            reader.shutdown(wait=False)

    async def close(self) -> None:
        """See `Client.close`. Waits for calls under way."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self.close())

    def _close(self) -> None:
        self._closed = True
        self._client.close()
        self._pool.shutdown()

    async def _each(self, start: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        items = await self._run(start)
        end = object()
        while (item := await self._run(lambda: next(items, end))) is not end:
            yield item  # type: ignore[misc]

    async def _run(self, act: Callable[[], T], dispose: Callable[[T], object] | None = None) -> T:
        if self._closed:
            raise Closed("this client is closed")
        work = self._pool.submit(act)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            if not work.cancel() and dispose is not None:
                give_back = dispose
                work.add_done_callback(lambda done: None if done.exception() else give_back(done.result()))
            raise
