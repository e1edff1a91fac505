"""Hints in the store, under every policy: advice to each tier, which holds nobody's chunks against their will."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import kvstore
from kvstore._native import ValuePolicy
from kvstore.errors import Closed, Shed
from kvstore.keys import Chain
from kvstore.policy import POLICIES
from kvstore.usage import now_ms
from tests.store.conftest import SHARDED, SMALL, Box, MiB, check_policies, prompt

EVERY = pytest.mark.parametrize("policy", POLICIES)


def order(box: Box, client: kvstore.Client, tier: int) -> list[bytes]:
    """Keys in the order in which they would leave a tier."""
    core = box.store(client)._core
    with core.lock:
        rows = core.usage.policy(tier, core.catalog.namespace("default")).victims()
        return [core.index.chunk(row).key for row in rows]


def backwards(chain: Chain) -> list[bytes]:
    return [ref.key for ref in reversed(chain.refs)]


@EVERY
def test_every_tier_hears_of_it_and_makes_of_it_what_its_policy_does(box: Box, policy: str) -> None:
    client = box.open(nvme=16 * MiB, policy=policy)
    first, second, third = (prompt(SMALL, 4, seed) for seed in range(3))
    for chain in (first, second, third):
        box.fill(client, SMALL, chain.refs, "persisted")
    before = [order(box, client, tier) for tier in (0, 1)]
    assert client.ended(SMALL, third) == 4
    assert client.awaited(SMALL, first, 60) == 4
    after = [order(box, client, tier) for tier in (0, 1)]
    if policy == "value":
        assert after == [[*backwards(third), *backwards(second), *backwards(first)]] * 2
    else:
        assert after == before
    check_policies(box.store(client)._core)


def test_a_tier_that_has_a_part_of_the_prompt_hears_of_that(box: Box) -> None:
    client = box.open(nvme=16 * MiB, policy="value")
    first, second = prompt(SMALL, 4, 1), prompt(SMALL, 4, 2)
    box.fill(client, SMALL, first.refs, "persisted")
    box.only_on_disk(client, SMALL, second.refs)
    box.check(client, SMALL, second.refs[:2])  # comes back into DRAM
    assert client.ended(SMALL, second) == 4
    assert order(box, client, 0)[:2] == backwards(second)[2:]
    assert order(box, client, 1)[:4] == backwards(second)


def test_a_step_of_the_wall_clock_ends_no_wait(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    client = box.open(nvme=16 * MiB, policy="value")
    chain, other = prompt(SMALL, 4, 1), prompt(SMALL, 4, 2)
    for each in (chain, other):
        box.fill(client, SMALL, each.refs)
    client.awaited(SMALL, chain, 60)
    core, day = box.store(client)._core, 86_400_000
    dram = core.usage.policy(0, core.catalog.namespace("default"))
    assert isinstance(dram, ValuePolicy)
    for number, step in enumerate((day, -day)):
        at = now_ms() + step
        monkeypatch.setattr("kvstore.usage.now_ms", lambda at=at: at)
        client.lookup(SMALL, other, lease_s=1).release()
        box.check(client, SMALL, other.refs)
        box.fill(client, SMALL, prompt(SMALL, 2, 3 + number).refs)
        assert dram.waits == 1


def test_what_has_ended_makes_room_for_the_others(box: Box) -> None:
    client = box.open(dram=MiB // 2, extent=MiB // 2, policy="value")
    live, over = [prompt(SMALL, 4, seed) for seed in range(4)], [prompt(SMALL, 4, seed) for seed in range(10, 14)]
    for one, other in zip(live, over, strict=True):
        box.fill(client, SMALL, one.refs)
        box.fill(client, SMALL, other.refs)
        client.ended(SMALL, other)
    for seed in range(20, 25):
        box.fill(client, SMALL, prompt(SMALL, 4, seed).refs)
        client.ended(SMALL, prompt(SMALL, 4, seed))
    assert [client.lookup(SMALL, each).tokens for each in live] == [64] * 4
    check_policies(box.store(client)._core)


@EVERY
def test_a_hint_lets_go_of_nothing_that_is_pinned_or_leased(box: Box, policy: str) -> None:
    client = box.open(dram=MiB // 2, extent=MiB // 2, policy=policy)
    pinned, leased = prompt(SMALL, 4, 1), prompt(SMALL, 4, 2)
    box.fill(client, SMALL, [*pinned.refs, *leased.refs])
    client.pin(SMALL, [ref.key for ref in pinned.refs], 60)
    with client.lookup(SMALL, leased, lease_s=60) as hit:
        client.ended(SMALL, pinned)
        client.ended(SMALL, leased)
        for seed in range(100, 130):
            box.fill(client, SMALL, prompt(SMALL, 2, seed).refs)
        box.check(client, SMALL, [*pinned.refs, *hit.refs])
        assert len(hit.refs) == 4
    check_policies(box.store(client)._core)
    box.settled(client)


def test_awaiting_everything_holds_up_nobody(box: Box) -> None:
    """A pin is a promise, of which there is no more than room; this is advice."""
    client = box.open(dram=MiB // 2, extent=MiB // 2, policy="value", put_wait_s=0.1)
    for seed in range(60):
        chain = prompt(SMALL, 3, seed)
        box.fill(client, SMALL, chain.refs)  # no put is shed
        assert client.awaited(SMALL, chain, 86_400) == client.contains(SMALL, chain.refs).count(True)
    assert client.lookup(SMALL, chain).tokens == 48  # the latest comes in
    check_policies(box.store(client)._core)
    for seed in range(100, 120):
        client.pin(SMALL, [ref.key for ref in prompt(SMALL, 3, seed).refs], 60)
        try:
            box.fill(client, SMALL, prompt(SMALL, 3, seed).refs)
        except Shed:
            break
        client.pin(SMALL, [ref.key for ref in prompt(SMALL, 3, seed).refs], 60)
    else:
        pytest.fail("more was pinned than there is room")


def test_a_flood_of_hints_by_many_hurts_nothing(box: Box) -> None:
    client = box.open(dram=MiB, extent=MiB, nvme=6 * MiB, segment=MiB, policy="value")
    chains = [prompt(SMALL, 5, seed) for seed in range(30)]
    core, over, failed = box.store(client)._core, threading.Event(), list[BaseException]()
    policy = core.usage.policy(0, core.catalog.namespace("default"))

    def flood(seed: int) -> None:
        dice = np.random.default_rng(seed)
        try:
            while not over.is_set():
                chain = chains[int(dice.integers(len(chains)))]
                if dice.random() < 0.5:
                    client.awaited(SMALL, chain, float(dice.random()) / 10 + 0.001)
                else:
                    client.ended(SMALL, chain.refs[: int(dice.integers(1, 6))])
        except BaseException as error:  # noqa: BLE001 - the test tells of it
            failed.append(error)

    threads = [threading.Thread(target=flood, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(120):
            chain = chains[number % 30]
            with client.lookup(SMALL, chain, lease_s=20) as hit:
                box.check(client, SMALL, hit.refs)
            box.fill(client, SMALL, chain.refs[len(hit.refs) :])
            assert policy.waits <= 30  # type: ignore[attr-defined]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed
    check_policies(core)
    box.settled(client)


def test_all_parts_of_a_chunk_are_one(box: Box) -> None:
    client = box.open(policy="value")
    first, second = prompt(SHARDED, 2, 1), prompt(SHARDED, 2, 2)
    box.fill(client, SHARDED, [*first.refs, *second.refs])
    assert client.ended(SHARDED, second) == 2
    assert order(box, client, 0) == [*backwards(second), *backwards(first)]


def test_what_was_deleted_is_not_hinted_at(box: Box) -> None:
    client = box.open(policy="value")
    chain = prompt(SMALL, 3)
    box.fill(client, SMALL, chain.refs)
    client.delete(SMALL, [chain.refs[2].key])
    assert client.ended(SMALL, chain) == 2
    client.delete(SMALL, [ref.key for ref in chain.refs])
    assert client.awaited(SMALL, chain, 60) == 0


def test_a_client_that_is_closed_hints_at_nothing(box: Box) -> None:
    client = box.open(policy="value")
    chain = prompt(SMALL, 1)
    client.close()
    with pytest.raises(Closed):
        client.ended(SMALL, chain)


@pytest.fixture(autouse=True)
def everything_is_closed(box: Box) -> Iterator[None]:
    yield
    box.close()
