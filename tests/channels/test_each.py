"""Destinations that are used as they come: chunks on disk, in DRAM and missing ones, embedded, over bulk, and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Client, Config, DramConfig, NvmeConfig, ServerConfig
from kvstore.aio import AsyncClient
from kvstore.api import in_batches
from kvstore.server import serve
from kvstore.store import Store

MiB = 1 << 20
CHUNKS = 12


@pytest.fixture(params=["embedded", "bulk"])
def cold(request: pytest.FixtureRequest, tmp_path: Path, kit: Any) -> Iterator[tuple[Client, Any]]:
    """A client of a store that has just been opened, with chunks 0 to 11 on disk alone; and those chunks' refs."""
    settings = Config(
        dram=DramConfig(32 * MiB, 32 * MiB),
        nvme=NvmeConfig(tmp_path, 512 * MiB, 64 * MiB, reserve=0),
        server=ServerConfig("127.0.0.1:0"),
        put_wait_s=5.0,
    )
    with kvstore.open(settings) as client:
        refs = client.chain(kit.small, range(64 * (CHUNKS + 1))).refs
        for seed, ref in enumerate(refs[:CHUNKS]):
            client.put(kit.small, ref, kit.block(kit.small, seed), ack="persisted")
    store = Store(settings)
    try:
        if request.param == "embedded":
            yield Client(store.session("default")), refs
            return
        server = serve(store, settings)
        with kvstore.connect("bulk://" + server.bulk, timeout=10) as client:
            yield client, refs
        server.stop(0.1)
    finally:
        store.close()


def wants_of(client: Client, kit: Any, refs: Any) -> tuple[list[Any], list[Any]]:
    outs = [np.zeros_like(kit.block(kit.small)) for _ in refs]
    return outs, [client.want(kit.small, ref, out) for ref, out in zip(refs, outs, strict=True)]


def test_each_is_complete_when_it_is_told(cold: tuple[Client, Any], kit: Any) -> None:
    client, refs = cold
    client.get(kit.small, refs[5])  # one is in DRAM
    outs, wants = wants_of(client, kit, refs)
    seen = []
    for index, outcome in client.get_each(kit.small, wants):
        seen.append(index)
        assert isinstance(outcome, kvstore.NotFound) if index == CHUNKS else outcome is None
        if index < CHUNKS:
            assert np.array_equal(outs[index], kit.block(kit.small, index))
    assert sorted(seen) == list(range(CHUNKS + 1))


def test_leaving_off_while_chunks_are_loaded(cold: tuple[Client, Any], kit: Any) -> None:
    client, refs = cold
    for taken in range(4):
        outs, wants = wants_of(client, kit, refs)
        each: Any = client.get_each(kit.small, wants)
        for _ in range(taken):
            next(each)
        each.close()
        for out in outs:
            out.fill(7)  # nobody writes to it any more
        assert client.get_many(kit.small, wants)[:CHUNKS] == [None] * CHUNKS
        assert np.array_equal(outs[3], kit.block(kit.small, 3))


def test_for_asyncio(cold: tuple[Client, Any], kit: Any) -> None:
    client, refs = cold
    outs, wants = wants_of(client, kit, refs)

    async def read() -> tuple[list[int], int]:
        mine = AsyncClient(client)
        whole = [index async for index, outcome in mine.get_each(kit.small, wants) if outcome is None]
        each: Any = mine.get_each(kit.small, wants)
        first, _ = await anext(each)
        await each.aclose()
        return whole, first

    whole, first = asyncio.run(read())
    assert sorted(whole) == list(range(CHUNKS))
    assert first in range(CHUNKS + 1)
    assert np.array_equal(outs[3], kit.block(kit.small, 3))


def test_batches_of_any_get() -> None:
    asked: list[int] = []

    def get(some: Any) -> list[None]:
        asked.append(len(some))
        return [None] * len(some)

    wants: list[Any] = [kvstore.Want(None, None, memoryview(bytearray(n))) for n in (5, 5, 5, 20, 1)]  # type: ignore[arg-type]
    assert list(in_batches(get, wants, 10)) == [(i, None) for i in range(5)]
    assert asked == [2, 2, 1]
    assert list(in_batches(get, [], 10)) == []
