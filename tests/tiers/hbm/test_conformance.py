"""The HBM tier against the suite that every tier runs: the CPU twin, the twin through the pinned buffer, and a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kvstore.testing import TierConformance  # noqa: E402 - needs torch
from kvstore.tiers.base import Tier  # noqa: E402 - needs torch
from kvstore.tiers.hbm import HbmTier  # noqa: E402 - needs torch
from kvstore.tiers.hbm.lanes import Lane, Lanes  # noqa: E402 - needs torch
from tests.tiers.hbm.faults import injected  # noqa: E402 - needs torch


class BouncingLane(Lane):
    """A lane of the CPU twin that reaches no host memory, as a GPU's without registered memory; halves of 24 KiB."""

    def __init__(self, home: Lanes) -> None:
        super().__init__(home, torch.empty(48 << 10, dtype=torch.uint8))

    def reaches(self, address: int, nbytes: int, *, writing: bool) -> bool:
        return False


class TestHbmTwin(TierConformance):
    device = "cpu"

    def make_tier(self) -> Tier:
        return HbmTier(24 << 20, self.device, slab_bytes=8 << 20)

    def inject(self, tier: Tier, fault: Any) -> AbstractContextManager[None] | None:
        assert isinstance(tier, HbmTier)
        return injected(tier, fault)


class TestHbmTwinThroughThePinnedBuffer(TestHbmTwin):
    def make_tier(self) -> Tier:
        tier = super().make_tier()
        assert isinstance(tier, HbmTier)
        tier._lanes.make = lambda: BouncingLane(tier._lanes)  # type: ignore[method-assign]
        return tier


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
class TestHbmOnAGpu(TestHbmTwin):
    device = "cuda:0"
