"""The tier's look-ups and copies without vLLM: leases, what is asked how often, room for stores, failures."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import DramConfig
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._plan import HintJob
from kvstore.connectors.vllm._tier_hints import TierHints
from kvstore.connectors.vllm._tier_lookups import TierLookups
from kvstore.connectors.vllm._tier_rows import RowJob, RowOutcome, TierRows
from kvstore.errors import Unavailable
from kvstore.keys import NO_PARENT, ChunkRef
from kvstore.spec import OPAQUE, KVGroup, KVSpec

TOKENS, WIDTH = 32, 64
SPEC = KVSpec("m", "rows", "uint8", (KVGroup((0,), latent_dim=WIDTH),), chunk_tokens=TOKENS, layout=OPAQUE)
NBYTES = TOKENS * WIDTH


@pytest.fixture
def client():
    with kvstore.open(kvstore.Config(dram=DramConfig(capacity=64 << 20, extent=64 << 20))) as opened:
        yield opened


def ref(number: int, group: int = 0) -> ChunkRef:
    return ChunkRef(bytes([group]) + number.to_bytes(31, "little"), NO_PARENT, number * TOKENS, TOKENS)


def content(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, NBYTES, np.uint8)


def put(client: Any, *numbers: int) -> None:
    for number in numbers:
        client.put(SPEC, ref(number), content(number))


def leased(client: Any) -> int:
    return sum(each.leases for each in client.list())


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in 30 s"
        time.sleep(0.002)


@pytest.fixture
def lookups(client):
    made = TierLookups(client, SPEC, Options(lookup_timeout_s=10.0), Counts())
    yield made
    made.close()


def answers(lookups: TierLookups, name: str, numbers: list[int]) -> list[bool]:
    """As vLLM asks: every row in one step, then again in later ones until all are known."""
    for _ in range(5000):
        found = [lookups.find(name, 0, ref(number)) for number in numbers]
        if None not in found:
            return [bool(each) for each in found]
        lookups.end_step()
        time.sleep(0.002)
    raise AssertionError(f"no answer: {found}")


def test_rows_that_are_there_are_leased_until_their_load_ends(client, lookups):
    put(client, 0, 1, 2, 5, 6)
    assert answers(lookups, "r", list(range(8))) == [True, True, True, False, False, True, True, False]
    assert leased(client) == 5
    lookups.loading("r", [ref(number).key for number in (0, 1, 2)])
    lookups.finished("r")  # while the load runs
    assert leased(client) == 5
    lookups.loaded("r")
    eventually(lambda: leased(client) == 0)
    assert not lookups._requests


def load(lookups: TierLookups, name: str, numbers: list[int]) -> None:
    """A load that begins in this step and is over before the next."""
    lookups.loading(name, [ref(number).key for number in numbers])
    lookups.end_step()
    lookups.loaded(name)


def test_a_row_is_loaded_once_each_time_a_request_comes_in(client, lookups):
    put(client, 0, 1, 2)
    assert answers(lookups, "r", [0, 1]) == [True, True]
    load(lookups, "r", [0, 1])
    assert answers(lookups, "r", [0, 1, 2]) == [False, False, True]
    lookups.admitted_again("r")
    assert answers(lookups, "r", [0, 1]) == [True, True]
    assert answers(lookups, "another", [0]) == [True]


def test_what_was_not_loaded_with_the_rest_is_asked_for_anew(client, lookups):
    put(client, 0, 1)
    asked = [lookups.find("r", 0, ref(number)) for number in (0, 1)]
    lookups.end_step()
    eventually(lambda: lookups.find("r", 0, ref(0)))
    load(lookups, "r", [0])
    eventually(lambda: leased(client) == 0)
    assert asked == [None, None]
    assert lookups.find("r", 0, ref(1)) is None
    assert answers(lookups, "r", [1]) == [True]
    assert leased(client) == 1


def test_a_load_that_begins_after_its_request_has_ended_leaves_nothing(client, lookups):
    put(client, 0)
    assert answers(lookups, "r", [0]) == [True]
    lookups.finished("r")
    lookups.loading("r", [ref(0).key])
    lookups.loaded("r")
    assert not lookups._requests
    eventually(lambda: leased(client) == 0)


def test_a_client_that_breaks_is_a_miss(client, monkeypatch):
    lookups = TierLookups(client, SPEC, Options(lookup_timeout_s=10.0, retry_s=60.0), Counts())
    monkeypatch.setattr(client, "contains", lambda spec, refs: {}["broken"])
    assert answers(lookups, "r", [0]) == [False]
    assert lookups.down
    lookups.close()


def test_once_vllm_has_no_room_no_more_rows_are_offered(client, lookups):
    put(client, *range(10))
    assert answers(lookups, "r", list(range(10))) == [True] * 10
    load(lookups, "r", list(range(8)))  # of ten
    assert [lookups.find("r", 0, ref(number)) for number in (0, 8, 9)] == [False] * 3
    assert answers(lookups, "another", [8]) == [True]
    lookups.admitted_again("r")
    assert answers(lookups, "r", [8, 9]) == [True] * 2


def test_a_step_asks_once_for_all_its_rows(client, lookups, monkeypatch):
    put(client, 0, 1, 2)
    asked, contains = [], client.contains
    monkeypatch.setattr(client, "contains", lambda spec, refs: asked.append(len(refs)) or contains(spec, refs))
    assert answers(lookups, "r", [2, 0, 1]) == [True] * 3
    assert asked == [3]


def test_a_store_that_stands_still_never_holds_the_caller(client, monkeypatch):
    still = threading.Event()
    monkeypatch.setattr(client, "contains", lambda spec, refs: still.wait() and [False])
    lookups = TierLookups(client, SPEC, Options(lookup_timeout_s=0.05, retry_s=60.0), Counts())
    assert answers(lookups, "r", [0]) == [False]
    assert lookups.down
    assert lookups.find("s", 0, ref(1)) is False
    still.set()
    lookups.close()


def test_a_late_answer_gives_its_leases_back(client, monkeypatch):
    put(client, 0)
    still, contains = threading.Event(), client.contains
    monkeypatch.setattr(client, "contains", lambda spec, refs: still.wait() and contains(spec, refs))
    lookups = TierLookups(client, SPEC, Options(lookup_timeout_s=0.05, retry_s=0.0), Counts())
    assert answers(lookups, "r", [0]) == [False]
    still.set()
    lookups._pool.submit(lambda: None).result()
    eventually(lambda: leased(client) == 0)
    lookups.close()


def rows_of(client: Any, count: int = 16, **options: Any) -> tuple[TierRows, np.ndarray[Any, Any], Counts]:
    memory, counts = np.zeros((count, NBYTES), np.uint8), Counts()
    return TierRows(client, SPEC, memory, Options(**options), counts), memory, counts


def outcome(rows: TierRows) -> RowOutcome:
    found: list[RowOutcome] = []
    eventually(lambda: found.extend(rows.take()) or found)
    (one,) = found
    return one


def test_rows_come_back_where_they_are_asked_for(client):
    rows, memory, counts = rows_of(client)
    for number in range(4):
        memory[number] = content(number)
    rows.store(RowJob(1, "r", [ref(n) for n in range(4)], [0, 1, 2, 3]), wanted=True)
    assert outcome(rows).done == [True] * 4
    memory[:] = 0
    rows.load(RowJob(2, "s", [ref(n) for n in (3, 9, 0)], [7, 8, 5]))
    got = outcome(rows)
    assert got.done == [True, False, True]
    assert "NotFound" in got.reason
    assert np.array_equal(memory[7], content(3))
    assert np.array_equal(memory[5], content(0))
    assert not memory[8].any()
    assert counts.take() == {"saved": 4}
    rows.close()


def test_what_is_there_is_not_stored_again(client):
    put(client, 0, 1)
    rows, memory, counts = rows_of(client)
    memory[2] = content(2)
    rows.store(RowJob(1, "r", [ref(n) for n in range(3)], [0, 1, 2]), wanted=True)
    assert outcome(rows).done == [True] * 3
    assert counts.take() == {"saves_present": 2, "saved": 1}
    assert np.array_equal(client.get(SPEC, ref(0)), content(0))
    rows.close()


def test_stores_are_bounded_and_wait_for_loads(client, monkeypatch):
    put(client, 0)
    rows, _, counts = rows_of(client, count=3 * (1 << 20) // NBYTES, staging_mib=1)
    held, get_each = threading.Event(), client.get_each
    monkeypatch.setattr(client, "get_each", lambda *given: held.wait() and get_each(*given))
    rows.load(RowJob(1, "r", [ref(0)], [0]))
    fits = (1 << 20) // NBYTES
    rows.store(RowJob(2, "r", [ref(1 + n) for n in range(fits + 8)], list(range(fits + 8))), wanted=True)
    rows.store(RowJob(3, "r", [ref(5000)], [1]), wanted=True)
    assert counts.take() == {"saves_dropped": 9}
    assert rows.take() == []
    held.set()
    found: list[RowOutcome] = []
    eventually(lambda: found.extend(rows.take()) or len(found) == 3)
    assert [each.job.number for each in found] == [1, 2, 3]
    assert [sum(each.done) for each in found] == [1, fits, 0]
    # What was stored makes room again.
    rows.store(RowJob(4, "r", [ref(6000)], [2]), wanted=True)
    assert outcome(rows).done == [True]
    rows.close()


def test_a_store_that_is_gone_is_told_and_left_alone(client, monkeypatch):
    def gone(*given: Any) -> Any:
        raise Unavailable("nobody listens")

    rows, _, counts = rows_of(client, retry_s=60.0)
    monkeypatch.setattr(client, "get_each", gone)
    rows.load(RowJob(1, "r", [ref(n) for n in range(5)], list(range(5))))
    failed = outcome(rows)
    assert (failed.done, failed.gone) == ([False] * 5, True)
    monkeypatch.setattr(client, "contains", gone)
    rows.store(RowJob(2, "r", [ref(0)], [0]), wanted=True)
    assert outcome(rows).done == [False]
    rows.store(RowJob(3, "r", [ref(0)], [0]), wanted=True)
    assert outcome(rows).done == [False]
    assert counts.take() == {"saves_failed": 1, "saves_dropped": 1}
    rows.close()


def test_draining_waits_for_every_job(client, monkeypatch):
    rows, _, _ = rows_of(client)
    held, contains = threading.Event(), client.contains
    monkeypatch.setattr(client, "contains", lambda *given: held.wait() and contains(*given))
    rows.store(RowJob(1, "r", [ref(0)], [0]), wanted=True)
    threading.Timer(0.05, held.set).start()
    rows.drain()
    assert held.is_set()
    assert [each.done for each in rows.take()] == [[True]]
    rows.close()


def context(name: str, params: Any) -> Any:
    """What vLLM tells a tier of a request."""
    return SimpleNamespace(req_id=name, kv_transfer_params=params)


def test_a_hint_is_about_the_rows_that_the_tier_has_seen_of_a_request_in_prompt_order():
    counts = Counts()
    hints = TierHints(counts, 60.0)
    hints.begin(context("says", {"kvstore.awaited_s": 30}))
    hints.begin(context("nothing", {"other": 1}))
    for name in ("says", "nothing", "unknown"):
        hints.seen(name, [ref(2), ref(1)])
        hints.seen(name, [ref(2), ref(0), ref(0, group=1)])
    told = hints.end("says")
    assert told is not None
    assert (told.awaited_s, [each.position for each in told.refs]) == (30.0, [0, 0, TOKENS, 2 * TOKENS])
    assert [hints.end(name) for name in ("says", "nothing", "unknown")] == [None] * 3
    hints.begin(context("no rows", {"kvstore.ended": True}))
    assert hints.end("no rows") is None
    assert (hints._said, hints._rows) == ({}, {})
    assert counts.take() == {}


def test_what_cannot_be_said_to_a_tier_is_counted_and_ignored(caplog):
    counts = Counts()
    hints = TierHints(counts, 60.0)
    hints.begin(context("r", {"kvstore.awaited_s": -1}))
    hints.seen("r", [ref(0)])
    assert hints.end("r") is None
    assert counts.take() == {"hints_failed": 1}
    assert "not -1" in caplog.text


def test_a_hint_reaches_the_store_after_the_rows_it_is_about(client, monkeypatch):
    rows, memory, counts = rows_of(client, writers=2)
    order: list[str] = []
    held, put, ended = threading.Event(), client.put, client.ended
    monkeypatch.setattr(client, "put", lambda *given: held.wait() and (order.append("put"), put(*given))[1])
    monkeypatch.setattr(client, "ended", lambda *given: (order.append("ended"), ended(*given))[1])
    memory[0] = content(0)
    rows.store(RowJob(1, "r", [ref(0)], [0]), wanted=True)
    rows.tell(HintJob((ref(0),), 0.0))
    held.set()
    eventually(lambda: counts._sums.get("hints"))
    assert order == ["put", "ended"]
    rows.close()


def test_a_hint_to_a_store_that_is_gone_hurts_nobody(client, monkeypatch, caplog):
    def gone(*given: Any) -> Any:
        raise Unavailable("nobody listens")

    rows, _, counts = rows_of(client)
    monkeypatch.setattr(client, "awaited", gone)
    rows.tell(HintJob((ref(0),), 30.0))
    eventually(lambda: "nobody listens" in caplog.text)
    assert counts.take() == {"hints_failed": 1}
    rows.close()
