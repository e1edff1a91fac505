"""Valkey and Redis as an engine of the remote tier."""

from kvstore.tiers.remote.valkey.engine import ValkeyEngine

__all__ = ["ValkeyEngine"]
