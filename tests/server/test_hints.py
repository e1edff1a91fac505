"""Hints over every channel: they reach the policy, in the order in which the client did things, and nobody else's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Chain, Client, NamespaceConfig
from kvstore.marks import drain_marks


@pytest.fixture
def running(start: Callable[..., Any]) -> Any:
    tenants = (NamespaceConfig("default", policy="value"), NamespaceConfig("other", policy="value"))
    return start(namespaces=tenants)


def order(running: Any, namespace: str = "default") -> list[bytes]:
    """Keys in the order in which they would leave DRAM, once the store knows of every use."""
    core = running.store._core
    found = core.catalog.namespace(namespace)
    drain_marks(core, found)
    with core.lock:
        return [core.index.chunk(row).key for row in core.usage.policy(0, found).victims()]


def stored(client: Client, kit: Any, seed: int, chunks: int = 3) -> Chain:
    """A prompt of whole chunks, all of it put."""
    chain = client.chain(kit.small, np.arange(64 * chunks) + 1000 * seed)
    for ref in chain.refs:
        client.put(kit.small, ref, kit.block(kit.small, seed))
    return chain


def use(client: Client, kit: Any, chain: Chain) -> None:
    """As an engine does it: look up, read, release."""
    with client.lookup(kit.small, chain, lease_s=20) as hit:
        for ref in hit.refs:
            client.get(kit.small, ref)


def backwards(chain: Chain) -> list[bytes]:
    return [ref.key for ref in reversed(chain.refs)]


def test_what_has_ended_goes_first(running: Any, client: Client, kit: Any) -> None:
    _, second, third = (stored(client, kit, seed) for seed in range(3))
    longer = client.chain(kit.small, np.concatenate([second.ids, np.arange(5000, 5100)]))
    assert client.ended(kit.small, longer) == 3  # its end was not stored
    assert order(running)[:3] == backwards(second)
    assert client.ended(kit.small, third.refs) == 3
    assert order(running)[:6] == [*backwards(second), *backwards(third)]
    assert client.ended(kit.small, client.chain(kit.small, np.arange(90_000, 90_100))) == 0
    assert client.stats()["counters"]["hints_ended"] == 3


def test_what_is_awaited_goes_last_until_it_is_used(running: Any, client: Client, kit: Any) -> None:
    first, second, third = (stored(client, kit, seed) for seed in range(3))
    core = running.store._core
    policy = core.usage.policy(0, core.catalog.namespace("default"))
    assert client.awaited(kit.small, first, 600) == 3
    assert client.awaited(kit.small, first, 900) == 3
    assert {*order(running)[:6]} == {*backwards(second), *backwards(third)}
    assert order(running)[6:] == backwards(first)
    assert policy.waits == 1
    use(client, kit, first)
    order(running)
    assert policy.waits == 0
    assert client.stats()["counters"]["hints_awaited"] == 2


def test_a_use_before_the_hint_does_not_end_it(running: Any, client: Client, kit: Any) -> None:
    """Over the local channel a use is no call: the store learns of it when it asks."""
    first, second = stored(client, kit, 0), stored(client, kit, 1)
    use(client, kit, first)  # from here on the client reads the index by itself
    for _ in range(3):
        use(client, kit, second)
        use(client, kit, first)
        client.ended(kit.small, first)
        assert order(running)[:3] == backwards(first)
    use(client, kit, first)
    client.ended(kit.small, second)
    assert order(running)[:3] == backwards(second)  # or what was said first would come first


@pytest.mark.parametrize("seconds", [0, -1, -math.inf, math.nan, 86401, 1e12, math.inf])
def test_times_that_cannot_be_are_refused(running: Any, client: Client, kit: Any, seconds: float) -> None:
    chain = stored(client, kit, 0)
    with pytest.raises(kvstore.InvalidArgument, match="awaited for"):
        client.awaited(kit.small, chain, seconds)
    assert "hints_awaited" not in client.stats()["counters"]


def test_prompts_that_cannot_be_are_refused(client: Client, kit: Any) -> None:
    with pytest.raises(kvstore.InvalidArgument, match="no chunks"):
        client.ended(kit.small, client.chain(kit.small, []))
    with pytest.raises(kvstore.InvalidArgument, match="32 bytes"):
        client.ended(kit.small, [kvstore.ChunkRef(b"short", bytes(32), 0, 64)])


def test_a_pin_of_endless_seconds_is_refused(client: Client, kit: Any) -> None:
    with pytest.raises(kvstore.InvalidArgument, match="a pin lasts up to"):
        client.pin(kit.small, [bytes(32)], math.inf)


def test_a_tenant_hints_at_its_own_chunks_alone(running: Any, client: Client, channel: str, kit: Any) -> None:
    first, second = stored(client, kit, 0), stored(client, kit, 1)
    before = order(running)
    with kvstore.connect(running.url(channel), namespace="other") as other:
        assert other.ended(kit.small, second) == 0
        assert other.awaited(kit.small, first, 60) == 0
        stored(other, kit, 1)
        assert other.ended(kit.small, second) == 3
    assert order(running) == before
    with (
        kvstore.connect(running.url(channel), namespace="nobody") as nobody,
        pytest.raises(kvstore.UnknownNamespace, match="'nobody'"),
    ):
        nobody.ended(kit.small, first)


def test_a_spec_that_the_server_does_not_know_yet(running: Any, channel: str, kit: Any) -> None:
    with kvstore.connect(running.url(channel)) as fresh:
        assert fresh.ended(kit.large, fresh.chain(kit.large, range(300))) == 0


def test_a_server_that_is_gone_says_so(running: Any, client: Client, kit: Any) -> None:
    chain = stored(client, kit, 0)
    running.server.stop(0.0)
    for hint in (lambda: client.ended(kit.small, chain), lambda: client.awaited(kit.small, chain, 5)):
        with pytest.raises(kvstore.Unavailable):
            hint()


@pytest.fixture
def client(running: Any, channel: str) -> Iterator[Client]:
    with kvstore.connect(running.url(channel), timeout=10) as made:
        yield made
