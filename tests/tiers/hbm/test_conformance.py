"""The HBM tier against the suite that every tier runs: the CPU twin, and a GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kvstore.testing import TierConformance  # noqa: E402 - needs torch
from kvstore.tiers.base import Tier  # noqa: E402 - needs torch
from kvstore.tiers.hbm import HbmTier  # noqa: E402 - needs torch
from tests.tiers.hbm.faults import injected  # noqa: E402 - needs torch


class TestHbmTwin(TierConformance):
    device = "cpu"

    def make_tier(self) -> Tier:
        return HbmTier(24 << 20, self.device, slab_bytes=8 << 20)

    def inject(self, tier: Tier, fault: Any) -> AbstractContextManager[None] | None:
        assert isinstance(tier, HbmTier)
        return injected(tier, fault)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
class TestHbmOnAGpu(TestHbmTwin):
    device = "cuda:0"
