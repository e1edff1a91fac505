"""What a reader checks of an answer, natively: the right part with its checksums, or nothing."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from kvstore import _native
from kvstore.v1 import kvstore_pb2 as pb

SPEC, KEY, PARENT = b"s" * 16, b"k" * 32, b"p" * 32
PART = struct.pack("<4H", 1, 2, 3, 7)
LENGTHS = np.array([700, 100_000, 241, 1 << 20], np.uint64)
OFFSETS = (np.cumsum(LENGTHS) - LENGTHS).astype(np.uint64)
TOTAL = int(LENGTHS.sum())
ITEM = KEY + struct.pack("<II", 64, 256) + PART


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(3).randbytes(TOTAL)


def part() -> _native.RawPart:
    return _native.RawPart(SPEC, OFFSETS, LENGTHS, TOTAL)


def digests_of(data: bytes) -> bytes:
    return _native.xxh3_128_many(data, OFFSETS, LENGTHS).tobytes()


def groups(digests: bytes) -> bytes:
    places = zip(OFFSETS.tolist(), LENGTHS.tolist(), strict=True)
    return b"".join(struct.pack("<QQ", *each) + digests[16 * i : 16 * i + 16] for i, each in enumerate(places))


def message(data: bytes, **changes: object) -> pb.GetResponse:
    record = {
        "key": KEY, "parent": PARENT, "part": PART, "position": 64, "tokens": 256, "logical": TOTAL, "stored": TOTAL,
        "exact": True, "artefact": bytes(16), "groups": groups(digests_of(data)), "spec": SPEC,
    }  # fmt: skip
    head = {"bytes": TOTAL} | {name: changes.pop(name) for name in ("bytes", "item", "error") if name in changes}
    return pb.GetResponse(head=pb.GetResponse.Head(record=pb.Record(**record | changes), **head))


def test_the_checksums_of_what_was_asked_for(data: bytes) -> None:
    assert part().digests(message(data).SerializeToString(), ITEM) == digests_of(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"l" * 32},
        {"spec": b"t" * 16},
        {"part": struct.pack("<4H", 1, 2, 3, 8)},
        {"position": 0},
        {"tokens": 255},
        {"form": 3},
        {"level": 1},
        {"groups": b""},
        {"groups": groups(bytes(64))[:-32]},
        {"groups": groups(bytes(64))[:-1]},
        {"groups": bytes(128)},
        {"bytes": TOTAL - 1},
        {"bytes": 0},
        {"item": 1},
        {"error": "NotFound"},
    ],
    ids="-".join,
)
def test_anything_else_is_not_it(data: bytes, changes: dict[str, object]) -> None:
    assert part().digests(message(data, **changes).SerializeToString(), ITEM) is None


def test_other_messages_are_not_it(data: bytes) -> None:
    plain = message(data).SerializeToString()
    for other in (
        b"",
        plain[:-1],
        plain + b"\0",
        plain + plain,
        plain + b"\x12\x01a",
        pb.Failure().SerializeToString(),
    ):
        assert part().digests(other, ITEM) is None


def test_a_mutated_message_is_refused_or_read_as_protobuf_reads_it(data: bytes) -> None:
    dice, plain, taken = random.Random(9), message(data).SerializeToString(), 0
    for _ in range(3000):
        mutated = bytearray(plain)
        match dice.randrange(3):
            case 0:
                mutated[dice.randrange(len(mutated))] ^= 1 << dice.randrange(8)
            case 1:
                at = dice.randrange(len(mutated))
                del mutated[at : at + dice.randrange(1, 5)]
            case _:
                at = dice.randrange(len(mutated))
                mutated[at:at] = dice.randbytes(dice.randrange(1, 5))
        found = part().digests(bytes(mutated), ITEM)
        if found is None:
            continue
        taken += 1
        record = pb.GetResponse.FromString(bytes(mutated)).head.record
        assert (record.key, record.spec, record.part, record.position, record.tokens) == (KEY, SPEC, PART, 64, 256)
        assert record.groups == groups(found)
    assert taken > 0  # a flipped digest is still an answer


@pytest.mark.parametrize("step", [1 << 20, 65_536, 4096, 997])
def test_damage_is_found_however_the_bytes_come(data: bytes, step: int) -> None:
    for damaged in ([], [0], [1], [2], [3], [0, 1, 3]):
        sent = bytearray(data)
        for group in damaged:
            sent[int(OFFSETS[group]) + int(LENGTHS[group]) // 2] ^= 1
        arrival = _native.Arrival(part(), digests_of(data))
        for start in range(0, TOTAL, step):
            arrival.take(sent[start : start + step])
        assert arrival.damaged == damaged


def test_layer_groups_follow_one_another() -> None:
    with pytest.raises(ValueError, match="follow"):
        _native.RawPart(SPEC, OFFSETS[1:], LENGTHS[1:], TOTAL)
    with pytest.raises(ValueError, match="follow"):
        _native.RawPart(SPEC, OFFSETS[[0, 0]], LENGTHS[[0, 0]], TOTAL)
    with pytest.raises(ValueError, match="ends outside"):
        _native.RawPart(SPEC, OFFSETS, LENGTHS, TOTAL - 1)
    with pytest.raises(ValueError, match="each layer group"):
        _native.Arrival(part(), bytes(16))
