"""One tree of exceptions.

Every class carries the gRPC status that the wire uses for it and the exit code that the command line ends
with, so that an error keeps its meaning across processes. Messages say what was wrong, with the value, and what
to do.
"""

from __future__ import annotations

from typing import ClassVar


class KVStoreError(Exception):
    """Anything this package raises on purpose."""

    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1


class InvalidArgument(KVStoreError, ValueError):
    """The caller's input is wrong; asking again with the same input cannot succeed."""

    status = "INVALID_ARGUMENT"
    exit_code = 2


class ConfigError(InvalidArgument):
    """A configuration file, variable or flag is wrong; names the line."""


class SpecMismatch(InvalidArgument):
    """Bytes do not fit the spec, or a record names another key or spec than it was found under."""

    status = "FAILED_PRECONDITION"


class TooLarge(InvalidArgument):
    """A value larger than any tier can hold."""

    status = "OUT_OF_RANGE"


class NotFound(KVStoreError, LookupError):
    """A chunk, part or lease that is not there (any more): a miss."""

    status = "NOT_FOUND"
    exit_code = 3


class LeaseExpired(NotFound):
    """The lease is unknown, released or past its time limit."""

    status = "ABORTED"


class PermissionDenied(KVStoreError):
    """The token is missing, wrong, or bound to another namespace."""

    status = "PERMISSION_DENIED"
    exit_code = 4


class UnknownNamespace(PermissionDenied):
    """No such namespace is configured here, or the token may not see it."""

    status = "UNAUTHENTICATED"


class Shed(KVStoreError):
    """The store refused new bytes under pressure (loads come before stores); try later.

    `reason` is the name of the counter that was raised: ``pressure``, ``leased``, ``no_space``, ``index_full``.
    """

    status = "RESOURCE_EXHAUSTED"
    exit_code = 5

    def __init__(self, message: str, reason: str = "pressure") -> None:
        super().__init__(message)
        self.reason = reason


class Corrupt(KVStoreError):
    """Bytes that do not match their checksum. The placement is quarantined and counts as a miss from then on."""

    status = "DATA_LOSS"
    exit_code = 6


class StorageError(KVStoreError, OSError):
    """A disk or a folder does not do what is needed: full, read-only, in use, failing."""

    status = "FAILED_PRECONDITION"
    exit_code = 7

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Unavailable(KVStoreError, ConnectionError):
    """The server cannot be reached, or went away."""

    status = "UNAVAILABLE"
    exit_code = 8

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DeadlineExceeded(KVStoreError, TimeoutError):
    """The time limit passed before the answer came."""

    status = "DEADLINE_EXCEEDED"
    exit_code = 9

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Closed(KVStoreError):
    """The client or the store was closed already."""

    status = "CANCELLED"
