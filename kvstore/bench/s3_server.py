"""S3 servers beside us, each in processes of its own on this host: what all have in common, and `moto`'s.

moto keeps everything in its memory. It looks whether an object is there and then writes it, in as many threads as
there are requests: so of two conditional requests both may succeed, which S3 promises not to happen. Here they run one
after the other, once their bodies have arrived.

moto's is started as `python -m kvstore.bench.s3_server PORT [CERT KEY]`.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.bench.processes import free_port, stop
from kvstore.bench.tcp_peer import HOST
from kvstore.errors import InvalidArgument, Unavailable
from kvstore.tiers.remote.s3_place import S3Place

START_S = 30.0
REGION = "us-east-1"
_PACKAGES = "pip install 'moto[s3]' flask flask-cors"


@dataclass(frozen=True)
class S3Server:
    """A server that listens on `port` in plain text: its process, and what it knows its user by."""

    port: int
    pid: int
    access_key_id: str = "bench"
    secret_access_key: str = "bench"

    def make_bucket(self, bucket: str) -> None:
        """A bucket of this user's."""
        self.client().create_bucket(Bucket=bucket)

    def place(self, bucket: str, prefix: str = "", *, port: int | None = None) -> S3Place:
        """That bucket, reached by another port where something stands between."""
        return S3Place(
            bucket, prefix, endpoint=f"http://{HOST}:{port or self.port}", region=REGION,
            access_key_id=self.access_key_id, secret_access_key=self.secret_access_key,
        )  # fmt: skip

    def client(self) -> Any:
        """Amazon's own client, to prepare what lies on the server and to look at it."""
        try:
            import boto3
        except ImportError as error:
            raise InvalidArgument(f"buckets are made with Amazon's client: {_PACKAGES}") from error
        return boto3.client(
            "s3", endpoint_url=f"http://{HOST}:{self.port}", region_name=REGION,
            aws_access_key_id=self.access_key_id, aws_secret_access_key=self.secret_access_key,
        )  # fmt: skip


@contextmanager
def moto_server(
    port: int | None = None, environment: Mapping[str, str] | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[S3Server]:
    """moto's, which takes any credentials; over TLS with a certificate and its key."""
    _require_moto()
    port = port or free_port()
    command = [sys.executable, "-m", "kvstore.bench.s3_server", str(port), *(str(each) for each in tls or ())]
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(process, port)
        yield S3Server(port, process.pid)
    finally:
        stop(process)


def _require_moto() -> None:
    try:
        import moto.server  # noqa: F401
    except ImportError as error:
        raise InvalidArgument(f"the S3 server here is moto's: {_PACKAGES}") from error


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((HOST, port), 1.0).close()
            return
        except OSError:
            time.sleep(0.05)
    raise Unavailable(f"moto did not listen within {START_S:g} s (exit status {process.poll()})")


def main() -> None:
    """Serve until stopped."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    port, *tls = sys.argv[1:]
    app, one_by_one = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return app(environ, start_response)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with one_by_one:
            return list(app(environ, start_response))

    run_simple(
        HOST, int(port), serve, threaded=True, request_handler=MotoRequestHandler,
        ssl_context=(tls[0], tls[1]) if tls else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
