"""Decoding gives the same bits in NumPy, portable C++ and AVX2, whatever the shape, dtype and layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from kvstore import _native
from kvstore.codecs.transform import reference
from kvstore.codecs.transform.native import NativePlan
from kvstore.codecs.transform.plan import Section, plan_of
from kvstore.codecs.transform.rotary import Rotary, cos_sin
from tests.codecs.transform.golden import BODY, ELEMENTS, golden
from tests.codecs.transform.made import CANONICAL_AXES, artefact, block_of, noise, raw_of, values_of

TRANSPOSED = ("layer", "kv", "head", "dim", "token")
SHAPES = {
    "head": (("head", 2, 2, 3, 16), {}, (0,)),
    "head-80": (("head", 1, 2, 2, 80), {"pairs": 16}, (0,)),
    "layer": (("layer", 2, 2, 3, 16), {}, (1,)),
    "joint": (("joint", 4, 2, 2, 8), {"joined": 2}, (2, 3)),
    "mla": (("head", 1, 1, 1, 72), {"style": "interleaved", "start": 64, "pairs": 4}, (0,)),
    "scaled": (("layer", 1, 2, 1, 24), {"scaling": 1.3, "pairs": 5, "start": 3}, (0,)),
}


@pytest.fixture(params=["portable", "avx2", "avx512"])
def simd(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.simd_level()
    try:
        _native.set_simd_level(request.param)
    except ValueError:
        pytest.skip(f"no {request.param} here")
    yield request.param
    _native.set_simd_level(before)


@pytest.mark.parametrize("level", ["near", "matches-fp8", "small"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_decodes_what_numpy_decodes(shape: str, level: str, simd: str) -> None:
    about, rest, layers = SHAPES[shape]
    found = artefact(*about, **rest)
    _, _, planes, heads, dim = about
    cases = [
        (256, 256, "bfloat16", CANONICAL_AXES), (3, 0, "float16", CANONICAL_AXES), (61, 2, "float32", TRANSPOSED),
        (1, 5, "bfloat16", TRANSPOSED), (300, 77_000, "float16", CANONICAL_AXES),
    ]  # fmt: skip
    for tokens, position, dtype, axes in cases:
        block = block_of(layers, planes, tokens, heads, dim, dtype=dtype, axes=axes, position=position)
        values = noise(9, len(layers), planes, tokens, heads, dim)
        raw, plan = raw_of(values, block), plan_of(found, block, level)
        native = NativePlan(plan, block)
        for body in (reference.encode(memoryview(raw), block, plan), native.encode(raw, block)):
            slow, fast = bytearray(block.nbytes), bytearray(block.nbytes)
            reference.decode(memoryview(body), block, plan, memoryview(slow))
            native.decode(body, block, memoryview(fast))
            assert slow == fast
        sinks = max(0, min(tokens, 4 - position))
        assert (values_of(fast, block)[:, :, :sinks] == values_of(raw, block)[:, :, :sinks]).all()


def test_error_falls_with_the_step() -> None:
    found = artefact("layer", 2, 2, 3, 16)
    block = block_of((0,), 2, 256, 3, 16, dtype="float32", position=256)
    values = noise(9, 1, 2, 256, 3, 16)
    errors, sizes = [], []
    for level in ("near", "matches-fp8", "small"):
        native, out = NativePlan(plan_of(found, block, level), block), bytearray(block.nbytes)
        body = native.encode(raw_of(values, block), block)
        native.decode(body, block, memoryview(out))
        errors.append(float(np.square(values_of(out, block) - values).mean() / values.var()))
        sizes.append(len(body))
    assert errors[0] < 1e-3 < errors[1] < errors[2] < 1.5
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("value", [65504.0, -65519.0, 70000.0])
def test_what_float16_cannot_reach_becomes_its_largest_number(value: float, simd: str) -> None:
    block, plan, _ = golden()
    far = Section(
        0,
        0,
        plan.sections[0].matrix,
        *(np.full(2, each, np.float32) for each in (0, value)),
        np.eye(2, dtype=np.float32),
    )
    plan = replace(plan, sections=(far, *plan.sections[1:]), rotary=(Rotary(np.zeros(0)),))
    block, out, again = replace(block, dtype="float16"), bytearray(96), bytearray(96)
    native = NativePlan(plan, block)
    body = bytes.fromhex(BODY)
    native.decode(body, block, memoryview(out))
    reference.decode(memoryview(body), block, plan, memoryview(again))
    assert out == again
    assert (values_of(out, block)[0, 0, 2:, 0] == np.clip(np.float32(value), -65504, 65504)).all()


def test_golden_body(simd: str) -> None:
    """docs/codecs.md prints this body: it is made, and decodes to these bits, for ever."""
    block, plan, raw = golden()
    native, out, again = NativePlan(plan, block), bytearray(block.nbytes), bytearray(block.nbytes)
    assert native.encode(raw, block).hex() == BODY
    assert reference.encode(memoryview(raw), block, plan).hex() == BODY
    native.decode(bytes.fromhex(BODY), block, memoryview(out))
    reference.decode(memoryview(bytes.fromhex(BODY)), block, plan, memoryview(again))
    assert out.hex() == again.hex() == ELEMENTS


def test_rotation_tables_are_right_and_undo_one_another() -> None:
    angle = np.concatenate([np.linspace(0, 7, 1000), np.arange(0, 1_000_000, 997, dtype=np.float64)])
    cos, sin = cos_sin(angle)
    assert np.abs(cos - np.cos(angle)).max() < 1e-15
    assert np.abs(sin - np.sin(angle)).max() < 1e-15
    for style in ("half", "interleaved"):
        rotary = Rotary.of_base(1e4, 5, style=style, start=2, scaling=1.25)
        values = noise(1, 1, 1, 40, 2, 16)[0, 0]
        there = values.copy()
        rotary.turn(there, 1000)
        assert np.abs(there - values)[..., 2:12].max() > 0.1
        assert (there[..., :2] == values[..., :2]).all()
        rotary.turn_back(there, 1000)
        assert np.abs(there - values).max() < 1e-5
