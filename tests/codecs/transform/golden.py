"""A frame that is small enough to print, of a plan made by hand: the test vector of docs/codecs.md."""

from __future__ import annotations

import numpy as np

from kvstore.codecs import Block
from kvstore.codecs.transform.plan import Plan, Section
from kvstore.codecs.transform.rotary import Rotary
from tests.codecs.transform.made import block_of, raw_of

BODY = (
    "01020001000200001000000086000000000008c0e03f18c0c03f28c0a03f38c0803f90bf403fb0bf003fd0bf803ef0bf030f"
    "000000000000fbff00000100060000000900080001000000fbff010001000c00010009000d00010011002c0001001900fcff"
    "02000000fdff02000100100002000900100002001100040002001900030003000000fdff0300010014000300090015002d00"
    "18002d001800008000000080000000800000008000000080000000800000d88053042d001800008000000080000000800000"
    "008000000080000000800000ace11501bc620578008000000080000000800000008000000080000000800000e47f2e021442"
    "77770080000000800000008000000080000000800000008000004050405040500000"
)
ELEMENTS = (
    "000008c0e03f18c0c03f28c0a03f38c0853f90bf153fa8bf043fd4bfb93eedbfb33d03c0c93f11c0b03f2dc07d3f47c0803f"
    "90bf403fb0bf003fd0bf803ef0bf00bc10c0fe3f20c0ec3f1041bc3f40c0843f80bf063fa0bf043fc0bf003cdfbf"
)


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
    values = ((np.arange(48, dtype=np.float32) * 7) % 16 / 8 - 1).reshape(1, 2, 6, 2, 2) + np.array([1, -2])
    values[0, 1, 3, 0, 1] = 9
    return block, plan, raw_of(values.astype(np.float32), block)
