"""A Hypothesis state machine of tenants that share a DRAM, under any policy: what is leased or pinned stays, no tenant
is over its quota and no tier over its capacity by a byte, and every chunk is counted once."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

import kvstore
from kvstore.config import Config, DramConfig, NamespaceConfig
from kvstore.errors import Shed
from kvstore.hit import Hit
from kvstore.policy import POLICIES
from tests.store.conftest import SMALL, MiB, check_policies, content, prompt, record_bytes

RECORD = 12288  # of a chunk, with its header
DRAM = MiB // 2
QUOTAS = {"default": 0, "small": 4 * RECORD, "large": 15 * RECORD}
CHAINS = [prompt(SMALL, 1 + seed % 4, seed, tail=seed % 3) for seed in range(12)]
PART = SMALL.part()

tenants = st.sampled_from(sorted(QUOTAS))
chains = st.sampled_from(CHAINS)


class TenantMachine(RuleBasedStateMachine):
    """Half a MiB in quarters: room for 40 chunks, a quarter belongs to one tenant for as long as it needs it."""

    hits = Bundle("hits")

    def __init__(self) -> None:
        super().__init__()
        self.pinned: set[tuple[str, bytes]] = set()
        self.leased: list[tuple[str, Hit]] = []
        self.deleted: set[tuple[str, bytes]] = set()

    @initialize(policy=st.sampled_from(POLICIES), other=st.sampled_from(POLICIES))
    def begin(self, policy: str, other: str) -> None:
        """One tenant has a policy of its own."""
        spaces = [NamespaceConfig(name, quota, policy=other if name == "large" else None)
                  for name, quota in QUOTAS.items()]  # fmt: skip
        config = Config(dram=DramConfig(DRAM, DRAM // 4), namespaces=tuple(spaces), put_wait_s=0.0, policy=policy)
        first = kvstore.open(config)
        self.store = first.backend._store  # type: ignore[attr-defined]
        self.clients = {name: kvstore.Client(self.store.session(name)) for name in QUOTAS}
        self.first = first

    @rule(tenant=tenants, some=st.lists(chains, min_size=1, max_size=4))
    def put(self, tenant: str, some: list[kvstore.Chain]) -> None:
        """Prompts, root first, as far as there is room."""
        for ref in [ref for chain in some for ref in chain.refs]:
            try:
                self.clients[tenant].put(SMALL, ref, content(SMALL, ref, PART))
            except Shed:
                continue
            self.deleted.discard((tenant, ref.key))

    @rule(target=hits, tenant=tenants, chain=chains)
    def lookup(self, tenant: str, chain: kvstore.Chain) -> tuple[str, Hit]:
        """Under a lease."""
        hit = self.clients[tenant].lookup(SMALL, chain, lease_s=60)
        self.leased.append((tenant, hit))
        return tenant, hit

    @rule(held=consumes(hits))
    def release(self, held: tuple[str, Hit]) -> None:
        """End a lease."""
        self.leased = [each for each in self.leased if each[1] is not held[1]]
        held[1].release()

    @rule(tenant=tenants, chain=chains)
    def pin(self, tenant: str, chain: kvstore.Chain) -> None:
        """Those chunks of a prompt that are there."""
        there = [ref.key for ref in chain.refs if self.clients[tenant].contains(SMALL, [ref])[0]]
        self.clients[tenant].pin(SMALL, there, 600)
        self.pinned.update((tenant, key) for key in there)

    @rule(tenant=tenants, chain=chains)
    def unpin(self, tenant: str, chain: kvstore.Chain) -> None:
        """All of a prompt."""
        self.clients[tenant].unpin(SMALL, [ref.key for ref in chain.refs])
        self.pinned -= {(tenant, ref.key) for ref in chain.refs}

    @rule(tenant=tenants, chain=chains)
    def delete(self, tenant: str, chain: kvstore.Chain) -> None:
        """The last chunk of a prompt, whoever holds it."""
        key = chain.refs[-1].key
        self.clients[tenant].delete(SMALL, [key])
        self.pinned.discard((tenant, key))
        self.deleted.add((tenant, key))

    @invariant()
    def what_is_held_is_there(self) -> None:
        """But for what was deleted."""
        held = {(tenant, ref.key) for tenant, hit in self.leased for ref in hit.refs} | self.pinned
        for tenant, key in held - self.deleted:
            ref = next(ref for chain in CHAINS for ref in chain.refs if ref.key == key)
            assert self.clients[tenant].contains(SMALL, [ref]) == [True]

    @invariant()
    def counts_add_up(self) -> None:
        """By tenant and by tier: what is listed is what is charged for, and within what is allowed."""
        if not hasattr(self, "clients"):
            return
        deadline = time.monotonic() + 10
        while True:  # the mover may be giving back what was deleted, between one count and the next
            try:
                self.count()
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def count(self) -> None:
        """Once."""
        core, lies = self.store._core, 0
        for name, client in self.clients.items():
            listed = list(client.list())
            assert len({info.key for info in listed}) == len(listed)
            used = sum(record_bytes(place) for info in listed for place in info.placements)
            doomed = self.doomed_bytes(name)
            assert client.stats()["namespace"]["used"] == used + doomed
            assert used + doomed <= (QUOTAS[name] or DRAM)
            lies += used + doomed
        assert core.dram.used == lies <= core.dram.capacity
        check_policies(core)

    def doomed_bytes(self, name: str) -> int:
        """What was deleted while somebody held it takes room until it is released."""
        core = self.store._core
        with core.lock:
            scopes = {row: core.catalog.scopes[core.index.chunk(row).scope] for row in core.doomed}
            rows = [row for row, scope in scopes.items() if scope.namespace.name == name]
            return sum(record_bytes(core.index.placement(each)) for row in rows for each in core.placements(row))

    def teardown(self) -> None:
        """With every lease ended."""
        if hasattr(self, "first"):
            for _, hit in self.leased:
                hit.release()
            self.first.close()


TestTenants = TenantMachine.TestCase
TestTenants.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
