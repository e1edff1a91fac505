"""The remote tier: records in a place that hosts share, kept by one of several engines."""

from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.ledger import Ledger
from kvstore.tiers.remote.tier import RemoteTier

__all__ = ["Engine", "Ledger", "RemoteTier"]
