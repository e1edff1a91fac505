"""Messages that no encoder made: a good one with bits flipped, bytes left out or repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator


def mutations(plain: bytes, seed: int, count: int) -> Iterator[bytes]:
    """So many variants of a message, each with one or two changes."""
    dice = random.Random(seed)
    for _ in range(count):
        message = bytearray(plain)
        for _ in range(dice.randrange(1, 3)):
            at = dice.randrange(len(message))
            match dice.randrange(3):
                case 0:
                    message[at] ^= 1 << dice.randrange(8)
                case 1:
                    del message[at : at + dice.randrange(1, 4)]
                case _:
                    message[at:at] = message[at : at + dice.randrange(1, 50)]
        yield bytes(message)
