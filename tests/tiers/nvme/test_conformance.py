"""The NVMe tier against the suite that every persistent tier runs, with and without O_DIRECT."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.testing import PersistentTierConformance
from kvstore.tiers.base import Recovered, Tier
from kvstore.tiers.nvme import NvmeTier


class TestNvme(PersistentTierConformance):
    direct: bool | None = None

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "nvme"

    def open(self) -> NvmeTier:
        return NvmeTier(self.path, capacity=24 << 20, segment_bytes=4 << 20, reserve_bytes=0, direct=self.direct)

    def make_tier(self) -> Tier:
        tier = self.open()
        tier.recover()
        return tier

    def reopen(self) -> tuple[Tier, Recovered]:
        tier = self.open()
        return tier, tier.recover()


class TestNvmeWithoutDirect(TestNvme):
    direct = False
