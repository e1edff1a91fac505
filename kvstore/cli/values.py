"""What the values of flags are read as; a wrong one is wrong usage."""

from __future__ import annotations

import argparse

from kvstore.config import Quantity
from kvstore.errors import ConfigError
from kvstore.schema import Key

_SIZE = Key("bench", "size", int, Quantity("bytes", positive=True), False, None)


def natural(text: str) -> int:
    """A whole number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def number(text: str) -> float:
    """A number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def size(text: str) -> int:
    """Bytes, with or without a unit."""
    try:
        return int(_SIZE.parse(text))
    except ConfigError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_SIZE.accepts}") from None


def sizes(text: str) -> tuple[int, ...]:
    """Several sizes with commas between them."""
    return tuple(size(each) for each in text.split(","))


def positives(text: str) -> tuple[int, ...]:
    """Several whole numbers of 1 or more with commas between them."""
    return tuple(positive(each) for each in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """Several words with commas between them."""
    return tuple(text.split(","))
