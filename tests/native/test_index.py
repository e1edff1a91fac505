import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from kvstore._native import Index

NOW = 1_700_000_000_000


def key_of(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "little")).digest()


ROOT = bytes(32)


def add(index: Index, number: int, scope: int = 1, tiers: tuple[int, ...] = (1,), group: int = 0) -> int:
    """A chunk with one part and a placement in each tier."""
    chunk = index.insert_chunk(scope, key_of(number), ROOT, 256 * number, 256, NOW)
    part = index.add_part(chunk, group, 0, 0, 32, 0, 1 << 20)
    for tier in tiers:
        index.add_placement(part, tier, 0, 0, True, number << 20, 1 << 20)
    return chunk


def rows_of(*rows: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64)


def test_an_empty_index() -> None:
    index = Index(10, 1)
    assert index.counts() == (0, 0, 0)
    assert index.find(1, key_of(1)) == -1
    rows, following = index.chunks(0, 10)
    assert rows.tolist() == []
    assert following == -1


def test_fields_come_back() -> None:
    index = Index(10, 1)
    chunk = index.insert_chunk(7, key_of(1), key_of(0), 512, 200, NOW)
    part = index.add_part(chunk, 1, 2, 3, 4, 5, 2**40)
    placement = index.add_placement(part, 9, 11, 12, False, 2**63, 2**41)
    index.set_flags(chunk, 6)
    c, p, q = index.chunk(chunk), index.part(part), index.placement(placement)
    assert (c.key, c.parent, c.scope, c.position, c.tokens) == (key_of(1), key_of(0), 7, 512, 200)
    assert (index.chunk_parts(chunk), index.part_placements(part)) == ([part], [placement])
    assert (c.leases, c.hits, c.pin_until, c.last_use, c.flags) == (0, 0, 0, NOW, 6)
    assert (p.chunk, p.group, p.rank, p.layer_start, p.layer_end) == (chunk, 1, 2, 3, 4)
    assert (p.first_valid, p.logical) == (5, 2**40)
    assert (q.part, q.tier, q.exact, q.codec, q.level) == (part, 9, False, 11, 12)
    assert (q.loc, q.stored, q.readers) == (2**63, 2**41, 0)


def test_what_has_no_place_in_a_row_is_refused() -> None:
    index = Index(10, 1)
    chunk = index.insert_chunk(7, key_of(1), key_of(0), 512, 200, NOW)
    part = index.add_part(chunk, 0, 0, 0, 4, 0, 100)
    with pytest.raises(ValueError, match="bytes"):
        index.add_placement(part, 9, 11, 12, True, 0, 2**48)
    assert index.counts() == (1, 1, 0)
    placement = index.add_placement(part, 9, 0xFFFF, 0xFFFF, True, 2**64 - 1, 2**48 - 1)
    with pytest.raises(ValueError, match="bytes"):
        index.set_loc(placement, 0, 2**48)
    with pytest.raises(ValueError, match="flags"):
        index.set_flags(chunk, 128)
    index.set_flags(chunk, 127)
    q = index.placement(placement)
    assert (q.codec, q.level, q.loc, q.stored) == (0xFFFF, 0xFFFF, 2**64 - 1, 2**48 - 1)
    assert (index.chunk(chunk).flags, index.chunk(chunk).hits) == (127, 0)


def test_a_row_that_is_used_again_has_nothing_of_the_chunk_before() -> None:
    index = Index(1, 1)
    first = index.insert_chunk(7, key_of(1), key_of(5), 512, 200, NOW)
    index.pin(first, NOW + 1000)
    index.touch(rows_of(first), NOW + 1)
    assert index.prune(first)
    second = index.insert_chunk(7, key_of(2), bytes(32), 0, 200, NOW)
    c = index.chunk(second)
    assert second == first
    assert (c.key, c.parent, c.pin_until, c.hits, c.flags) == (key_of(2), bytes(32), 0, 0, 0)


def test_snapshots_do_not_change() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    before = index.chunk(chunk)
    index.lease(rows_of(chunk))
    assert (before.leases, index.chunk(chunk).leases) == (0, 1)


def test_insert_finds_what_is_known() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    assert index.insert_chunk(1, key_of(1), ROOT, 256, 256, NOW + 5) == chunk
    assert index.chunk(chunk).last_use == NOW
    with pytest.raises(ValueError, match="256 tokens at position 256, not 255 at 256"):
        index.insert_chunk(1, key_of(1), ROOT, 256, 255, NOW)
    with pytest.raises(ValueError, match="not 256 at 0"):
        index.insert_chunk(1, key_of(1), ROOT, 0, 256, NOW)
    assert index.counts() == (1, 1, 1)


def test_scopes_are_apart() -> None:
    index = Index(10, 1)
    first, second = add(index, 1, scope=1), add(index, 1, scope=2)
    assert first != second
    assert index.find(1, key_of(1)) == first
    assert index.find(2, key_of(1)) == second
    assert index.find(3, key_of(1)) == -1
    assert index.remove_placement(index.find_placement(index.find_part(first, 0, 0, 0, 32), 1)) == 3
    assert index.find(1, key_of(1)) == -1
    assert index.find(2, key_of(1)) == second


def test_parts_are_found_by_all_that_names_them() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    names = [(0, 1, 0, 32), (1, 0, 0, 32), (0, 0, 1, 32), (0, 0, 0, 31)]
    assert all(index.find_part(chunk, *name) == -1 for name in names)
    parts = [index.add_part(chunk, *name, 0, 1) for name in names]
    assert len({*parts, index.find_part(chunk, 0, 0, 0, 32)}) == 5
    assert [index.find_part(chunk, *name) for name in names] == parts
    assert sorted(index.chunk_parts(chunk)) == sorted([*parts, index.find_part(chunk, 0, 0, 0, 32)])


def test_a_known_part_is_left_as_it_is() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    part = index.add_part(chunk, 5, 0, 0, 1, 100, 1000)
    assert index.add_part(chunk, 5, 0, 0, 1, 50, 2000) == part
    assert (index.part(part).first_valid, index.part(part).logical) == (100, 1000)


def test_one_placement_a_tier() -> None:
    index = Index(10, 1)
    chunk = add(index, 1, tiers=(1, 2))
    part = index.chunk_parts(chunk)[0]
    with pytest.raises(ValueError, match="in tier 2"):
        index.add_placement(part, 2, 0, 0, True, 0, 0)
    assert index.find_placement(part, 3) == -1
    assert set(index.part_placements(part)) == {index.find_placement(part, 1), index.find_placement(part, 2)}


def test_best_placement() -> None:
    index = Index(10, 1)
    chunk = index.insert_chunk(1, key_of(1), ROOT, 0, 256, NOW)
    part = index.add_part(chunk, 0, 0, 0, 32, 0, 1)
    lossy = index.add_placement(part, 1, 3, 1, False, 0, 0)
    exact = index.add_placement(part, 4, 0, 0, True, 0, 0)
    assert index.best_placement(part, False, bytes([0, 1, 4])) == lossy
    assert index.best_placement(part, True, bytes([0, 1, 4])) == exact
    assert index.best_placement(part, False, bytes([4, 1])) == exact
    assert index.best_placement(part, True, bytes([0, 1])) == -1
    assert index.best_placement(part, False, b"") == -1


def test_the_last_placement_takes_part_and_chunk_along() -> None:
    index = Index(10, 1)
    chunk = add(index, 1, tiers=(1, 2))
    add(index, 1, tiers=(1,), group=1)
    first, second = (index.find_part(chunk, group, 0, 0, 32) for group in (0, 1))
    assert index.remove_placement(index.find_placement(first, 1)) == 0
    assert index.remove_placement(index.find_placement(first, 2)) == 1
    assert index.chunk_parts(chunk) == [second]
    assert index.remove_placement(index.find_placement(second, 1)) == 3
    assert index.counts() == (0, 0, 0)
    assert index.find(1, key_of(1)) == -1


def test_a_leased_chunk_outlives_its_placements() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    index.lease(rows_of(chunk, chunk))
    assert index.remove_placement(index.find_placement(index.chunk_parts(chunk)[0], 1)) == 1
    assert index.find(1, key_of(1)) == chunk
    assert index.unlease(rows_of(chunk)) == []
    assert index.unlease(rows_of(chunk)) == [chunk]
    assert index.find(1, key_of(1)) == -1
    assert index.counts() == (0, 0, 0)


def test_an_empty_leased_chunk_may_be_filled_again() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    index.lease(rows_of(chunk))
    index.remove_placement(index.find_placement(index.chunk_parts(chunk)[0], 1))
    assert add(index, 1) == chunk
    assert index.unlease(rows_of(chunk)) == []
    assert index.counts() == (1, 1, 1)


def test_leases_do_not_underflow() -> None:
    index = Index(10, 1)
    first, second = add(index, 1), add(index, 2)
    index.lease(np.array([first, second], np.uint32))
    with pytest.raises(ValueError, match=f"chunk {second} has no lease"):
        index.unlease(rows_of(first, second, second))
    assert [index.chunk(row).leases for row in (first, second)] == [1, 1]
    with pytest.raises(IndexError, match="no chunk -1"):
        index.lease(rows_of(first, -1))
    assert index.chunk(first).leases == 1


def test_unlease_of_both_leases_at_once() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    index.lease(rows_of(chunk, chunk))
    index.remove_placement(index.find_placement(index.chunk_parts(chunk)[0], 1))
    assert index.unlease(rows_of(chunk, chunk)) == [chunk]


def test_readers() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    placement = index.part_placements(index.chunk_parts(chunk)[0])[0]
    index.add_reader(placement)
    assert index.placement(placement).readers == 1
    with pytest.raises(ValueError, match="has 1 readers"):
        index.remove_placement(placement)
    index.drop_reader(placement)
    with pytest.raises(ValueError, match="has no readers"):
        index.drop_reader(placement)
    assert index.remove_placement(placement) == 3


def test_what_may_be_evicted() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    placement = index.part_placements(index.chunk_parts(chunk)[0])[0]
    assert index.chunk_evictable(chunk, NOW)
    index.lease(rows_of(chunk))
    assert not index.chunk_evictable(chunk, NOW)
    index.unlease(rows_of(chunk))
    index.pin(chunk, NOW + 10)
    assert not index.chunk_evictable(chunk, NOW + 9)
    assert index.chunk_evictable(chunk, NOW + 10)
    index.pin(chunk, 0)
    index.add_reader(placement)
    assert not index.chunk_evictable(chunk, NOW)
    index.drop_reader(placement)
    assert index.chunk_evictable(chunk, NOW)


def test_touch_and_set_loc() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    index.touch(rows_of(chunk, chunk), NOW + 3)
    assert (index.chunk(chunk).last_use, index.chunk(chunk).hits) == (NOW + 3, 2)
    placement = index.part_placements(index.chunk_parts(chunk)[0])[0]
    index.set_loc(placement, 77, 88)
    assert (index.placement(placement).loc, index.placement(placement).stored) == (77, 88)


def test_prune() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    index.add_part(chunk, 1, 0, 0, 32, 0, 1)
    assert index.prune(chunk) is False
    assert index.counts() == (1, 1, 1)
    empty = index.insert_chunk(1, key_of(2), ROOT, 0, 1, NOW)
    index.add_part(empty, 0, 0, 0, 32, 0, 1)
    assert index.prune(empty) is True
    assert index.counts() == (1, 1, 1)


def test_full_tables() -> None:
    index = Index(2, 1, max_parts=3, max_placements=3)
    first, second = add(index, 1), add(index, 2)
    with pytest.raises(OverflowError, match="index is full"):
        index.insert_chunk(1, key_of(3), ROOT, 0, 1, NOW)
    part = index.add_part(first, 1, 0, 0, 1, 0, 1)
    with pytest.raises(OverflowError, match="index is full"):
        index.add_part(second, 1, 0, 0, 1, 0, 1)
    index.add_placement(part, 1, 0, 0, True, 0, 0)
    with pytest.raises(OverflowError, match="index is full"):
        index.add_placement(part, 2, 0, 0, True, 0, 0)
    assert index.counts() == (2, 3, 3)
    index.remove_placement(index.find_placement(index.find_part(second, 0, 0, 0, 32), 1))
    assert add(index, 3) == second


def test_rows_that_are_not_there() -> None:
    index = Index(10, 1)
    chunk = add(index, 1)
    part = index.chunk_parts(chunk)[0]
    index.remove_placement(index.find_placement(part, 1))
    for row in (chunk, -1, 9, 10, 2**32, 2**40, -(2**63)):
        for call in (index.chunk, index.part, index.placement, index.remove_placement, index.prune):
            with pytest.raises(IndexError, match=f"{row}$"):
                call(row)
        for call_rows in (index.lease, index.unlease):
            with pytest.raises(IndexError):
                call_rows(rows_of(row))
        with pytest.raises(IndexError):
            index.touch(rows_of(row), NOW)
        with pytest.raises(IndexError):
            index.add_part(row, 0, 0, 0, 1, 0, 1)
        with pytest.raises(IndexError):
            index.add_placement(row, 0, 0, 0, True, 0, 0)
        with pytest.raises(IndexError):
            index.best_placement(row, False, b"\0")
        with pytest.raises(IndexError):
            index.chunk_evictable(row, NOW)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_have_32_bytes(length: int) -> None:
    index = Index(10, 1)
    with pytest.raises(ValueError, match=f"key must have 32 bytes, not {length}"):
        index.find(1, bytes(length))
    with pytest.raises(ValueError, match="parent must have 32 bytes"):
        index.insert_chunk(1, key_of(1), bytes(length), 0, 1, NOW)


def test_sizes_of_tables() -> None:
    for arguments in ((0, 1), (2**32 - 1, 1), (1, 1, 2**32 - 1)):
        with pytest.raises(ValueError, match="must have 1 to"):
            Index(*arguments)


def test_listing_goes_on_where_it_ended() -> None:
    index = Index(100, 1)
    chunks = [add(index, number) for number in range(10)]
    for chunk in chunks[2:5]:
        index.remove_placement(index.find_placement(index.chunk_parts(chunk)[0], 1))
    listed: list[int] = []
    start = 0
    while start != -1:
        rows, start = index.chunks(start, 3)
        assert rows.dtype == np.uint32
        listed += rows.tolist()
    assert listed == chunks[:2] + chunks[5:]
    with pytest.raises(IndexError):
        index.chunks(-1, 3)


def insert(
    index: Index, number: int = 1, tokens: int = 256, first_valid: int = 0, tier: int = 1
) -> tuple[int, int, int]:
    """One placement, in one call."""
    fields = (0, 0, 0, 32, first_valid, 1 << 20, tier, 5, 6, False, number << 20, 77)
    return index.insert(1, key_of(number), ROOT, 256 * number, tokens, NOW, *fields)


def test_insert_adds_what_is_new() -> None:
    index = Index(10, 1)
    chunk, first_valid, placement = insert(index, first_valid=9)
    part = index.find_part(chunk, 0, 0, 0, 32)
    row = index.placement(placement)
    assert (index.find(1, key_of(1)), index.find_placement(part, 1), first_valid) == (chunk, placement, 9)
    assert (row.tier, row.codec, row.level, row.exact, row.loc, row.stored) == (1, 5, 6, False, 1 << 20, 77)
    assert (index.part(part).logical, index.part(part).first_valid, index.chunk(chunk).last_use) == (1 << 20, 9, NOW)
    assert insert(index, first_valid=9) == (chunk, 9, -1), "it has one in that tier"
    assert insert(index, first_valid=3, tier=2) == (chunk, 9, -1), "the part is another"
    assert insert(index, first_valid=9, tier=2)[2] >= 0
    with pytest.raises(ValueError, match="256 tokens at position 256, not 255 at 256"):
        insert(index, tokens=255, tier=3)
    assert index.counts() == (1, 1, 2)


@pytest.mark.parametrize("maxima", [(1, 9, 9), (9, 1, 9), (9, 9, 1)])
def test_insert_into_a_full_index_leaves_nothing(maxima: tuple[int, int, int]) -> None:
    index = Index(maxima[0], 1, maxima[1], maxima[2])
    insert(index)
    with pytest.raises(OverflowError, match="index is full"):
        insert(index, 2)
    assert index.counts() == (1, 1, 1)
    assert index.find(1, key_of(2)) == -1
