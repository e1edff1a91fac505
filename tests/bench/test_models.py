"""The table of model shapes: figures that can be worked out by hand, and names that are not in it."""

from __future__ import annotations

import pytest

from kvstore.bench.corpus import chunk_bytes, layout
from kvstore.bench.models import MODELS, model_spec
from kvstore.errors import InvalidArgument


@pytest.mark.parametrize(
    ("name", "kib_a_token"),
    [
        ("llama-3.1-8b", 32 * 2 * 8 * 128 * 2 / 1024),
        ("llama-3.1-70b", 320),
        ("qwen3-8b", 144),
        ("smollm2-135m", 22.5),
        ("deepseek-v3", 61 * 576 * 2 / 1024),
    ],
)
def test_bytes_of_a_token(name: str, kib_a_token: float) -> None:
    assert chunk_bytes(model_spec(name)) == 256 * 1024 * kib_a_token


def test_hybrid_models_have_two_groups() -> None:
    gemma = model_spec("gemma-3-12b")
    assert [(len(group.layers), group.window) for group in gemma.groups] == [(8, 0), (40, 1024)]
    assert gemma.groups[0].layers[:2] == (5, 11)
    oss = model_spec("gpt-oss-20b", tokens=64)
    assert [group.layers[:2] for group in oss.groups] == [(1, 3), (0, 2)]
    assert oss.groups[1].window == 128
    assert oss.chunk_tokens == 64


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_layer_is_in_one_group(name: str) -> None:
    spec = model_spec(name)
    assert sorted(layer for group in spec.groups for layer in group.layers) == list(range(MODELS[name].layers))


def test_ranks_split_a_chunk_into_parts_that_follow_each_other() -> None:
    spec = model_spec("gpt-oss-20b", tp=4)
    parts = layout(spec)
    assert len(parts) == 8
    assert [at.start for _, at in parts] == [0, *(at.stop for _, at in parts[:-1])]
    assert parts[-1][1].stop == chunk_bytes(spec) == chunk_bytes(model_spec("gpt-oss-20b"))
    assert len(layout(model_spec("deepseek-v3", tp=8))) == 1  # MLA is the same on every rank


def test_an_unknown_model_is_told_with_the_nearest_and_all() -> None:
    with pytest.raises(InvalidArgument, match=r"'lama-3.1-8b'.*did you mean 'llama-3.1-8b'.*deepseek-v3, gemma"):
        model_spec("lama-3.1-8b")
    with pytest.raises(InvalidArgument, match="known are deepseek-v3, "):
        model_spec("zzz")
    with pytest.raises(InvalidArgument, match="cannot be split over tp_size 3"):
        model_spec("llama-3.1-8b", tp=3)
