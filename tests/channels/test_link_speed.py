"""How fast bytes come from the server: what a client believes, and that it tells in look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import kvstore
import kvstore.session
from kvstore import learnt
from kvstore.api import Query, Want
from kvstore.channels import link_speed, local_worth
from kvstore.channels.control import Control
from kvstore.channels.link_speed import LinkSpeed
from kvstore.channels.local_worth import weigh
from kvstore.config import ServerConfig
from kvstore.cost import Prefill, Prompt
from kvstore.errors import NotFound
from kvstore.keys import Chain
from kvstore.server import serve
from kvstore.spec import KVSpec
from kvstore.store import Store

SPEC = KVSpec.dense("linked", layers=4, kv_heads=4, head_dim=64, chunk_tokens=64)


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


def believed(link: LinkSpeed) -> float:
    """What is told, without the margin for what it scatters."""
    return link.bytes_per_s * link._learnt.margin


def test_what_is_told_is_what_gets_can_be_relied_on_to_reach() -> None:
    """Nine of ten gets are within a fifth of each other, and what is told is no faster than nearly all of them."""
    random, link = np.random.default_rng(2), LinkSpeed()
    rates = [1e8 * float(np.exp(0.1 * random.standard_normal())) for _ in range(200)]
    for rate in rates:
        link.seen(1 << 20, (1 << 20) / rate, warm=True)
    assert believed(link) == pytest.approx(1e8, rel=0.15)
    assert np.mean([rate < link.bytes_per_s for rate in rates[100:]]) <= 0.06
    assert link.bytes_per_s > 0.6e8


def test_a_link_that_has_become_slow_is_known_to_be_after_two_gets() -> None:
    link = LinkSpeed()
    for _ in range(20):
        link.seen(1 << 20, 0.01, warm=True)
    assert believed(link) == pytest.approx(100 << 20, rel=0.01)
    link.seen(1 << 20, 0.08, warm=True)  # a hiccup?
    assert 40 << 20 < believed(link) < 80 << 20
    link.seen(1 << 20, 0.08, warm=True)
    assert believed(link) == pytest.approx(12.5 * (1 << 20), rel=0.01)
    link.seen(1 << 20, 0.01, warm=True)  # nothing is faster than it can be
    assert believed(link) == pytest.approx(100 << 20, rel=0.01)


def test_a_get_that_may_have_waited_for_a_load_says_no_more_than_how_fast_the_link_is_at_least() -> None:
    link = LinkSpeed()
    link.seen(1 << 20, 1.0, warm=False)
    assert believed(link) == pytest.approx(1 << 20)
    link.seen(1 << 20, 0.1, warm=False)
    for _ in range(200):
        link.seen(1 << 20, 1.0, warm=False)
    assert believed(link) == pytest.approx(10 << 20, rel=0.01)
    link.seen(1000, 1e-9, warm=True)  # too few to say anything
    assert believed(link) == pytest.approx(10 << 20, rel=0.01)


def test_what_is_old_is_not_believed(monkeypatch):
    clock, link = Clock(), LinkSpeed()
    for module in (link_speed, learnt):
        monkeypatch.setattr(module, "time", clock)
    link.seen(1 << 20, 0.001, warm=True)
    clock.now += link_speed.FORGET_S - 1
    assert believed(link) == pytest.approx(1000 << 20)
    clock.now += 2
    assert link.bytes_per_s == 0
    link.seen(1 << 20, 1.0, warm=True)
    assert believed(link) == pytest.approx(1 << 20)


def test_only_what_came_counts():
    ref, link = Chain.of(range(64), 64).refs[0], LinkSpeed()
    wants = [Want(ref, SPEC.part(), np.empty(1 << 20, np.uint8).data) for _ in range(2)]
    link.measured(wants, [None, NotFound("not there")], 1.0)
    assert believed(link) == pytest.approx(1 << 20)


def test_chunks_that_a_lookup_told_to_be_in_dram_are_warm_for_one_get():
    refs, link = Chain.of(range(256), 64).refs, LinkSpeed()
    wants = [Want(ref, SPEC.part(), np.empty(1 << 20, np.uint8).data) for ref in refs]
    link.seen(1 << 20, 0.001, warm=True)
    for told, counts in ((refs, True), (refs[:3], False), ((), False)):
        before = believed(link)
        link.told([ref.key for ref in told])
        link.measured(wants, [None] * 4, 1.0)
        assert (believed(link) < before) == counts
    link.told(number.to_bytes(32, "little") for number in range(2 * link_speed.MOST_WARM))
    assert len(link._warm) == link_speed.MOST_WARM


@pytest.mark.parametrize("way", ["bulk", "grpc"])
def test_lookups_tell_what_gets_have_shown(way, monkeypatch):
    store = Store(kvstore.Config())
    server = serve(store, kvstore.Config(server=ServerConfig(listen="127.0.0.1:0")))
    asked: list[Any] = []
    lookup = kvstore.session.Session.lookup
    monkeypatch.setattr(
        kvstore.session.Session, "lookup", lambda self, query: asked.append(query) or lookup(self, query)
    )
    address = {"grpc": server.address, "bulk": server.bulk}[way]
    try:
        with kvstore.connect(f"{way}://{address}") as client:
            chain, prompt = client.chain(SPEC, list(range(64))), Prompt(64, Prefill.of_rate(1.0))
            (ref,) = chain.refs
            client.put(SPEC, ref, np.zeros(SPEC.part_bytes(SPEC.part(), 64), np.uint8))
            client.lookup(SPEC, chain, prompt=prompt)
            client.get(SPEC, ref)
            backend = client.backend
            assert isinstance(backend, Control)
            client.lookup(SPEC, chain, prompt=prompt)
            client.lookup(SPEC, chain, prompt=Prompt(64, Prefill.of_rate(1.0), link_bytes_per_s=7.0))
            told = [each.prompt.link_bytes_per_s for each in asked]
            assert told == [0.0, backend.link_speed.bytes_per_s, 7.0]
            assert told[1] > 0
    finally:
        server.stop(0.2)
        store.close()


@pytest.mark.parametrize(
    ("rate", "overlap", "tokens", "used", "left_out", "start"),
    [(1.0, False, 256, [0, 1, 2, 3], 0, 0), (1e12, False, 0, [], 256, 0), (1000.0, True, 256, [2, 3], 0, 128)],
)
def test_a_client_weighs_what_it_reads_itself(monkeypatch, rate, overlap, tokens, used, left_out, start):
    """Copies as fast as 1,000 tokens a second."""
    monkeypatch.setattr(local_worth, "copy_bytes_per_s", lambda: 1000.0 * 512)
    chain = Chain.of(range(256), 64)
    found = kvstore.api.Found(256, range(4), [True] * 4, True)
    prompt = Prompt(256, Prefill.of_rate(rate), overlap=overlap)
    told = weigh(found, Query(SPEC, chain.packed), prompt, 512)
    assert (told.tokens, list(told.used), told.left_out) == (tokens, used, left_out)
    assert told.plan is not None
    assert told.plan.start == start


def test_copies_are_measured():
    assert local_worth.copy_bytes_per_s() > 1e6
