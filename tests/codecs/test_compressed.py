"""lz4 and zstd: any bytes of any dtype and layout come back, small or not, and damage is seen."""

from __future__ import annotations

import lz4.block
import numpy as np
import pytest

from kvstore import _native
from kvstore.codecs import Block, Form, all_codecs, decode, encode
from kvstore.codecs.base import Codec
from kvstore.codecs.compressed import Lz4
from kvstore.codecs.floats import to_bfloat16
from kvstore.codecs.frame import HEADER_BYTES, Frame
from kvstore.errors import Corrupt, InvalidArgument
from kvstore.spec import DTYPE_BYTES

CANONICAL = ("layer", "kv", "token", "head", "dim")


@pytest.fixture(params=["lz4", "zstd"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return all_codecs()[request.param]


def block(dtype: str, tokens: int = 33, axes: tuple[str, ...] = CANONICAL) -> Block:
    return Block(dtype, (0, 1), 2, tokens, 2, 40, axes)


def noise(shape: Block) -> bytes:
    return np.random.default_rng(0).bytes(shape.nbytes)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
@pytest.mark.parametrize("axes", [CANONICAL, ("layer", "kv", "head", "dim", "token"), ("opaque",)])
def test_every_byte_comes_back(codec: Codec, dtype: str, axes: tuple[str, ...]) -> None:
    shape = block(dtype, axes=axes)
    for raw in (
        noise(shape),
        bytes(shape.nbytes),
        bytes(range(256)) * (shape.nbytes // 256) + bytes(shape.nbytes % 256),
    ):
        made = encode(raw, shape, Form(codec))
        out = bytearray(shape.nbytes)
        decode(made.data, memoryview(out), shape)
        assert out == raw
        assert len(made.data) <= len(raw) + len(made.lengths) * (HEADER_BYTES + 9 * 4)


def test_byte_planes_make_kv_smaller(codec: Codec) -> None:
    shape = Block("bfloat16", (0,), 2, 256, 3, 64, CANONICAL)
    values = np.random.default_rng(0).standard_normal(shape.nbytes // 2).astype(np.float32)
    raw = to_bfloat16(values).tobytes()
    split = len(encode(raw, shape, Form(codec)).data)
    opaque = len(encode(raw, Block("bfloat16", (0,), 2, 256, 3, 64, ("opaque",)), Form(codec)).data)
    assert split < 0.9 * opaque
    assert split < shape.nbytes / {"lz4": 1.1, "zstd": 1.35}[codec.name]


@pytest.mark.parametrize("width", [2, 4])
def test_planes_are_turned_elements(width: int) -> None:
    elements = np.array([0x8001, 0x3F80, 0x1234, 0xFFFF, 0], f"<u{width}")
    planes = np.empty(elements.nbytes, np.uint8)
    _native.split_bytes(planes, elements, width)
    turned = (elements << 1 | elements >> (8 * width - 1)).astype(f">u{width}")
    assert planes.tobytes() == turned.view(np.uint8).reshape(-1, width).T.tobytes()
    back = np.empty_like(elements)
    _native.join_bytes(back, planes, width)
    np.testing.assert_array_equal(back, elements)


def test_planes_refuse_what_does_not_fit() -> None:
    buffer = bytearray(16)
    for dst, src, width in ((buffer, bytes(16), 3), (buffer, bytes(14), 2), (bytearray(6), bytes(6), 4)):
        with pytest.raises(ValueError, match=r"."):
            _native.split_bytes(dst, src, width)
    with pytest.raises(ValueError, match="overlap"):
        _native.join_bytes(memoryview(buffer)[2:10], memoryview(buffer)[:8], 2)


def test_damage_is_seen(codec: Codec) -> None:
    shape = Block("bfloat16", (0,), 2, 33, 2, 40, CANONICAL)
    frame = Frame.of(codec.number, 0, shape, 0)
    body = bytes(codec.encode_frame(memoryview(bytes(shape.nbytes)), shape, 0, None))
    out = memoryview(bytearray(shape.nbytes))
    for wrong in [body[:length] for length in range(len(body))] + [body + b"\0"]:
        with pytest.raises(Corrupt):
            codec.decode_frame(memoryview(wrong), frame, shape, out, None)
    rng = np.random.default_rng(0)
    for _ in range(200):
        made_up = bytearray(body)
        made_up[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
        try:
            codec.decode_frame(memoryview(made_up), frame, shape, out, None)
        except Corrupt:
            continue


def test_a_bomb_does_not_swell(codec: Codec) -> None:
    """A piece that would give a gigabyte is refused after the memory of a plane."""
    shape = Block("uint8", (0,), 2, 4, 1, 8, CANONICAL)
    large = bytes(1 << 26)
    packed = lz4.block.compress(large, store_size=False) if codec.name == "lz4" else _zstd(large)
    body = b"\1" + len(packed).to_bytes(8, "little") + packed
    with pytest.raises(Corrupt):
        codec.decode_frame(
            memoryview(body), Frame.of(codec.number, 0, shape, 0), shape, memoryview(bytearray(shape.nbytes)), None
        )


def test_lz4_refuses_what_it_cannot_take_at_once() -> None:
    with pytest.raises(InvalidArgument, match="at once"):
        Lz4().check(Block("uint8", (0,), 2, 1 << 20, 8, 256, ("opaque",)))


GOLDEN = {
    "lz4": (
        "012500000000000000130001001322010013440100136601001388010013aa010013cc010080eeeeeeeeeeeeeeee0125"
        "000000000000001300010013020100130401001306010013080100130a0100130c0100800e0e0e0e0e0e0e0e"
    ),
    "zstd": (
        "01260000000000000028b52ffd2040ed000080000022446688aacceeeeeeeeeeeeeeee07100059f26596255f66431b01"
        "260000000000000028b52ffd2040ed0000800000020406080a0c0e0e0e0e0e0e0e0e07100059f26596255f66431b"
    ),
}


def test_golden_body_decodes(codec: Codec) -> None:
    """The compressors may make other bytes one day; what they made must decode."""
    shape = Block("float16", (0,), 2, 8, 1, 4, CANONICAL)
    raw = (np.arange(64, dtype=np.uint16) // 8 * 0x1101).tobytes()
    made = bytes(codec.encode_frame(memoryview(raw), shape, 0, None))
    out = bytearray(shape.nbytes)
    body = bytes.fromhex(GOLDEN[codec.name])
    assert len(made) <= len(body), made.hex()
    codec.decode_frame(memoryview(body), Frame.of(codec.number, 0, shape, 0), shape, memoryview(out), None)
    assert out == raw


def _zstd(data: bytes) -> bytes:
    import pyarrow

    packed: bytes = pyarrow.Codec("zstd", 1).compress(data, asbytes=True)
    return packed
