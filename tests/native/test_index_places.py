"""Many items at once: which placement, where it lies, and who is reading it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kvstore._native import Index
from kvstore.places import NOWHERE, PLACE_DTYPE
from kvstore.rows import PART_DTYPE
from tests.native.test_index_batch import NOW, as_bytes, parts_of, records, refs_of

PARTS = parts_of((0, 0, 0, 32), (1, 0, 0, 32), (2, 0, 0, 32))
HEADERS = np.array([4096, 8192, 12288], np.uint32)
NONE = np.empty(0, np.uint32)


def stored(count: int = 200) -> tuple[Index, NDArray[np.void]]:
    """An index with a fast tier 0 that has the first half and a slow tier 1 that has three quarters."""
    array, index = records(count), Index(count, 5)
    array["loc"] &= (1 << 50) - 1
    index.bulk_insert(as_bytes(array[: count // 2]), 0)
    slow = array[: 3 * count // 4].copy()
    slow["exact"] = 1
    index.bulk_insert(as_bytes(slow), 1)
    return index, array


def items_of(array: NDArray[np.void]) -> bytes:
    parts = np.zeros(len(array), PART_DTYPE)
    parts["group"], parts["layer_end"] = array["group"], 32
    return b"".join(ref.tobytes() + part.tobytes() for ref, part in zip(refs_of(array), parts, strict=True))


def test_items_are_found_in_the_best_tier() -> None:
    index, array = stored()
    number = np.arange(200)
    for exact_only in (False, True):
        chunks, placements, packed, in_first = index.find_items(
            3, items_of(array), PARTS, HEADERS, exact_only, bytes([0, 1]), NONE
        )
        there, fast = number < 150, (number < 100) & ((array["exact"] == 1) | (not exact_only))
        places = np.frombuffer(packed, PLACE_DTYPE)
        assert [a.dtype.str for a in (chunks, placements)] == ["<i8", "<i8"]
        assert ((chunks >= 0) == there).all()
        assert chunks.tolist() == [index.find(3, each["key"].tobytes()) for each in array]
        tiers = [index.placement(int(row)).tier if row >= 0 else -1 for row in placements]
        assert tiers == np.where(fast, 0, np.where(there, 1, -1)).tolist()
        assert in_first == fast.sum()
        assert (places["location"] == np.where(fast, array["loc"] + HEADERS[array["group"]], NOWHERE)).all()
        for field, column in (("stored", "stored"), ("form", "codec"), ("tokens_from", "first_valid")):
            assert (places[field] == np.where(fast, array[column], 0)).all()


def test_items_of_other_chunks_parts_and_scopes_are_not_there() -> None:
    index, array = stored(8)
    for column, value in (("position", 7), ("tokens", 255), ("group", 9)):
        other = array[:1].copy()
        other[column] = value
        chunks, placements, packed, in_first = index.find_items(3, items_of(other), PARTS, HEADERS, False, b"\0", NONE)
        assert (chunks.tolist(), placements.tolist(), in_first) == ([-1], [-1], 0)
        assert np.frombuffer(packed, PLACE_DTYPE)["location"] == [NOWHERE]
    assert index.find_items(4, items_of(array[:1]), PARTS, HEADERS, False, b"\0", NONE)[3] == 0
    assert index.find_items(3, items_of(array[:1]), PARTS[1:], HEADERS[1:], False, b"\0", NONE)[3] == 0
    assert index.find_items(3, items_of(array[:1]), PARTS, HEADERS, False, b"", NONE)[3] == 0
    chunks, placements, packed, in_first = index.find_items(3, b"", PARTS, HEADERS, False, b"\0", NONE)
    assert (chunks.shape, placements.shape, packed, in_first) == ((0,), (0,), b"", 0)


def test_what_is_to_be_skipped_is_passed_over() -> None:
    index, array = stored(8)
    items = items_of(array)
    _, before, _, _ = index.find_items(3, items, PARTS, HEADERS, False, bytes([0, 1]), NONE)
    skip = before[[1, 3]]
    _, after, packed, in_first = index.find_items(3, items, PARTS, HEADERS, False, bytes([0, 1]), skip)
    assert (before != after).nonzero()[0].tolist() == [1, 3]
    assert [index.placement(int(row)).tier for row in after[[1, 3]]] == [1, 1]
    assert (np.frombuffer(packed, PLACE_DTYPE)["location"] == NOWHERE).nonzero()[0].tolist() == [1, 3, 4, 5, 6, 7]
    assert in_first == 2
    skip = np.concatenate([skip, after[[1, 3]]]).astype(np.uint32)
    _, last, _, _ = index.find_items(3, items, PARTS, HEADERS, False, bytes([0, 1]), skip)
    assert (last < 0).nonzero()[0].tolist() == [1, 3, 6, 7]


def test_places_of_chunks() -> None:
    index, array = stored(8)
    chunks = index.find_many(3, array["key"][:6].copy())
    for exact_only in (False, True):
        packed = index.places(chunks, PARTS, HEADERS, exact_only, 0, NONE)
        places = np.frombuffer(packed, PLACE_DTYPE).reshape(6, 3)
        for i in range(6):
            for j in range(3):
                there = i < 4 and array["group"][i] == j and (array["exact"][i] or not exact_only)
                expected = array["loc"][i] + HEADERS[j] if there else NOWHERE
                assert places["location"][i, j] == expected
    row = index.find_placement(index.find_part(int(chunks[1]), 1, 0, 0, 32), 0)
    packed = index.places(chunks, PARTS, HEADERS, False, 0, np.array([row]))
    assert (np.frombuffer(packed, PLACE_DTYPE)["location"] != NOWHERE).sum() == 3
    assert index.places(NONE, PARTS, HEADERS, False, 0, NONE) == b""
    with pytest.raises(IndexError, match="no chunk -1"):
        index.places(np.array([-1]), PARTS, HEADERS, False, 0, NONE)


def test_sizes_of_packed_items() -> None:
    index, _ = stored(8)
    with pytest.raises(ValueError, match="items has 47 bytes"):
        index.find_items(3, bytes(47), PARTS, HEADERS, False, b"\0", NONE)
    with pytest.raises(ValueError, match="3 parts have 2 header lengths"):
        index.find_items(3, bytes(48), PARTS, HEADERS[:2], False, b"\0", NONE)
    with pytest.raises(ValueError, match="headers has 5 bytes"):
        index.places(NONE, PARTS, bytes(5), False, 0, NONE)
    with pytest.raises(TypeError, match="skip"):
        index.places(NONE, PARTS, HEADERS, False, 0, np.zeros(1, np.uint8))


def test_items_need_not_be_aligned() -> None:
    index, array = stored(8)
    packed = memoryview(b"x" + items_of(array))[1:]
    assert index.find_items(3, packed, PARTS, HEADERS, False, b"\0", NONE)[3] == 4


def test_readers_of_many_placements() -> None:
    index, array = stored(8)
    _, rows, _, _ = index.find_items(3, items_of(array[:4]), PARTS, HEADERS, False, b"\0", NONE)
    index.add_readers(rows)
    index.add_readers(rows[[0, 0]])
    assert [index.placement(int(row)).readers for row in rows] == [3, 1, 1, 1]
    with pytest.raises(ValueError, match="readers"):
        index.drop_readers(rows[[0, 1, 1]])
    assert [index.placement(int(row)).readers for row in rows] == [3, 1, 1, 1], "nothing changed"
    with pytest.raises(IndexError):
        index.add_readers(np.array([int(rows[0]), -1]))
    index.drop_readers(rows[[0, 0, 0]])
    index.drop_readers(rows[1:])
    assert [index.placement(int(row)).readers for row in rows] == [0] * 4
    with pytest.raises(ValueError, match="no readers"):
        index.drop_readers(rows[:1])


def test_use_is_told_of_chunks_without_a_lease() -> None:
    index, array = stored(8)
    rows = index.find_many(3, array["key"][:4].copy())
    index.lease(rows[[1, 2]])
    touched = index.touch_unleased(rows[[3, 2, 1, 0, 3]], NOW + 77)
    assert touched.dtype == np.uint32
    assert touched.tolist() == rows[[3, 0, 3]].tolist()
    assert [index.chunk(int(row)).hits for row in rows] == [1, 0, 0, 2]
    assert [index.chunk(int(row)).last_use == NOW + 77 for row in rows] == [True, False, False, True]
    with pytest.raises(IndexError):
        index.touch_unleased(np.array([-1]), NOW)
