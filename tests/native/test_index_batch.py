import time

import numpy as np
import pytest
from numpy.typing import NDArray

from kvstore._native import Index
from kvstore.rows import EXPORT_DTYPE, NO_ROW, PART_DTYPE, REF_DTYPE

NOW = 1_700_000_000_000
PART = np.zeros(1, PART_DTYPE)


def records(count: int, seed: int = 0) -> NDArray[np.void]:
    """Chunks of 256 tokens with one part each, all of whose fields differ."""
    rng = np.random.default_rng(seed)
    array = np.zeros(count, EXPORT_DTYPE)
    array["key"] = rng.integers(0, 256, (count, 32))
    array["parent"] = rng.integers(0, 256, (count, 32))
    array["scope"] = 3
    array["position"] = np.arange(count) * 256
    array["tokens"] = 256
    array["layer_end"] = 32
    array["group"] = np.arange(count) % 3
    array["first_valid"] = np.arange(count) % 256
    array["codec"] = np.arange(count) % 7
    array["level"] = np.arange(count) % 5
    array["exact"] = np.arange(count) % 2
    array["tier"] = 1
    array["logical"] = rng.integers(0, 2**63, count)
    array["loc"] = rng.integers(0, 2**63, count)
    array["stored"] = rng.integers(0, 2**48, count)
    array["last_use"] = NOW + np.arange(count)
    array["pin_until"] = np.where(np.arange(count) % 4 == 0, NOW, 0)
    return array


def as_bytes(array: NDArray[np.void]) -> NDArray[np.uint8]:
    return array.view(np.uint8).reshape(-1)


def refs_of(array: NDArray[np.void]) -> NDArray[np.void]:
    refs = np.zeros(len(array), REF_DTYPE)
    for name in ("key", "position", "tokens"):
        refs[name] = array[name]
    return refs


def parts_of(*parts: tuple[int, int, int, int]) -> NDArray[np.void]:
    return np.array(list(parts), PART_DTYPE)


def test_export_gives_what_bulk_insert_took() -> None:
    array = records(1000)
    index = Index(1000, 5)
    rows = index.bulk_insert(as_bytes(array), 1)
    assert rows.dtype == np.uint32
    assert len(set(rows.tolist())) == 1000
    assert index.counts() == (1000, 1000, 1000)
    again = index.export(1).view(EXPORT_DTYPE)
    assert np.array_equal(np.sort(again, order="position"), array)
    assert index.export(2).size == 0


def test_bulk_insert_passes_over_what_cannot_be() -> None:
    array = records(3)
    array["stored"][1] = 2**48
    index = Index(10, 5)
    rows = index.bulk_insert(as_bytes(array), 1)
    assert (rows == NO_ROW).tolist() == [False, True, False]
    assert index.counts() == (2, 2, 2)


def test_bulk_insert_is_the_same_as_single_calls() -> None:
    array = records(50)
    index = Index(50, 5)
    rows = index.bulk_insert(as_bytes(array), 4)
    for record, row in zip(array, rows.tolist(), strict=True):
        placement = index.placement(row)
        part = index.part(placement.part)
        chunk = index.chunk(part.chunk)
        assert index.find(3, record["key"].tobytes()) == part.chunk
        assert chunk.parent == record["parent"].tobytes()
        assert (chunk.scope, chunk.position, chunk.tokens) == (3, record["position"], 256)
        assert (chunk.last_use, chunk.pin_until) == (record["last_use"], record["pin_until"])
        assert (part.group, part.rank, part.layer_start, part.layer_end) == (record["group"], 0, 0, 32)
        assert (part.first_valid, part.logical) == (record["first_valid"], record["logical"])
        assert (placement.tier, placement.exact) == (4, bool(record["exact"]))
        assert (placement.codec, placement.level) == (record["codec"], record["level"])
        assert (placement.loc, placement.stored) == (record["loc"], record["stored"])


def test_bulk_insert_skips_what_is_there_or_does_not_fit() -> None:
    array = records(10)
    index = Index(20, 5)
    index.bulk_insert(as_bytes(array[:5]), 1)
    assert (index.bulk_insert(as_bytes(array), 1) == NO_ROW).tolist() == [True] * 5 + [False] * 5
    array["tokens"][3] = 12
    assert (index.bulk_insert(as_bytes(array), 2) == NO_ROW).nonzero()[0].tolist() == [3]
    assert index.counts() == (10, 10, 19)


@pytest.mark.parametrize("maxima", [(50, 200, 200), (200, 50, 200), (200, 200, 50)])
def test_bulk_insert_is_all_or_nothing(maxima: tuple[int, int, int]) -> None:
    index = Index(maxima[0], 5, maxima[1], maxima[2])
    index.bulk_insert(as_bytes(records(10)), 1)
    before = np.sort(index.export(1).view(EXPORT_DTYPE), order="position")
    with pytest.raises(OverflowError, match="index is full"):
        index.bulk_insert(as_bytes(records(100, seed=1)), 1)
    assert index.counts() == (10, 10, 10)
    assert np.array_equal(np.sort(index.export(1).view(EXPORT_DTYPE), order="position"), before)
    assert (index.bulk_insert(as_bytes(records(40, seed=2)), 1) != NO_ROW).all()


def test_find_many() -> None:
    array = records(300)
    index = Index(300, 5)
    index.bulk_insert(as_bytes(array[:200]), 1)
    keys = array["key"][::-1].copy()
    rows = index.find_many(3, keys)
    assert rows.dtype == np.int64
    assert rows.tolist() == [index.find(3, key.tobytes()) for key in keys]
    assert (rows[:100] == -1).all()
    assert (rows[100:] >= 0).all()
    assert (index.find_many(4, keys) == -1).all()
    assert index.find_many(3, b"").shape == (0,)
    with pytest.raises(ValueError, match="keys has 33 bytes"):
        index.find_many(3, bytes(33))


def test_lookup_tells_parts_and_fidelity() -> None:
    array = records(130)
    index = Index(200, 5)
    index.bulk_insert(as_bytes(array[:100]), 1)
    parts = parts_of((0, 0, 0, 32), (1, 0, 0, 32), (2, 0, 0, 32), (0, 1, 0, 32))
    number = np.arange(130)
    for exact_only in (False, True):
        rows, present, first_valid = index.lookup(3, refs_of(array), parts, exact_only, 0)
        assert [a.dtype.str for a in (rows, present, first_valid)] == ["<i8", "|u1", "<u4"]
        assert (present.shape, first_valid.shape) == ((4, 130), (4, 130))
        assert (rows >= 0).tolist() == (number < 100).tolist()
        for j in range(4):
            known = (number < 100) & (number % 3 == j)
            acceptable = known & ((number % 2 == 1) | (not exact_only))
            assert present[j].tolist() == acceptable.tolist()
            assert first_valid[j].tolist() == np.where(known, number % 256, 0).tolist()


def test_lookup_of_another_position_or_length_misses() -> None:
    array = records(3)
    index = Index(10, 5)
    index.bulk_insert(as_bytes(array), 1)
    refs = refs_of(array)
    refs["position"][0] += 1
    refs["tokens"][1] -= 1
    rows, present, _ = index.lookup(3, refs, parts_of((2, 0, 0, 32)), False, 0)
    assert (rows >= 0).tolist() == [False, False, True]
    assert present.tolist() == [[0, 0, 1]]
    assert (index.lookup(2, refs, PART, False, 0)[0] == -1).all()


def test_lookup_marks_use() -> None:
    array = records(2)
    index = Index(10, 5)
    index.bulk_insert(as_bytes(array), 1)
    rows, _, _ = index.lookup(3, refs_of(array[:1]), PART, False, 0)
    assert index.chunk(int(rows[0])).last_use == NOW
    index.lookup(3, refs_of(array[:1]), PART, False, NOW + 99)
    assert (index.chunk(int(rows[0])).last_use, index.chunk(int(rows[0])).hits) == (NOW + 99, 0)
    assert index.chunk(index.find(3, array["key"][1].tobytes())).last_use == NOW + 1


def test_lookup_takes_unaligned_records() -> None:
    array = records(3)
    index = Index(10, 5)
    index.bulk_insert(as_bytes(array), 1)
    packed = memoryview(b"x" + refs_of(array).tobytes())[1:]
    part = memoryview(b"x" + parts_of((0, 0, 0, 32)).tobytes())[1:]
    rows, present, _ = index.lookup(3, packed, part, False, 0)
    assert (rows >= 0).all()
    assert present.tolist() == [[1, 0, 0]]


def test_sizes_of_packed_records() -> None:
    index = Index(10, 5)
    with pytest.raises(ValueError, match="refs has 41 bytes"):
        index.lookup(3, bytes(41), b"", False, 0)
    with pytest.raises(ValueError, match="parts has 7 bytes"):
        index.lookup(3, bytes(40), bytes(7), False, 0)
    with pytest.raises(ValueError, match="records has 135 bytes"):
        index.bulk_insert(bytes(135), 1)
    rows, present, first_valid = index.lookup(3, b"", b"", False, 0)
    assert (rows.shape, present.shape, first_valid.shape) == ((0,), (0, 0), (0, 0))


def test_a_chunk_takes_at_most_300_bytes() -> None:
    index = Index(100_000, 5)
    array = records(100_000)
    index.bulk_insert(as_bytes(array), 1)
    index.bulk_insert(as_bytes(array), 2)
    assert index.counts() == (100_000, 100_000, 200_000)
    assert 200 < index.resident_bytes() / 100_000 <= 300


def test_rows_are_used_again() -> None:
    index = Index(100, 5)
    for seed in range(20):
        rows = index.bulk_insert(as_bytes(records(100, seed)), 1)
        assert all(index.remove_placement(row) == 3 for row in rows.tolist())
    assert index.counts() == (0, 0, 0)


def test_speed() -> None:
    """Bounds of ten times what is meant, of this thread's own time, so that only a change of kind fails."""
    array = records(100_000)
    array["group"] = 0
    array["exact"] = 1
    index = Index(100_000, 5)
    start = time.thread_time()
    index.bulk_insert(as_bytes(array), 1)
    assert time.thread_time() - start < 0.4
    refs = refs_of(array[5000:5100]).tobytes()
    part = parts_of((0, 0, 0, 32)).tobytes()
    times = []
    for _ in range(200):
        start = time.thread_time()
        rows, present, _ = index.lookup(3, refs, part, True, 0)
        times.append(time.thread_time() - start)
    assert (rows >= 0).all()
    assert present.all()
    assert sorted(times)[100] < 100e-6
