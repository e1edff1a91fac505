"""An S3 server beside us: `moto`'s, in a process of its own, with everything in its memory.

moto looks whether an object is there and then writes it, in as many threads as there are requests: so of two
conditional requests both may succeed, which S3 promises not to happen. Here they run one after the other, once their
bodies have arrived.

Started as `python -m kvstore.bench.s3_server PORT [CERT KEY]`.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvstore.bench.processes import stop
from kvstore.bench.tcp_peer import HOST
from kvstore.errors import InvalidArgument, Unavailable
from kvstore.tiers.remote.s3_place import S3Place

START_S = 30.0
REGION = "us-east-1"


@contextmanager
def s3_server(
    port: int, environment: Mapping[str, str] | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[int]:
    """The number of a process that serves S3 on `port`; over TLS with a certificate and its key."""
    command = [sys.executable, "-m", "kvstore.bench.s3_server", str(port), *(str(each) for each in tls or ())]
    _require_moto()
    process = subprocess.Popen(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(process, port)
        yield process.pid
    finally:
        stop(process)


def make_bucket(port: int, bucket: str) -> None:
    """A bucket on a server without TLS that asks for no credentials."""
    request = urllib.request.Request(f"http://{HOST}:{port}/{bucket}", data=b"", method="PUT")
    with urllib.request.urlopen(request, timeout=START_S):
        return


def place_at(port: int, bucket: str, prefix: str = "") -> S3Place:
    """That bucket, with credentials that mean nothing."""
    return S3Place(
        bucket, prefix, endpoint=f"http://{HOST}:{port}", region=REGION, access_key_id="bench",
        secret_access_key="bench",
    )  # fmt: skip


def _require_moto() -> None:
    try:
        import moto.server  # noqa: F401
    except ImportError as error:
        raise InvalidArgument("the S3 server here is moto's: pip install 'moto[s3]' flask flask-cors") from error


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
