"""The HBM tier against the suite that every tier runs: the CPU twin, the twin through the pinned buffer, and a GPU."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kvstore.testing import TierConformance  # noqa: E402 - needs torch
from kvstore.tiers.base import Tier  # noqa: E402 - needs torch
from kvstore.tiers.hbm import HbmTier  # noqa: E402 - needs torch
from kvstore.tiers.hbm.lanes import Lane, Lanes  # noqa: E402 - needs torch
from tests.tiers.hbm.faults import copying, fail, flipped  # noqa: E402 - needs torch


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
        """What device memory can do: a copy that fails, is slow, or a bit that has flipped."""
        assert isinstance(tier, HbmTier)
        if fault.name == "BIT_FLIP":
            return flipped(tier)
        if fault.name == "SLOW":
            return copying(tier, lambda: time.sleep(0.02))
        if fault.name in {"READ_ERROR", "WRITE_ERROR"}:
            return copying(tier, fail)
        return None


class TestHbmTwinThroughThePinnedBuffer(TestHbmTwin):
    def make_tier(self) -> Tier:
        tier = super().make_tier()
        assert isinstance(tier, HbmTier)
        tier._lanes.make = lambda: BouncingLane(tier._lanes)  # type: ignore[method-assign]
        return tier


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
class TestHbmOnAGpu(TestHbmTwin):
    device = "cuda:0"
