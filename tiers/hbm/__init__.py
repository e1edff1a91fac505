"""The HBM tier: records in device memory. Importing this needs torch; without a GPU it runs with `device="cpu"`."""

from kvstore.tiers.hbm.ipc import Importer
from kvstore.tiers.hbm.tier import HbmTier

__all__ = ["HbmTier", "Importer"]
