"""`bench sim` in miniature: a row a policy, and a load that is the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore.bench import mix_sim, sim
from kvstore.bench.corpus import spec_of
from kvstore.bench.models import model_spec
from kvstore.cost import Prefill
from kvstore.errors import Corrupt
from kvstore.policy import POLICIES
from kvstore.sim.replay import Replay

from .conftest import FIELDS


def test_every_policy_is_timed() -> None:
    told: list[int] = []
    rows = sim.run(events=4000, rounds=2, advance=lambda: told.append(1))
    assert all(row.keys() >= FIELDS for row in rows)
    assert [row["case"] for row in rows] == [*POLICIES, "belady"]
    assert len(told) == 2 * len(rows)
    for row in rows:
        assert row["events_per_s"] == pytest.approx(row["events"] / row["p50_s"])
        assert 0 < row["hit_ratio"] <= rows[-1]["hit_ratio"] + 0.01
        assert bool(row["bar"]) == (row["case"] != "belady")


def test_the_load_is_the_same_for_the_same_seed() -> None:
    one, two, other = sim.load(3000), sim.load(3000), sim.load(3000, seed=1)
    assert np.array_equal(one.chunk, two.chunk)
    assert not np.array_equal(one.chunk[:1000], other.chunk[:1000])
    assert 3000 <= one.events < 3200
    assert one.chunks > 500  # there are one-time prompts among it


def test_a_policy_that_changes_its_mind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = Replay.play, [0]

    def fickle(self: Replay, policy: str, tiers: object) -> object:
        told = real(self, policy, tiers)  # type: ignore[arg-type]
        count[0] += 1
        told.hit_tokens[0] = count[0]
        return told

    monkeypatch.setattr(Replay, "play", fickle)
    with pytest.raises(Corrupt, match="hit something else"):
        sim.run(events=500, rounds=2)


def test_what_a_chunk_takes_in_the_store() -> None:
    assert mix_sim.stored_bytes(spec_of(1 << 20), 256) == (1 << 20) + 4096
    hybrid = model_spec("gpt-oss-20b", tokens=32, tp=2)
    payload = sum(hybrid.part_bytes(part, 32) for part in hybrid.all_parts)
    assert mix_sim.stored_bytes(hybrid, 32) == payload + 4 * 4096


def test_loads_that_took_longer_than_computing() -> None:
    prefill = Prefill(1e9, 0.0, 1e12)  # a millisecond a token
    assert mix_sim.slower_share([(100, 0.05), (100, 0.2), (10, 0.02), (10, 0.001)], prefill) == 0.5
    assert mix_sim.slower_share([], prefill) is None
    assert mix_sim.slower_share([(1, 1.0)], None) is None
    assert mix_sim.prefill_of(spec_of(1 << 20)) is None
    llama = mix_sim.prefill_of(model_spec("llama-3.1-8b", tp=2))
    assert llama is not None
    assert llama.flops_per_token == 2 * 8.03e9
