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


def block_of(tokens: int, dtype: str = "bfloat16", axes: tuple[str, ...] = CANONICAL, dim: int = 16) -> Block:
    return Block(dtype, (0, 1), 2, tokens, 2, dim, axes, 0)


def values_of(block: Block, seed: int = 0, share: float = 0.03) -> bytes:
    """Normal values, zeros, and a share of infinities or NaN and of the least numbers, which are escapes."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((2, 2, block.tokens, block.heads, block.dim)).astype(np.float32)
    values[draw.random(values.shape) < 0.05] = 0
    raw = bytearray(block.nbytes)
    bits = block.canonical(raw)
    bits[...] = from_float32(values, block.dtype)
    rare = draw.random(values.shape)
    bits[rare < share] = {"bfloat16": 0x7FC1, "float16": 0xFC00, "float32": 0x7F800123}[block.dtype]
    bits[rare > 1 - share] = 1
    return bytes(raw)


@pytest.mark.parametrize(
    "block",
    [
        block_of(5),
        block_of(3, "float16"),
        block_of(3, "float16", dim=7),
        block_of(4, "float32"),
        block_of(5, axes=("layer", "kv", "head", "dim", "token")),
    ],
    ids=["bf16", "fp16", "odd", "fp32", "permuted"],
)
def test_every_bit_comes_back(block: Block, device: torch.device) -> None:
    raws = [values_of(block), values_of(block, 1), np.random.default_rng(2).bytes(block.nbytes)]
    containers = [encode_on_host(raw, block, FORM).data for raw in raws]
    outs = [torch.zeros(block.nbytes, dtype=torch.uint8, device=device) for _ in raws]
    gpu.decode(containers, [block] * 3, outs)
    for raw, out in zip(raws, outs, strict=True):
        assert out.cpu().numpy().tobytes() == raw


def test_chunks_that_are_stored_and_coded_ones(device: torch.device) -> None:
    noise, block = block_of(1), block_of(64)
    raws = [np.random.default_rng(2).bytes(noise.nbytes), values_of(block, share=0.002)]
    containers = [encode_on_host(raw, each, FORM).data for raw, each in zip(raws, (noise, block), strict=True)]
    kinds = [bytes(next(frames(each))[1][:1]) for each in containers]
    assert kinds[0] == b"\0"
    assert kinds[1] != b"\0"
    outs = [torch.zeros(len(raw), dtype=torch.uint8, device=device) for raw in raws]
    gpu.decode(containers, [noise, block], outs)
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
        lambda body: b"\0" + body[1:],
    ],
)
def test_bodies_that_no_encoder_makes(change: object, device: torch.device) -> None:
    assert callable(change)
    block = block_of(64).cut(0, 1)
    good = encode_on_host(values_of(block_of(64), share=0.002)[: block.nbytes], block, FORM).data
    frame, body = next(frames(good))
    bad = resealed(frame, change(bytes(body)))
    with pytest.raises(Corrupt):
        decode_on_host(bad, memoryview(bytearray(block.nbytes)), block)
    with pytest.raises(Corrupt):
        gpu.decode([bad], [block], [torch.zeros(block.nbytes, dtype=torch.uint8, device=device)])
