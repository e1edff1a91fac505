"""What the index tells a policy of a chunk, and which chunks have not been used for long."""

import struct
import time

import numpy as np
import pytest

from kvstore._native import (
    Index,
    Policy,
    UseLog,
    ValuePolicy,
    admit_chunk,
    demand_missing,
    restore_chunks,
    use_unleased,
)
from kvstore.policy import POLICIES

MINUTE = 60_000
YEAR = 365 * 24 * 60 * MINUTE


def key(number: int) -> bytes:
    return bytes([number]) * 32


def put(
    index: Index, number: int, now_ms: int, *,
    parent: int = 0, rank: int = 0, stored: int = 100, place: int | None = None,
) -> int:  # fmt: skip
    """One part of a chunk of 16 tokens in tier 0; the chunk's row."""
    chunk, _, placement = index.insert(
        number // 100, key(number % 100), key(parent) if parent else bytes(32),
        (number if place is None else place) * 16, 16, now_ms,
        0, rank, 0, 1, 0, stored, 0, 0, 0, True, 4096 * number, stored,
    )  # fmt: skip
    assert placement >= 0
    return chunk


def test_the_parts_of_a_chunk_in_a_tier_add_up() -> None:
    index, policy = Index(16, 7), Policy("gdsf", 16)
    rows = [put(index, 1, 0), put(index, 2, 0, stored=150), put(index, 1, 0, rank=1), put(index, 1, 0, rank=2)]
    for row in rows:
        admit_chunk(index, policy, row, 0, 0)
    assert rows[0] == rows[2] == rows[3]
    assert list(policy.victims()) == [rows[0], rows[1]]  # 16 tokens in 300 bytes, and in 150
    index.remove_placement(index.find_placement(index.find_part(rows[0], 0, 1, 0, 1), 0))
    index.remove_placement(index.find_placement(index.find_part(rows[0], 0, 2, 0, 1), 0))
    admit_chunk(index, policy, rows[0], 0, 0)
    assert list(policy.victims()) == [rows[1], rows[0]]


def test_a_step_of_the_wall_clock_ages_nothing() -> None:
    index, policy = Index(16, 7), ValuePolicy(16)
    rows = [put(index, 1, 0), put(index, 2, 0)]
    for row in rows:
        admit_chunk(index, policy, row, 0, YEAR)
    now = time.monotonic_ns() // 1_000_000
    policy.awaited(np.array(rows[:1]), now, now + 60 * MINUTE)
    for unix_ms in (100 * YEAR, 0, 60 * YEAR):
        use_unleased(index, [policy], rows[1], unix_ms)
        assert index.chunk(rows[1]).last_use == unix_ms
    assert policy.waits == 1


@pytest.mark.parametrize("name", POLICIES)
def test_what_outlived_the_process_goes_tail_first_and_oldest_first(name: str) -> None:
    """Three prompts of three chunks, put root first, days ago."""
    index, policy = Index(16, 7), Policy(name, 16)
    rows = []
    for number in range(9):
        parent = number if number % 3 else 0
        rows.append(put(index, number + 1, number // 3 * MINUTE + number, parent=parent, place=number % 3))
    restore_chunks(index, policy, np.array(rows), 0, YEAR)
    order = list(policy.victims())
    assert sorted(order) == sorted(rows)
    if name in ("lru", "arc", "mq", "value"):
        assert order == [rows[each] for each in (2, 1, 0, 5, 4, 3, 8, 7, 6)]


def test_a_chunk_goes_before_its_parent_if_that_was_just_used() -> None:
    index, policy = Index(16, 7), Policy("lru", 16)
    first, other = put(index, 1, 0), put(index, 2, 0)
    for row in (first, other):
        admit_chunk(index, policy, row, 0, 0)
    soon = put(index, 3, 9_000, parent=1)
    admit_chunk(index, policy, soon, 0, 9_000)
    assert list(policy.victims()) == [soon, first, other]
    late = put(index, 4, MINUTE, parent=1)
    admit_chunk(index, policy, late, 0, MINUTE)
    assert list(policy.victims()) == [soon, first, other, late]
    use_unleased(index, [policy], first, MINUTE)
    again = put(index, 5, MINUTE + 1, parent=1)
    admit_chunk(index, policy, again, 0, MINUTE + 1)
    assert list(policy.victims()) == [soon, other, late, again, first]
    elsewhere = put(index, 6, MINUTE + 2, parent=77)
    admit_chunk(index, policy, elsewhere, 0, MINUTE + 2)
    assert list(policy.victims())[-1] == elsewhere


def test_a_chunk_that_is_not_there_cannot_be_admitted() -> None:
    index, policy = Index(16, 7), Policy("lru", 16)
    for row in (0, -1, 99):
        with pytest.raises(IndexError, match="no chunk"):
            admit_chunk(index, policy, row, 0, 0)
    assert len(policy) == 0


def test_two_specs_with_one_key_are_two_chunks_to_a_policy() -> None:
    """Else what one leaves behind would be taken for the other."""
    index, policy = Index(16, 7), Policy("s3fifo", 16)
    policy.set_capacity(1000)
    one, two = put(index, 5, 0), put(index, 105, 0)
    admit_chunk(index, policy, one, 0, 0)
    policy.remove(one, True, 1)
    admit_chunk(index, policy, put(index, 6, 1), 0, 1)
    admit_chunk(index, policy, two, 0, 2)
    last = put(index, 7, 3)
    admit_chunk(index, policy, last, 0, 3)
    assert list(policy.victims())[1:] == [two, last]  # in the small queue, and not in the main one that comes after it
    policy.remove(two, True, 4)
    admit_chunk(index, policy, two, 0, 5)
    assert list(policy.victims())[1:] == [last, two]  # as what comes back is


def test_idle_chunks() -> None:
    index = Index(16, 7)
    rows = [put(index, 1, 100), put(index, 2, 300), put(index, 101, 100), put(index, 3, 50)]
    gone = rows[3]
    index.remove_placement(index.find_placement(index.find_part(gone, 0, 0, 0, 1), 0))
    found, following = index.idle_chunks(0, 16, 16, [200, 0])
    assert (found.tolist(), following) == ([rows[0]], -1)
    assert index.idle_chunks(0, 16, 16, [301, 101])[0].tolist() == rows[:3]
    assert index.idle_chunks(0, 16, 16, [301])[0].tolist() == rows[:2]
    assert index.idle_chunks(0, 16, 16, [])[0].dtype == np.uint32
    found, following = index.idle_chunks(0, 16, 1, [301, 101])
    assert (found.tolist(), following) == ([rows[0]], 1)
    found, following = index.idle_chunks(following, 1, 16, [301, 101])
    assert (found.tolist(), following) == ([rows[1]], 2)
    with pytest.raises(IndexError):
        index.idle_chunks(-1, 1, 1, [])


@pytest.mark.parametrize("asked", [True, False])
def test_a_policy_is_told_of_the_chunks_of_a_look_up_that_it_has_not(asked: bool) -> None:
    index, policy = Index(16, 7), Policy("arc", 16)
    policy.set_capacity(200)
    gone, often = put(index, 1, 0), put(index, 2, 0)
    for row in (gone, often):
        admit_chunk(index, policy, row, 0, 0)
    policy.hit(np.array([often]), 0)
    policy.remove(gone, True, 0)
    refs = b"".join(key(number) + struct.pack("<II", number * 16, 16) for number in (1, 2, 9))
    if asked:
        demand_missing([policy], 0, refs, np.array([gone, often, -1]))
    once = put(index, 3, 1)
    admit_chunk(index, policy, once, 0, 1)
    # ARC gives what was used once more room when it hears that such a chunk has gone too early.
    assert policy.victim() == (often if asked else once)
    with pytest.raises(ValueError, match="every ref has a row"):
        demand_missing([policy], 0, refs, np.array([gone]))


def test_a_log_remembers_uses_of_what_its_tier_holds() -> None:
    index = Index(16, 7)
    log = UseLog(index, 3, 2)
    rows = [put(index, number, 0) for number in range(1, 5)]
    index.insert(0, key(5), bytes(32), 0, 16, 0, 0, 0, 0, 1, 0, 100, 3, 0, 0, True, 4096, 100)
    there = index.find(0, key(5))
    for row in (rows[0], rows[2]):  # a second part of which alone is there
        part = index.add_part(row, 0, 1, 0, 1, 0, 100)
        index.add_placement(part, 3, 0, 0, True, 4096, 100)
    for row in (rows[0], rows[1], there):
        use_unleased(index, [log], row, MINUTE)
    assert [each.tolist() for each in log.take()] == [[rows[0]], [there]]
    assert log.take() == []
    log.hit(np.array([rows[2], -1, rows[1], there, 15], np.int64), 0)
    for row in (there, rows[0]):  # more than are kept
        log.hit(np.array([row], np.int64), 0)
    assert [each.tolist() for each in log.take()] == [[there], [rows[0]]]
    log.hit(np.array([rows[2], -1, rows[1], there, 15], np.int64), 0)
    assert [each.tolist() for each in log.take()] == [[rows[2], there]]
    assert (len(log), list(log.victims()), there in log) == (0, [], False)
