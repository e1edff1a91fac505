"""lossless: every bit comes back, the native code makes the reference's bytes, and nothing grows."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.codecs import Block, codec_of
from kvstore.codecs.floats import FLOAT_DTYPES, from_float32
from kvstore.codecs.frame import Frame
from kvstore.codecs.lossless import WIDE, Lossless, decode_reference, encode_reference, freqs
from kvstore.errors import Corrupt, InvalidArgument

CANONICAL = ("layer", "kv", "token", "head", "dim")
LAYOUTS = [CANONICAL, ("layer", "kv", "head", "dim", "token"), ("layer", "token", "kv", "head", "dim")]
CODEC = codec_of(3)


def block(
    dtype: str, tokens: int, heads: int, dim: int, axes: tuple[str, ...] = CANONICAL, planes: int = 2, layers: int = 1
) -> Block:
    axes = axes if planes == 2 else ("layer", "token", "dim")
    return Block(dtype, tuple(range(layers)), planes, tokens, heads, dim, axes)


def raw_of(shape: Block, values: npt.NDArray[np.float32]) -> memoryview:
    raw = memoryview(bytearray(shape.nbytes))
    shape.canonical(raw)[...] = from_float32(values, shape.dtype)
    return raw


def kv(shape: Block, seed: int = 0) -> npt.NDArray[np.float32]:
    """As KV is: each channel with a mean and a spread of its own."""
    rng = np.random.default_rng(seed)
    size = (len(shape.layers), shape.planes, shape.tokens, shape.heads, shape.dim)
    channels = (size[0], size[1], 1, size[3], size[4])
    spread = np.exp2(rng.normal(-1, 0.7, channels))
    return ((rng.standard_normal(size) + rng.normal(0, 0.8, channels)) * spread).astype(np.float32)


def there_and_back(shape: Block, raw: memoryview) -> bytes:
    """The body; native code and reference agree on it, and both give the raw bytes."""
    frame = Frame.of(3, 0, shape, 0, lanes=32)
    body = bytes(CODEC.encode_frame(raw, shape, 0, None))
    assert body == encode_reference(raw, shape)
    found, expected = bytearray(shape.nbytes), bytearray(shape.nbytes)
    CODEC.decode_frame(memoryview(body), frame, shape, memoryview(found), None)
    decode_reference(memoryview(body), shape, memoryview(expected))
    assert found == expected == raw
    assert len(body) <= shape.nbytes + 1
    return body


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("axes", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 65, 255, 256, 257])
def test_every_bit_comes_back(dtype: str, axes: tuple[str, ...], tokens: int) -> None:
    for heads, dim in ((3, 64), (1, 5)):
        shape = block(dtype, tokens, heads, dim, axes)
        there_and_back(shape, raw_of(shape, kv(shape)))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("dim", [1, 80, 96, 128, 192, 256])
def test_head_sizes(dtype: str, dim: int) -> None:
    shape = block(dtype, 40, 2, dim)
    there_and_back(shape, raw_of(shape, kv(shape)))
    latent = block(dtype, 33, 1, 576, planes=1)
    there_and_back(latent, raw_of(latent, kv(latent)))


def test_a_long_chunk_and_several_layers_in_one_frame() -> None:
    for shape in (block("bfloat16", 4096, 1, 40), block("bfloat16", 100, 2, 24, layers=3)):
        there_and_back(shape, raw_of(shape, kv(shape)))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_any_bits_at_all(dtype: str) -> None:
    """Random bits hold NaN payloads, infinities and denormal numbers; they are stored, a byte longer."""
    shape = block(dtype, 64, 2, 32)
    raw = memoryview(bytearray(np.random.default_rng(1).bytes(shape.nbytes)))
    assert len(there_and_back(shape, raw)) == shape.nbytes + (dtype != "float32") or dtype == "float32"


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_rare_values_among_kv_are_escaped(dtype: str) -> None:
    shape = block(dtype, 256, 2, 64)
    raw = raw_of(shape, kv(shape))
    bits = shape.canonical(raw)
    width = 8 * shape.itemsize
    odd = {"bfloat16": (0x7FC1, 0xFF80, 1), "float16": (0x7E01, 0xFC00, 1), "float32": (0x7FC00001, 0xFF800000, 1)}
    for place, value in enumerate((*odd[dtype], 0, 1 << (width - 1))):
        bits[0, place % 2, 10 * place, 1, place] = value
    body = there_and_back(shape, raw)
    assert body[0] & 1
    assert len(body) < 0.8 * shape.nbytes if dtype == "bfloat16" else len(body) < shape.nbytes


def test_channels_of_zeros_and_of_far_scales_take_wide_parameters() -> None:
    shape = block("bfloat16", 256, 2, 64)
    values = kv(shape)
    values[:, 0, :, 0, 5] = 0
    values[:, 1, :, 1, 7] *= np.float32(2.0**-40)
    body = there_and_back(shape, raw_of(shape, values))
    assert body[0] & WIDE
    assert len(body) < shape.nbytes / 1.4


def test_short_chunks_share_parameters_and_never_grow() -> None:
    lengths = {}
    for tokens in (1, 4, 16, 32, 64, 256):
        shape = block("bfloat16", tokens, 3, 64)
        lengths[tokens] = len(there_and_back(shape, raw_of(shape, kv(shape)))) / shape.nbytes
    assert lengths[16] < 0.75
    assert lengths[256] < lengths[32] < lengths[4] <= 1 + 1 / 1536


def test_tables_are_sound() -> None:
    tables = freqs().astype(int)
    assert tables.shape == (16, 256)
    assert (tables.sum(axis=1) == 4096).all()
    assert (tables[:, :32] > 0).all()


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_other_dtypes_and_opaque_bytes_are_refused(dtype: str) -> None:
    with pytest.raises(InvalidArgument, match="lz4"):
        CODEC.check(block(dtype, 4, 1, 8))
    with pytest.raises(InvalidArgument, match="opaque"):
        Lossless().check(block("bfloat16", 4, 1, 8, ("opaque",)))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("tokens", [8, 256])
def test_hostile_bodies(dtype: str, tokens: int) -> None:
    """Cut off, lengthened, flipped or made up: `Corrupt`, or other values, and never more."""
    shape = block(dtype, tokens, 2, 16)
    body = bytes(CODEC.encode_frame(raw_of(shape, kv(shape)), shape, 0, None))
    frame = Frame.of(3, 0, shape, len(body), lanes=32)
    out = memoryview(bytearray(shape.nbytes))
    for length in [*range(0, len(body), 97), len(body) - 1]:
        with pytest.raises(Corrupt):
            CODEC.decode_frame(memoryview(body[:length]), frame, shape, out, None)
    with pytest.raises(Corrupt):
        CODEC.decode_frame(memoryview(body + b"\0"), frame, shape, out, None)
    rng = np.random.default_rng(2)
    refused = 0
    for trial in range(400):
        wrong = bytearray(body if trial % 2 else bytes([trial % 9]) + rng.bytes(len(body) - 1))
        at = int(rng.integers(len(wrong) if trial % 4 == 1 else 40))
        wrong[at] ^= 1 << int(rng.integers(8))
        try:
            CODEC.decode_frame(memoryview(wrong), frame, shape, out, None)
        except Corrupt:
            refused += 1
    assert refused > 150


GOLDEN_DIGEST = "2355f34171d82ec104e713c04227f245"


def test_golden_body() -> None:
    """Also pins the built-in tables: a body that was stored with them must decode for ever."""
    shape = block("bfloat16", 160, 1, 2)
    steps = np.arange(640, dtype=np.int64) * 7919 % 1009
    values = ((steps - 504).astype(np.float32) / 128).reshape(1, 2, 160, 1, 2)
    body = there_and_back(shape, raw_of(shape, values))
    assert body[:11].hex() == "0100000000666601010101"
    assert hashlib.sha256(body).hexdigest()[:32] == GOLDEN_DIGEST
