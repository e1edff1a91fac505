"""The native replay against a model of it in a few lines of Python, and what must hold whatever is played."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument
from kvstore.policy import POLICIES
from kvstore.sim.replay import Outcome, Replay, told_to_have_ended
from kvstore.sim.setup import BELADY, Capacity, Tier
from kvstore.sim.trace import Trace, mix

from .models import BYTES, PLAIN, SPEED, ModelLru, tiers
from .traces import BLOCK, conversations, linked, segmented


def played(trace: Trace, policy: str, *blocks: int, **options: object) -> Outcome:
    return Replay(trace, replace(PLAIN, **options)).play(policy, tiers(*blocks))


@pytest.mark.parametrize("touch", ["leaf", "put"])
@pytest.mark.parametrize("sizes", [[7], [20], [6, 15], [5, 9, 30]])
def test_lru_is_the_models(touch: str, sizes: list[int]) -> None:
    prompts = conversations(400, seed=len(sizes))
    model = ModelLru(sizes)
    expected = [model.request(ids, touch) * BLOCK for ids in prompts]
    assert sum(expected) > 0
    told = played(linked(prompts), "lru", *sizes, touch=touch)
    assert told.hit_tokens.tolist() == expected
    assert [tier["written_bytes"] for tier in told.tiers] == [blocks * BLOCK * BYTES for blocks in model.written]


def test_a_prefix_counts_only_behind_its_head_and_a_segment_anywhere() -> None:
    prompts = [[1, 2, 3], [9, 2, 3], [1, 2, 4]]
    assert played(linked(prompts), "lru", 9).hit_tokens.tolist() == [0, 0, 2 * BLOCK]
    parts = [[(i, 10 * i) for i in ids] for ids in prompts]
    assert played(segmented(parts), "lru", 99).hit_tokens.tolist() == [0, 50, 30]
    twice = segmented([[(1, 10), (1, 10)], [(1, 10), (2, 5), (1, 10)]])
    told = played(twice, "lru", 99)
    assert told.hit_tokens.tolist() == [0, 20]  # as it was before the request changed anything
    assert told.tiers[0]["written_bytes"] == 15 * BYTES


def test_a_partial_tail_takes_its_own_room_or_a_whole_blocks() -> None:
    prompts = [[1, 2], [3, 4], [1, 2]]
    trace, room = linked(prompts, tail=1), 2 * BLOCK + 2
    small = (Tier("t", Capacity("", nbytes=room * BYTES), SPEED),)
    assert Replay(trace, PLAIN).play("lru", small).hit_tokens.tolist() == [0, 0, 17]
    whole = Replay(trace, replace(PLAIN, whole_blocks=True)).play("lru", small)
    assert whole.hit_tokens.tolist() == [0, 0, 0]


def test_what_is_leased_by_its_request_stays() -> None:
    told = played(linked([[1, 2], [1, 2, 3, 4, 5]]), "fifo" if "fifo" in POLICIES else "lru", 3)
    assert told.hit_tokens.tolist() == [0, 2 * BLOCK]
    assert told.tiers[0]["refused"] == 0
    full = played(linked([[1, 2, 3], [1, 2, 3, 4]]), "lru", 3)
    assert full.tiers[0]["refused"] == 1  # all three are held: there is no room for a fourth


def test_victims_go_down_and_what_is_hit_below_comes_up() -> None:
    told = played(linked([[1], [2], [1], [2]]), "lru", 1, 2)
    above, below = told.tiers
    assert told.hit_tokens.tolist() == [0, 0, BLOCK, BLOCK]
    assert (above["hit_tokens"], below["hit_tokens"]) == (0, 2 * BLOCK)
    assert above["written_bytes"] == 4 * BLOCK * BYTES  # two computed, two loaded
    assert below["written_bytes"] == below["demoted_bytes"] == 2 * BLOCK * BYTES  # each once: its copy stays
    assert above["evictions"] == 3


def test_a_tier_that_encodes_holds_more() -> None:
    trace = linked([[1], [2], [3], [1], [2], [3]])
    tier = Tier("t", Capacity("", nbytes=2 * BLOCK * BYTES), SPEED, smaller=2.0)
    told = Replay(trace, PLAIN).play("lru", (tier,))
    assert told.hit_tokens.sum() == 3 * BLOCK
    assert told.tiers[0]["hit_bytes"] == 3 * BLOCK * BYTES // 2


def test_a_tenant_gives_way_when_it_has_more_than_its_share() -> None:
    greedy, modest = linked([[n] for n in range(100)]), linked([[0, 1]] * 100)
    replay = Replay(mix([greedy, modest]), PLAIN)
    told = replay.play("lru", tiers(6))
    of = replay.trace.tenants
    assert told.hit_tokens[of == 1].sum() == 99 * 2 * BLOCK  # a scan next door cost it nothing
    less = Replay(replay.trace, replace(PLAIN, shares=(9.0, 1.0))).play("lru", tiers(6)).hit_tokens[of == 1].sum()
    assert 0 < less < 99 * 2 * BLOCK  # a tenth of six blocks is not even one of its two


def test_hits_save_their_prefill() -> None:
    prefill = Replay(linked([[1]]), PLAIN).prefill
    told = played(linked([[1, 2, 3], [1, 2, 3, 4]]), "lru", 9, step_s=0.0)
    assert told.flops_saved.tolist() == [0.0, pytest.approx(prefill.flops(0, 3 * BLOCK))]
    assert told.ttft_s[0] == pytest.approx(prefill.seconds(0, 3 * BLOCK))
    assert told.ttft_s[1] == pytest.approx(3 * BLOCK * BYTES / 25e9 + prefill.seconds(3 * BLOCK, 4 * BLOCK))
    slow = played(linked([[1, 2], [1, 2]]), "lru", 9, step_s=1.0)
    assert slow.ttft_s[1] == slow.ttft_s[0]  # one more step is longer than all of it takes: nothing is loaded
    assert slow.loaded_tokens.tolist() == [0, 0]
    assert slow.hit_tokens.tolist() == [0, 2 * BLOCK]


def test_only_what_follows_the_warm_part_counts() -> None:
    trace = linked([[1, 2], [3], [1, 2], [3]])
    told = played(trace, "lru", 9, warm=0.5)
    assert told.tiers[0]["written_bytes"] == 0
    assert told.tiers[0]["hit_tokens"] == 3 * BLOCK
    assert told.tiers[0]["peak_bytes"] == 3 * BLOCK * BYTES


def test_beladys_rule_knows_the_future_and_keeps_the_head_of_a_prefix() -> None:
    prompts = [[1, 2, 3], [7], [8], [9], [1, 2, 3]]
    assert played(linked(prompts), BELADY, 3).hit_tokens[-1] == 3 * BLOCK  # what is never used again stays out
    assert played(linked(prompts), BELADY, 2).hit_tokens[-1] == 2 * BLOCK
    assert played(linked(prompts), "lru", 3).hit_tokens[-1] == 0
    # Without the choice to leave a new chunk out, as simulators of single objects have it, the tail goes for each.
    assert played(linked(prompts), BELADY, 3, touch="forward").hit_tokens[-1] == 2 * BLOCK


@pytest.mark.parametrize("policy", [*POLICIES, BELADY])
@pytest.mark.parametrize("touch", ["leaf", "put", "forward"])
@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 25), max_size=6, unique=True), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    segments=st.booleans(),
)
def test_no_tier_is_ever_over_its_capacity_and_nothing_is_counted_twice(
    policy: str, touch: str, prompts: list[list[int]], sizes: list[int], segments: bool
) -> None:
    trace = linked(prompts) if not segments else segmented([[(i, BLOCK - i % 5) for i in ids] for ids in prompts])
    if not trace.events:
        return
    told = played(trace, policy, *sizes, touch=touch)
    assert (told.hit_tokens <= trace.input_tokens).all()
    assert (told.loaded_tokens <= told.hit_tokens).all()
    assert sum(tier["hit_tokens"] for tier in told.tiers) == told.hit_tokens.sum()
    for blocks, tier in zip(sizes, told.tiers, strict=True):
        assert tier["peak_bytes"] <= blocks * BLOCK * BYTES
    first = Replay(trace, PLAIN).prefill.seconds(0, trace.input_tokens.astype(float))
    assert (told.ttft_s <= first * (1 + 1e-9)).all()  # a hit is never slower than computing


def test_with_room_for_all_every_policy_hits_all_that_was_there() -> None:
    prompts = conversations(200)
    trace = linked(prompts)
    seen: set[int] = set()
    expected = []
    for ids in prompts:
        expected.append(BLOCK * next((n for n, each in enumerate(ids) if each not in seen), len(ids)))
        seen.update(ids)
    for policy in (*POLICIES, BELADY):
        assert played(trace, policy, trace.chunks).hit_tokens.tolist() == expected, policy


def test_of_which_prompts_it_is_true_that_they_have_ended() -> None:
    trace = linked([[1, 2, 10], [5], [1, 2, 3, 11], [1, 2, 3, 4, 12], [1, 8, 13], [7]], tail=3)
    told = told_to_have_ended(trace, "known")
    assert told.tolist() == [0, 0, 0, 1, 1, 0]  # [5] and [7] have no whole block: nothing of them could go on
    assert told_to_have_ended(trace, "always").tolist() == [1] * 6
    assert told_to_have_ended(trace, "never").tolist() == [0] * 6
    assert told_to_have_ended(segmented([[(1, 4)], [(1, 4), (2, 5)], [(1, 4)]]), "known").tolist() == [0, 1, 1]


@pytest.mark.parametrize("touch", ["leaf", "put"])
def test_hints_are_worth_something_to_value_and_nothing_to_others(touch: str) -> None:
    trace = linked(conversations(3000, users=200))

    def hits(policy: str, ended: str) -> int:
        return int(played(trace, policy, 200, touch=touch, ended=ended).hit_tokens.sum())

    assert hits("value", "known") > 1.03 * hits("value", "never")
    for policy in POLICIES:
        if policy != "value":
            assert hits(policy, "known") == hits(policy, "always") == hits(policy, "never")


def test_what_does_not_fit_is_refused() -> None:
    trace = linked([[1], [2]])
    with pytest.raises(InvalidArgument, match="that is no cache"):
        Replay(trace, PLAIN).play("lru", (Tier("t", Capacity("x", nbytes=100), SPEED),))
    with pytest.raises(InvalidArgument, match="has 1 tenants"):
        Replay(trace, replace(PLAIN, shares=(1.0, 1.0)))
    with pytest.raises(InvalidArgument, match="no whole blocks"):
        Replay(segmented([[(1, 4)]]), replace(PLAIN, whole_blocks=True))
    with pytest.raises(InvalidArgument, match="never, known, always, not 'often'"):
        replace(PLAIN, ended="often")
    with pytest.raises(ValueError, match="1 to 8 tiers"):
        Replay(trace, PLAIN).play("lru", tiers(*[1] * 9))
    with pytest.raises(ValueError, match="there is no policy 'clock'"):
        Replay(trace, PLAIN).play("clock", tiers(1))


def test_the_columns_of_a_trace_must_fit_each_other() -> None:
    trace = linked([[1, 2]])
    for broken, words in (
        ({"starts": np.array([0, 1], np.uint64)}, "divide the chunks"),
        ({"chunk": np.array([0, 5], np.uint32)}, "names a chunk that the trace lacks"),
        ({"tenants": np.zeros(2, np.uint16)}, "different lengths"),
    ):
        with pytest.raises(ValueError, match=words):
            Replay(replace(trace, **broken), PLAIN)
    with pytest.raises(TypeError, match="times_ms has items of another size"):
        Replay(replace(trace, times_ms=np.zeros(1, np.int32)), PLAIN)
