"""A cache around a policy, step by step, beside a plain Python reference of the same policy."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kvstore._native import Policy


class Reference(Protocol):
    """A policy written from its paper, for keys; `order` is what `victims` gives, the next victim first."""

    def admit(self, key: int, nbytes: int) -> None: ...
    def hit(self, key: int) -> None: ...
    def demand(self, key: int) -> None: ...
    def remove(self, key: int, evicted: bool) -> None: ...
    def order(self) -> list[int]: ...


class Driver:
    """Does the same to both and compares their orders. Rows are given in an order that is not the keys'."""

    def __init__(self, policy: Policy, reference: Reference, capacity: int, keys: int) -> None:
        self.policy, self.reference, self.capacity = policy, reference, capacity
        self.rows = {key: (key * 7) % keys for key in range(keys)}  # keys and 7 have no common factor
        self.names = {row: key for key, row in self.rows.items()}
        self.held: dict[int, int] = {}
        policy.set_capacity(capacity)

    def request(self, key: int, nbytes: int, *, compare: bool = True) -> None:
        """Hit it, or let it in after victims have made room."""
        if key in self.held:
            self.policy.hit(np.array([self.rows[key]], np.uint32), 0)
            self.reference.hit(key)
        else:
            self.policy.demand(np.array([key + 1], np.uint64), 0)
            self.reference.demand(key)
            while sum(self.held.values()) + nbytes > self.capacity:
                victim = self.reference.order()[0]
                assert self.names[self.policy.victim()] == victim
                self.remove(victim, evicted=True)
            self.admit(key, nbytes)
        if compare:
            self.compare()

    def grow(self, key: int) -> None:
        """Another part of a chunk comes, if there is room for it."""
        if key in self.held and sum(self.held.values()) < self.capacity:
            self.admit(key, self.held[key] + 1)
            self.compare()

    def admit(self, key: int, nbytes: int) -> None:
        self.held[key] = nbytes
        self.policy.admit(self.rows[key], key + 1, 0, 0, key % 3 + 1, nbytes, 0)
        self.reference.admit(key, nbytes)

    def delete(self, key: int) -> None:
        """It goes for another reason than room."""
        self.remove(key, evicted=False)
        self.compare()

    def remove(self, key: int, *, evicted: bool) -> None:
        self.policy.remove(self.rows[key], evicted, 0)
        if self.held.pop(key, None) is not None:
            self.reference.remove(key, evicted)

    def compare(self) -> None:
        """Both have the same chunks in the same order, each once."""
        order = self.reference.order()
        assert [self.names[row] for row in self.policy.victims()] == order
        assert sorted(order) == sorted(self.held)
        assert len(self.policy) == len(self.held)
        assert all((row in self.policy) == (key in self.held) for row, key in self.names.items())
