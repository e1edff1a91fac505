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


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_like_its_reference_for_long(name: str, seed: int) -> None:
    """Favourites that change, scans and loops, over many more chunks than fit: what is remembered matters."""
    rng, keys = np.random.default_rng(seed), 96
    capacity = (7, 12, 20, 25, 33, 40)[seed]
    driver = Driver(Policy(name, keys), REFERENCES[name](capacity), capacity, keys)
    for at in range(2500):
        kind, phase = rng.random(), at // 400
        if kind < 0.5:
            key = (phase * 17 + int(rng.zipf(1.3))) % keys
        elif kind < 0.8:
            key = (at // 3 % (capacity + 5 * phase) + phase * 11) % keys
        else:
            key = int(rng.integers(keys))
        driver.request(key, 1 if seed % 2 else int(key % 4 + 1), compare=at % 5 == 0)
        if kind > 0.98:
            driver.delete(int(rng.integers(keys)))
        elif kind > 0.96 and seed % 2 == 0:
            driver.grow(key)


def test_mq_forgets_what_was_used_long_ago() -> None:
    """Over many lives: what was popular goes down queue by queue while others are used."""
    rng, reference = np.random.default_rng(3), Mq(12)
    driver = Driver(Policy("mq", KEYS), reference, 12, KEYS)
    for at in range(45_000):
        favourite = at // 15_000 * 6
        key = favourite + int(rng.integers(6)) if rng.random() < 0.7 else int(rng.integers(18, KEYS))
        expiring = 9_800 < at % 15_000 < 10_200  # the favourites of the phase before
        driver.request(key, 1, compare=expiring or at % 100 == 0)
    assert reference.descents > 5
