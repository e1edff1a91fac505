"""Replays request traces against tiers and eviction policies: what a cache of which size is worth, before buying it.

The policies are the store's own native objects. docs/sim.md has the formats and what each figure means.
"""
