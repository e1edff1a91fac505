"""Faults of device memory, for a tier whose copies are made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kvstore.errors import StorageError
from kvstore.tiers.hbm import HbmTier
from kvstore.tiers.hbm.lanes import Lane


def fail() -> None:
    raise StorageError("the device does not copy (injected)")


@contextmanager
def flipped(tier: HbmTier) -> Iterator[None]:
    """Every 4096th byte of the slabs is another, for good."""
    for slab in tier._slabs._all:
        slab.memory[100::4096] ^= 4
    yield


@contextmanager
def copying(tier: HbmTier, act: Callable[[], None]) -> Iterator[None]:
    """`act` comes before each copy."""
    take = tier._lanes.take

    def taken() -> Lane:
        lane = take()
        plain = lane.copy

        def copy(to: int, source: int, nbytes: int) -> None:
            act()
            plain(to, source, nbytes)

        lane.copy = copy  # type: ignore[method-assign]
        lanes.append((lane, plain))
        return lane

    lanes: list[Any] = []
    tier._lanes.take = taken  # type: ignore[method-assign]
    try:
        yield
    finally:
        tier._lanes.take = take  # type: ignore[method-assign]
        for lane, plain in reversed(lanes):
            lane.copy = plain
