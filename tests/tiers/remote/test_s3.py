"""The S3 engine against moto's real server process, by way of a proxy that can hang and cut."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore")
pytest.importorskip("moto.server")

from kvstore.bench.s3_server import REGION, make_bucket, place_at, s3_server
from kvstore.errors import ConfigError, DeadlineExceeded, PermissionDenied, StorageError, Unavailable
from kvstore.testing.engines import EngineConformance, content
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.s3 import MIB, S3Engine
from kvstore.tiers.remote.s3_place import S3Place, Stores
from tests.tiers.remote.cutting_proxy import CuttingProxy

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a server that all tests of this file share; each takes a bucket of its own."""
    port = free_port()
    with s3_server(port):
        yield port


@pytest.fixture
def proxy(server: int) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(server)
    yield proxy
    proxy.close()


@pytest.fixture
def place(server: int, proxy: CuttingProxy) -> S3Place:
    """A fresh bucket, reached through the proxy."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    make_bucket(server, bucket)
    return place_at(proxy.port, bucket)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def boto(port: int, scheme: str = "http", **options: Any) -> Any:
    """Amazon's own client, to look at what lies on the server."""
    import boto3

    known = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": REGION, **options}
    return boto3.client("s3", endpoint_url=f"{scheme}://127.0.0.1:{port}", **known)


class TestConformance(EngineConformance):
    @pytest.fixture(autouse=True)
    def _server(self, server: int, proxy: CuttingProxy) -> None:
        self.server, self.proxy = server, proxy

    def make_engine(self) -> Engine:
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        make_bucket(self.server, bucket)
        self.place = place_at(self.proxy.port, bucket, "some/prefix")
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


def test_moto_knows_conditional_puts(place: S3Place) -> None:
    with closing(S3Engine(place)) as engine:
        assert engine.has_conditional_put is True
        assert engine.notes == []
        assert list(engine.list("")) == []


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


def test_uploads_in_parts_are_not_replaced_at_their_end(server: int, place: S3Place) -> None:
    """Both writers have seen that nothing is there: the condition of the last step decides."""
    with closing(S3Engine(place, part_bytes=5 * MIB, multipart_bytes=5 * MIB)) as engine, ThreadPoolExecutor(4) as crew:
        wholes = [content(seed, 11 * MIB + seed) for seed in range(4)]
        won = list(crew.map(lambda whole: engine.put("a", [whole], 30), wholes))
        assert sum(won) == 1
        out = content(9, wholes[won.index(True)].nbytes)
        engine.read_into("a", 0, out, 20)
        assert out == wholes[won.index(True)]
        assert list(engine.list("")) == [("a", out.nbytes)]
    keys = [each["Key"] for each in boto(server).list_objects_v2(Bucket=place.bucket)["Contents"]]
    assert keys == ["a"], "an upload left something"
    assert not boto(server).list_multipart_uploads(Bucket=place.bucket).get("Uploads")


# Half-written things.


def test_an_upload_that_breaks_is_never_visible_and_is_aborted(
    server: int, proxy: CuttingProxy, place: S3Place
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


def test_an_upload_that_is_out_of_time_stops_and_is_aborted(server: int, place: S3Place) -> None:
    with closing(S3Engine(place, part_bytes=5 * MIB, multipart_bytes=5 * MIB, parallel=1)) as engine:
        whole = content(1, 64 * MIB)
        with pytest.raises(DeadlineExceeded, match="putting large"):
            engine.put("large", [whole], 0.05)
        whole[:] = bytes(64 * MIB)
        client = boto(server)
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


def test_old_uploads_are_swept(server: int, place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from kvstore.tiers.remote import s3_upload

    boto(server).put_object(Bucket=place.bucket, Key="UPLOADS/left", Body=b"x")
    with closing(S3Engine(place)):
        assert boto(server).list_objects_v2(Bucket=place.bucket)["KeyCount"] == 1
    monkeypatch.setattr(s3_upload, "STALE", timedelta(seconds=-5))
    with closing(S3Engine(place)):
        assert boto(server).list_objects_v2(Bucket=place.bucket)["KeyCount"] == 0


# Listing and heads in numbers.


def test_lists_more_than_a_page(server: int, place: S3Place) -> None:
    names, whole = [f"many/{number:04}" for number in range(1005)], memoryview(b"abc")
    with closing(S3Engine(replace(place, endpoint=f"http://127.0.0.1:{server}"))) as engine:
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(lambda name: engine.put(name, [whole], 20), names))
        assert sorted(engine.list("many/")) == [(name, 3) for name in names]
        assert list(engine.heads([*names[:150], "no"], 2, 30)) == [b"ab"] * 150 + [None]
        engine.delete(names, 30)
        assert list(engine.list("")) == []


# Places that cannot work.


def test_a_missing_bucket_is_refused(proxy: CuttingProxy) -> None:
    with pytest.raises(ConfigError, match=f"there is no bucket 'no-such' at http://127.0.0.1:{proxy.port}: create"):
        S3Engine(place_at(proxy.port, "no-such"))


def test_a_bucket_that_goes_away_is_an_error_and_no_miss(server: int, place: S3Place) -> None:
    with closing(S3Engine(place)) as engine:
        boto(server).delete_bucket(Bucket=place.bucket)
        for call in (
            lambda: engine.put("a", [content(1, 10)], 10),
            lambda: engine.read_into("a", 0, content(1, 10), 10),
            lambda: engine.heads(["a"], 10, 10),
            lambda: list(engine.list("")),
        ):
            with pytest.raises(StorageError, match=f"no such bucket any more: bucket '{place.bucket}' at"):
                call()


def test_wrong_credentials_are_refused_without_telling_them() -> None:
    port = free_port()
    with s3_server(port, {"INITIAL_NO_AUTH_ACTION_COUNT": "1"}):
        make_bucket(port, "guarded")
        place = S3Place(
            "guarded", endpoint=f"http://127.0.0.1:{port}", region=REGION, access_key_id="AKIAIOSFODNN7EXAMPLE",
            secret_access_key=SECRET, session_token=SECRET,
        )  # fmt: skip
        with pytest.raises(ConfigError, match=f"bucket 'guarded' at http://127.0.0.1:{port}") as raised:
            S3Engine(place)
        assert "credentials" in str(raised.value)
        for shown in (str(raised.value), repr(raised.value.__cause__), repr(place), str(place)):
            assert SECRET not in shown


def test_a_server_that_is_not_there(server: int) -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=f"bucket 'bucket' at http://127.0.0.1:{port} .*connection refused"):
        S3Engine(place_at(port, "bucket"))


def test_a_server_that_accepts_and_never_answers(proxy: CuttingProxy, place: S3Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = place_at(silent.getsockname()[1], "bucket")
        with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
            S3Engine(mute, start_timeout_s=0.3)
        with closing(S3Engine(place, multipart_bytes=32 * MIB)) as engine:
            engine.place = mute  # for the messages
            engine._store, engine._stores = mute.open(30), Stores(mute)
            calls: list[Callable[[], object]] = [
                lambda: engine.read_into("a", 0, content(1, 10), 0.2),
                lambda: engine.read_into("a", 0, content(1, 40 * MIB), 0.2),
                lambda: engine.put("a", [content(1, 10 * MIB)], 0.2),
                lambda: engine.put("a", [content(1, 40 * MIB)], 0.2),
                lambda: engine.heads([f"{number}" for number in range(200)], 10, 0.2),
                lambda: engine.delete(["a"], 0.2),
            ]
            for call in calls:
                with pytest.raises(DeadlineExceeded, match="did not answer in time"):
                    call()


def test_a_server_that_dies_and_comes_back() -> None:
    port = free_port()
    with s3_server(port):
        make_bucket(port, "mortal")
        engine = S3Engine(place_at(port, "mortal"))
        assert engine.put("a", [content(1, 10)], 10)
    with closing(engine):
        with pytest.raises(Unavailable):
            engine.read_into("a", 0, content(1, 10), 10)
        with s3_server(port):
            make_bucket(port, "mortal")
            assert engine.put("a", [content(1, 10)], 10)


def make_certificates(folder: Path) -> Path:
    """`cert.pem` and `key.pem` for this host, signed by an authority of its own, whose certificate is returned."""
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -x509 {new_key} -days 1 -subj /CN=authority -keyout ca.key -out ca.pem",
        f"req {new_key} -subj /CN=127.0.0.1 -keyout key.pem -out request.pem",
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile san -out cert.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program to make a certificate with")
def test_tls(tmp_path: Path) -> None:
    port, authority = free_port(), make_certificates(tmp_path)
    with s3_server(port, tls=(tmp_path / "cert.pem", tmp_path / "key.pem")):
        strange = S3Place(
            "secret", endpoint=f"https://127.0.0.1:{port}", region=REGION, access_key_id="x", secret_access_key="x"
        )
        with pytest.raises(Unavailable, match="certificate is not trusted"):
            S3Engine(strange)
        trusted = replace(strange, ca_certificate=authority)
        boto(port, scheme="https", verify=str(authority)).create_bucket(Bucket="secret")
        with closing(S3Engine(trusted)) as engine:
            assert engine.notes == []
            whole, out = content(1, 100_000), content(2, 100_000)
            assert engine.put("a", [whole], 20)
            engine.read_into("a", 0, out, 20)
            assert out == whole
        with pytest.raises(ConfigError, match=r"ca_certificate .* cannot be read"):
            S3Engine(replace(strange, ca_certificate=tmp_path / "absent.pem"))


def test_settings_that_cannot_work() -> None:
    for endpoint in ("127.0.0.1:9000", "ftp://host", "http://", "http://host/path", "http://host?x=1"):
        with pytest.raises(ConfigError, match="is no endpoint: http://HOST:PORT"):
            S3Place("bucket", endpoint=endpoint)
    with pytest.raises(ConfigError, match="no user and password") as raised:
        S3Place("bucket", endpoint=f"http://user:{SECRET}@host")
    assert SECRET not in str(raised.value)
    with pytest.raises(ConfigError, match="no name of a bucket"):
        S3Place("a/b")
    with pytest.raises(ConfigError, match="together"):
        S3Place("bucket", access_key_id="x")


def test_credentials_of_the_environment(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    make_bucket(server, bucket)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with closing(S3Engine(S3Place(bucket, endpoint=f"http://127.0.0.1:{server}", region=REGION))) as engine:
        assert engine.put("a", [content(1, 10)], 10)


def test_virtual_hosts_are_in_the_address() -> None:
    place = S3Place("bucket", endpoint="http://localhost:9000", virtual_host=True, region=REGION)
    assert place._host() == "http://bucket.localhost:9000"
    again = S3Place("bucket", endpoint="http://bucket.localhost:9000/", virtual_host=True, region=REGION)
    assert again._host() == "http://bucket.localhost:9000"


def test_closing_ends_calls_of_several_requests(proxy: CuttingProxy, place: S3Place) -> None:
    engine, raised = S3Engine(place), list[BaseException]()

    def look() -> None:
        try:
            engine.heads(["a", "b"], 10, 60)
        except Exception as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    before = proxy.connections
    with proxy.hang():
        thread = threading.Thread(target=look)
        thread.start()
        wait_until(lambda: proxy.connections > before)
        engine.close()
        thread.join(10)
    assert not thread.is_alive()
    assert [type(error).__name__ for error in raised] == ["Closed"]


def test_errors_of_a_refusal_in_mid_flight(place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock: what the library raises for 403 and 503, since moto cannot be made to answer them at will."""
    import obstore
    from obstore.exceptions import GenericError, PermissionDeniedError

    with closing(S3Engine(place)) as engine:
        for error, expected in (
            (PermissionDeniedError("status 403 <Code>AccessDenied</Code> " + SECRET), PermissionDenied),
            (GenericError("Server returned non-2xx status code: 503 : <Code>SlowDown</Code>" + SECRET), Unavailable),
        ):

            def fail(*args: Any, error: Exception = error, **options: Any) -> Any:
                raise error

            monkeypatch.setattr(obstore, "get_range", fail)
            with pytest.raises(expected, match=place.bucket) as raised:
                engine.read_into("a", 0, content(1, 10), 10)
            assert SECRET not in str(raised.value)
            assert raised.value.__cause__ is None


def wait_until(said: Any) -> None:
    import time

    deadline = time.monotonic() + 20
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)
