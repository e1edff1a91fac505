"""A frame that is small enough to print, of a plan made by hand: the test vector of docs/codecs.md."""

from __future__ import annotations

import numpy as np

from kvstore.codecs import Block
from kvstore.codecs.transform.plan import Plan, Section
from kvstore.codecs.transform.rotary import Rotary
from tests.codecs.transform.made import block_of, raw_of

BODY = ""
ELEMENTS = ""


def golden() -> tuple[Block, Plan, bytearray]:
    """One layer, K and V, two heads of 2, six tokens of which the first two are sinks; and its elements."""
    bank = np.zeros((2, 256), np.uint16)
    bank[0, 128] = 4096
    bank[1, [0, 126, 127, 128, 129, 130]] = 96, 500, 1000, 1000, 1000, 500
    matrix = np.array([[64, 1], [-1, 64]], np.int8)
    sections = tuple(
        Section(
            2 * i, 8 * i, matrix, np.array([0.5, 0.25], np.float32) / 64, np.array([1, -2], np.float32),
            np.array([[2, 0], [0, 4]], np.float32),
        )
        for i in range(4)
    )  # fmt: skip
    tables, shift = np.zeros(32, np.uint8), np.zeros(32, np.uint8)
    for section in sections:
        tables[section.columns] = 1
    shift[8] = 2
    rotary = (Rotary(np.array([0.5])),)
    plan = Plan(sections, rotary, tables, shift, bank, np.full(32, 0.5, np.float32), 4)
    block = block_of((0,), 2, 6, 2, 2, position=2)
    values = ((np.arange(48, dtype=np.float32) * 7) % 16 / 8 - 1).reshape(1, 2, 6, 2, 2) + [1, -2]
    values[0, 1, 3, 0, 1] = 9
    return block, plan, raw_of(values.astype(np.float32), block)
