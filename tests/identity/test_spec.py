"""What a spec means and the digest that stands for it."""

import hashlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument
from kvstore.spec import CANONICAL_AXES, DTYPE_BYTES, OPAQUE, KVGroup, KVSpec, Part

LLAMA = KVSpec.dense("meta-llama/Llama-3.1-8B", layers=32, kv_heads=8, head_dim=128, revision="0e9e39f2")
MLA = KVSpec("deepseek-ai/DeepSeek-V3", "e815299b", "bfloat16", (KVGroup(tuple(range(61)), latent_dim=576),), tp_size=8)
GEMMA = KVSpec(
    "google/gemma-3-270m",
    "9b0cfec8",
    "bfloat16",
    (KVGroup((5, 11, 17), 1, 256), KVGroup((0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16), 1, 256, window=512)),
    rope={"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_type": "default", "rope_scaling": None},
    chunk_tokens=128,
)
SHARDED = KVSpec.dense(
    "m",
    layers=4,
    kv_heads=4,
    head_dim=8,
    dtype="float16",
    rope={"factor": 8.0, "low": 1, "on": True, "short": [1.0, 1.5]},
    tp_size=2,
    pipeline=((0, 2), (2, 4)),
    layout=("layer", "kv", "head", "dim", "token"),
)

# A later change cannot alter these unnoticed: every stored key depends on them.
GOLDEN = {
    "llama": (LLAMA, "668dcb409fab12addadc2f31035f2c75"),
    "mla": (MLA, "9247e30bb66b9efccac7dcf6e03be26e"),
    "gemma": (GEMMA, "c44dc533e7462305c002af7c122d0b3e"),
    "sharded": (SHARDED, "703c51566ea2b17b57e66b763415ad4a"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_digest_of_a_spec_never_changes(name: str) -> None:
    spec, digest = GOLDEN[name]
    assert spec.digest.hex() == digest


def test_the_digest_is_sha256_of_canonical_json_with_floats_as_bits() -> None:
    bits = "f64:" + struct.pack(">d", 10000.0).hex()
    data = {
        "chunk_tokens": 256,
        "dtype": "int8",
        "groups": [{"head_dim": 4, "kv_heads": 2, "latent_dim": 0, "layers": [0, 1], "window": 0}],
        "layout": ["layer", "kv", "token", "head", "dim"],
        "model": "m",
        "pipeline": [[0, 2]],
        "revision": "r",
        "rope": {"theta": bits},
        "tp_size": 1,
    }
    text = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    spec = KVSpec.dense("m", revision="r", layers=2, kv_heads=2, head_dim=4, dtype="int8", rope={"theta": 10000.0})
    assert spec.digest == hashlib.sha256(b"kvstore/spec/1\0" + text).digest()[:16]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"revision": "r"},
        {"dtype": "float16"},
        {"rope": {"theta": 1e4}},
        {"chunk_tokens": 128},
        {"tp_size": 2},
        {"pipeline": ((0, 1), (1, 2))},
        {"layout": ("layer", "kv", "head", "token", "dim")},
        {"layout": OPAQUE},
        {"groups": (KVGroup((0, 1), 2, 16),)},
        {"groups": (KVGroup((0, 1), 4, 8, window=64),)},
        {"groups": (KVGroup((0, 1), latent_dim=64),)},
    ],
    ids=str,
)
def test_any_field_that_differs_makes_another_spec(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "model": "m", "revision": "", "dtype": "bfloat16", "groups": (KVGroup((0, 1), 4, 8),), "chunk_tokens": 256,
    }  # fmt: skip
    assert KVSpec(**{**base, **change}).digest != KVSpec(**base).digest


def test_the_order_of_rotary_parameters_does_not_matter() -> None:
    one = KVSpec.dense("m", layers=1, kv_heads=1, head_dim=1, rope={"a": 1.0, "b": 2.0})
    two = KVSpec.dense("m", layers=1, kv_heads=1, head_dim=1, rope={"b": 2.0, "a": 1.0})
    assert one.digest == two.digest


@pytest.mark.parametrize("spec", [LLAMA, MLA, GEMMA, SHARDED], ids=["llama", "mla", "gemma", "sharded"])
def test_plain_data_gives_the_same_spec_back(spec: KVSpec) -> None:
    again = KVSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert (again.digest, again) == (spec.digest, spec)


def test_parts_are_counted_by_group_rank_and_stage() -> None:
    assert [len(tuple(spec.parts())) for spec in (LLAMA, MLA, GEMMA, SHARDED)] == [1, 1, 2, 4]
    assert tuple(SHARDED.parts()) == tuple(Part(0, r, s) for r in (0, 1) for s in ((0, 2), (2, 4)))


def test_a_stage_without_layers_of_a_group_has_no_part_of_it() -> None:
    spec = KVSpec("m", "", "int8", (KVGroup((0, 1), 1, 4), KVGroup((2, 3), 1, 4, window=8)), pipeline=((0, 2), (2, 4)))
    assert tuple(spec.parts()) == (Part(0, 0, (0, 2)), Part(1, 0, (2, 4)))


@pytest.mark.parametrize(
    ("spec", "part", "tokens", "shape", "nbytes"),
    [
        (LLAMA, LLAMA.part(), 256, (32, 2, 256, 8, 128), 32 << 20),
        (LLAMA, LLAMA.part(), 7, (32, 2, 7, 8, 128), 32 * 2 * 7 * 8 * 128 * 2),
        (MLA, MLA.part(), 256, (61, 256, 576), 61 * 256 * 576 * 2),
        (GEMMA, GEMMA.part(1), 128, (15, 2, 128, 1, 256), 15 * 2 * 128 * 256 * 2),
        (SHARDED, SHARDED.part(0, 1, 1), 16, (2, 2, 2, 8, 16), 2 * 2 * 16 * 2 * 8 * 2),
    ],
)
def test_shapes_follow_the_spec(spec: KVSpec, part: Part, tokens: int, shape: tuple[int, ...], nbytes: int) -> None:
    assert spec.part_shape(part, tokens) == shape
    assert spec.part_bytes(part, tokens) == nbytes
    ranges = spec.layer_ranges(part, tokens)
    assert len(ranges) == shape[0]
    assert [at for at, _ in ranges] == [i * ranges[0][1] for i in range(len(ranges))]
    assert sum(n for _, n in ranges) == nbytes


def test_more_ranks_than_heads_replicate_a_head() -> None:
    spec = KVSpec.dense("m", layers=1, kv_heads=2, head_dim=4, tp_size=8)
    assert spec.part_shape(spec.part(0, 7), 1) == (1, 2, 1, 1, 4)


def test_an_opaque_layout_is_one_run_of_elements() -> None:
    spec = KVSpec.dense("m", layers=2, kv_heads=2, head_dim=4, layout=OPAQUE)
    assert spec.part_shape(spec.part(), 3) == (2 * 2 * 3 * 2 * 4,)
    assert spec.layer_ranges(spec.part(), 3) == [(0, 192)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "float64"}, "float64"),
        ({"chunk_tokens": 0}, "not 0"),
        ({"chunk_tokens": 65537}, "65537"),
        ({"tp_size": 0}, "not 0"),
        ({"tp_size": 3}, "4 KV heads cannot be split over tp_size 3"),
        ({"groups": ()}, "at least one"),
        ({"groups": (KVGroup((0, 1), 4, 8), KVGroup((1, 2), 4, 8))}, "one KV group"),
        ({"layout": ("kv", "layer", "token", "head", "dim")}, "'kv', 'layer'"),
        ({"layout": ("layer", "kv", "token")}, "layout must name"),
        ({"pipeline": ((0, 1),)}, "layer 1"),
        ({"pipeline": ((0, 2), (1, 2))}, "layer 1"),
    ],
    ids=str,
)
def test_a_spec_that_means_nothing_is_refused_with_its_value(change: dict[str, Any], named: str) -> None:
    base: dict[str, Any] = {"model": "m", "revision": "", "dtype": "bfloat16", "groups": (KVGroup((0, 1), 4, 8),)}
    with pytest.raises(InvalidArgument) as refused:
        KVSpec(**{**base, **change})
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "group",
    [
        {"layers": ()},
        {"layers": (1, 0)},
        {"layers": (0, 0)},
        {"layers": (-1,)},
        {"layers": (0,), "kv_heads": 0, "head_dim": 8},
        {"layers": (0,), "kv_heads": 1, "head_dim": 8, "latent_dim": 8},
        {"layers": (0,), "kv_heads": 1, "head_dim": 8, "window": -1},
    ],
    ids=str,
)
def test_a_group_that_means_nothing_is_refused(group: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        KVGroup(**group)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"model": "m"},
        {**LLAMA.to_dict(), "flavour": 1},
        {**LLAMA.to_dict(), "groups": [{"layers": 3}]},
        {**LLAMA.to_dict(), "pipeline": [["a", "b"]]},
        {**LLAMA.to_dict(), "groups": None},
    ],
    ids=lambda data: str(len(data)),
)
def test_data_that_is_no_spec_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        KVSpec.from_dict(data)


def test_rotary_parameters_are_plain_data() -> None:
    spec = KVSpec.dense("m", layers=1, kv_heads=1, head_dim=1, rope={"theta": object()})
    with pytest.raises(InvalidArgument, match="plain data only, not object"):
        _ = spec.digest


@pytest.mark.parametrize("part", [Part(1), Part(0, 2, (0, 2)), Part(0, 0, (0, 4)), Part(0, 0, (4, 6)), Part()])
def test_a_part_of_another_spec_is_refused(part: Part) -> None:
    with pytest.raises(InvalidArgument, match="tp_size 2"):
        SHARDED.check_part(part)


def test_a_window_needs_its_last_tokens_only() -> None:
    group = KVGroup((0,), 1, 1, window=8)
    # The next token attends to itself and the seven before it.
    assert [group.first_needed(n) for n in (0, 7, 8, 100)] == [0, 0, 1, 93]
    assert KVGroup((0,), 1, 1).first_needed(100) == 0


u16 = st.integers(0, 0xFFFF)


@given(u16, u16, u16, u16)
def test_a_packed_part_comes_back(group: int, rank: int, start: int, end: int) -> None:
    part = Part(group, rank, (start, end))
    assert part.pack() == struct.pack("<HHHH", group, rank, start, end)
    assert Part.unpack(part.pack()) == part


def test_a_part_has_eight_bytes() -> None:
    with pytest.raises(InvalidArgument, match="not 7"):
        Part.unpack(bytes(7))
    with pytest.raises(InvalidArgument, match="65536"):
        Part(65536).pack()


rope_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)


@given(
    layers=st.integers(1, 8),
    heads=st.integers(1, 8),
    dim=st.integers(1, 16),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    rope=st.dictionaries(st.text(max_size=5), rope_values, max_size=3),
    layout=st.permutations(CANONICAL_AXES[1:]).map(lambda axes: ("layer", *axes)),
)
def test_any_spec_comes_back_from_plain_data(
    layers: int, heads: int, dim: int, dtype: str, rope: dict[str, Any], layout: tuple[str, ...]
) -> None:
    spec = KVSpec.dense(
        "m", layers=layers, kv_heads=heads, head_dim=dim, dtype=dtype, rope=rope, layout=layout, chunk_tokens=32
    )
    assert KVSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).digest == spec.digest
    assert spec.part_bytes(spec.part(), 5) == layers * 2 * 5 * heads * dim * DTYPE_BYTES[dtype]
