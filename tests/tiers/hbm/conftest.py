"""Where the tests of the HBM tier run: on the CPU twin, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kvstore.tiers.hbm import HbmTier  # noqa: E402 - needs torch

MIB = 1 << 20
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU twin, or a GPU."""
    return str(request.param)


@pytest.fixture
def opener(device: str) -> Iterator[Callable[..., HbmTier]]:
    """Opens tiers of 16 MiB in slabs of 4 MiB, and closes them."""
    opened: list[HbmTier] = []

    def opening(capacity: int = 16 * MIB, **options: Any) -> HbmTier:
        opened.append(HbmTier(capacity, device, **{"slab_bytes": 4 * MIB, **options}))
        return opened[-1]

    yield opening
    for tier in opened:
        tier.close()
