"""Hosts in network namespaces over links of 1 Gbit/s: cut, lossy, and with one of them killed in the middle of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from kvstore.bench.fleet import Fleet
from kvstore.bench.network import Network
from kvstore.errors import KVStoreError, Unavailable

MiB = 1 << 20
MORE = ("lookup_wait_s = 2.0", "deadline_s = 1.0", "lease_s = 2.0")


def test_a_link_that_is_cut_and_mended(fleet: Callable[..., Fleet], network: Callable[..., Network], kit: Any) -> None:
    net = network(2)
    made, chain, more = fleet(2, network=net, more=MORE), kit.prompt(), kit.prompt(1)
    with closing(made.hosts[0].connect()) as one, closing(made.hosts[1].connect()) as two:
        kit.fill(one, chain)
        kit.published(one)
        assert two.lookup(kit.spec, chain).tokens == len(chain.ids)
        net.cut(0)
        start = time.monotonic()
        assert kit.read(two, chain) == 0
        kit.fill(one, more)  # nobody hears of it
        assert kit.read(one, more) == len(more.ids)
        assert one.lookup(kit.spec, kit.prompt(2)).tokens == 0
        assert time.monotonic() - start < 30
        kit.until(lambda: kit.peers(two)["peers"] == 0)
        assert two.lookup(kit.spec, chain).tokens == 0
        net.mend(0)
        kit.until(lambda: kit.read(two, chain) == len(chain.ids), 60)
        kit.until(lambda: kit.read(two, more) == len(more.ids), 60)


def test_three_hosts_one_lossy_one_killed_in_mid_use(
    fleet: Callable[..., Fleet], network: Callable[..., Network], kit: Any
) -> None:
    """Whatever happens every byte that comes is right, every call ends, and what is lost is a miss."""
    net = network(3)
    made = fleet(3, network=net, more=MORE)
    try:
        net.lose(1, 0.01)
    except Unavailable as error:
        pytest.skip(f"no packets can be lost here: {error}")
    prompts = [kit.prompt(seed, 6) for seed in range(9)]
    for number, prompt in enumerate(prompts):
        with closing(made.hosts[number % 3].connect()) as client:
            kit.fill(client, prompt)
            kit.published(client)
    stop, tokens, failures = threading.Event(), [0, 0, 0], list[BaseException]()

    def use(number: int) -> None:
        try:
            with closing(made.hosts[number].connect()) as client:
                turn = number
                while not stop.is_set():
                    prompt = prompts[turn % 9]
                    had = kit.read(client, prompt)
                    tokens[number] += had
                    if had < len(prompt.ids):
                        kit.fill(client, prompt)
                    if turn % 5 == 0:  # or all would soon be here
                        client.delete(kit.spec, [ref.key for ref in prompts[(turn + 3) % 9].refs])
                    turn += 1
        except (KVStoreError, AssertionError) as error:
            failures.append(error)

    users = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for user in users:
        user.start()
    kit.until(lambda: min(tokens[:2]) > 2000)
    made.hosts[2].kill()
    time.sleep(1.0)
    net.cut(1)
    time.sleep(1.0)
    net.mend(1)
    made.hosts[2].start()
    time.sleep(1.0)
    stop.set()
    for user in users:
        user.join(60)
        assert not user.is_alive()
    assert not failures, failures
    with closing(made.hosts[0].connect()) as one, closing(made.hosts[2].connect()) as back:
        kit.fill(one, prompts[0])
        kit.published(one)

        def both() -> bool:
            """A use where it may be a spare tells that host that its owner has it no more."""
            whole = len(prompts[0].ids)
            return kit.read(one, prompts[0]) == whole == kit.read(back, prompts[0])

        kit.until(both, 60)
