"""A whole raw part copied out of its record: the right one, undamaged, or nothing."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from kvstore import _native
from kvstore.record import BLOCK, Entry, fixed_header, header_bytes, padded
from kvstore.spec import Part

SPEC, OWNER, KEY, PARENT, PART = b"s" * 16, b"o" * 16, b"k" * 32, b"p" * 32, Part(0, 1, (0, 3))
LENGTHS = np.array([300_000, 241, 70_000], np.uint64)
OFFSETS = (np.cumsum(LENGTHS) - LENGTHS).astype(np.uint64)
TOTAL, HEADER = int(LENGTHS.sum()), header_bytes(3)
ITEM = KEY + struct.pack("<II", 64, 256) + PART.pack()
PAYLOAD = random.Random(1).randbytes(TOTAL)


def record(form: int = 0) -> bytearray:
    memory = bytearray(HEADER + padded(TOTAL))
    entry = Entry(KEY, PARENT, PART, 64, 256, TOTAL, TOTAL, len(memory), form=form)
    fixed = fixed_header(HEADER, 3, entry, SPEC, OWNER)
    _native.write_record(memory, HEADER, fixed, PAYLOAD, OFFSETS, LENGTHS)
    return memory[: HEADER + TOTAL]


def read(memory: bytearray, *, spec: bytes = SPEC, owner: bytes = OWNER, item: bytes = ITEM) -> bytes | None:
    out = bytearray(TOTAL)
    return bytes(out) if _native.read_record(out, memory, HEADER, spec, owner, item) else None


@pytest.mark.parametrize("owner", [OWNER, b""], ids=["owned", "anybody's"])
def test_the_bytes_that_were_written(owner: bytes) -> None:
    assert read(record(), owner=owner) == PAYLOAD


@pytest.mark.parametrize("at", [0, 5, 32, 64, 96, 112, 144, 152, 164, 176, 184, 256, 270, HEADER - 1], ids=str)
def test_a_bit_of_the_header(at: int) -> None:
    memory = record()
    memory[at] ^= 4
    assert read(memory) is None


@pytest.mark.parametrize("at", [0, 150_000, 300_100, TOTAL - 1], ids=str)
def test_a_bit_of_the_payload(at: int) -> None:
    memory = record()
    memory[HEADER + at] ^= 1
    assert read(memory) is None


def test_another_record_than_was_asked_for() -> None:
    memory = record()
    assert read(memory, spec=b"t" * 16) is None
    assert read(memory, owner=b"q" * 16) is None
    for at in range(0, 48, 4):
        other = bytearray(ITEM)
        other[at] ^= 1
        assert read(memory, item=bytes(other)) is None
    assert read(record(form=3)) is None


def test_lengths_that_do_not_fit() -> None:
    memory = record()
    assert not _native.read_record(bytearray(TOTAL - 1), memory, HEADER, SPEC, OWNER, ITEM)
    assert not _native.read_record(bytearray(TOTAL), memory[:-1], HEADER, SPEC, OWNER, ITEM)
    assert not _native.read_record(bytearray(TOTAL), memory, HEADER + BLOCK, SPEC, OWNER, ITEM)
    assert not _native.read_record(bytearray(TOTAL), memory, 0, SPEC, OWNER, ITEM)
    with pytest.raises(ValueError, match="shorter"):
        _native.read_record(bytearray(TOTAL), memory, len(memory) + 1, SPEC, OWNER, ITEM)
    with pytest.raises(ValueError, match="item must have 48 bytes"):
        _native.read_record(bytearray(TOTAL), memory, HEADER, SPEC, OWNER, ITEM[:-1])
