"""From a model to a spec."""

from __future__ import annotations

import pytest
import torch
import transformers

from kvstore.connectors.transformers import spec_of
from kvstore.errors import InvalidArgument


def test_full_attention_is_one_group(tiny):
    spec = spec_of(tiny.llama(), chunk_tokens=64)
    (group,) = spec.groups
    assert (group.layers, group.kv_heads, group.head_dim, group.window) == ((0, 1, 2, 3), 2, 16, 0)
    assert spec.dtype == "float32"
    assert spec.chunk_tokens == 64
    assert spec.rope["rope_type"] == "default"


def test_windows_are_a_group_of_their_own(tiny):
    sliding, full = spec_of(tiny.gemma(window=100)).groups
    assert (sliding.layers, sliding.window) == ((0, 1, 3, 4), 100)
    assert (full.layers, full.window) == ((2, 5), 0)


def test_the_same_model_has_the_same_spec(tiny):
    assert spec_of(tiny.llama()).digest == spec_of(tiny.llama()).digest


@pytest.mark.parametrize(
    "other",
    [
        lambda tiny: spec_of(tiny.llama(seed=1)),
        lambda tiny: spec_of(tiny.llama(dtype=torch.bfloat16)),
        lambda tiny: spec_of(tiny.llama(), chunk_tokens=128),
        lambda tiny: spec_of(tiny.llama(), revision="v2"),
        lambda tiny: spec_of(tiny.gemma()),
    ],
    ids=["weights", "dtype", "chunk", "revision", "model"],
)
def test_another_model_has_another_spec(other, tiny):
    assert other(tiny).digest != spec_of(tiny.llama()).digest


def test_a_changed_parameter_is_another_spec(tiny):
    model = tiny.llama()
    before = spec_of(model)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    assert spec_of(model).digest != before.digest


def test_a_configuration_needs_a_revision(tiny):
    config = tiny.llama().config
    with pytest.raises(InvalidArgument, match="revision"):
        spec_of(config)
    assert spec_of(config, revision="abc", dtype=torch.float16).dtype == "float16"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: transformers.LlamaConfig(layer_types=["linear_attention"] * 32), "linear_attention"),
        (transformers.MambaConfig, "mamba"),
        (transformers.T5Config, "encoder-decoder"),
        (transformers.DeepseekV3Config, "different sizes"),
        (lambda: transformers.LlamaConfig(dtype="float64"), "float64"),
    ],
    ids=["linear", "mamba", "encoder-decoder", "latent", "dtype"],
)
def test_what_a_chunk_cannot_hold_is_refused(config, message):
    with pytest.raises(InvalidArgument, match=message):
        spec_of(config(), revision="r", dtype=None)
