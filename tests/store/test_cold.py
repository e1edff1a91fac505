"""A leased look-up says which chunks of its hit are not in DRAM, over every way in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore
from kvstore.channels.control import found_from
from kvstore.config import ServerConfig
from kvstore.errors import SpecMismatch
from kvstore.server import serve
from kvstore.v1 import kvstore_pb2 as pb
from tests.store.conftest import SHARDED, SLIDING, SMALL, Box, MiB, prompt

WAYS = ("embedded", "grpc", "bulk", "local")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def embedded(box: Box) -> kvstore.Client:
    return box.open(nvme=16 * MiB)


@pytest.fixture
def client(box: Box, embedded: kvstore.Client, way: str) -> Iterator[kvstore.Client]:
    """The same store, the way that is asked for."""
    if way == "embedded":
        yield embedded
        return
    store = box.store(embedded)
    server = serve(store, kvstore.Config(server=ServerConfig(listen="127.0.0.1:0")))
    address = {"grpc": server.address, "bulk": server.bulk, "local": server.local}[way]
    with kvstore.connect(f"{way}:{address}" if way == "local" else f"{way}://{address}") as connected:
        yield connected
    server.stop(0.2)


def cold(client: kvstore.Client, spec: kvstore.KVSpec, chain: kvstore.Chain) -> list[int]:
    """Positions of what is not in DRAM."""
    with client.lookup(spec, chain, lease_s=30) as hit:
        assert hit.tokens == len(chain.ids)
        return [ref.position for ref in hit.cold]


@pytest.mark.parametrize("spec", [SMALL, SHARDED, SLIDING], ids=lambda spec: spec.model)
def test_what_is_on_disk_is_cold_until_it_is_read(box, embedded, client, spec):
    chain = prompt(spec, 6)
    box.only_on_disk(embedded, spec, chain.refs[:3])
    box.fill(embedded, spec, chain.refs[3:])
    needed = [ref.position for ref in chain.refs[:3]]
    assert cold(client, spec, chain) == needed
    box.check(client, spec, chain.refs[1:2])  # a read brings it into DRAM
    assert cold(client, spec, chain) == [needed[0], needed[2]]


def test_tails_are_told_too(box, embedded, client):
    chain = prompt(SMALL, 2, tail=8)
    box.only_on_disk(embedded, SMALL, chain.refs[2:])
    box.fill(embedded, SMALL, chain.refs[:2])
    longer = client.chain(SMALL, [*chain.ids.tolist(), *range(8)])
    with client.lookup(SMALL, longer, lease_s=30, block_tokens=4) as hit:
        assert (hit.tokens, hit.cold) == (40, hit.refs[2:])


def test_parts_that_are_nowhere_are_not_cold(box, embedded, client):
    """Chunks before every window need no part of it, and may not have one."""
    chain = prompt(SLIDING, 6)
    for ref in chain.refs:
        for part in SLIDING.parts():
            if part.group == 0 or ref.position >= 3 * SLIDING.chunk_tokens:
                box.put(embedded, SLIDING, ref, part)
    assert cold(client, SLIDING, chain) == []


def test_without_a_lease_nothing_is_told(box, embedded, client):
    chain = prompt(SMALL, 3)
    box.only_on_disk(embedded, SMALL, chain.refs)
    assert client.lookup(SMALL, chain).tokens == len(chain.ids)
    assert client.lookup(SMALL, chain).cold == ()


def test_a_store_without_a_disk_has_nothing_cold(box):
    client = box.open()
    chain = prompt(SMALL, 3)
    box.fill(client, SMALL, chain.refs)
    assert cold(client, SMALL, chain) == []


def test_an_answer_that_calls_cold_what_it_does_not_use_is_refused():
    answer = pb.LookupResponse(tokens=16, used=bytes(4), present=b"\1\1", leased=True, cold=b"\1\0\0\0")
    with pytest.raises(SpecMismatch, match="cold"):
        found_from(answer)
