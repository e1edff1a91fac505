"""Where a bucket is and how it is spoken to."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from kvstore.errors import ConfigError, DeadlineExceeded
from kvstore.tiers.remote.s3_errors import failures

if TYPE_CHECKING:
    from obstore.store import S3Store

_GRID = 1.25
_MOST_STORES = 8


@dataclass(frozen=True)
class S3Place:
    """A bucket, a prefix in it, and the server that has it.

    Without `endpoint` it is Amazon's, in `region`. An endpoint of `http://` is spoken to in plain text, one of
    `https://` over TLS; `ca_certificate` names a PEM file to trust besides the system's. `virtual_host` puts the
    bucket into the host's name, for servers that want it there. Credentials that are not given come from the
    environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`), or from the instance's role.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    virtual_host: bool = False
    ca_certificate: Path | None = None
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.bucket or "/" in self.bucket:
            raise ConfigError(f"{self.bucket!r} is no name of a bucket")
        if self.endpoint:
            self._check_endpoint()
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ConfigError("access_key_id and secret_access_key are given together, or neither of them")

    def __str__(self) -> str:
        """For messages; never with a credential."""
        where = self.endpoint or f"Amazon S3 in {self.region or 'the region of the environment'}"
        under = f", prefix {self.prefix!r}" if self.prefix else ""
        return f"bucket {self.bucket!r} at {where}{under}"

    def open(self, request_timeout_s: float) -> S3Store:
        """The library's store, with no retries of its own. `ConfigError` if it cannot be made."""
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise ConfigError("S3 needs the package obstore: pip install 'tiered-kvstore[s3]'") from error
        config: dict[str, Any] = {
            "region": self.region, "access_key_id": self.access_key_id, "session_token": self.session_token,
            "secret_access_key": self.secret_access_key, "endpoint": self._host(),
        }  # fmt: skip
        config = {name: value for name, value in config.items() if value}
        config |= {"virtual_hosted_style_request": self.virtual_host, "copy_if_not_exists": "multipart"}
        client = self._client(request_timeout_s)
        unfit: tuple[type[Exception], ...] = (*failures(), ValueError)
        try:
            return S3Store(
                self.bucket, prefix=self.prefix.strip("/") or None, config=config,  # type: ignore[arg-type]
                client_options=client, retry_config={"max_retries": 0},
            )  # fmt: skip
        except unfit as error:  # with texts that are not ours to show
            raise ConfigError(f"{self} cannot be opened: {type(error).__name__}") from None

    def _client(self, request_timeout_s: float) -> Any:
        options: dict[str, Any] = {
            "allow_http": self.endpoint.startswith("http://"),
            "timeout": timedelta(seconds=request_timeout_s),
            "connect_timeout": timedelta(seconds=min(5.0, request_timeout_s)),
            "pool_idle_timeout": timedelta(seconds=15),
        }
        if self.ca_certificate is not None:
            try:
                options["root_certificate"] = self.ca_certificate.read_bytes()
            except OSError as error:
                raise ConfigError(f"ca_certificate {self.ca_certificate} cannot be read: {error.strerror}") from None
        return options

    def _host(self) -> str:
        if not self.endpoint or not self.virtual_host:
            return self.endpoint.rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.netloc.startswith(f"{self.bucket}."):
            return self.endpoint.rstrip("/")
        return urlunsplit((parts.scheme, f"{self.bucket}.{parts.netloc}", "", "", ""))

    def _check_endpoint(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.username or parts.password:
            raise ConfigError("an endpoint has no user and password in it: give access_key_id and secret_access_key")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigError(f"{self.endpoint!r} is no endpoint: http://HOST:PORT or https://HOST[:PORT]")


class Stores:
    """The library's stores for one place, by how long a request may take, which is a property of its store.

    Times are rounded down to a grid, each step a fifth less than the next, so that there are few: each has connections
    of its own.
    """

    def __init__(self, place: S3Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._stores: OrderedDict[int, S3Store] = OrderedDict()

    def within(self, seconds: float) -> S3Store:
        """A store whose requests end within so many seconds. `DeadlineExceeded` for less than a millisecond."""
        if seconds < 0.001:
            raise DeadlineExceeded(f"no time is left to ask {self._place}")
        step = math.floor(math.log(seconds, _GRID) + 1e-9)
        with self._lock:
            store = self._stores.get(step)
            if store is None:
                store = self._stores[step] = self._place.open(_GRID**step)
            self._stores.move_to_end(step)
            if len(self._stores) > _MOST_STORES:
                self._stores.popitem(last=False)
        return store
