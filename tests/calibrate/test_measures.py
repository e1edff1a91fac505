"""Divergence, sensitivity and steps on tiny models, against what they must be."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.calibrate.capture import bits_of, capture, rotate, values_of
from kvstore.calibrate.models import Rotation, Subject, subject
from kvstore.calibrate.quality import Judge
from kvstore.calibrate.search import TOLERANCE, steps_for
from kvstore.calibrate.sensitivity import measure

CONTEXT, TOKENS = 80, 160


@pytest.fixture(params=["llama_folder", "gemma_folder"])
def loaded(request: pytest.FixtureRequest) -> Subject:
    """Both kinds of model."""
    folder: Path = request.getfixturevalue(request.param)
    return subject(str(folder))


def test_the_exact_cache_costs_nothing_and_gives_what_a_whole_prompt_gives(loaded: Subject, text_file: Path) -> None:
    import torch

    document = capture(loaded, "a", loaded.tokens(text_file.read_text(), TOKENS))
    judge = Judge(loaded, document, CONTEXT, TOKENS - CONTEXT)
    same = judge.judge(values_of(judge.exact))
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.top1 == 1
    with torch.inference_mode():
        whole = torch.log_softmax(loaded.model(torch.tensor([document.ids])).logits[0, CONTEXT:], -1)
    assert float((whole.exp() * (whole - judge._log)).sum(-1).mean()) < 1e-3


def test_a_worse_cache_costs_more(loaded: Subject, text_file: Path) -> None:
    document = capture(loaded, "a", loaded.tokens(text_file.read_text(), TOKENS))
    judge = Judge(loaded, document, CONTEXT, TOKENS - CONTEXT)
    noise = np.random.default_rng(0).normal(size=judge.exact.shape).astype(np.float32)
    costs = [judge.judge(values_of(judge.exact) + noise * size).kl for size in (0.01, 0.1, 1.0)]
    assert 0 < costs[0] < costs[1] < costs[2]


def test_sensitivity_foretells_what_injected_noise_costs(loaded: Subject, text_file: Path) -> None:
    text = text_file.read_text()
    document = capture(loaded, "a", loaded.tokens(text, TOKENS))
    found = measure(loaded, [document], sinks=4, draws=48)
    judge = Judge(loaded, document, CONTEXT, TOKENS - CONTEXT)
    random = np.random.default_rng(0)
    for layer in range(loaded.layers):
        for plane in range(2):
            weights = found.fisher[layer, plane]
            # Noise of the same variance in all channels, for a cost of 0.0003.
            deviation = float(np.sqrt(0.0003 / np.trace(weights, axis1=1, axis2=2).sum()))
            seen = []
            for _ in range(6):
                lossy = values_of(judge.exact).copy()
                noise = random.normal(size=lossy[layer, plane].shape).astype(np.float32) * deviation
                noise[:4] = 0
                lossy[layer, plane] += noise
                seen.append(judge.judge(lossy).kl)
            assert 0.00015 < np.mean(seen) < 0.0006, (layer, plane)


def test_rotating_back_undoes_a_rotation() -> None:
    rotation = Rotation(np.array([1.0, 0.3, 0.01], np.float32), 1.2)
    keys = np.random.default_rng(0).normal(size=(50, 2, 8)).astype(np.float32)
    turned = rotate(keys, rotation, position=1000)
    assert np.allclose(
        np.linalg.norm(turned[..., :6], axis=-1), 1.2 * np.linalg.norm(keys[..., :6], axis=-1), rtol=1e-5
    )
    assert np.array_equal(turned[..., 6:], keys[..., 6:])
    assert np.allclose(rotate(turned, rotation, position=1000, back=True), keys, atol=1e-5)


def test_keys_rotated_back_are_what_the_model_rotated(loaded: Subject, text_file: Path) -> None:
    import torch

    document = capture(loaded, "a", loaded.tokens(text_file.read_text(), TOKENS))
    for layer in range(loaded.layers):
        attention = loaded.model.model.layers[layer].self_attn
        seen: list[Any] = []
        projection = getattr(attention, "k_norm", attention.k_proj)
        hook = projection.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        with torch.inference_mode():
            loaded.model(torch.tensor([document.ids]))
        hook.remove()
        states = seen[0][0]
        states = states.transpose(0, 1) if states.dim() == 3 else states.unflatten(-1, (-1, loaded.dim))
        before = rotate(values_of(document.kv[layer, 0]), loaded.rotations[layer], back=True)
        assert np.abs(before - states.numpy()).max() <= 0.01 * np.abs(states.numpy()).max()


def test_bfloat16_rounding_is_torchs() -> None:
    import torch

    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    values[:3] = 1.00390625, 1.01171875, 0.0  # ties
    expected = torch.from_numpy(values).bfloat16()
    assert np.array_equal(bits_of(values), expected.view(torch.uint16).numpy())
    assert np.array_equal(values_of(bits_of(values)), expected.float().numpy())


def test_steps_reach_their_levels_in_few_tries() -> None:
    tried = []

    def kl_of(step: float) -> float:
        tried.append(step)
        return 0.3 * step**1.8 * (1 + 0.02 * np.sin(1000 * step))

    targets = {"coarse": 0.01, "fine": 0.0001, "middle": 0.002}
    steps = steps_for(targets, kl_of, 0.0001)
    for level, target in targets.items():
        assert abs(log(0.3 * steps[level] ** 1.8 / target)) < 1.5 * TOLERANCE
    assert list(steps) == ["fine", "middle", "coarse"]
    assert len(tried) <= 10
