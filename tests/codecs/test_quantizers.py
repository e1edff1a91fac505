"""int8, fp8, int4 and kivi: the native code gives the definition's bits, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from kvstore import _native
from kvstore.codecs import Block, Form, NotEncodable, all_codecs, decode, encode
from kvstore.codecs.floats import FLOAT_DTYPES, from_float32, to_float32
from kvstore.codecs.frame import HEADER_BYTES, read_frame
from kvstore.codecs.hadamard import hadamard, hadamard_size
from kvstore.codecs.quantized import Quantizer, from_e4m3, pack_rows, to_e4m3, unpack_rows
from kvstore.errors import Corrupt, InvalidArgument

CANONICAL = ("layer", "kv", "token", "head", "dim")
LAYOUTS = {
    "canonical": CANONICAL,
    "head first": ("layer", "kv", "head", "token", "dim"),
    "transposed": ("layer", "kv", "head", "dim", "token"),
    "token first": ("layer", "token", "kv", "head", "dim"),
}
METHODS = [
    (codec, level)
    for codec in all_codecs().values()
    if isinstance(codec, Quantizer)
    for level in range(len(codec.levels))
]
SIMD = [name for name in ("portable", "avx2") if name == "portable" or _native.simd_level() != "portable"]


@pytest.fixture(params=SIMD)
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.simd_level()
    _native.set_simd_level(request.param)
    yield request.param
    _native.set_simd_level(before)


@pytest.fixture(params=METHODS, ids=lambda method: str(Form(*method)))
def method(request: pytest.FixtureRequest) -> tuple[Quantizer, int]:
    found: tuple[Quantizer, int] = request.param
    return found


def block(dtype: str, tokens: int, heads: int, dim: int, axes: tuple[str, ...] = CANONICAL, planes: int = 2) -> Block:
    return Block(dtype, (4,), planes, tokens, heads, dim, axes if planes == 2 else ("layer", "token", "dim"))


def values(shape: Block, seed: int) -> npt.NDArray[np.float32]:
    """Channels of very different means and spreads, with zeros, denormals and outliers among them."""
    rng = np.random.default_rng(seed)
    size = (len(shape.layers), shape.planes, shape.tokens, shape.heads, shape.dim)
    spread = np.exp2(rng.integers(-6, 5, (*size[1:2], 1, *size[3:])))
    made = rng.standard_normal(size) * spread + rng.standard_normal(size[3:]) * spread
    made[rng.random(size) < 0.02] = 0
    made[rng.random(size) < 0.01] *= 30
    made[rng.random(size) < 0.01] = -1e-7
    made[..., 0, 0] = -0.0
    return made.astype(np.float32)


def raw_of(shape: Block, found: npt.NDArray[np.float32]) -> memoryview:
    raw = memoryview(bytearray(shape.nbytes))
    shape.canonical(raw)[...] = from_float32(found, shape.dtype)
    return raw


def both(codec: Quantizer, level: int, shape: Block, raw: memoryview) -> tuple[bytes, bytes]:
    """The body and the decoded bytes, after the native code and the definition have agreed on both."""
    body = bytes(codec.encode_frame(raw, shape, level, None))
    assert body == bytes(codec.encode_reference(raw, shape, level))
    container = encode(raw, shape, Form(codec, level)).data
    frame, inside = read_frame(container)
    assert bytes(inside) == body
    found, expected = bytearray(shape.nbytes), bytearray(shape.nbytes)
    decode(container, memoryview(found), shape)
    codec.decode_reference(inside, shape, memoryview(expected), frame.level)
    assert found == expected
    return body, bytes(found)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("dim", [1, 5, 12, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_is_the_definition(method: tuple[Quantizer, int], simd: str, dtype: str, dim: int, layout: str) -> None:
    shape = block(dtype, 33, 2, dim, LAYOUTS[layout])
    both(*method, shape, raw_of(shape, values(shape, dim)))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 255, 256, 257])
def test_any_number_of_tokens(method: tuple[Quantizer, int], simd: str, dtype: str, tokens: int) -> None:
    for shape in (block(dtype, tokens, 3, 64), block(dtype, tokens, 1, 576, planes=1)):
        both(*method, shape, raw_of(shape, values(shape, tokens)))


def test_the_longest_chunk(method: tuple[Quantizer, int]) -> None:
    shape = block("bfloat16", 4096, 1, 64)
    both(*method, shape, raw_of(shape, values(shape, 9)))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e4, 6e4, 1e29])
def test_extreme_magnitudes(method: tuple[Quantizer, int], simd: str, dtype: str, scale: float) -> None:
    shape = block(dtype, 40, 2, 64)
    made = np.random.default_rng(3).uniform(-scale, scale, (1, 2, 40, 2, 64)).astype(np.float32)
    if dtype == "float16":
        made = np.clip(made, -65504, 65504)
    _, found = both(*method, shape, raw_of(shape, made))
    assert np.isfinite(to_float32(shape.canonical(found), dtype)).all()


def test_constant_values_come_back(method: tuple[Quantizer, int]) -> None:
    shape = block("bfloat16", 40, 2, 64)
    for value in (0.0, 1.5, -3.0):
        raw = raw_of(shape, np.full((1, 2, 40, 2, 64), value, np.float32))
        _, found = both(*method, shape, raw)
        given = to_float32(shape.canonical(found), "bfloat16")
        assert np.abs(given - value).max() <= abs(value) / 15  # the scale has 8 bits


@pytest.mark.parametrize(("name", "bits"), [("int8", 8.25), ("fp8", 8.03125), ("int4", 4.5), ("kivi", 5.0)])
def test_bits_per_element(name: str, bits: float) -> None:
    shape = block("bfloat16", 256, 3, 64)
    body = all_codecs()[name].encode_frame(memoryview(bytes(shape.nbytes)), shape, 0, None)
    assert len(body) * 8 / (shape.nbytes / 2) == bits


BOUNDS = {"int8": 0.51 / 127, "kivi:4": 1.02 / 15, "kivi:2": 1.02 / 3, "int4": 0.5, "fp8": 0.07}


def test_errors_stay_within_the_steps(method: tuple[Quantizer, int]) -> None:
    """Half a step of the largest magnitude or of the span; float32, so that no rounding hides."""
    shape = block("float32", 64, 2, 64)
    made = np.random.default_rng(5).standard_normal((1, 2, 64, 2, 64)).astype(np.float32)
    _, found = both(*method, shape, raw_of(shape, made))
    error = np.abs(to_float32(shape.canonical(found), "float32") - made)
    assert error.max() <= BOUNDS[str(Form(*method))] * np.abs(made).max()


def test_lower_rates_lose_more() -> None:
    shape = block("float32", 256, 2, 64)
    made = np.random.default_rng(6).standard_normal((1, 2, 256, 2, 64)).astype(np.float32)
    raw = raw_of(shape, made)
    lost = {}
    for codec, level in METHODS:
        _, found = both(codec, level, shape, raw)
        lost[str(Form(codec, level))] = float(np.square(to_float32(shape.canonical(found), "float32") - made).mean())
    order = [lost[name] for name in ("int8", "fp8", "kivi:4", "int4", "kivi:2")]
    assert all(low < high for low, high in pairwise(order))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(
    method: tuple[Quantizer, int], simd: str, dtype: str, bad: float
) -> None:
    shape = block(dtype, 70, 2, 24, LAYOUTS["transposed"])
    made = values(shape, 1)
    made[0, 1, 65, 1, 17] = bad
    raw = memoryview(bytearray(shape.nbytes))
    with np.errstate(invalid="ignore"):
        bits = made.astype(np.float16).view(np.uint16) if dtype == "float16" else made.view(np.uint32)
    shape.canonical(raw)[...] = bits >> 16 if dtype == "bfloat16" else bits
    with pytest.raises(NotEncodable, match="layer 4, plane 1, token 65, head 1, dim 17"):
        encode(raw, shape, Form(*method))


def test_values_too_large_for_sums_are_refused(method: tuple[Quantizer, int]) -> None:
    shape = block("float32", 4, 1, 8)
    made = np.zeros((1, 2, 4, 1, 8), np.float32)
    made[0, 0, 2, 0, 3] = 2.0**100
    with pytest.raises(NotEncodable, match="token 2"):
        encode(raw_of(shape, made), shape, Form(*method))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn", "float8_e5m2"])
def test_other_dtypes_and_opaque_bytes_are_refused(method: tuple[Quantizer, int], dtype: str) -> None:
    with pytest.raises(InvalidArgument, match="lz4"):
        method[0].check(block(dtype, 4, 1, 8))
    with pytest.raises(InvalidArgument, match="opaque"):
        method[0].check(block("bfloat16", 4, 1, 8, ("opaque",)))


def test_hostile_bodies(method: tuple[Quantizer, int], simd: str) -> None:
    codec, level = method
    shape = block("bfloat16", 40, 2, 24)
    body = codec.encode_frame(raw_of(shape, values(shape, 2)), shape, level, None)
    frame, _ = read_frame(encode(bytes(shape.nbytes), shape, Form(codec, level)).data)
    out = memoryview(bytearray(shape.nbytes))
    for length in (0, 1, len(body) - 1, len(body) + 1):
        wrong = memoryview((bytes(body) + b"\0")[:length])
        with pytest.raises(Corrupt, match="bytes"):
            codec.decode_frame(wrong, frame, shape, out, None)
        with pytest.raises(Corrupt, match="bytes"):
            codec.decode_reference(wrong, shape, out, level)
    rng = np.random.default_rng(8)
    for _ in range(50):
        wrong = memoryview(rng.bytes(len(body)))
        refused = []
        for run in (
            lambda data: codec.decode_frame(data, frame, shape, out, None),
            lambda data: codec.decode_reference(data, shape, out, level),
        ):
            try:
                run(wrong)
                refused.append(False)
            except Corrupt:
                refused.append(True)
        assert refused[0] == refused[1]


def test_e4m3_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    theirs = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(from_e4m3(codes), theirs)
    assert (from_e4m3(codes).view(np.uint32) == theirs.view(np.uint32)).all()
    found = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) * np.float32(50)
    found = np.concatenate([found, found * np.float32(1e-4), theirs, (theirs[1:] + theirs[:-1]) / 2])
    found = np.clip(found, -448, 448)
    np.testing.assert_array_equal(to_e4m3(found), torch.from_numpy(found).to(torch.float8_e4m3fn).view(torch.uint8))


def test_hadamard_is_the_matrix() -> None:
    matrix = np.array([[1.0]])
    for _ in range(4):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    found = np.random.default_rng(1).integers(-8, 8, (3, 80)).astype(np.float32)
    assert hadamard_size(80) == 16
    assert [hadamard_size(dim) for dim in (64, 96, 128, 192, 256, 576, 5)] == [64, 32, 128, 64, 256, 64, 1]
    expected = (found.reshape(3, 5, 16) @ matrix).reshape(3, 80)
    np.testing.assert_array_equal(hadamard(found), expected)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 64, 81])
def test_rows_unpack(bits: int, dim: int) -> None:
    levels = np.random.default_rng(dim).integers(0, 1 << bits, (3, 2, dim)).astype(np.uint8)
    rows = pack_rows(levels, bits)
    assert rows.shape == (3, 2, -(-dim * bits // 8))
    np.testing.assert_array_equal(unpack_rows(rows, bits, (3, 2, dim)), levels)


GOLDEN = {
    "fp8": "80807f7f7f7ff9f8fefcfaf8ece8e80068708080808080806c7072747678797a7b7c7d7e",
    "int8": "913cc23b818f9dabb9c881acd6002a54813ce23c30404f5f6f7f525b646d767f",
    "int4": "88c0a0bf893e093ef07ff470f77780be80be893eef3e07f00b0bf00d",
    "kivi:4": "10c000c0e0bfc0bfa0bf80bfcd3dcd3dcd3dcd3dcd3dcd3d000000ffffff403f1040ab3dab3d90c3f690c3f6",
    "kivi:2": "10c000c0e0bfc0bfa0bf80bf003f003f003f003f003f003f00003f3f403f1040d53ed53e24392439",
}


def test_golden_bodies(method: tuple[Quantizer, int], simd: str) -> None:
    shape = block("bfloat16", 2, 1, 6)
    made = (np.arange(24, dtype=np.float32).reshape(1, 2, 2, 1, 6) - 9) / 4
    container = encode(raw_of(shape, made), shape, Form(*method)).data
    assert bytes(container[HEADER_BYTES:]).hex() == GOLDEN[str(Form(*method))]
