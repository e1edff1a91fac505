"""The NVMe tier: log-structured, O_DIRECT, back after kill -9."""

from kvstore.tiers.nvme.tier import NvmeTier

__all__ = ["NvmeTier"]
