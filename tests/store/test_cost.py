"""Load or recompute: the best cut, against trying every one, and the reasons that are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.cost import REASONS, Plan, Prefill, TierSpeed, plan
from kvstore.errors import InvalidArgument

PREFILL = Prefill(16e9, 524288.0, 400e12, 0.01)  # an 8B model on one large GPU
BYTES = 131072  # of KV a token
FAST, SLOW = TierSpeed(50e-6, 25e9), TierSpeed(1e-3, 0.5e9)
TOKENS = 256


def planned(tiers: list[int], prompt: int, speeds: tuple[TierSpeed, ...] = (FAST, SLOW), **options: Any) -> Plan:
    """For a run of whole chunks."""
    tokens = np.full(len(tiers), TOKENS, np.uint32)
    return plan(
        tokens, tokens.astype(np.uint64) * BYTES, np.array(tiers, np.uint8), speeds=speeds, prompt=prompt,
        **{"prefill": PREFILL, **options},
    )  # fmt: skip


def test_flops_are_the_weights_and_attention_to_all_before() -> None:
    assert PREFILL.flops(0, 10) == 16e10 + 524288 * 50
    assert PREFILL.flops(0, 30) == PREFILL.flops(0, 10) + PREFILL.flops(10, 30)
    assert PREFILL.seconds(0, 1000) == PREFILL.flops(0, 1000) / 400e12


def test_a_fast_tier_is_loaded_whole() -> None:
    found = planned([0] * 20, 6000)
    assert (found.start, found.end, found.tokens) == (0, 5120, 5120)
    assert REASONS[found.reason].startswith("loading all")
    assert found.seconds == pytest.approx(0.01 + 50e-6 + 5120 * BYTES / 25e9 + PREFILL.seconds(5120, 6000))
    assert found.recompute_s == pytest.approx(PREFILL.seconds(0, 6000))
    assert "ms instead of" in found.why


def test_a_short_hit_is_not_worth_a_step_of_the_scheduler() -> None:
    found = planned([0], 256)
    assert found.tokens == 0
    assert found.seconds == found.recompute_s == pytest.approx(PREFILL.seconds(0, 256)) != 0
    assert found.seconds < 0.011
    assert planned([0], 256, prefill=Prefill(16e9, 0.0, 40e12)).tokens == 256
    assert REASONS[found.reason].startswith("computing all")


def test_a_slow_end_of_the_run_is_computed() -> None:
    found = planned([0] * 10 + [1] * 10, 5120)
    assert (found.start, found.end) == (0, 2560)
    assert REASONS[found.reason].startswith("the end of the run")


def test_a_queue_and_a_codec_count() -> None:
    assert planned([0] * 20, 5120, (FAST._replace(queue_s=1.0), SLOW)).tokens == 0
    decoded = planned([0] * 20, 5120, (FAST._replace(decode_bytes_per_s=10e9), SLOW))
    assert decoded.seconds == pytest.approx(planned([0] * 20, 5120).seconds + 5120 * BYTES / 10e9)


def test_where_the_engine_can_compute_meanwhile_they_meet() -> None:
    apart, met = planned([1] * 40, 10240), planned([1] * 40, 10240, overlap=True)
    assert 0 < met.start < met.end == 10240
    assert met.seconds < apart.seconds
    assert REASONS[met.reason].startswith("the front is computed")
    load = 1e-3 + (10240 - met.start) * BYTES / 0.5e9
    assert met.seconds == pytest.approx(0.01 + max(load, PREFILL.seconds(0, met.start)))


def test_a_run_may_begin_later_and_end_after_the_prompt() -> None:
    found = planned([0] * 10, 6000, start=4000)
    assert (found.start, found.end) == (4000, 6000)
    assert found.recompute_s == pytest.approx(PREFILL.seconds(4000, 6000))


def test_nothing_stored() -> None:
    found = planned([], 1000)
    assert (found.tokens, found.reason) == (0, 0)
    assert found.seconds == pytest.approx(PREFILL.seconds(0, 1000))


@settings(max_examples=200, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 10**8), st.integers(0, 2)), max_size=8),
    start=st.integers(0, 5000),
    more=st.integers(0, 3000),
    overlap=st.booleans(),
)
def test_no_other_cut_is_quicker(chunks: list[tuple[int, int, int]], start: int, more: int, overlap: bool) -> None:
    speeds = (FAST, SLOW, TierSpeed(0.0, 2e9, 3e9, 0.005))
    prompt = start + sum(tokens for tokens, _, _ in chunks) + more

    def load(some: list[tuple[int, int, int]]) -> float:
        busy, decoding = [0.0] * 3, 0.0
        for tier, (latency, rate, decode, queue) in enumerate(speeds):
            stored = sum(nbytes for _, nbytes, at in some if at == tier)
            busy[tier] = latency + queue + stored / rate if stored else 0.0
            decoding += stored / decode if decode else 0.0
        return max(busy) + decoding

    ends = [start + sum(tokens for tokens, _, _ in chunks[:n]) for n in range(len(chunks) + 1)]
    tried = [PREFILL.seconds(start, prompt)]
    tried += [0.01 + load(chunks[:n]) + PREFILL.seconds(ends[n], prompt) for n in range(1, len(ends))]
    if overlap:
        after = PREFILL.seconds(ends[-1], prompt)
        tried += [0.01 + max(load(chunks[n:]), PREFILL.seconds(start, ends[n])) + after for n in range(1, len(chunks))]
    columns = [np.array([c[n] for c in chunks], kind) for n, kind in enumerate((np.uint32, np.uint64, np.uint8))]
    found = plan(*columns, prefill=PREFILL, speeds=speeds, prompt=prompt, start=start, overlap=overlap)
    assert found.seconds == pytest.approx(min(tried))


def test_what_does_not_fit_is_refused() -> None:
    for wrong in ({"flops_per_token": 0.0}, {"flops_per_s": 0.0}, {"step_s": -1.0}):
        with pytest.raises(InvalidArgument, match="prefill takes time"):
            Prefill(**{"flops_per_token": 1.0, "flops_per_token2": 0.0, "flops_per_s": 1.0, **wrong})
    with pytest.raises(ValueError, match="a tier without a speed"):
        planned([2], 256)
    with pytest.raises(ValueError, match="1 to 8 tiers"):
        planned([0], 256, ())
    with pytest.raises(ValueError, match="different lengths"):
        plan(
            np.ones(2, np.uint32),
            np.ones(1, np.uint64),
            np.ones(2, np.uint8),
            prefill=PREFILL,
            speeds=(FAST,),
            prompt=9,
        )
    with pytest.raises(TypeError, match="items of another size"):
        plan(
            np.ones(1, np.int64), np.ones(1, np.uint64), np.ones(1, np.uint8), prefill=PREFILL, speeds=(FAST,), prompt=9
        )
