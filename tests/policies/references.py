"""Policies in plain Python, written from their papers, for comparison. All sizes are in bytes."""

from __future__ import annotations


class Lru:
    """Least recently used first; a chunk that grows counts as used."""

    def __init__(self, capacity: int) -> None:
        del capacity
        self.held: list[int] = []

    def admit(self, key: int, nbytes: int) -> None:
        del nbytes
        self.hit(key)

    def hit(self, key: int) -> None:
        self.held = [*(each for each in self.held if each != key), key]

    def demand(self, key: int) -> None:
        """Nothing is remembered of what is not here."""

    def remove(self, key: int, evicted: bool) -> None:
        del evicted
        self.held.remove(key)

    def order(self) -> list[int]:
        return list(self.held)


REFERENCES = {"lru": Lru}
