import numpy as np
import pytest
import xxhash

from kvstore import _native


def pattern(length: int) -> bytes:
    return bytes((i * 131 + (i >> 8) * 7) & 0xFF for i in range(length))


# Lengths, XXH3-64 and XXH3-128 of `pattern`, from PyPI xxhash 3.6.
GOLDEN = [
    (0, 0x2D06800538D394C2, "99aa06d3014798d86001c324468d497f"),
    (1, 0xC44BDFF4074EECDB, "a6cd5e9392000f6ac44bdff4074eecdb"),
    (3, 0x6811538B444FC6DC, "c925ae1797c3998f6811538b444fc6dc"),
    (4, 0xED503340C589A28B, "6ae518c60df23fcadb9cecd5eb59a7f1"),
    (8, 0xE5B43AB074C9C13B, "63f350efc0ba3e2e5b3f49d0f38f9d7d"),
    (9, 0x089B8D25B20FB877, "83c871b1014e6f76d8a20b5b7aa68a37"),
    (16, 0x0A0EC5AE8679CB7F, "248181305d3c1039adebb1d9d080b69c"),
    (17, 0x57C52D21CE492C1E, "825a0db7d0afe2c0cfea252f6b7ed7e9"),
    (128, 0x696069C4F1E6A91A, "08df79f520370b525cfea347ea4bb687"),
    (129, 0xB1ADA52285757BEB, "fc1d02037be48a62821740ece8839b64"),
    (240, 0xB80284837259EEE4, "8406fbd017acdf4e687f00a7f64e46db"),
    (241, 0x44DBD3180A664E27, "d894c74b1b3ea28f44dbd3180a664e27"),
    (1023, 0xF7EB9806EB4AD2FD, "af3e31d19ed9a0faf7eb9806eb4ad2fd"),
    (1024, 0xD1ABB5DBD52032F9, "54680c079a49361cd1abb5dbd52032f9"),
    (1025, 0xA3908B116DDF0191, "4010f40cb0ea5efda3908b116ddf0191"),
    (4096, 0x9F544112E3E91BB5, "f3bda29489a478499f544112e3e91bb5"),
    ((1 << 20) + 3, 0x7B65544E7ECE41C5, "06ed47f222355a8c7b65544e7ece41c5"),
]


def random_bytes(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(length)


@pytest.mark.parametrize(("length", "hash_64", "hash_128"), GOLDEN)
def test_golden_vectors(level: str, length: int, hash_64: int, hash_128: str) -> None:
    data = pattern(length)
    assert _native.xxh3_64(data) == hash_64
    assert _native.xxh3_128(data).hex() == hash_128


def test_every_length_as_xxhash(level: str) -> None:
    data = random_bytes(1100)
    for length in range(1101):
        piece = data[:length]
        assert _native.xxh3_64(piece) == xxhash.xxh3_64_intdigest(piece), length
        assert _native.xxh3_128(piece) == xxhash.xxh3_128_digest(piece), length


def test_unaligned_starts(level: str) -> None:
    data = memoryview(random_bytes(9000))
    for start in range(1, 65):
        for length in (7, 100, 240, 241, 1024, 1025, 2048, 8191):
            piece = data[start : start + length]
            assert _native.xxh3_128(piece) == xxhash.xxh3_128_digest(piece), (start, length)
            assert _native.xxh3_64(piece) == xxhash.xxh3_64_intdigest(piece), (start, length)


def test_every_kind_of_buffer() -> None:
    data = random_bytes(1200)
    wanted = xxhash.xxh3_128_digest(data)
    array = np.frombuffer(data, np.uint8)
    assert not array.flags.writeable
    for buffer in (data, bytearray(data), memoryview(data), array, array.reshape(3, 400), array.view("<u4")):
        assert _native.xxh3_128(buffer) == wanted


def test_refuses_what_is_no_contiguous_buffer() -> None:
    with pytest.raises(TypeError, match="buffer must be a buffer"):
        _native.xxh3_128("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        _native.xxh3_128(np.zeros(10, np.uint8)[::2])


@pytest.mark.parametrize("piece", [1, 63, 64, 239, 1023, 1024, 1025, 3000])
def test_pieces_hash_as_the_whole(level: str, piece: int) -> None:
    data = random_bytes(7000)
    hasher = _native.Xxh3_128()
    for start in range(0, len(data), piece):
        end = min(start + piece, len(data))
        hasher.update(data[start:end])
        assert hasher.digest() == xxhash.xxh3_128_digest(data[:end]), end


def test_pieces_of_random_sizes(level: str) -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        data = rng.bytes(int(rng.integers(0, 6000)))
        hasher = _native.Xxh3_128()
        start = 0
        while start < len(data):
            end = start + int(rng.integers(0, 2200))
            hasher.update(data[start:end])
            start = end
        assert hasher.digest() == xxhash.xxh3_128_digest(data)


def test_many_ranges() -> None:
    data = random_bytes(200_000)
    rng = np.random.default_rng(3)
    offsets = rng.integers(0, 100_000, 300).astype(np.uint64)
    lengths = rng.integers(0, 3000, 300).astype(np.uint64)
    digests = _native.xxh3_128_many(data, offsets, lengths)
    assert digests.shape == (300, 16)
    assert digests.dtype == np.uint8
    for row, offset, length in zip(digests, offsets.tolist(), lengths.tolist(), strict=True):
        assert row.tobytes() == xxhash.xxh3_128_digest(data[offset : offset + length])


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [([90], [11]), ([101], [0]), ([2**64 - 1], [2]), ([2], [2**64 - 1]), ([0, 0], [1])],
)
def test_bad_ranges(offsets: list[int], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"outside the buffer|items"):
        _native.xxh3_128_many(bytes(100), np.array(offsets, np.uint64), np.array(lengths, np.uint64))


def test_ranges_must_be_words() -> None:
    with pytest.raises(TypeError, match="offsets must be an array of uint64"):
        _native.xxh3_128_many(bytes(100), np.zeros(1), np.zeros(1, np.uint64))
    with pytest.raises(TypeError, match="lengths must be an array of uint64"):
        _native.xxh3_128_many(bytes(100), np.zeros(1, np.uint64), np.zeros(1, np.uint32))


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _native.set_simd_level("sse9")
