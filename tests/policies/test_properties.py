"""Every policy beside a model of the cache it serves: whatever happens, its order has each chunk that is there once and
no other, and room can be made as long as there is a chunk that nobody holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._native import Policy
from kvstore.policy import POLICIES

ROOTS, DEPTH, ROWS = 4, 6, 16
COSTS = {
    "flops_per_token": 1e10, "flops_per_token2": 1e4, "prefill_flops_per_s": 1e15, "load_bytes_per_s": 3e5,
    "load_latency_s": 0.0, "decode_bytes_per_s": 0.0,
}  # fmt: skip

prompts = st.tuples(st.integers(0, ROOTS - 1), st.integers(0, 2), st.integers(1, DEPTH))
events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["leaf first", "put"]), prompts, st.integers(1, 3)),
        st.tuples(st.sampled_from(["lease", "grow", "delete", "walk"]), prompts, st.integers(1, 6)),
        st.tuples(st.sampled_from(["release", "shrink", "costs"]), prompts, st.integers(3, 20)),
    ),
    max_size=80,
)


def names(prompt: tuple[int, int, int]) -> list[int]:
    """The chunks of a prompt, root first: two that share a root part ways after two chunks."""
    root, branch, length = prompt
    return [root * 1000 + (0 if place < 2 else branch * 100) + place + 1 for place in range(length)]


class Cache:
    """`capacity` bytes, at most `ROWS` chunks. Rows are used again at once, the last one first."""

    def __init__(self, policy: Policy, capacity: int) -> None:
        self.policy, self.capacity, self.now = policy, capacity, 0
        self.rows: dict[int, int] = {}
        self.bytes: dict[int, int] = {}
        self.leased: set[int] = set()
        self.free = list(range(ROWS))
        policy.set_capacity(capacity)

    def request(self, prompt: list[int], nbytes: int, *, put: bool) -> None:
        """As the store tells of it (`put`), or as a simulator that shows a policy the tail first."""
        self.now += 1000
        run = next((n for n, name in enumerate(prompt) if name not in self.rows), len(prompt))
        if missing := [name for name in prompt if name not in self.rows]:
            self.policy.demand(np.array(missing, np.uint64), self.now)
        if put:
            self.policy.hit(np.array([self.rows[name] for name in prompt[:run]], np.uint32), self.now)
        for place in range(len(prompt)) if put else reversed(range(len(prompt))):
            name, parent = prompt[place], prompt[place - 1] if place else 0
            if name not in self.rows and self.make_room(nbytes):
                near = self.rows.get(parent, -1) if put else -1
                self.rows[name], self.bytes[name] = self.free.pop(), nbytes
                self.policy.admit(self.rows[name], name, parent, place * 16, 16, nbytes, self.now, near)
            elif name in self.rows and not put:
                self.policy.hit(np.array([self.rows[name]], np.uint32), self.now)

    def make_room(self, nbytes: int) -> bool:
        """Victims go until so many bytes and a row are free, past those that somebody holds."""
        for row in self.policy.victims():
            if self.fits(nbytes):
                break
            if self.name(row) not in self.leased:
                self.remove(self.name(row), evicted=True)
        assert self.fits(nbytes) or self.rows.keys() <= self.leased
        return self.fits(nbytes)

    def fits(self, nbytes: int) -> bool:
        return sum(self.bytes.values()) + nbytes <= self.capacity and bool(self.free)

    def name(self, row: int) -> int:
        """What lies in a row."""
        return next(each for each, there in self.rows.items() if there == row)

    def remove(self, name: int, *, evicted: bool) -> None:
        self.policy.remove(self.rows[name], evicted, self.now)
        self.free.append(self.rows.pop(name))
        del self.bytes[name]
        self.leased.discard(name)

    def do(self, event: str, prompt: list[int], number: int) -> None:
        """One event of the test's."""
        name = prompt[-1]
        if event in ("leaf first", "put"):
            self.request(prompt, number, put=event == "put")
        elif event == "lease":
            self.leased.update(each for each in prompt if each in self.rows)
        elif event == "release":
            self.leased.clear()
        elif event == "grow" and name in self.rows and self.make_room(number) and name in self.rows:
            self.bytes[name] += number
            self.policy.admit(self.rows[name], name, 0, 0, 16, self.bytes[name], self.now)
        elif event == "delete" and name in self.rows:
            self.remove(name, evicted=False)
        elif event == "walk":  # and every other one that nobody holds goes meanwhile
            for at, row in enumerate(self.policy.victims()):
                if at % 2 and self.name(row) not in self.leased:
                    self.remove(self.name(row), evicted=True)
        elif event == "shrink":
            self.capacity = number
            self.policy.set_capacity(number)
            self.make_room(0)
        elif event == "costs":
            self.policy.set_costs(**COSTS)

    def check(self) -> None:
        """The order has what is there, each once, and nothing else."""
        assert sorted(self.policy.victims()) == sorted(self.rows.values())
        assert len(self.policy) == len(self.rows)
        assert {row for row in range(ROWS) if row in self.policy} == set(self.rows.values())


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=60, deadline=None)
@given(events=events, capacity=st.integers(4, 24))
def test_nothing_is_lost_or_there_twice_and_room_can_be_made(
    policy: str, events: list[tuple[str, tuple[int, int, int], int]], capacity: int
) -> None:
    cache = Cache(Policy(policy, ROWS), capacity)
    for event, prompt, number in events:
        cache.do(event, names(prompt), number)
        cache.check()
