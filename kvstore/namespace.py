"""Namespaces: tenants, each with a digest of its own in every record."""

from __future__ import annotations

import hashlib
import re

from kvstore.errors import InvalidArgument

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def check_name(name: str) -> str:
    """Return `name` if it may name a namespace, or raise `InvalidArgument`."""
    if not _NAME.match(name):
        raise InvalidArgument(
            f"{name!r} cannot name a namespace: 1 to 64 letters, digits, '.', '_' or '-', the first no mark"
        )
    return name


def namespace_digest(name: str) -> bytes:
    """The 16 bytes that stand for a namespace in records."""
    return hashlib.sha256(b"kvstore/namespace/1\0" + name.encode()).digest()[:16]
