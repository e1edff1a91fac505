"""Quantizers on a device: the bits of the definition, in every shape, dtype and layout."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kvstore.codecs import Block, Form, NotEncodable, all_codecs, gpu
from kvstore.codecs import decode as decode_on_host
from kvstore.codecs import encode as encode_on_host
from kvstore.codecs.floats import from_float32
from kvstore.codecs.frame import frames
from kvstore.errors import Corrupt, InvalidArgument

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


@pytest.mark.parametrize(("name", "level"), FORMS)
@pytest.mark.parametrize(
    "block",
    [
        block_of(33, 2, 40, layers=2),
        block_of(3, 1, 7, "float32"),
        block_of(34, 1, 16, "float16", axes=("layer", "kv", "head", "dim", "token")),
        replace(block_of(2, 1, 576, axes=("layer", "token", "dim")), planes=1),
    ],
    ids=["two-tiles", "odd", "permuted", "latent"],
)
def test_encoding_gives_the_bytes_of_the_definition(name: str, level: int, block: Block, device: torch.device) -> None:
    form, raws = Form(all_codecs()[name], level), [values_of(block), bytes(block.nbytes)]
    sources = [torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(device) for raw in raws]
    for raw, made in zip(raws, gpu.encode(sources, [block, block], form), strict=True):
        expected = encode_on_host(raw, block, form)
        assert bytes(made.data) == bytes(expected.data)
        assert made.lengths.tolist() == expected.lengths.tolist()


@pytest.mark.parametrize("name", ["int8", "fp8", "int4", "kivi"])
@pytest.mark.parametrize("value", [0x7FC0, 0xFF80, 0x7180], ids=["nan", "infinity", "2^100"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
def test_what_lossy_codecs_do_not_take(name: str, value: int, device: torch.device) -> None:
    block = block_of(3, 1, 8)
    bits = torch.zeros(block.nbytes // 2, dtype=torch.uint16, device=device)
    sources = [bits, bits.clone()]
    sources[1][-1] = value
    with pytest.raises(NotEncodable, match=r"chunks \[1\] have others"):
        gpu.encode(sources, [block, block], Form(all_codecs()[name]))


def test_codecs_that_the_host_encodes(device: torch.device) -> None:
    with pytest.raises(InvalidArgument, match="lz4 has no kernels"):
        gpu.encode([], [], Form(all_codecs()["lz4"]))


@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize(
    ("name", "level", "at", "byte"),
    [("int8", 0, 1, 0x7F), ("int8", 0, 1, 0x80), ("fp8", 0, 0, 31), ("fp8", 0, 40, 0xFF), ("kivi", 1, 1, 0x7F)],
)
def test_parameters_that_no_encoder_writes(name: str, level: int, at: int, byte: int, device: torch.device) -> None:
    block = block_of(3, 1, 16)
    good = encode_on_host(values_of(block), block, Form(all_codecs()[name], level)).data
    frame, body = next(frames(good))
    changed = bytearray(body)
    changed[at] = byte
    bad = frame.pack(changed) + changed
    with pytest.raises(Corrupt):
        decode_on_host(bad, memoryview(bytearray(block.nbytes)), block)
    outs = [torch.zeros(block.nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
    with pytest.raises(Corrupt, match=r"1 of 2 chunks: numbers \[1\]"):
        gpu.decode([good, bad], [block, block], outs)


def test_a_checksum_is_checked_before_anything_is_launched(device: torch.device) -> None:
    block = block_of(3, 1, 16)
    data = bytearray(encode_on_host(values_of(block), block, Form(all_codecs()["int8"])).data)
    data[-1] ^= 1
    out = torch.zeros(block.nbytes, dtype=torch.uint8, device=device)
    with pytest.raises(Corrupt, match="checksum"):
        gpu.decode([data], [block], [out])
    assert not out.any()
    gpu.decode([data], [block], [out], verify=False)
    assert out.any()


def test_a_container_in_a_tensor_and_a_tensor_of_elements(device: torch.device) -> None:
    block = block_of(3, 1, 16)
    data = encode_on_host(values_of(block), block, Form(all_codecs()["int8"])).data
    expected = bytearray(block.nbytes)
    decode_on_host(data, memoryview(expected), block)
    out = torch.zeros((1, 2, 3, 1, 16), dtype=torch.bfloat16, device=device)
    gpu.decode([torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)], [block], [out])
    assert out.cpu().view(torch.uint8).numpy().tobytes() == bytes(expected)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    block = block_of(3, 1, 16)
    data = encode_on_host(values_of(block), block, Form(all_codecs()["lz4"])).data
    out = torch.zeros(block.nbytes, dtype=torch.uint8, device=device)
    with pytest.raises(InvalidArgument, match="lz4 has no kernels"):
        gpu.decode([data], [block], [out])
    with pytest.raises(InvalidArgument, match="contiguous"):
        gpu.decode([data], [block], [out[:-1]])
    with pytest.raises(InvalidArgument, match="contiguous"):
        gpu.decode([data], [block], [torch.zeros(2 * block.nbytes, dtype=torch.uint8, device=device)[::2]])
    gpu.decode([], [], [])
    assert gpu.supports(Form(all_codecs()["kivi"], 1))
    assert not gpu.supports(Form(all_codecs()["lz4"]))


def test_the_package_comes_without_torch_and_triton() -> None:
    code = "import sys, kvstore, kvstore.codecs; print([name for name in ('torch', 'triton') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
