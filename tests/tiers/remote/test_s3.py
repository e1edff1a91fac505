"""The S3 engine against real servers, moto's and Ceph's, by way of a proxy that can hang and cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("obstore")

from kvstore.bench.s3_server import S3Server
from kvstore.errors import DeadlineExceeded, Unavailable
from kvstore.testing.engines import EngineConformance, content
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.s3 import MIB, S3Engine
from kvstore.tiers.remote.s3_place import S3Place
from tests.tiers.remote.cutting_proxy import CuttingProxy


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def place(s3_server: S3Server, bucket: str, proxy: CuttingProxy) -> S3Place:
    """A fresh bucket, reached through the proxy."""
    return s3_server.place(bucket, port=proxy.port)


class TestConformance(EngineConformance):
    @pytest.fixture(autouse=True)
    def _place(self, place: S3Place, proxy: CuttingProxy) -> None:
        self.place, self.proxy = replace(place, prefix="some/prefix"), proxy

    def make_engine(self) -> Engine:
        return self.another()

    def another(self) -> Engine:
        return S3Engine(self.place)

    def hang(self, engine: Engine) -> AbstractContextManager[None]:
        return self.proxy.hang()


class TestConformanceOfLargeUploads(TestConformance):
    """Every object of 5 MiB and more goes in parts."""

    def another(self) -> Engine:
        return S3Engine(self.place, part_bytes=5 * MIB, multipart_bytes=5 * MIB, parallel=4)


# Conditions.


def test_servers_know_conditions(request: pytest.FixtureRequest, s3_server: S3Server, place: S3Place) -> None:
    """Ceph wants the length of a copied part, which the library does not send."""
    with closing(S3Engine(place)) as engine:
        assert engine.has_conditional_put is True
        if "ceph" in request.node.name:
            assert len(engine.notes) == 1
            assert "put in one request, not in parts" in engine.notes[0]
        else:
            assert engine.notes == []
        assert list(engine.list("")) == []
    client = s3_server.client()
    assert client.list_objects_v2(Bucket=place.bucket)["KeyCount"] == 0, "trying it out left something"
    assert not client.list_multipart_uploads(Bucket=place.bucket).get("Uploads")


def test_a_server_without_conditional_puts_is_told_of_and_asked_before(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock of an old server, where a condition is not looked at."""
    import obstore

    real, real_async = obstore.put, obstore.put_async

    def unconditional(options: dict[str, Any]) -> dict[str, Any]:
        return {"use_multipart": False, **{key: value for key, value in options.items() if key != "mode"}}

    monkeypatch.setattr(obstore, "put", lambda *args, **options: real(*args, **unconditional(options)))
    monkeypatch.setattr(obstore, "put_async", lambda *args, **options: real_async(*args, **unconditional(options)))
    with closing(S3Engine(place, part_bytes=5 * MIB, multipart_bytes=5 * MIB)) as engine:
        assert engine.has_conditional_put is False
        assert len(engine.notes) == 1
        assert "If-None-Match" in engine.notes[0]
        for name, nbytes in (("small", 1000), ("large", 6 * MIB)):
            assert engine.put(name, [content(1, nbytes)], 20)
            assert not engine.put(name, [content(2, nbytes)], 20)
            out = content(0, nbytes)
            engine.read_into(name, 0, out, 20)
            assert out == content(1, nbytes)


def test_uploads_in_parts_are_not_replaced_at_their_end(s3_server: S3Server, place: S3Place) -> None:
    """Both writers have seen that nothing is there: the condition of the last step decides."""
    with closing(S3Engine(place, part_bytes=5 * MIB, multipart_bytes=5 * MIB)) as engine, ThreadPoolExecutor(4) as crew:
        wholes = [content(seed, 11 * MIB + seed) for seed in range(4)]
        won = list(crew.map(lambda whole: engine.put("a", [whole], 30), wholes))
        assert sum(won) == 1
        out = content(9, wholes[won.index(True)].nbytes)
        engine.read_into("a", 0, out, 20)
        assert out == wholes[won.index(True)]
        assert list(engine.list("")) == [("a", out.nbytes)]
    keys = [each["Key"] for each in s3_server.client().list_objects_v2(Bucket=place.bucket)["Contents"]]
    assert keys == ["a"], "an upload left something"
    assert not s3_server.client().list_multipart_uploads(Bucket=place.bucket).get("Uploads")


# Half-written things.


def test_an_upload_that_breaks_is_never_visible_and_is_aborted(
    s3_server: S3Server, proxy: CuttingProxy, place: S3Place
) -> None:
    with closing(S3Engine(place, part_bytes=5 * MIB, multipart_bytes=5 * MIB, parallel=1)) as engine:
        whole = content(1, 21 * MIB)
        assert engine.put("warm", [content(2, 1)], 20)
        proxy.cut_requests = 8 * MIB
        with pytest.raises(Unavailable, match=f"putting large: bucket '{place.bucket}' at http"):
            engine.put("large", [whole], 30)
        proxy.cut_requests = None
        assert list(engine.heads(["large", "warm"], 10, 20)) == [None, bytes(content(2, 1))]
        assert list(engine.list("")) == [("warm", 1)]
        # Aborting failed as well where the line was cut; where it was not, nothing is left.
        assert engine.put("large", [whole], 30)


def test_an_upload_that_is_out_of_time_stops_and_is_aborted(s3_server: S3Server, place: S3Place) -> None:
    with closing(S3Engine(place, part_bytes=5 * MIB, multipart_bytes=5 * MIB, parallel=1)) as engine:
        whole = content(1, 64 * MIB)
        with pytest.raises(DeadlineExceeded, match="putting large"):
            engine.put("large", [whole], 0.05)
        whole[:] = bytes(64 * MIB)
        client = s3_server.client()
        wait_until(lambda: not client.list_multipart_uploads(Bucket=place.bucket).get("Uploads"))
        wait_until(lambda: not client.list_objects_v2(Bucket=place.bucket).get("Contents"))


def test_a_put_that_is_cut_is_not_there(proxy: CuttingProxy, place: S3Place) -> None:
    with closing(S3Engine(place)) as engine:
        proxy.cut_requests = MIB
        with pytest.raises(Unavailable):
            engine.put("a", [content(1, 4 * MIB)], 20)
        proxy.cut_requests = None
        assert list(engine.heads(["a"], 10, 20)) == [None]
        assert engine.put("a", [content(1, 4 * MIB)], 20)


def test_a_read_that_is_cut_is_an_error(proxy: CuttingProxy, place: S3Place) -> None:
    with closing(S3Engine(place, part_bytes=5 * MIB)) as engine:
        whole, out = content(1, 12 * MIB), content(2, 12 * MIB)
        assert engine.put("a", [whole], 20)
        for left in (0, 100, MIB, 7 * MIB):
            proxy.cut_answers = left
            with pytest.raises(Unavailable, match="reading a"):
                engine.read_into("a", 0, out, 20)
        proxy.cut_answers = None
        engine.read_into("a", 0, out, 20)
        assert out == whole


def test_old_uploads_are_swept(s3_server: S3Server, place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from kvstore.tiers.remote import s3_upload

    s3_server.client().put_object(Bucket=place.bucket, Key="UPLOADS/left", Body=b"x")
    with closing(S3Engine(place)):
        assert s3_server.client().list_objects_v2(Bucket=place.bucket)["KeyCount"] == 1
    monkeypatch.setattr(s3_upload, "STALE", timedelta(seconds=-5))
    with closing(S3Engine(place)):
        assert s3_server.client().list_objects_v2(Bucket=place.bucket)["KeyCount"] == 0


# Listing and heads in numbers.


def test_lists_more_than_a_page(s3_server: S3Server, place: S3Place) -> None:
    names, whole = [f"many/{number:04}" for number in range(1005)], memoryview(b"abc")
    with closing(S3Engine(s3_server.place(place.bucket))) as engine:
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(lambda name: engine.put(name, [whole], 20), names))
        assert sorted(engine.list("many/")) == [(name, 3) for name in names]
        assert list(engine.heads([*names[:150], "no"], 2, 30)) == [b"ab"] * 150 + [None]
        engine.delete(names, 30)
        assert list(engine.list("")) == []


# The end.


def test_closing_ends_calls_of_several_requests(proxy: CuttingProxy, place: S3Place) -> None:
    engine, raised = S3Engine(place), list[BaseException]()

    def look() -> None:
        try:
            engine.heads(["a", "b"], 10, 60)
        except Exception as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    with proxy.hang():
        thread = threading.Thread(target=look)
        thread.start()
        wait_until(lambda: proxy.holds)
        engine.close()
        thread.join(10)
    assert not thread.is_alive()
    assert [type(error).__name__ for error in raised] == ["Closed"]


def wait_until(said: Any) -> None:
    deadline = time.monotonic() + 20
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)
