"""Quantizers on a device: the bits of the definition, in every shape, dtype and layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kvstore.codecs import Block, Form, all_codecs, gpu
from kvstore.codecs import decode as decode_on_host
from kvstore.codecs import encode as encode_on_host
from kvstore.codecs.floats import from_float32

FORMS = [("int8", 0), ("fp8", 0), ("int4", 0), ("kivi", 0), ("kivi", 1)]
CANONICAL = ("layer", "kv", "token", "head", "dim")


def block_of(
    tokens: int, heads: int, dim: int, dtype: str = "bfloat16", axes: tuple[str, ...] = CANONICAL, layers: int = 1
) -> Block:
    return Block(dtype, tuple(range(layers)), 2, tokens, heads, dim, axes, 16)


def values_of(block: Block, seed: int = 0) -> bytes:
    """KV with outlier channels, ties of the rounding, constant and zero rows."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(block.nbytes // block.itemsize).astype(np.float32)
    values = values.reshape(len(block.layers), block.planes, block.tokens, block.heads, block.dim)
    values[..., 0] *= 40
    values[:, :, 0] = np.round(values[:, :, 0] * 2) / 2
    values[:, -1, -1] = 0
    raw = bytearray(block.nbytes)
    block.canonical(raw)[...] = from_float32(values, block.dtype)
    return bytes(raw)


def decoded(form: Form, made: list[tuple[Block, bytes]], device: torch.device) -> list[npt.NDArray[np.uint8]]:
    containers = [encode_on_host(raw, block, form).data for block, raw in made]
    outs = [torch.zeros(block.nbytes, dtype=torch.uint8, device=device) for block, _ in made]
    gpu.decode(containers, [block for block, _ in made], outs)
    for container, (block, _), out in zip(containers, made, outs, strict=True):
        expected = bytearray(block.nbytes)
        decode_on_host(container, memoryview(expected), block)
        np.testing.assert_array_equal(out.cpu().numpy(), np.frombuffer(expected, np.uint8))
    return [out.cpu().numpy() for out in outs]


@pytest.mark.parametrize(("name", "level"), FORMS)
@pytest.mark.parametrize(
    "block",
    [
        block_of(33, 2, 64),
        block_of(1, 1, 80, "float16"),
        block_of(5, 1, 7, "float32"),
        block_of(35, 2, 24, axes=("layer", "kv", "head", "dim", "token")),
        replace(block_of(3, 1, 576, axes=("layer", "token", "dim")), planes=1),
    ],
    ids=["two-tiles", "fp16", "odd", "permuted", "latent"],
)
def test_decoding_gives_the_bits_of_the_definition(name: str, level: int, block: Block, device: torch.device) -> None:
    decoded(Form(all_codecs()[name], level), [(block, values_of(block))], device)


@pytest.mark.parametrize(("name", "level"), FORMS)
def test_many_chunks_and_tails_at_once(name: str, level: int, device: torch.device) -> None:
    blocks = [block_of(tokens, 2, 32, layers=2) for tokens in (16, 3)]
    decoded(Form(all_codecs()[name], level), [(block, values_of(block, n)) for n, block in enumerate(blocks)], device)
