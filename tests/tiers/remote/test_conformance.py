"""The remote tier over a real server, alone and in a cluster, against the suite of every persistent tier."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from kvstore.bench.redis_server import RedisCluster, RedisServer
from kvstore.testing import PersistentTierConformance
from kvstore.testing.records import make_sample
from kvstore.tiers.base import Recovered, Tier
from kvstore.tiers.remote import RemoteTier
from kvstore.tiers.remote.valkey import ValkeyEngine

MIB = 1 << 20


class TestValkey(PersistentTierConformance):
    engine_options: dict[str, Any] = {}
    tier_options: dict[str, Any] = {}

    @pytest.fixture(autouse=True)
    def _place(self, server: RedisServer, prefix: str) -> None:
        self.url: Any = server.url()
        self.prefix = prefix

    def open(self) -> RemoteTier:
        engine = ValkeyEngine(self.url, prefix=self.prefix, **self.engine_options)
        return RemoteTier(engine, capacity=24 * MIB, **self.tier_options)

    def make_tier(self) -> Tier:
        tier = self.open()
        tier.recover()
        return tier

    def reopen(self) -> tuple[Tier, Recovered]:
        tier = self.open()
        return tier, tier.recover()

    def test_room_is_made_after_coming_back(self) -> None:
        """By the owner: this tier does not choose what goes."""
        with closing(self.make_tier()) as tier:
            owner = self.fill(tier)
        tier, _ = self.reopen()
        with closing(tier):
            owner.check(tier)
            assert not self.write_with_room(tier, owner, make_sample(50_000, 200_000))
            location, sample = next(iter(owner.book.items()))
            tier.evict(location, sample.record.total_bytes)
            del owner.book[location]
            assert self.write_with_room(tier, owner, make_sample(50_000, 200_000))
            owner.check(tier)


class TestSplitIntoPieces(TestValkey):
    engine_options = {"piece_bytes": 64 << 10}


class TestHedged(TestValkey):
    tier_options = {"hedge": True}


class TestCluster(TestValkey):
    engine_options = {"piece_bytes": 256 << 10}

    @pytest.fixture(autouse=True)
    def _place(self, cluster: RedisCluster, prefix: str) -> None:
        self.url = cluster.urls()
        self.prefix = prefix
