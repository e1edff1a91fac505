"""The record: the same bytes in memory and on disk, and not a bit of it may change unnoticed."""

import hashlib
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore import record as records
from kvstore.errors import Corrupt, SpecMismatch
from kvstore.record import GROUP_DTYPE, Record, group_table, header_bytes, padded, seal, sealed_at, unpack
from kvstore.spec import Part


def sample(layers: int = 3, each: int = 5000) -> Record:
    digests = np.stack([np.frombuffer(xxhash.xxh3_128_digest(struct.pack("<H", i)), np.uint8) for i in range(layers)])
    return Record(
        key=bytes(range(32)),
        parent=bytes(range(32, 64)),
        spec=bytes(range(64, 80)),
        namespace=bytes(range(80, 96)),
        artefact=bytes(range(96, 112)),
        part=Part(1, 2, (3, 3 + layers)),
        position=512,
        tokens=200,
        first_valid=7,
        logical=99_000,
        stored=layers * each,
        groups=group_table([(i * each, each) for i in range(layers)], digests),
        form=5,
        level=6,
        exact=False,
        created_ms=1_700_000_000_123,
    )


def test_the_header_never_changes() -> None:
    header = sample().pack()
    assert len(header) == 4096
    assert hashlib.sha256(header).hexdigest() == "a9179897e4c9d37b2941f47250fcc9a86ca5ebb9bb354a6a009970605341af11"


def test_every_field_lies_where_the_documentation_says() -> None:
    header = sample().pack()
    assert header[0:4] == b"KVR1"
    assert struct.unpack_from("<HH", header, 4) == (1, 1)
    assert struct.unpack_from("<QQ", header, 16) == (0, 0)  # generation and seal
    assert header[32:144] == bytes(range(112))  # key, parent, spec, namespace, artefact
    assert struct.unpack_from("<HHHH", header, 144) == (1, 2, 3, 6)
    assert struct.unpack_from("<IIII", header, 152) == (512, 200, 7, 3)
    assert struct.unpack_from("<QQ", header, 168) == (99_000, 15_000)
    assert struct.unpack_from("<HHB", header, 184) == (5, 6, 0)
    assert header[189:192] == bytes(3)
    assert struct.unpack_from("<Q", header, 192) == (1_700_000_000_123,)
    assert header[200:256] == bytes(56)
    for i in range(3):
        at = 256 + 32 * i
        assert struct.unpack_from("<QQ", header, at) == (i * 5000, 5000)
        assert header[at + 16 : at + 32] == xxhash.xxh3_128_digest(struct.pack("<H", i))
    assert header[352:] == bytes(4096 - 352)
    blank = header[:8] + bytes(24) + header[32:]
    assert struct.unpack_from("<Q", header, 8) == (xxhash.xxh3_64_intdigest(blank),)


def test_a_seal_binds_a_header_to_one_life_of_one_place() -> None:
    header = sample().pack()
    sealed = seal(header, 77, 123 << 12)
    (checksum,) = struct.unpack_from("<Q", header, 8)
    assert struct.unpack_from("<QQ", sealed, 16) == (
        77,
        xxhash.xxh3_64_intdigest(struct.pack("<QQQ", checksum, 77, 123 << 12)),
    )
    assert sealed[:16] == header[:16]
    assert sealed[32:] == header[32:]
    assert sealed_at(sealed, 77, 123 << 12)
    assert not sealed_at(sealed, 78, 123 << 12)
    assert not sealed_at(sealed, 77, 124 << 12)
    assert not sealed_at(header, 77, 123 << 12)
    assert unpack(sealed).generation == 77


def test_every_single_bit_that_flips_is_noticed() -> None:
    generation, location = 77, 123 << 12
    header = bytearray(seal(sample().pack(), generation, location))
    missed = []
    for bit in range(len(header) * 8):
        header[bit // 8] ^= 1 << bit % 8
        try:
            unpack(bytes(header))
            if sealed_at(header, generation, location) or not 16 <= bit // 8 < 32:
                missed.append(bit)
        except Corrupt:
            pass
        header[bit // 8] ^= 1 << bit % 8
    assert missed == []


@pytest.mark.parametrize("length", [0, 3, 255, 256, 4095])
def test_a_header_that_is_cut_off_is_corrupt(length: int) -> None:
    with pytest.raises(Corrupt):
        unpack(sample().pack()[:length])


@pytest.mark.parametrize("layers", [1, 120, 121, 5000])
def test_a_header_takes_whole_blocks(layers: int) -> None:
    record = sample(layers, 16)
    assert len(record.pack()) == record.header_bytes == header_bytes(layers) == padded(256 + 32 * layers)
    assert record.total_bytes == record.header_bytes + padded(layers * 16)
    assert np.array_equal(unpack(record.pack()).groups, record.groups)


def forged(groups: list[tuple[int, int]], stored: int) -> bytes:
    """A header with a right checksum and these layer groups."""
    block = bytearray(sample().pack())
    struct.pack_into("<I", block, 164, len(groups))
    struct.pack_into("<Q", block, 176, stored)
    for i, (at, n) in enumerate(groups[:100]):
        struct.pack_into("<QQ", block, 256 + 32 * i, at, n)
    block[8:32] = bytes(24)
    struct.pack_into("<Q", block, 8, xxhash.xxh3_64_intdigest(bytes(block)))
    return bytes(block)


@pytest.mark.parametrize(
    ("groups", "stored"),
    [
        ([(0, 10), (11, 10)], 21),  # a gap
        ([(0, 10), (9, 11)], 20),  # an overlap
        ([(10, 10), (0, 10)], 20),  # out of order
        ([(0, 10), (10, 10)], 21),  # too short
        ([(0, 10), (10, 10)], 19),  # too long
        ([], 0),
        ([(0, 1)] * 200, 1),  # more than fit the header
    ],
)
def test_layer_groups_cover_the_payload_without_a_gap(groups: list[tuple[int, int]], stored: int) -> None:
    with pytest.raises(Corrupt):
        unpack(forged(groups, stored))


def test_the_forger_of_headers_can_make_a_good_one() -> None:
    assert unpack(forged([(0, 10), (10, 10)], 20)).stored == 20


@pytest.mark.parametrize("what", ["key", "spec", "namespace", "part"])
def test_a_record_found_under_another_name_is_an_error_that_names_both(what: str) -> None:
    record = sample()
    asked = {"key": record.key, "spec": record.spec, "namespace": record.namespace, "part": record.part}
    record.check(**asked)  # type: ignore[arg-type]
    other = Part(0, 0, (0, 1)) if what == "part" else b"\xee" * len(asked[what])  # type: ignore[arg-type]
    with pytest.raises(SpecMismatch) as refused:
        record.check(**{**asked, what: other})  # type: ignore[arg-type]
    for value in (asked[what], other):
        assert (value.hex() if isinstance(value, bytes) else str(value)) in str(refused.value)


u16, u32, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)


def _bytes(n: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=n, max_size=n)


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    lengths = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=130))
    groups = np.zeros(len(lengths), GROUP_DTYPE)
    groups["length"] = lengths
    groups["offset"] = np.cumsum([0, *lengths[:-1]])
    groups["xxh3"] = np.frombuffer(draw(_bytes(16)) * len(lengths), np.uint8).reshape(-1, 16)
    part = Part(draw(u16), draw(u16), (draw(u16), draw(u16)))
    return Record(
        draw(_bytes(32)), draw(_bytes(32)), draw(_bytes(16)), draw(_bytes(16)), part, draw(u32), draw(u32),
        draw(u64), sum(lengths), groups, draw(u32), draw(u16), draw(u16), draw(st.booleans()), draw(_bytes(16)),
        draw(st.integers(1, 2**62)),
    )  # fmt: skip


@given(any_record())
def test_any_header_comes_back(record: Record) -> None:
    again = unpack(memoryview(record.pack() + b"payload"))
    assert again.header_bytes == record.header_bytes
    for name in set(Record.__dataclass_fields__) - {"header_least"}:  # which is told by the length alone
        ours, theirs = getattr(record, name), getattr(again, name)
        assert np.array_equal(ours, theirs) if name == "groups" else ours == theirs, name


@given(any_record(), st.data())
def test_a_flipped_bit_of_any_header_is_noticed(record: Record, data: st.DataObject) -> None:
    block = bytearray(record.pack())
    bit = data.draw(st.integers(0, len(block) * 8 - 1).filter(lambda n: not 128 <= n < 256))
    block[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        unpack(bytes(block))


def test_the_docstring_and_the_code_agree_on_the_sizes() -> None:
    assert records._FIXED.size == 256
    assert GROUP_DTYPE.itemsize == 32
