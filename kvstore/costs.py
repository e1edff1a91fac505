"""Policies are told what recomputing and loading cost, whenever that has changed."""

from __future__ import annotations

import math

from kvstore.catalog import Namespace
from kvstore.core import DRAM, Core

CHANGE = 0.1  # by which share a figure must have changed to be told again


class PolicyCosts:
    """What each policy was told last. For one thread."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._told: dict[tuple[int, bytes], tuple[float, ...]] = {}

    def tell(self) -> None:
        """Tell the policies of every namespace whose engines' speed is known. Takes the store's lock for a moment."""
        core = self._core
        speeds = [(each.read_bytes_per_s, each.latency_s) for each in (tier.speed for tier in core.tiers)]
        for namespace in list(core.catalog.namespaces.values()):
            with core.lock:
                prefill = core.prefills.of_namespace(namespace, core.catalog.scopes)
                if prefill is None:
                    continue
                for tier, (rate, latency_s) in enumerate(speeds):
                    factor = 1.0 if tier == DRAM else core.forecasts.factor(tier)
                    self._tell(tier, namespace, (*prefill.packed[:3], rate / factor, latency_s * factor))

    def _tell(self, tier: int, namespace: Namespace, figures: tuple[float, ...]) -> None:
        before = self._told.get((tier, namespace.digest))
        if before is not None and all(map(_about, figures, before)):
            return
        self._told[tier, namespace.digest] = figures
        per_token, per_token2, flops_per_s, rate, latency_s = figures
        self._core.usage.policy(tier, namespace).set_costs(
            flops_per_token=per_token, flops_per_token2=per_token2, prefill_flops_per_s=flops_per_s,
            load_bytes_per_s=rate, load_latency_s=latency_s, decode_bytes_per_s=0.0,
        )  # fmt: skip


def _about(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=CHANGE)
