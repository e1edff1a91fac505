"""What policies are told now and then: the bytes that they may fill, and what recomputing and loading cost.

A tier is shared among namespaces by what they have in it, up to their quotas. Recomputing is reckoned by what the
fastest live engine says of its prefill, else in tokens by the configured speed; loading by what the tier, its codec and
the loads from it have been measured to do.
"""

from __future__ import annotations

from kvstore.catalog import Namespace
from kvstore.core import Core
from kvstore.policy import Policy
from kvstore.tiers.base import Speed


def appraise(core: Core) -> None:
    """Tell the policies of every namespace in every tier. Takes the store's lock, for one policy at a time."""
    for number, tier in enumerate(core.tiers):
        capacity, speed = tier.capacity, tier.speed  # never with the lock held
        with core.lock:
            core.admissions.set_capacity(number, capacity)
            policies = core.usage.in_tier(number)
            chunks = sum(map(len, policies.values()))
        for digest, policy in policies.items():
            with core.lock:
                namespace = core.catalog.by_digest(digest)
                if namespace is None:
                    continue
                # As if everybody had one chunk more, so that who has none has a little.
                share = min(1.0, (len(policy) + 1) / (chunks + len(policies)))
                most = max(1, int(capacity * share))
                policy.set_capacity(min(most, namespace.quota) if namespace.quota else most)
                _set_costs(core, number, namespace, policy, speed)


def _set_costs(core: Core, tier: int, namespace: Namespace, policy: Policy, speed: Speed) -> None:
    """Where prefill's speed is not known nothing is said of costs: every token is worth as much as any other."""
    prefill = core.prefills.of_namespace(namespace, core.catalog.scopes)
    if prefill is None:
        return
    factor = core.forecasts.factor(tier)
    costs = [core.coder.cost_in(scope, tier) for scope in core.catalog.scopes if scope.namespace is namespace]
    decode = max((decode_s / share for share, decode_s in costs), default=0.0)  # seconds per stored byte
    policy.set_costs(
        flops_per_token=prefill.flops_per_token,
        flops_per_token2=prefill.flops_per_token2,
        prefill_flops_per_s=prefill.flops_per_s,
        load_bytes_per_s=speed.read_bytes_per_s / factor,
        load_latency_s=speed.latency_s * factor,
        decode_bytes_per_s=1 / decode if decode else 0.0,
    )
