"""The store under every policy: what is held stays, no tier overflows, nothing is lost or counted twice."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import Any

import pytest

import kvstore
from kvstore import _native
from kvstore.appraisal import appraise
from kvstore.config import Config, NamespaceConfig
from kvstore.errors import ConfigError, NotFound, Shed
from kvstore.policy import POLICIES
from tests.store.conftest import SHARDED, SMALL, Box, MiB, check_policies, prompt, record_bytes
from tests.store.test_leases import until

EVERY = pytest.mark.parametrize("policy", POLICIES)


@EVERY
@pytest.mark.parametrize("nvme", [0, 6 * MiB], ids=["dram", "nvme"])
def test_what_is_held_stays_while_others_come_and_go(box: Box, policy: str, nvme: int) -> None:
    client = box.open(dram=MiB, extent=MiB, nvme=nvme, segment=MiB, put_wait_s=0.3, policy=policy)
    chance, core = random.Random(policy), box.store(client)._core
    chains = [prompt(SMALL, 4, seed, tail=3) for seed in range(60)]
    kept, pinned = prompt(SMALL, 5, 1000), prompt(SMALL, 5, 1001)
    box.fill(client, SMALL, [*kept.refs, *pinned.refs])
    client.pin(SMALL, [ref.key for ref in pinned.refs], 60)
    hit = client.lookup(SMALL, kept, lease_s=60)
    assert len(hit.refs) == 5
    for step in range(150):
        chain = chains[int(chance.random() ** 2 * len(chains))]
        there = client.lookup(SMALL, chain)
        with suppress(Shed):
            box.fill(client, SMALL, chain.refs[len(there.refs) :])
        for ref in there.refs[:2]:
            with suppress(NotFound):
                box.check(client, SMALL, [ref])
        if chance.random() < 0.1:
            client.delete(SMALL, [chance.choice(chain.refs).key])
        if step % 10 == 0:
            check_policies(core)
    assert client.stats()["counters"]["evicted_dram"] > 50
    box.check(client, SMALL, [*kept.refs, *pinned.refs])
    hit.release()
    check_policies(core)
    box.settled(client)


@EVERY
def test_parts_of_one_chunk_are_one_chunk(box: Box, policy: str) -> None:
    client = box.open(dram=MiB, extent=MiB, policy=policy)
    core = box.store(client)._core
    for seed in range(12):
        box.fill(client, SHARDED, prompt(SHARDED, 2, seed).refs)
        check_policies(core)
    for info in client.list():
        assert len(info.placements) == len(list(SHARDED.parts()))
    box.settled(client)


@EVERY
def test_what_is_not_used_for_too_long_goes_whatever_the_policy(box: Box, policy: str) -> None:
    tenants = [NamespaceConfig("default", ttl_s=0.5), NamespaceConfig("other")]
    client = box.open(extent=2 * MiB, namespaces=tenants, policy=policy)
    others, chain = box.another(client, "other"), prompt(SMALL, 20)
    box.fill(client, SMALL, chain.refs)
    box.fill(others, SMALL, chain.refs)
    deadline = time.monotonic() + 20
    while list(client.list()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(client.list()) == []
    assert box.store(client)._core.counters["expired_dram"] == 20
    box.check(others, SMALL, chain.refs)
    check_policies(box.store(client)._core)


def test_a_namespace_may_have_a_policy_of_its_own(box: Box) -> None:
    tenants = [NamespaceConfig("default", quota=8 * 12288), NamespaceConfig("fair", quota=8 * 12288, policy="fifo")]
    client = box.open(extent=2 * MiB, namespaces=tenants, policy="lru")
    first = prompt(SMALL, 1, 77).refs
    for each, left in ((client, True), (box.another(client, "fair"), False)):
        box.fill(each, SMALL, first)
        for seed in range(20):
            box.fill(each, SMALL, prompt(SMALL, 1, seed).refs)
            if left or seed < 7:
                box.check(each, SMALL, first)  # used again and again, which counts for one of them
        assert each.contains(SMALL, first) == [left]
    check_policies(box.store(client)._core)


def test_eviction_takes_the_order_of_the_policy(box: Box) -> None:
    client = box.open(dram=MiB // 2, extent=MiB // 2, policy="lfu")
    core = box.store(client)._core
    refs = [prompt(SMALL, 1, seed).refs[0] for seed in range(40)]
    box.fill(client, SMALL, refs)
    for _ in range(3):
        box.check(client, SMALL, refs[:5])
    with core.lock:
        order = [core.index.chunk(row).key for row in core.usage.policy(0, core.catalog.namespace("default")).victims()]
    assert set(order[-5:]) == {ref.key for ref in refs[:5]}
    box.fill(client, SMALL, [prompt(SMALL, 1, seed).refs[0] for seed in range(100, 160)])
    box.check(client, SMALL, refs[:5])


def test_policies_are_told_of_shares_and_costs(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, object]] = []

    class Listening:
        def __init__(self, chunks: int) -> None:
            self.chunks = chunks

        def __len__(self) -> int:
            return self.chunks

        def set_capacity(self, nbytes: int) -> None:
            told.append(("capacity", nbytes))

        def set_costs(self, **costs: float) -> None:
            told.append(("costs", costs))

    tenants = [NamespaceConfig("default"), NamespaceConfig("other"), NamespaceConfig("small", quota=1000)]
    client = box.open(dram=MiB, extent=MiB, namespaces=tenants, prefill_tokens_per_s=5000.0)
    core, chunks = box.store(client)._core, {"default": 8, "other": 1, "small": 0}
    policies = {core.catalog.namespace(name).digest: Listening(count) for name, count in chunks.items()}
    monkeypatch.setattr(core.usage, "in_tier", lambda tier: policies)
    appraise(core)
    assert [nbytes for kind, nbytes in told if kind == "capacity"] == [MiB * 9 // 12, MiB * 2 // 12, 1000]
    costs = [costs for kind, costs in told if kind == "costs"]
    assert costs[0]["flops_per_token"] / costs[0]["prefill_flops_per_s"] == 1 / 5000
    assert costs[0]["load_bytes_per_s"] == core.dram.speed.read_bytes_per_s


def test_a_policy_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"store.policy = 'clock': there is no such policy"):
        kvstore.open(Config(policy="clock"))
    with pytest.raises(ConfigError, match=r"policy of namespace 'a' = 'lu'.*'lru'|policy of namespace 'a' = 'lu'"):
        kvstore.open(Config(namespaces=(NamespaceConfig("a", policy="lu"),)), namespace="a")


@pytest.mark.parametrize("policy", ["lru", "s3fifo", "arc", "mq"])
def test_the_tail_of_a_prompt_goes_before_its_head(box: Box, policy: str) -> None:
    """Put root first, as engines do, after another prompt, of which it then goes on with the head."""
    client = box.open(policy=policy)
    core, first, second = box.store(client)._core, prompt(SMALL, 3, 1), prompt(SMALL, 6, 2)
    for refs in (first.refs, second.refs[:4]):
        box.fill(client, SMALL, refs)
    with core.lock:
        rows = core.usage.policy(0, core.catalog.namespace("default")).victims()
        order = [core.index.chunk(row).key for row in rows]
    assert order == [ref.key for ref in [*first.refs[::-1], *second.refs[3::-1]]]
    client.lookup(SMALL, second, lease_s=5).release()
    box.fill(client, SMALL, second.refs[4:])
    with core.lock:
        rows = core.usage.policy(0, core.catalog.namespace("default")).victims()
        order = [core.index.chunk(row).key for row in rows]
    if policy in ("lru",):
        assert order == [ref.key for ref in [*first.refs[::-1], *second.refs[::-1]]]
    else:
        assert order.index(second.refs[5].key) < order.index(second.refs[4].key)


@pytest.mark.parametrize(("policy", "stays"), [("lfu", True), ("mq", True), ("lru", False)])
def test_a_log_keeps_what_its_policy_does_not_let_go(box: Box, policy: str, stays: bool) -> None:
    """Chunks used often before their segment was full, and never since, while many others are written."""
    client = box.open(dram=MiB, extent=MiB, nvme=4 * MiB, segment=MiB // 4, policy=policy)
    often = [prompt(SMALL, 1, seed).refs[0] for seed in range(1000, 1004)]
    box.fill(client, SMALL, often, "persisted")
    for _ in range(6):
        box.check(client, SMALL, often)
    for seed in range(600):
        box.fill(client, SMALL, prompt(SMALL, 1, seed).refs, "persisted")
    there = {info.key for info in client.list() if any(place.tier == "nvme" for place in info.placements)}
    assert [ref.key in there for ref in often] == [stays] * 4
    assert len(there) > 100
    check_policies(box.store(client)._core)
    assert until(lambda: is_counted_once(client))  # a segment may be on its way out


def is_counted_once(client: kvstore.Client) -> bool:
    """Whether the disk has what the list shows."""
    stats = client.stats()
    listed = sum(record_bytes(place) for info in client.list() for place in info.placements if place.tier == "nvme")
    return bool(stats["tiers"]["nvme"]["used"] == listed)


@EVERY
def test_a_look_up_under_a_lease_tells_what_it_does_not_find(
    box: Box, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = box.open(policy=policy)
    there, asked = prompt(SMALL, 2), prompt(SMALL, 5)  # the same tokens, three chunks further
    box.fill(client, SMALL, there.refs)
    told: list[tuple[list[str], list[bool]]] = []
    real = _native.demand_missing

    def noted(orders: list[_native.Policy], scope: int, refs: bytes, rows: Any) -> None:
        told.append(([type(order).__name__ for order in orders], [row >= 0 for row in rows]))
        real(orders, scope, refs, rows)

    monkeypatch.setattr(_native, "demand_missing", noted)
    client.lookup(SMALL, asked)
    assert not told  # who only asks uses nothing
    client.lookup(SMALL, asked, lease_s=60).release()
    wanted = [(["ValuePolicy"], [True, True, False, False, False])]
    assert told == (wanted if policy == "value" else [])
