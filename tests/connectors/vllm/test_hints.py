"""What users of the engine say in `kv_transfer_params` reaches the store after what it is about, or hurts nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import kvstore
from kvstore.config import DramConfig
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._hints import awaited_s
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._plan import HintJob, Plan, SaveJob
from kvstore.connectors.vllm._saves import Saves
from kvstore.connectors.vllm._scheduler import Scheduler
from kvstore.connectors.vllm._worker import Worker
from kvstore.errors import InvalidArgument, Unavailable
from tests.connectors.vllm.test_scheduler import BLOCK, SPEC, matched, request, step, store

ENDED, AWAITED = "kvstore.ended", "kvstore.awaited_s"


@pytest.fixture
def client() -> Iterator[kvstore.Client]:
    config = kvstore.Config(dram=DramConfig(capacity=64 << 20, extent=64 << 20), policy="value")
    with kvstore.open(config) as opened:
        yield opened


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (None, None), ({}, None), ({"do_remote_prefill": True}, None), ({ENDED: False}, None), ({ENDED: True}, 0.0),
        ({AWAITED: 30}, 30.0), ({AWAITED: 0.5, ENDED: False, "other": 1}, 0.5), ({AWAITED: 86400}, 86400.0),
        ({AWAITED: None}, None),
    ],
)  # fmt: skip
def test_what_is_said(params: Any, expected: float | None) -> None:
    assert awaited_s(SimpleNamespace(kv_transfer_params=params)) == expected


WRONG: list[tuple[Any, str]] = [
    (["kvstore.ended"], "is a mapping"),
    ({ENDED: 1}, "true or false, not 1"), ({ENDED: "yes"}, "not 'yes'"), ({AWAITED: 0}, "above 0"),
    ({AWAITED: -3}, "not -3"), ({AWAITED: True}, "not True"), ({AWAITED: "30"}, "not '30'"),
    ({AWAITED: float("nan")}, "not nan"), ({AWAITED: float("inf")}, "up to 86400"), ({AWAITED: 86401}, "up to 86400"),
    ({ENDED: True, AWAITED: 5}, "not awaited"), ({"kvstore.awaited": 5}, "kvstore.awaited_s"),
    ({"kvstore.end": True}, "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("params", "words"), WRONG)
def test_what_cannot_be_said(params: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        awaited_s(SimpleNamespace(kv_transfer_params=params))


def finish(client: kvstore.Client, params: Any, **options: Any) -> tuple[Scheduler, Plan]:
    """A request of 200 tokens and an answer, that ends having said this; what is planned then."""
    side = Scheduler(client, SPEC, BLOCK, Options(lookup_wait_ms=1.0), **{"loads": True, "saves": True, **options})
    asked = request(200, kv_transfer_params=params)
    matched(side, asked)
    side.allocated(asked, (), 0)
    side.plan(step((asked, 0, 200)))
    asked.all_token_ids += range(1000, 1100)
    asked.num_computed_tokens = 299
    side.finished(asked, ([*range(1, 20)],))
    return side, side.plan(step())


def test_a_finished_request_hints_at_all_of_its_prompt_and_answer(client: kvstore.Client) -> None:
    side, plan = finish(client, {AWAITED: 30})
    whole = client.chain(SPEC, [*range(1, 201), *range(1000, 1088)])
    assert plan.hints == [HintJob(whole.refs, 30.0)]
    assert plan.final_saves[-1].ref == whole.refs[-1]  # the same tail that is stored
    assert side.plan(step()).hints == []  # told once
    side.close()


@pytest.mark.parametrize("params", [None, {}, {"other": 1}])
def test_who_says_nothing_hints_at_nothing(client: kvstore.Client, params: Any) -> None:
    side, plan = finish(client, params)
    assert plan.hints == []
    assert len(plan.final_saves) == 2
    side.close()


def test_what_cannot_be_said_is_counted_and_the_request_ends_as_ever(
    client: kvstore.Client, caplog: pytest.LogCaptureFixture
) -> None:
    side, plan = finish(client, {AWAITED: -1})
    assert plan.hints == []
    assert len(plan.final_saves) == 2
    assert side.counts.take()["hints_failed"] == 1
    assert "not -1" in caplog.text
    side.close()


def test_who_only_loads_hints_too(client: kvstore.Client) -> None:
    store(client, 192)
    side, plan = finish(client, {ENDED: True}, saves=False)
    assert plan.final_saves == []
    assert [job.awaited_s for job in plan.hints] == [0.0]
    side.close()


def test_after_a_reset_nothing_is_hinted(client: kvstore.Client) -> None:
    side = Scheduler(client, SPEC, BLOCK, Options(lookup_wait_ms=1.0), loads=True, saves=True)
    for name, stopped in (("before", False), ("after", True)):
        asked = request(200, name, kv_transfer_params={ENDED: True})
        matched(side, asked)
        asked.num_computed_tokens = 200
        if stopped:
            side.finished(asked, ([*range(1, 20)],))
        else:
            side.finished(asked, ([*range(1, 20)],))
            side.stop()
        assert side.plan(step()).hints == []
    side.close()


def test_a_request_without_keys_hints_at_nothing(client: kvstore.Client) -> None:
    """A prompt of embeddings, and one that ends before its look-up is answered."""
    side = Scheduler(client, SPEC, BLOCK, Options(lookup_wait_ms=1.0), loads=True, saves=True)
    for asked in (
        request(200, "embedded", prompt_embeds=object(), kv_transfer_params={ENDED: True}),
        request(200, "unknown", kv_transfer_params={ENDED: True}),
        request(20, "short", kv_transfer_params={ENDED: True}),
    ):
        if asked.request_id != "unknown":
            matched(side, asked)
        side.finished(asked, ([*range(1, 20)],))
    assert side.plan(step()).hints == []
    side.close()


class StillBlocks:
    """Blocks whose copies do not end before they are let."""

    block_tokens = BLOCK

    def __init__(self) -> None:
        self.go = threading.Event()

    def read(self, group: int, table: list[int], buffer: Any) -> Callable[[], object]:
        del group, table
        buffer[:] = 7
        return self.go.wait


@pytest.mark.parametrize("writers", [1, 3])
def test_a_hint_waits_for_what_it_is_about(client: kvstore.Client, writers: int) -> None:
    blocks, counts = StillBlocks(), Counts()
    saves = Saves(client, SPEC, 0, blocks, Options(writers=writers), counts)  # type: ignore[arg-type]
    first, second = client.chain(SPEC, [*range(1, 129)]), client.chain(SPEC, [*range(9001, 9129)])
    for chain in (second, first):
        for ref in chain.refs:
            saves.stage(SaveJob("r", ref, ([1, 2],)))
    saves.tell(HintJob(first.refs, 0.0))
    assert client.contains(SPEC, first.refs) == [False, False]
    blocks.go.set()
    saves.close()
    core = client.backend._store._core  # type: ignore[attr-defined]
    rows = core.usage.policy(0, core.catalog.namespace("default")).victims()
    assert [core.index.chunk(row).key for row in rows][:2] == [ref.key for ref in reversed(first.refs)]
    sums = counts.take()
    assert (sums["saved"], sums["hints"]) == (4, 1)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_a_store_that_does_not_answer_costs_a_count(
    client: kvstore.Client, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    def gone(*given: Any) -> int:
        raise Unavailable("it is gone")

    monkeypatch.setattr(client, "ended", gone)
    monkeypatch.setattr(client, "awaited", gone)
    counts = Counts()
    saves = Saves(client, SPEC, 0, StillBlocks(), Options(), counts)  # type: ignore[arg-type]
    saves.tell(HintJob(client.chain(SPEC, [*range(64)]).refs, seconds))
    saves.close()
    assert counts.take() == {"hints_failed": 1}


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_the_ranks_tells(client: kvstore.Client, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(client, SPEC, BLOCK, Options(), rank, [], None)
    told: list[HintJob] = []
    monkeypatch.setattr(worker, "_saves", SimpleNamespace(tell=told.append, stage=None))
    job = HintJob(client.chain(SPEC, [*range(64)]).refs, 0.0)
    worker.before(Plan(hints=[job]))
    assert told == ([job] if rank == 0 else [])
