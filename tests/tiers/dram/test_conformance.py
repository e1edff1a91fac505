"""DRAM against the suite that every tier runs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from kvstore.testing import Fault, TierConformance, replaced
from kvstore.tiers.base import Tier
from kvstore.tiers.dram import DramTier


class TestDram(TierConformance):
    def make_tier(self) -> Tier:
        tier = DramTier(16 << 20, 16 << 20)
        while tier.is_growing:
            time.sleep(0.001)
        return tier

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        """Memory has no errors that a program is told of, but bits of it flip."""
        assert isinstance(tier, DramTier)
        return flipping(tier) if fault is Fault.BIT_FLIP else None


@contextmanager
def flipping(tier: DramTier) -> Iterator[None]:
    """Whatever is looked at has one bit flipped in the arena for as long as this lasts."""
    dice, flipped, really = random.Random(3), list[tuple[memoryview, int, int]](), tier.view

    def view(location: int, start: int, nbytes: int) -> memoryview:
        memory = really(location, start, nbytes)
        at, bit = dice.randrange(nbytes), 1 << dice.randrange(8)
        memory[at] ^= bit
        flipped.append((memory, at, bit))
        return memory

    with replaced(tier, "view", view):
        yield
    for memory, at, bit in flipped:
        memory[at] ^= bit
