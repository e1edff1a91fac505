"""How objects lie in Valkey, and the exchanges that they are read and written by."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kvstore import _native
from kvstore.errors import Corrupt, PermissionDenied, StorageError, Unavailable
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.valkey.wire import Answer, Refusal, Wire, command, gathered

_PREAMBLE = struct.Struct("<4sHxxQQ8s")  # magic, version, bytes of the object, bytes of it that follow here, nonce
_CHECKSUM = struct.Struct("<Q")  # xxh3-64 of the rest
PREAMBLE_BYTES = _PREAMBLE.size + _CHECKSUM.size
_MAGIC, _VERSION = b"KVV1", 1
SLICE_BYTES = 512 << 10  # of a value, asked for at a time: 256 KiB and 1 MiB are slower
AHEAD = 3  # slices asked for before the first has come
_AT_ONCE = 256  # requests sent before their answers are read
_DOWN = {"LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "READONLY", "BUSY"}
_DENIED = {"NOAUTH", "WRONGPASS", "NOPERM"}
Request = Sequence[bytes | memoryview]


class Preamble(NamedTuple):
    """What the first key of an object begins with."""

    total: int
    here: int
    nonce: bytes

    def pack(self) -> bytes:
        """40 bytes."""
        fields = _PREAMBLE.pack(_MAGIC, _VERSION, *self)
        return fields + _CHECKSUM.pack(_native.xxh3_64(fields))

    @classmethod
    def unpack(cls, data: bytes, name: str) -> Preamble:
        """`Corrupt` if that is none."""
        if len(data) < PREAMBLE_BYTES:
            raise Corrupt(f"{name} is too short to be an object")
        magic, version, total, here, nonce = _PREAMBLE.unpack_from(data)
        (checksum,) = _CHECKSUM.unpack_from(data, _PREAMBLE.size)
        if magic != _MAGIC or version != _VERSION or checksum != _native.xxh3_64(data[: _PREAMBLE.size]):
            raise Corrupt(f"{name} is no object that this build can read, or it is damaged")
        return cls(total, here, nonce)

    def further(self, key: bytes) -> list[bytes]:
        """The keys of the object's further pieces."""
        count = -(-self.total // self.here) if self.here else 1
        return [b"%s:%s:%d" % (key, self.nonce, number) for number in range(1, count)]


class Redirect(Exception):
    """The cluster says that another server has the key."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


def exchange(wire: Wire, request: Request) -> Answer:
    """One request and its answer; a refusal is raised."""
    wire.send(request)
    return checked(wire.answer())


def set_new(wire: Wire, key: bytes, preamble: Preamble, pieces: Sequence[memoryview], ttl_ms: int) -> bool:
    """Set a key that is not there; whether it was not."""
    options = [b"NX", b"PX", b"%d" % ttl_ms] if ttl_ms else [b"NX"]
    wire.send(gathered([b"SET", key], [memoryview(preamble.pack()), *pieces], options))
    return checked(wire.answer()) is not None


def read_value(wire: Wire, key: bytes, at: int, out: memoryview) -> int:
    """Fill `out` from a value, `at` bytes after its beginning; how many bytes there were.

    In slices, a few of them asked for ahead: the server copies each into memory that is still in its cache, while the
    one before is on its way.
    """
    starts = range(0, len(out), SLICE_BYTES)
    requests = [
        command(b"GETRANGE", key, b"%d" % (at + start), b"%d" % (at + min(start + SLICE_BYTES, len(out)) - 1))
        for start in starts
    ]
    wire.send(*requests[:AHEAD])
    done = 0
    for number, start in enumerate(starts):
        if number and number + AHEAD - 1 < len(requests):
            wire.send(requests[number + AHEAD - 1])
        got = checked(wire.answer(out[start : start + SLICE_BYTES]))
        assert isinstance(got, int)
        done += got
    return done


def scan(wire: Wire, cursor: bytes, pattern: bytes) -> tuple[bytes, list[bytes]]:
    """The next cursor (`0` at the end) and some keys that match."""
    answer = exchange(wire, command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"1000"))
    if not isinstance(answer, list) or not isinstance(answer[0], bytes) or not isinstance(answer[1], list):
        raise Unavailable(f"the server answers SCAN with {answer!r:.80}")
    return answer[0], [key for key in answer[1] if isinstance(key, bytes)]


def cut(pieces: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """Bytes `start` to `end` of what `pieces` hold together."""
    found = []
    for piece in pieces:
        if start < len(piece) and end > 0:
            found.append(piece[max(0, start) : end])
        start, end = start - len(piece), end - len(piece)
    return found


def checked(answer: Answer) -> Answer:
    """The answer, unless it is a refusal."""
    if not isinstance(answer, Refusal):
        return answer
    code, text = answer
    if code in {"MOVED", "ASK"}:
        raise Redirect(answer)
    if code == "OOM":
        raise TierFull(f"the server has no memory left and may not let go of anything: {text}")
    if code in _DOWN or "max number of clients" in text:
        raise Unavailable(f"the server does not serve just now: {text}")
    if code in _DENIED:
        raise PermissionDenied(f"the server refuses: {text}")
    raise StorageError(f"the server refuses: {text}")


def batches(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many at a time as may be asked for in one go."""
    for start in range(0, len(keys), _AT_ONCE):
        yield keys[start : start + _AT_ONCE]
