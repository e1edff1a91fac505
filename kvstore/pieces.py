"""Payload pieces on the wire: `GetResponse{data}` and `PutRequest{data}` written and read by hand.

In both messages `data` is field 2, so a piece is the tag 0x12, the length as a varint and the bytes. Written so, a
piece costs one copy where protobuf costs three, and any stock protobuf library reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

PIECE_BYTES = 1 << 20
_TAG = 0x12
_MAX_VARINT = 10
_LEARNED_BYTES = 24 << 20


def frame(data: memoryview) -> bytes:
    """One message whose only field is `data`."""
    return b"".join((_prefix(len(data)), data))


def frames(data: memoryview, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """The messages that carry `data`, in order."""
    for start in range(0, len(data), piece_bytes):
        yield frame(data[start : start + piece_bytes])


def unframe(message: bytes) -> memoryview | None:
    """The bytes of a message that holds the field `data` once and nothing else; None if it is any other message."""
    if not message or message[0] != _TAG:
        return None
    length = shift = 0
    for at in range(1, min(len(message), _MAX_VARINT + 1)):
        byte = message[at]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return memoryview(message)[at + 1 :] if len(message) == at + 1 + length else None
        shift += 7
    return None


def keep_freed_memory() -> None:
    """Raise glibc's dynamic mmap threshold by allocating and freeing one block, whose pages are never touched.

    It learns from the largest block that was freed, as in any process that has freed a 16 MiB array. Before that
    every piece is mapped, faulted in and unmapped: gets took 1.4 times as long.
    """
    bytes(_LEARNED_BYTES)


def _prefix(length: int) -> bytes:
    out = bytearray((_TAG,))
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
