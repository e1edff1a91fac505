"""Another kvstore as an engine of the remote tier: its bulk channel, opened with the token of its `[peers]`.

What is put there is an object of that store (`kvstore.objects`): in its DRAM first, below that as it is configured,
evicted when it is cold, which is a miss here.
"""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

from kvstore import wire
from kvstore.channels.peer import PeerLines, split_address
from kvstore.channels.stream import BadFrame
from kvstore.errors import (
    ConfigError,
    Corrupt,
    DeadlineExceeded,
    InvalidArgument,
    KVStoreError,
    NotFound,
    PermissionDenied,
    Shed,
    StorageError,
    TooLarge,
    Unavailable,
)
from kvstore.peer_wire import MOST_HEAD_BYTES, MOST_NAMES
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.object_names import check_name, object_key
from kvstore.v1 import kvstore_pb2 as pb

PLAIN, TLS = "kvstore", "kvstores"
CONNECT_S = 5.0
LIST_TIMEOUT_S = 10.0
_PASSED = (NotFound, Corrupt, InvalidArgument, PermissionDenied, Unavailable, DeadlineExceeded, TierFull)
Result = TypeVar("Result")


class PeerEngine(Engine):
    """Objects in the store whose bulk channel is at `kvstore://HOST:PORT`, or with TLS at `kvstores://HOST:PORT`.

    `context` makes the TLS. Raises `ConfigError` for what cannot work, a wrong token included, and `Unavailable` where
    nobody answers.
    """

    kind: ClassVar[str] = "peer"
    persistent: bool = True  # for this process: what outlives the server is the server's configuration

    def __init__(
        self, url: str, *, token: str, context: Callable[[], ssl.SSLContext] = ssl.create_default_context
    ) -> None:
        place = urlsplit(url)
        try:
            host, port = split_address(place.netloc)
        except ValueError as error:
            raise ConfigError(f"{url!r} names no kvstore: kvstore://HOST:PORT ({error})") from None
        if place.scheme not in (PLAIN, TLS) or place.path.strip("/"):
            raise ConfigError(f"{url!r} names no kvstore: kvstore://HOST:PORT or, with TLS, kvstores://HOST:PORT")
        secure = place.scheme == TLS
        self._lines = PeerLines(host, port, token=token, context=context() if secure else None, name=url)
        try:
            self._lines.probe(CONNECT_S)
        except (PermissionDenied, InvalidArgument) as error:
            self._lines.close()
            raise ConfigError(f"{url} refuses this host: {error}") from error
        except KVStoreError:
            self._lines.close()
            raise

    def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
        request = pb.PutObjectRequest(name=check_name(name)).SerializeToString()
        payload = [piece for piece in pieces if piece.nbytes]

        def put() -> bool:
            answer = self._lines.send(pb.METHOD_PUT_OBJECT, request, payload, timeout_s)
            return bool(wire.parse(pb.PutObjectResponse, answer).stored)

        return _translated(put)

    def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
        request = pb.ReadObjectRequest(key=object_key(check_name(name)), offset=offset, bytes=out.nbytes)
        _translated(lambda: self._lines.receive(pb.METHOD_READ_OBJECT, request, out.cast("B"), timeout_s))

    def heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        deadline, found = time.monotonic() + timeout_s, list[bytes | None]()
        most = max(1, min(MOST_NAMES, MOST_HEAD_BYTES // max(1, nbytes)))
        for name in names:
            check_name(name)
        for at in range(0, len(names), most):
            found += self._heads(names[at : at + most], nbytes, deadline - time.monotonic())
        return found

    def _heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        request = pb.ObjectHeadsRequest(names=names, bytes=nbytes)
        answer = _translated(lambda: self._lines.collect(pb.METHOD_OBJECT_HEADS, request, timeout_s))
        return _split(*answer, len(names))

    def delete(self, names: Sequence[str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for name in names:
            check_name(name)
        for at in range(0, len(names), MOST_NAMES):
            request = pb.DeleteObjectsRequest(names=names[at : at + MOST_NAMES])
            left = deadline - time.monotonic()
            self._call(pb.METHOD_DELETE_OBJECTS, request, pb.DeleteObjectsResponse, left)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        cursor = 0
        while True:
            request = pb.ListObjectsRequest(prefix=prefix, cursor=cursor)
            page = self._call(pb.METHOD_LIST_OBJECTS, request, pb.ListObjectsResponse, LIST_TIMEOUT_S)
            yield from zip(page.names, page.bytes, strict=True)
            cursor = page.cursor
            if not cursor:
                return

    def probe(self, timeout_s: float) -> None:
        _translated(lambda: self._lines.probe(timeout_s))

    def close(self) -> None:
        self._lines.close()

    def _call(self, method: int, request: object, response: object, timeout_s: float) -> pb.ListObjectsResponse:
        answer: pb.ListObjectsResponse = _translated(lambda: self._lines.call(method, request, response, timeout_s))
        return answer


def _split(message: bytes, data: memoryview, count: int) -> list[bytes | None]:
    """The heads that stand one behind the other."""
    packed = wire.parse(pb.ObjectHeadsResponse, message).lengths
    if len(packed) != 4 * count:
        raise BadFrame(f"{count} heads were asked for, {len(packed) // 4} came")
    found: list[bytes | None] = []
    for length in struct.unpack(f"<{count}i", packed):
        found.append(None if length < 0 else bytes(data[:length]))
        data = data[max(0, length) :]
    return found


def _translated(call: Callable[[], Result]) -> Result:
    """What an engine raises for what the other store does."""
    try:
        return call()
    except Shed as error:
        raise TierFull(f"the other store has no room: {error}") from error
    except TooLarge as error:
        raise StorageError(f"the other store refuses: {error}") from error
    except _PASSED:
        raise
    except KVStoreError as error:
        raise StorageError(f"the other store refuses: {error}") from error
