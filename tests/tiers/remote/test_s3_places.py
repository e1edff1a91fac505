"""Where an S3 engine is told to go: places that cannot work are refused when it opens, in words of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("obstore")
pytest.importorskip("moto.server")

from kvstore.bench.ceph_server import CephServer
from kvstore.bench.processes import free_port
from kvstore.bench.s3_server import REGION, S3Server, moto_server
from kvstore.errors import ConfigError, DeadlineExceeded, StorageError, Unavailable
from kvstore.testing.engines import content
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.s3 import MIB, S3Engine
from kvstore.tiers.remote.s3_place import S3Place, Stores

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture
def place(s3_server: S3Server, bucket: str) -> S3Place:
    """A fresh bucket."""
    return s3_server.place(bucket)


def test_a_missing_bucket_is_refused(s3_server: S3Server) -> None:
    with pytest.raises(ConfigError, match=f"there is no bucket 'no-such' at http://127.0.0.1:{s3_server.port}: create"):
        S3Engine(s3_server.place("no-such"))


def test_a_bucket_that_goes_away_is_an_error_and_no_miss(s3_server: S3Server, place: S3Place) -> None:
    with closing(S3Engine(place)) as engine:
        s3_server.client().delete_bucket(Bucket=place.bucket)
        for call in (
            lambda: engine.put("a", [content(1, 10)], 10),
            lambda: engine.read_into("a", 0, content(1, 10), 10),
            lambda: engine.heads(["a"], 10, 10),
            lambda: list(engine.list("")),
        ):
            with pytest.raises(StorageError, match=f"no such bucket any more: bucket '{place.bucket}' at"):
                call()


def test_wrong_credentials_are_refused_without_telling_them() -> None:
    with moto_server(environment={"INITIAL_NO_AUTH_ACTION_COUNT": "1"}) as server:
        server.make_bucket("guarded")
        place = S3Place(
            "guarded", endpoint=f"http://127.0.0.1:{server.port}", region=REGION, access_key_id="AKIAIOSFODNN7EXAMPLE",
            secret_access_key=SECRET, session_token=SECRET,
        )  # fmt: skip
        with pytest.raises(ConfigError, match=f"bucket 'guarded' at http://127.0.0.1:{server.port}") as raised:
            S3Engine(place)
        assert "credentials" in str(raised.value)
        for shown in (str(raised.value), repr(raised.value.__cause__), repr(place), str(place)):
            assert SECRET not in shown


ON_CEPH = pytest.mark.parametrize("s3_server", [pytest.param("ceph", marks=pytest.mark.ceph)], indirect=True)


@ON_CEPH
def test_a_quota_of_ceph_is_want_of_room(s3_server: CephServer, place: S3Place) -> None:
    with closing(S3Engine(place)) as engine:
        s3_server.limit(MIB)
        try:
            assert engine.put("half", [content(1, MIB // 2)], 20)
            with pytest.raises(TierFull, match=r"has no room \(403 QuotaExceeded\)"):
                engine.put("too-much", [content(2, MIB)], 20)
        finally:
            s3_server.limit(0)
        assert engine.put("more", [content(1, 100_000)], 20)


@ON_CEPH
def test_credentials_are_checked_by_ceph(place: S3Place) -> None:
    for wrong in (replace(place, secret_access_key=SECRET), replace(place, access_key_id="AKIAIOSFODNN7EXAMPLE")):
        with pytest.raises(ConfigError, match="does not know these credentials") as raised:
            S3Engine(wrong)
        assert SECRET not in str(raised.value)


def test_a_server_that_is_not_there() -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=f"bucket 'bucket' at http://127.0.0.1:{port} .*connection refused"):
        S3Engine(S3Server(port, 0).place("bucket"))


def test_a_server_that_accepts_and_never_answers(place: S3Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = S3Server(silent.getsockname()[1], 0).place("bucket")
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
    with moto_server() as server:
        server.make_bucket("mortal")
        engine = S3Engine(server.place("mortal"))
        assert engine.put("a", [content(1, 10)], 10)
    with closing(engine):
        with pytest.raises(Unavailable):
            engine.read_into("a", 0, content(1, 10), 10)
        with moto_server(server.port):
            server.make_bucket("mortal")
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


def make_bucket_over_tls(server: S3Server, authority: Path) -> None:
    import boto3

    boto3.client(
        "s3", endpoint_url=f"https://127.0.0.1:{server.port}", verify=str(authority), region_name=REGION,
        aws_access_key_id="x", aws_secret_access_key="x",
    ).create_bucket(Bucket="secret")  # fmt: skip


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program to make a certificate with")
def test_tls(tmp_path: Path) -> None:
    authority = make_certificates(tmp_path)
    with moto_server(tls=(tmp_path / "cert.pem", tmp_path / "key.pem")) as server:
        strange = replace(server.place("secret"), endpoint=f"https://127.0.0.1:{server.port}")
        with pytest.raises(Unavailable, match="certificate is not trusted"):
            S3Engine(strange)
        trusted = replace(strange, ca_certificate=authority)
        make_bucket_over_tls(server, authority)
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


@pytest.mark.parametrize("text", [b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_certificate_that_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "ca.pem").write_bytes(text)
    place = replace(S3Server(1, 0).place("bucket"), ca_certificate=tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=r"bucket 'bucket' at .* cannot be opened: (ValueError|GenericError)"):
        S3Engine(place)


def test_credentials_of_the_environment(place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.secret_access_key)
    with closing(S3Engine(replace(place, access_key_id="", secret_access_key=""))) as engine:
        assert engine.put("a", [content(1, 10)], 10)


def test_virtual_hosts_are_in_the_address() -> None:
    place = S3Place("bucket", endpoint="http://localhost:9000", virtual_host=True, region=REGION)
    assert place._host() == "http://bucket.localhost:9000"
    again = S3Place("bucket", endpoint="http://bucket.localhost:9000/", virtual_host=True, region=REGION)
    assert again._host() == "http://bucket.localhost:9000"
