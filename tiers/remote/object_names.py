"""Which names an engine takes."""

from __future__ import annotations

import re

from kvstore.errors import InvalidArgument

LONGEST = 200
_NAME = re.compile(r"(?!.*//)[a-z0-9._-][a-z0-9/._-]*(?<!/)")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")


def check_name(name: str) -> str:
    """The name itself, or `InvalidArgument`: a component is never empty, `.` or `..`."""
    if len(name) > LONGEST or not _NAME.fullmatch(name) or _DOTS.search(name):
        raise InvalidArgument(
            f"{name!r} is no name of an object: at most {LONGEST} of a-z, 0-9, '.', '_' and '-', in components that "
            "'/' parts, none of them empty, '.' or '..'"
        )
    return name
