"""cachegen: what is decoded, in every shape and by both implementations, and what is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from kvstore import codecs
from kvstore.codecs import Artefact, Block, Form, ModelShape, NotEncodable
from kvstore.codecs.cachegen import CacheGen, profile
from kvstore.codecs.cachegen.reference import anchor_rows, first_group
from kvstore.codecs.cachegen.tables import LEVELS, layer_tables
from kvstore.codecs.floats import from_float32, to_float32
from kvstore.codecs.frame import HEADER_BYTES
from kvstore.errors import Corrupt, InvalidArgument, NotFound, SpecMismatch

CANONICAL = ("layer", "kv", "token", "head", "dim")
DTYPES = ("bfloat16", "float16", "float32")
CODEC = CacheGen()


def kv(seed: int, layers: int, planes: int, tokens: int, heads: int, dim: int) -> npt.NDArray[np.float32]:
    """KV that drifts from token to token, with a mean and a spread of its own in each channel."""
    rng = np.random.default_rng(seed)
    shape = (layers, planes, 1, heads, dim)
    channels = np.random.default_rng(99)
    mean, spread = channels.normal(0, 3, shape), channels.gamma(2, 0.5, shape)
    drift = np.cumsum(rng.normal(0, 0.3, (layers, planes, tokens, heads, dim)), axis=2)
    noise = rng.normal(0, 1, drift.shape)
    return (mean + spread * (noise + np.sin(drift))).astype(np.float32)


def model_of(layers: int, planes: int, heads: int, dim: int) -> ModelShape:
    return ModelShape("m", dict.fromkeys(range(layers), (planes, heads, dim)))


@cache
def artefact_of(layers: int = 2, planes: int = 2, heads: int = 2, dim: int = 8) -> Artefact:
    samples = [kv(seed, layers, planes, 300, heads, dim) for seed in (1, 2)]
    return profile(samples, model_of(layers, planes, heads, dim))


def block_of(
    values: npt.NDArray[np.float32], dtype: str = "bfloat16", *, position: int = 512, axes: tuple[str, ...] = CANONICAL
) -> tuple[Block, bytes]:
    """A block of these values [layer, plane, token, head, dim], and its bytes in the layout that `axes` names."""
    layers, planes, tokens, heads, dim = values.shape
    block = Block(dtype, tuple(range(layers)), planes, tokens, heads, dim, axes, position)
    stored = from_float32(np.ascontiguousarray(values), dtype).transpose([CANONICAL.index(axis) for axis in axes])
    return block, stored.tobytes()


def values_of(raw: bytes | bytearray, block: Block) -> npt.NDArray[np.float32]:
    return to_float32(np.ascontiguousarray(block.canonical(raw)), block.dtype)


def through(block: Block, raw: bytes, level: int, artefact: Artefact) -> tuple[codecs.Encoded, bytearray]:
    encoded = codecs.encode(raw, block, Form(CODEC, level, artefact))
    out = bytearray(len(raw))
    codecs.decode(encoded.data, memoryview(out), block, artefacts=lambda digest: {artefact.digest: artefact}[digest])
    return encoded, out


def both(block: Block, raw: bytes, level: int, artefact: Artefact) -> bytearray:
    """What the native code gives back, after checking that the reference does the same, both ways."""
    encoded, out = through(block, raw, level, artefact)
    at = 0
    for layer in range(len(block.layers)):
        part = block.cut(layer, layer + 1)
        piece = memoryview(raw)[layer * block.layer_bytes : (layer + 1) * block.layer_bytes]
        body = bytes(encoded.data[at + HEADER_BYTES : at + int(encoded.lengths[layer])])
        assert CODEC.encode_reference(piece, part, level, artefact) == body
        again = bytearray(len(piece))
        CODEC.decode_reference(memoryview(body), part, memoryview(again), level, artefact)
        assert again == out[layer * block.layer_bytes : (layer + 1) * block.layer_bytes]
        at += int(encoded.lengths[layer])
    return out


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_no_value_is_further_off_than_half_a_bin(level: int) -> None:
    artefact, values = artefact_of(), kv(3, 2, 2, 100, 2, 8)
    block, raw = block_of(values, "float32")
    error = np.abs(values_of(both(block, raw, level, artefact), block) - values)
    anchors = anchor_rows(100, 10, 10)
    for layer in range(2):
        tables = layer_tables(artefact, block.cut(layer, layer + 1), level)
        off = error[layer].transpose(1, 0, 2, 3).reshape(100, -1)
        assert (off <= tables.deltas.step * 0.5001 + 1e-5)[np.delete(np.arange(100), anchors)].all()
        assert (off <= tables.anchors.step * 0.5001 + 1e-5)[anchors].all()


def test_coarser_levels_are_smaller() -> None:
    block, raw = block_of(kv(3, 2, 2, 256, 2, 8))
    sizes = [through(block, raw, level, artefact_of())[0].data.nbytes for level in range(len(LEVELS))]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] * 0.7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 9, 10, 11, 33, 257])
def test_reference_and_native_code_agree(dtype: str, tokens: int) -> None:
    for position in (0, 256):
        block, raw = block_of(kv(tokens, 2, 2, tokens, 2, 8), dtype, position=position)
        both(block, raw, 1, artefact_of())


@pytest.mark.parametrize(
    ("planes", "heads", "dim"), [(2, 3, 64), (2, 1, 80), (2, 2, 96), (1, 1, 576), (2, 5, 3), (2, 1, 1)]
)
def test_shapes(planes: int, heads: int, dim: int) -> None:
    artefact, values = artefact_of(1, planes, heads, dim), kv(5, 1, planes, 21, heads, dim)
    block, raw = block_of(values)
    error = np.abs(values_of(both(block, raw, 0, artefact), block) - values)
    assert error.mean() < 0.05 * values.std()


@pytest.mark.parametrize(
    "axes",
    [
        ("layer", "kv", "head", "token", "dim"),
        ("layer", "kv", "head", "dim", "token"),
        ("layer", "token", "kv", "head", "dim"),
        ("layer", "dim", "head", "token", "kv"),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layout_changes_nothing(axes: tuple[str, ...], dtype: str) -> None:
    values = kv(6, 2, 2, 45, 2, 8)
    usual, raw = block_of(values, dtype)
    stored, turned = block_of(values, dtype, axes=axes)
    encoded, out = through(stored, turned, 2, artefact_of())
    same, expected = through(usual, raw, 2, artefact_of())
    assert encoded.data == same.data
    assert (stored.canonical(out) == usual.canonical(expected)).all()


def test_native_code_without_simd_does_the_same() -> None:
    from kvstore import _native

    level = _native.simd_level()
    block, raw = block_of(kv(7, 2, 2, 50, 2, 8), "float16", position=0)
    expected = through(block, raw, 1, artefact_of())
    try:
        _native.set_simd_level("portable")
        found = through(block, raw, 1, artefact_of())
    finally:
        _native.set_simd_level(level)
    assert found[0].data == expected[0].data
    assert found[1] == expected[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_no_table_has_is_exact(dtype: str) -> None:
    values = kv(8, 2, 2, 64, 2, 8)
    values[0, 0, 20, 1, 3], values[1, 1, 25, 0, 7], values[0, 1, 63, 1, 1] = 60000.0, -3000.0, 1e-7
    values[:, :, 0] *= 500
    block, raw = block_of(values, dtype, position=0)
    out = both(block, raw, 3, artefact_of())
    kept, given = block.canonical(out), block.canonical(raw)
    for at in ((0, 0, 20, 1, 3), (1, 1, 25, 0, 7)):
        assert kept[at] == given[at]
    assert (np.abs(values_of(out, block) - values_of(raw, block))[:, :, 1:] < 10).all()


def test_everything_can_be_written_out() -> None:
    block, raw = block_of(kv(9, 2, 2, 30, 2, 8) * 4000)
    out = both(block, raw, 0, artefact_of())
    assert (block.canonical(out) == block.canonical(raw)).mean() > 0.9


def test_a_prompts_first_token_stands_alone() -> None:
    values = kv(10, 2, 2, 64, 2, 8)
    values[:, :, 0] *= 300
    at_start = through(*block_of(values, position=0), 1, artefact_of())[0].data.nbytes
    later = through(*block_of(values, position=64), 1, artefact_of())[0].data.nbytes
    assert at_start < later
    assert first_group(0, 10) == 1
    assert list(anchor_rows(25, 10, 1)) == [0, 1, 11, 21]
    assert list(anchor_rows(5, 10, 10)) == [0]


def test_heads_of_a_rank() -> None:
    values = kv(11, 2, 2, 40, 2, 8)
    whole, raw = block_of(values)
    _, expected = through(whole, raw, 1, artefact_of())
    layers, planes, tokens, _, dim = values.shape
    rank = Block("bfloat16", (0, 1), planes, tokens, 1, dim, CANONICAL, 512, first_head=1)
    piece = np.ascontiguousarray(whole.canonical(raw)[:, :, :, 1:]).tobytes()
    _, out = through(rank, piece, 1, artefact_of())
    assert (rank.canonical(out) == whole.canonical(expected)[:, :, :, 1:]).all()
    assert layers == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_refused(bad: float, dtype: str) -> None:
    block, raw = block_of(kv(12, 2, 2, 30, 2, 8), dtype)
    bits = {"bfloat16": np.float32(bad).view(np.uint32) >> 16, "float16": np.float16(bad).view(np.uint16)}
    array = bytearray(raw)
    block.canonical(array)[1, 1, 17, 1, 5] = bits.get(dtype, np.float32(bad).view(np.uint32))
    with pytest.raises(NotEncodable):
        codecs.encode(array, block, Form(CODEC, 0, artefact_of()))
    with pytest.raises(NotEncodable):
        CODEC.encode_reference(memoryview(array)[block.layer_bytes :], block.cut(1, 2), 0, artefact_of())


def test_what_the_codec_does_not_take() -> None:
    block, raw = block_of(kv(13, 2, 2, 30, 2, 8))
    with pytest.raises(InvalidArgument, match="needs an artefact"):
        codecs.encode(raw, block, Form(CODEC, 0))
    with pytest.raises(SpecMismatch):
        codecs.encode(raw, block, Form(CODEC, 0, artefact_of(2, 2, 1, 8)))
    other = Artefact.build("transform", artefact_of().model, artefact_of().facts, artefact_of().arrays)
    with pytest.raises(SpecMismatch, match="for transform"):
        codecs.encode(raw, block, Form(CODEC, 0, other))
    for dtype in ("int8", "float8_e4m3fn"):
        odd = Block(dtype, (0, 1), 2, 30, 2, 8, CANONICAL)
        with pytest.raises(InvalidArgument, match=dtype):
            codecs.encode(bytes(odd.nbytes), odd, Form(CODEC, 0, artefact_of()))
    encoded = codecs.encode(raw, block, Form(CODEC, 0, artefact_of()))
    with pytest.raises(NotFound):
        codecs.decode(encoded.data, memoryview(bytearray(len(raw))), block)


def test_damaged_bodies_are_corrupt_or_decode() -> None:
    values = kv(14, 1, 2, 31, 2, 8)
    values[0, 0, 5] *= 300
    artefact = artefact_of(1)
    block, raw = block_of(values)
    body = bytearray(CODEC.encode_frame(memoryview(raw), block, 1, artefact))
    rng, refused = np.random.default_rng(0), 0
    for number in range(400):
        hostile = bytearray(body)
        if number % 4 == 0:
            hostile = hostile[: int(rng.integers(len(body)))]
        elif number % 4 == 1:
            hostile[int(rng.integers(16))] = int(rng.integers(256))
        else:
            hostile[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
        found = [_attempt(hostile, block, artefact, native) for native in (True, False)]
        assert found[0] == found[1]
        refused += found[0] is None
    assert refused > 300


def _attempt(body: bytearray, block: Block, artefact: Artefact, native: bool) -> bytearray | None:
    out = bytearray(block.nbytes)
    frame = codecs.frame.Frame.of(8, 1, block, len(body), lanes=32, artefact=artefact.digest)
    try:
        if native:
            CODEC.decode_frame(memoryview(body), frame, block, memoryview(out), artefact)
        else:
            CODEC.decode_reference(memoryview(body), block, memoryview(out), 1, artefact)
    except Corrupt:
        return None
    return out


@pytest.mark.parametrize("name", ["bank", "tables", "mean", "anchor_step", "anchor_floor", "step"])
def test_an_artefact_that_no_profile_makes_is_corrupt(name: str) -> None:
    made = artefact_of()
    block, raw = block_of(kv(15, 2, 2, 20, 2, 8))
    for change in ("missing", "shape", "values"):
        arrays = {key: np.array(array) for key, array in made.arrays.items()}
        if change == "missing":
            del arrays[name]
        elif change == "shape":
            arrays[name] = arrays[name][..., 1:]
        else:
            arrays[name].reshape(-1)[0] = np.nan if arrays[name].dtype == np.float32 else 255
        broken = Artefact.build(made.kind, made.model, made.facts, arrays)
        with pytest.raises(Corrupt):
            codecs.encode(raw, block, Form(CODEC, 0, broken))
    for group in (0, 5000, "10"):
        broken = Artefact.build(made.kind, made.model, {**made.facts, "group": group}, made.arrays)
        with pytest.raises(Corrupt, match="groups"):
            codecs.encode(raw, block, Form(CODEC, 0, broken))


def test_profiles_of_the_same_samples_are_the_same() -> None:
    samples = [kv(1, 2, 2, 300, 2, 8)]
    model = model_of(2, 2, 2, 8)
    first, second = profile(samples, model, facts={"text": "x"}), profile(samples, model, facts={"text": "x"})
    assert first.digest == second.digest
    assert first.facts["text"] == "x"
    assert first.facts["tokens"] == 300


def test_samples_that_are_refused() -> None:
    model = model_of(2, 2, 2, 8)
    with pytest.raises(InvalidArgument, match="too few"):
        profile([kv(1, 2, 2, 200, 2, 8)], model)
    with pytest.raises(InvalidArgument, match="the model has"):
        profile([kv(1, 2, 2, 300, 1, 8)], model)
    bad = kv(1, 2, 2, 300, 2, 8)
    bad[0, 0, 9, 0, 0] = np.nan
    with pytest.raises(InvalidArgument, match="NaN"):
        profile([bad], model)


def test_layers_of_different_shapes_and_a_constant_channel() -> None:
    model = ModelShape("mixed", {0: (2, 2, 8), 3: (1, 1, 24)})
    wide, latent = kv(1, 1, 2, 300, 2, 8), kv(2, 1, 1, 300, 1, 24)
    wide[..., 0], latent[..., 3] = 7.0, 0.0
    artefact = profile([[wide[0], latent[0]]], model)
    block = Block("bfloat16", (3,), 1, 40, 1, 24, ("layer", "token", "dim"), 256)
    raw = from_float32(latent[:, :, :40], "bfloat16").tobytes()
    out = both(block, raw, 0, artefact)
    assert (np.abs(values_of(out, block) - values_of(raw, block)) < 1.5).all()
    assert (values_of(out, block)[..., 3] == 0).all()
