"""What the native replay is held against: a model of it in a few lines of Python, and tiers of so many blocks."""

from __future__ import annotations

from kvstore.cost import TierSpeed
from kvstore.sim.setup import Capacity, Setup, Tier

from .traces import BLOCK

PLAIN = Setup((), warm=0.0)
BYTES = 131072  # of a token of the default model
SPEED = TierSpeed(0.0, 25e9)


def tiers(*blocks: int) -> tuple[Tier, ...]:
    """Tiers of so many blocks each."""
    return tuple(Tier(f"t{n}", Capacity("", nbytes=blocks * BLOCK * BYTES), SPEED) for n, blocks in enumerate(blocks))


class ModelLru:
    """LRU over tiers, as the store has it: victims go down, what is hit below comes up and stays below.

    A tier is a list, the oldest first. What is put goes just before its parent where that was used by the request,
    which holds nothing any more.
    """

    def __init__(self, capacities: list[int]) -> None:
        self.tiers: list[list[int]] = [[] for _ in capacities]
        self.capacities = capacities
        self.written = [0] * len(capacities)

    def request(self, ids: list[int], touch: str) -> int:
        hit = 0
        while hit < len(ids) and any(ids[hit] in tier for tier in self.tiers):
            hit += 1
        if touch == "put":
            self._put(ids, hit)
            return hit
        held = set(ids[:hit])
        for each in reversed(ids):
            self._touch(each)
            if each not in self.tiers[0]:
                self._admit(each, 0, held)
        return hit

    def _put(self, ids: list[int], hit: int) -> None:
        for each in reversed(ids[:hit]):
            self._touch(each)
        used = set(ids[:hit])
        for before, each in zip([-1, *ids], ids, strict=False):
            there = any(each in tier for tier in self.tiers)
            if each not in self.tiers[0] and (there or each not in used):
                self._admit(each, 0, set(), before if before in used else -1)
                used.add(each)

    def _touch(self, each: int) -> None:
        for tier in self.tiers:
            if each in tier:
                tier.remove(each)
                tier.append(each)

    def _admit(self, each: int, at: int, held: set[int], parent: int = -1) -> None:
        tier = self.tiers[at]
        while len(tier) >= self.capacities[at]:
            victim = next((key for key in tier if key not in held), None)
            if victim is None:
                return
            tier.remove(victim)
            self._evicted(victim, at, held)
        tier.insert(tier.index(parent) if parent in tier else len(tier), each)
        self.written[at] += 1

    def _evicted(self, victim: int, at: int, held: set[int]) -> None:
        if at + 1 < len(self.tiers) and victim not in self.tiers[at + 1] and self._enters(victim, at + 1):
            self._admit(victim, at + 1, held)

    def _enters(self, each: int, at: int) -> bool:
        """Whether a lower tier takes a victim of the one above."""
        return True
