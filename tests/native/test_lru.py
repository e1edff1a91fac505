from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._native import LruList


def order(lru: LruList) -> list[int]:
    handles = []
    handle = lru.oldest()
    while handle != -1:
        handles.append(handle)
        handle = lru.newer(handle)
    return handles


def test_an_empty_list() -> None:
    lru = LruList(10)
    assert lru.oldest() == -1
    assert len(lru) == 0
    assert 3 not in lru
    assert lru.remove(3) is False


def test_touch_many_moves_those_present_in_order() -> None:
    lru = LruList(10)
    for handle in range(5):
        lru.push(handle)
    lru.touch_many(np.array([3, 9, -1, 0, 1 << 40], np.int64))
    assert order(lru) == [1, 2, 4, 3, 0]
    lru.touch_many(np.array([2], np.uint32))
    assert order(lru) == [1, 4, 3, 0, 2]
    lru.touch_many(np.array([4, 9, 3], np.uint32), reverse=True)
    assert order(lru) == [1, 0, 2, 3, 4]


def test_bad_handles() -> None:
    lru = LruList(10)
    assert 10 not in lru
    for call in (lru.push, lru.remove, lru.newer):
        with pytest.raises(IndexError, match="handle 10"):
            call(10)
    with pytest.raises(IndexError, match="handle -1"):
        lru.push(-1)
    with pytest.raises(ValueError, match="handle 4 is not in the list"):
        lru.newer(4)
    with pytest.raises(TypeError, match="rows must be an array"):
        lru.touch_many(np.zeros(2, np.float64))
    with pytest.raises(ValueError, match="max_handles"):
        LruList(0xFFFFFFFF)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["push", "remove", "touch"]), st.integers(0, 15)), max_size=100))
def test_against_an_ordered_dict(operations: list[tuple[str, int]]) -> None:
    lru = LruList(16)
    model: OrderedDict[int, None] = OrderedDict()
    for name, handle in operations:
        if name == "push":
            lru.push(handle)
            model[handle] = None
            model.move_to_end(handle)
        elif name == "remove":
            assert lru.remove(handle) == (handle in model)
            model.pop(handle, None)
        else:
            lru.touch_many(np.array([handle, (handle * 7) % 16], np.uint32))
            for touched in (handle, (handle * 7) % 16):
                if touched in model:
                    model.move_to_end(touched)
        assert order(lru) == list(model)
        assert len(lru) == len(model)
        assert all((h in lru) == (h in model) for h in range(16))
