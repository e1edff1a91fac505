"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or what there is when nothing is near."""
    close = closest(name, known)
    return f"; known are {', '.join(sorted(known))}" if close is None else f"; did you mean {close!r}?"


def closest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most like this one; None where none is."""
    close = get_close_matches(name.lower(), [each.lower() for each in known], 1, 0.6)
    return next(each for each in known if each.lower() == close[0]) if close else None
