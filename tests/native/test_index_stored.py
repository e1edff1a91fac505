"""What is read to have a chunk: bytes, the tier that has the last of them, the form there."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore._native import Index
from tests.native.test_index_batch import NOW, parts_of

PARTS = parts_of((0, 0, 0, 32), (1, 0, 0, 32))
HEADERS = np.array([4096, 4096], np.uint32)
NONE = np.empty(0, np.uint32)
ORDER = bytes([0, 2, 1])  # tier 2 is faster than 1


def add(index: Index, chunk: int, group: int, tier: int, stored: int, form: int = 0, *, exact: bool = True) -> int:
    """One placement of a part of chunk number `chunk`, of 16 tokens; its row."""
    key = bytes([chunk]) * 32
    _, _, placement = index.insert(
        3, key, bytes(32), 16 * chunk, 16, NOW, group, 0, 0, 32, 0, 1000, tier, form, 0, exact, 1 << 20, stored
    )
    return int(placement)


def told(index: Index, chunks: list[int], *, needed: tuple[int, int] = (0, 0), exact: bool = True, skip: object = NONE):
    rows = np.array([index.find(3, bytes([chunk]) * 32) for chunk in chunks], np.int64)
    columns = index.stored(rows, PARTS, HEADERS, np.array(needed, np.uint32), exact, ORDER, skip)
    assert [column.dtype.str for column in columns] == ["<u4", "<u8", "|u1", "<u2"]
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.fixture
def index() -> Index:
    made = Index(64, 5)
    add(made, 1, 0, 0, 100)
    add(made, 1, 0, 1, 70, 4)
    add(made, 1, 1, 2, 50, 4)
    add(made, 2, 0, 1, 90, 7)
    add(made, 2, 1, 0, 60)
    return made


def test_of_each_part_the_copy_in_the_fastest_tier_counts(index):
    assert told(index, [1, 2]) == [(16, 150, 2, 4), (16, 150, 1, 7)]
    assert told(index, []) == []


def test_parts_before_what_a_window_needs_are_not_read(index):
    """Chunk 1 ends at token 32, chunk 2 at 48."""
    assert told(index, [1, 2], needed=(0, 32)) == [(16, 100, 0, 0), (16, 150, 1, 7)]
    assert told(index, [1, 2], needed=(48, 48)) == [(16, 0, 0, 0), (16, 0, 0, 0)]
    assert told(index, [1], needed=(0, 31)) == [(16, 150, 2, 4)]


def test_lossy_and_bad_copies_are_passed_over(index):
    add(index, 3, 0, 0, 30, 9, exact=False)
    slow = add(index, 3, 0, 1, 80)
    add(index, 3, 1, 0, 40)
    assert told(index, [3], exact=False) == [(16, 70, 0, 9)]  # one part of it has to be decoded
    assert told(index, [3]) == [(16, 120, 1, 0)]
    assert told(index, [3], skip=np.array([slow], np.uint32)) == [(16, 40, 0, 0)]


def test_what_does_not_fit_is_refused(index):
    with pytest.raises(ValueError, match="needed_from"):
        index.stored(np.zeros(1, np.int64), PARTS, HEADERS, np.zeros(1, np.uint32), True, ORDER, NONE)
    with pytest.raises(IndexError):
        index.stored(np.array([-1]), PARTS, HEADERS, np.zeros(2, np.uint32), True, ORDER, NONE)
