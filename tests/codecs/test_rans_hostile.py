"""Streams that no encoder makes, and calls that make no sense: an error that says so, whatever the bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore import _native
from kvstore.codecs import rans
from kvstore.errors import Corrupt, InvalidArgument
from tests.codecs.rans_samples import bank, draw, one_symbol, supported_levels

FREQS = bank()
BANK = rans.Bank(FREQS)
SYMBOLS, TABLES = draw(np.random.default_rng(0), FREQS, 30, 50)
DATA = BANK.encode(SYMBOLS, TABLES)


@pytest.fixture(params=supported_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.simd_level()
    _native.set_simd_level(request.param)
    yield request.param
    _native.set_simd_level(before)


def decodes(data: bytes) -> bool:
    """Whether native code and reference take a stream; they must agree, in the symbols as well."""
    out = np.zeros_like(SYMBOLS)
    try:
        wanted = rans.decode(data, TABLES, FREQS, (30, 50))
    except Corrupt:
        with pytest.raises(Corrupt):
            BANK.decode(data, TABLES, out)
        return False
    BANK.decode(data, TABLES, out)
    assert np.array_equal(out, wanted)
    return True


def test_cut_off_anywhere(level: str) -> None:
    for length in range(len(DATA)):
        with pytest.raises(Corrupt):
            BANK.decode(DATA[:length], TABLES, np.zeros_like(SYMBOLS))
    for length in range(0, len(DATA), 97):
        assert not decodes(DATA[:length])


@pytest.mark.parametrize("more", [1, 2, 3, 62, 64, 66, 1000])
def test_words_too_many(level: str, more: int) -> None:
    assert not decodes(DATA + bytes(more))


def test_fewer_and_more_tokens(level: str) -> None:
    for tokens in (1, 29, 31, 1000):
        with pytest.raises(Corrupt):
            BANK.decode(DATA, TABLES, np.zeros((tokens, 50), np.uint8))


@pytest.mark.parametrize("state", [0, 1, rans.LOW - 1, 1 << 31, (1 << 32) - 1])
def test_states_out_of_range(level: str, state: int) -> None:
    for lane in (0, 31):
        data = bytearray(DATA)
        data[4 * lane : 4 * lane + 4] = state.to_bytes(4, "little")
        assert not decodes(bytes(data))


def test_a_wrong_last_state(level: str) -> None:
    """All words are used and the states are valid, but no encoder began with them."""
    freqs = np.stack([one_symbol(4)])
    states = np.full(32, rans.LOW, "<u4")
    out = np.zeros((7, 32), np.uint8)
    rans.Bank(freqs).decode(states.tobytes(), np.zeros(32, np.uint8), out)
    states[17] += 1
    with pytest.raises(Corrupt):
        rans.Bank(freqs).decode(states.tobytes(), np.zeros(32, np.uint8), out)
    # So too for a lane that rests throughout.
    with pytest.raises(Corrupt):
        rans.Bank(freqs).decode(states.tobytes(), np.zeros(3, np.uint8), out[:, :3].copy())


def test_streams_at_any_address(level: str) -> None:
    for shift in range(1, 9):
        moved = memoryview(bytes(shift) + DATA)[shift:]
        out = np.zeros_like(SYMBOLS)
        BANK.decode(moved, TABLES, out)
        assert np.array_equal(out, SYMBOLS)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DATA) * 8 - 1)), min_size=1, max_size=6))
def test_flipped_bits(flips: list[tuple[int]]) -> None:
    data = bytearray(DATA)
    for (bit,) in flips:
        data[bit // 8] ^= 1 << bit % 8
    if bytes(data) != DATA:
        decodes(bytes(data))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes(data: bytes, valid_states: bool) -> None:
    if valid_states:
        data = DATA[: rans.STATE_BYTES] + data
    decodes(data)


def test_tables_outside_the_bank(level: str) -> None:
    tables = TABLES.copy()
    tables[49] = len(FREQS)
    for call in (
        lambda: BANK.decode(DATA, tables, np.zeros_like(SYMBOLS)),
        lambda: BANK.encode(SYMBOLS, tables),
        lambda: rans.encode(SYMBOLS, tables, FREQS),
        lambda: rans.decode(DATA, tables, FREQS, (30, 50)),
    ):
        with pytest.raises(InvalidArgument, match="the bank has 9"):
            call()
    native = _native.RansBank(FREQS)
    with pytest.raises(ValueError, match="not in the bank"):
        native.decode(DATA, tables, np.zeros_like(SYMBOLS))
    with pytest.raises(ValueError, match="not in the bank"):
        native.encode(SYMBOLS, tables)


def test_a_symbol_without_frequency() -> None:
    freqs = np.stack([one_symbol(4)])
    symbols = np.full((9, 40), 4, np.uint8)
    symbols[5, 33] = 5
    tables = np.zeros(40, np.uint8)
    for encode in (lambda: rans.Bank(freqs).encode(symbols, tables), lambda: rans.encode(symbols, tables, freqs)):
        with pytest.raises(InvalidArgument, match="no frequency"):
            encode()


@pytest.mark.parametrize(
    "freqs",
    [
        np.zeros((1, 256), np.uint16),
        np.zeros((0, 256), np.uint16),
        np.full((1, 256), 17, np.uint16),
        np.full((257, 256), 16, np.uint16),
        np.full((1, 256), 16, np.int32),
        np.full((1, 128), 32, np.uint16),
        np.full(256, 16, np.uint16),
    ],
)
def test_banks_that_are_none(freqs: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"a bank is|sum to"):
        rans.Bank(freqs)
    if freqs.dtype == np.uint16 and freqs.size % 256 == 0 and freqs.size != 256:
        with pytest.raises(ValueError, match="a bank is"):
            _native.RansBank(freqs)


def test_arrays_that_do_not_fit() -> None:
    read_only = np.zeros((30, 50), np.uint8)
    read_only.flags.writeable = False
    for out in (np.zeros((30, 50), np.int8), np.zeros((30, 49), np.uint8), np.zeros(1500, np.uint8), read_only,
                np.zeros((30, 100), np.uint8)[:, ::2], np.zeros((0, 50), np.uint8)):  # fmt: skip
        with pytest.raises(InvalidArgument):
            BANK.decode(DATA, TABLES, out)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="int16"):
        BANK.decode_levels(DATA, TABLES, np.zeros((30, 50), np.uint16))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="tables are uint8"):
        BANK.encode(SYMBOLS, TABLES.astype(np.int64))  # type: ignore[arg-type]
    one = np.ones(50, np.float32)
    for scale, out, dtype in ((one[:49], np.uint16, "bfloat16"), (one.astype(float), np.uint16, "bfloat16"),
                              (one, np.float16, "bfloat16"),
                              (one * np.float32(np.nan), np.uint16, "bfloat16"), (one, np.uint8, "int8")):  # fmt: skip
        with pytest.raises(InvalidArgument):
            BANK.dequantize(DATA, TABLES, scale, one, np.zeros((30, 50), out), dtype)
