"""Tasks without LMCache, whose event is a stand-in; tests/engines/lmcache has the real one."""

from __future__ import annotations

import itertools
import threading

import pytest

from kvstore.connectors.lmcache._tasks import Tasks


class Event:
    """A stand-in for LMCache's `EventNotifier`."""

    def __init__(self) -> None:
        self._told = threading.Semaphore(0)

    def notify(self) -> None:
        self._told.release()

    def close(self) -> None:
        pass

    def wait(self) -> None:
        assert self._told.acquire(timeout=20)


@pytest.mark.parametrize("error", [ZeroDivisionError("by nothing"), KeyError("a layout")])
def test_a_task_that_fails_has_a_result_and_is_logged(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    event = Event()
    tasks = Tasks[str]("test", 1, event, itertools.count())

    def fail(otherwise: str) -> str:
        raise error

    number = tasks.submit(fail, "a miss")
    event.wait()
    assert tasks.take(number) == "a miss"
    good = tasks.submit(lambda otherwise: "found", "a miss")
    event.wait()
    assert tasks.take(good) == "found"
    tasks.close()
    (record,) = caplog.records
    assert record.name == "kvstore.lmcache"
    assert repr(error) in caplog.text or str(error) in caplog.text
