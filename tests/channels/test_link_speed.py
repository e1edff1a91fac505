"""How fast bytes come from the server: what a client believes, and that it tells in look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import kvstore
import kvstore.session
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


def test_a_faster_get_is_believed_at_once_and_slower_ones_little_by_little():
    link = LinkSpeed()
    assert link.bytes_per_s == 0
    link.seen(1 << 20, 1.0)
    assert link.bytes_per_s == 1 << 20
    link.seen(1 << 20, 0.1)
    assert link.bytes_per_s == pytest.approx(10 << 20)
    link.seen(1 << 20, 10.0)  # the server may have had to load
    assert link.bytes_per_s > 9 << 20
    for _ in range(200):
        link.seen(1 << 20, 1.0)
    assert link.bytes_per_s == pytest.approx(1 << 20, rel=0.01)
    link.seen(1000, 1e-9)  # too few to say anything
    assert link.bytes_per_s == pytest.approx(1 << 20, rel=0.01)


def test_what_is_old_is_not_believed(monkeypatch):
    clock, link = Clock(), LinkSpeed()
    monkeypatch.setattr(link_speed, "time", clock)
    link.seen(1 << 20, 0.001)
    clock.now += link_speed.FORGET_S + 1
    assert link.bytes_per_s == 0
    link.seen(1 << 20, 1.0)
    assert link.bytes_per_s == 1 << 20


def test_only_what_came_counts():
    ref, link = Chain.of(range(64), 64).refs[0], LinkSpeed()
    wants = [Want(ref, SPEC.part(), np.empty(1 << 20, np.uint8).data) for _ in range(2)]
    link.measured(wants, [None, NotFound("not there")], 1.0)
    assert link.bytes_per_s == 1 << 20


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
