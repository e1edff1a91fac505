"""What `connect` is told, and the TLS that follows from it."""

from __future__ import annotations

import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import InvalidArgument
from kvstore.namespace import DEFAULT, check_name

MAX_STREAMS = 64
_MOST_BY_ITSELF, _CORES_PER_STREAM = 4, 4  # one stream keeps a core of each side busy, and engines need theirs
Pem = str | Path | bytes | None


@dataclass(frozen=True)
class Options:
    """See `kvstore.channels.choose.connect_remote`."""

    token: str = ""
    ca: Pem = None
    cert: Pem = None
    key: Pem = None
    namespace: str = DEFAULT
    timeout: float = 10.0
    retries: int = 3
    streams: int = 0

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.retries < 0:
            raise InvalidArgument(
                f"timeout must be above 0 and retries at least 0, not {self.timeout} and {self.retries}"
            )
        if not 0 <= self.streams <= MAX_STREAMS:
            raise InvalidArgument(f"streams must be 0 (as suits this host) to {MAX_STREAMS}, not {self.streams}")
        check_name(self.namespace)
        if (self.cert is None) != (self.key is None):
            raise InvalidArgument("cert and key go together; one of them is missing")

    @property
    def asked(self) -> str:
        """The namespace to name on the wire; empty where the token decides."""
        return self.namespace if not self.token or self.namespace != DEFAULT else ""

    @property
    def connections(self) -> int:
        """How many connections a large batch is split over."""
        return self.streams or max(1, min(_MOST_BY_ITSELF, (os.cpu_count() or 1) // _CORES_PER_STREAM))

    @property
    def secure(self) -> bool:
        """Whether certificates were given, which turns TLS on."""
        return self.ca is not None or self.cert is not None


def pem_bytes(given: Pem) -> bytes | None:
    """The text of a certificate or key; `InvalidArgument` if its file cannot be read, or holds none."""
    if given is None or isinstance(given, bytes):
        return given
    try:
        text = Path(given).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"the certificate or key {given} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in text:
        raise InvalidArgument(f"{given} is not a PEM file")
    return text


def tls_context(options: Options) -> ssl.SSLContext:
    """The TLS of a client: the given authority or the system's, and its own certificate where it has one."""
    ca, cert, key = pem_bytes(options.ca), pem_bytes(options.cert), pem_bytes(options.key)
    try:
        context = ssl.create_default_context(cadata=None if ca is None else ca.decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if cert is not None and key is not None:
            with tempfile.TemporaryDirectory() as folder:  # OpenSSL reads a certificate of one's own from files alone
                pair = Path(folder) / "pair.pem"
                descriptor = os.open(pair, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(key.rstrip() + b"\n" + cert)
                context.load_cert_chain(pair, password=lambda: "")  # or it would ask a terminal
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"ca, cert or key cannot be used for TLS: {error}") from None
    return context
