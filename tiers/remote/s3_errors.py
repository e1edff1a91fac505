"""What went wrong with a request to S3, in this package's classes and words.

The library's own texts quote a server's whole answer, which may hold what was signed. Of them only the HTTP status,
the server's error code and the kind of a connection's failure are kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvstore.errors import (
    ConfigError,
    DeadlineExceeded,
    KVStoreError,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
)
from kvstore.tiers.base import TierFull

_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_STATUS = re.compile(r"status(?: code)?:? ([1-5]\d\d)\b")
_LATE = "timed out"
_CONNECTION = {
    "timed out": _LATE,
    "timedout": _LATE,
    "connection refused": "connection refused",
    "dns error": "its name cannot be resolved",
    "failed to lookup": "its name cannot be resolved",
    "certificate": "its certificate is not trusted (give ca_certificate, or correct the endpoint)",
    "connection reset": "connection reset",
    "broken pipe": "connection lost",
    "connection closed": "connection lost",
    "incompletemessage": "connection lost",
    "unexpected eof": "connection lost",
    "error decoding response body": "connection lost",
    "error sending request": "the request could not be sent",
    "http error": "connection lost",
}
_ABSENT = frozenset({"NotFoundError", "FileNotFoundError"})  # one class under two names
_CLOCKS, _SET_CLOCK = "disagree about the time", "set this host's clock (NTP)"
_BUSY = frozenset({429, 500, 502, 503, 504})
_REDIRECT = 301
_REDIRECTED = frozenset({_REDIRECT, 307, 308})
_ASTRAY = "redirect without location"  # all that the library says of S3's answer for a bucket of another region
_STRANGE_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})  # Ceph's, MinIO's
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


def failures() -> tuple[type[Exception], ...]:
    """What the library raises for a request: classes of its own, `FileNotFoundError` for an object that is not there,
    and `OSError` for what its own I/O ran into. (`KVStoreError`s that are `OSError`s too are to be let through.)"""
    from obstore.exceptions import BaseError

    return BaseError, OSError


@dataclass(frozen=True)
class Failure:
    """What is known of a failed request: the library's class, HTTP status (0: none), the server's code, connection."""

    kind: str
    status: int
    code: str
    connection: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Read from an exception of obstore."""
        text = str(error)
        code, status = _CODE.search(text), _STATUS.search(text)
        low = text.lower()
        connection = next((said for sign, said in _CONNECTION.items() if sign in low), "")
        number = int(status[1]) if status else _REDIRECT if _ASTRAY in low else 0
        return cls(type(error).__name__, number, code[1] if code else "", "" if number else connection)

    @property
    def is_absent(self) -> bool:
        """Whether the object is not there, and not the bucket."""
        return self.kind in _ABSENT and self.code != "NoSuchBucket"

    @property
    def is_taken(self) -> bool:
        """Whether a conditional request met an object that is there."""
        return self.kind in {"AlreadyExistsError", "PreconditionError", "NotModifiedError"}

    @property
    def is_conflict(self) -> bool:
        """Whether another upload of the same name is under way, so that nobody knows yet."""
        return self.status == 409 or self.code == "ConditionalRequestConflict"

    @property
    def is_beyond(self) -> bool:
        """Whether a range began after the end of the object."""
        return self.status == 416 or self.code == "InvalidRange"

    @property
    def is_no_bucket(self) -> bool:
        """Whether the bucket is not there."""
        return self.code == "NoSuchBucket"

    @property
    def is_full(self) -> bool:
        """Whether there is no room, on the server or in a quota."""
        return self.status == 507 or self.code in _FULL

    @property
    def is_skewed(self) -> bool:
        """Whether this host's clock and the server's are too far apart to sign anything."""
        return self.code in _CLOCK

    @property
    def is_denied(self) -> bool:
        """Whether the server refuses these credentials, or this request with them."""
        return self.kind in {"PermissionDeniedError", "UnauthenticatedError"} or self.status in {401, 403}

    @property
    def is_unheard(self) -> bool:
        """Whether no answer came at all."""
        return not self.status and bool(self.connection)

    @property
    def said(self) -> str:
        """For messages: `503 SlowDown`, `connection refused`."""
        words = [str(self.status or ""), self.code or ("" if self.status else self.connection or self.kind)]
        return " ".join(word for word in words if word)


def explain(failure: Failure, doing: str, place: str) -> KVStoreError:
    """The error to raise for a request that failed while `doing` at `place`."""
    if failure.is_absent:
        return NotFound(f"{doing}: no such object in {place}")
    if failure.is_no_bucket:
        return StorageError(f"{doing}: there is no such bucket any more: {place}")
    if failure.is_full:
        return TierFull(f"{doing}: {place} has no room ({failure.said})")
    if failure.is_skewed:
        return PermissionDenied(f"{doing}: {place} and this host {_CLOCKS} ({failure.said}): {_SET_CLOCK}")
    if failure.is_denied:
        return PermissionDenied(f"{doing}: {place} refuses it ({failure.said}): check the credentials and their policy")
    if failure.is_unheard and failure.connection == _LATE:
        return DeadlineExceeded(f"{doing}: {place} did not answer in time")
    if failure.is_unheard or failure.status in _BUSY or failure.is_conflict:
        return Unavailable(f"{doing}: {place} does not serve ({failure.said})")
    return StorageError(f"{doing}: {place} answered {failure.said}")


def refuse(failure: Failure, place: str) -> ConfigError | None:
    """Why a place cannot work, with what to do; None if it may when it is asked again."""
    if failure.is_no_bucket or failure.kind in _ABSENT:
        return ConfigError(f"there is no {place}: create the bucket, or correct bucket or endpoint")
    if failure.code in _ELSEWHERE or failure.status in _REDIRECTED:
        return ConfigError(f"{place} is in another region ({failure.said}): set region")
    if failure.is_full:
        return ConfigError(f"{place} has no room for one byte ({failure.said}): make room, or raise its quota")
    if failure.is_skewed:
        return ConfigError(f"{place} and this host {_CLOCKS} ({failure.said}): {_SET_CLOCK}")
    if failure.code in _STRANGE_KEYS or failure.status == 401:
        return ConfigError(
            f"{place} does not know these credentials ({failure.said}): correct access_key_id and secret_access_key, "
            "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if failure.is_denied:
        return ConfigError(
            f"{place} does not allow this user to write, read and delete ({failure.said}): change the policy"
        )
    if failure.is_unheard or failure.status in _BUSY:
        return None
    return ConfigError(f"{place} is no S3 bucket to write to ({failure.said})")
