"""Which look-up record is out of bounds."""

from __future__ import annotations

import random

import pytest

from kvstore import _native
from kvstore.keys import ChunkRef, pack_refs

END = 0xFFFFFFFF


def packed(*sizes: tuple[int, int]) -> bytes:
    return pack_refs([ChunkRef(bytes(32), bytes(32), position, tokens) for position, tokens in sizes])


@pytest.mark.parametrize(
    ("position", "tokens", "well"),
    [(0, 1, True), (0, 64, True), (0, 65, False), (0, 0, False), (END - 64, 64, True), (END - 63, 64, False),
     (END, 1, False), (0, END, False), (END, END, False)],
)  # fmt: skip
def test_bounds(position: int, tokens: int, well: bool) -> None:
    refs = packed((0, 64), (64, 64), (position, tokens))
    assert _native.wrong_ref(refs, 64, END) == (-1 if well else 2)


def test_the_first_is_told() -> None:
    dice = random.Random(3)
    for _ in range(200):
        tokens = [dice.choice((1, 64, 64, 65, 0)) for _ in range(dice.randrange(6))]
        wrong = next((number for number, each in enumerate(tokens) if not 1 <= each <= 64), -1)
        assert _native.wrong_ref(packed(*((7, each) for each in tokens)), 64, END) == wrong


def test_a_piece_of_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="40"):
        _native.wrong_ref(bytes(39), 64, END)
