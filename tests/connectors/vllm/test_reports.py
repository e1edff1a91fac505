"""A rank's account of what it was told to save, and the sum over ranks."""

from __future__ import annotations

import pytest

from kvstore.connectors.vllm._plan import first_block
from kvstore.connectors.vllm._reports import UNASKED, Report, Reports, Took


def test_a_job_is_told_once_when_its_last_part_has_ended():
    reports = Reports()
    reports.begin(1, parts=2)
    reports.begin(2, parts=1)
    reports.end(1, stored=True)
    assert reports.take() is None
    reports.end(2, stored=True)
    reports.end(1, stored=True)
    assert reports.take() == Report({1: 1, 2: 1}, set())
    assert reports.take() is None


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_one_part_that_is_not_stored_fails_the_job_when_it_ends(order):
    reports = Reports()
    reports.begin(1, parts=2)
    reports.begin(2, parts=1)
    reports.end(1, stored=order[0])
    reports.end(2, stored=True)
    assert reports.take() == Report({2: 1}, set())  # not yet, and not lost
    reports.end(1, stored=order[1])
    assert reports.take() == Report({1: 1}, {1})


def test_a_rank_without_parts_is_done_at_once():
    reports = Reports()
    reports.begin(1, parts=0)
    assert reports.take() == Report({1: 1}, set())


def test_what_nobody_asks_for_leaves_nothing_behind():
    reports = Reports()
    reports.begin(UNASKED, parts=1)
    reports.end(UNASKED, stored=False)
    assert reports.take() is None


@pytest.mark.parametrize(
    ("table", "windowed", "first"),
    [([3, 4], False, 0), ([0, 4], False, None), ([0, 4], True, 1), ([0, 0], True, None), ([0, 4, 0], True, None)],
)
def test_from_which_block_on_a_part_can_be_stored(table, windowed, first):
    assert first_block(table, windowed=windowed) == first


def test_of_several_ranks_a_load_takes_as_long_as_the_slowest():
    report = Report(loads={"a": Took(100, 0.5), "b": Took(10, 0.1)})
    report.add(Report(loads={"a": Took(100, 0.2), "c": Took(1, 1.0)}))
    assert report.loads == {"a": Took(200, 0.5), "b": Took(10, 0.1), "c": Took(1, 1.0)}
