"""Of every policy in the simulator: what is hit is leased meanwhile, no entry is lost or counted twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.cost import TierSpeed
from kvstore.policy import POLICIES
from kvstore.sim.replay import Outcome, Replay
from kvstore.sim.setup import BELADY, Capacity, Setup, Tier

from .traces import BLOCK, linked, segmented

BYTES = 131072  # of a token of the default model
SPEED = TierSpeed(0.0, 25e9)
EVERY = pytest.mark.parametrize("policy", [*POLICIES, BELADY])
Parts = list[list[tuple[int, int]]]

ids = st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=6, unique=True), min_size=1, max_size=40)
capacities = st.lists(st.integers(10, 60), min_size=1, max_size=3)  # in tokens


def sized(prompts: list[list[int]]) -> Parts:
    """Segments of 1 to 10 tokens, by their ids."""
    return [[(i, i * 7 % 10 + 1) for i in prompt] for prompt in prompts]


def played(parts: Parts, policy: str, touch: str, *tokens: int, first: int = 0) -> Outcome:
    """`parts` over tiers of so many tokens; the first requests do not count."""
    trace = segmented(parts)
    setup = Setup((), warm=(first + 0.5) / len(parts), touch=touch)
    tiers = [Tier(f"t{n}", Capacity("", nbytes=each * BYTES), SPEED) for n, each in enumerate(tokens)]
    return Replay(trace, setup).play(policy, tiers)


@EVERY
@pytest.mark.parametrize("touch", ["leaf", "put", "forward"])
@settings(max_examples=15, deadline=None)
@given(prompts=ids, tokens=capacities)
def test_no_tier_holds_more_than_its_capacity(
    policy: str, touch: str, prompts: list[list[int]], tokens: list[int]
) -> None:
    """A last request asks for everything: what it hits is what lay there, at any moment that Hypothesis ends at."""
    parts = sized(prompts)
    every = sorted({each for prompt in parts for each in prompt})
    held = played([*parts, every], policy, touch, *tokens, first=len(parts)).tiers
    assert all(tier["hit_tokens"] <= most for tier, most in zip(held, tokens, strict=True))


@pytest.mark.parametrize("policy", POLICIES)  # Belady's rule would act on the last request beforehand
@pytest.mark.parametrize("touch", ["leaf", "put", "forward"])
@settings(max_examples=15, deadline=None)
@given(prompts=ids, tokens=capacities)
def test_what_came_and_has_not_gone_is_there(
    policy: str, touch: str, prompts: list[list[int]], tokens: list[int]
) -> None:
    """Segments of one token, so that what went is the number of evictions."""
    parts = [[(i, 1) for i in prompt] for prompt in prompts]
    every = sorted({each for prompt in parts for each in prompt})
    came = played(parts, policy, touch, *[each // 10 for each in tokens]).tiers
    held = played([*parts, every], policy, touch, *[each // 10 for each in tokens], first=len(parts)).tiers
    left = [tier["written_bytes"] // BYTES - tier["evictions"] for tier in came]
    assert held[0]["hit_tokens"] == left[0]
    assert all(tier["hit_tokens"] <= each for tier, each in zip(held, left, strict=True))  # the rest is above as well
    assert all(each <= most // 10 for each, most in zip(left, tokens, strict=True))


@EVERY
@settings(max_examples=25, deadline=None)
@given(prompts=ids, tokens=capacities, segments=st.booleans())
def test_what_a_request_hits_it_leaves_there(
    policy: str, prompts: list[list[int]], tokens: list[int], segments: bool
) -> None:
    """Each is asked again at once. What it hit was leased while it took others in, so that it hits no less."""
    twice = [each for prompt in prompts for each in (prompt, prompt)]
    if segments:
        told = played(sized(twice), policy, "leaf", *tokens)
    else:
        tiers = [Tier("t", Capacity("", nbytes=(each // 10) * BLOCK * BYTES), SPEED) for each in tokens]
        told = Replay(linked(twice), Setup((), warm=0.0)).play(policy, tiers)
    assert (told.hit_tokens[1::2] >= told.hit_tokens[::2]).all()


def test_a_chunk_that_goes_from_a_slower_tier_while_it_leaves_a_faster_one_is_let_go_once() -> None:
    """What must go from the first tier finds no room in the second, whose victim has pushed it out of the third."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        parts = sized([rng.choice(26, rng.integers(1, 7), replace=False).tolist() for _ in range(40)])
        for touch in ("leaf", "put"):
            played(parts, "value", touch, *rng.integers(10, 60, 3).tolist())
