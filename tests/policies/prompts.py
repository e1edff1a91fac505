"""A cache of whole prompts around a policy, told as the store and the simulator tell it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from kvstore._native import Policy

TOKENS = 256
Prompt = Sequence[int]  # names of its chunks, root first; a name stands for the chunk and all before it


class PromptCache:
    """`capacity` chunks of one byte each. Names are positive."""

    def __init__(self, policy: Policy, capacity: int, *, linked: bool = True) -> None:
        self.policy, self.capacity, self.linked = policy, capacity, linked
        self.rows: dict[int, int] = {}
        self.parents: dict[int, int] = {}
        self.names: dict[int, int] = {}
        self.free: list[int] = list(range(capacity))
        self.now = 0
        policy.set_capacity(capacity)

    def request(self, prompt: Prompt) -> int:
        """How many of its chunks were hit: the leading run, or all that are here if they are not linked."""
        self.now += 1000
        here = [name in self.rows for name in prompt]
        hit = here.index(False) if self.linked and False in here else sum(here)
        missing = [name for name, found in zip(prompt, here, strict=True) if not found]
        if missing:
            self.policy.demand(np.array(missing, np.uint64), self.now)
        for place in reversed(range(len(prompt))):
            if not here[place]:
                self.admit(prompt, place)
        rows = [self.rows[name] for name, found in zip(prompt, here, strict=True) if found and name in self.rows]
        self.policy.hit(np.array(rows, np.uint32), self.now)
        return hit

    def play(self, prompts: Iterable[Prompt]) -> float:
        """The share of all their chunks that were hit."""
        hits = total = 0
        for prompt in prompts:
            hits += self.request(prompt)
            total += len(prompt)
        return hits / total

    def admit(self, prompt: Prompt, place: int) -> None:
        if not self.free:
            self.evict(self.policy.victim())
        name, row = prompt[place], self.free.pop()
        parent = prompt[place - 1] if place and self.linked else 0
        self.rows[name], self.names[row], self.parents[name] = row, name, parent
        self.policy.admit(row, name, parent, place * TOKENS, TOKENS, 1, self.now)

    def evict(self, row: int, *, evicted: bool = True) -> int:
        name = self.names.pop(row)
        del self.rows[name]
        self.free.append(row)
        self.policy.remove(row, evicted, self.now)
        return name

    def ended(self, prompt: Prompt) -> None:
        """Nobody will go on with it."""
        self.policy.ended(self.here(prompt), self.now)

    def awaited(self, prompt: Prompt, seconds: float) -> None:
        """It comes back in so long."""
        self.policy.awaited(self.here(prompt), self.now, self.now + int(seconds * 1000))

    def here(self, prompt: Prompt) -> npt.NDArray[np.uint32]:
        """The rows of its chunks that are here."""
        return np.array([self.rows[name] for name in prompt if name in self.rows], np.uint32)

    def order(self) -> list[int]:
        """Names, the next victim first."""
        return [self.names[row] for row in self.policy.victims()]
