"""rANS on a device gives what the reference gives, and says so where a stream is none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kvstore.codecs import rans
from kvstore.codecs.gpu.rans import Tables, decode_streams, job_of, launch
from kvstore.codecs.gpu.staging import Staging, raise_corrupt
from kvstore.errors import Corrupt, InvalidArgument
from tests.codecs.gpu.conftest import bank, symbols_of

FREQS = bank()
SHAPES = [(1, 1), (1, 32), (4, 33), (3, 64), (9, 7), (2, 95)]


def drawn(tokens: int, columns: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], bytes]:
    tables = np.random.default_rng(seed).integers(0, len(FREQS), columns).astype(np.uint8)
    symbols = symbols_of(FREQS, tables, tokens, seed)
    return symbols, tables, rans.encode(symbols, tables, FREQS)


def test_tables_are_those_of_the_format() -> None:
    tables = Tables.of(FREQS, torch.device("cpu"))
    ends = np.cumsum(FREQS, axis=1, dtype=np.int64)
    for table in range(len(FREQS)):
        for slot in (0, 1, 127, 2048, 4095):
            symbol = int(np.searchsorted(ends[table], slot, side="right"))
            freq = int(FREQS[table, symbol])
            assert int(tables.symbols[table, slot]) == symbol
            assert int(tables.entries[table, symbol]) == (freq - 1) | (int(ends[table, symbol]) - freq) << 12


def test_many_streams_in_one_launch(device: torch.device) -> None:
    made = [drawn(*shape, seed) for seed, shape in enumerate(SHAPES)]
    found = decode_streams([m[2] for m in made], [m[1] for m in made], [len(m[0]) for m in made], FREQS, device)
    for (symbols, tables, stream), each in zip(made, found, strict=True):
        np.testing.assert_array_equal(each.cpu().numpy(), symbols)
        np.testing.assert_array_equal(rans.decode(stream, tables, FREQS, symbols.shape), symbols)


def test_levels_are_shifted_and_strided(device: torch.device) -> None:
    symbols, tables, stream = drawn(5, 40, 3)
    shifts = (np.arange(40) % 9).astype(np.uint8)
    staging = Staging()
    staging.add(b"odd")
    job = job_of(staging, stream, tables, shifts, 5, 2, 43, 0)
    out = torch.full((5 * 43 + 2,), 77, dtype=torch.int16, device=device)
    status = torch.zeros(1, dtype=torch.int32, device=device)
    rows = staging.add_rows([job.row()])
    launch(staging.on(device), Tables.of(FREQS, device), rows, out, status, levels=True)
    raise_corrupt(status, "streams")
    found = out.cpu().numpy()[2:].reshape(5, 43)
    np.testing.assert_array_equal(found[:, :40], (symbols.astype(np.int16) - 128) << shifts)
    assert (found[:, 40:] == 77).all()
    assert (out[:2] == 77).all()


def test_nothing_to_decode(device: torch.device) -> None:
    assert decode_streams([], [], [], FREQS, device) == []


def says_corrupt(stream: bytes, tables: npt.NDArray[np.uint8], tokens: int) -> bool:
    try:
        rans.decode(stream, tables, FREQS, (tokens, len(tables)))
    except Corrupt:
        return True
    return False


def test_one_bad_stream_is_named(device: torch.device) -> None:
    good, bad = drawn(4, 32, 1), drawn(4, 32, 2)
    broken = bytearray(bad[2])
    broken[5] ^= 4
    assert says_corrupt(bytes(broken), bad[1], 4)
    with pytest.raises(Corrupt, match=r"1 of 2 streams: numbers \[1\]"):
        decode_streams([good[2], broken], [good[1], bad[1]], [4, 4], FREQS, device)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-2],
        lambda data: data + bytes(2),
        lambda data: data[:128],
        lambda data: bytes(4) + data[4:],
        lambda data: data[:124] + b"\xff\xff\xff\xff" + data[128:],
        lambda data: data[:3] + bytes([data[3] | 0x80]) + data[4:],
        lambda data: data[:128] + bytes(len(data) - 128),
    ],
)
def test_streams_that_none_makes(change: object, device: torch.device) -> None:
    assert callable(change)
    _, tables, stream = drawn(3, 40, 5)
    changed = change(stream)
    assert says_corrupt(changed, tables, 3)
    with pytest.raises(Corrupt):
        decode_streams([changed], [tables], [3], FREQS, device)


@pytest.mark.parametrize("length", [0, 2, 126, 129, 128 + 2 * 3 * 40 + 2])
def test_lengths_that_none_has(length: int, device: torch.device) -> None:
    with pytest.raises(Corrupt):
        decode_streams([bytes(length)], [np.zeros(40, np.uint8)], [3], FREQS, device)


def test_noise_is_decided_as_the_reference_decides(device: torch.device) -> None:
    draw = np.random.default_rng(8)
    tables = np.full(32, 3, np.uint8)
    streams = [draw.integers(0, 128, 128 + 2 * int(words), np.uint8).tobytes() for words in draw.integers(0, 32, 6)]
    for stream in streams:
        assert says_corrupt(stream, tables, 1)
    with pytest.raises(Corrupt, match="6 of 6"):
        decode_streams(streams, [tables] * 6, [1] * 6, FREQS, device)


def test_a_table_that_the_bank_lacks(device: torch.device) -> None:
    _, _, stream = drawn(2, 32, 1)
    with pytest.raises(InvalidArgument, match="the bank has 6"):
        decode_streams([stream], [np.full(32, 6, np.uint8)], [2], FREQS, device)
