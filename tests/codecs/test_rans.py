"""Round trips of the entropy coder, and its native code against the reference, at every level of SIMD."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from kvstore import _native
from kvstore.codecs import rans
from kvstore.errors import InvalidArgument
from tests.codecs.rans_samples import bank, draw, laplace, one_symbol, supported_levels

SHAPES = [(1, 1), (1, 32), (2, 31), (3, 33), (17, 64), (255, 5), (256, 96), (40, 192), (5, 600), (1024, 3)]
# A stream that must never change: 3 tokens × 34 columns of the bank's tables in turn, symbols by a formula.
GOLDEN = (
    "b85c01007c24b4001b80000060c08400669b000096504a00d7603805ffb0000028a1210000800000008000001b800000b0118600669b0000"
    "ed110a00875227015b429a4b7822130000800000008000001b80000000638700669b0000b85c010081c3280199738733cf330f0000800000"
    "008000001b80000050a48800669b0000587599d5db960f481009600ab00b000d"
)


@pytest.fixture(params=supported_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.simd_level()
    _native.set_simd_level(request.param)
    yield request.param
    _native.set_simd_level(before)


@pytest.mark.parametrize(("tokens", "columns"), SHAPES)
def test_native_is_the_reference(level: str, tokens: int, columns: int) -> None:
    freqs = bank()
    prepared = rans.Bank(freqs)
    symbols, tables = draw(np.random.default_rng(tokens * 1000 + columns), freqs, tokens, columns)
    data = rans.encode(symbols, tables, freqs)
    assert prepared.encode(symbols, tables) == data
    assert np.array_equal(rans.decode(data, tables, freqs, symbols.shape), symbols)
    out = np.zeros_like(symbols)
    prepared.decode(data, tables, out)
    assert np.array_equal(out, symbols)


@pytest.mark.parametrize(("tokens", "columns"), [(4096, 33), (4095, 1), (1, 600), (600, 576)])
def test_long_and_wide(level: str, tokens: int, columns: int) -> None:
    freqs = bank()
    prepared = rans.Bank(freqs)
    symbols, tables = draw(np.random.default_rng(3), freqs, tokens, columns)
    out = np.zeros_like(symbols)
    prepared.decode(prepared.encode(symbols, tables), tables, out)
    assert np.array_equal(out, symbols)


def test_levels_are_signed(level: str) -> None:
    freqs = bank()
    symbols, tables = draw(np.random.default_rng(5), freqs, 70, 45)
    out = np.zeros(symbols.shape, np.int16)
    prepared = rans.Bank(freqs)
    prepared.decode_levels(prepared.encode(symbols, tables), tables, out)
    assert np.array_equal(out, symbols.astype(np.int16) - 128)


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """To nearest even, by the definition: of the two neighbours the nearer, of equally near ones the even."""
    bits = values.view(np.uint32)
    down, rest = bits >> 16, bits & 0xFFFF
    return (down + ((rest > 0x8000) | ((rest == 0x8000) & (down & 1 == 1)))).astype(np.uint16)


@pytest.mark.parametrize("columns", [5, 32, 50, 96])
@pytest.mark.parametrize("spread", [0, 12, 40])
def test_values_are_those_of_numpy(level: str, columns: int, spread: int) -> None:
    """Subnormals, overflow to infinity and halves between two values included."""
    freqs, rng = bank(), np.random.default_rng(columns + spread)
    symbols, tables = draw(rng, freqs, 120, columns)
    prepared = rans.Bank(freqs)
    data = prepared.encode(symbols, tables)
    scale = np.ldexp(rng.integers(1, 4096, columns), rng.integers(-spread - 12, spread - 11, columns)).astype(
        np.float32
    )
    mean = np.ldexp(rng.integers(-4096, 4096, columns), -12 - spread).astype(np.float32)
    if columns == 50:
        scale, mean = rng.normal(size=columns).astype(np.float32), rng.normal(size=columns).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = scale * (symbols.astype(np.float32) - np.float32(128)) + mean
        half = wanted.astype(np.float16)
    for dtype, expected in (("float32", wanted), ("float16", half), ("bfloat16", bf16_bits(wanted))):
        out = np.zeros(symbols.shape, expected.dtype)
        prepared.dequantize(data, tables, scale, mean, out, dtype)
        assert np.array_equal(out.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8)), dtype


def test_values_beyond_a_format(level: str) -> None:
    symbols, tables = np.array([[0, 255], [128, 129]], np.uint8), np.zeros(2, np.uint8)
    prepared = rans.Bank(np.full((1, 256), 16, np.uint16))
    data = prepared.encode(symbols, tables)
    scale, mean = np.array([3e36, 600], np.float32), np.array([-3e38, 0], np.float32)
    for dtype, kind in (("float32", np.float32), ("float16", np.float16)):
        out = np.zeros((2, 2), kind)
        prepared.dequantize(data, tables, scale, mean, out, dtype)
        assert out[0, 0] == -np.inf
        assert out[0, 1] == (np.inf if dtype == "float16" else 76200)


def test_one_symbol_costs_nothing(level: str) -> None:
    freqs = np.stack([one_symbol(9)])
    symbols, tables = np.full((4096, 70), 9, np.uint8), np.zeros(70, np.uint8)
    data = rans.Bank(freqs).encode(symbols, tables)
    assert len(data) == rans.STATE_BYTES
    out = np.zeros_like(symbols)
    rans.Bank(freqs).decode(data, tables, out)
    assert np.array_equal(out, symbols)


@pytest.mark.parametrize("others", [1, 2, 255])
def test_rarest_symbols_of_a_peaked_table(level: str, others: int) -> None:
    """Where a wrong reciprocal or a state that grows too large shows."""
    table = np.zeros(256, np.uint16)
    table[: others + 1] = [rans.TOTAL - others] + [1] * others
    freqs, rng = table[None], np.random.default_rng(others)
    for share in (0.0, 0.001, 0.5, 1.0):
        symbols = np.where(rng.random((3000, 34)) < share, rng.integers(1, others + 1, (3000, 34)), 0).astype(np.uint8)
        tables, prepared = np.zeros(34, np.uint8), rans.Bank(freqs)
        data, out = prepared.encode(symbols, tables), np.zeros_like(symbols)
        prepared.decode(data, tables, out)
        assert np.array_equal(out, symbols)
        assert data == rans.encode(symbols, tables, freqs)


def test_every_frequency(level: str) -> None:
    """All frequencies from 1 to 4096 divide as they should: two symbols that share the slots in every way."""
    rng = np.random.default_rng(1)
    for start in range(1, rans.TOTAL, 255):
        first = np.arange(start, min(start + 255, rans.TOTAL))
        freqs = np.zeros((len(first), 256), np.uint16)
        freqs[:, 3], freqs[:, 250] = first, rans.TOTAL - first
        tables = np.arange(len(first), dtype=np.uint8)
        symbols = np.where(rng.random((40, len(first))) < 0.5, 3, 250).astype(np.uint8)
        prepared, out = rans.Bank(freqs), np.zeros_like(symbols)
        data = prepared.encode(symbols, tables)
        assert data == rans.encode(symbols, tables, freqs)
        prepared.decode(data, tables, out)
        assert np.array_equal(out, symbols)


def test_the_size_is_the_entropy() -> None:
    freqs = np.stack([laplace(3)])
    symbols, tables = draw(np.random.default_rng(2), freqs, 4096, 96)
    share = np.bincount(symbols.ravel(), minlength=256) / symbols.size
    bits = -(share[share > 0] * np.log2(freqs[0][share > 0] / rans.TOTAL)).sum() * symbols.size
    assert bits / 8 < len(rans.Bank(freqs).encode(symbols, tables)) < bits / 8 * 1.001 + rans.STATE_BYTES


def test_the_bytes_stay_what_they_are(level: str) -> None:
    freqs = bank()
    tables = (np.arange(34) % len(freqs)).astype(np.uint8)
    of_slot = np.stack([np.repeat(np.arange(256), row) for row in freqs]).astype(np.uint8)
    symbols = np.stack([of_slot[tables, (np.arange(34) * 37 + token * 1111) % rans.TOTAL] for token in range(3)])
    assert rans.Bank(freqs).encode(symbols, tables).hex() == GOLDEN
    assert np.array_equal(rans.decode(bytes.fromhex(GOLDEN), tables, freqs, (3, 34)), symbols)


def test_frequencies_are_the_best() -> None:
    """No unit moved from one symbol to another saves bits."""
    rng = np.random.default_rng(4)
    for counts in (rng.integers(0, 5, 256), rng.pareto(0.5, 256), np.eye(256)[3], np.r_[1e12, np.ones(255)]):
        freqs = rans.quantize_freqs(counts).astype(np.int64)
        assert freqs.sum() == rans.TOTAL
        assert np.array_equal(freqs > 0, np.asarray(counts) > 0)
        used = np.flatnonzero(freqs)
        for up, down in product(used[:: max(1, len(used) // 16)], used):
            if up != down and freqs[down] > 1:
                gain = counts[up] * np.log2((freqs[up] + 1) / freqs[up])
                loss = counts[down] * np.log2(freqs[down] / (freqs[down] - 1))
                assert gain <= loss * (1 + 1e-9)


@pytest.mark.parametrize("counts", [np.zeros(256), np.ones(255), -np.ones(256), np.full(256, np.nan), [np.inf] * 256])
def test_counts_that_are_none(counts: object) -> None:
    with pytest.raises(InvalidArgument, match="counts are 256 numbers"):
        rans.quantize_freqs(counts)  # type: ignore[arg-type]
