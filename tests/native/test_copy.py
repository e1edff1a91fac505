import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from kvstore import _native

pytestmark = pytest.mark.usefixtures("level")

SIZES = [0, 1, 63, 240, 241, 1024, 1025, 65_537, 262_143, 262_144, 262_145, 1_048_576, 3_000_001]
GUARD = 128


def source(length: int) -> NDArray[np.uint8]:
    return np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8)


def guarded(length: int, misalignment: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An array that begins `misalignment` bytes after a cache line, within one whose other bytes are 0xEE."""
    whole = np.full(length + 2 * GUARD + 64, 0xEE, np.uint8)
    start = GUARD + (-(whole.ctypes.data + GUARD)) % 64 + misalignment
    return whole[start : start + length], whole


def assert_guards(whole: NDArray[np.uint8], dst: NDArray[np.uint8]) -> None:
    start = dst.ctypes.data - whole.ctypes.data
    assert (whole[:start] == 0xEE).all()
    assert (whole[start + len(dst) :] == 0xEE).all()


@pytest.mark.parametrize("misalignment", [0, 1, 32, 63])
@pytest.mark.parametrize("length", SIZES)
def test_copy(length: int, misalignment: int) -> None:
    src = source(length)
    dst, whole = guarded(length, misalignment)
    _native.copy(dst, src)
    assert np.array_equal(dst, src)
    assert_guards(whole, dst)


@pytest.mark.parametrize("misalignment", [0, 1, 16, 32, 48, 63])
@pytest.mark.parametrize("length", SIZES)
def test_copy_hash(length: int, misalignment: int) -> None:
    src = source(length)
    dst, whole = guarded(length, misalignment)
    assert _native.copy_hash(dst, src) == xxhash.xxh3_128_digest(src.tobytes())
    assert np.array_equal(dst, src)
    assert_guards(whole, dst)


def test_unaligned_source() -> None:
    src = source(300_001)[1:]
    dst, _ = guarded(300_000, 0)
    assert _native.copy_hash(dst, src) == xxhash.xxh3_128_digest(src.tobytes())
    assert np.array_equal(dst, src)


@pytest.mark.parametrize("length", [5000, 1_000_000])
def test_copy_hash_many_hashes_ranges_and_copies_the_gaps(length: int) -> None:
    src = source(length)
    rng = np.random.default_rng(1)
    cuts = np.sort(rng.choice(length, 40, replace=False)).astype(np.uint64)
    offsets = cuts[0::2].copy()
    lengths = cuts[1::2] - cuts[0::2]
    dst, whole = guarded(length, 0)
    digests = _native.copy_hash_many(dst, src, offsets, lengths)
    assert np.array_equal(dst, src)
    assert_guards(whole, dst)
    for row, offset, size in zip(digests, offsets.tolist(), lengths.tolist(), strict=True):
        assert row.tobytes() == xxhash.xxh3_128_digest(src[offset : offset + size].tobytes())


def test_copy_hash_many_tiles() -> None:
    src = source(1 << 20)
    offsets = np.arange(0, 1 << 20, 1 << 15, dtype=np.uint64)
    lengths = np.full_like(offsets, 1 << 15)
    dst, _ = guarded(1 << 20, 0)
    digests = _native.copy_hash_many(dst, src, offsets, lengths)
    assert np.array_equal(dst, src)
    assert np.array_equal(digests, _native.xxh3_128_many(src, offsets, lengths))


def test_copy_hash_many_without_ranges_copies() -> None:
    src = source(1000)
    dst = np.zeros(1000, np.uint8)
    nothing = np.zeros(0, np.uint64)
    assert _native.copy_hash_many(dst, src, nothing, nothing).shape == (0, 16)
    assert np.array_equal(dst, src)


@pytest.mark.parametrize(
    ("offsets", "lengths"), [([50, 0], [10, 10]), ([0, 9], [10, 10]), ([95], [6]), ([2**63], [2**63])]
)
def test_copy_hash_many_refuses_before_it_copies(offsets: list[int], lengths: list[int]) -> None:
    dst = np.zeros(100, np.uint8)
    with pytest.raises(ValueError, match=r"begins at|outside"):
        _native.copy_hash_many(dst, source(100), np.array(offsets, np.uint64), np.array(lengths, np.uint64))
    assert not dst.any()


def test_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="dst has 9 bytes, src 10"):
        _native.copy(bytearray(9), bytes(10))
    with pytest.raises(ValueError, match="dst has 9 bytes, src 10"):
        _native.copy_hash(bytearray(9), bytes(10))


def test_refuses_a_destination_that_is_not_writable() -> None:
    with pytest.raises(ValueError, match="dst must be a writable"):
        _native.copy(bytes(10), bytes(10))
    with pytest.raises(TypeError, match="dst must be a buffer"):
        _native.copy_hash("text", bytes(10))  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [0, 1, 99])
def test_refuses_overlap(shift: int) -> None:
    memory = bytearray(200)
    first, second = memoryview(memory)[:100], memoryview(memory)[shift : shift + 100]
    for dst, src in ((first, second), (second, first)):
        with pytest.raises(ValueError, match="overlap"):
            _native.copy(dst, src)
        with pytest.raises(ValueError, match="overlap"):
            _native.copy_hash(dst, src)


def test_neighbours_do_not_overlap() -> None:
    memory = bytearray(b"x" * 100 + b"y" * 100)
    _native.copy(memoryview(memory)[100:], memoryview(memory)[:100])
    assert memory == b"x" * 200
