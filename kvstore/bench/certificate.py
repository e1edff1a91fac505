"""A self-signed certificate for 127.0.0.1, and other addresses, made with the `openssl` program for a benchmark."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvstore.errors import InvalidArgument, Unavailable


def make_certificate(folder: Path, addresses: Sequence[str] = ()) -> tuple[Path, Path]:
    """`cert.pem` and `key.pem` in `folder`, valid for a day; for `addresses` too."""
    program = shutil.which("openssl")
    if program is None:
        raise InvalidArgument("--tls makes a certificate with the openssl program, which is not installed")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ["DNS:localhost", *(f"IP:{each}" for each in ("127.0.0.1", *addresses))]
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=" + ",".join(names)]
    command += ["-keyout", str(key), "-out", str(certificate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"openssl made no certificate: {' '.join(done.stderr.split())}")
    return certificate, key
