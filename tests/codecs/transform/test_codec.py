"""The codec in a container: what fits, what is refused, and what hostile bytes do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvstore.codecs import Artefact, Block, Form, NotEncodable, codec_of, decode, encode
from kvstore.codecs.transform import body as bodies
from kvstore.codecs.transform import reference
from kvstore.codecs.transform.native import NativePlan
from kvstore.codecs.transform.plan import plan_of
from kvstore.errors import Corrupt, InvalidArgument, SpecMismatch
from tests.codecs.transform.made import artefact, block_of, noise, raw_of, values_of

TRANSFORM = codec_of(9)


def there_and_back(block: Block, found: Artefact, level: int = 0, seed: int = 9) -> tuple[float, int]:
    """Mean squared error over variance, and the container's bytes."""
    values = noise(seed, len(block.layers), block.planes, block.tokens, block.heads, block.dim)
    made = encode(raw_of(values, block), block, Form(TRANSFORM, level, found))
    out = bytearray(block.nbytes)
    decode(made.data, memoryview(out), block, artefacts={found.digest: found}.__getitem__)
    return float(np.square(values_of(out, block) - values).mean() / values.var()), len(made.data)


def test_every_length_and_the_tail_of_a_prompt() -> None:
    found = artefact("layer", 2, 2, 3, 16)
    for tokens, position in [(1, 0), (2, 3), (5, 0), (31, 7), (256, 0), (257, 512), (4096, 4096)]:
        error, _ = there_and_back(block_of((0, 1), 2, tokens, 3, 16, position=position), found)
        assert error < 1e-3


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256])
def test_every_size_of_head(dim: int) -> None:
    found = artefact("head", 1, 2, 1, dim)
    error, nbytes = there_and_back(block_of((0,), 2, 100, 1, dim, position=256), found)
    assert error < 1e-3
    assert nbytes < 2 * 100 * dim * 2


def test_a_latent_with_its_rotary_part() -> None:
    found = artefact("head", 1, 1, 1, 576, style="interleaved", start=512, pairs=32)
    error, _ = there_and_back(block_of((0,), 1, 40, 1, 576, position=256), found)
    assert error < 1e-3


def test_a_rank_decodes_its_own_heads() -> None:
    found = artefact("head", 2, 2, 3, 16)
    whole = block_of((0, 1), 2, 64, 3, 16, position=256)
    raw = raw_of(noise(9, 2, 2, 64, 3, 16), whole)
    parts = []
    for first in range(3):
        block = replace(whole, heads=1, first_head=first)
        mine = np.ascontiguousarray(whole.canonical(raw)[:, :, :, first : first + 1]).tobytes()
        made, out = encode(mine, block, Form(TRANSFORM, 1, found)), bytearray(block.nbytes)
        decode(made.data, memoryview(out), block, artefacts={found.digest: found}.__getitem__)
        parts.append(block.canonical(out))
    out = bytearray(whole.nbytes)
    made = encode(raw, whole, Form(TRANSFORM, 1, found))
    decode(made.data, memoryview(out), whole, artefacts={found.digest: found}.__getitem__)
    assert (np.abs(values_of(out, whole) - _joined(parts)) < 1e-2).all()


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    bits = np.concatenate(parts, axis=3).astype(np.uint32)
    return (bits << 16).view(np.float32)


def test_some_layers_alone_and_a_joint_frame_for_one_of_its_layers() -> None:
    found = artefact("joint", 4, 2, 2, 8, joined=2)
    block = block_of(range(4), 2, 40, 2, 8, position=256)
    made = encode(raw_of(noise(9, 4, 2, 40, 2, 8), block), block, Form(TRANSFORM, 0, found))
    assert len(made.offsets) == 2
    whole, one = bytearray(block.nbytes), bytearray(block.layer_bytes)
    decode(made.data, memoryview(whole), block, artefacts={found.digest: found}.__getitem__)
    decode(made.data, memoryview(one), block, layers=(3, 4), artefacts={found.digest: found}.__getitem__)
    assert one == whole[3 * block.layer_bytes :]


@pytest.mark.parametrize(
    ("changes", "level", "error", "says"),
    [
        ({"dtype": "int8"}, 0, InvalidArgument, "int8"),
        ({"axes": ("opaque",)}, 0, InvalidArgument, "opaque"),
        ({}, 2, InvalidArgument, "near, matches-fp8, small"),
        ({"heads": 1}, 0, InvalidArgument, "all 3 KV heads"),
        ({"layers": (5,)}, 0, SpecMismatch, "layer 5"),
        ({"dim": 8}, 0, SpecMismatch, "8"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, level: int, error: type[Exception], says: str) -> None:
    block = replace(block_of((0,), 2, 8, 3, 16), **changes)
    with pytest.raises(error, match=says):
        encode(bytes(block.nbytes), block, Form(TRANSFORM, level, artefact("layer", 2, 2, 3, 16)))


def test_a_part_that_cuts_a_joint_group_is_refused() -> None:
    block = block_of((1, 2), 2, 8, 2, 8)
    with pytest.raises(InvalidArgument, match="joins the layers"):
        encode(bytes(block.nbytes), block, Form(TRANSFORM, 0, artefact("joint", 4, 2, 2, 8, joined=2)))


def test_an_artefact_of_another_kind_is_refused() -> None:
    found = artefact("layer", 2, 2, 3, 16)
    other = Artefact.build("cachegen", found.model, found.facts, found.arrays)
    block = block_of((0,), 2, 8, 3, 16)
    with pytest.raises(SpecMismatch, match="cachegen"):
        encode(bytes(block.nbytes), block, Form(TRANSFORM, 0, other))


@pytest.mark.parametrize("name", ["bank", "0.matrix", "0.step", "0.live", "rotary.0", "dead"])
def test_an_artefact_that_lacks_or_garbles_an_array_is_corrupt(name: str) -> None:
    found = artefact("layer", 2, 2, 3, 16)
    block = block_of((0,), 2, 8, 3, 16)
    for change in (None, found.arrays[name][..., :0], np.full_like(found.arrays[name], 60)):
        arrays = {key: value for key, value in found.arrays.items() if key != name}
        if change is not None:
            if name == "rotary.0" or (change.size and name not in ("bank", "0.live")):
                continue  # these mean something: no rotation, other numbers
            arrays[name] = change
        broken = Artefact.build("transform", found.model, found.facts, arrays)
        with pytest.raises(Corrupt):
            encode(bytes(block.nbytes), block, Form(TRANSFORM, 0, broken))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_values_that_it_cannot_take_are_not_encodable(bad: float) -> None:
    found = artefact("layer", 2, 2, 3, 16)
    block = block_of((0,), 2, 40, 3, 16, dtype="float32", position=256)
    values = noise(9, 1, 2, 40, 3, 16)
    values[0, 1, 39, 2, 15] = bad
    raw = raw_of(values, block)
    with pytest.raises(NotEncodable):
        encode(raw, block, Form(TRANSFORM, 0, found))
    with np.errstate(all="ignore"), pytest.raises(NotEncodable):
        reference.encode(memoryview(raw), block, plan_of(found, block, "near"))


def test_outliers_are_escaped_and_zeros_are_cheap() -> None:
    found = artefact("layer", 2, 2, 3, 16)
    block = block_of((0,), 2, 64, 3, 16, dtype="float32", position=256)
    values = noise(9, 1, 2, 64, 3, 16)
    values[0, 0, 7] *= 40
    values[0, 1, :20] = 0
    native, out = NativePlan(plan_of(found, block, "near"), block), bytearray(block.nbytes)
    body = native.encode(raw_of(values, block), block)
    assert int.from_bytes(body[8:12], "little") > 0
    native.decode(body, block, memoryview(out))
    assert np.abs(values_of(out, block) - values).max() < 0.2


def test_hostile_bodies_are_corrupt() -> None:
    found = artefact("layer", 2, 2, 3, 16)
    block = block_of((0,), 2, 40, 3, 16)
    plan = plan_of(found, block, "near")
    native, out = NativePlan(plan, block), bytearray(block.nbytes)
    body = native.encode(raw_of(noise(9, 1, 2, 40, 3, 16), block), block)
    for length in [*range(40), len(body) - 4, len(body) - 1, len(body) + 4]:
        _is_corrupt(native, plan, block, (body + bytes(4))[:length])
    for at, value in [(0, 2), (1, 0), (2, 0), (4, 0), (4, 33), (6, 1), (11, 255), (12, 7), (15, 255)]:
        broken = bytearray(body)
        broken[at] = value
        if at in (2, 4):
            broken[at + 1] = 0
        _is_corrupt(native, plan, block, bytes(broken))
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(body)
        for at in rng.integers(0, len(body), 3):
            broken[at] = rng.integers(256)
        try:
            native.decode(bytes(broken), block, memoryview(out))
        except Corrupt:
            continue


def _is_corrupt(native: NativePlan, plan: object, block: Block, body: bytes) -> None:
    out = bytearray(block.nbytes)
    with pytest.raises(Corrupt):
        native.decode(body, block, memoryview(out))
    with pytest.raises(Corrupt):
        reference.decode(memoryview(body), block, plan, memoryview(out))  # type: ignore[arg-type]


def test_escapes_out_of_order_are_corrupt() -> None:
    found = artefact("layer", 2, 2, 3, 16)
    block = block_of((0,), 2, 40, 3, 16, position=256)
    plan = plan_of(found, block, "matches-fp8")
    native = NativePlan(plan, block)
    values = noise(9, 1, 2, 40, 3, 16)
    values[0, 0, 7] *= 60
    body = native.encode(raw_of(values, block), block)
    shape = bodies.Shape(40, plan.columns, plan.bit_planes, 0)
    escapes = bodies.unpack(memoryview(body), shape, 0).escapes
    assert len(escapes) > 1
    at = body.index(escapes.tobytes())
    swapped = escapes[::-1].tobytes()
    _is_corrupt(native, plan, block, body[:at] + swapped + body[at + len(swapped) :])


def test_a_frame_without_an_artefact_is_corrupt() -> None:
    block = block_of((0,), 2, 8, 3, 16)
    with pytest.raises(InvalidArgument, match="calibrate"):
        encode(bytes(block.nbytes), block, Form(TRANSFORM, 0))
