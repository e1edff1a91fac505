"""Every policy against a plain Python version of it, event by event."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._native import Policy
from tests.policies.driver import Driver
from tests.policies.references import REFERENCES, Mq

KEYS = 20
requests = st.tuples(st.just("request"), st.integers(0, KEYS - 1), st.integers(1, 4))
others = st.tuples(st.sampled_from(["grow", "delete"]), st.integers(0, KEYS - 1), st.just(0))
events = st.lists(st.one_of(requests, requests, requests, requests, others), max_size=120)


@pytest.mark.parametrize("name", sorted(REFERENCES))
@settings(max_examples=150, deadline=None)
@given(events=events, capacity=st.integers(4, 40), unit=st.booleans())
def test_like_its_reference(name: str, events: list[tuple[str, int, int]], capacity: int, unit: bool) -> None:
    driver = Driver(Policy(name, KEYS), REFERENCES[name](capacity), capacity, KEYS)
    for event, key, nbytes in events:
        if event == "request":
            driver.request(key, 1 if unit else nbytes)
        elif event == "delete":
            driver.delete(key)
        elif not unit:
            driver.grow(key)


def test_mq_forgets_what_was_used_long_ago() -> None:
    """Over many lives: what was popular goes down queue by queue while others are used."""
    rng, reference = np.random.default_rng(3), Mq(12)
    driver = Driver(Policy("mq", KEYS), reference, 12, KEYS)
    for at in range(45_000):
        favourite = at // 15_000 * 6
        key = favourite + int(rng.integers(6)) if rng.random() < 0.7 else int(rng.integers(18, KEYS))
        driver.request(key, 1, compare=at % 100 == 0)
    assert reference.descents > 5
