"""The tiers that a configuration names, opened."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.config import Config, NvmeConfig
from kvstore.errors import KVStoreError
from kvstore.tiers.base import Tier
from kvstore.tiers.dram import DramTier


def open_tiers(config: Config) -> tuple[DramTier, Sequence[Tier]]:
    """DRAM, and what is below it, the fastest first. Where one cannot be opened the others are closed again."""
    below: list[Tier] = []
    try:
        below.extend(map(_open, config.below))
        return DramTier(config.dram.capacity, config.dram.extent), below
    except (KVStoreError, OSError):
        for tier in below:
            tier.close()
        raise


def _open(config: NvmeConfig) -> Tier:
    from kvstore.tiers.nvme import NvmeTier

    return NvmeTier(
        config.path,
        capacity=config.capacity,
        segment_bytes=config.segment,
        reserve_bytes=config.reserve,
        io_threads=config.io_threads,
    )
