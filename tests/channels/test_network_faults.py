"""A network that flips bits, cuts and stalls: an error, a miss, or the right bytes; never wrong ones, never a hang."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvstore

RUNS = 60


def calls(client: Any, kit: Any, chain: Any, blocks: list[Any]) -> None:
    """Every answer that comes is checked; errors of ours pass through."""
    spec = kit.small
    hit = client.lookup(spec, chain, lease_s=5)
    assert hit.tokens in (0, 64, 128)  # the second half may have been stored by now
    outs = [np.zeros_like(blocks[0]) for _ in chain.refs]
    wants = [client.want(spec, ref, out) for ref, out in zip(chain.refs, outs, strict=True)]
    for index, outcome in client.get_each(spec, wants):
        assert isinstance(outcome, kvstore.NotFound | None)
        assert outcome is None or index == 1
        assert outcome is not None or np.array_equal(outs[index], blocks[index])
    client.put(spec, chain.refs[1], blocks[1])
    assert client.describe().namespace == "default"
    hit.release()


@pytest.mark.parametrize("upstream", [True, False], ids=["to the server", "to the client"])
def test_flipped_bits(running: Any, kit: Any, proxy: Callable[..., Any], upstream: bool) -> None:
    dice = random.Random(7 + upstream)
    with running.connect() as direct:
        chain = direct.chain(kit.small, range(128))
        blocks = [kit.block(kit.small, seed) for seed in range(2)]
        direct.put(kit.small, chain.refs[0], blocks[0])
        state = {"flip": -1}

        def mangle(towards_server: bool, offset: int, data: bytes) -> bytes:
            at = state["flip"] - offset
            if towards_server != upstream or not 0 <= at < len(data):
                return data
            state["flip"] = -1
            damaged = bytearray(data)
            damaged[at] ^= 1 << dice.randrange(8)
            return bytes(damaged)

        middle, harmed, failed = proxy(running.server.bulk, mangle), 0, 0
        for number in range(RUNS):
            # All over the small frames at the beginning, then anywhere in the rest.
            state["flip"] = dice.randrange(500) if number % 2 else dice.randrange(20_000)
            with kvstore.connect("bulk://" + middle.address, timeout=2, retries=number // 2 % 2) as client:
                try:
                    calls(client, kit, chain, blocks)
                except kvstore.KVStoreError:
                    failed += 1
            harmed += state["flip"] < 0
            kit.eventually(lambda: running.sessions() == 1)  # what was under way has ended, too
            out = np.zeros_like(blocks[0])
            if direct.contains(kit.small, chain.refs) == [True, True]:
                direct.get(kit.small, chain.refs[1], out=out, verify=True)
                assert np.array_equal(out, blocks[1])
                direct.delete(kit.small, [chain.refs[1].key])
            assert direct.describe().chunks == 1  # nothing was deleted or stored under another key
        assert harmed > RUNS // 2
        assert 0 < failed < harmed  # retries and second askings have saved some


def test_cut_at_every_byte_in_either_direction(running: Any, kit: Any, proxy: Callable[..., Any]) -> None:
    with running.connect() as direct:
        (ref,) = direct.chain(kit.small, range(64)).refs
        data = kit.block(kit.small)
        direct.put(kit.small, ref, data)
        state = {"cut": 0, "upstream": True}

        def mangle(upstream: bool, offset: int, data: bytes) -> bytes | None:
            if upstream != state["upstream"] or offset + len(data) <= state["cut"]:
                return data
            return None

        middle, whole, cut = proxy(running.server.bulk, mangle), 0, 0
        for upstream in (True, False):
            for at in (*range(0, 420, 3), 1000, 5000, 16_000, 17_000):
                state.update(cut=at, upstream=upstream)
                out = np.zeros_like(data)
                with kvstore.connect("bulk://" + middle.address, timeout=2, retries=0) as client:
                    try:
                        client.get(kit.small, ref, out=out)
                    except kvstore.Unavailable:
                        cut += 1
                    else:
                        whole += 1
                        assert np.array_equal(out, data)
        assert cut > 100
        assert whole > 0


def test_damaged_payload_is_asked_for_once_more(running: Any, kit: Any, proxy: Callable[..., Any]) -> None:
    damaged: set[int] = set()

    def mangle(upstream: bool, offset: int, data: bytes) -> bytes:
        here = {at for at in damaged if offset <= at < offset + len(data)}
        if upstream or not here:
            return data
        damaged.difference_update(here)
        return bytes([data[0] ^ 1]) + data[1:]

    with running.connect() as direct:
        refs = direct.chain(kit.large, range(512)).refs
        data = [kit.block(kit.large, seed) for seed in range(2)]
        for ref, each in zip(refs, data, strict=True):
            direct.put(kit.large, ref, each)
    middle, outs = proxy(running.server.bulk, mangle), [np.zeros_like(each) for each in data]
    with kvstore.connect("bulk://" + middle.address, timeout=10, retries=0) as client:
        wants = [client.want(kit.large, ref, out) for ref, out in zip(refs, outs, strict=True)]
        damaged |= {3 << 20}
        assert list(client.get_each(kit.large, wants)) == [(1, None), (0, None)]
        assert np.array_equal(outs, data)
    with kvstore.connect("bulk://" + middle.address, timeout=10, retries=0) as client:
        damaged |= {3 << 20, data[0].nbytes + (3 << 20)}
        assert isinstance(client.get_many(kit.large, wants[:1])[0], kvstore.Corrupt)
        assert client.get_many(kit.large, wants[:1]) == [None]  # it was the network, not the store
    assert damaged == set()


@pytest.mark.parametrize("at", [0, 10, 100, 5000, 2 << 20])
def test_a_network_that_stalls(running: Any, kit: Any, proxy: Callable[..., Any], at: int) -> None:
    stalled = threading.Event()

    def mangle(upstream: bool, offset: int, data: bytes) -> bytes:
        if not upstream and offset + len(data) > at:
            stalled.wait(60)
        return data

    with running.connect() as direct:
        (ref,) = direct.chain(kit.large, range(256)).refs
        direct.put(kit.large, ref, kit.block(kit.large))
    middle = proxy(running.server.bulk, mangle)
    with kvstore.connect("bulk://" + middle.address, timeout=2) as client:
        start = time.monotonic()
        with pytest.raises((kvstore.Unavailable, kvstore.DeadlineExceeded)):
            client.get(kit.large, ref)
        assert time.monotonic() - start < 30  # and not the 60 of the stall
        stalled.set()
        assert np.array_equal(client.get(kit.large, ref), kit.block(kit.large))


def test_a_large_batch_over_several_connections(running: Any, kit: Any, proxy: Callable[..., Any]) -> None:
    state = {"connections": 0, "cuts": 2}

    def mangle(upstream: bool, offset: int, data: bytes) -> bytes | None:
        state["connections"] += upstream and not offset
        if not upstream and offset > 1 << 20 and state["cuts"]:
            state["cuts"] -= 1
            return None
        return data

    middle = proxy(running.server.bulk, mangle)
    with kvstore.connect("bulk://" + middle.address, timeout=20, streams=3, retries=5) as client:
        refs = client.chain(kit.large, range(256 * 6)).refs
        blocks = [kit.block(kit.large, seed) for seed in range(6)]
        for ref, each in zip(refs[:5], blocks, strict=False):
            client.put(kit.large, ref, each)
        outs = [np.zeros_like(each) for each in blocks]
        wants = [client.want(kit.large, ref, out) for ref, out in zip(refs, outs, strict=True)]
        outcomes = client.get_many(kit.large, wants)
        assert outcomes[:5] == [None] * 5
        assert isinstance(outcomes[5], kvstore.NotFound)
        assert np.array_equal(outs[:5], blocks[:5])
    assert state["cuts"] == 0
    assert state["connections"] >= 5
    kit.eventually(lambda: running.sessions() == 0)
