import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._native import Allocator

PAGE = 4096


def test_a_new_allocator_is_one_hole() -> None:
    allocator = Allocator(10 * PAGE + 5)
    assert allocator.capacity == allocator.free_bytes == allocator.largest_hole == 10 * PAGE
    assert allocator.granularity == PAGE
    assert allocator.used == 0
    assert allocator.holes == 1


def test_sizes_are_rounded_up() -> None:
    allocator = Allocator(10 * PAGE)
    assert allocator.alloc(1) == 0
    assert allocator.alloc(PAGE + 1) == PAGE
    assert allocator.used == 3 * PAGE
    allocator.free(PAGE, PAGE + 1)
    assert allocator.used == PAGE


def test_full() -> None:
    allocator = Allocator(4 * PAGE)
    assert allocator.alloc(4 * PAGE) == 0
    assert (allocator.holes, allocator.largest_hole, allocator.free_bytes) == (0, 0, 0)
    assert allocator.alloc(1) == -1
    assert allocator.alloc(2**64 - 1) == -1
    allocator.free(0, 4 * PAGE)
    assert allocator.largest_hole == 4 * PAGE


def test_best_fit_takes_the_smallest_hole_that_is_large_enough() -> None:
    allocator = Allocator(20 * PAGE)
    offsets = [allocator.alloc(PAGE) for _ in range(20)]
    for hole in (range(2, 6), range(8, 10), range(12, 15)):
        for i in hole:
            allocator.free(offsets[i], PAGE)
    assert allocator.holes == 3
    assert allocator.alloc(3 * PAGE) == 12 * PAGE
    assert allocator.alloc(2 * PAGE) == 8 * PAGE
    assert allocator.alloc(PAGE) == 2 * PAGE


def test_neighbours_coalesce() -> None:
    allocator = Allocator(3 * PAGE)
    for _ in range(3):
        allocator.alloc(PAGE)
    allocator.free(0, PAGE)
    allocator.free(2 * PAGE, PAGE)
    assert allocator.holes == 2
    allocator.free(PAGE, PAGE)
    assert (allocator.holes, allocator.largest_hole) == (1, 3 * PAGE)


@pytest.mark.parametrize(
    ("offset", "nbytes", "message"),
    [
        (0, PAGE, "double free"),
        (2 * PAGE, 2 * PAGE, "double free"),
        (3 * PAGE, PAGE, "double free"),
        (PAGE + 1, PAGE, "multiple of the granularity"),
        (8 * PAGE, PAGE, "out of range"),
        (2**63, PAGE, "out of range"),
        (PAGE, 2**64 - 1, "out of range"),
        (PAGE, 0, "at least 1"),
    ],
)
def test_bad_frees_change_nothing(offset: int, nbytes: int, message: str) -> None:
    allocator = Allocator(8 * PAGE)
    for _ in range(3):
        allocator.alloc(PAGE)
    allocator.free(0, PAGE)
    before = (allocator.free_bytes, allocator.holes, allocator.largest_hole)
    with pytest.raises(ValueError, match=message):
        allocator.free(offset, nbytes)
    assert (allocator.free_bytes, allocator.holes, allocator.largest_hole) == before


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="granularity"):
        Allocator(100, 0)
    with pytest.raises(ValueError, match="nbytes"):
        Allocator(PAGE).alloc(0)
    assert Allocator(PAGE - 1).alloc(1) == -1


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.booleans(), st.integers(1, 20), st.integers(0, 1000)), max_size=80),
)
def test_against_a_bitmap(pages: int, operations: list[tuple[bool, int, int]]) -> None:
    allocator = Allocator(pages * 16, 16)
    taken = [False] * pages
    live: list[tuple[int, int]] = []
    for allocates, size, pick in operations:
        if allocates:
            offset = allocator.alloc(size * 16 - pick % 16)
            assert offset == best_fit(taken, size)
            if offset >= 0:
                live.append((offset, size))
                taken[offset // 16 : offset // 16 + size] = [True] * size
        elif live:
            offset, freed = live.pop(pick % len(live))
            allocator.free(offset, freed * 16)
            taken[offset // 16 : offset // 16 + freed] = [False] * freed
        holes = free_runs(taken)
        assert allocator.used == 16 * sum(taken)
        assert allocator.free_bytes == 16 * (pages - sum(taken))
        assert allocator.holes == len(holes)
        assert allocator.largest_hole == 16 * max((size for _, size in holes), default=0)


def free_runs(taken: list[bool]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for page, busy in enumerate(taken):
        if busy:
            continue
        if runs and runs[-1][0] + runs[-1][1] == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


def best_fit(taken: list[bool], size: int) -> int:
    fitting = [(length, start) for start, length in free_runs(taken) if length >= size]
    return 16 * min(fitting)[1] if fitting else -1


def test_an_operation_takes_microseconds() -> None:
    allocator = Allocator(1 << 34)
    offsets = [allocator.alloc((1 + i % 7) * PAGE) for i in range(50_000)]
    for i in range(0, 50_000, 2):
        allocator.free(offsets[i], (1 + i % 7) * PAGE)
    start = time.thread_time()
    for i in range(0, 50_000, 2):
        allocator.alloc((1 + i % 7) * PAGE)
    assert (time.thread_time() - start) / 25_000 < 20e-6
