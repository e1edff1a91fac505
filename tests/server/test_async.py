"""`AsyncClient`, over gRPC and embedded."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import AsyncClient


def test_the_same_interface(running: Any, kit: Any) -> None:
    async def main() -> None:
        async with kvstore.connect_async("grpc://" + running.server.address) as client:
            chain = client.chain(kit.small, range(192))
            data = [kit.block(kit.small, seed) for seed in range(3)]
            stored = await asyncio.gather(
                *(client.put(kit.small, ref, each) for ref, each in zip(chain.refs, data, strict=True))
            )
            assert stored == [True] * 3
            hit = await client.lookup(kit.small, chain, lease_s=20)
            assert (hit.tokens, running.holds()) == (192, True)
            found = await asyncio.gather(*(client.get(kit.small, ref) for ref in hit.refs))
            assert all(np.array_equal(one, other) for one, other in zip(found, data, strict=True))
            await client.release(hit)
            assert not running.holds()
            assert [each.key async for each in client.list()] == [each.key for each in (await client.page()).chunks]
            assert [problem async for _, _, problem in client.verify()] == [""] * 3
            keys = [ref.key for ref in chain.refs]
            assert await client.pin(kit.small, keys, 5) == 3
            assert await client.unpin(kit.small, keys) == 3
            assert await client.prefetch(kit.small, keys) == 3
            assert await client.awaited(kit.small, chain, 30) == 3
            assert await client.ended(kit.small, chain) == 3
            assert await client.contains(kit.small, chain.refs) == [True] * 3
            assert await client.delete(kit.small, keys[:1]) == 1
            with pytest.raises(kvstore.NotFound):
                await client.get(kit.small, chain.refs[0])
            reservation = await client.reserve(kit.small, chain.refs[0])
            reservation.data[:] = data[0].tobytes()
            assert await client.commit(reservation) is True
            assert (await client.describe()).namespace == (await client.stats())["namespace"]["name"]
        with pytest.raises(kvstore.Closed):
            await client.describe()

    asyncio.run(main())


def test_it_has_every_method_of_the_client() -> None:
    public = {name for name in vars(kvstore.Client) if not name.startswith("_")} - {"backend", "use"}
    assert public <= set(vars(AsyncClient))


def test_watch_ends_when_it_is_cancelled(running: Any, kit: Any) -> None:
    async def main() -> None:
        async with kvstore.connect_async("grpc://" + running.server.address) as client:
            kinds: list[str] = []

            async def follow() -> None:
                async for event in client.watch():
                    kinds.append(event.kind)

            task = asyncio.create_task(follow())
            (ref,) = client.chain(kit.small, range(64)).refs
            while not running.store._core.events._watchers:
                await asyncio.sleep(0.01)
            await client.put(kit.small, ref, kit.block(kit.small))
            while not kinds:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert kinds == ["stored"]

    asyncio.run(main())
    kit.eventually(lambda: not running.store._core.events._watchers)


def test_a_cancelled_look_up_leaves_no_lease(running: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with kvstore.connect_async("grpc://" + running.server.address) as client:
            chain = client.chain(kit.small, range(64))
            await client.put(kit.small, chain.refs[0], kit.block(kit.small))
            go, look = threading.Event(), kvstore.Client.lookup

            def slow(*args: Any, **options: Any) -> Any:
                assert go.wait(30)
                return look(*args, **options)

            monkeypatch.setattr(kvstore.Client, "lookup", slow)
            task = asyncio.create_task(client.lookup(kit.small, chain, lease_s=30))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            events: Any = running.store.session("default")
            go.set()
            for _ in range(3000):
                if events.stats()["counters"].get("hit_tokens") and not running.gauge("leases"):
                    return
                await asyncio.sleep(0.01)
            pytest.fail("the lease of a cancelled look-up is still held")

    asyncio.run(main())


def test_embedded_too(kit: Any) -> None:
    async def main() -> None:
        settings = kvstore.Config(dram=kvstore.DramConfig(64 << 20, 64 << 20), put_wait_s=5.0)
        async with kvstore.open_async(settings) as client:
            (ref,) = client.chain(kit.small, range(64)).refs
            await client.put(kit.small, ref, kit.block(kit.small))
            view = await client.view(kit.small, ref)
            assert bytes(view.data) == kit.block(kit.small).tobytes()
            view.close()

    asyncio.run(main())
