"""The lossless codec on a device gives back every bit, and refuses what no encoder makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvstore.codecs import Block, Form, all_codecs, gpu
from kvstore.codecs import decode as decode_on_host
from kvstore.codecs import encode as encode_on_host
from kvstore.codecs.floats import from_float32
from kvstore.codecs.frame import Frame, frames
from kvstore.errors import Corrupt

CANONICAL = ("layer", "kv", "token", "head", "dim")
FORM = Form(all_codecs()["lossless"])


def block_of(
    tokens: int, dtype: str = "bfloat16", axes: tuple[str, ...] = CANONICAL, heads: int = 1, dim: int = 16
) -> Block:
    return Block(dtype, (0,), 2, tokens, heads, dim, axes, 0)


def values_of(block: Block, seed: int = 0) -> bytes:
    """Normal values, zeros, infinity or NaN, and the least numbers: some escapes."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((1, 2, block.tokens, block.heads, block.dim)).astype(np.float32)
    values[draw.random(values.shape) < 0.01] = 0
    raw = bytearray(block.nbytes)
    bits = block.canonical(raw)
    bits[...] = from_float32(values, block.dtype)
    bits[draw.random(values.shape) < 0.02] = 1
    # What is large moves the channel's table, so that all else there is escaped: one channel has it.
    bits[0, 0, 3 % block.tokens, 0, 0] = {"bfloat16": 0x7FC1, "float16": 0xFC00, "float32": 0x7F800123}[block.dtype]
    return bytes(raw)


@pytest.mark.parametrize(
    "block",
    [
        block_of(40),
        block_of(48, "float16"),
        block_of(96, "float16", heads=2, dim=7),
        block_of(40, "float32"),
        block_of(40, axes=("layer", "kv", "head", "dim", "token"), heads=2),
    ],
    ids=["bf16", "fp16", "odd", "fp32", "permuted"],
)
def test_every_bit_comes_back(block: Block, device: torch.device) -> None:
    raw = values_of(block)
    container = encode_on_host(raw, block, FORM).data
    body = next(frames(container))[1]
    assert body[0] != 0
    assert any(body[1:5])  # escapes
    out = torch.zeros(block.nbytes, dtype=torch.uint8, device=device)
    gpu.decode([container], [block], [out])
    assert out.cpu().numpy().tobytes() == raw


def test_chunks_that_are_stored_and_coded_ones(device: torch.device) -> None:
    noise, block = block_of(1), block_of(40)
    blocks = [noise, block, block]
    raws = [np.random.default_rng(2).bytes(noise.nbytes), values_of(block), values_of(block, 1)]
    containers = [encode_on_host(raw, each, FORM).data for raw, each in zip(raws, blocks, strict=True)]
    kinds = [bytes(next(frames(each))[1][:1]) for each in containers]
    assert [kind == b"\0" for kind in kinds] == [True, False, False]
    outs = [torch.zeros(len(raw), dtype=torch.uint8, device=device) for raw in raws]
    gpu.decode(containers, blocks, outs)
    assert [out.cpu().numpy().tobytes() for out in outs] == raws


def resealed(frame: Frame, body: bytes) -> bytes:
    """A frame with another body, whose checksum fits."""
    head = Frame(**{name: getattr(frame, name) for name in Frame.__slots__} | {"body": len(body)})
    return head.pack(body) + body


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: b"\x08" + body[1:],
        lambda body: body[:1] + bytes([body[1] ^ 1]) + body[2:],
        lambda body: body[:1] + b"\xff\xff\xff\xff" + body[5:],
        lambda body: body[:-2],
        lambda body: body[:-1],
        lambda body: body[:-1] + bytes([body[-1] ^ 1]),
        lambda body: body[:40] + b"\x10" + body[41:],  # a table
        lambda body: b"\0" + body[1:],
    ],
)
def test_bodies_that_no_encoder_makes(change: object, device: torch.device) -> None:
    assert callable(change)
    block = block_of(40)
    frame, body = next(frames(encode_on_host(values_of(block), block, FORM).data))
    assert body[0] != 0
    bad = resealed(frame, change(bytes(body)))
    with pytest.raises(Corrupt):
        decode_on_host(bad, memoryview(bytearray(block.nbytes)), block)
    with pytest.raises(Corrupt):
        gpu.decode([bad], [block], [torch.zeros(block.nbytes, dtype=torch.uint8, device=device)])
