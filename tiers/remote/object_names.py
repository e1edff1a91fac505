"""Which names an engine takes, and what another kvstore knows their objects by."""

from __future__ import annotations

import re
from hashlib import sha256

from kvstore.errors import InvalidArgument

LONGEST = 200
_COMPONENT = r"(?!\.{1,2}(?:/|\Z))[a-z0-9._-]+"  # not '.' or '..'
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")


def check_name(name: str) -> str:
    """The name itself, or `InvalidArgument`: a component is never empty, `.` or `..`."""
    if len(name) > LONGEST or not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is no name of an object: at most {LONGEST} of a-z, 0-9, '.', '_' and '-', in components that "
            "'/' parts, none of them empty, '.' or '..'"
        )
    return name


def object_key(name: str) -> bytes:
    """The key of the chunk that an object of this name is in another kvstore."""
    return sha256(name.encode()).digest()
