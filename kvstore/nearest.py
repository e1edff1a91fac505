"""What somebody may have meant by a name that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean …?`, or what there is when nothing is near."""
    close = get_close_matches(name.lower(), [each.lower() for each in known], 1, 0.6)
    if close:
        right = next(each for each in known if each.lower() == close[0])
        return f"; did you mean {right!r}?"
    return f"; known are {', '.join(sorted(known))}"
