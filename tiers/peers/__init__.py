"""Other hosts' records: a directory says who has what, and the bulk channel brings it."""

from kvstore.tiers.peers.directory import Directory
from kvstore.tiers.peers.tier import PeersTier

__all__ = ["Directory", "PeersTier"]
