"""Test vectors of cachegen's body: a later change must not alter the format unnoticed."""

from __future__ import annotations

import numpy as np

from kvstore.codecs import Artefact, Block, ModelShape
from kvstore.codecs.cachegen import CacheGen
from kvstore.codecs.floats import from_float32, to_float32

CODEC = CacheGen()
BLOCK = Block("bfloat16", (0,), 1, 5, 1, 3, ("layer", "token", "dim"), 256)
VALUES = np.array(
    [[1.0, -2.0, 0.5], [1.5, -2.5, 0.25], [0.5, 900.0, 0.75], [1.0, -1.0, 8.0], [1.3125, -2.0, 0.0]], np.float32
)
# States of lanes at rest, then the differences' one word.
ANCHORS = "a0088100a048810087090808" + "00800000" * 29
DIFFERENCES = "8bac0301168600004f764040" + "00800000" * 29 + "0c80"


def artefact() -> Artefact:
    """Groups of 3; codes from -8 to 7 in table 0, from -4 to 3 in table 1."""
    bank = np.zeros((2, 256), np.uint16)
    bank[0, 120:136], bank[1, 124:132] = 255, 511
    bank[:, 0] = 4096 - bank.sum(axis=1)
    tables = np.tile(np.array([[0, 0, 0], [1, 0, 1]], np.uint8), (4, 1, 1))
    arrays = {
        "bank": bank,
        "tables": tables,
        "mean": np.array([1.0, -2.0, 0.0], np.float32),
        "anchor_step": np.array([0.125, 0.25, 0.5], np.float32),
        "anchor_floor": np.full((4, 1), 0.125, np.float32),
        "step": np.array([[0.125], [0.25], [0.5], [1.0]], np.float32),
    }
    return Artefact.build("cachegen", ModelShape("m", {0: (1, 1, 3)}), {"group": 3}, arrays)


def test_a_body() -> None:
    raw = from_float32(VALUES, "bfloat16").tobytes()
    body = CODEC.encode_frame(memoryview(raw), BLOCK, 1, artefact())
    assert bytes(body) == CODEC.encode_reference(memoryview(raw), BLOCK, 1, artefact())
    assert bytes(body[:16]).hex() == "80000000" + "01000000" + "02000000" + "0300" + "0000"
    assert bytes(body[-6:]).hex() == "0041" + "6144" + "0000"
    assert bytes(body[16:-6]).hex() == ANCHORS + DIFFERENCES


def test_what_it_decodes_to() -> None:
    raw = from_float32(VALUES, "bfloat16").tobytes()
    body = CODEC.encode_reference(memoryview(raw), BLOCK, 1, artefact())
    out = bytearray(len(raw))
    CODEC.decode_reference(memoryview(body), BLOCK, memoryview(out), 1, artefact())
    found = to_float32(np.frombuffer(out, np.uint16), "bfloat16").reshape(5, 3)
    assert found.tolist() == [*VALUES[:4].tolist(), [1.25, -2.0, 0.0]]
