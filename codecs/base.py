"""What a codec is, and which ones there are.

A stored form is a codec's number and a level. `raw` is number 0; the layer groups of every form are decoded alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from kvstore import _native
from kvstore.errors import SpecMismatch


class Codec(ABC):
    """Turns stored layer groups into raw bytes."""

    number: ClassVar[int]
    name: ClassVar[str]
    exact: ClassVar[bool]

    @abstractmethod
    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        """Decode consecutive layer groups of a payload into their raw bytes."""


class Raw(Codec):
    """The bytes themselves."""

    number = 0
    name = "raw"
    exact = True

    def decode_into(self, stored: memoryview, out: memoryview) -> None:
        _native.copy(out, stored)


_CODECS: dict[int, Codec] = {Raw.number: Raw()}


def codec(form: int) -> Codec:
    """The codec of a stored form; `SpecMismatch` for one that this build does not have."""
    found = _CODECS.get(form)
    if found is None:
        raise SpecMismatch(f"form {form} is not known to this build, which has {sorted(_CODECS)}")
    return found


def form_name(form: int) -> str:
    """The codec's name, or its number where this build does not have it."""
    found = _CODECS.get(form)
    return found.name if found else f"form-{form}"
