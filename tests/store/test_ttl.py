"""Time-to-live over all tiers: what nobody has used for so long goes, here and in the shared place."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import kvstore
from kvstore.bench.redis_server import RedisServer
from kvstore.config import Config, CxlConfig, DramConfig, NamespaceConfig, NvmeConfig, RemoteConfig
from kvstore.keys import ChunkRef
from kvstore.removed import Removed
from kvstore.store import Store
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.posix import PosixEngine
from kvstore.tiers.remote.valkey import ValkeyEngine
from tests.store.conftest import LARGE, MiB, content, prompt
from tests.store.shared_tier import until

TTL_S, AGO_S = 60.0, 3600.0


def opened(folder: Path, *, cxl: bool = False, persistent: bool = False, nvme: bool = False, url: str = "",
           ) -> kvstore.Client:  # fmt: skip
    device = folder / "dax"
    if cxl and not device.exists():
        device.write_bytes(bytes(16 * MiB))
    config = Config(
        dram=DramConfig(16 * MiB, 4 * MiB),
        cxl=CxlConfig(paths=(device,), persistent=persistent) if cxl else None,
        nvme=NvmeConfig(folder / "nvme", 64 * MiB, MiB, 0, 2) if nvme else None,
        remote=RemoteConfig(url, lookup_wait_s=5.0) if url else None,
        namespaces=(NamespaceConfig("default"), NamespaceConfig("lasting")),
    )  # fmt: skip
    return kvstore.open(config)


def refs_of(count: int, first: int = 0) -> list[ChunkRef]:
    return [prompt(LARGE, 1, first + seed).refs[0] for seed in range(count)]


def store_of(client: kvstore.Client) -> Store:
    found: Store = client.backend._store  # type: ignore[attr-defined]
    return found


def put(client: kvstore.Client, refs: list[ChunkRef]) -> None:
    for ref in refs:
        client.put(LARGE, ref, content(LARGE, ref, LARGE.part()))


def write_down(client: kvstore.Client, tier: int, refs: list[ChunkRef]) -> None:
    """Copy chunks from DRAM to a tier, and take them out of DRAM."""
    core, removed = store_of(client).core, Removed()
    for ref in refs:
        with core.lock:
            scope = core.catalog.scope(core.catalog.namespaces["default"], LARGE)
            row = core.index.find(scope.number, ref.key)
            (placement,) = core.placements(row, 0)
            held = core.hold_part(core.index.chunk(row), placement)
        store_of(client)._writer._descent.write(*held, tier)
        core.let_go([held[3]])
        with core.lock:
            assert core.drop_from(row, 0, removed)
    core.settle(removed)


def grow_old(client: kvstore.Client, *used: ChunkRef) -> None:
    """An hour goes by in which nobody uses any chunks but these, and the time-to-live is a minute from now on."""
    core = store_of(client).core
    namespace, ago = core.catalog.namespaces["default"], time.time_ns() // 1_000_000 - int(AGO_S * 1000)
    with core.lock:
        for row in core.index.chunks(0, 10_000)[0].tolist():
            chunk = core.index.chunk(row)
            if core.catalog.scopes[chunk.scope].namespace is namespace and chunk.key not in {ref.key for ref in used}:
                core.index.touch(np.array([row], np.int64), ago)
    namespace.ttl_s = TTL_S


def tiers_of(client: kvstore.Client) -> set[str]:
    return {place.tier for info in client.list() for place in info.placements}


@pytest.mark.parametrize("kind", ["dram", "cxl", "cxl persistent", "nvme"])
def test_what_nobody_uses_goes_from_every_tier_of_the_host(tmp_path: Path, kind: str) -> None:
    options = {"cxl": kind.startswith("cxl"), "persistent": kind.endswith("persistent"), "nvme": kind == "nvme"}
    with opened(tmp_path, **options) as client:
        lasting = kvstore.Client(store_of(client).session("lasting"))
        put(client, refs_of(4))
        put(lasting, refs_of(3))
        if kind != "dram":
            write_down(client, 1, refs_of(4))
            assert tiers_of(client) == {kind.partition(" ")[0]}
        grow_old(client)
        until(lambda: list(client.list()) == [])
        assert client.stats()["namespace"]["used"] == 0
        assert client.stats()["counters"][f"expired_{kind.partition(' ')[0]}"] == 4
        assert len(list(lasting.list())) == 3
        if kind != "dram":
            assert client.stats()["tiers"][kind.partition(" ")[0]]["used"] == 0
    if options["persistent"] or options["nvme"]:
        with opened(tmp_path, **options) as again:
            assert list(again.list()) == [], "it does not come back"


@pytest.mark.parametrize("where", ["redis", "folder"])
def test_what_a_host_wrote_goes_from_the_shared_place_and_what_others_wrote_from_its_index(
    tmp_path: Path, where: str
) -> None:
    engine: Engine
    server = RedisServer(tmp_path / "redis") if where == "redis" else None
    if server is not None:
        url, engine = server.url(), ValkeyEngine(server.url())
    else:
        (tmp_path / "place").mkdir()
        url, engine = f"file://{tmp_path / 'place'}", PosixEngine(tmp_path / "place")
    try:
        one, two = opened(tmp_path, url=url), opened(tmp_path, url=url)
        with one, two:
            put(one, refs_of(4))
            put(two, refs_of(3, 50))
            until(lambda: one.stats()["gauges"]["through"] == two.stats()["gauges"]["through"] == 0)
            assert len(records(engine)) == 7
            assert all(one.contains(LARGE, refs_of(3, 50)))
            assert len(list(one.list())) == 7
            grow_old(one)
            until(lambda: list(one.list()) == [])
            until(lambda: len(records(engine)) == 3)  # those of the host that has no time-to-live
            assert one.stats()["counters"]["expired_remote"] == 7
            assert one.stats()["tiers"]["remote"]["used"] == 0
            for ref in refs_of(3, 50):
                assert (two.get(LARGE, ref, verify=True) == content(LARGE, ref, LARGE.part())).all()
            assert two.contains(LARGE, refs_of(4)) == [False] * 4
    finally:
        engine.close()
        if server is not None:
            server.stop()


def records(engine: Engine) -> list[str]:
    return [name for name, _ in engine.list("") if not name.startswith("meta/")]


def test_use_keeps_a_chunk(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with opened(tmp_path, nvme=True, url=f"file://{tmp_path / 'place'}") as client:
        put(client, refs_of(2))
        until(lambda: client.stats()["gauges"]["through"] == 0)
        grow_old(client, refs_of(1)[0])
        until(lambda: len(list(client.list())) == 1)
        assert [info.key for info in client.list()] == [refs_of(1)[0].key]
        assert client.lookup(LARGE, refs_of(1)).tokens == 64


def test_a_chunk_that_came_cold_does_not_hide_behind_others_that_are_used(tmp_path: Path) -> None:
    with opened(tmp_path, nvme=True) as client:
        put(client, refs_of(2))
        write_down(client, 1, refs_of(2))  # in this order
        grow_old(client, refs_of(1)[0])
        until(lambda: len(list(client.list())) == 1)
        assert [info.key for info in client.list()] == [refs_of(1)[0].key]
