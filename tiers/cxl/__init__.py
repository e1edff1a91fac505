"""The CXL tier: memory nodes without processors, or device-DAX, with records striped over several devices."""

from kvstore.tiers.cxl.superblock import contents, wipe
from kvstore.tiers.cxl.tier import CxlTier

__all__ = ["CxlTier", "contents", "wipe"]
