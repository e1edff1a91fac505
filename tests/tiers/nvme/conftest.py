"""Small tiers in temporary folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.tiers.nvme import NvmeTier

MIB = 1 << 20
Opener = Callable[..., NvmeTier]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `opener` opens its tiers."""
    return tmp_path / "nvme"


@pytest.fixture
def opener(folder: Path) -> Iterator[Opener]:
    """Opens tiers of 12 MiB in segments of 1 MiB in one folder, and closes what the test left open."""
    opened: list[NvmeTier] = []

    def opening(**options: Any) -> NvmeTier:
        wanted = {"capacity": 12 * MIB, "segment_bytes": MIB, "reserve_bytes": 0, **options}
        opened.append(NvmeTier(folder, **wanted))
        return opened[-1]

    yield opening
    for tier in opened:
        tier.close()
