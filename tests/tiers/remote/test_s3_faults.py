"""What the S3 engine makes of servers that refuse, throttle, break off and lie, by way of a real proxy that does so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("obstore")

from kvstore.bench.s3_server import S3Server
from kvstore.errors import ConfigError, Corrupt, KVStoreError, NotFound, PermissionDenied, StorageError, Unavailable
from kvstore.testing.engines import content
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.s3 import MIB, S3Engine
from kvstore.tiers.remote.s3_place import S3Place
from tests.tiers.remote.faulty_proxy import FaultyProxy

LARGE = 8 * MIB  # in two parts


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def place(s3_server: S3Server, bucket: str, proxy: FaultyProxy) -> S3Place:
    """A fresh bucket, reached through the proxy."""
    return s3_server.place(bucket, port=proxy.port)


@dataclass(frozen=True)
class Answer:
    """What a server may answer, and what is raised for it when the engine opens and later."""

    status: int
    code: str
    refused: type[KVStoreError]
    says: str
    later: type[KVStoreError]

    def __str__(self) -> str:
        return f"{self.status}-{self.code}"


KEYS = "does not know these credentials"
REGION = "is in another region"
CLOCK = "disagree about the time"
ANSWERS = (
    Answer(403, "InvalidAccessKeyId", ConfigError, KEYS, PermissionDenied),
    Answer(403, "SignatureDoesNotMatch", ConfigError, KEYS, PermissionDenied),
    Answer(400, "ExpiredToken", ConfigError, KEYS, StorageError),
    Answer(403, "AccessDenied", ConfigError, "does not allow this user", PermissionDenied),
    Answer(403, "RequestTimeTooSkewed", ConfigError, CLOCK, PermissionDenied),
    Answer(404, "NoSuchBucket", ConfigError, "there is no bucket", StorageError),
    Answer(301, "PermanentRedirect", ConfigError, REGION, StorageError),
    Answer(400, "AuthorizationHeaderMalformed", ConfigError, REGION, StorageError),
    Answer(403, "QuotaExceeded", ConfigError, "raise its quota", TierFull),
    Answer(507, "XMinioStorageFull", ConfigError, "raise its quota", TierFull),
    Answer(405, "", ConfigError, "is no S3 bucket to write to", StorageError),
    Answer(503, "SlowDown", Unavailable, "does not serve .503 SlowDown", Unavailable),
    Answer(500, "InternalError", Unavailable, "does not serve .500 InternalError", Unavailable),
    Answer(502, "", Unavailable, "does not serve .502", Unavailable),
)


def calls(engine: S3Engine) -> dict[str, Callable[[], object]]:
    """Everything that asks the server, of objects of one request and of several."""
    return {
        "GET": lambda: engine.read_into("a", 0, content(0, 1000), 20),
        "GET in parts": lambda: engine.read_into("large", 0, content(0, LARGE), 20),
        "GET of heads": lambda: engine.heads(["a", "large", "absent"], 10, 20),
        "GET of a list": lambda: list(engine.list("")),
        "PUT": lambda: engine.put("b", [content(2, 1000)], 20),
        "POST": lambda: engine.delete(["a"], 20),
    }


def opened(place: S3Place) -> S3Engine:
    engine = S3Engine(place, part_bytes=5 * MIB)
    assert engine.put("a", [content(1, 1000)], 20)
    assert engine.put("large", [content(1, LARGE)], 20)
    return engine


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_refused_when_it_opens(proxy: FaultyProxy, place: S3Place, answer: Answer) -> None:
    with proxy.spoiling(status=answer.status, code=answer.code), pytest.raises(answer.refused) as raised:
        S3Engine(place)
    assert proxy.answered, "the server was asked all the same"
    assert place.bucket in str(raised.value)
    raised.match(answer.says)
    S3Engine(place).close()


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_refused_later(proxy: FaultyProxy, place: S3Place, answer: Answer) -> None:
    with closing(opened(place)) as engine:
        for call in calls(engine).values():
            with proxy.spoiling(status=answer.status, code=answer.code), pytest.raises(KVStoreError) as raised:
                call()
            assert type(raised.value) is answer.later, raised.value
            assert place.bucket in str(raised.value)
            assert raised.value.__cause__ is None, "the library's text quotes what was signed"
        for call in calls(engine).values():
            call()


@pytest.mark.parametrize("reset", [False, True], ids=["ended", "reset"])
@pytest.mark.parametrize("cut", [0, 1, 500])
def test_an_answer_that_breaks_off(proxy: FaultyProxy, place: S3Place, cut: int, reset: bool) -> None:
    with closing(opened(place)) as engine:
        reading = {name: call for name, call in calls(engine).items() if name.startswith("GET")}
        for name, call in reading.items():
            if name == "GET of heads" and cut:
                continue  # 10 bytes, all of which may have come
            with (
                proxy.spoiling(methods=("GET",), cut=cut, reset=reset),
                pytest.raises(Unavailable, match="connection"),
            ):
                call()
        for call in reading.values():
            call()


def test_a_body_that_is_shorter_than_was_asked_for(proxy: FaultyProxy, place: S3Place) -> None:
    """And says so: nothing but its length tells."""
    with closing(opened(place)) as engine, proxy.spoiling(methods=("GET",), change=lambda body: body[:-1]):
        for nbytes, name in ((1000, "a"), (LARGE, "large")):
            with pytest.raises(Corrupt, match=f"{name} in bucket .* ends"):
                engine.read_into(name, 0, content(0, nbytes), 20)


def test_a_put_whose_answer_is_lost_is_there(proxy: FaultyProxy, place: S3Place) -> None:
    with closing(S3Engine(place)) as engine:
        with proxy.spoiling(methods=("PUT",), lost=True), pytest.raises(Unavailable):
            engine.put("a", [content(1, 1000)], 20)
        assert not engine.put("a", [content(2, 1000)], 20)
        out = content(0, 1000)
        engine.read_into("a", 0, out, 20)
        assert out == content(1, 1000)


def test_a_page_that_is_not_of_s3(proxy: FaultyProxy, place: S3Place) -> None:
    """Another server listens there, and says 200 to everything, or 404."""
    page = b"<html><body>Welcome</body></html>"
    with proxy.spoiling(change=lambda body: page), pytest.raises(ConfigError, match="is no S3 bucket"):
        S3Engine(place)
    with proxy.spoiling(status=404), pytest.raises(ConfigError, match="correct bucket or endpoint"):
        S3Engine(place)


def test_an_object_that_is_not_there(place: S3Place) -> None:
    with closing(S3Engine(place)) as engine:
        out = memoryview(bytearray(10))
        with pytest.raises(NotFound, match="reading absent: no such object"):
            engine.read_into("absent", 0, out, 20)
        with pytest.raises(NotFound, match="reading absent: no such object"):
            engine.read_into("absent", 0, out[:0], 20)


def test_messages_are_the_packages_own(proxy: FaultyProxy, place: S3Place) -> None:
    """What a server says is not passed on, but for its code: it may quote what was signed."""
    with closing(opened(place)) as engine:
        spoiled: dict[str, Any] = {
            "status": 403,
            "code": "AccessDenied</Code><StringToSign>secret</StringToSign><Code>",
        }
        for call in calls(engine).values():
            with proxy.spoiling(**spoiled), pytest.raises(PermissionDenied) as raised:
                call()
            assert "secret" not in str(raised.value)
