"""What policies are told now and then: the bytes that they may fill, and what recomputing and loading cost.

A tier is shared among namespaces by what they have in it, up to their quotas. Recomputing is reckoned in tokens, by
the configured speed of prefill; loading by what the tier and its codec have been measured to do.
"""

from __future__ import annotations

from kvstore.catalog import Namespace
from kvstore.core import Core


def appraise(core: Core) -> None:
    """Tell the policies of every namespace in every tier. Takes the store's lock."""
    with core.lock:
        namespaces = list(core.catalog.namespaces.values())
        for tier in range(len(core.tiers)):
            chunks = sum(len(core.usage.policy(tier, each)) for each in namespaces)
            for namespace in namespaces:
                policy = core.usage.policy(tier, namespace)
                # As if everybody had one chunk more, so that who has none has a little.
                share = (len(policy) + 1) / (chunks + len(namespaces))
                policy.set_capacity(_capacity(core, tier, namespace, share))
                _set_costs(core, tier, namespace)


def _capacity(core: Core, tier: int, namespace: Namespace, share: float) -> int:
    capacity = max(1, int(core.tiers[tier].capacity * share))
    return min(capacity, namespace.quota) if namespace.quota else capacity


def _set_costs(core: Core, tier: int, namespace: Namespace) -> None:
    """Where prefill's speed is not known nothing is said of costs: every token is worth as much as any other."""
    rate, speed = core.config.prefill_tokens_per_s, core.tiers[tier].speed
    if rate <= 0:
        return
    costs = [core.coder.cost_in(scope, tier) for scope in core.catalog.scopes if scope.namespace is namespace]
    decode = max((decode_s / share for share, decode_s in costs), default=0.0)  # seconds per stored byte
    core.usage.policy(tier, namespace).set_costs(
        flops_per_token=1.0,
        flops_per_token2=0.0,
        prefill_flops_per_s=rate,
        load_bytes_per_s=speed.read_bytes_per_s,
        load_latency_s=speed.latency_s,
        decode_bytes_per_s=1 / decode if decode else 0.0,
    )
