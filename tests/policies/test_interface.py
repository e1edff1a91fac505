"""What holds for every policy."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore._native import Policy
from kvstore.policy import POLICIES

EVERY = pytest.mark.parametrize("name", POLICIES)


def fill(policy: Policy, count: int, nbytes: int = 1) -> None:
    for row in range(count):
        policy.admit(row, row + 1, row, row * 16, 16, nbytes, row)


@EVERY
def test_an_empty_policy(name: str) -> None:
    policy = Policy(name, 10)
    assert policy.victim() == -1
    assert list(policy.victims()) == []
    assert len(policy) == 0
    assert 3 not in policy
    policy.remove(3, True, 0)
    policy.hit(np.array([3, 12, -1, 1 << 40]), 0)
    policy.demand(np.array([7], np.uint64), 0)
    assert len(policy) == 0


@EVERY
def test_wrong_rows_and_names(name: str) -> None:
    policy = Policy(name, 10)
    for row in (10, -1, 0xFFFFFFFF, 1 << 40):
        with pytest.raises(IndexError, match="row"):
            policy.admit(row, 1, 0, 0, 16, 1, 0)
        assert row not in policy
    with pytest.raises(IndexError, match="row -1"):
        policy.remove(-1, True, 0)
    with pytest.raises(TypeError, match="rows must be an array"):
        policy.hit(np.zeros(2, np.float64), 0)
    with pytest.raises(ValueError, match="max_rows"):
        Policy(name, 0xFFFFFFFF)
    with pytest.raises(ValueError, match="no policy 'clock'"):
        Policy("clock", 10)


@EVERY
def test_a_walk_names_every_row_once(name: str) -> None:
    policy = Policy(name, 100)
    policy.set_capacity(50)
    fill(policy, 50)
    policy.hit(np.arange(10, 30, dtype=np.uint32), 60)
    policy.hit(np.arange(20, 40, dtype=np.uint32), 61)
    assert sorted(policy.victims()) == list(range(50))
    gone = []
    for row in policy.victims():  # every second one may go
        if len(gone) < 20 and row % 2:
            policy.remove(row, True, 62)
            gone.append(row)
    assert sorted([*policy.victims(), *gone]) == list(range(50))


@EVERY
def test_without_a_capacity(name: str) -> None:
    policy = Policy(name, 100)
    fill(policy, 60, 3)
    for row in range(30):
        victim = policy.victim()
        policy.remove(victim, True, 100)
        policy.admit(60 + row, 60 + row, 0, 0, 16, 3, 100)
    assert len(policy) == 60
    assert len(set(policy.victims())) == 60


def test_lru_touches_a_prefix_leaf_to_root() -> None:
    policy = Policy("lru", 10)
    fill(policy, 5)
    policy.hit(np.array([0, 1, 2], np.uint32), 10)
    assert list(policy.victims()) == [3, 4, 2, 1, 0]
    policy.hit(np.array([2], np.uint32), 11)
    policy.hit(np.array([3], np.uint32), 11)
    assert list(policy.victims()) == [4, 1, 0, 2, 3]


@pytest.mark.parametrize("name", ["lru", "s3fifo", "arc", "mq"])
def test_a_prompt_put_root_first_goes_leaf_first(name: str) -> None:
    policy = Policy(name, 20)
    policy.set_capacity(1000)
    policy.admit(10, 11, 0, 0, 16, 1, 0)
    for row in range(5):
        policy.admit(row, row + 1, row, row * 16, 16, 1, row, parent_row=row - 1)
    assert list(policy.victims()) == [10, 4, 3, 2, 1, 0]
    policy.admit(6, 7, 3, 48, 16, 1, 11, parent_row=19)  # which is not here
    assert list(policy.victims()) == [10, 4, 3, 2, 1, 0, 6]


def test_where_a_parent_came_long_ago_a_fifo_queue_does_not_put_its_child_there() -> None:
    policy = Policy("s3fifo", 20)
    policy.set_capacity(1000)
    fill(policy, 3)
    policy.admit(5, 6, 1, 16, 16, 1, 60_000, parent_row=0)
    policy.admit(6, 7, 6, 32, 16, 1, 60_001, parent_row=5)
    assert list(policy.victims()) == [0, 1, 2, 6, 5]


def test_lru_parts_of_a_chunk_come_one_after_the_other() -> None:
    policy = Policy("lru", 10)
    for _rank in range(2):
        for row in range(3):
            policy.admit(row, row + 1, row, row * 16, 16, 1, row, parent_row=row - 1)
    policy.admit(7, 8, 0, 0, 16, 1, 5)
    assert list(policy.victims()) == [2, 1, 0, 7]
