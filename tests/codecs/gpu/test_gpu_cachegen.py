"""The cachegen codec on a device: the bits of the definition, and what no encoder makes is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from kvstore.codecs import Artefact, Block, Encoded, Form, ModelShape, all_codecs, gpu
from kvstore.codecs import decode as decode_on_host
from kvstore.codecs import encode as encode_on_host
from kvstore.codecs.cachegen import profile
from kvstore.codecs.floats import from_float32
from kvstore.codecs.frame import Frame, frames
from kvstore.errors import Corrupt

CANONICAL = ("layer", "kv", "token", "head", "dim")
LAYERS, HEADS, DIM = 2, 2, 8


def kv(tokens: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    steps = draw.standard_normal((LAYERS, 2, tokens, HEADS, DIM)).cumsum(2) * 0.1
    return (steps + np.random.default_rng(0).normal(0, 2, (LAYERS, 2, 1, HEADS, DIM))).astype(np.float32)


@cache
def artefact() -> Artefact:
    return profile([kv(300, 5)], ModelShape("tiny", dict.fromkeys(range(LAYERS), (2, HEADS, DIM))))


def block_of(tokens: int, position: int, dtype: str = "bfloat16", axes: tuple[str, ...] = CANONICAL) -> Block:
    return Block(dtype, tuple(range(LAYERS)), 2, tokens, HEADS, DIM, axes, position)


def encoded(block: Block, level: int, seed: int) -> Encoded:
    values = kv(block.tokens, seed)
    values[:, :, ::3, 0, 2] *= 50  # what the tables do not reach is written out
    raw = bytearray(block.nbytes)
    block.canonical(raw)[...] = from_float32(values, block.dtype)
    return encode_on_host(raw, block, Form(all_codecs()["cachegen"], level, artefact()))


@pytest.mark.parametrize(
    ("level", "made"),
    [
        (0, [block_of(13, 0), block_of(11, 13), block_of(1, 24)]),
        (3, [block_of(12, 30, "float16", ("layer", "kv", "head", "dim", "token"))]),
        (1, [block_of(2, 0, "float32")]),
    ],
    ids=["prompt", "permuted", "short"],
)
def test_decoding_gives_the_bits_of_the_definition(level: int, made: list[Block], device: torch.device) -> None:
    containers = [encoded(block, level, seed).data for seed, block in enumerate(made)]
    outs = [torch.zeros(block.nbytes, dtype=torch.uint8, device=device) for block in made]
    gpu.decode(containers, made, outs, artefacts=lambda _: artefact())
    for container, block, out in zip(containers, made, outs, strict=True):
        expected = bytearray(block.nbytes)
        decode_on_host(container, memoryview(expected), block, artefacts=lambda _: artefact())
        np.testing.assert_array_equal(out.cpu().numpy(), np.frombuffer(expected, np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[:4] + bytes([body[4] - 1]) + body[5:],
        lambda body: body[:4] + bytes([body[4] + 1]) + body[5:],
        lambda body: body[:8] + bytes([body[8] + 1]) + body[9:],
        lambda body: body[:12] + b"\0" + body[13:],
        lambda body: body[:40] + bytes([body[40] ^ 8]) + body[41:],
        lambda body: body[:10],
    ],
)
def test_bodies_that_no_encoder_makes(change: object, device: torch.device) -> None:
    assert callable(change)
    block = block_of(13, 0).cut(0, 1)
    frame, body = next(frames(encoded(block_of(13, 0), 0, 1).data))
    changed = change(bytes(body))
    head = Frame(**{name: getattr(frame, name) for name in Frame.__slots__} | {"body": len(changed)})
    bad = head.pack(changed) + changed
    with pytest.raises(Corrupt):
        decode_on_host(bad, memoryview(bytearray(block.nbytes)), block, artefacts=lambda _: artefact())
    out = torch.zeros(block.nbytes, dtype=torch.uint8, device=device)
    with pytest.raises(Corrupt):
        gpu.decode([bad], [block], [out], artefacts=lambda _: artefact())
