"""The transform codec on a device: the bits of the definition, for every variant, layout, dtype and rotation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from kvstore.codecs import Artefact, Block, Encoded, Form, ModelShape, all_codecs, gpu
from kvstore.codecs import decode as decode_on_host
from kvstore.codecs import encode as encode_on_host
from kvstore.codecs.floats import from_float32
from kvstore.codecs.frame import HEADER_BYTES, frames
from kvstore.codecs.transform import Rotary
from kvstore.codecs.transform.body import Shape, unpack
from kvstore.codecs.transform.fit import Documents, fit
from kvstore.codecs.transform.plan import plan_of
from kvstore.errors import Corrupt, NotFound

CANONICAL = ("layer", "kv", "token", "head", "dim")
LAYERS, HEADS, DIM = 2, 2, 16
TURN = Rotary.of_base(10000.0, DIM // 2)


def kv(tokens: int, planes: int, heads: int, dim: int, seed: int) -> np.ndarray:
    """float32 `[layer, plane, token, head, dim]` with channels of very different sizes and means."""
    draw = np.random.default_rng(seed)
    size = np.exp(np.random.default_rng(1).normal(0, 1.2, (LAYERS, planes, 1, heads, dim)))
    mean = np.random.default_rng(2).normal(0, 2, size.shape)
    return (draw.standard_normal((LAYERS, planes, tokens, heads, dim)) * size + mean).astype(np.float32)


@cache
def artefact_of(variant: str, rotary: Rotary = TURN, planes: int = 2, heads: int = HEADS, dim: int = DIM) -> Artefact:
    """A transform whose finest level has low bits and whose small steps have escapes."""
    arrays = [kv(400, planes, heads, dim, seed) for seed in (10, 11)]
    documents = Documents(arrays, [rotary] * LAYERS, sinks=2)
    model = ModelShape("tiny", dict.fromkeys(range(LAYERS), (planes, heads, dim)))
    weights = [np.broadcast_to(np.eye(dim), (planes, heads, dim, dim))] * LAYERS
    groups = [tuple(range(LAYERS))] if variant == "joint" else None
    fitted = fit(model, documents, variant, weights, np.ones((LAYERS, planes)), groups=groups)
    return fitted.artefact({"near": 0.004, "small": 0.5})


def encoded(artefact: Artefact, level: str, block: Block, seed: int = 3) -> Encoded:
    values = kv(block.tokens, block.planes, block.heads, block.dim, seed)
    values[:, :, -1, :, 0] *= 30
    raw = bytearray(block.nbytes)
    block.canonical(raw)[...] = from_float32(values, block.dtype)
    codec = all_codecs()["transform"]
    return encode_on_host(raw, block, Form(codec, codec.levels.index(level), artefact))


def compare(artefact: Artefact, made: list[tuple[Encoded, Block]], device: torch.device) -> None:
    outs = [torch.zeros(block.nbytes, dtype=torch.uint8, device=device) for _, block in made]
    gpu.decode([each.data for each, _ in made], [block for _, block in made], outs, artefacts=lambda _: artefact)
    for (each, block), out in zip(made, outs, strict=True):
        expected = bytearray(block.nbytes)
        decode_on_host(each.data, memoryview(expected), block, artefacts=lambda _: artefact)
        np.testing.assert_array_equal(out.cpu().numpy(), np.frombuffer(expected, np.uint8))


def block_of(tokens: int, position: int, dtype: str = "bfloat16", axes: tuple[str, ...] = CANONICAL) -> Block:
    return Block(dtype, tuple(range(LAYERS)), 2, tokens, HEADS, DIM, axes, position)


@pytest.mark.parametrize("variant", ["head", "layer", "joint"])
def test_chunks_of_a_prompt_in_one_call(variant: str, device: torch.device) -> None:
    artefact = artefact_of(variant)
    blocks = [block_of(4, 0), block_of(1, 4)]
    compare(artefact, [(encoded(artefact, "near", block), block) for block in blocks], device)


@pytest.mark.parametrize(
    ("block", "rotary"),
    [
        (block_of(5, 1, "float32"), Rotary.of_base(500.0, 5, style="interleaved", start=3)),
        (
            block_of(4, 40, "float16", ("layer", "kv", "head", "dim", "token")),
            Rotary.of_base(1e6, DIM // 2, scaling=1.2),
        ),
        (replace(block_of(3, 7, axes=("layer", "token", "dim")), planes=1, heads=1, dim=15), Rotary.of_base(1.0, 0)),
    ],
    ids=["interleaved", "permuted", "latent"],
)
def test_layouts_and_rotations(block: Block, rotary: Rotary, device: torch.device) -> None:
    artefact = artefact_of("head", rotary, block.planes, block.heads, block.dim)
    compare(artefact, [(encoded(artefact, "small", block), block)], device)


def test_a_chunk_of_sinks_alone(device: torch.device) -> None:
    artefact, block = artefact_of("head", Rotary.of_base(100.0, 4)), block_of(2, 0)
    compare(artefact, [(encoded(artefact, "small", block), block)], device)


def test_what_the_tests_are_meant_to_cover_is_there() -> None:
    artefact, block = artefact_of("head"), block_of(3, 8)
    plan = plan_of(artefact, block.cut(0, 1), "near")
    frame, body = next(frames(encoded(artefact, "near", block).data))
    pieces = unpack(body, Shape(3, plan.columns, plan.bit_planes, 0), 0)
    assert frame.layers == 1
    assert plan.shift.any()
    assert len(pieces.escapes) > 0


def test_a_damaged_stream_is_told_by_its_chunk(device: torch.device) -> None:
    artefact, block = artefact_of("head"), block_of(3, 8)
    good = encoded(artefact, "small", block)
    bad = bytearray(good.data)
    frame, body = next(frames(good.data))
    bad[HEADER_BYTES + len(body) - 6] ^= 0x55
    bad[:HEADER_BYTES] = frame.pack(bad[HEADER_BYTES : HEADER_BYTES + len(body)])
    with pytest.raises(Corrupt):
        decode_on_host(bad, memoryview(bytearray(block.nbytes)), block, artefacts=lambda _: artefact)
    outs = [torch.zeros(block.nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
    with pytest.raises(Corrupt, match=r"1 of 2 chunks: numbers \[1\]"):
        gpu.decode([good.data, bad], [block, block], outs, artefacts=lambda _: artefact)


def test_nothing_is_launched_without_its_artefact(device: torch.device) -> None:
    artefact, block = artefact_of("head"), block_of(3, 8)
    out = torch.zeros(block.nbytes, dtype=torch.uint8, device=device)
    with pytest.raises(NotFound):
        gpu.decode([encoded(artefact, "small", block).data], [block], [out])
