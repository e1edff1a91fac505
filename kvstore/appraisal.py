"""What policies are told now and then: the bytes that they may fill, and what recomputing and loading cost.

A tier is shared among namespaces by what they have in it, up to their quotas. Recomputing is reckoned by what the
fastest live engine says of its prefill, else in tokens by the configured speed; loading by what the tier, its codec and
the loads from it have been measured to do.
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
    prefill, speed = core.prefills.of_namespace(namespace, core.catalog.scopes), core.tiers[tier].speed
    if prefill is None:
        return
    factor = core.forecasts.factor(tier)
    costs = [core.coder.cost_in(scope, tier) for scope in core.catalog.scopes if scope.namespace is namespace]
    decode = max((decode_s / share for share, decode_s in costs), default=0.0)  # seconds per stored byte
    core.usage.policy(tier, namespace).set_costs(
        flops_per_token=prefill.flops_per_token,
        flops_per_token2=prefill.flops_per_token2,
        prefill_flops_per_s=prefill.flops_per_s,
        load_bytes_per_s=speed.read_bytes_per_s / factor,
        load_latency_s=speed.latency_s * factor,
        decode_bytes_per_s=1 / decode if decode else 0.0,
    )
