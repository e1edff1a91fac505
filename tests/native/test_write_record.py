"""A record written in one pass is the record that is written in two."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore import _native

FIXED = bytes(range(256))
HEADER = 4096


def ranges(nbytes: int, count: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    each = nbytes // count
    return np.arange(count, dtype=np.uint64) * np.uint64(each), np.full(count, each, np.uint64)


@pytest.mark.parametrize(("nbytes", "count"), [(64, 1), (5000, 2), (200_000, 4), (1 << 20, 16), (300_001, 1)])
@pytest.mark.parametrize("shift", [0, 1])
def test_it_is_a_copy_and_a_header(level: str, nbytes: int, count: int, shift: int) -> None:
    del level
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    offsets, lengths = ranges(nbytes, count)
    total = HEADER + -(-nbytes // 4096) * 4096
    memory = np.full(total + 64, 0xEE, np.uint8)
    record = memory[shift : shift + total]
    _native.write_record(record, HEADER, FIXED, data, offsets, lengths)
    expected = np.zeros(total, np.uint8)
    expected[HEADER : HEADER + nbytes] = data
    digests = _native.xxh3_128_many(data, offsets, lengths)
    _native.write_header(expected[:HEADER], FIXED, offsets, lengths, digests)
    assert np.array_equal(record, expected)
    assert (memory[:shift] == 0xEE).all()
    assert (memory[shift + total :] == 0xEE).all()


def test_what_does_not_fit_is_refused_and_writes_nothing() -> None:
    data = np.ones(8192, np.uint8)
    offsets, lengths = ranges(8192, 2)
    record = np.zeros(HEADER + 8192, np.uint8)
    for header, fixed, wrong in (
        (HEADER + 1, FIXED, (offsets, lengths)),
        (len(record) + 1, FIXED, (offsets, lengths)),
        (256, FIXED, (offsets, lengths)),
        (HEADER, b"short", (offsets, lengths)),
        (HEADER, FIXED, (offsets, lengths + np.uint64(1))),
        (HEADER, FIXED, (offsets, lengths[:1])),
        (HEADER, FIXED, (offsets[::-1].copy(), lengths)),
    ):
        with pytest.raises(ValueError, match=r"fit|range|items"):
            _native.write_record(record, header, fixed, data, *wrong)
        assert not record.any()
    with pytest.raises(ValueError, match="overlap"):
        _native.write_record(record, HEADER, FIXED, record[:8192], offsets, lengths)
    with pytest.raises(ValueError, match="writable"):
        _native.write_record(bytes(len(record)), HEADER, FIXED, data, offsets, lengths)
