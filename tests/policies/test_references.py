"""Every policy against a plain Python version of it, event by event."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._native import Policy
from tests.policies.driver import Driver
from tests.policies.references import REFERENCES

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
