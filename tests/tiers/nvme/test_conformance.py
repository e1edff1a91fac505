"""The NVMe tier against the suite that every persistent tier runs: one drive and several, with and without O_DIRECT."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kvstore.testing import Fault, PersistentTierConformance
from kvstore.tiers.base import Recovered, Tier
from kvstore.tiers.nvme import NvmeTier
from tests.tiers.nvme.faults import disk_fault


class TestNvme(PersistentTierConformance):
    direct: bool | None = None

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.go_to(str(tmp_path / "nvme"))

    def place(self) -> str:
        return str(self.path)

    def go_to(self, place: str) -> None:
        self.path = Path(place)

    def open(self) -> NvmeTier:
        return NvmeTier(self.path, capacity=24 << 20, segment_bytes=4 << 20, reserve_bytes=0, direct=self.direct)

    def make_tier(self) -> Tier:
        tier = self.open()
        tier.recover()
        return tier

    def reopen(self) -> tuple[Tier, Recovered]:
        tier = self.open()
        return tier, tier.recover()

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        return None if fault is Fault.HUNG else disk_fault(fault)  # a system call on a disk cannot be given up on


class TestNvmeWithoutDirect(TestNvme):
    direct = False


class TestNvmeOnThreeDrives(TestNvme):
    """Three folders of one disk stand in for three drives."""

    def open(self) -> NvmeTier:
        paths = [self.path.with_name(f"{self.path.name}-{drive}") for drive in "abc"]
        return NvmeTier(paths=paths, capacity=36 << 20, segment_bytes=2 << 20, reserve_bytes=0)
